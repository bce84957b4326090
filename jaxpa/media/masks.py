"""Masks of pixels: drawing them, growing them, and the way from pixels to tokens.

A mask is float32 (H, W) in [0, 1], 1 on the subject, at whatever resolution it was made: it belongs to its picture by
aspect alone, and `token_mask` is the one way from pixels to tokens. Boxes count in pixels where nothing else is said.
The functions here never change the mask they are given, but may return it.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image
from scipy import ndimage

from jaxpa.box import Box
from jaxpa.errors import JaxpaError, quoted, real

RANGES = (1, 2**8 - 1, 2**16 - 1, 2**31 - 1, 2**32 - 1)  # what 32-bit numbers and floats may count up to
SCANLINES = 16  # in every row of a polygon's pixels
CHUNK = 2**18  # crossings of a polygon, and ...
STRIP = 2**21  # ... pixels that are worked on together, which bounds the memory that a large picture takes


def unit(values: np.ndarray, name: str = "the mask") -> np.ndarray:
    """Numbers of any type -> float32 in [0, 1].

    Unsigned integers of 8 and 16 bits have their full range; for wider integers and for floats, the first of `RANGES`
    that holds them all becomes 1. JaxpaError: negative numbers, NaN, infinity, no numbers at all.
    """
    kind = values.dtype.kind
    if kind == "b" and values.size:
        return values.astype(np.float32)
    if kind == "u" and values.dtype.itemsize <= 2 and values.size:
        return _divided(values, np.iinfo(values.dtype).max)
    low, high = (values.min(), values.max()) if kind in "iuf" and values.size else (np.nan, np.nan)
    if not (low >= -1e-3 and high < np.inf):  # NaN fails both
        raise JaxpaError(f"{name} has values that are no numbers from 0 up: give bool, uint8, or floats in [0, 1]")
    if values.dtype == np.float32 and low >= 0 and high <= 1:
        return values
    most = float(high)
    top = next((top for top in RANGES if most <= top * 1.001), most)  # a rounding error above 1 is still 1
    scaled = _divided(values, top)
    return np.clip(scaled, 0, 1, out=scaled)


def _divided(values: np.ndarray, top: float) -> np.ndarray:
    scaled = values.astype(np.float32)
    scaled /= np.float32(top)
    return scaled


def to_grey(mask: np.ndarray) -> Image.Image:
    """A mask as a grey picture of eight bits."""
    grey = 255 * mask
    return Image.fromarray(np.rint(grey, out=grey).astype(np.uint8))


# Drawing and changing masks ---------------------------------------------------------------------------------


def box_mask(box: Sequence[float], size: tuple[int, int]) -> np.ndarray:
    """A box in fractions of a picture of `size` (W, H) -> (H, W) float32.

    A pixel that the box covers in part has that share. JaxpaError: a box that is empty or leaves the picture.
    """
    try:
        sides = np.asarray(box, np.float64)
    except (TypeError, ValueError, OverflowError):
        sides = np.empty(0)
    if sides.shape != (4,):
        raise JaxpaError(f"the box {quoted(box)} needs four numbers: left, top, right, bottom")
    box = Box(*map(float, sides))
    _check_inside(sides, f"the box {tuple(box)}")
    if box.empty:
        raise JaxpaError(
            f"the box {tuple(box)} is empty: give left, top, right, bottom with left < right and top < bottom"
        )

    def cover(start: float, stop: float, count: int) -> np.ndarray:
        pixel = np.arange(count)
        share = np.minimum(pixel + 1, stop * count) - np.maximum(pixel, start * count)
        return np.clip(share, 0, 1).astype(np.float32)

    return np.outer(cover(box.top, box.bottom, size[1]), cover(box.left, box.right, size[0]))


def _check_inside(numbers: np.ndarray, what: str) -> None:
    if not ((numbers >= 0) & (numbers <= 1)).all():  # NaN fails too
        raise JaxpaError(f"{what} leaves the picture: give fractions of its width and height, from 0 to 1")


def polygon_mask(points: Sequence[tuple[float, float]], size: tuple[int, int]) -> np.ndarray:
    """A polygon of points (x, y) in fractions of a picture of `size` (W, H) -> (H, W) float32, smooth at its edges.

    It closes itself; where it crosses itself, the even-odd rule holds. Every row is cut along `SCANLINES` lines, on
    which the cover of each pixel is exact. JaxpaError: fewer than three points, or one off the picture.
    """
    try:
        corners = np.asarray(points, np.float64)
    except (TypeError, ValueError, OverflowError):
        corners = np.empty(0)
    if corners.ndim != 2 or corners.shape[-1] != 2 or len(corners) < 3:
        raise JaxpaError(f"a polygon needs three points x,y or more, not {quoted(points)}")
    outside = ~((corners >= 0) & (corners <= 1)).all(1)
    if outside.any():
        _check_inside(corners[outside], f"the point {tuple(points[int(outside.argmax())])}")
    width, height = size
    corners = corners * [width, height]
    mask = np.empty((height, width), np.float32)
    rows = max(1, CHUNK // (SCANLINES * len(points) + width))
    for top in range(0, height, rows):
        mask[top : top + rows] = _polygon_rows(corners, top, min(rows, height - top), width)
    return mask


def _polygon_rows(corners: np.ndarray, top: int, rows: int, width: int) -> np.ndarray:
    """The rows [top, top + rows) of a polygon with its corners (n, 2) in pixels -> (rows, width)."""
    (x, y), (nx, ny) = corners.T, np.roll(corners, -1, 0).T
    slope = (nx - x) / np.where(ny == y, 1, ny - y) / SCANLINES
    begin = x + (top - y) * SCANLINES * slope + slope / 2  # where the edge, prolonged, crosses line 0
    # Edge e crosses the lines first[e] up to stop[e]; every line is crossed an even number of times.
    line_of = [np.clip(np.ceil((end - top) * SCANLINES - 0.5), 0, rows * SCANLINES).astype(int) for end in (y, ny)]
    first, stop = np.minimum(*line_of), np.maximum(*line_of)
    count = stop - first
    line = np.arange(count.sum()) + np.repeat(first - np.cumsum(count) + count, count)
    at = np.clip(np.repeat(begin, count) + line * np.repeat(slope, count), 0, width)
    ordered = np.sort(line * (width + 1) + at)  # line by line, from left to right
    line = (ordered / (width + 1)).astype(int)
    at = ordered - line * (width + 1)
    # All that is to the right of a crossing changes sides: by parts in its own pixel, wholly from the next one on.
    pixel = at.astype(int)
    inside = pixel + 1 - at
    inside[1::2] *= -1
    turn = np.ones(len(at))
    turn[1::2] = -1
    cell, cells = line // SCANLINES * (width + 2) + pixel, rows * (width + 2)
    change = np.bincount(cell, inside, cells) + np.bincount(cell + 1, turn - inside, cells)
    cover = np.cumsum(change.reshape(rows, width + 2), axis=1)[:, :width] / SCANLINES
    return np.clip(cover, 0, 1)


def _distances(region: np.ndarray, limit: float) -> Iterator[tuple[slice, np.ndarray]]:
    """Strips of rows with the pixels from each pixel to the nearest one in `region`, centre to centre.

    Distances up to `limit` are exact; beyond it they are some number above it. A strip sees `limit` rows more on both
    sides: a transform of the whole picture would take some 40 bytes a pixel.
    """
    height, width = region.shape
    halo = math.ceil(min(limit, height)) + 1
    rows = max(STRIP // width, halo)
    for top in range(0, height, rows):
        first = max(0, top - halo)
        seen = region[first : top + rows + halo]
        if seen.any() and not seen.all():
            far = np.asarray(ndimage.distance_transform_edt(~seen))
        else:
            far = np.full(seen.shape, 0.0 if seen.any() else np.inf)
        yield slice(top, top + rows), far[top - first :][:rows]


def _check_pixels(verb: str, pixels: float) -> None:
    if real(f"pixels to {verb} a mask by", pixels) < 0:
        raise JaxpaError(f"cannot {verb} a mask by {pixels} pixels: give 0 or more")


def grow(mask: np.ndarray, pixels: float) -> np.ndarray:
    """1 within `pixels` of what is above 0.5, else 0: (H, W) -> (H, W) float32."""
    _check_pixels("grow", pixels)
    grown = np.empty(mask.shape, np.float32)
    for rows, distance in _distances(unit(mask) > 0.5, pixels):
        grown[rows] = distance <= pixels
    return grown


def shrink(mask: np.ndarray, pixels: float) -> np.ndarray:
    """0 within `pixels` of what is not above 0.5, else 1; the picture's own edge takes nothing away."""
    _check_pixels("shrink", pixels)
    shrunk = np.empty(mask.shape, np.float32)
    for rows, distance in _distances(unit(mask) <= 0.5, pixels):
        shrunk[rows] = distance > pixels
    return shrunk


