"""How much memory a run takes, and how much this machine has.

The estimate is of what XLA holds at once, from sizes alone: the weights, and the largest of the stages, which follow
each other. A stage counts its widest activations and attention's logits, these only where the platform's attention
writes them to memory (`jaxpa.kernels`). Tests compare it, on a CPU, with XLA's own numbers and with the memory of a
process (XLA's numbers lack a kernel's own workspace).
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import jax

from jaxpa.checkpoint.stages import STAGES
from jaxpa.config import WIDE, AutoencoderConfig, FluxConfig, Rounding
from jaxpa.devices import cost
from jaxpa.errors import JaxpaError
from jaxpa.kernels import LANES, LONG, VAST, block_of

GIB = 2.0**30
LOGITS = 8  # bytes: float32, before the softmax and after it
ALONE = 4  # of one row and head on a CPU, where XLA's kernel overwrites them
STREAMS = (
    14  # arrays of the model's width in one block: the stream, its norm, q, k, v, their attention, the MLP's 4 + 4
)
PICTURES = 3  # arrays of a convolution's width and resolution that are held at once: in, normed, out
SHARE = 0.9  # of the machine's memory that a run may take
TOGETHER = 0.5  # of it that images are sampled together for, if nobody says how many


class Held(NamedTuple):
    """How networks are in memory: bytes of a number, weights of the blocks where they have eight bits, whether all
    networks are there at once, or take turns (`checkpoint.stages`), how many numbers LoRAs keep beside weights, and how
    many FLUX.1-Redux has, which always stays."""

    itemsize: int = 4
    weights: Rounding = WIDE
    resident: bool = True
    kept: int = 0
    redux: int = 0


@dataclass(frozen=True)
class Load:
    """What is on the device at once.

    tokens N (grid h x w), text M, context K; rows of the transformer's batch; pictures: how many a call of the
    autoencoder takes (0: none); itemsize, weights, resident, kept, redux: see `Held`; beside: tokens of a picture in
    each sequence.
    """

    config: FluxConfig
    grid: tuple[int, int]
    text: int
    rows: int
    context: int = 0
    pictures: int = 1
    itemsize: int = 4
    weights: Rounding = WIDE
    resident: bool = True
    kept: int = 0
    redux: int = 0
    beside: int = 0

    @property
    def tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def network_bytes(self) -> dict[str, int]:
        """Of each component: its weights, and what is kept beside them, nearly all of it beside the transformer's."""
        sizes = cost.weight_bytes(self.config, self.itemsize, self.weights)
        sizes["transformer"] += self.kept * self.itemsize
        return sizes | {"redux": self.redux * self.itemsize} if self.redux else sizes


def logits_bytes(platform: str, rows: int, heads: int, queries: int, keys: int, width: int, itemsize: int) -> int:
    """Bytes of the logits that one call of attention holds in memory; width: channels of a head."""
    if platform in ("gpu", "cuda") and itemsize == 2 and width <= 128:
        return 0  # a fused kernel
    if platform == "tpu" and itemsize == 2 and width % LANES == 0 and min(queries, keys) >= LONG:
        return 0  # another
    if platform == "cpu" and queries * keys <= VAST:
        heads = 1 if queries * keys > LONG**2 // 4 else heads  # one head after the other
        if rows * heads == 1:
            return ALONE * queries * keys
    else:  # a block of queries after the other
        queries = block_of(queries, keys)
    return LOGITS * rows * heads * queries * keys


def transformer_bytes(load: Load, platform: str) -> int:
    """Bytes that a step of sampling takes beside the weights."""
    c, length = load.config.transformer, load.tokens + load.beside + load.text
    logits = logits_bytes(
        platform, load.rows, c.num_attention_heads, length, length + load.context, c.attention_head_dim, load.itemsize
    )
    return logits + load.rows * length * STREAMS * c.width * load.itemsize


