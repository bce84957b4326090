"""What a user brings, as arrays: pictures of subjects, their masks, and where they go on the canvas."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import NamedTuple

import numpy as np
from PIL import Image

from jaxpa.box import Box
from jaxpa.encoders.text import word_spans
from jaxpa.errors import JaxpaError, flag, text, warn
from jaxpa.media import figures, images, masks
from jaxpa.media.images import Picture
from jaxpa.media.places import Place, put, restrict, to_place, window
from jaxpa.tokens import Placement

MAX_REFERENCES = 16  # each adds a row of tokens to the batch
LOSS = 0.01  # the share of a subject that may leave the canvas, or be covered, without a warning


@dataclass(frozen=True)
class Subject:
    """A reference: its picture, which part of it is the subject, and where that goes.

    Pictures may have any size: each is cut to the canvas' aspect around its subject. Where subjects overlap on the
    canvas, the later one lies on top.

    mask: a picture of it (any size of the same aspect, any mode); None: the picture's own transparency, or else what
    attention finds for `word`, the subject's name.
    at: where it goes, in fractions of the canvas' width and height: a centre (x, y), to which it is moved, or a box
    (left, top, right, bottom), inside which it is scaled to fit; None: where it is in its own picture.
    flip: mirror it. stretch: fill the box, whatever the subject's own aspect.
    caption: what the picture shows; an inversion follows it.

    JaxpaError: an `at` that is no place, a flag that is no bool, words that are no text.
    """

    image: Picture
    mask: Picture | None = None
    at: Place | None = None
    flip: bool = False
    caption: str = ""
    word: str = ""
    stretch: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "at", to_place(self.at, self.name))
        for name in ("flip", "stretch"):
            object.__setattr__(self, name, flag(name, getattr(self, name)))
        for name in ("caption", "word"):
            text(name, getattr(self, name))

    @property
    def name(self) -> str:
        """What messages call it."""
        return images.name_of(self.image)


@dataclass(frozen=True)
class LoadedSubject(Subject):
    """A subject whose files have been read: what is handed on, so that nothing is decoded twice.

    image: RGB; mask: (H, W) float32 in [0, 1], at its own resolution, or None as long as only a word names it.
    """

    image: Image.Image
    mask: np.ndarray | None = None
    file: str = field(default="", kw_only=True)

    @property
    def name(self) -> str:
        return self.file or super().name


def load_subject(subject: Subject) -> LoadedSubject:
    """Read a subject's picture and its mask, or else the picture's own transparency, each once.

    A loaded subject comes back as it is. JaxpaError: what `images.read_image` and `images.read_mask` refuse.
    """
    if isinstance(subject, LoadedSubject):
        return subject
    if subject.mask is None:
        picture, mask = images.read_cutout(subject.image)
    else:
        picture = images.read_image(subject.image)
        mask = images.read_mask(subject.mask, picture.size)
    given = {each.name: getattr(subject, each.name) for each in fields(subject)}
    return LoadedSubject(**(given | {"image": picture, "mask": mask, "file": subject.name}))


def has_mask(subject: Subject) -> bool:
    """Whether a subject's mask is known; if not, its word finds it. JaxpaError: it has neither, or no such word."""
    if load_subject(subject).mask is not None:
        return True
    if not subject.word.strip():
        raise JaxpaError(
            f"{subject.name} has no mask: give one (--mask), a word that says what it shows (--word), or a picture "
            "with a transparent background"
        )
    if subject.caption:
        word_spans(subject.caption, subject.word)
    return False


