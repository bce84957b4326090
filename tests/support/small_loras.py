"""Random LoRAs for the small FLUX of `small_checkpoint`, in every format, and what they make of its weights.

Names and fusions are written out here, apart from the package's tables; `merged` is NumPy on whole stored matrices.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import save_file
from small_checkpoint import CONFIG

D, MLP, C = CONFIG.transformer.width, 4 * CONFIG.transformer.width, CONFIG.transformer.in_channels
TXT, VEC = CONFIG.transformer.joint_attention_dim, CONFIG.transformer.pooled_projection_dim
Sizes = dict[str, tuple[int, int]]  # layer -> outputs, inputs


def bfl_layers(blocks: tuple[int, int] = (2, 2), width: int = D) -> Sizes:
    """The layers of the original release that LoRAs change, in blocks."""
    double, single = blocks
    d, mlp = width, 4 * width
    sizes = {}
    for i in range(double):
        for stream in ("img", "txt"):
            at = f"double_blocks.{i}.{stream}_"
            sizes |= {f"{at}attn.qkv": (3 * d, d), f"{at}attn.proj": (d, d), f"{at}mlp.0": (mlp, d),
                      f"{at}mlp.2": (d, mlp), f"{at}mod.lin": (6 * d, d)}  # fmt: skip
    for i in range(single):
        at = f"single_blocks.{i}."
        sizes |= {f"{at}linear1": (3 * d + mlp, d), f"{at}linear2": (d, d + mlp), f"{at}modulation.lin": (3 * d, d)}
    return sizes


def bfl_ends(width: int = D, inputs: int = C, txt: int = TXT, vec: int = VEC, out: int = C) -> Sizes:
    """The layers around the blocks."""
    d = width
    embedders = {"time_in": 256, "guidance_in": 256, "vector_in": vec}
    sizes = {"img_in": (d, inputs), "txt_in": (d, txt), "final_layer.linear": (out, d),
             "final_layer.adaLN_modulation.1": (2 * d, d)}  # fmt: skip
    for name, width_in in embedders.items():
        sizes |= {f"{name}.in_layer": (d, width_in), f"{name}.out_layer": (d, d)}
    return sizes


def diffusers_layers() -> Sizes:
    """The same layers as diffusers has them."""
    sizes = {"x_embedder": (D, C), "context_embedder": (D, TXT), "proj_out": (C, D), "norm_out.linear": (2 * D, D)}
    for name, inputs in (("timestep", 256), ("guidance", 256), ("text", VEC)):
        at = f"time_text_embed.{name}_embedder.linear_"
        sizes |= {f"{at}1": (D, inputs), f"{at}2": (D, D)}
    for i in range(2):
        at = f"transformer_blocks.{i}."
        names = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
        sizes |= {f"{at}attn.{name}": (D, D) for name in names}
        for ff in ("ff", "ff_context"):
            sizes |= {f"{at}{ff}.net.0.proj": (MLP, D), f"{at}{ff}.net.2": (D, MLP)}
        sizes |= {f"{at}norm1.linear": (6 * D, D), f"{at}norm1_context.linear": (6 * D, D)}
        at = f"single_transformer_blocks.{i}."
        sizes |= {f"{at}attn.{name}": (D, D) for name in ("to_q", "to_k", "to_v")}
        sizes |= {f"{at}proj_mlp": (MLP, D), f"{at}proj_out": (D, D + MLP), f"{at}norm.linear": (3 * D, D)}
    return sizes


def clip_layers() -> Sizes:
    d, inner = CONFIG.text_encoder.hidden_size, CONFIG.text_encoder.intermediate_size
    sizes = {}
    for i in range(2):
        at = f"encoder.layers.{i}."
        sizes |= {f"{at}self_attn.{name}": (d, d) for name in ("q_proj", "k_proj", "v_proj", "out_proj")}
        sizes |= {f"{at}mlp.fc1": (inner, d), f"{at}mlp.fc2": (d, inner)}
    return sizes


def t5_layers() -> Sizes:
    c = CONFIG.text_encoder_2
    inner = c.num_heads * c.d_kv
    sizes = {}
    for i in range(2):
        at = f"encoder.block.{i}.layer."
        sizes |= {f"{at}0.SelfAttention.{name}": (inner, c.d_model) for name in "qkv"}
        sizes |= {f"{at}0.SelfAttention.o": (c.d_model, inner)}
        sizes |= {f"{at}1.DenseReluDense.{name}": (c.d_ff, c.d_model) for name in ("wi_0", "wi_1")}
        sizes |= {f"{at}1.DenseReluDense.wo": (c.d_model, c.d_ff)}
    return sizes


class Change(NamedTuple):
    """up (Out, R) down (R, In), times factor; of the stored tensor that is called `layer`."""

    layer: str
    down: np.ndarray
    up: np.ndarray
    factor: float = 1.0


def changes(sizes: Sizes, ranks: tuple[int, ...] = (3,), alpha: float | None = None, seed: int = 0) -> list[Change]:
    """A random one for each layer; ranks take turns."""
    rng = np.random.default_rng(seed)
    out = []
    for k, (layer, (outputs, inputs)) in enumerate(sizes.items()):
        rank = ranks[k % len(ranks)]
        down = rng.normal(0, inputs**-0.5, (rank, inputs)).astype(np.float32)
        up = rng.normal(0, rank**-0.5, (outputs, rank)).astype(np.float32)
        out.append(Change(layer, down, up, 1.0 if alpha is None else alpha / rank))
    return out


def named(
    made: list[Change], prefix: str, suffixes: tuple[str, str] = ("lora_A.weight", "lora_B.weight"),
    alpha: float | None = None, name: Callable[[str], str] = str,
) -> dict[str, np.ndarray]:  # fmt: skip
    """A file's tensors: every change under its prefix, with its alpha where there is one."""
    out = {}
    for layer, down, up, _ in made:
        at = prefix + name(layer)
        out |= {f"{at}.{suffixes[0]}": down, f"{at}.{suffixes[1]}": up}
        if alpha is not None:
            out[f"{at}.alpha"] = np.float32(alpha).reshape(())
    return out


