"""Editing a picture: the part that is kept, as tokens that replace, and as pixels that are pasted back."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from jaxpa.box import Box
from jaxpa.errors import JaxpaError, quoted
from jaxpa.media import images, masks
from jaxpa.media.subjects import References
from jaxpa.tokens import Placement


@dataclass(frozen=True)
class Followed:
    """A picture that the network itself reads, (H, W, 3) in [-1, 1], and the canvas (height, width) of the new one."""

    picture: np.ndarray
    canvas: tuple[int, int]


@dataclass(frozen=True)
class StartPicture:
    """A picture to start from, (H, W, 3) in [-1, 1] on its canvas; control: as in `MaskedPicture`."""

    picture: np.ndarray
    control: np.ndarray | None = None

    @property
    def canvas(self) -> tuple[int, int]:
        return self.picture.shape[0], self.picture.shape[1]


@dataclass(frozen=True)
class Frame:
    """A picture as its user has it, and what of it a canvas shows.

    picture (H, W, 3) uint8 and change (H, W) in {0, 1}, at the picture's own size; box: the canvas, in its pixels,
    which holds the whole picture and may reach beyond it.
    """

    picture: np.ndarray
    change: np.ndarray
    box: Box


@dataclass(frozen=True)
class MaskedPicture:
    """A picture on its canvas, (H, W, 3) in [-1, 1], and the part of it that may change, (H, W) in {0, 1}.

    control: a picture (H, W, 3) whose shapes the new part follows, or None. frame: the picture at its own size, into
    which the new part is pasted; None: the canvas itself.
    """

    picture: np.ndarray
    change: np.ndarray
    caption: str = ""
    control: np.ndarray | None = None
    frame: Frame | None = None

    @property
    def height(self) -> int:
        return self.picture.shape[0]

    @property
    def width(self) -> int:
        return self.picture.shape[1]

    @property
    def canvas(self) -> tuple[int, int]:
        return self.height, self.width

    @property
    def kept(self) -> np.ndarray:
        """The picture without the part that may change, which is grey: (H, W, 3)."""
        return self.picture * (1 - self.change[..., None])

    @property
    def scale(self) -> float:
        """Pixels of the canvas to a pixel of the picture; below 1, what is new is drawn smaller and enlarged."""
        return 1.0 if self.frame is None else self.width / self.frame.box.width

    def references(self, cell: int) -> References:
        """The picture as a reference that stays in place, of those tokens (cell x cell pixels) that are kept whole.

        A ring of them that is drawn anew makes seams worse on `mini`: parts of the subject go on beside themselves.
        """
        h, w = self.height // cell, self.width // cell
        n = h * w
        kept = masks.token_mask(1 - self.change, h, w, KEPT)
        where = Placement(np.arange(n)[None, None], np.ones((1, 1, n), bool))  # type: ignore[arg-type]
        return References(self.picture[None], kept[None], where, (self.caption,), (h, w), control=self.control)

    def paste(self, made: Image.Image, feather: float | None = None, cell: int = 0) -> Image.Image:
        """A new picture of the canvas' size, in the place of what changes, at the picture's own size.

        Over `feather` pixels around that (None: half a token of `cell` pixels) the old picture blends into the new one;
        beyond them its pixels come back exactly.
        """
        frame = self._frame
        height, width = frame.change.shape
        x, y = self.width / frame.box.width, self.height / frame.box.height
        seen = (
            Box(0, 0, width, height).moved(-frame.box.left, -frame.box.top).scaled(x, y).within(Box(0, 0, *made.size))
        )
        new = np.asarray(made.resize((width, height), Image.Resampling.LANCZOS, seen), np.float32)
        share = masks.ramp(frame.change, cell / 2 / self.scale if feather is None else feather)[..., None]
        old = np.asarray(frame.picture, np.float32)
        return Image.fromarray(np.rint(old + share * (new - old)).astype(np.uint8))

    @property
    def _frame(self) -> Frame:
        if self.frame is not None:
            return self.frame
        return Frame(np.asarray(images.to_image(self.picture)), self.change, Box(0, 0, self.width, self.height))


KEPT = 1 - 1e-6  # the share of a token's pixels that must be kept for the token to be


def prepare_edit(
    picture: Image.Image,
    change: np.ndarray | None,
    canvas: tuple[int, int],
    caption: str = "",
    scale: float | None = None,
) -> MaskedPicture:
    """A picture, and the mask of what may change (H, W) in [0, 1] (None: nothing), on a canvas (height, width).

    scale: pixels of the canvas to a pixel of the picture, of which the canvas then shows all, and its edge pixels
    beyond it; None: the canvas shows the middle of the picture. JaxpaError: everything may change, or nothing.
    """
    whole = Box(0, 0, *canvas[::-1])
    box = masks.crop_box(picture.size, *canvas) if scale is None else whole.scaled(1 / scale, 1 / scale)
    array = images.to_array(picture, *canvas, box)
    if change is None:
        return MaskedPicture(array, np.zeros(canvas, np.float32), caption)
    own, size = masks.resize_mask(change, picture.height, picture.width) >= 0.5, picture.size
    frame = None if scale is None else Frame(np.asarray(picture), own.astype(np.float32), box)
    if frame is not None:  # beyond the picture's sides, what is there goes on
        size = max(size[0], math.ceil(box.right)), max(size[1], math.ceil(box.bottom))
        own = np.pad(own, ((0, size[1] - picture.height), (0, size[0] - picture.width)), mode="edge")
    hard = masks.resize_mask(own, *canvas, box=box, size=size) >= 0.5
    if not hard.any():
        raise JaxpaError("the mask leaves nothing to draw on this canvas: make it larger")
    if hard.all():
        raise JaxpaError("the mask leaves nothing of the picture: use `generate`, or a smaller mask")
    return MaskedPicture(array, hard.astype(np.float32), caption, frame=frame)


def pad_picture(picture: Image.Image, pad: Sequence[int]) -> tuple[Image.Image, np.ndarray]:
    """A picture with its edge pixels continued by pad (top, right, bottom, left), and the mask (H, W) of what is new.

    JaxpaError: a pad that is not four whole numbers from 0 up, or that makes more pixels than `images.max_pixels`.
    """
    sides = pad if isinstance(pad, Sequence | np.ndarray) else ()
    if len(sides) != 4 or any(not isinstance(side, int | np.integer) or side < 0 for side in pad) or not any(pad):
        raise JaxpaError(f"pad {quoted(pad)}: give top, right, bottom and left in whole pixels, 0 or more, not all 0")
    top, right, bottom, left = pad = tuple(map(int, pad))
    width, height = picture.width + left + right, picture.height + top + bottom
    if max(pad) > 8 * max(picture.size) or width * height > images.max_pixels():
        raise JaxpaError(
            f"pad {quoted(pad)} is out of range for a picture of {picture.width} x {picture.height} pixels: "
            f"give 8 times its longer side at most, and {images.max_pixels():,} pixels in all"
        )
    around = ((top, bottom), (left, right))
    mask = np.pad(np.zeros(picture.size[::-1], np.float32), around, constant_values=1.0)
    return Image.fromarray(np.pad(np.asarray(picture), (*around, (0, 0)), mode="edge")), mask
