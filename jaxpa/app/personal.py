"""The tab of subjects: a picture with a mask, its place on the canvas, other subjects beside it, and a scene."""

from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxpa.app import desk, picks
from jaxpa.app.desk import Piece
from jaxpa.app.jobs import Studio
from jaxpa.app.parts import (
    HERE,
    JOB,
    LIGHT,
    Results,
    Settings,
    data_url,
    drawing,
    edited,
    editor,
    opened,
    sentences,
    told,
)
from jaxpa.box import Box
from jaxpa.errors import JaxpaError
from jaxpa.media.figures import overlay
from jaxpa.media.images import read_image
from jaxpa.media.masks import token_shares
from jaxpa.media.places import Place
from jaxpa.presets import PRESETS
from jaxpa.request.request import Request

MOST_KEPT = 8  # subjects on one page
STRIP = "0.95 0.8 0.65 0.5 0.35 0.2"


def subjects_tab(studio: Studio, settings: Settings, results: Results) -> None:
    """The components and what they do."""
    gr = import_module("gradio")
    preset = PRESETS[studio.spec.settings.preset]
    with gr.Row():
        with gr.Column(min_width=280):
            reference = editor("A subject: paint over it", "reference")
            with gr.Row():
                word = gr.Textbox(label="Or its name", placeholder="car", scale=2, elem_id="word", min_width=80)
                find = gr.Button("Find it", scale=1, elem_id="find", min_width=80)
        with gr.Column(min_width=220):
            cells = gr.Image(
                label="Its cells: click to add what has the same colour",
                type="pil",
                interactive=False,
                buttons=[],
                height=218,
                elem_id="cells",
            )
            tolerance = gr.Slider(0, 128, 40, step=1, label="Colours up to this far off")
            clear = gr.Button("Clear the mask", size="sm")
    with gr.Row():
        with gr.Column(min_width=280):
            canvas = gr.HTML(
                value=bare(studio, None, []),
                html_template="<div class='jaxpa-stage'></div>",
                js_on_load=(HERE / "place.js").read_text(),
                label="The new picture: drag the subject, or its corner",
                show_label=True,
                container=True,
                padding=True,
                elem_id="canvas",
            )
        with gr.Column(min_width=220):
            at = gr.Textbox(label="Its place: X,Y or LEFT,TOP,RIGHT,BOTTOM", placeholder="where it is", elem_id="at")
            flip = gr.Checkbox(label="Mirror it")
            caption = gr.Textbox(label="What its picture shows (may stay empty)")
            with gr.Row():
                keep = gr.Button("Add another subject", size="sm", elem_id="keep")
                drop = gr.Button("Remove the last", size="sm")
    with gr.Accordion("A scene", open=False):
        scene = gr.Image(
            label="A picture of the whole scene",
            type="pil",
            sources=("upload", "clipboard"),
            height=220,
            elem_id="scene",
        )
    tau = gr.Slider(
        0,
        1,
        desk.flow_time(preset.tau, studio.spec),
        step=0.01,
        label="τ: lower keeps more of the subject, higher follows the prompt",
    )
    with gr.Row():
        draw = gr.Button("Draw", variant="primary", elem_id="draw", elem_classes="jaxpa-draw", scale=2)
        strip = gr.Button("A strip of", elem_id="strip", elem_classes="jaxpa-draw", scale=1)
        taus = gr.Textbox(STRIP, show_label=False, container=False, scale=2, max_lines=1, elem_id="taus")
    kept, pick = gr.State([]), gr.State(None)
    piece = [reference, pick, word, caption, flip]
    laid = [*piece, kept, scene, canvas, settings.fields[4], settings.fields[5]]

    def refreshed(*values: Any) -> list[Any]:
        *now, before, behind, old, height, width = values
        with sentences():
            pieces = pieces_of(now, before, old)
            return [lay(studio, pieces, opened(behind), old, (height, width)), cells_of(studio, *now[:2])]

    refresh = {"fn": refreshed, "inputs": laid, "outputs": [canvas, cells], **LIGHT}
    for component in (reference, pick, flip, scene, settings.fields[4], settings.fields[5]):
        component.change(**refresh)
    reference.upload(**refresh)

    def found(value: Any, before: picks.Pick | None, name: str, text: str) -> picks.Pick:
        with sentences():
            picture = given(value)
            if not name.strip():
                raise JaxpaError("there is no name to look for: say what the subject is, in a word")
            work = studio.watched(lambda _: studio.load().find_mask(read_image(picture), name, text or None))
            (seen,) = work
            return more(before, picture, seen.pixels(picture.size))

    find.click(found, [reference, pick, word, caption], pick, **JOB)
    word.submit(found, [reference, pick, word, caption], pick, **JOB)

    def grow(event: Any, value: Any, before: picks.Pick | None, most: float, shown: Image.Image) -> picks.Pick:
        with sentences():
            picture = given(value)
            x, y = ((each + 0.5) / side for each, side in zip(event.index, shown.size, strict=True))
            return more(before, picture, picks.grown(picture, (x, y), most))

    cells.select(told(gr.SelectData, grow), [reference, pick, tolerance, cells], pick, **LIGHT)

    def cleared(value: Any) -> list[Any]:
        with sentences():
            return [{"background": given(value), "layers": [], "composite": None}, None]

    clear.click(cleared, reference, [reference, pick], **LIGHT)

    def moved(value: Any, before: list[Piece]) -> str:
        boxes = value["boxes"]
        last = place_of(boxes[-1]) if len(boxes) > len(before) else None
        return desk.show_at(last)

    canvas.input(moved, [canvas, kept], at, **LIGHT)

    def placed(text: str, *values: Any) -> Any:
        *now, before, behind, old, height, width = values
        with sentences():
            pieces, place = pieces_of(now, before, old), desk.parse_at(text)
            if len(pieces) > len(before):
                pieces[-1] = replace(pieces[-1], at=place)
            return lay(studio, pieces, opened(behind), old, (height, width))

    at.submit(placed, [at, *laid], canvas, **LIGHT)
    at.blur(placed, [at, *laid], canvas, **LIGHT)

    def keeps(*values: Any) -> list[Any]:
        *now, before, behind, old, height, width = values
        with sentences():
            pieces = pieces_of(now, before, old)
            if len(pieces) == len(before):
                raise JaxpaError("there is no subject yet to put another beside: drop its picture into the field")
            if len(pieces) > MOST_KEPT:
                raise JaxpaError(f"a page takes {MOST_KEPT} subjects at most")
            laid_out = lay(studio, pieces, opened(behind), old, (height, width))
            return [pieces, None, None, "", "", False, "", laid_out, None]

    emptied = [kept, reference, pick, word, caption, flip, at, canvas, cells]
    keep.click(keeps, laid, emptied, **LIGHT)
    drop.click(lambda before: before[:-1], kept, kept, **LIGHT).then(**refresh)

    def ask(values: Sequence[Any], said: Any) -> Any:
        *now, before, behind, old, _, _ = values
        pieces = pieces_of(now, before, old)

        def request(folder: Path) -> Request:
            return desk.personalize(folder, pieces, opened(behind), said, studio.spec)

        return request

    shared = len(settings.inputs)

    def drawn(browser: Any, one: float, *values: Any) -> Any:
        with sentences():
            wanted = ask(values[shared:], settings.said(values[:shared], (one,)))
        yield from drawing(studio, str(browser.session_hash), wanted)

    def stripped(browser: Any, text: str, *values: Any) -> Any:
        with sentences():
            wanted = ask(values[shared:], settings.said(values[:shared], desk.parse_taus(text)))
        yield from drawing(studio, str(browser.session_hash), wanted)

    inputs = [*settings.inputs, *laid]
    draw.click(told(gr.Request, drawn), [tau, *inputs], results.outputs, **JOB)
    strip.click(told(gr.Request, stripped), [taus, *inputs], results.outputs, **JOB)


# What lies on the tab ---------------------------------------------------------------------------------------------


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


def place_of(box: Any) -> Place | None:
    """Where the canvas, which a browser sends, has a subject."""
    return None if box.get("at") is None else desk.to_place(box["at"])


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


def cells_of(studio: Studio, value: Any, pick: picks.Pick | None) -> Image.Image | None:
    """The picture with the cells of its mask."""
    picture, mask = edited(value, pick)
    if picture is None:
        return None
    height, width = studio.spec.canvas(picture.size)
    h, w = height // studio.spec.cell, width // studio.spec.cell
    coverage = PRESETS[studio.spec.settings.preset].coverage
    tokens = token_shares(mask.astype(np.float32), h, w) >= coverage
    return overlay(picture.convert("RGB"), tokens, h, w)
