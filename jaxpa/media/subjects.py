"""What a user brings, as arrays: pictures of subjects, their masks, and where they go on the canvas."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from jaxpa import tokens
from jaxpa.box import Box
from jaxpa.errors import JaxpaError
from jaxpa.media import images
from jaxpa.media.images import Picture
from jaxpa.tokens import Placement

_bounding_box = jax.jit(tokens.bounding_box, static_argnums=(1, 2))
_shift = jax.jit(tokens.shift, static_argnums=(1, 2))
_restrict = jax.jit(tokens.restrict)

Centre = tuple[float, float]
Place = Centre | Box


MAX_REFERENCES = 16  # each adds a row of tokens to the batch


@dataclass(frozen=True)
class Subject:
    """A reference: its picture, which part of it is the subject, and where that goes.

    Pictures may have any sizes: each is cut to the canvas' aspect around its subject. Where subjects overlap on the
    canvas the later one lies on top.

    mask: a picture of it (any size of the same aspect, any mode); None: the picture's own transparency, or else what
    attention finds for `word`, the subject's name.
    at: where it is put, in fractions of the canvas' width and height: the centre (x, y), or a box (left, top, right,
    bottom) that it is scaled to; None: where it is in its own picture. flip: mirror it.
    caption: what the picture shows; an inversion follows it.
    """

    image: Picture
    mask: Picture | None = None
    at: Place | None = None
    flip: bool = False
    caption: str = ""
    word: str = ""

    @property
    def name(self) -> str:
        return str(self.image) if isinstance(self.image, str | Path) else "the picture"


@dataclass(frozen=True)
class References:
    """R references on one canvas.

    images (R, H, W, 3) float32 in [-1, 1]; masks (R, N) bool, the subjects' tokens; where (G | 1, R, N), the whole
    canvas' way from reference to image, of which `placement` is the masked part; captions, R of them; grid, the canvas
    in tokens (h, w); scene, whether the first reference is one.
    """

    images: np.ndarray
    masks: np.ndarray
    where: Placement
    captions: tuple[str, ...]
    grid: tuple[int, int]
    scene: bool = False

    @property
    def placement(self) -> Placement:
        """Where the subjects go in each image: (G | 1, R, N)."""
        return _restrict(self.where, self.masks)

    @property
    def targets(self) -> np.ndarray:
        """The cells of each image that a reference is put on: (G | 1, N) bool."""
        return np.any(np.asarray(self.placement.target), axis=1)


def has_mask(subject: Subject) -> bool:
    """Whether a subject's mask is known; if not, its word finds it. Raises JaxpaError if it has neither."""
    if subject.mask is not None or images.alpha_mask(subject.image) is not None:
        return True
    if not subject.word.strip():
        raise JaxpaError(
            f"{subject.name} has no mask: give one (--mask), a word that says what it shows (--word), or a picture "
            "with a transparent background"
        )
    return False


def read_mask_of(subject: Subject) -> tuple[Image.Image, np.ndarray]:
    """The picture and the mask of a subject, in pixels. Raises JaxpaError."""
    picture = images.read_image(subject.image)
    if subject.mask is not None:
        return picture, images.read_mask(subject.mask, picture.size)
    mask = images.alpha_mask(subject.image)
    if mask is None:
        raise JaxpaError(f"{subject.name} has no mask yet: `Pipeline.with_mask` finds it by the subject's word")
    return picture, mask


def read_subject(
    subject: Subject, height: int, width: int, grid: tuple[int, int], coverage: float
) -> tuple[np.ndarray, np.ndarray]:
    """The picture (H, W, 3) on the canvas, and the subject's tokens (N,).

    It is cut to the canvas' aspect around the subject, or scaled so that the subject fills its box. Mirroring and
    scaling act on pixels: a token's content has a direction and a size, which moving it to another cell keeps.
    """
    picture, mask = read_mask_of(subject)
    if subject.flip:
        picture, mask = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT), mask[:, ::-1]
    if subject.at is not None and len(subject.at) == 4:
        picture, mask, box = _scaled(picture, mask, subject.at, subject.name)
    else:
        box = images.crop_box(picture.size, height, width, mask)
    tokens = images.token_mask(mask, *grid, coverage, box=box, size=picture.size)
    return images.to_array(picture, height, width, box), tokens


