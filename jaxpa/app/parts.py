"""What the tabs share: the settings, the results, and errors as sentences."""

import base64
import contextlib
import html
import inspect
import io
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from PIL import Image

from jaxpa.app import desk, picks
from jaxpa.app.desk import Said
from jaxpa.app.jobs import OUT, Drawn, Seen, Stopped, Studio
from jaxpa.errors import JaxpaError, memory_is_full
from jaxpa.media.figures import sheet
from jaxpa.media.images import max_pixels, read_image
from jaxpa.presets import PRESETS
from jaxpa.request.code import python_call
from jaxpa.request.request import Request

HERE = Path(__file__).parent
JOB: dict[str, Any] = {"concurrency_id": "job", "concurrency_limit": 1}  # of what asks the networks: one at a time
LIGHT: dict[str, Any] = {"show_progress": "hidden", "trigger_mode": "always_last", "queue": True}


@contextlib.contextmanager
def sentences() -> Iterator[None]:
    """Within this, what is wrong is a sentence on the page."""
    gr = import_module("gradio")
    try:
        yield
    except JaxpaError as error:
        raise gr.Error(html.escape(str(error)), print_exception=False) from None
    except (RuntimeError, MemoryError) as error:
        if not memory_is_full(error):
            raise
        text = "the device's memory is full: make fewer pictures at once, or smaller ones"
        raise gr.Error(text, print_exception=False) from None


def told(kind: Any, handler: Callable[..., Any]) -> Callable[..., Any]:
    """A handler whose first argument is an event, or who asks, as Gradio knows by its annotation."""
    handler.__annotations__[next(iter(inspect.signature(handler).parameters))] = kind
    return handler


def data_url(picture: Image.Image) -> str:
    """A picture as a part of the page."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def opened(picture: Image.Image | None) -> Image.Image | None:
    """A picture of the page, if it is not larger than jaxpa reads."""
    if picture is not None and picture.width * picture.height > (limit := max_pixels()):
        raise JaxpaError(f"{picture.width} x {picture.height} pixels are more than {limit:,}: scale the picture down")
    return picture


def edited(value: dict[str, Any] | None, pick: picks.Pick | None = None) -> tuple[Image.Image | None, Any]:
    """What lies in an editor: the picture, and its mask (H, W) of what was picked and painted; None: nothing yet."""
    picture = None if value is None else opened(value["background"])
    if value is None or picture is None:
        return None, None
    return picture, picks.mask_of(picture, value["layers"], pick)


def editor(label: str, name: str) -> Any:
    """A field for a picture, with a brush for its mask."""
    gr = import_module("gradio")
    return gr.ImageEditor(
        type="pil",
        label=label,
        elem_id=name,
        format="png",
        layers=False,
        transforms=(),
        sources=("upload", "clipboard"),
        brush=gr.Brush(default_size=24, colors=[picks.ADDS, picks.TAKES], color_mode="fixed"),
        height=330,
    )


@dataclass(frozen=True)
class Settings:
    """The fields of `Said` that all tabs share."""

    prompt: Any
    fields: list[Any]  # in the order of `said`

    @property
    def inputs(self) -> list[Any]:
        return [self.prompt, *self.fields]

    @property
    def canvas(self) -> list[Any]:
        """Height and width."""
        return self.fields[4:6]

    @property
    def preset(self) -> Any:
        return self.fields[6]

    @staticmethod
    def said(values: tuple[Any, ...], taus: tuple[Any, ...] = ()) -> Said:
        """The values of `inputs`."""
        prompt, seed, num_images, steps, guidance, height, width, preset = values
        preset = "" if preset is None else preset
        return Said(prompt, seed, num_images, steps, guidance, height, width, preset, taus)


def settings_of(studio: Studio, prompt: Any) -> Settings:
    """The fields, with what suits the checkpoint."""
    gr, usual, cell = import_module("gradio"), studio.spec.settings, studio.spec.cell
    with gr.Accordion("Settings", open=False):
        with gr.Row():
            seed = gr.Number(0, label="Seed", precision=0, minimum=0, elem_id="seed")
            count = gr.Slider(1, 8, 1, step=1, label="Pictures, one a seed")
        with gr.Row():
            steps = gr.Slider(1, max(50, usual.steps), usual.steps, step=1, label="Steps", elem_id="steps")
            own, beside = (studio.spec.guidance(None, with_references=each) for each in (False, True))
            usually = f"{own:g}" if own == beside else f"{own:g}, with references {beside:g}"
            guidance = gr.Textbox("", label="Guidance", placeholder=usually, elem_id="guidance", max_lines=1)
        with gr.Row():
            height = gr.Number(usual.size, label=f"Height, in steps of {cell}", precision=0, elem_id="height")
            width = gr.Number(usual.size, label=f"Width, in steps of {cell}", precision=0, elem_id="width")
            presets = [("the checkpoint's own", ""), *((name, name) for name in PRESETS)]
            preset = gr.Dropdown(presets, value="", label="Preset of the method", elem_id="preset")
    return Settings(prompt, [seed, count, steps, guidance, height, width, preset])


def tau_slider(studio: Studio, settings: Settings, name: str, label: str) -> Any:
    """A slider of flow times, which goes where a preset has its tau when that is chosen; name: of the preset's tau."""
    gr = import_module("gradio")

    def usual(preset: str | None) -> float:
        return desk.flow_time(getattr(desk.switches(preset, studio.spec), name), studio.spec)

    slider = gr.Slider(0, 1, usual(""), step=0.01, label=label, elem_id=name.replace("_", "-"))
    settings.preset.change(usual, settings.preset, slider, **LIGHT)
    return slider


