"""Image tokens: packing, positions, masks, placement, and which token feeds which.

The latent (B, 2h, 2w, C) becomes N = h * w tokens of 4 C channels, row-major; a cell of that grid is where a mask,
a placement and a rotary position live. Everything is index arithmetic on arrays, so a new mask or a new target is
new data for the same compiled program.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxpa import checks
from jaxpa.arrays import Array, Bool, Float, Float32, Int, Int32, Key, Scalar, Shaped
from jaxpa.box import Box

PATCH = 2  # latent cells along a side of a token


def patchify(latents: Float[Array, "B H W C"]) -> Float[Array, "B H*W//4 4*C"]:
    """Latents as tokens of 2 x 2 cells; a token's channels run over (C, dy, dx), as in FLUX.

    Raises ValueError for an array of integers, and for an odd side.
    """
    checks.array("latents", latents, ("B", "2h", "2w", "C"))
    b, rows, cols, c = latents.shape
    if rows % PATCH or cols % PATCH:
        raise ValueError(f"latent of {rows} x {cols} cells cannot be cut into patches of {PATCH} x {PATCH}")
    h, w = rows // PATCH, cols // PATCH
    cells = latents.reshape(b, h, PATCH, w, PATCH, c)
    return cells.transpose(0, 1, 3, 5, 2, 4).reshape(b, h * w, c * PATCH * PATCH)


def unpatchify(tokens: Float[Array, "B {h}*{w} C"], h: int, w: int) -> Float[Array, "B 2*{h} 2*{w} C//4"]:
    """The inverse of `patchify`. Raises ValueError for tokens of another grid."""
    checks.array("tokens", tokens, ("B", h * w, "4 C"))
    b, _, channels = tokens.shape
    if channels % PATCH**2:
        raise ValueError(f"tokens must have a multiple of {PATCH**2} channels, not {channels}")
    c = channels // PATCH**2
    cells = tokens.reshape(b, h, w, c, PATCH, PATCH)
    return cells.transpose(0, 1, 4, 2, 5, 3).reshape(b, h * PATCH, w * PATCH, c)


def pixel_channels(mask: Float[Array, "B H W"], side: int) -> Float[Array, "B N 4*{side}**2"]:
    """A pixel mask as channels of the tokens that cover it, as FLUX.1-Fill reads it.

    side: pixels along a side of a latent cell. Raises ValueError for a mask that does not divide into tokens.
    """
    b, rows, cols = mask.shape
    if rows % (PATCH * side) or cols % (PATCH * side):
        raise ValueError(f"a mask of {rows} x {cols} pixels does not divide into tokens of {PATCH * side} pixels")
    cells = mask.reshape(b, rows // side, side, cols // side, side).transpose(0, 1, 3, 2, 4)
    return patchify(cells.reshape(b, rows // side, cols // side, side**2))


def grid_positions(h: int, w: int, index: float = 0) -> Float32[Array, "{h}*{w} 3"]:
    """The (index, row, column) of every token of an h x w grid, row-major.

    These are FLUX's position ids. `index` counts pictures: 0 for the one being made, 1 for a reference in Kontext.
    """
    rows, cols = jnp.meshgrid(jnp.arange(h), jnp.arange(w), indexing="ij")
    return jnp.stack([jnp.full((h, w), index), rows, cols], -1).reshape(h * w, 3).astype(jnp.float32)


def coverage(mask: Shaped[Array, "H W"], h: int, w: int) -> Float32[Array, " {h}*{w}"]:
    """The share of each token's pixels that a pixel mask with values in [0, 1] covers.

    H and W must be multiples of h and w; `media.masks.token_mask` takes masks of any size. Raises ValueError for other
    sizes, and for values outside [0, 1].
    """
    checks.array("mask", mask, ("H", "W"), None)
    checks.within("mask", mask, 0, 1)
    rows, cols = mask.shape
    if rows % h or cols % w:
        raise ValueError(f"a mask of {rows} x {cols} pixels does not divide into {h} x {w} tokens")
    blocks = mask.astype(jnp.float32).reshape(h, rows // h, w, cols // w)
    return blocks.mean((1, 3)).reshape(h * w)


class Placement(NamedTuple):
    """Which reference cell lands on which cell of the canvas.

    source: the reference cell that each canvas cell receives (its own index if it receives none);
    target: the canvas cells that receive one: the paper's moved mask M.
    """

    source: Int[Array, "... N"]
    target: Bool[Array, "... N"]


def nearest(pixels: Shaped[Array, "H W"], h: int, w: int) -> Shaped[Array, " {h}*{w}"]:
    """The pixel under each token's centre, for any H and W.

    A nearest-neighbour resize to (h, w) keeps these pixels, so `nearest(picture, h, w) == 255` is the official code's
    token mask.
    """
    rows, cols = ((2 * jnp.arange(n) + 1) * side // (2 * n) for n, side in zip((h, w), pixels.shape, strict=True))
    return jnp.asarray(pixels)[rows[:, None], cols].reshape(h * w)


def restrict(where: Placement, mask: Bool[Array, "... N"]) -> Placement:
    """Keep the part of a placement whose reference cells are masked; the mask broadcasts."""
    checks.array("mask", mask, ("...", where.source.shape[-1]), bool)
    target = where.target & jnp.take_along_axis(jnp.broadcast_to(mask, where.source.shape), where.source, -1)
    cell = jnp.arange(where.source.shape[-1])
    return Placement(jnp.where(target, where.source, cell).astype(jnp.int32), target)


def _check_mask(mask: Array, h: int, w: int) -> None:
    if jnp.shape(mask) != (h * w,):
        raise ValueError(f"mask has the shape {jnp.shape(mask)}: a grid of {h} x {w} tokens wants ({h * w},)")
    checks.array("mask", mask, (h * w,), bool)


def bounding_box(mask: Bool[Array, " {h}*{w}"], h: int, w: int) -> Box:
    """The smallest box around the masked cells: float32 scalars, in tokens.

    Cell (r, c) covers [c, c + 1) x [r, r + 1). An empty mask has the empty box (0, 0, 0, 0). Raises ValueError for a
    mask of another grid.
    """
    _check_mask(mask, h, w)
    cells = jnp.asarray(mask).reshape(h, w)

    def ends(line: Bool[Array, " cells"]) -> tuple[Int[Array, ""], Int[Array, ""]]:
        return jnp.argmax(line), len(line) - jnp.argmax(line[::-1])

    (top, bottom), (left, right) = ends(cells.any(1)), ends(cells.any(0))
    sides = (jnp.where(cells.any(), side, 0).astype(jnp.float32) for side in (left, top, right, bottom))
    return Box(*sides)  # type: ignore[arg-type]


TIE = 1e-3  # cells; a centre on the border of two cells belongs to the lower right one, however it is rounded


def place(
    mask: Bool[Array, " {h}*{w}"],
    h: int,
    w: int,
    source_box: Box | Float[Array, "4"],
    target_box: Box | Float[Array, "4"],
    flip: Bool[Array, ""] | bool = False,
) -> Placement:
    """Map a box of the reference onto a box of the canvas; the placement is on the same grid.

    Boxes are in tokens and may have any aspect. `target_box` is stretched onto `source_box`, mirrored if `flip`; each
    canvas cell whose centre lies in `target_box` takes the reference cell under that centre, if this cell is in the
    mask. Cells off the grid are dropped, on either side. Boxes and `flip` may be traced, and a box may be an array
    (4,). Raises ValueError for a mask of another grid.
    """
    _check_mask(mask, h, w)
    source_box, target_box = Box(*source_box), Box(*target_box)
    row, row_inside = _stretch(h, source_box[1::2], target_box[1::2], False)
    col, col_inside = _stretch(w, source_box[0::2], target_box[0::2], flip)
    cell = jnp.arange(h * w).reshape(h, w)
    source = jnp.where(row_inside[:, None] & col_inside, row[:, None] * w + col, cell).reshape(-1)
    target = (row_inside[:, None] & col_inside).reshape(-1) & jnp.asarray(mask)[source]
    return Placement(jnp.where(target, source, cell.reshape(-1)).astype(jnp.int32), target)


def _stretch(
    n: int, source: Sequence[Scalar] | Array, target: Sequence[Scalar] | Array, flip: Array | bool
) -> tuple[Int32[Array, " {n}"], Bool[Array, " {n}"]]:
    """One axis of `place`: intervals (start, stop) -> each canvas cell's reference cell and whether it has one."""
    source, target = (jnp.asarray(interval, jnp.float32) for interval in (source, target))
    centre = jnp.arange(n, dtype=jnp.float32) + 0.5
    along = jnp.where(flip, target[1] - centre, centre - target[0])
    # Multiply before dividing, so that whole numbers stay exact.
    scaled = along * (source[1] - source[0]) / jnp.maximum(target[1] - target[0], 1e-6)
    cell = jnp.floor(source[0] + scaled + TIE).astype(jnp.int32)
    # The nudge, and the far end of a flipped box, must not leave the source box.
    cell = jnp.clip(cell, jnp.floor(source[0]).astype(jnp.int32), jnp.ceil(source[1]).astype(jnp.int32) - 1)
    return cell, (centre >= target[0]) & (centre < target[1]) & (cell >= 0) & (cell < n)


