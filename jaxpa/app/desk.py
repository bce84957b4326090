"""What lies on the page, as files of a folder and a request that names them: no page is needed for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxpa.box import Box
from jaxpa.errors import JaxpaError, quoted
from jaxpa.media import masks
from jaxpa.media.images import save_image
from jaxpa.media.places import Place, parse_place, show_place
from jaxpa.media.subjects import Subject
from jaxpa.presets import PRESETS, Preset
from jaxpa.request.groups import Editing, Method, Sampling
from jaxpa.request.request import Request
from jaxpa.request.spec import Spec
from jaxpa.request.taus import parse_tau
from jaxpa.schedule import Steps, tau_time

MOST_TAUS = 12  # of one strip


@dataclass(frozen=True)
class Piece:
    """A subject on the page. mask: (H, W) bool, or None where its word, or its transparency, says what it is."""

    picture: Image.Image
    mask: np.ndarray | None = None
    word: str = ""
    caption: str = ""
    flip: bool = False
    at: Place | None = None


@dataclass(frozen=True)
class Said:
    """The settings of the page. Numbers are whatever a browser sends; 0 and "" say nothing."""

    prompt: str = ""
    seed: float = 0
    num_images: float = 1
    steps: float = 0
    guidance: str = ""
    height: float = 0
    width: float = 0
    preset: str = ""
    taus: tuple[float | str, ...] = ()
    surroundings: str = ""

    def words(self, spec: Spec) -> dict[str, Any]:
        """The prompt and the groups of a request; what the checkpoint takes anyway stays unsaid."""
        usual = spec.settings
        return {
            "prompt": " ".join(self.prompt.split()) or None,
            "sampling": Sampling(
                seed=_whole("the seed", self.seed),
                num_images=_whole("the number of pictures", self.num_images),
                steps=_unless(_whole("the number of steps", self.steps), 0, usual.steps),
                guidance=_number("guidance", self.guidance),
                height=_unless(_whole("the height", self.height), 0, usual.size),
                width=_unless(_whole("the width", self.width), 0, usual.size),
            ),
        }

    def method(self) -> Method:
        around = " ".join(self.surroundings.split()) or None
        return Method(preset=self.preset or None, tau=self.taus, surroundings=around)  # type: ignore[arg-type]


def _number(name: str, text: str) -> float | None:
    """What is written in a field, if anything is. Raises JaxpaError for what is no number."""
    try:
        return float(text) if text.strip() else None
    except ValueError:
        raise JaxpaError(f"{name} must be a number, not {quoted(text)}") from None


def _whole(name: str, value: float | None) -> int:
    """A number that a browser sent. Raises JaxpaError for a part of one, and for an empty field."""
    if value is None or value != int(value):
        raise JaxpaError(f"{name} must be a whole number" + ("" if value is None else f", not {value:g}"))
    return int(value)


def _unless(value: int, *unsaid: int) -> int | None:
    return None if value in unsaid else value


def switches(preset: str | None, spec: Spec) -> Preset:
    """The method's switches where this preset is chosen; "": the checkpoint's own."""
    return PRESETS[preset or spec.settings.preset]


def flow_time(tau: float | Steps, spec: Spec) -> float:
    """A tau as a slider of flow times shows it."""
    return round(tau_time(tau, spec.times(None, spec.grid())), 2) if isinstance(tau, Steps) else tau


def parse_taus(text: str) -> tuple[Any, ...]:
    """`0.9 0.5, 20%` -> the taus of a strip. Raises JaxpaError for what is none, and for too many."""
    taus = tuple(dict.fromkeys(parse_tau(word) for word in text.replace(",", " ").split()))
    if not 1 <= len(taus) <= MOST_TAUS:
        raise JaxpaError(f"a strip takes 1 to {MOST_TAUS} values of tau, such as 0.9 0.5 0.2")
    return taus


def parse_at(text: str) -> Place | None:
    """`X,Y` or `LEFT,TOP,RIGHT,BOTTOM` in fractions of the canvas; nothing: where it is. Raises JaxpaError."""
    return parse_place(text) if text.strip() else None


def show_at(place: Place | None) -> str:
    """The words that `parse_at` reads as the same place."""
    return "" if place is None else show_place(place)


# Requests -------------------------------------------------------------------------------------------------------


def generate(said: Said, spec: Spec) -> Request:
    return Request(**said.words(spec))


def personalize(folder: Path, pieces: Sequence[Piece], scene: Image.Image | None, said: Said, spec: Spec) -> Request:
    """Subjects and a scene in a new picture; their files are written into the folder, and named without it."""
    subjects = [_subject(folder, piece, f"subject-{k + 1}") for k, piece in enumerate(pieces)]
    place = None if scene is None else Subject(_kept(folder, scene, "scene"))
    request = Request(**said.words(spec), subjects=tuple(subjects), scene=place, method=said.method())
    return request.with_references()


def inpaint(
    folder: Path, picture: Image.Image | None, mask: np.ndarray, said: Said, spec: Spec, **words: Any
) -> Request:
    """The masked part of a picture anew. words: further fields of `Editing`."""
    picture = _given(picture)
    if not mask.any():
        raise JaxpaError("nothing is painted: paint over what may change")
    file, over = _kept(folder, picture, "original"), _kept(folder, masks.to_grey(mask.astype(np.float32)), "mask")
    return Request(**said.words(spec), method=said.method(), editing=Editing(image=file, mask=over, **words))


def outpaint(
    folder: Path, picture: Image.Image | None, pad: Sequence[float], said: Said, spec: Spec, **words: Any
) -> Request:
    """A picture beyond its sides; pad: top, right, bottom and left in its pixels."""
    file = _kept(folder, _given(picture), "original")
    sides: Any = tuple(_whole("a side", side) for side in pad)
    return Request(**said.words(spec), method=said.method(), editing=Editing(image=file, pad=sides, **words))


def _given(picture: Image.Image | None) -> Image.Image:
    if picture is None:
        raise JaxpaError("there is no picture yet: drop one into the field")
    return picture


def _subject(folder: Path, piece: Piece, name: str) -> Subject:
    mask = None
    if piece.mask is not None and piece.mask.any():
        mask = _kept(folder, masks.to_grey(piece.mask.astype(np.float32)), f"{name}-mask")
    file = _kept(folder, piece.picture, name)
    word = "" if mask else piece.word.strip()
    return Subject(file, mask, piece.at, piece.flip, " ".join(piece.caption.split()), word)


def _kept(folder: Path, picture: Image.Image, name: str) -> str:
    """The name under which a picture lies in the folder from now on."""
    file = f"{name}.png"
    save_image(picture, folder / file)
    return file


# The canvas -----------------------------------------------------------------------------------------------------


def natural(piece: Piece, canvas: tuple[int, int]) -> Box:
    """Where a subject is seen on a canvas (height, width) as long as nobody has placed it, in its fractions."""
    size, mask = piece.picture.size, piece.mask
    if mask is None or not mask.any():
        return Box(0.0, 0.0, 1.0, 1.0)
    window = masks.crop_box(size, *canvas, mask)
    seen = masks.bounds(mask).moved(-window.left, -window.top).scaled(1 / window.width, 1 / window.height)
    seen = seen.within(Box(0.0, 0.0, 1.0, 1.0))
    return Box(1 - seen.right, seen.top, 1 - seen.left, seen.bottom) if piece.flip else seen


def cutout(piece: Piece, side: int = 160) -> Image.Image:
    """A subject without its surroundings, its longer side at most `side` pixels: RGBA."""
    picture = piece.picture.convert("RGBA")
    if piece.mask is not None and piece.mask.any():
        picture.putalpha(masks.to_grey(piece.mask.astype(np.float32)))
        picture = picture.crop(masks.bounds(piece.mask))
    picture.thumbnail((side, side))
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if piece.flip else picture
