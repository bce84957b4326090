"""A double stream block step by step, in NumPy, from the checkpoint's own numbers.

Text and image are two streams, with weights of their own, that meet in one attention. With y = silu(condition),

    (shift, scale, gate, shift', scale', gate') = linear(y)                       adaLN: time and prompt set the layer
    q, k, v = linear(norm(x) * (1 + scale) + shift),   q, k = rms_norm(q), rms_norm(k), turned by their positions
    x = x + gate * linear(softmax(q k^T / sqrt(Dh)) v)                            over [text; image]
    x = x + gate' * mlp(norm(x) * (1 + scale') + shift')

(Esser et al. 2024; Peebles and Xie 2023 for adaLN.) The script compares its result with `blocks.DoubleBlock`.

    python examples/05_double_block.py
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _show import PICTURES, heat, larger, save
from PIL import Image
from scipy.special import softmax

import jaxpa
from jaxpa.blocks import Shared
from jaxpa.media.figures import sheet
from jaxpa.rope import Rotary, table
from jaxpa.tokens import grid_positions

PROMPT = "a yellow striped car in the snow"
T = 0.5  # flow time: half picture, half noise


def linear(layer: Any, x: np.ndarray) -> np.ndarray:
    return x @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...])


def norm(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)


def rms_norm(layer: Any, x: np.ndarray) -> np.ndarray:
    return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-6) * np.asarray(layer.scale[...])


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def turn(x: np.ndarray, rotary: Rotary) -> np.ndarray:
    """04_rope.py: x (S, H, Dh)."""
    pairs = (x[..., 0::2] + 1j * x[..., 1::2]) * (np.asarray(rotary.cos) + 1j * np.asarray(rotary.sin))[0][:, None]
    return np.stack([pairs.real, pairs.imag], -1).reshape(x.shape)


def by_hand(block: Any, img: np.ndarray, txt: np.ndarray, y: np.ndarray, rotary: Rotary) -> tuple[np.ndarray, ...]:
    """img (N, D), txt (M, D), y (D,) -> both streams after the block, and the attention (H, M + N, M + N)."""
    streams = [(block.txt, txt), (block.img, img)]  # text comes first
    mods = [np.split(linear(stream.mod, y), 6) for stream, _ in streams]
    qkv = []
    for (stream, x), (shift, scale, *_) in zip(streams, mods, strict=True):
        y, heads = norm(x) * (1 + scale) + shift, stream.qkv
        q, k, v = (linear(layer, y).reshape(len(x), heads.heads, -1) for layer in (heads.q, heads.k, heads.v))
        qkv.append((rms_norm(heads.query_norm, q), rms_norm(heads.key_norm, k), v))
    q, k, v = (np.concatenate(pair) for pair in zip(*qkv, strict=True))  # (M + N, H, Dh)
    q, k = turn(q, rotary), turn(k, rotary)
    p = softmax(np.einsum("qhd,khd->hqk", q, k) / np.sqrt(q.shape[-1]), -1)  # (H, M + N, M + N)
    attended = np.einsum("hqk,khd->qhd", p, v).reshape(len(q), -1)
    out = []
    for (stream, x), mod, a in zip(streams, mods, np.split(attended, [len(txt)]), strict=True):
        _, _, gate, shift, scale, gate_mlp = mod
        x = x + gate * linear(stream.proj, a)
        x = x + gate_mlp * linear(stream.mlp_out, gelu(linear(stream.mlp_in, norm(x) * (1 + scale) + shift)))
        out.append(x)
    return out[1], out[0], p


def main() -> None:
    pipe = jaxpa.load("mini")
    model, text = pipe.parts.transformer, pipe.encode_text([PROMPT])
    picture = Image.open(PICTURES / "car.png").convert("RGB").resize((96, 96), Image.Resampling.LANCZOS)
    x = (1 - T) * pipe.encode_image(picture) + T * pipe.noise(np.array([0], np.uint32), (12, 12))

    guidance = jnp.array([pipe.settings.guidance]) if pipe.embeds_guidance else None
    y = jax.nn.silu(model.condition(text.vec, jnp.array([T]), guidance))  # (1, D)
    img, txt = model.img_in(x), model.txt_in(text.txt)  # (1, 144, D), (1, 32, D)
    positions = jnp.concatenate([jnp.zeros((txt.shape[1], 3)), grid_positions(12, 12)])  # text sits at (0, 0, 0)
    rotary = table(positions, model.config.axes_dims_rope)

    maps = []
    for layer in range(model.config.num_layers):  # the blocks are stacked: parameter k of all of them is one array
        block = jax.tree.map(lambda p, layer=layer: p[layer], model.double_blocks)
        hand_img, hand_txt, p = by_hand(block, np.asarray(img)[0], np.asarray(txt)[0], np.asarray(y)[0], rotary)
        mod = block.img.mod(y), block.txt.mod(y)  # (1, 6 D) each
        (img, txt), _ = block((img, txt), mod, Shared(rotary))
        off = max(np.abs(hand_img - img[0]).max(), np.abs(hand_txt - txt[0]).max())
        print(f"block {layer}: by hand and by jaxpa differ by {off:.1e}, on values up to {np.abs(img).max():.0f}")
        maps.append(p.mean(0))  # over heads
    save(draw(picture, maps, txt.shape[1]), "05-double-block")


def draw(picture: Image.Image, maps: list[np.ndarray], m: int) -> Image.Image:
    titles = (
        f"{name} block: who looks at whom\n{m} rows of text, then 144 of the image" for name in ("first", "second")
    )
    side = 2 * len(maps[0])
    whole = [larger(heat(np.sqrt(p)), side) for p in maps]
    p = maps[1][m:, m:].reshape(12, 12, 12, 12)  # image to image: query row, column, key row, column
    places = {"wheel": (9, 4), "roof": (5, 6), "sky": (1, 8)}
    ones = [
        (f"what a token of the {name} looks at\nin the second block", larger(heat(p[at])))
        for name, at in places.items()
    ]
    return sheet([[("the picture\nblocks see it half noise", picture), *zip(titles, whole, strict=True)], ones], side)


if __name__ == "__main__":
    main()
