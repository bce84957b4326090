"""Masks as a page makes them: painted with a brush, found, or grown from a click over what has its colour."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

ADDS, TAKES = "#e60f82", "#000000"  # the brush's colours: paint on what belongs to the mask, and on what does not


class Pick(NamedTuple):
    """A mask (H, W) bool that was found or grown on a picture, and which picture it was."""

    picture: str
    mask: np.ndarray


def name_of(picture: Image.Image) -> str:
    """The same for the same pixels alone."""
    return hashlib.sha256(f"{picture.mode}{picture.size}".encode() + picture.tobytes()).hexdigest()


def painted(layers: Sequence[Image.Image], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """What the layers' paint (RGBA) adds to the mask of a picture of `size` (W, H), and takes from it: (H, W) bool."""
    added, taken = np.zeros(size[::-1], bool), np.zeros(size[::-1], bool)
    for layer in layers:
        pixels = np.asarray(layer.convert("RGBA") if layer.size == size else layer.convert("RGBA").resize(size))
        paint, light = pixels[..., 3] > 127, pixels[..., :3].max(-1) > 127
        added, taken = (added | (paint & light)) & ~(paint & ~light), (taken | (paint & ~light)) & ~(paint & light)
    return added, taken


def mask_of(picture: Image.Image, layers: Sequence[Image.Image], pick: Pick | None = None) -> np.ndarray:
    """The mask of a picture, (H, W) bool: what was picked on it, with the paint over that."""
    added, taken = painted(layers, picture.size)
    if pick is not None and pick.picture == name_of(picture):
        added = added | pick.mask
    return added & ~taken


def grown(picture: Image.Image, at: tuple[float, float], tolerance: float) -> np.ndarray:
    """The region around a point whose colours are near the point's own, hanging together: (H, W) bool.

    at: (x, y) in fractions of the picture. tolerance: how far each of red, green and blue may differ, of 255.
    """
    pixels = np.asarray(picture.convert("RGB"), np.int16)
    row, col = (min(int(part * side), side - 1) for part, side in zip(at[::-1], pixels.shape[:2], strict=True))
    near = (np.abs(pixels - pixels[row, col]) <= tolerance).all(-1)
    numbers, _ = ndimage.label(near, np.ones((3, 3)))  # type: ignore[misc]
    return numbers == numbers[row, col]
