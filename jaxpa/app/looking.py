"""The tab of attention: point at a word or a cell, and see where it looks, step by step and block by block."""

from importlib import import_module
from typing import Any

from jaxpa.app import looks
from jaxpa.app.jobs import Studio
from jaxpa.app.looks import Looks
from jaxpa.app.parts import HERE, JOB, LIGHT, Settings, data_url, opened, sentences
from jaxpa.errors import JaxpaError
from jaxpa.media import images

VIEW = """<div class='jaxpa-look' hidden><div class='jaxpa-words'></div>
<div class='jaxpa-view'><img class='jaxpa-picture' alt='the picture'><canvas class='jaxpa-light'></canvas></div>
<div class='jaxpa-note'></div>
<label class='jaxpa-turn'><input type='checkbox' class='jaxpa-turned'> For a word, what looks at it</label></div>"""
MEAN = "the mean over all"


def attention_tab(studio: Studio, settings: Settings) -> None:
    """The components and what they do."""
    gr = import_module("gradio")
    with gr.Row():
        with gr.Column(min_width=260):
            gr.Markdown(
                "What attends to what while the prompt's picture is drawn; or, with a picture of your own, while it is "
                "turned into noise, for which the prompt should say what it shows."
            )
            picture = gr.Image(
                label="A picture of your own (may stay empty)", type="pil", sources=("upload", "clipboard"), height=220
            )
            look = gr.Button("Look", variant="primary", elem_id="look", elem_classes="jaxpa-draw")
            step = gr.Dropdown([MEAN], value=MEAN, label="Step: its flow time", interactive=True, elem_id="step")
            block = gr.Dropdown([MEAN], value=MEAN, label="Block", interactive=True, elem_id="block")
        with gr.Column(min_width=320):
            view = gr.HTML(
                html_template=VIEW,
                js_on_load=(HERE / "look.js").read_text(),
                container=True,
                padding=True,
                elem_id="view",
            )
    seen = gr.State(None)

    def looked(own: Any, *values: Any) -> list[Any]:
        with sentences():
            (found,) = studio.watched(lambda _: _seen_by(studio, opened(own), values))
            when = zip(found.attention.steps, found.attention.times, strict=True)
            times = [(f"{step}: t = {t:.2f}", k) for k, (step, t) in enumerate(when)]
            kinds = [(name, k) for k, name in enumerate(_block_names(studio))]
            steps = gr.Dropdown(choices=[MEAN, *times], value=MEAN)
            return [found, steps, gr.Dropdown(choices=[MEAN, *kinds], value=MEAN), shown(found, MEAN, MEAN)]

    look.click(looked, [picture, *settings.inputs], [seen, step, block, view], **JOB)
    for component in (step, block):
        component.input(shown, [seen, step, block], view, **LIGHT)


def _block_names(studio: Studio) -> list[str]:
    config = studio.spec.config.transformer
    double = config.num_layers
    return [f"{k}: double" if k < double else f"{k}: single" for k in range(config.blocks)]


def _seen_by(studio: Studio, own: Any, values: tuple[Any, ...]) -> Looks:
    """The attention of the settings' picture, or of a picture of the user's own."""
    said, spec, pipe = Settings.said(values), studio.spec, studio.load()
    sampling = said.words(spec)["sampling"]
    if not said.prompt.strip():
        raise JaxpaError("there is no word to look from: write a prompt")
    words = looks.words_of(said.prompt, pipe.tokenizers, spec.settings.max_length)
    canvas = (sampling.height, sampling.width)
    if own is not None:
        canvas = spec.canvas(own.size, *canvas)
    h, w = spec.grid(*canvas)
    tokens, count = spec.settings.max_length + h * w, len(spec.times(sampling.steps, (h, w))) - 1
    steps = looks.chosen_steps(count, spec.blocks, tokens, h * w)
    keywords = {"steps": sampling.steps, "height": sampling.height, "width": sampling.width}
    if own is None:
        keywords |= {"seed": sampling.seed, "guidance": sampling.guidance}
    found = pipe.attention(said.prompt, own, at=steps, **keywords)
    if own is None:
        assert found.picture is not None
        return Looks(found, found.picture, words)
    return Looks(found, images.read_image(own).resize((w * spec.cell, h * spec.cell)), words)  # as it is encoded


def shown(found: Looks | None, step: Any, block: Any) -> dict[str, Any] | None:
    """What the page's script draws."""
    if found is None:
        return None
    picture = found.picture.resize((480, round(480 * found.picture.height / found.picture.width)))
    return found.table(*(None if each == MEAN else int(each) for each in (step, block))) | {
        "picture": data_url(picture)
    }