def kohya(made: list[Change], prefix: str, alpha: float | None = None) -> dict[str, np.ndarray]:
    return named(made, prefix, ("lora_down.weight", "lora_up.weight"), alpha, lambda name: name.replace(".", "_"))


def xlabs() -> tuple[list[Change], dict[str, np.ndarray]]:
    """What XLabs changes: the layers around attention; of the single blocks' first one, the first 3 D outputs."""
    layers = {name: size for name, size in bfl_layers().items() if "_attn." in name or "linear2" in name}
    layers |= {f"single_blocks.{i}.linear1": (3 * D, D) for i in range(2)}
    made, tensors = changes(layers, seed=4), {}
    for layer, down, up, _ in made:
        blocks, number, rest = layer.split(".", 2)
        part = "qkv" if rest in ("img_attn.qkv", "txt_attn.qkv", "linear1") else "proj"
        which = {"i": "1", "t": "2", "l": ""}[rest[0]]
        at = f"{blocks}.{number}.processor.{part}_lora{which}"
        tensors |= {f"{at}.down.weight": down, f"{at}.up.weight": up}
    return made, tensors


def merged(weights: dict[str, np.ndarray], made: list[Change], scale: float = 1.0) -> dict[str, np.ndarray]:
    """Stored weights with changes merged in, in float64; a change of fewer outputs is one of the first."""
    out = dict(weights)
    for layer, down, up, factor in made:
        key = f"{layer}.weight"
        wide = out[key].astype(np.float64)
        wide[: len(up)] += scale * factor * up.astype(np.float64) @ down.astype(np.float64)
        out[key] = wide.astype(np.float32)
    return out


def save(tensors: dict[str, np.ndarray], file: Path, metadata: dict[str, str] | None = None) -> Path:
    save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, file, metadata)
    return file
