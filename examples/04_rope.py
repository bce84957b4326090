"""Rotary embeddings: how attention, and only attention, learns where a token is.

Before a query and a key are compared, their channels are turned, pair by pair, by angles that grow with the position:

    (q[2i], q[2i + 1])  is turned by  row * theta^(-2i / 56)        pairs 8 .. 35 of FLUX.1's 64
                                      column * theta^(-2i / 56)     pairs 36 .. 63; pairs 0 .. 7 never turn

with theta = 10000. Turning both by the same angle does not change q . k, so a score depends on the offset between two
tokens, not on where they are. Text has position (0, 0), the top left corner of the image.

    python examples/04_rope.py
"""

import numpy as np
from _show import heat, save

from jaxpa import rope, tokens
from jaxpa.config import TransformerConfig
from jaxpa.media.figures import sheet

SIDE = 64  # tokens along a side of 1024 x 1024 pixels


def turn(x: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Turn channel pairs in NumPy: x (..., Dh), angle (..., Dh / 2) radians."""
    pairs = x[..., 0::2] + 1j * x[..., 1::2]
    pairs = pairs * np.exp(1j * angle)
    return np.stack([pairs.real, pairs.imag], -1).reshape(*pairs.shape[:-1], -1)


def main() -> None:
    axes = TransformerConfig().axes_dims_rope  # (16, 56, 56): FLUX.1
    positions = np.asarray(tokens.grid_positions(SIDE, SIDE))  # (4096, 3): index (0), row, column
    table = rope.table(positions, axes)  # type: ignore[arg-type]  # cos and sin, (1, 4096, 64)

    angle = np.concatenate([positions[:, a, None] * rope.frequencies(axes[a]) for a in range(3)], -1)  # (4096, 64)
    print(f"the table by hand: {np.abs(np.cos(angle) - np.asarray(table.cos[0])).max():.1g} off")

    # With one vector as every query and every key, the scores show position alone.
    vector = np.ones(128)
    turned = turn(vector, angle).reshape(SIDE, SIDE, 128)
    queries = [(12, 12), (32, 32), (45, 20)]
    scores = [turned @ turned[at] / np.sum(vector**2) for at in queries]  # (64, 64) each
    near = [score[r - 12 : r + 13, c - 12 : c + 13] for score, (r, c) in zip(scores, queries, strict=True)]
    print(f"at equal offsets the scores of three queries differ by {np.ptp(np.stack(near), axis=0).max():.1g}")

    cos = np.asarray(table.cos[0]).reshape(SIDE, SIDE, 64)
    tables = [
        ("cos along a row of tokens\n64 columns down, 64 pairs across", cos[0]),
        ("cos down a column of tokens\n64 rows down, 64 pairs across", cos[:, 0]),
        ("cos along the diagonal\nfast pairs are fine, slow ones coarse", np.diagonal(cos).T),
    ]
    upper = [(text, heat(values, -1.0, 1.0)) for text, values in tables]
    low = min(float(score.min()) for score in scores)
    maps = [heat(score, low, 1.0) for score in scores]
    lower = [(f"scores of a query at {at}\nwith keys everywhere", m) for at, m in zip(queries, maps, strict=True)]
    save(sheet([upper, lower], 320), "04-rope")


if __name__ == "__main__":
    main()
