# %% [markdown]
"""
# 2. Packing and positions

What the transformer sees of a picture: 144 tokens, and nothing that says where they belong.

Each 2 x 2 patch of the latent z (24, 24, 8) of lesson 1 becomes one token, row by row:

    token[r * w + c] = [z[2r + dy, 2c + dx, k]  for k in channels, for dy in (0, 1), for dx in (0, 1)]

This gives N = h * w tokens of C = 4 * 8 channels, with h = H / 8; FLUX.1 has 64 channels, and h = H / 16. The position
(r, c) is not in the token: it is a second array, which only attention reads (lesson 4). Personalize Anything builds on
this: a token can be put anywhere.

    python examples/02_tokens.py
"""

# %%
import numpy as np
from _show import larger, picture, principal, save
from PIL import Image

import jaxpa
from jaxpa import tokens
from jaxpa.media import images
from jaxpa.media.figures import overlay, sheet

# %% [markdown]
"""
The equation in NumPy, and what the pipeline makes of the same picture:
"""


# %%
def patchify(z: np.ndarray) -> np.ndarray:
    """(2h, 2w, C) -> (h * w, 4 C)."""
    h, w, c = z.shape[0] // 2, z.shape[1] // 2, z.shape[2]
    return z.reshape(h, 2, w, 2, c).transpose(0, 2, 4, 1, 3).reshape(h * w, 4 * c)


pipe = jaxpa.load("mini")
car = picture("car")
packed = np.asarray(pipe.encode_image(car))  # (1, 144, 32)
latent = np.asarray(tokens.unpatchify(packed, 12, 12))  # type: ignore[arg-type]  # (1, 24, 24, 8)
print(f"picture {car.size} -> latent {latent.shape} -> tokens {packed.shape}")
print(f"by hand and by jaxpa: {np.abs(patchify(latent[0]) - packed[0]).max():.1g} apart")

# %%
positions = np.asarray(tokens.grid_positions(12, 12))  # (144, 3): index, row, column of every token
print(f"token 0 is at {positions[0]}, token 13 at {positions[13]}, token 143 at {positions[143]}")

# %% [markdown]
"""
The same tokens in other places make another picture: the whole grid moved by three columns, and mirrored.
"""

# %%
grid = packed.reshape(1, 12, 12, 32)
changed = np.concatenate([grid, np.roll(grid, 3, axis=2), grid[:, :, ::-1]])
back, rolled, mirrored = pipe.decode(changed.reshape(3, 144, 32))  # type: ignore[arg-type]

# %%
_, row, column = positions.reshape(12, 12, 3).transpose(2, 0, 1) * 255 / 11
colours = Image.fromarray(np.stack([row, np.full_like(row, 90), column], -1).astype(np.uint8))
rows = [
    [
        ("a picture\n96 x 96 pixels", car),
        ("its latent\n24 x 24 cells, 8 channels as 3 colours", larger(principal(latent[0]))),
        ("its tokens\n12 x 12, 32 channels as 3 colours", larger(principal(grid[0]))),
        ("where they belong\nmore red: lower, more blue: further right", larger(colours)),
    ],
    [
        ("the grid over the picture\na token is 8 x 8 pixels", overlay(car, np.zeros(144, bool), 12, 12)),
        (f"decoded again\n{images.psnr(car, back):.1f} dB", back),
        ("tokens moved by three columns", rolled),
        ("tokens mirrored\neach patch itself is not", mirrored),
    ],
]
save(sheet(rows, 224), "02-tokens")

# %% [markdown]
"""
## Change something

Mirror the patches too: turn the channels of the mirrored grid into 2 x 2 patches, swap their columns, and pack them
again (`x.reshape(12, 12, 8, 2, 2)[..., ::-1]`). Outlines meet a little better, and the car stays broken. A channel of
the latent is not a colour but what a convolution found there, so a mirrored picture has other latents, not the same
ones in another order. To mirror a subject, mirror its picture, as lesson 14 does.
"""