@dataclass(frozen=True)
class References:
    """R references on one canvas.

    images (R, H, W, 3) float32 in [-1, 1]; masks (R, N) bool, the subjects' tokens; where (G | 1, R, N), the whole
    canvas' way from reference to image, of which `placement` is the masked part; captions, R of them; grid, the canvas
    in tokens (h, w); scene, whether the first reference is one; shares (R, N) float32, how much of each token is the
    subject's (None: all of those of the mask); control (H, W, 3), a picture whose shapes the new one follows, or None.

    JaxpaError: shapes that do not go together.
    """

    images: np.ndarray
    masks: np.ndarray
    where: Placement
    captions: tuple[str, ...]
    grid: tuple[int, int]
    scene: bool = False
    shares: np.ndarray | None = None
    control: np.ndarray | None = None

    def __post_init__(self) -> None:
        (r, (h, w)), n = (len(self.images), self.grid), self.grid[0] * self.grid[1]
        asked = f"{r} references on a grid of {h} x {w} tokens want"
        shape = np.shape(self.images)
        if len(shape) != 4 or shape[3] != 3 or shape[1] % h or shape[2] % w:
            raise JaxpaError(f"images have the shape {shape}: {asked} (R, H, W, 3) of whole tokens")
        if np.shape(self.masks) != (r, n):
            raise JaxpaError(f"masks have the shape {np.shape(self.masks)}: {asked} {(r, n)}")
        if self.shares is not None and np.shape(self.shares) != (r, n):
            raise JaxpaError(f"shares have the shape {np.shape(self.shares)}: {asked} {(r, n)}")
        if self.control is not None and np.shape(self.control) != shape[1:]:
            raise JaxpaError(f"control has the shape {np.shape(self.control)}: {asked} {shape[1:]}")
        for name, array in self.where._asdict().items():
            if np.ndim(array) != 3 or np.shape(array)[1:] != (r, n):
                raise JaxpaError(f"where.{name} has the shape {np.shape(array)}: {asked} (G, {r}, {n})")
        if len(self.captions) != r:
            raise JaxpaError(f"captions are {len(self.captions)}: {asked} one each")

    @property
    def placement(self) -> Placement:
        """Where the subjects go in each image: (G | 1, R, N)."""
        return restrict(self.where, self.masks)

    @property
    def targets(self) -> np.ndarray:
        """The cells of each image that a reference is put on: (G | 1, N) bool."""
        return np.any(np.asarray(self.placement.target), axis=1)


class OnCanvas(NamedTuple):
    """A subject: picture (H, W, 3), tokens (N,), its share of each (N,), and the part of it that leaves the canvas."""

    picture: np.ndarray
    tokens: np.ndarray
    shares: np.ndarray
    lost: float


def read_subject(subject: Subject, height: int, width: int, grid: tuple[int, int], coverage: float) -> OnCanvas:
    """A subject on the canvas.

    It is cut to the canvas' aspect around the subject, or scaled so that the subject fits its box. Mirroring and
    scaling act on pixels: a token's content has a direction and a size, which moving it to another cell keeps.
    JaxpaError: it has no mask yet; no token of it is on the canvas.
    """
    subject = load_subject(subject)
    picture, mask = subject.image, subject.mask
    if mask is None:
        raise JaxpaError(f"{subject.name} has no mask yet: `Pipeline.with_mask` finds it by the subject's word")
    if subject.flip:
        picture, mask = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT), mask[:, ::-1]
    if isinstance(subject.at, Box):
        box = window(mask, picture.size, (height, width), subject.at, subject.stretch, subject.name)
    else:
        box = masks.crop_box(picture.size, height, width, mask)
    chosen = masks.token_mask(mask, *grid, coverage, box=box, size=picture.size)
    lost = 1 - masks.share_inside(mask, box, picture.size)
    shares = masks.token_shares(mask, *grid, box=box, size=picture.size)
    return OnCanvas(images.to_array(picture, height, width, box), chosen, shares, lost)


def _read_scene(scene: Subject, height: int, width: int) -> np.ndarray:
    picture = load_subject(scene).image
    if scene.flip:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return images.to_array(picture, height, width, masks.crop_box(picture.size, height, width))


