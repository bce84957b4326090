"""Editing a picture: which part of it is kept, as tokens that replace, and as pixels that are pasted back."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from jaxpa.errors import JaxpaError
from jaxpa.media import images
from jaxpa.media.subjects import References
from jaxpa.tokens import Placement


@dataclass(frozen=True)
class MaskedPicture:
    """A picture (H, W, 3) in [-1, 1] on its canvas, and the part that may change: (H, W) in {0, 1}."""

    picture: np.ndarray
    change: np.ndarray
    caption: str = ""

    @property
    def height(self) -> int:
        return self.picture.shape[0]

    @property
    def width(self) -> int:
        return self.picture.shape[1]

    def references(self, cell: int) -> References:
        """The picture as a reference that stays in place: its tokens without a pixel that may change."""
        h, w = self.height // cell, self.width // cell
        n = h * w
        kept = images.token_mask(1 - self.change, h, w, KEPT)
        where = Placement(np.arange(n)[None, None], np.ones((1, 1, n), bool))  # type: ignore[arg-type]
        return References(self.picture[None], kept[None], where, (self.caption,), (h, w))

    def paste(self, made: Image.Image, feather: float = 0.0) -> Image.Image:
        """The kept pixels of the picture over a new one, exactly; blended over `feather` pixels where asked for."""
        share = (images.feather(self.change, feather) if feather else self.change)[..., None]
        old = np.asarray(images.to_image(self.picture), np.float32)
        new = np.asarray(made, np.float32)
        return Image.fromarray(np.rint(old + share * (new - old)).astype(np.uint8))


KEPT = 1 - 1e-6  # the share of a token's pixels that must be kept for the token to be


def prepare_edit(
    picture: Image.Image, change: np.ndarray | None, canvas: tuple[int, int], caption: str = ""
) -> MaskedPicture:
    """A picture and the mask of what may change (None: nothing), cut to the canvas' (height, width)."""
    box = images.crop_box(picture.size, *canvas)
    if change is None:
        return MaskedPicture(images.to_array(picture, *canvas, box), np.zeros(canvas, np.float32), caption)
    hard = images.resize_mask(change, *canvas, box=box, size=picture.size) >= 0.5
    if not hard.any():
        raise JaxpaError("the mask leaves nothing to draw on this canvas: make it larger")
    if hard.all():
        raise JaxpaError("the mask leaves nothing of the picture: use `generate`, or a smaller mask")
    return MaskedPicture(images.to_array(picture, *canvas, box), hard.astype(np.float32), caption)


def pad_picture(picture: Image.Image, pad: Sequence[int]) -> tuple[Image.Image, np.ndarray]:
    """A picture with its edge pixels continued by pad (top, right, bottom, left), and the mask of what is new."""
    if len(pad) != 4 or min(pad) < 0 or not any(pad):
        raise JaxpaError(f"pad {tuple(pad)}: give top, right, bottom and left in pixels, 0 or more, not all 0")
    top, right, bottom, left = pad
    if max(pad) > 8 * max(picture.size):
        raise JaxpaError(f"pad {tuple(pad)} is out of range for a picture of {picture.width} x {picture.height} pixels")
    around = ((top, bottom), (left, right))
    mask = np.pad(np.zeros(picture.size[::-1], np.float32), around, constant_values=1.0)
    return Image.fromarray(np.pad(np.asarray(picture), (*around, (0, 0)), mode="edge")), mask
