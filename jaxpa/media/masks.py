"""Masks of pixels: drawn, grown, moved between resolutions, and brought to the grid of tokens.

A mask is float32 (H, W) in [0, 1], 1 where the subject is, at whatever resolution it was made: it belongs to its
picture by aspect alone, and `token_mask` is the one way from pixels to tokens. Boxes count in
pixels unless they are said to count in fractions.
"""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image
from scipy import ndimage

from jaxpa.box import Box
from jaxpa.errors import JaxpaError

RANGES = (1, 2**8 - 1, 2**16 - 1, 2**31 - 1, 2**32 - 1)  # what 32-bit numbers and floats may count up to
SCANLINES = 16  # in every row of a polygon's pixels


def unit(values: np.ndarray, name: str = "the mask") -> np.ndarray:
    """Numbers of any type -> float32 in [0, 1].

    Unsigned 8 and 16 bits have their full range; of wider numbers and floats the first of `RANGES` that holds them
    counts as one.
    """
    kind = values.dtype.kind
    if kind == "b":
        return values.astype(np.float32)
    if kind == "u" and values.dtype.itemsize <= 2:
        return values.astype(np.float32) / np.float32(np.iinfo(values.dtype).max)
    if kind not in "iuf" or not values.size or not np.isfinite(values).all() or values.min() < -1e-3:
        raise JaxpaError(f"{name} has values that are no numbers from 0 up: give bool, uint8, or floats in [0, 1]")
    most = float(values.max())
    top = next((top for top in RANGES if most <= top * 1.001), most)  # a rounding error above 1 is still 1
    return np.clip(values / top, 0, 1).astype(np.float32)


# Drawing and changing masks ---------------------------------------------------------------------------------


def _inside(values: Sequence[float], what: str) -> np.ndarray:
    numbers = np.asarray(values, np.float64)
    if not ((numbers >= 0) & (numbers <= 1)).all():  # NaN fails too
        raise JaxpaError(f"{what} {values} leaves the picture: give fractions of its width and height, from 0 to 1")
    return numbers


def box_mask(box: Sequence[float], size: tuple[int, int]) -> np.ndarray:
    """A box (left, top, right, bottom) in fractions of a picture of `size` (W, H) -> (H, W) float32.

    A pixel that the box covers in part has that share. JaxpaError: a box that is off the picture or empty.
    """
    if len(box) != 4:
        raise JaxpaError(f"the box {box} needs four numbers: left, top, right, bottom")
    left, top, right, bottom = _inside(box, "the box")
    if left >= right or top >= bottom:
        raise JaxpaError(f"the box {box} is empty: give left, top, right, bottom with left < right and top < bottom")

    def cover(start: float, stop: float, count: int) -> np.ndarray:
        pixel = np.arange(count)
        return np.clip(np.minimum(pixel + 1, stop * count) - np.maximum(pixel, start * count), 0, 1)

    return np.outer(cover(top, bottom, size[1]), cover(left, right, size[0])).astype(np.float32)


def polygon_mask(points: Sequence[tuple[float, float]], size: tuple[int, int]) -> np.ndarray:
    """A polygon of (x, y) in fractions of a picture of `size` (W, H) -> (H, W) float32, smooth at its edges.

    It closes itself; where it crosses itself the even-odd rule holds. Every row is cut along `SCANLINES` lines, on
    which the cover of each pixel is exact. JaxpaError: fewer than three points, or one off the picture.
    """
    width, height = size
    if len(points) < 3 or any(len(point) != 2 for point in points):
        raise JaxpaError(f"the polygon {list(points)} is none: give three points x,y or more")
    x, y = (np.asarray([_inside(point, "the point") for point in points]) * [width, height]).T
    nx, ny = np.roll(x, -1), np.roll(y, -1)
    slope = (nx - x) / np.where(ny == y, 1, ny - y)
    pixel, mask = np.arange(width), np.zeros((height, width))
    for step in range(SCANLINES):
        line = np.arange(height)[:, None] + (step + 0.5) / SCANLINES
        crosses = (y <= line) != (ny <= line)  # (rows, edges)
        at = np.sort(np.where(crosses, x + (line - y) * slope, np.inf), axis=1)
        for k in range(crosses.sum(axis=1).max()):
            mask += (-1) ** k * np.clip(pixel + 1 - at[:, k : k + 1], 0, 1)  # all that is right of crossing k
    return np.clip(mask / SCANLINES, 0, 1).astype(np.float32)


def _distance(region: np.ndarray) -> np.ndarray:
    """Pixels from each pixel to the nearest one in `region`, centre to centre; infinite where there is none."""
    return np.asarray(ndimage.distance_transform_edt(~region)) if region.any() else np.full(region.shape, np.inf)


def _check_pixels(verb: str, pixels: float) -> None:
    if not 0 <= pixels < np.inf:
        raise JaxpaError(f"cannot {verb} a mask by {pixels} pixels: give 0 or more")


def grow(mask: np.ndarray, pixels: float) -> np.ndarray:
    """1 within `pixels` of what is above 0.5, else 0: (H, W) -> (H, W) float32."""
    _check_pixels("grow", pixels)
    return (_distance(unit(mask) > 0.5) <= pixels).astype(np.float32)