def read_references(
    subjects: Sequence[Subject],
    scene: Subject | None,
    height: int,
    width: int,
    grid: tuple[int, int],
    at: Sequence[Place | None] | None,
    coverage: float,
) -> References:
    """All references of an image; the scene comes first, so that subjects lie over it.

    at: places of the last subject, one for each image, which stand in for its own. coverage: a token belongs to a
    subject if its mask covers at least this share of the token. Warns, by name and share, of a subject that leaves the
    canvas or is covered by a later one. JaxpaError: no subject and no scene, too many, what `read_subject` refuses.
    """
    if len(subjects) + (scene is not None) > MAX_REFERENCES:
        raise JaxpaError(f"{len(subjects)} subjects are more than fit: at most {MAX_REFERENCES} references in all")
    if not subjects and scene is None:
        raise JaxpaError("nothing to personalise: give at least one subject, or a scene")
    read = [] if scene is None else [_whole(scene, height, width, grid)]
    for k, subject in enumerate(subjects):
        places = [subject.at] if at is None or k < len(subjects) - 1 else _shared_places(at, subject.name)
        name = f"{subject.name} (subject {k + 1})" if len(subjects) > 1 else subject.name
        seen = read_subject(replace(subject, at=places[0]), height, width, grid, coverage)
        _warn_of_cut(name, places[0], seen.lost)
        read.append(_Read(name, subject.caption, seen, [_put(seen.tokens, grid, place, name) for place in places]))
    made = References(
        np.stack([each.seen.picture for each in read]),
        np.stack([each.seen.tokens for each in read]),
        _stack([each.places for each in read]),
        tuple(each.caption for each in read),
        grid,
        scene is not None,
        np.stack([each.seen.shares for each in read]),
    )
    _warn_of_cover(made, [each.name for each in read])
    return made


class _Read(NamedTuple):
    """A reference on the canvas, and where its tokens go in each image."""

    name: str
    caption: str
    seen: OnCanvas
    places: list[Placement]


def _whole(scene: Subject, height: int, width: int, grid: tuple[int, int]) -> _Read:
    """A scene: all of its tokens, where they are."""
    tokens = np.ones(grid[0] * grid[1], bool)
    seen = OnCanvas(_read_scene(scene, height, width), tokens, tokens.astype(np.float32), 0.0)
    return _Read("the scene", scene.caption, seen, [put(tokens, grid, None, scene.name)[0]])


def _shared_places(at: Sequence[Place | None], name: str) -> list[Place | None]:
    """The places of the images that share a subject's reference. Raises JaxpaError for boxes beside others."""
    places = [to_place(place, name) for place in at]
    if any(isinstance(place, Box) for place in places) and len(places) > 1:
        raise JaxpaError("several places share one reference: give centres X,Y; a box goes to the subject's --at")
    return places


def _put(mask: np.ndarray, grid: tuple[int, int], at: Place | None, name: str) -> Placement:
    where, lost = put(mask, grid, at, name)
    if lost > LOSS:
        warn(f"{name} at {at}: {lost:.0%} of the subject leaves the canvas")
    return where


def _warn_of_cut(name: str, at: Place | None, lost: float) -> None:
    if lost > LOSS and isinstance(at, Box):
        warn(f"{name} at {tuple(at)}: {lost:.0%} of the subject leaves the canvas")
    elif lost > LOSS:
        warn(
            f"{name}: {lost:.0%} of the subject is cut off, since its picture is cut to the canvas' aspect; "
            "a box to fit it into (--at LEFT,TOP,RIGHT,BOTTOM) keeps all of it"
        )


def _warn_of_cover(references: References, names: Sequence[str]) -> None:
    """Of each subject that a later one covers, in the image in which it covers the most."""
    target = np.asarray(references.placement.target)  # (G | 1, R, N)
    for below in range(int(references.scene), len(names)):
        for above in range(below + 1, len(names)):
            both = (target[:, below] & target[:, above]).sum(-1) / np.maximum(target[:, below].sum(-1), 1)
            if both.max() > LOSS:
                warn(f"{names[above]} covers {both.max():.0%} of {names[below]}")


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
        rows.append([(f"reference{number}", picture), ("its tokens", figures.overlay(picture, mask, h, w))])
    for k, result in enumerate(results):
        target = references.targets[k % len(references.targets)]
        label = f"result\n{labels[k]}" if len(labels) > 1 else "result"
        rows.append([("target region", figures.overlay(result, target, h, w)), (label, result)])
    if len(rows) == 2:
        rows = [rows[0] + rows[1]]
    return figures.sheet(rows)
