"""A forward of the MM-DiT here and in diffusers, on the same weights, in one run: `python examples/compare_speed.py`.

Both run in float32 on the CPU, in turns, so that other work on the machine slows both. The script prints the processor,
both medians, and their ratio. It needs the extra `test` (torch, diffusers).
"""

import os
import platform
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

from jaxpa.checkpoint.load import load_component
from jaxpa.checkpoint.source import find_mini
from jaxpa.tokens import grid_positions

TEXT = 32  # tokens
ROUNDS = 15


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _theirs(folder: Path) -> FluxTransformer2DModel:
    return FluxTransformer2DModel.from_pretrained(folder, low_cpu_mem_usage=False).float().eval()


def compare(side: int, batch: int) -> None:
    """side x side image tokens."""
    folder = find_mini() / "transformer"
    ours, theirs = load_component(folder, np.float32), _theirs(folder)
    rng, config, n = np.random.default_rng(0), ours.config, side * side
    x = rng.standard_normal((batch, n, config.in_channels), np.float32)
    txt = rng.standard_normal((batch, TEXT, config.joint_attention_dim), np.float32)
    vec = rng.standard_normal((batch, config.pooled_projection_dim), np.float32)
    t = np.full(batch, 0.5, np.float32)
    guidance = t if config.guidance_embeds else None
    positions = np.asarray(grid_positions(side, side))
    forward = jax.jit(lambda model, *arguments: model(*arguments))
    arguments = {
        "hidden_states": x, "encoder_hidden_states": txt, "pooled_projections": vec, "timestep": t,
        "img_ids": positions, "txt_ids": np.zeros((TEXT, 3)), "guidance": guidance,
    }  # fmt: skip
    tensors = {name: None if v is None else torch.from_numpy(v).float() for name, v in arguments.items()}

    def peer() -> np.ndarray:
        with torch.no_grad():
            return theirs(**tensors, return_dict=False)[0].numpy()

    def here() -> np.ndarray:
        return np.asarray(forward(ours, x, txt, vec, t, guidance, positions))

    difference = np.abs(here() - peer()).max()
    times = [(seconds(here), seconds(peer)) for _ in range(ROUNDS)]
    mine, other = (1e3 * statistics.median(column) for column in zip(*times, strict=True))
    shape = f"{batch} x ({n} image + {TEXT} text tokens)"
    print(f"{shape}: {mine:.1f} ms here, {other:.1f} ms diffusers, ratio {other / mine:.2f}")
    print(f"  the outputs differ by {difference:.1e}")


def processor() -> str:
    """Whatever the system calls its processor, and how many cores this process may use."""
    try:
        name = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        name = None
    return f"{name[1] if name else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


if __name__ == "__main__":
    print(processor())
    print(f"jax {jax.__version__}, torch {torch.__version__} with {torch.get_num_threads()} threads")
    for side, batch in ((12, 1), (12, 8), (32, 1)):
        compare(side, batch)