def shrink(mask: np.ndarray, pixels: float) -> np.ndarray:
    """0 within `pixels` of what is not above 0.5, else 1; the picture's own edge takes nothing away."""
    _check_pixels("shrink", pixels)
    return (_distance(unit(mask) <= 0.5) > pixels).astype(np.float32)


def feather(mask: np.ndarray, pixels: float) -> np.ndarray:
    """A straight ramp over the mask's outline: 1 from `pixels` inside it on, 0 from `pixels` outside it on."""
    _check_pixels("feather", pixels)
    inside = unit(mask) > 0.5
    # The outline runs half-way between the last pixel inside and the first one outside.
    signed = np.where(inside, _distance(~inside) - 0.5, 0.5 - _distance(inside))
    return np.clip(0.5 + signed / max(2 * pixels, 1e-6), 0, 1).astype(np.float32)


# Boxes and resolutions --------------------------------------------------------------------------------------


def canvas_size(size: tuple[int, int], side: int, cell: int) -> tuple[int, int]:
    """The canvas (height, width) of about `side` x `side` pixels with the aspect of `size` (W, H), whole cells."""
    scale = side / math.sqrt(size[0] * size[1])
    width, height = (max(1, round(length * scale / cell)) * cell for length in size)
    return height, width


def crop_box(size: tuple[int, int], height: int, width: int, focus: np.ndarray | None = None) -> Box:
    """The largest box of aspect width : height inside a picture of `size` (W, H), in its pixels.

    Centred; or, with a mask as `focus` (any resolution), where it shows the most of it, as near as can be to centred
    on it.
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


def _in_mask(mask: np.ndarray, box: Box | None, size: tuple[int, int] | None) -> Box:
    """A box in pixels of a picture of `size` (None: the mask's own) -> in pixels of the mask."""
    height, width = mask.shape
    if box is None:
        return Box(0, 0, width, height)
    box, full = Box(*box), size or (width, height)
    slack = 1e-6  # a box may have been scaled, and rounded on the way
    if not (0 <= box[0] < box[2] <= full[0] + slack and 0 <= box[1] < box[3] <= full[1] + slack):
        raise ValueError(f"the box {box} is not inside {full[0]} x {full[1]} pixels: name the `size` it counts in")
    return box.scaled(width / full[0], height / full[1]).within(Box(0, 0, width, height))


def _average(values: np.ndarray, start: float, stop: float, count: int) -> np.ndarray:
    """Means over `count` equal stretches of [start, stop] along axis 0; a pixel cut by an edge counts in part."""
    total = np.concatenate([np.zeros((1, *values.shape[1:])), np.cumsum(values, axis=0, dtype=np.float64)])
    edges = np.linspace(start, stop, count + 1)
    pixel = np.minimum(edges.astype(int), len(values) - 1)
    until = total[pixel] + (edges - pixel)[:, None] * values[pixel]  # the integral from 0 to each edge
    return np.diff(until, axis=0) * (count / (stop - start))


def _cover(mask: np.ndarray, height: int, width: int, box: Box) -> np.ndarray:
    left, top, right, bottom = box
    rows = _average(mask, top, bottom, height)
    return _average(rows.T, left, right, width).T.astype(np.float32)


def resize_mask(
    mask: np.ndarray, height: int, width: int, box: Box | None = None, size: tuple[int, int] | None = None
) -> np.ndarray:
    """The part of a mask inside `box` (None: all of it) -> (height, width) float32.

    Area means when it shrinks, straight interpolation when it grows. `box` counts in pixels of a picture of `size`
    (W, H), by default the mask's own.
    """
    mask = unit(mask)
    inside = _in_mask(mask, box, size)
    if width >= inside[2] - inside[0] and height >= inside[3] - inside[1]:
        return np.array(Image.fromarray(mask).resize((width, height), Image.Resampling.BILINEAR, inside))
    return _cover(mask, height, width, inside)


def token_mask(
    mask: np.ndarray,
    h: int,
    w: int,
    threshold: float = 0.5,
    box: Box | None = None,
    size: tuple[int, int] | None = None,
) -> np.ndarray:
    """A mask of any size -> (h * w,) bool, row-major: the tokens of which it covers `threshold` or more.

    The cover is the exact share of the token's area, however the grids lie. `box`: the part of the picture that the
    tokens show, in pixels of a picture of `size` (W, H), by default the mask's own.

    JaxpaError: a threshold outside (0, 1]; no token reaches it.
    """
    if not 0 < threshold <= 1:
        raise JaxpaError(f"the mask threshold {threshold} is not above 0 and at most 1: 0.5 is usual")
    mask = unit(mask)
    cover = _cover(mask, h, w, _in_mask(mask, box, size)).reshape(h * w)
    chosen = cover >= np.float32(threshold)  # float32 on both sides, so that a share equal to it counts
    if not cover.any():
        raise JaxpaError("the mask is empty in the part of the picture that is used: crop less, or move the mask")
    if not chosen.any():
        raise JaxpaError(
            f"the mask covers no token to {threshold:g} or more (at most {cover.max():.2g}, on {h} x {w} tokens): "
            "lower the threshold or make the mask larger"
        )
    return chosen