def _scaled(picture: Image.Image, mask: np.ndarray, at: Box, name: str) -> tuple[Image.Image, np.ndarray, Box]:
    """What of a picture the canvas shows when the subject fills the box `at`; edges are continued where it ends.

    -> the picture and its mask, continued as far as needed, and the canvas' box in it.
    """
    left, top, right, bottom = at
    if right <= left or bottom <= top:
        raise JaxpaError(f"the box {at} is empty: give left, top, right, bottom with left < right and top < bottom")
    if right <= 0 or bottom <= 0 or left >= 1 or top >= 1:
        raise _off_canvas(name, at)
    mask = images.resize_mask(mask, picture.height, picture.width)
    rows, cols = (np.flatnonzero((mask > 0.5).any(axis)) for axis in (1, 0))
    if not len(rows):
        raise JaxpaError(f"the mask of {name} is empty at the picture's own size")
    scale = np.array([(cols[-1] + 1 - cols[0]) / (right - left), (rows[-1] + 1 - rows[0]) / (bottom - top)])
    if (scale > 16 * np.array(picture.size)).any():
        raise JaxpaError(f"the box {at} is too small for {name}: make it larger")
    start = np.array([cols[0] - left * scale[0], rows[0] - top * scale[1]])
    before = np.maximum(0, np.ceil(-start)).astype(int)
    after = np.maximum(0, np.ceil(start + scale - picture.size)).astype(int)
    around = ((before[1], after[1]), (before[0], after[0]))
    wider = Image.fromarray(np.pad(np.asarray(picture), (*around, (0, 0)), mode="edge"))
    box = (*(start + before), *(start + before + scale))
    return wider, np.pad(mask, around), tuple(float(edge) for edge in box)  # type: ignore[return-value]


def put(mask: np.ndarray, grid: tuple[int, int], at: Place | None, name: str) -> Placement:
    """The way of a canvas' tokens that brings the middle of the masked ones (N,) to `at`, by whole cells.

    A box has been seen to before. Raises JaxpaError if no masked token lands on the canvas.
    """
    h, w = grid
    rows, cols = np.zeros(2, np.int32)
    if at is not None and len(at) == 2:
        x, y = Box(*map(float, _bounding_box(mask, h, w))).centre
        rows, cols = np.round(np.array([at[1] * h - y, at[0] * w - x])).astype(np.int32)
    where = _shift(np.ones(h * w, bool), h, w, rows, cols)
    if not np.asarray(_restrict(where, mask).target).any():
        raise _off_canvas(name, at)
    return where


def _off_canvas(name: str, at: Place | None) -> JaxpaError:
    return JaxpaError(f"{name} at {at} lies off the canvas: positions are fractions, 0 to 1, of its width and height")


def read_references(
    subjects: Sequence[Subject], scene: Subject | None, height: int, width: int, grid: tuple[int, int],
    at: Sequence[Place | None] | None = None, coverage: float = 0.5,
) -> References:  # fmt: skip
    """All references of an image; the scene comes first, so that subjects lie over it.

    at: placements of the last subject, one for each image, in the place of its own. coverage: a token belongs to a
    subject if its mask covers at least this share of the token.
    """
    if len(subjects) + (scene is not None) > MAX_REFERENCES:
        raise JaxpaError(f"{len(subjects)} subjects are more than fit: at most {MAX_REFERENCES} references in all")
    pictures, masks, placements, captions = [], [], [], []
    if scene is not None:
        picture = images.read_image(scene.image)
        if scene.flip:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pictures.append(images.to_array(picture, height, width, images.crop_box(picture.size, height, width)))
        masks.append(np.ones(grid[0] * grid[1], bool))
        placements.append([put(masks[0], grid, None, scene.name)])
        captions.append(scene.caption)
    for k, subject in enumerate(subjects):
        if at is not None and k == len(subjects) - 1 and len(at) == 1:
            subject, at = replace(subject, at=at[0]), None
        picture, mask = read_subject(subject, height, width, grid, coverage)
        places = at if at is not None and k == len(subjects) - 1 else [subject.at]
        if any(one is not None and len(one) == 4 for one in places) and len(places) > 1:
            raise JaxpaError("several places share one reference: give centres X,Y; a box goes to the subject's --at")
        pictures.append(picture)
        masks.append(mask)
        placements.append([put(mask, grid, one, subject.name) for one in places])
        captions.append(subject.caption)
    if not pictures:
        raise JaxpaError("nothing to personalise: give at least one subject, or a scene")
    return References(np.stack(pictures), np.stack(masks), _stack(placements), tuple(captions), grid, scene is not None)


def _stack(placements: list[list[Placement]]) -> Placement:
    """A list for each reference, of one or of G placements -> (G | 1, R, N)."""
    count = max(len(each) for each in placements)
    rows = [[each[g % len(each)] for each in placements] for g in range(count)]
    return Placement(*(np.stack([[np.asarray(p[f]) for p in row] for row in rows]) for f in range(2)))  # type: ignore[arg-type]


def figure(references: References, results: Sequence[Image.Image], labels: Sequence[str] = ()) -> Image.Image:
    """A contact sheet: every reference with its token mask, then every result with the cells that it was given."""
    h, w = references.grid
    rows = []
    for k, (array, mask) in enumerate(zip(references.images, references.masks, strict=True)):
        picture, number = images.to_image(array), f" {k + 1}" if len(references.masks) > 1 else ""
        rows.append([(f"reference{number}", picture), ("its tokens", images.overlay(picture, mask, h, w))])
    for k, result in enumerate(results):
        target = references.targets[k % len(references.targets)]
        label = f"result\n{labels[k]}" if len(labels) > 1 else "result"
        rows.append([("target region", images.overlay(result, target, h, w)), (label, result)])
    if len(rows) == 2:
        rows = [rows[0] + rows[1]]
    return images.sheet(rows)
