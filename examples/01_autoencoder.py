# %% [markdown]
"""
# 1. The autoencoder

FLUX does not draw pixels. An autoencoder turns a picture x (H, W, 3) into a latent z with fewer, richer cells, the flow
(lesson 7) works there, and a decoder turns the result into pixels (Rombach et al. 2022). The encoder is a stack of
convolutions:

    resnet(x)     = x + conv(silu(norm(conv(silu(norm(x))))))        norm: over groups of channels
    downsample(x) = every second cell of conv(x)
    mean, log variance = conv(silu(norm(middle(down(conv(x))))))
    z = (mean - shift) * scale

In training z is drawn from the normal distribution of that mean and variance; here the mean itself is taken. The
embedded autoencoder makes (96, 96, 3) to (24, 24, 8), a sixth of the numbers; FLUX.1's divides both sides by 8, has 16
channels, and keeps a twelfth.

    python examples/01_autoencoder.py
"""

# %%
from typing import Any

import numpy as np
from _show import larger, maps, picture, save, stack, to_latent, to_picture
from PIL import Image
from scipy.special import softmax

import jaxpa
from jaxpa.media import images
from jaxpa.media.figures import sheet

# %% [markdown]
"""
## By hand

The whole encoder in NumPy, from the checkpoint's own numbers. A convolution of 3 x 3 is nine products of matrices, one
for each of a cell's neighbours:
"""


# %%
def conv(layer: Any, x: np.ndarray, stride: int = 1) -> np.ndarray:
    """x (h, w, in) -> (h / stride, w / stride, out)."""
    kernel = np.asarray(layer.kernel[...])  # (3, 3, in, out), or (1, 1, in, out)
    size, after = len(kernel), len(kernel) // 2
    before = after if stride == 1 else 0  # where it halves, the network pads below and on the right only
    padded = np.pad(x, ((before, after), (before, after), (0, 0)))
    h, w = padded.shape[0] - size + 1, padded.shape[1] - size + 1
    sums = [padded[r : r + h, c : c + w] @ kernel[r, c] for r in range(size) for c in range(size)]
    return (sum(sums) + np.asarray(layer.bias[...]))[::stride, ::stride]


def norm(layer: Any, x: np.ndarray) -> np.ndarray:
    groups = x.reshape(-1, layer.groups, x.shape[-1] // layer.groups)
    centred = groups - groups.mean((0, 2), keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean((0, 2), keepdims=True) + 1e-6)
    return scaled.reshape(x.shape) * np.asarray(layer.scale[...]) + np.asarray(layer.bias[...])


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def resnet(block: Any, x: np.ndarray) -> np.ndarray:
    y = conv(block.conv2, silu(norm(block.norm2, conv(block.conv1, silu(norm(block.norm1, x))))))
    return y + (x if block.conv_shortcut is None else conv(block.conv_shortcut, x))


def attention(block: Any, x: np.ndarray) -> np.ndarray:
    """In the middle every cell looks at all others."""
    y = norm(block.group_norm, x).reshape(-1, x.shape[-1])
    q, k, v, out = (
        lambda y, f=f: y @ np.asarray(f.kernel[...]) + np.asarray(f.bias[...])
        for f in (block.to_q, block.to_k, block.to_v, block.to_out[0])
    )
    return x + out(softmax(q(y) @ k(y).T / np.sqrt(y.shape[-1]), -1) @ v(y)).reshape(x.shape)


def encode(encoder: Any, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x (H, W, 3) in [-1, 1] -> mean and log variance (h, w, C)."""
    x = conv(encoder.conv_in, x)
    for block in encoder.down_blocks:
        for each in block.resnets:
            x = resnet(each, x)
        for each in block.downsamplers:
            x = conv(each.conv, x, stride=2)
    middle = encoder.mid_block
    x = resnet(middle.resnets[1], attention(middle.attentions[0], resnet(middle.resnets[0], x)))
    return tuple(np.split(conv(encoder.conv_out, silu(norm(encoder.conv_norm_out, x))), 2, -1))  # type: ignore


# %%
pipe = jaxpa.load("mini", np.float32)
vae, car = pipe.parts.vae, picture("car")
x = images.to_array(car, 96, 96)
mean, log_variance = encode(vae.encoder, x)
z = (mean - vae.config.shift_factor) * vae.config.scaling_factor
there = to_latent(vae, car)
print(f"picture {x.shape}: {x.size} numbers; latent {z.shape}: {z.size}")
print(f"by hand and by jaxpa: {np.abs(z - there).max():.1e} apart, on values up to {np.abs(z).max():.1f}")
print(f"standard deviation of a cell: {np.exp(log_variance / 2).mean():.3f}, of the latent: {z.std():.2f}")

# %% [markdown]
"""
## What a latent tolerates

Noise moves it, an average of two latents is not an average of two pictures, and a cell is felt by its neighbours only.
"""
# %%
noise = np.random.default_rng(0).normal(size=z.shape).astype(np.float32)
without = z.copy()
without[14:16, 10:12] = 0  # four cells of the car's side
mixed = (z + to_latent(vae, picture("cat"))) / 2
back, little, much, between, hole = (to_picture(vae, each) for each in (z, z + 0.3 * noise, z + noise, mixed, without))
average = Image.blend(car, picture("cat"), 0.5)
off = np.abs(np.asarray(back, float) - np.asarray(car, float)).mean(-1)
error = Image.fromarray(np.clip(8 * off, 0, 255).astype(np.uint8))

# %%
channels = [(f"channel {k}", z[..., k]) for k in range(4)]
rows = [
    [
        ("a picture", car),
        (f"encoded and decoded\n{images.psnr(car, back):.1f} dB", back),
        ("the difference, 8 times\nwhite: 32 levels or more", larger(error)),
        ("four cells set to zero", hole),
    ],
    [
        ("latent + 0.3 noise", little),
        ("latent + noise", much),
        ("mean of two latents", between),
        ("mean of two pictures", average),
    ],
]
limit = float(np.abs(z[..., :4]).max())
legend = maps(channels, "column", "row", "value", height=2.2, low=-limit, high=limit)
save(stack(sheet(rows, 200), legend), "01-autoencoder")

# %% [markdown]
"""
## Change something

Encode the photograph instead of the drawing: after `import _show`, `Image.open(_show.PICTURES / "chelsea.jpg")`, resized
to 96 x 96. It comes back with 32 dB, no worse than the drawings (31 to 33 dB): this autoencoder has seen natural
pictures, too. That the embedded model cannot draw such a cat (lesson 17) is the flow's fault, not the latent's.
"""
