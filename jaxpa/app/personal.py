"""The tab of subjects: a picture with a mask, its place on the canvas, other subjects beside it, and a scene."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from PIL import Image

from jaxpa.app import desk, picks
from jaxpa.app.desk import Piece
from jaxpa.app.jobs import Studio
from jaxpa.app.laying import Laid, bare, given, more, place_of, without_last
from jaxpa.app.parts import HERE, JOB, LIGHT, Results, Settings, drawing, editor, opened, sentences, tau_slider, told
from jaxpa.errors import JaxpaError
from jaxpa.media.images import read_image
from jaxpa.request.request import Request

MOST_KEPT = 8  # subjects on one page
STRIP = "0.95 0.8 0.65 0.5 0.35 0.2"


def subjects_tab(studio: Studio, settings: Settings, results: Results) -> None:
    """The components and what they do."""
    gr = import_module("gradio")
    mask = _mask_fields()
    place = _place_fields(studio)
    draw = _draw_fields(studio, settings)
    kept, does = gr.State([]), Does(studio, settings)
    shared = [*settings.canvas, settings.preset]
    laid = [mask.reference, mask.pick, mask.word, place.caption, place.flip, kept, draw.scene, place.canvas, *shared]

    refresh = {"fn": does.refresh, "inputs": laid, "outputs": [place.canvas, mask.cells], **LIGHT}
    for component in (mask.reference, mask.pick, place.flip, draw.scene, *shared):
        component.change(**refresh)
    mask.reference.upload(**refresh)

    sought = [mask.reference, mask.pick, mask.word, place.caption]
    mask.find.click(does.find, sought, mask.pick, **JOB)
    mask.word.submit(does.find, sought, mask.pick, **JOB)
    clicked = [mask.reference, mask.pick, mask.tolerance, mask.cells]
    mask.cells.select(told(gr.SelectData, does.grow), clicked, mask.pick, **LIGHT)
    mask.clear.click(does.clear, mask.reference, [mask.reference, mask.pick], **LIGHT)

    place.canvas.input(does.move, [place.canvas, kept], place.at, **LIGHT)
    place.at.submit(does.place, [place.at, *laid], place.canvas, **LIGHT)
    place.at.blur(does.place, [place.at, *laid], place.canvas, **LIGHT)
    emptied = [kept, *sought, place.flip, place.at, place.canvas, mask.cells]
    place.keep.click(does.keep, laid, emptied, **LIGHT)
    place.drop.click(without_last, [kept, place.canvas], [kept, place.canvas], **LIGHT).then(**refresh)

    inputs = [draw.around, *settings.inputs, *laid]
    draw.draw.click(told(gr.Request, does.draw), [draw.tau, *inputs], results.outputs, **JOB)
    draw.strip.click(told(gr.Request, does.strip), [draw.taus, *inputs], results.outputs, **JOB)


# Components -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MaskFields:
    """A picture, and all ways to its mask; pick: what was found or grown, beneath the paint."""

    reference: Any
    word: Any
    find: Any
    cells: Any
    tolerance: Any
    clear: Any
    pick: Any


def _mask_fields() -> MaskFields:
    gr = import_module("gradio")
    label = "Its cells: click to add what has the same colour"
    with gr.Row():
        with gr.Column(min_width=280):
            reference = editor("A subject: paint over it", "reference")
            with gr.Row():
                word = gr.Textbox(label="Or its name", placeholder="car", scale=2, elem_id="word", min_width=80)
                find = gr.Button("Find it", scale=1, elem_id="find", min_width=80)
        with gr.Column(min_width=220):
            cells = gr.Image(label=label, type="pil", interactive=False, buttons=[], height=218, elem_id="cells")
            tolerance = gr.Slider(0, 128, 40, step=1, label="Colours up to this far off")
            clear = gr.Button("Clear the mask", size="sm")
    return MaskFields(reference, word, find, cells, tolerance, clear, gr.State(None))


@dataclass(frozen=True)
class PlaceFields:
    """The canvas on which subjects are placed, and what else is said of each."""

    canvas: Any
    at: Any
    flip: Any
    caption: Any
    keep: Any
    drop: Any


def _place_fields(studio: Studio) -> PlaceFields:
    gr = import_module("gradio")
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
    return PlaceFields(canvas, at, flip, caption, keep, drop)


@dataclass(frozen=True)
class DrawFields:
    """A scene, what is around the subjects, tau, and the buttons that draw."""

    scene: Any
    around: Any
    tau: Any
    draw: Any
    strip: Any
    taus: Any


def _draw_fields(studio: Studio, settings: Settings) -> DrawFields:
    gr = import_module("gradio")
    whole, sources = "A picture of the whole scene", ("upload", "clipboard")
    with gr.Accordion("A scene", open=False):
        scene = gr.Image(label=whole, type="pil", sources=sources, height=220, elem_id="scene")
    label = "What is around them, without the subjects: keeps a small one alone (may stay empty)"
    around = gr.Textbox(label=label, placeholder="a beach", elem_id="around", max_lines=1)
    tau = tau_slider(studio, settings, "tau", "τ: lower keeps more of the subject, higher follows the prompt")
    with gr.Row():
        draw = gr.Button("Draw", variant="primary", elem_id="draw", elem_classes="jaxpa-draw", scale=2)
        strip = gr.Button("A strip of", elem_id="strip", elem_classes="jaxpa-draw", scale=1)
        taus = gr.Textbox(STRIP, show_label=False, container=False, scale=2, max_lines=1, elem_id="taus")
    return DrawFields(scene, around, tau, draw, strip, taus)


# What they do ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Does:
    """The handlers of the tab.

    `values` are those of `Laid`; where something is drawn, after what is around the subjects and the settings.
    """

    studio: Studio
    settings: Settings

    def refresh(self, *values: Any) -> list[Any]:
        """The canvas and the cells."""
        laid = Laid(*values)
        with sentences():
            return [laid.on_canvas(self.studio, laid.pieces()), laid.cells(self.studio)]

    def find(self, value: Any, before: picks.Pick | None, name: str, text: str) -> picks.Pick:
        """What the subject's name names."""
        studio = self.studio
        with sentences():
            picture = given(value)
            if not name.strip():
                raise JaxpaError("there is no name to look for: say what the subject is, in a word")
            (seen,) = studio.watched(lambda _: studio.load().find_mask(read_image(picture), name, text or None))
            return more(before, picture, seen.pixels(picture.size))

    def grow(self, event: Any, value: Any, before: picks.Pick | None, most: float, shown: Image.Image) -> picks.Pick:
        """What has the colour of the place that was clicked."""
        with sentences():
            picture = given(value)
            x, y = ((each + 0.5) / side for each, side in zip(event.index, shown.size, strict=True))
            return more(before, picture, picks.grown(picture, (x, y), most))

    def clear(self, value: Any) -> list[Any]:
        """The picture without paint, and nothing that was picked."""
        with sentences():
            return [{"background": given(value), "layers": [], "composite": None}, None]

    def move(self, value: Any, before: list[Piece]) -> str:
        """The place of the subject in the editor, in words."""
        boxes = value["boxes"]
        with sentences():
            return desk.show_at(place_of(boxes[-1]) if len(boxes) > len(before) else None)

    def place(self, text: str, *values: Any) -> dict[str, Any]:
        """The canvas with the subject where the words say."""
        laid = Laid(*values)
        with sentences():
            pieces, place = laid.pieces(), desk.parse_at(text)
            if len(pieces) > len(laid.kept):
                pieces[-1] = replace(pieces[-1], at=place)
            return laid.on_canvas(self.studio, pieces)

    def keep(self, *values: Any) -> list[Any]:
        """The subjects with the one in the editor among them, and empty fields for another."""
        laid = Laid(*values)
        with sentences():
            pieces = laid.pieces()
            if len(pieces) == len(laid.kept):
                raise JaxpaError("there is no subject yet to put another beside: drop its picture into the field")
            if len(pieces) >= MOST_KEPT:  # the editor has one more
                raise JaxpaError(f"a page takes {MOST_KEPT} subjects at most")
            return [pieces, None, None, "", "", False, "", laid.on_canvas(self.studio, pieces), None]

    def draw(self, browser: Any, tau: float, *values: Any) -> Iterator[list[Any]]:
        yield from self.drawn(browser, (tau,), values)

    def strip(self, browser: Any, text: str, *values: Any) -> Iterator[list[Any]]:
        with sentences():
            taus = desk.parse_taus(text)
        yield from self.drawn(browser, taus, values)

    def drawn(self, browser: Any, taus: tuple[Any, ...], values: tuple[Any, ...]) -> Iterator[list[Any]]:
        around, rest, shared = values[0], values[1:], len(self.settings.inputs)
        laid, said = Laid(*rest[shared:]), self.settings.said(rest[:shared], taus)
        said = replace(said, surroundings=around or "")

        def ask(folder: Path) -> Request:
            return desk.personalize(folder, laid.pieces(), opened(laid.scene), said, self.studio.spec)

        return drawing(self.studio, str(browser.session_hash), ask)