def feather(mask: np.ndarray, pixels: float) -> np.ndarray:
    """A straight ramp over the mask's outline: 1 from `pixels` inside it on, 0 from `pixels` outside it on."""
    _check_pixels("feather", pixels)
    inside = unit(mask) > 0.5
    soft = np.empty(mask.shape, np.float32)
    both = zip(_distances(inside, pixels + 1), _distances(~inside, pixels + 1), strict=True)
    for (rows, to_inside), (_, to_outside) in both:
        # The outline runs half-way between the last pixel inside and the first one outside.
        signed = np.where(inside[rows], to_outside - 0.5, 0.5 - to_inside)
        soft[rows] = np.clip(0.5 + signed / max(2 * pixels, 1e-6), 0, 1)
    return soft


def ramp(mask: np.ndarray, pixels: float) -> np.ndarray:
    """1 in the mask, and a straight ramp around it: 0 from `pixels` outside its outline on; (H, W) -> (H, W)."""
    _check_pixels("blend", pixels)
    soft = np.empty(mask.shape, np.float32)
    for rows, distance in _distances(unit(mask) > 0.5, pixels + 1):
        soft[rows] = np.clip(1 - (distance - 0.5) / max(pixels, 1e-6), 0, 1)  # the outline is half a pixel away
    return soft


