"""The MM-DiT here and in diffusers, on the same weights, in one run: `python examples/compare_speed.py [NAME ...]`.

Both run in float32 on the CPU, in turns, so that other work on the machine slows both. For each size the script prints
both medians, their ratio, and the ratio that could be had at most: diffusers' time over what XLA takes for the matrix
products of the blocks alone, at their shapes and in their order, without norms, softmax or anything else. `picture` is
a prompt's way to its pixels, with mini; `cold` is that of a new process to its first picture, from the imports on. It
needs the extra `test` (torch, diffusers).
"""

import argparse
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline

import jaxpa
from jaxpa.checkpoint.load import find_mini, load_component
from jaxpa.config import TransformerConfig
from jaxpa.devices.bench import matmul_ceiling
from jaxpa.devices.cost import transformer_flops
from jaxpa.tokens import grid_positions

PROMPT = "a striped red cat on a beach"


class Size(NamedTuple):
    """side x side image tokens and text tokens in a batch, through a network: mini, or a random one of this width."""

    batch: int
    side: int
    text: int
    width: int | None = None
    blocks: tuple[int, int] = (0, 0)
    rounds: int = 30


SIZES = {
    "mini": Size(1, 12, 32),
    "mini-batch": Size(8, 12, 32),
    "mini-large": Size(1, 32, 32),
    "256": Size(1, 16, 32, 256, (4, 8)),
    "1024": Size(1, 32, 128, 1024, (2, 4), 2),
    "3072": Size(1, 32, 512, 3072, (1, 2), 1),
}


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def in_turns(here: Callable[[], object], peer: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Median seconds of each, in three turns of `rounds` calls.

    The threads of a library go on looking for work, up to 0.2 s after a call: before each turn the script waits for
    them, and makes a few calls that are not measured.
    """
    times: dict[Callable[[], object], list[float]] = {here: [], peer: []}
    for _ in range(3):
        for run, its in times.items():
            time.sleep(0.5)
            _ = [run() for _ in range(1 + rounds // 4)]
            its += [seconds(run) for _ in range(rounds)]
    return statistics.median(times[here]), statistics.median(times[peer])


def random_network(folder: Path, size: Size) -> None:
    """Write a network of random weights, as diffusers initialises and stores them."""
    assert size.width is not None
    head = min(128, size.width // 4)
    theirs = FluxTransformer2DModel(
        num_layers=size.blocks[0],
        num_single_layers=size.blocks[1],
        attention_head_dim=head,
        num_attention_heads=size.width // head,
        joint_attention_dim=min(4096, 4 * size.width),
        axes_dims_rope=(head // 8, head * 7 // 16, head * 7 // 16),
        guidance_embeds=True,
    )
    theirs.save_pretrained(folder)


def compare(name: str, size: Size) -> None:
    """A forward."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = find_mini() / "transformer" if size.width is None else Path(temporary)
        if size.width is not None:
            random_network(folder, size)
        ours = load_component(folder, np.float32)
        theirs = FluxTransformer2DModel.from_pretrained(folder, low_cpu_mem_usage=False).float().eval()
    here, peer = forwards(ours, theirs, size)
    difference = np.abs(here() - peer()).max()
    mine, other = in_turns(here, peer, size.rounds)
    alone, _ = in_turns(products(ours.config, size), lambda: None, size.rounds)
    shape = f"{size.batch} x ({size.side**2} image + {size.text} text tokens), width {ours.config.width}"
    print(f"{name}: {shape}: {1e3 * mine:.1f} ms here, {1e3 * other:.1f} ms diffusers, ratio {other / mine:.2f}")
    rate = size.batch * transformer_flops(ours.config, size.side**2, size.text) / alone
    print(
        f"  at most {other / alone:.2f}: the products alone take {1e3 * alone:.1f} ms ({rate / 1e9:.0f} GFLOP/s); ",
        end="",
    )
    print(f"the outputs differ by {difference:.1e}")


def forwards(ours: Any, theirs: FluxTransformer2DModel, size: Size) -> tuple[Callable[[], np.ndarray], ...]:
    """The same forward on the same input, here and there."""
    rng, config, (batch, n) = np.random.default_rng(0), ours.config, (size.batch, size.side**2)
    x = rng.standard_normal((batch, n, config.in_channels), np.float32)
    txt = rng.standard_normal((batch, size.text, config.joint_attention_dim), np.float32)
    vec = rng.standard_normal((batch, config.pooled_projection_dim), np.float32)
    t = np.full(batch, 0.5, np.float32)
    positions = np.asarray(grid_positions(size.side, size.side))
    names = ("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep", "guidance", "img_ids")
    arguments = (x, txt, vec, t, t if config.guidance_embeds else None, positions)
    tensors = {
        name: None if value is None else torch.from_numpy(np.array(value)).float()
        for name, value in zip((*names, "txt_ids"), (*arguments, np.zeros((size.text, 3))), strict=True)
    }
    leaves, tree = jax.tree.flatten((ours, *map(jnp.asarray, arguments)))  # as the sampling loops call it

    @jax.jit
    def program(leaves: list[jax.Array]) -> jax.Array:
        model, *arguments = jax.tree.unflatten(tree, leaves)
        return model(*arguments)

    def peer() -> np.ndarray:
        with torch.no_grad():
            return theirs(**tensors, return_dict=False)[0].numpy()

    return lambda: np.asarray(program(leaves)), peer


def products(config: TransformerConfig, size: Size) -> Callable[[], object]:
    """The products of the blocks alone, in a program of their own."""
    rng, d = np.random.default_rng(0), config.width

    def weights(blocks: int, names: str, out: int = d, into: int = d) -> dict[str, jax.Array]:
        return {
            name: jnp.asarray(rng.standard_normal((blocks, into, out), np.float32) / into**0.5)
            for name in names.split()
        }

    double = weights(config.num_layers, "iq ik iv io tq tk tv to")
    double |= weights(config.num_layers, "i1 t1", out=4 * d) | weights(config.num_layers, "i2 t2", into=4 * d)
    single = weights(config.num_single_layers, "q k v o")
    single |= weights(config.num_single_layers, "1", out=4 * d) | weights(config.num_single_layers, "2", into=4 * d)

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        q, k, v = (each.reshape(*each.shape[:2], config.num_attention_heads, -1).swapaxes(1, 2) for each in (q, k, v))
        return (q @ k.swapaxes(2, 3) @ v).swapaxes(1, 2).reshape(q.shape[0], q.shape[2], d)

    def double_block(streams: tuple[jax.Array, jax.Array], w: dict[str, jax.Array]) -> tuple[Any, None]:
        txt, img = streams
        both = attend(*(jnp.concatenate([txt @ w[f"t{name}"], img @ w[f"i{name}"]], 1) for name in "qkv"))
        txt, img = both[:, : size.text] @ w["to"], both[:, size.text :] @ w["io"]
        return (txt @ w["t1"] @ w["t2"], img @ w["i1"] @ w["i2"]), None

    def single_block(x: jax.Array, w: dict[str, jax.Array]) -> tuple[jax.Array, None]:
        return attend(*(x @ w[name] for name in "qkv")) @ w["o"] + x @ w["1"] @ w["2"], None

    @jax.jit
    def program(txt: jax.Array, img: jax.Array, double: Any, single: Any) -> jax.Array:
        streams, _ = jax.lax.scan(double_block, (txt, img), double)
        return jax.lax.scan(single_block, jnp.concatenate(streams, 1), single)[0]

    txt, img = (jnp.ones((size.batch, tokens, d)) for tokens in (size.text, size.side**2))
    return lambda: program(txt, img, double, single).block_until_ready()


def compare_picture(rounds: int = 2) -> None:
    """From a prompt to pixels, with mini and its own settings but for guidance, which the two steer differently."""
    here = jaxpa.load()
    peer = FluxPipeline.from_pretrained(find_mini(), dtype=torch.float32, low_cpu_mem_usage=False)
    peer.set_progress_bar_config(disable=True)
    size, steps, tokens = here.settings.size, here.settings.steps, here.settings.max_length
    same = {
        "height": size,
        "width": size,
        "num_inference_steps": steps,
        "guidance_scale": 1.0,
        "max_sequence_length": tokens,
    }
    mine, other = in_turns(
        lambda: here.generate(PROMPT, steps=steps, guidance=1.0),
        lambda: peer(PROMPT, **same),
        rounds,
    )
    print(f"picture: {size} x {size} pixels, {steps} steps: {mine:.2f} s here, {other:.2f} s diffusers, ", end="")
    print(f"ratio {other / mine:.2f}")


PEER = """import sys, torch
from diffusers import FluxPipeline
pipe = FluxPipeline.from_pretrained(sys.argv[1], dtype=torch.float32, low_cpu_mem_usage=False)
sizes = dict(zip(("height", "width", "num_inference_steps", "max_sequence_length"), map(int, sys.argv[4:])))
pipe(sys.argv[2], guidance_scale=1.0, **sizes).images[0].save(sys.argv[3])"""


def compare_cold(rounds: int = 3) -> None:
    """New processes to their first picture, in turns; the programs of the second one here are compiled already."""
    said = jaxpa.load().settings
    sizes = [str(value) for value in (said.size, said.size, said.steps, said.max_length)]
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        out, other = (str(Path(folder, f"{name}.png")) for name in ("here", "diffusers"))
        ours = [sys.executable, "-m", "jaxpa", "generate", "--prompt", PROMPT, "--guidance", "1", "--out", out]
        theirs = [sys.executable, "-c", PEER, str(find_mini()), PROMPT, other, *sizes]
        for turn in range(rounds):
            cache = {"JAX_COMPILATION_CACHE_DIR": str(Path(folder, f"cache-{turn}"))}
            for name, words in (("compiling", ours), ("compiled", ours), ("diffusers", theirs)):
                run = partial(subprocess.run, words, check=True, capture_output=True, env=os.environ | cache)
                times.setdefault(name, []).append(seconds(run))
    compiling, compiled, peer = (statistics.median(each) for each in times.values())
    print(f"cold: {compiling:.1f} s here, {compiled:.1f} s with its programs kept, {peer:.1f} s diffusers, ", end="")
    print(f"ratios {peer / compiling:.2f} and {peer / compiled:.2f}")


def processor() -> str:
    """Whatever the system calls its processor, and how many cores this process may use."""
    try:
        name = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        name = None
    return f"{name[1] if name else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def main() -> None:
    whole = {"picture": compare_picture, "cold": compare_cold}
    known = ", ".join([*SIZES, *whole])
    parser = argparse.ArgumentParser(description="Time the MM-DiT here and in diffusers.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {known} (default: all)")
    names = parser.parse_args().names or [*SIZES, *whole]
    if unknown := set(names) - {*SIZES, *whole}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; choose from {known}")
    print(f"{processor()}: {1e3 * matmul_ceiling():.0f} GFLOP/s in float32 products")
    print(f"jax {jax.__version__}, torch {torch.__version__} with {torch.get_num_threads()} threads")
    for name in names:
        if name in whole:
            whole[name]()
        else:
            compare(name, SIZES[name])


if __name__ == "__main__":
    main()
