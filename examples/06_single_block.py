# %% [markdown]
"""
# 6. A single block

After the double blocks text and image become one sequence, with the same weights for both. Of FLUX.1's 57 blocks 38 are
of this kind. Attention and MLP run side by side from the same features, and one gate serves both (Dehghani et al.
2023):

    (shift, scale, gate) = linear(y)
    features = norm(x) * (1 + scale) + shift
    x = x + gate * linear([softmax(q k^T / sqrt(Dh)) v;  gelu(linear(features))])         q, k, v as in lesson 5

Side by side saves time: q, k, v and the MLP's first layer are one product, and so are both layers on the way out. After
the last block the text is dropped, and a linear layer turns each image token into its velocity (lesson 7).

    python examples/06_single_block.py
"""

# %%
from typing import Any

import numpy as np
from _show import ask, block_of, drawn, figure, picture, save, stack
from scipy.special import softmax

import jaxpa
from jaxpa.blocks import Shared
from jaxpa.media.figures import sheet
from jaxpa.rope import Rotary, table
from jaxpa.tokens import grid_positions

PROMPT = "a yellow striped car in the snow"
T = 0.5  # flow time: half picture, half noise


# %%
def linear(layer: Any, x: np.ndarray) -> np.ndarray:
    return x @ np.asarray(layer.kernel[...]) + (0 if layer.bias is None else np.asarray(layer.bias[...]))


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


# %% [markdown]
"""
## By hand

The checkpoint keeps the output layer as two, `proj` for the attention and `mlp_out` for the MLP; their sum is the
product with [attention; MLP].
"""


# %%
def by_hand(block: Any, x: np.ndarray, y: np.ndarray, rotary: Rotary) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x (M + N, D), y (D,) -> what attention adds and what the MLP adds, (M + N, D); attention (H, M + N, M + N)."""
    shift, scale, gate = np.split(linear(block.mod, y), 3)
    features, heads = norm(x) * (1 + scale) + shift, block.qkv
    q, k, v = (linear(layer, features).reshape(len(x), heads.heads, -1) for layer in (heads.q, heads.k, heads.v))
    q, k = turn(rms_norm(heads.query_norm, q), rotary), turn(rms_norm(heads.key_norm, k), rotary)
    p = softmax(np.einsum("qhd,khd->hqk", q, k) / np.sqrt(q.shape[-1]), -1)
    attended = np.einsum("hqk,khd->qhd", p, v).reshape(len(x), -1)
    return gate * linear(block.proj, attended), gate * linear(block.mlp_out, gelu(linear(block.mlp_in, features))), p


# %%
pipe = jaxpa.load("mini", np.float32)
model, text = pipe.parts.transformer, pipe.encode_text([PROMPT])
car = picture("car")
noisy = (1 - T) * pipe.encode_image(car) + T * pipe.noise(np.array([0], np.uint32), (12, 12))  # (1, 144, 32)
condition = np.asarray(model.condition(text.vec, np.full(1, T, np.float32), np.full(1, 4.0, np.float32)))
y = condition / (1 + np.exp(-condition))
img, txt = model.img_in(noisy), model.txt_in(text.txt)  # (1, 144, D), (1, 32, D)
m = txt.shape[1]
positions = np.concatenate([np.zeros((m, 3)), np.asarray(grid_positions(12, 12))])
rotary = table(positions, model.config.axes_dims_rope)  # type: ignore[arg-type]
for k in range(model.config.num_layers):  # lesson 5
    block = block_of(model.double_blocks, k)
    (img, txt), _ = block((img, txt), (block.img.mod(y), block.txt.mod(y)), Shared(rotary))

# %%
x, sizes, takes = np.concatenate([txt[0], img[0]]), [], []
for k in range(model.config.num_single_layers):
    block = block_of(model.single_blocks, k)
    attended, mlp, p = by_hand(block, x, y[0], rotary)
    there = block(x[None], block.mod(y), Shared(rotary))[0][0]
    x = x + attended + mlp
    print(f"single block {k} by hand and by jaxpa: {np.abs(x - there).max():.1e} apart")
    sizes.append([np.sqrt(np.mean(part[rows] ** 2)) for part in (attended, mlp) for rows in (slice(m), slice(m, None))])
    takes.append([p[:, m:, :m].sum(-1).mean(), p[:, :m, m:].sum(-1).mean()])

# %% [markdown]
"""
The end: the text is dropped, one more adaLN, and a linear layer. The velocity leads to a guess at the picture, x - t v.
"""

# %%
shift, scale = np.split(linear(model.final_mod, y[0]), 2)
v = linear(model.final_linear, norm(x[m:]) * (1 + scale) + shift)  # (144, 32)
whole = ask(pipe.velocity(text, guidance=4.0), noisy, T)
print(f"the velocity by hand and by the whole network: {np.abs(v - whole[0]).max():.1e} apart")
guess = noisy - T * v
before, after = pipe.decode(np.concatenate([noisy, guess]))  # type: ignore[arg-type]
rows = [[("a picture", car), ("what the network sees\nhalf noise", before), ("its guess\nx - t v", after)]]

# %%
made, (left, right) = figure(7.6, 2.8, 2)
which = np.arange(len(sizes))
names = ("attention, text", "attention, image", "MLP, text", "MLP, image")
for k, name in enumerate(names):
    left.bar(which + 0.2 * (k - 1.5), [size[k] for size in sizes], 0.2, label=name)
left.set(title="what a block adds (root mean square)", xlabel="single block", xticks=which)
for k, name in enumerate(("image looks at text", "text looks at image")):
    right.plot(which, [take[k] for take in takes], marker="o", label=name)
right.set(title="share of attention", xlabel="single block", xticks=which, ylim=(0, 1))
for axis in (left, right):
    axis.legend(fontsize=7, frameon=False)
save(stack(sheet(rows, 224), drawn(made)), "06-single-block")

# %% [markdown]
"""
## Change something

Leave out the MLP's part of every block (`x = x + attended`): the guess becomes a blurred car. Leave out the attention's
instead (`x = x + mlp`): coarse noise is left, pale and blue where the car is yellow. The double blocks have brought
text and image together, and still no token could finish its part of the picture without looking at the others.
"""
