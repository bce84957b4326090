"""The whole page, and the server that shows it to this machine alone."""

import html
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from jaxpa.app.editing import inpainting_tab, outpainting_tab, words_tab
from jaxpa.app.jobs import Studio
from jaxpa.app.looking import attention_tab
from jaxpa.app.parts import HERE, results_panel, settings_of, told
from jaxpa.app.personal import subjects_tab
from jaxpa.errors import JaxpaError

TITLE = "Personalize Anything"
# The page asks nobody but its own server for anything.
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'none'; form-action 'self'; "
    "base-uri 'self'"
)
KEPT = 3600  # seconds for which uploads and downloads are kept, and how often the older ones go


@dataclass(frozen=True)
class Server:
    """Where the page is: an address, a port (None: the first free one), whether a browser is opened; megabytes."""

    host: str
    port: int | None
    open: bool
    max_upload: int


def page(studio: Studio) -> Any:
    """Gradio's blocks for a checkpoint."""
    gr = import_module("gradio")
    with gr.Blocks(title=f"jaxpa: {TITLE}", analytics_enabled=False, delete_cache=(KEPT, KEPT)) as blocks:
        gr.HTML(_heading(studio), elem_classes="jaxpa-title")
        with gr.Row(equal_height=False):
            with gr.Column(scale=7, min_width=420):
                prompt = gr.Textbox(label="Prompt", placeholder=example(studio), max_lines=3, elem_id="prompt")
                with gr.Tabs():
                    subjects, words, part, beyond, attention = (
                        gr.Tab(name) for name in ("Subjects", "Words alone", "Inpaint", "Outpaint", "Attention")
                    )
                settings = settings_of(studio, prompt)
            with gr.Column(scale=5, min_width=320, elem_classes="jaxpa-results") as right:
                results = results_panel()
                stop = gr.Button("Stop", size="sm", elem_id="stop")
        for tab, fill in (
            (subjects, subjects_tab),
            (words, words_tab),
            (part, inpainting_tab),
            (beyond, outpainting_tab),
        ):
            with tab:
                fill(studio, settings, results)
            tab.select(lambda: gr.Column(visible=True), None, right, queue=False)
        with attention:
            attention_tab(studio, settings)
        attention.select(lambda: gr.Column(visible=False), None, right, queue=False)
        stop.click(_of_session(studio.stop), queue=False)
        blocks.unload(_of_session(studio.leave))
    return blocks


def _of_session(what: Callable[[str], None]) -> Callable[..., None]:
    """A handler that does something for whoever asks."""

    def handler(browser: Any) -> None:
        what(str(browser.session_hash))

    return told(import_module("gradio").Request, handler)


def _heading(studio: Studio) -> str:
    """The title, and the words that the checkpoint knows, if it lists them."""
    lines = [f"<h1>{TITLE}</h1>", f"<p>on {html.escape(studio.checkpoint.model)}"]
    if words := studio.spec.settings.words:
        known = "; ".join(", ".join(words[kind]) for kind in list(words)[:4])
        lines.append(f", which knows: {html.escape(known)}")
    return "".join([*lines, "</p>"])


def example(studio: Studio) -> str:
    return "a yellow striped car on a beach" if studio.spec.settings.words else "what the picture shows"


class Policy:
    """Middleware that sends `POLICY` with every answer."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def sent(message: Any) -> None:
            if message["type"] == "http.response.start":
                named = [(b"content-security-policy", POLICY.encode()), (b"referrer-policy", b"no-referrer")]
                message = {**message, "headers": [*message["headers"], *named]}
            await send(message)

        await self.app(scope, receive, sent)


def serve(studio: Studio, server: Server, said: Callable[[str], None]) -> None:
    """Show the page until it is interrupted; said: hears its address."""
    gr = import_module("gradio")
    middleware = import_module("starlette.middleware").Middleware
    theme = gr.themes.Base(
        primary_hue="pink", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    blocks = page(studio).queue(max_size=32)
    try:
        _, url, _ = blocks.launch(
            server_name=server.host,
            server_port=server.port,
            inbrowser=server.open,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            enable_monitoring=False,
            show_error=True,
            max_file_size=server.max_upload * 2**20,
            footer_links=[],
            theme=theme,
            css=(HERE / "page.css").read_text(),
            head=f"<script>{(HERE / 'page.js').read_text()}</script>",
            app_kwargs={"middleware": [middleware(Policy)], "docs_url": None, "redoc_url": None},
        )
    except OSError as error:
        raise JaxpaError(f"the page cannot be shown at {server.host}, port {server.port or 'auto'}: {error}") from None
    said(url)
    try:
        blocks.block_thread()
    finally:
        blocks.close(verbose=False)
