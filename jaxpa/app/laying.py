"""What lies on the tab of subjects, as values: the subjects, their places on the canvas, and their cells."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from jaxpa.app import desk, picks
from jaxpa.app.desk import Piece
from jaxpa.app.jobs import Studio
from jaxpa.app.parts import data_url, edited, opened
from jaxpa.box import Box
from jaxpa.errors import JaxpaError
from jaxpa.media.figures import overlay
from jaxpa.media.masks import token_shares
from jaxpa.media.places import Place, to_place


class Laid(NamedTuple):
    """The values of the tab's fields: of the subject in the editor, of those that were kept before it, of the rest."""

    editor: Any
    pick: picks.Pick | None
    word: str
    caption: str
    flip: bool
    kept: list[Piece]
    scene: Image.Image | None
    canvas: dict[str, Any]
    height: float | None
    width: float | None
    preset: str | None

    def pieces(self) -> list[Piece]:
        return pieces_of(self[:5], self.kept, self.canvas)

    def cells(self, studio: Studio) -> Image.Image | None:
        """The picture in the editor with the cells of its mask, as the preset counts them."""
        picture, mask = edited(self.editor, self.pick)
        if picture is None:
            return None
        height, width = studio.spec.canvas(picture.size)
        h, w = height // studio.spec.cell, width // studio.spec.cell
        coverage = np.float32(desk.switches(self.preset, studio.spec).coverage)
        return overlay(picture.convert("RGB"), token_shares(mask.astype(np.float32), h, w) >= coverage, h, w)

    def on_canvas(self, studio: Studio, pieces: Sequence[Piece]) -> dict[str, Any]:
        return lay(studio, pieces, opened(self.scene), self.canvas, (self.height, self.width))


def given(value: Any) -> Image.Image:
    picture, _ = edited(value)
    if picture is None:
        raise JaxpaError("there is no picture of the subject yet: drop one into the field")
    return picture


def more(before: picks.Pick | None, picture: Image.Image, mask: np.ndarray) -> picks.Pick:
    """A mask that was picked, beside what was picked on the same picture before."""
    name = picks.name_of(picture)
    return picks.Pick(name, mask | before.mask if before is not None and before.picture == name else mask)


def pieces_of(now: Sequence[Any], before: Sequence[Piece], canvas: Any) -> list[Piece]:
    """The subjects that were kept and the one in the editor, each where the canvas has it."""
    value, pick, word, caption, flip = now
    picture, mask = edited(value, pick)
    pieces = list(before)
    if picture is not None:
        pieces.append(Piece(picture, mask if mask.any() else None, word or "", caption or "", bool(flip)))
    boxes = (canvas or {}).get("boxes", [])
    places = [place_of(box) for box in boxes] + [None] * len(pieces)
    return [replace(piece, at=place) for piece, place in zip(pieces, places, strict=False)]


def without_last(before: list[Piece], canvas: dict[str, Any]) -> tuple[list[Piece], dict[str, Any]]:
    """The subjects without the last that was kept, and the canvas without its box: the others stay where they are."""
    last = len(before) - 1
    return before[:-1], {**canvas, "boxes": [box for k, box in enumerate(canvas["boxes"]) if k != last]}


def place_of(box: Any) -> Place | None:
    """Where the canvas, which a browser sends, has a subject."""
    return None if box.get("at") is None else to_place(box["at"])


def bare(studio: Studio, scene: str | None, boxes: list[Any], canvas: tuple[int, int] | None = None) -> dict[str, Any]:
    """The canvas as the page's script reads it."""
    size, cell = studio.spec.settings.size, studio.spec.cell
    height, width = canvas or (size, size)
    grid = [height // cell, width // cell]
    return {"width": width, "height": height, "grid": grid, "scene": scene, "boxes": boxes}


def lay(
    studio: Studio, pieces: Sequence[Piece], scene: Image.Image | None, old: Any, size: tuple[Any, Any]
) -> dict[str, Any]:
    """The canvas with its subjects; a size that cannot be leaves it as it was."""
    canvas = old["height"], old["width"]
    try:
        h, w = studio.spec.grid(*(int(side) if side else None for side in size))
        canvas = h * studio.spec.cell, w * studio.spec.cell
    except JaxpaError:
        pass
    boxes = []
    for k, piece in enumerate(pieces):
        shown = piece.at if isinstance(piece.at, Box) else desk.natural(piece, canvas)
        if piece.at is not None and not isinstance(piece.at, Box):  # a centre moves it
            (x, y), (left, top) = piece.at, shown.centre
            shown = shown.moved(x - left, y - top)
        label = piece.word.strip() or f"subject {k + 1}"
        at = None if piece.at is None else list(piece.at)
        boxes.append({"label": label, "src": data_url(desk.cutout(piece)), "at": at, "shown": list(shown)})
    behind = None
    if scene is not None:
        behind = scene.convert("RGB")
        behind.thumbnail((480, 480))
    return bare(studio, None if behind is None else data_url(behind), boxes, canvas)