# Boxes and resolutions --------------------------------------------------------------------------------------


def canvas_size(size: tuple[int, int], side: int, cell: int) -> tuple[int, int]:
    """The canvas (height, width) of about `side` x `side` pixels with the aspect of `size` (W, H), whole cells."""
    scale = side / math.sqrt(size[0] * size[1])
    width, height = (max(1, round(length * scale / cell)) * cell for length in size)
    return height, width


def crop_box(size: tuple[int, int], height: int, width: int, focus: np.ndarray | None = None) -> Box:
    """The largest box of aspect width : height inside a picture of `size` (W, H), in its pixels.

    It is centred in the picture; or, with a mask as `focus` (of any resolution), it shows as much of the mask as it
    can and is centred on it as nearly as that allows.
    """
    if size[0] * height >= size[1] * width:
        box = min(size[0], max(1, round(size[1] * width / height))), size[1]
    else:
        box = size[0], min(size[1], max(1, round(size[0] * height / width)))
    start = [(size[0] - box[0]) // 2, (size[1] - box[1]) // 2]
    seen = None if focus is None else unit(focus) > 0.5
    if seen is not None and seen.any():
        start = [_best_start(seen.sum(axis), size[axis], box[axis]) for axis in (0, 1)]
    return Box(start[0], start[1], start[0] + box[0], start[1] + box[1])


def bounds(mask: np.ndarray) -> Box:
    """The smallest box around what a mask has above 0.5, of which there is some, in its own pixels."""
    seen = mask > 0.5
    rows, cols = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    return Box(int(cols[0]), int(rows[0]), int(cols[-1]) + 1, int(rows[-1]) + 1)


def _best_start(profile: np.ndarray, full: int, length: int) -> int:
    """Where a window of `length` in `full` pixels has the most of a (n,) profile that spans the same stretch."""
    starts = np.arange(full - length + 1)
    edges = np.linspace(0, full, len(profile) + 1)
    total = np.concatenate([[0], np.cumsum(profile)])
    shown = np.interp(starts + length, edges, total) - np.interp(starts, edges, total)
    where = np.flatnonzero(profile)
    middle = (edges[where[0]] + edges[where[-1] + 1]) / 2
    best = starts[shown >= shown.max() - 1e-6 * total[-1]]
    return int(best[np.abs(best + length / 2 - middle).argmin()])


def _in_mask(mask: np.ndarray, box: Sequence[float] | None, size: tuple[int, int] | None, beyond: bool = False) -> Box:
    """A box in pixels of a picture of `size` (None: the mask's own) -> in pixels of the mask.

    beyond: whether a box may leave the picture, if `size` says what it counts in.
    """
    height, width = mask.shape
    whole = Box(0, 0, width, height)
    if box is None:
        return whole
    box, full = Box(*box), size or (width, height)
    if beyond and size and not box.empty:
        return box.scaled(width / full[0], height / full[1])
    slack = 1e-6  # a box may have been scaled, and rounded on the way
    if not (0 <= box[0] < box[2] <= full[0] + slack and 0 <= box[1] < box[3] <= full[1] + slack):
        raise ValueError(f"{box} is not inside {full[0]} x {full[1]} pixels: name the `size` it counts in")
    return box.scaled(width / full[0], height / full[1]).within(whole)


def _average(values: np.ndarray, start: float, stop: float, count: int) -> np.ndarray:
    """Means over `count` equal stretches of [start, stop] along axis 0, in float64.

    A pixel that an edge cuts counts in part; what lies beyond the values counts as 0.
    """
    edges = np.clip(np.linspace(start, stop, count + 1), 0, len(values))
    pixel = np.minimum(edges.astype(int), len(values) - 1)
    cut = (edges - pixel)[:, None] * values[pixel]  # what of the pixel under an edge lies before it
    total = np.add.reduceat(values[: pixel[-1] + 1], pixel, axis=0, dtype=np.float64)[:-1]
    total[pixel[:-1] == pixel[1:]] = 0  # where `reduceat` gives the pixel itself
    return (total + np.diff(cut, axis=0)) * (count / (stop - start))


def cover(mask: np.ndarray, height: int, width: int, box: Box) -> np.ndarray:
    """The share of each of height x width equal cells of a box that a mask covers: -> (height, width) float32.

    The box counts in pixels of the mask and may leave it; there is no mask beyond.
    """
    rows = _average(mask, box.top, box.bottom, height)
    return _average(rows.T, box.left, box.right, width).T.astype(np.float32)


def share_inside(mask: np.ndarray, box: Box, size: tuple[int, int]) -> float:
    """The share of a mask's pixels (those above 0.5) inside a box in pixels of a picture of `size` (W, H)."""
    box, seen = box.scaled(mask.shape[1] / size[0], mask.shape[0] / size[1]), mask > 0.5
    inside = cover(seen, 1, 1, box).item() * box.width * box.height
    return min(1.0, inside / max(int(seen.sum()), 1))


def resize_mask(
    mask: np.ndarray, height: int, width: int, box: Sequence[float] | None = None, size: tuple[int, int] | None = None
) -> np.ndarray:
    """The part of a mask inside `box` (None: all of it) -> (height, width) float32.

    Area means where it shrinks, linear interpolation where it grows. `box` counts in pixels of a picture of `size`
    (W, H), by default the mask's own. ValueError: a box that leaves the picture.
    """
    mask = unit(mask)
    inside = _in_mask(mask, box, size)
    if width >= inside.width and height >= inside.height:
        return np.array(Image.fromarray(mask).resize((width, height), Image.Resampling.BILINEAR, inside))
    return cover(mask, height, width, inside)


def token_shares(
    mask: np.ndarray,
    h: int,
    w: int,
    box: Sequence[float] | None = None,
    size: tuple[int, int] | None = None,
) -> np.ndarray:
    """The share of every token that a mask covers, (h * w,) float32 in [0, 1]; arguments as of `token_mask`."""
    return cover(unit(mask), h, w, _in_mask(mask, box, size, beyond=True)).reshape(h * w)


def token_mask(
    mask: np.ndarray,
    h: int,
    w: int,
    coverage: float,
    box: Sequence[float] | None = None,
    size: tuple[int, int] | None = None,
) -> np.ndarray:
    """A mask of any size -> (h * w,) bool, row-major: the tokens of which it covers at least the share `coverage`.

    The share of a token's area is exact, however the grids lie. `box`: the part of the picture that the tokens show,
    in pixels of a picture of `size` (W, H), by default the mask's own; with `size` it may leave the picture, and there
    is no mask beyond.

    JaxpaError: a coverage outside (0, 1]; no token reaches it. ValueError: a box that needs its `size`.
    """
    if not 0 < coverage <= 1:
        raise JaxpaError(f"coverage must be above 0 and at most 1, not {coverage}")
    share = token_shares(mask, h, w, box, size)
    chosen = share >= np.float32(coverage)  # float32 on both sides, so that a share equal to it counts
    if not share.any():
        raise JaxpaError("the mask is empty in the part of the picture that is used: crop less, or move the mask")
    if not chosen.any():
        raise JaxpaError(
            f"the mask covers at most {share.max():.2g} of any of the {h} x {w} tokens: lower the coverage, "
            f"{coverage:g}, or make the mask larger"
        )
    return chosen