def shift(mask: Bool[Array, " {h}*{w}"], h: int, w: int, rows: Scalar, cols: Scalar) -> Placement:
    """Move a token mask by whole cells.

    Cells that leave the grid are dropped on both sides. `rows` and `cols` may be traced. Raises ValueError as `place`
    does.
    """
    canvas = Box(0, 0, w, h)
    return place(mask, h, w, canvas, canvas.moved(cols, rows))  # type: ignore[arg-type]


def pair(mask: Bool[Array, " N"], target: Bool[Array, " N"]) -> Placement:
    """Pair the k-th cell of `mask` with the k-th cell of `target`, in raster order.

    The official code pairs cells in this way. Where the counts differ, cells without a partner are dropped.
    """
    checks.array("mask", mask, ("N",), bool)
    checks.array("target", target, mask.shape, bool)
    cell = jnp.arange(mask.shape[0])
    ordered = jnp.argsort(~mask, stable=True)  # the masked cells first, in raster order
    rank = jnp.cumsum(target) - 1
    target = target & (rank < mask.sum())
    return Placement(jnp.where(target, ordered[rank], cell).astype(jnp.int32), target)


def compose(placement: Placement, permutation: Int[Array, "... N"]) -> Placement:
    """Place a reference whose tokens were rearranged first; placement and permutation broadcast.

    Cell n of the rearranged reference holds token permutation[n] (`shuffle_windows`). The target stays as it is.
    """
    checks.indices("permutation", permutation, ("...", placement.source.shape[-1]), placement.source.shape[-1])
    permutation = jnp.broadcast_to(permutation, placement.source.shape)
    source = jnp.take_along_axis(permutation, placement.source, -1)
    return Placement(jnp.where(placement.target, source, placement.source).astype(jnp.int32), placement.target)