def autoencoder_bytes(load: Load, platform: str) -> int:
    """Bytes that encoding or decoding takes beside the weights: attention over all cells, or the widest layer."""
    c: AutoencoderConfig = load.config.vae
    cells = 4 * load.tokens
    attention = logits_bytes(platform, load.pictures, 1, cells, cells, c.block_out_channels[-1], load.itemsize)
    attention = attention * c.mid_block_add_attention + load.pictures * cells * c.block_out_channels[-1] * 16
    # Every level down has a quarter of the pixels; its first layer still has the channels of the level below.
    widths = (*c.block_out_channels, c.block_out_channels[-1])
    widest = max(max(widths[i : i + 2]) // 4**i for i in range(len(c.block_out_channels)))
    size = 4 if platform == "cpu" else load.itemsize  # a CPU's convolutions are of float32
    convolutions = size * PICTURES * load.pictures * cells * c.downscale**2 * widest
    return max(attention, convolutions)


def activation_bytes(load: Load, platform: str) -> int:
    """Bytes of the largest stage, beside the weights."""
    return max(transformer_bytes(load, platform), autoencoder_bytes(load, platform) if load.pictures else 0)


def peak_bytes(load: Load, platform: str, parts: tuple[str, ...] = ()) -> int:
    """Weights (of some parts; (): all) and activations together; of networks that take turns, the largest stage."""
    if not parts and not load.resident:
        return max(stage_bytes(load, platform).values())
    weights = load.network_bytes
    return sum(size for name, size in weights.items() if not parts or name in parts) + activation_bytes(load, platform)


def stage_bytes(load: Load, platform: str) -> dict[str, int]:
    """Of each stage, if its networks alone are there: weights and activations."""
    weights = load.network_bytes
    beside = {
        "text": _text_bytes(load, platform),
        "sample": transformer_bytes(load, platform),
        "pictures": autoencoder_bytes(load, platform) if load.pictures else 0,
    }
    stays = weights.get("redux", 0)
    return {stage: stays + sum(weights[name] for name in STAGES[stage]) + size for stage, size in beside.items()}


def _text_bytes(load: Load, platform: str) -> int:
    """One prompt in T5, beside the weights: attention's logits, and the gated MLP."""
    c, m = load.config.text_encoder_2, load.text
    logits = LOGITS * c.num_heads * m * m  # a bias on them: no fused kernel
    return logits + 4 * m * (c.d_model + 2 * c.d_ff) * load.itemsize


def result_bytes(load: Load, images: int) -> int:
    """Bytes of finished pictures and their tokens, which wait in the host's memory until they are written."""
    side = load.config.vae.downscale * 2
    return images * load.tokens * (3 * side**2 + 4 * load.config.transformer.velocity_channels)


def machine_bytes() -> int | None:
    """The memory of a device, or of this machine if the device is its CPU; None if it is unknown."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("bytes_limit")
    return _host_bytes()


@cache  # a plan asks several times, and a batch plans every line
def _host_bytes() -> int | None:
    try:
        found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    except (AttributeError, OSError, ValueError):
        return None
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):  # a container's limit
        try:
            found.append(int(Path(file).read_text()))
        except (OSError, ValueError):
            continue
    return min(found)


def require(need: int, what: str, hint: str) -> None:
    """Raise JaxpaError, with both numbers, if the machine has less memory than a run needs."""
    have = machine_bytes()
    if have is not None and need > SHARE * have:
        raise JaxpaError(
            f"{what} takes about {need / GIB:,.1f} GiB of memory, and this machine has {have / GIB:,.1f} GiB: {hint}, "
            "or try it anyway with --force"
        )


def batch_that_fits(load_of: Callable[[int], Load], images: int, platform: str) -> int:
    """How many images can be sampled together: all of them, or the most that fit; 0 if not even one does.

    load_of(count) is the load of `count` images.
    """
    have = machine_bytes()
    if have is None or peak_bytes(load_of(images), platform) <= TOGETHER * have:
        return images
    low, high = 0, images  # low fits, high does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if peak_bytes(load_of(middle), platform) <= TOGETHER * have else (low, middle)
    if not low:
        return int(peak_bytes(load_of(1), platform) <= SHARE * have)
    # Batches are of equal size: the last one is padded, so it should not be much smaller.
    return math.ceil(images / math.ceil(images / low))
