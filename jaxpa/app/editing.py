"""The tabs that draw from words alone, draw a part of a picture anew, and continue a picture beyond its sides."""

from importlib import import_module
from typing import Any

from jaxpa.app import desk
from jaxpa.app.jobs import Studio
from jaxpa.app.parts import JOB, Results, Settings, drawing, edited, editor, opened, sentences, tau_slider, told

TAU = "τ: while the flow time is above it, what is kept is held in place"
SIDES = ("top", "right", "bottom", "left")


def words_tab(studio: Studio, settings: Settings, results: Results) -> None:
    """A prompt alone."""
    gr = import_module("gradio")
    gr.Markdown("The prompt alone, without any picture. Change the seed for another picture of it.")
    draw = gr.Button("Draw", variant="primary", elem_id="generate", elem_classes="jaxpa-draw")

    def drawn(browser: Any, *values: Any) -> Any:
        yield from drawing(
            studio, str(browser.session_hash), lambda _: desk.generate(settings.said(values), studio.spec)
        )

    draw.click(told(gr.Request, drawn), settings.inputs, results.outputs, **JOB)


def inpainting_tab(studio: Studio, settings: Settings, results: Results) -> None:
    """A part of a picture anew."""
    gr = import_module("gradio")
    picture = editor("A picture: paint over what may change", "inpainted")
    caption, tau = _caption(), tau_slider(studio, settings, "inpaint_tau", TAU)
    with gr.Row():
        grow = gr.Slider(0, 64, 0, step=1, label="Grow what is painted, in its pixels")
        feather = gr.Slider(0, 64, 0, step=1, label="Blend old and new over so many pixels; 0: half a token")
    draw = gr.Button("Draw", variant="primary", elem_id="inpaint", elem_classes="jaxpa-draw")

    def drawn(browser: Any, value: Any, text: str, one: float, *values: Any) -> Any:
        more, blend, *shared = values
        with sentences():
            image, mask = edited(value)
            said = settings.said(tuple(shared), (one,))
        words = {"caption": text, "grow": more, "feather": blend or None}
        yield from drawing(
            studio,
            str(browser.session_hash),
            lambda folder: desk.inpaint(folder, image, mask, said, studio.spec, **words),
        )

    inputs = [picture, caption, tau, grow, feather, *settings.inputs]
    draw.click(told(gr.Request, drawn), inputs, results.outputs, **JOB)


def outpainting_tab(studio: Studio, settings: Settings, results: Results) -> None:
    """A picture beyond its sides."""
    gr = import_module("gradio")
    picture = gr.Image(
        label="A picture", type="pil", format="png", image_mode=None, sources=("upload", "clipboard"), height=300,
        elem_id="outpainted",
    )  # fmt: skip
    with gr.Row():
        pads = [gr.Number(0, label=f"Pixels to add, {side}", precision=0, minimum=0, min_width=90) for side in SIDES]
    caption, tau = _caption(), tau_slider(studio, settings, "outpaint_tau", TAU)
    feather = gr.Slider(0, 64, 0, step=1, label="Blend old and new over so many pixels; 0: half a token")
    draw = gr.Button("Draw", variant="primary", elem_id="outpaint", elem_classes="jaxpa-draw")

    def drawn(browser: Any, image: Any, text: str, one: float, blend: float, *values: Any) -> Any:
        pad, shared = values[:4], values[4:]
        with sentences():
            whole = opened(image)
            said = settings.said(tuple(shared), (one,))
        words = {"caption": text, "feather": blend or None}
        yield from drawing(
            studio,
            str(browser.session_hash),
            lambda folder: desk.outpaint(folder, whole, pad, said, studio.spec, **words),
        )

    inputs = [picture, caption, tau, feather, *pads, *settings.inputs]
    draw.click(told(gr.Request, drawn), inputs, results.outputs, **JOB)


def _caption() -> Any:
    gr = import_module("gradio")
    return gr.Textbox(label="What the picture shows now (may stay empty)")