@dataclass(frozen=True)
class Results:
    """Where results are shown."""

    picture: Any
    status: Any
    files: Any
    command: Any
    python: Any

    @property
    def outputs(self) -> list[Any]:
        return [self.picture, self.status, self.files, self.command, self.python]


def results_panel() -> Results:
    gr = import_module("gradio")
    picture = gr.Image(
        label="Picture",
        type="pil",
        format="png",
        interactive=False,
        buttons=["fullscreen"],
        height=400,
        elem_id="picture",
    )
    status = gr.Markdown("Draw something: it appears here, step by step.", elem_id="status")
    files = gr.Files(
        label="To download: the picture, with how it was made inside, and what it was made of",
        interactive=False,
        elem_id="files",
        visible=False,
    )
    shown = {"interactive": False, "wrap_lines": True, "lines": 1}
    command = gr.Code(language="shell", label="This picture on the command line", elem_id="command", **shown)
    python = gr.Code(language="python", label="This picture in Python", elem_id="python", **shown)
    return Results(picture, status, files, command, python)


def drawing(studio: Studio, session: str, ask: Callable[[Path], Request]) -> Iterator[list[Any]]:
    """Draw what `ask` makes of the page in a folder: values for `Results.outputs`, after every step and at the end."""
    gr = import_module("gradio")
    same = gr.skip()
    with sentences():
        folder = studio.room(session)
        request = ask(folder)
        words = studio.words(request)
        yield [same, "Waiting for its turn ...", gr.update(visible=False), "", ""]
        try:
            for event in studio.run(request, folder, session):
                if isinstance(event, Seen):
                    shown = same if event.preview is None else event.preview
                    yield [shown, f"{event.stage}: step {event.done} of {event.total}", same, same, same]
                else:
                    files = [*event.files, *(each for each in sorted(folder.iterdir()) if each not in event.files)]
                    offered = gr.update(value=list(map(str, files)), visible=True)
                    call = python_call(request, studio.checkpoint, OUT)
                    yield [_shown_of(event), _status_of(event), offered, shlex.join(["jaxpa", *words]), call]
        except Stopped:
            yield [same, "Stopped.", same, same, same]


def _shown_of(drawn: Drawn) -> Image.Image:
    """The picture; or all of them, in a strip that says what they differ in."""
    pictures = [read_image(file) for file in drawn.files]
    if len(pictures) == 1:
        return pictures[0]
    rows = [list(zip(drawn.labels, pictures, strict=True))[k : k + 3] for k in range(0, len(pictures), 3)]
    return sheet(rows)


def _status_of(drawn: Drawn) -> str:
    count = len(drawn.files)
    lines = [f"{'The picture' if count == 1 else f'{count} pictures'} took {drawn.seconds:.1f} seconds."]
    return "\n\n".join([*lines, *(f"⚠ {html.escape(text)}" for text in drawn.warnings)])
