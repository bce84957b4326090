"""Image tokens: packing, positions, masks, placement, and which token feeds which.

The latent (B, 2h, 2w, C) becomes N = h * w tokens of 4 C channels, row-major; a cell of that grid is where a mask,
a placement and a rotary position live. Everything is index arithmetic on arrays, so a new mask or a new target is
new data for the same compiled program.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

PATCH = 2  # latent cells along a side of a token


def patchify(latents: jax.Array) -> jax.Array:
    """(B, 2h, 2w, C) -> (B, h * w, 4 C); a token's channels run over (C, dy, dx), as in FLUX."""
    b, rows, cols, c = latents.shape
    if rows % PATCH or cols % PATCH:
        raise ValueError(f"latent of {rows} x {cols} cells cannot be cut into patches of {PATCH} x {PATCH}")
    h, w = rows // PATCH, cols // PATCH
    cells = latents.reshape(b, h, PATCH, w, PATCH, c)
    return cells.transpose(0, 1, 3, 5, 2, 4).reshape(b, h * w, c * PATCH * PATCH)


def unpatchify(tokens: jax.Array, h: int, w: int) -> jax.Array:
    """(B, h * w, 4 C) -> (B, 2h, 2w, C): the inverse of `patchify`."""
    b, _, channels = tokens.shape
    c = channels // PATCH**2
    cells = tokens.reshape(b, h, w, c, PATCH, PATCH)
    return cells.transpose(0, 1, 4, 2, 5, 3).reshape(b, h * PATCH, w * PATCH, c)


def grid_positions(h: int, w: int) -> jax.Array:
    """The (row, column) of every token of an h x w grid, row-major: (h * w, 2) float32."""
    rows, cols = jnp.meshgrid(jnp.arange(h), jnp.arange(w), indexing="ij")
    return jnp.stack([rows, cols], -1).reshape(h * w, 2).astype(jnp.float32)


def coverage(mask: jax.Array, h: int, w: int) -> jax.Array:
    """The share of each token's pixels that a pixel mask covers: (H, W) in [0, 1] -> (h * w,) float32.

    H and W must be multiples of h and w (`images.token_mask` sees to that).
    """
    rows, cols = mask.shape
    if rows % h or cols % w:
        raise ValueError(f"a mask of {rows} x {cols} pixels does not divide into {h} x {w} tokens")
    blocks = mask.astype(jnp.float32).reshape(h, rows // h, w, cols // w)
    return blocks.mean((1, 3)).reshape(h * w)


class Placement(NamedTuple):
    """Which reference cell lands on which cell of the canvas.

    source: (..., N) int32, for every canvas cell the reference cell that is put there (itself where none is);
    target: (..., N) bool, the canvas cells that receive one: the moved mask M of the paper.
    """

    source: jax.Array
    target: jax.Array


def shift(mask: jax.Array, h: int, w: int, rows: jax.Array | int, cols: jax.Array | int) -> Placement:
    """Move a token mask by whole cells: mask (N,) bool -> the placement on the same grid.

    Cells that leave the grid are dropped on both sides. `rows` and `cols` may be traced.
    """
    cell = jnp.arange(h * w)
    row, col = cell // w - rows, cell % w - cols  # where each canvas cell comes from
    inside = (row >= 0) & (row < h) & (col >= 0) & (col < w)
    source = jnp.where(inside, row * w + col, cell)
    target = inside & mask[source]
    return Placement(jnp.where(target, source, cell).astype(jnp.int32), target)


def pair(mask: jax.Array, target: jax.Array) -> Placement:
    """Pair the k-th cell of `mask` with the k-th cell of `target`, both (N,) bool, in raster order.

    The official code's pairing. Where the counts differ, what has no partner is dropped.
    """
    cell = jnp.arange(mask.shape[0])
    ordered = jnp.argsort(~mask, stable=True)  # the masked cells first, in raster order
    rank = jnp.cumsum(target) - 1
    target = target & (rank < mask.sum())
    return Placement(jnp.where(target, ordered[rank], cell).astype(jnp.int32), target)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Routing:
    """Whose features feed each token's query, key and value, and which tokens are attended to besides.

    All indices count the B * N image tokens of a batch, row after row.

    source:    (B, N) int32, the token whose features stand in for each token (itself: nothing is replaced).
    context:   (B, K) int32 or None, tokens whose keys and values join each row's sequence.
    positions: (B, K, 2) float32 or None, the rotary positions of the context.
    valid:     (B, K) bool or None, False for padding of the context.
    """

    source: jax.Array
    context: jax.Array | None = None
    positions: jax.Array | None = None
    valid: jax.Array | None = None

    def repeat(self, count: int) -> "Routing":
        """The routing of `count` such batches in one: indices of the later ones point into their own rows."""

        def rows(x: jax.Array | None, step: int) -> jax.Array | None:
            return None if x is None else jnp.concatenate([x + i * step for i in range(count)])

        valid = None if self.valid is None else jnp.concatenate([self.valid] * count)
        return Routing(rows(self.source, self.source.size), rows(self.context, self.source.size),
                       rows(self.positions, 0), valid)  # fmt: skip


def identity_source(batch: int, n: int) -> jax.Array:
    """The source index that replaces nothing: (B, N) int32."""
    return jnp.arange(batch * n, dtype=jnp.int32).reshape(batch, n)


def gather(x: jax.Array, index: jax.Array) -> jax.Array:
    """Pick tokens across rows: x (B, N, ...), index (B', N') into B * N -> (B', N', ...)."""
    return x.reshape(-1, *x.shape[2:])[index]