def shuffle_windows(
    key: Key[Array, ""], mask: Bool[Array, " {h}*{w}"], h: int, w: int, size: int = 3, strength: Scalar = 1.0
) -> Int32[Array, " {h}*{w}"]:
    """A permutation that shuffles tokens inside size x size windows (Section 3.4 of the paper).

    Cell n takes token permutation[n]. The windows tile the grid from its top left corner; the far edges cut them. Each
    masked cell is chosen with probability `strength` (0: none, 1: all), which may be traced. The chosen cells of a
    window are permuted uniformly; every other cell keeps its token. Use the permutation for the tokens that are
    replaced: the start noise is moved unshuffled (`routing.perturb`).
    """
    _check_mask(mask, h, w)
    checks.number("strength", strength, 0, 1)
    draw, order = jax.random.split(key)
    n = h * w
    cell = jnp.arange(n)
    window = cell // w // size * (-(-w // size)) + cell % w // size
    takes_part = jnp.asarray(mask) & (jax.random.uniform(draw, (n,)) < strength)
    group = jnp.where(takes_part, window, n + cell)  # a cell that is not chosen has a group of its own
    placed = jnp.argsort(group, stable=True)
    taken = jnp.lexsort((jax.random.uniform(order, (n,)), group))  # also by group, at random inside it
    return jnp.zeros(n, jnp.int32).at[placed].set(taken.astype(jnp.int32))


def dilate(mask: Bool[Array, " {h}*{w}"], h: int, w: int, size: int) -> Bool[Array, " {h}*{w}"]:
    """The cells with a masked cell in the size x size square around them, size odd."""
    if size < 1 or size % 2 == 0:
        raise ValueError(f"the square of a dilation or erosion needs a centre: an odd size, not {size}")
    _check_mask(mask, h, w)
    cells = jnp.asarray(mask).reshape(h, w)
    return jax.lax.reduce_window(cells, False, jax.lax.bitwise_or, (size, size), (1, 1), "SAME").reshape(h * w)


