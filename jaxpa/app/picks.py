"""Masks as a page makes them: painted with a brush, found, or grown from a click over what has its colour."""

from collections.abc import Sequence

import numpy as np
from PIL import Image
from scipy import ndimage

from jaxpa.media.figures import MAGENTA


def painted(layers: Sequence[Image.Image], size: tuple[int, int]) -> np.ndarray:
    """What is painted on any of the layers (RGBA) over a picture of `size` (W, H): (H, W) bool."""
    mask = np.zeros(size[::-1], bool)
    for layer in layers:
        alpha = layer.convert("RGBA").getchannel("A")
        mask |= np.asarray(alpha if layer.size == size else alpha.resize(size)) > 127
    return mask


def as_layer(mask: np.ndarray) -> Image.Image:
    """A mask (H, W) as a layer of paint, which a brush and an eraser may change."""
    return Image.fromarray(np.where(mask[..., None], np.array([*MAGENTA, 255], np.uint8), np.uint8(0)))


def grown(picture: Image.Image, at: tuple[float, float], tolerance: float) -> np.ndarray:
    """The region around a point whose colours are near the point's own, hanging together: (H, W) bool.

    at: (x, y) in fractions of the picture. tolerance: how far each of red, green and blue may differ, of 255.
    """
    pixels = np.asarray(picture.convert("RGB"), np.int16)
    row, col = (min(int(part * side), side - 1) for part, side in zip(at[::-1], pixels.shape[:2], strict=True))
    near = (np.abs(pixels - pixels[row, col]) <= tolerance).all(-1)
    numbers, _ = ndimage.label(near, np.ones((3, 3)))  # type: ignore[misc]
    return numbers == numbers[row, col]
