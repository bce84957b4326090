# %% [markdown]
"""
# 4. Rotary embeddings

How attention, and only attention, learns where a token is (Su et al. 2021). Before a query and a key are compared,
their channels are turned, pair by pair, by angles that grow with the position:

    (q[2i], q[2i + 1])  is turned by  row * theta^(-2i / 56)        pairs 8 .. 35 of FLUX.1's 64
                                      column * theta^(-2i / 56)     pairs 36 .. 63; pairs 0 .. 7 never turn

with theta = 10000 and i counted from 0 on each axis. Turning both by the same angle does not change q . k, so a score
depends on the offset between two tokens, not on where they are. Text has position (0, 0), the top left corner of the
image.

    python examples/04_rope.py
"""

# %%
import numpy as np
from _show import maps, save, stack

from jaxpa import rope, tokens
from jaxpa.config import TransformerConfig

SIDE = 64  # tokens along a side of 1024 x 1024 pixels

# %% [markdown]
"""
By hand, a pair of channels is a complex number, and a turn is a product:
"""


# %%
def turn(x: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """x (..., Dh), angle (..., Dh / 2) radians."""
    pairs = (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * angle)
    return np.stack([pairs.real, pairs.imag], -1).reshape(*pairs.shape[:-1], -1)


axes = TransformerConfig().axes_dims_rope  # (16, 56, 56): FLUX.1
positions = np.asarray(tokens.grid_positions(SIDE, SIDE))  # (4096, 3): index (0), row, column
frequencies = [10000.0 ** (-np.arange(0, width, 2) / width) for width in axes]
angle = np.concatenate([positions[:, a, None] * frequencies[a] for a in range(3)], -1)  # (4096, 64)
table = rope.table(positions, axes)  # type: ignore[arg-type]  # cos and sin, (1, 4096, 64)
cos = np.asarray(table.cos[0])
print(f"the table by hand and by jaxpa: {np.abs(np.cos(angle) - cos).max():.1g} apart")

# %% [markdown]
"""
With one vector as every query and every key, the scores show position alone.
"""

# %%
vector = np.ones(128)
turned = turn(vector, angle).reshape(SIDE, SIDE, 128)
queries = [(12, 12), (32, 32), (45, 20)]
scores = [turned @ turned[at] / np.sum(vector**2) for at in queries]  # (64, 64) each
near = [score[r - 12 : r + 13, c - 12 : c + 13] for score, (r, c) in zip(scores, queries, strict=True)]
print(f"at equal offsets the scores of three queries differ by {np.ptp(np.stack(near), axis=0).max():.1g}")

# %%
cells = cos.reshape(SIDE, SIDE, 64)
along = [
    ("along a row of tokens", cells[0]),
    ("down a column of tokens", cells[:, 0]),
    ("along the diagonal", np.stack([cells[i, i] for i in range(SIDE)])),
]
upper = maps(along, "pair of channels", "token", "cos of its angle", height=3.2, low=-1.0, high=1.0)
seen = [(f"query at row {r}, column {c}", score) for (r, c), score in zip(queries, scores, strict=True)]
lower = maps(seen, "the key's column", "the key's row", "score, 1 at the query", height=3.2)
save(stack(upper, lower), "04-rope")

# %% [markdown]
"""
## Change something

Set theta to 100 (`100.0 ** ...` in the frequencies): all pairs turn faster, and the first query's mean score falls from
0.68 to 0.37. With 10000 the slow pairs hardly turn over 64 tokens: they are what tokens far apart still have in common.
Add 1000 to all positions instead (`positions[:, a, None] + 1000`), and no score changes.
"""
