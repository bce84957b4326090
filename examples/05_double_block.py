# %% [markdown]
"""
# 5. A double block, step by step

Text and image are two streams, with weights of their own, that meet in one attention. With y = silu(condition),

    (shift, scale, gate, shift', scale', gate') = linear(y)                       adaLN: time and prompt set the layer
    q, k, v = linear(norm(x) * (1 + scale) + shift),   q, k = rms_norm(q), rms_norm(k), turned by their positions
    x = x + gate * linear(softmax(q k^T / sqrt(Dh)) v)                            over [text; image]
    x = x + gate' * mlp(norm(x) * (1 + scale') + shift')

(Esser et al. 2024; Peebles and Xie 2023 for adaLN.) FLUX.1 has 19 such blocks of width 3072, the embedded model two of
width 192.

    python examples/05_double_block.py
"""

# %%
from typing import Any

import numpy as np
from _show import block_of, maps, picture, save, stack
from scipy.special import softmax

import jaxpa
from jaxpa.blocks import Shared
from jaxpa.rope import Rotary, table
from jaxpa.tokens import grid_positions

PROMPT = "a yellow striped car in the snow"
T = 0.5  # flow time: half picture, half noise

# %% [markdown]
"""
## By hand

In NumPy, from the checkpoint's own numbers:
"""


# %%
def linear(layer: Any, x: np.ndarray) -> np.ndarray:
    return x @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...])


def norm(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)


def rms_norm(layer: Any, x: np.ndarray) -> np.ndarray:
    return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-6) * np.asarray(layer.scale[...])


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def turn(x: np.ndarray, rotary: Rotary) -> np.ndarray:
    """Lesson 4: x (S, H, Dh)."""
    pairs = (x[..., 0::2] + 1j * x[..., 1::2]) * (np.asarray(rotary.cos) + 1j * np.asarray(rotary.sin))[0][:, None]
    return np.stack([pairs.real, pairs.imag], -1).reshape(x.shape)


# %%
def by_hand(block: Any, img: np.ndarray, txt: np.ndarray, y: np.ndarray, rotary: Rotary) -> tuple[np.ndarray, ...]:
    """img (N, D), txt (M, D), y (D,) -> both streams after the block, and the attention (H, M + N, M + N)."""
    streams = [(block.txt, txt), (block.img, img)]  # text comes first
    mods = [np.split(linear(stream.mod, y), 6) for stream, _ in streams]
    qkv = []
    for (stream, x), (shift, scale, *_) in zip(streams, mods, strict=True):
        features, heads = norm(x) * (1 + scale) + shift, stream.qkv
        q, k, v = (linear(layer, features).reshape(len(x), heads.heads, -1) for layer in (heads.q, heads.k, heads.v))
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


# %% [markdown]
"""
What goes in: a picture that is half noise, its prompt, and y, which holds time, guidance and the whole prompt.
"""

# %%
pipe = jaxpa.load("mini", np.float32)
model, text = pipe.parts.transformer, pipe.encode_text([PROMPT])
car = picture("car")
x = (1 - T) * pipe.encode_image(car) + T * pipe.noise(np.array([0], np.uint32), (12, 12))  # (1, 144, 32)
condition = np.asarray(model.condition(text.vec, np.full(1, T, np.float32), np.full(1, 4.0, np.float32)))
y = condition / (1 + np.exp(-condition))  # (1, D)
img, txt = model.img_in(x), model.txt_in(text.txt)  # (1, 144, D), (1, 32, D)
m = txt.shape[1]
positions = np.concatenate([np.zeros((m, 3)), np.asarray(grid_positions(12, 12))])  # text sits at (0, 0, 0)
rotary = table(positions, model.config.axes_dims_rope)  # type: ignore[arg-type]

# %%
seen = []
for layer in range(model.config.num_layers):
    block = block_of(model.double_blocks, layer)
    hand_img, hand_txt, p = by_hand(block, np.asarray(img)[0], np.asarray(txt)[0], y[0], rotary)
    mod = block.img.mod(y), block.txt.mod(y)  # (1, 6 D) each
    (img, txt), _ = block((img, txt), mod, Shared(rotary))
    off = max(np.abs(hand_img - img[0]).max(), np.abs(hand_txt - txt[0]).max())
    print(f"block {layer} by hand and by jaxpa: {off:.1e} apart, on values up to {np.abs(img).max():.0f}")
    seen.append(p.mean(0))  # over heads
    own, told = np.diagonal(seen[-1])[m:].mean(), seen[-1][m:, :m].sum(-1).mean()
    print(f"of an image token's attention, {own:.1%} goes to its own place and {told:.0%} to the text")

# %% [markdown]
"""
Square roots, so that small shares show too. A row sums to one: it is what one token takes from all others.
"""

# %%
whole = [(f"{name} block", np.sqrt(p)) for name, p in zip(("first", "second"), seen, strict=True)]
upper = maps(whole, f"key: {m} of text, then 144 of the image", "query", "square root of attention", height=4.6)
p = seen[1][m:, m:].reshape(12, 12, 12, 12)  # image to image: query row, column, key row, column
places = {"wheel": (9, 4), "roof": (5, 6), "sky": (1, 8)}
ones = [(f"query: the {name}, at row {r}, column {c}", p[r, c]) for name, (r, c) in places.items()]
lower = maps(ones, "the key's column", "the key's row", "attention, second block", height=3.2)
save(stack(upper, lower), "05-double-block")

# %% [markdown]
"""
## Change something

Take the positions away (`table(0 * positions, ...)`). The diagonals vanish: little of a token's attention is left for
its own place, and nothing tells its neighbours from the rest. The text's columns stay, though most are paler, since
they are about what a token holds. Then put the positions back and set T to 0.05: with less noise, the image tokens of
the first block take less from the text.
"""
