"""What the transformer sees of a picture: 144 tokens, and nothing that says where they belong.

A picture x (H, W, 3) is encoded to a latent z (H / 4, W / 4, 8); FLUX.1's autoencoder divides by 8 and has 16 channels.
Each 2 x 2 patch of the latent becomes one token, row by row:

    token[r * w + c] = [z[2r + dy, 2c + dx, k]  for k in channels, for dy in (0, 1), for dx in (0, 1)]

This gives N = h * w tokens of C = 4 * 8 channels, with h = H / 8. The position (r, c) is not in the token: it is a
second array, which only attention reads (04_rope.py). Personalize Anything builds on this: a token can be put anywhere.

    python examples/02_tokens.py
"""

import numpy as np
from _show import PICTURES, larger, principal, save
from PIL import Image

import jaxpa
from jaxpa import tokens
from jaxpa.media import images
from jaxpa.media.figures import overlay, sheet


def patchify(z: np.ndarray) -> np.ndarray:
    """The equation above in NumPy: (2h, 2w, C) -> (h * w, 4 C)."""
    h, w, c = z.shape[0] // 2, z.shape[1] // 2, z.shape[2]
    return z.reshape(h, 2, w, 2, c).transpose(0, 2, 4, 1, 3).reshape(h * w, 4 * c)


def main() -> None:
    pipe = jaxpa.load("mini")
    picture = Image.open(PICTURES / "car.png").convert("RGB").resize((96, 96), Image.Resampling.LANCZOS)
    x = images.to_array(picture, 96, 96)[None]  # (1, 96, 96, 3) in [-1, 1]

    packed = pipe.encode_image(x)  # (1, 144, 32)
    latent = np.asarray(tokens.unpatchify(packed, 12, 12))  # (1, 24, 24, 8)
    print(f"picture {x.shape} -> latent {latent.shape} -> tokens {packed.shape}")
    print(f"by hand: {np.abs(patchify(latent[0]) - np.asarray(packed[0])).max():.1g} off")

    positions = np.asarray(tokens.grid_positions(12, 12))  # (144, 3): index, row, column of every token
    print(f"token 0 is at {positions[0]}, token 13 at {positions[13]}, token 143 at {positions[143]}")

    # The same tokens in other places make another picture: the whole grid moved by three columns, and mirrored.
    grid = np.asarray(packed).reshape(1, 12, 12, 32)
    moved = [np.roll(grid, 3, axis=2), grid[:, :, ::-1]]
    back, rolled, mirrored = pipe.decode(np.concatenate([grid, *moved]).reshape(3, 144, 32))  # type: ignore[arg-type]

    _, red, blue = 255 * positions.reshape(12, 12, 3).transpose(2, 0, 1) / 11
    colours = Image.fromarray(np.stack([red, np.full_like(red, 90), blue], -1).astype(np.uint8))
    rows = [
        [
            ("a picture\n96 x 96 pixels", picture),
            ("its latent\n24 x 24 cells, 8 channels as 3 colours", larger(principal(latent[0]))),
            ("its tokens\n12 x 12, 32 channels as 3 colours", larger(principal(grid[0]))),
            ("where they belong\nred: row, blue: column", larger(colours)),
        ],
        [
            ("the grid over the picture\na token is 8 x 8 pixels", overlay(picture, np.zeros(144, bool), 12, 12)),
            (f"decoded again\n{images.psnr(picture, back):.1f} dB", back),
            ("tokens moved by three columns", rolled),
            ("tokens mirrored\neach patch itself is not", mirrored),
        ],
    ]
    save(sheet(rows, 224), "02-tokens")


if __name__ == "__main__":
    main()
