"""What a user brings, as arrays: pictures of subjects, their masks, and where they go on the canvas."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from jaxpa import images, tokens
from jaxpa.errors import JaxpaError
from jaxpa.tokens import Placement

_bounding_box = jax.jit(tokens.bounding_box, static_argnums=(1, 2))
_place = jax.jit(tokens.place, static_argnums=(1, 2))
_restrict = jax.jit(tokens.restrict)

Picture = images.Source
Centre = tuple[float, float]
Box = tuple[float, float, float, float]
Place = Centre | Box


@dataclass(frozen=True)
class Subject:
    """A reference: its picture, which part of it is the subject, and where that goes.

    mask: a picture of it (any size of the same aspect, any mode); None: the picture's own transparency.
    at: where it is put, in fractions of the canvas' width and height: the centre (x, y), or a box (left, top, right,
    bottom) that it is scaled to; None: where it is in its own picture. flip: mirror it.
    caption: what the picture shows; an inversion follows it.
    """

    image: Picture
    mask: Picture | None = None
    at: Place | None = None
    flip: bool = False
    caption: str = ""

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


def read_mask_of(subject: Subject) -> tuple[Image.Image, np.ndarray]:
    """The picture and the mask of a subject, in pixels. Raises JaxpaError."""
    picture = images.read_image(subject.image)
    if subject.mask is not None:
        return picture, images.read_mask(subject.mask, picture.size)
    mask = images.alpha_mask(subject.image)
    if mask is None:
        raise JaxpaError(f"{subject.name} has no mask: give one (--mask), or a picture with a transparent background")
    return picture, mask


def read_subject(
    subject: Subject, height: int, width: int, grid: tuple[int, int], coverage: float
) -> tuple[np.ndarray, np.ndarray]:
    """The picture (H, W, 3), cut to the canvas' aspect around its subject, and the subject's tokens (N,)."""
    picture, mask = read_mask_of(subject)
    box = images.crop_box(picture.size, height, width, mask)
    tokens = images.token_mask(mask, *grid, coverage, box=box, size=picture.size)
    return images.to_array(picture, height, width, box), tokens


def put(mask: np.ndarray, grid: tuple[int, int], at: Place | None, flip: bool, name: str) -> Placement:
    """The way of a picture's tokens that brings the masked ones (N,) to a place.

    Raises JaxpaError if none of them lands on the canvas.
    """
    h, w = grid
    source = np.asarray(_bounding_box(mask, h, w), np.float32)  # top, left, bottom, right, in tokens
    if at is None:
        target = source
    elif len(at) == 2:  # whole cells, so that every cell has exactly one partner
        centre = (source[:2] + source[2:]) / 2
        target = source + np.tile(np.round(np.array([at[1] * h, at[0] * w]) - centre), 2)
    else:
        left, top, right, bottom = at
        if right <= left or bottom <= top:
            raise JaxpaError(f"the box {at} is empty: give left, top, right, bottom with left < right and top < bottom")
        target = np.round(np.array([top * h, left * w, bottom * h, right * w]))
        target[2:] = np.maximum(target[2:], target[:2] + 1)
    whole = np.array([0, 0, h, w], np.float32)
    where = _place(np.ones(h * w, bool), h, w, whole, _stretched(whole, source, target, flip), flip)
    if not np.asarray(_restrict(where, mask).target).any():
        raise JaxpaError(
            f"{name} at {at} lies off the canvas: positions are fractions, 0 to 1, of its width and height"
        )
    return where


def _stretched(whole: np.ndarray, source: np.ndarray, target: np.ndarray, flip: bool) -> np.ndarray:
    """The box that `whole` becomes under the map from `source` to `target`; boxes (top, left, bottom, right)."""
    scale = (target[2:] - target[:2]) / (source[2:] - source[:2])
    start = target[:2] + (whole[:2] - source[:2]) * scale
    stop = start + (whole[2:] - whole[:2]) * scale
    if flip:  # about the middle of the target
        start[1], stop[1] = target[1] + target[3] - stop[1], target[1] + target[3] - start[1]
    return np.concatenate([start, stop]).astype(np.float32)


def read_references(
    subjects: Sequence[Subject], scene: Subject | None, height: int, width: int, grid: tuple[int, int],
    at: Sequence[Place | None] | None = None, coverage: float = 0.5,
) -> References:  # fmt: skip
    """All references of an image; the scene comes first, so that subjects lie over it.

    at: placements of the last subject, one for each image, in the place of its own. coverage: a token belongs to a
    subject if its mask covers at least this share of the token.
    """
    pictures, masks, placements, captions = [], [], [], []
    if scene is not None:
        picture = images.read_image(scene.image)
        pictures.append(images.to_array(picture, height, width, images.crop_box(picture.size, height, width)))
        masks.append(np.ones(grid[0] * grid[1], bool))
        placements.append([put(masks[0], grid, None, scene.flip, scene.name)])
        captions.append(scene.caption)
    for k, subject in enumerate(subjects):
        picture, mask = read_subject(subject, height, width, grid, coverage)
        places = at if at is not None and k == len(subjects) - 1 else [subject.at]
        pictures.append(picture)
        masks.append(mask)
        placements.append([put(mask, grid, one, subject.flip, subject.name) for one in places])
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