def erode(mask: Bool[Array, " {h}*{w}"], h: int, w: int, size: int) -> Bool[Array, " {h}*{w}"]:
    """The cells whose size x size square, as far as it lies on the grid, is masked, size odd.

    This is the dilation of the background. The grid's edge erodes nothing: a subject that the edge cuts goes on there.
    """
    return ~dilate(~jnp.asarray(mask), h, w, size)


def perturb_mask(
    key: Key[Array, ""], mask: Bool[Array, " {h}*{w}"], h: int, w: int, size: int = 5, dilation: Scalar = 0.5
) -> Bool[Array, " {h}*{w}"]:
    """Vary a subject's outline (Section 3.4 of the paper).

    The key decides between dilation, with probability `dilation` (which may be traced), and erosion, both with a
    size x size square of tokens; the paper uses 5 on FLUX's grid of 64 x 64. A mask that erosion would empty stays as
    it is.
    """
    checks.number("dilation", dilation, 0, 1)
    grown, shrunk = dilate(mask, h, w, size), erode(mask, h, w, size)
    shrunk = jnp.where(shrunk.any(), shrunk, mask)
    return jnp.where(jax.random.bernoulli(key, dilation), grown, shrunk)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Routing:
    """Whose features feed each token's query, key and value, and which tokens are attended to besides.

    Indices count the B * N image tokens of a batch, row after row. A field that is None costs nothing.

    source:    the token whose features replace each token's (its own index: not replaced).
    weight:    in [0, 1], how much they replace: for each block (double blocks first), row and token, and for query,
               key and value; any axis may be 1. 1 replaces all, as None does; 0 replaces nothing, bit for bit.
    context:   tokens whose keys and values join each row's sequence; they are not replaced themselves.
    positions: the rotary positions of the context.
    length:    each row attends to the first `length` tokens of [image; context]; None: to all.
    """

    source: Int[Array, "B N"] | None = None
    weight: Float[Array, "#L #B #N #3"] | None = None
    context: Int[Array, "B K"] | None = None
    positions: Float[Array, "B K 3"] | None = None
    length: Int[Array, " B"] | None = None

    @property
    def within_rows(self) -> bool:
        """Whether no row has to do with another."""
        return self.source is None and self.context is None

    def repeat(self, n: int, count: int, shared: int = 0) -> "Routing":
        """The routing for the first `shared` rows and `count` copies of the rows after them; a row has n tokens.

        The indices of each copy point into its own rows, or into the shared ones.
        """

        def rows(x: Array | None, axis: int = 0) -> Array | None:
            if x is None:
                return None
            first, rest = jnp.split(x, [shared], axis)
            return jnp.concatenate([first, *[rest] * count], axis)

        def indices(x: Array | None) -> Array | None:
            if x is None:
                return None
            width = (x.shape[0] - shared) * n
            copies = [jnp.where(x < shared * n, x, x + i * width)[shared:] for i in range(count)]
            return jnp.concatenate([x[:shared], *copies])

        same_for_all = self.weight is None or self.weight.shape[1] == 1
        return Routing(
            indices(self.source),
            self.weight if same_for_all else rows(self.weight, 1),
            indices(self.context),
            rows(self.positions),
            rows(self.length),
        )

    def behind(self, k: int, n: int) -> "Routing":
        """The routing where each row of n tokens has k more in front of it, which keep their own features."""

        def moved(x: Array | None) -> Array | None:
            return None if x is None else x // n * (k + n) + k + x % n

        source, weight = moved(self.source), self.weight
        if source is not None:
            source = jnp.concatenate([identity_source(len(source), k + n)[:, :k], source], 1)
        if weight is not None and weight.shape[2] > 1:
            weight = jnp.pad(weight, ((0, 0), (0, 0), (k, 0), (0, 0)))
        length = None if self.length is None else k + self.length
        return Routing(source, weight, moved(self.context), self.positions, length)


def identity_source(batch: int, n: int) -> Int32[Array, "{batch} {n}"]:
    """The source index that replaces nothing."""
    return jnp.arange(batch * n, dtype=jnp.int32).reshape(batch, n)


def gather(
    x: Shaped[Array, "B N *channels"], index: Int[Array, "rows picked"]
) -> Shaped[Array, "rows picked *channels"]:
    """Pick tokens across rows by their index into B * N. Raises ValueError."""
    checks.indices("index", index, ("...",), x.shape[0] * x.shape[1])
    return x.reshape(-1, *x.shape[2:])[index]
