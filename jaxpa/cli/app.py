"""The command that opens a page in the browser, and what the page draws with: the commands themselves."""

import os
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jaxpa.cli import console, files
from jaxpa.cli.command import Command, spec_of
from jaxpa.cli.lines import JOBS, located
from jaxpa.cli.parse import parse_command
from jaxpa.cli.spell import words_of
from jaxpa.errors import JaxpaError, whole
from jaxpa.request.request import Request

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(kw_only=True)
class AppCommand(Command):
    """Open a page in the browser: paint a mask, place a subject, draw, and look at attention.

    The page is this machine's own unless --host says otherwise: it has no password. Ctrl-C ends it.
    """

    host: str = "127.0.0.1"
    """The address that it listens on; 0.0.0.0: all of this machine's, for everybody who can reach it."""
    port: int | None = None
    """The port; auto: the first free one from 7860 on."""
    open: bool = True
    """Open the browser."""
    max_upload: int = 20
    """Megabytes that a picture's file may have."""

    def run(self) -> int:
        if find_spec("gradio") is None:
            raise JaxpaError("the page needs Gradio, which is not installed: pip install 'jaxpa[app]'")
        whole("--max-upload", self.max_upload, 1)
        if self.host not in LOOPBACK:
            warnings.warn(f"whoever can reach {self.host} can use the page: it has no password", stacklevel=1)
        if self.port is not None:
            whole("--port", self.port, 1, 65535)
        with tempfile.TemporaryDirectory(prefix="jaxpa-app-") as folder:
            os.environ["GRADIO_TEMP_DIR"] = str(Path(folder) / "sent")  # what Gradio keeps of uploads and downloads
            os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
            from jaxpa.app.page import Server, serve

            console.compilation_cache()
            server = Server(self.host, self.port, self.open, self.max_upload)
            serve(self.studio(Path(folder)), server, self.said)
        return 0

    def said(self, url: str) -> None:
        """The page is there."""
        console.report(self.json, {"url": url}, [f"the page is at {url} (Ctrl-C ends it)"])

    def studio(self, folder: Path) -> Any:
        from jaxpa.app.jobs import OUT, Studio

        spec = spec_of(self.source(download=True))

        def words(request: Request) -> list[str]:
            return words_of(request, self.checkpoint, OUT)

        return Studio(self.checkpoint, spec, self.load, self.draw, words, folder)

    def draw(self, request: Request, folder: Path, on_step: Callable[[Any], None]) -> tuple[list[Path], list[str]]:
        """The pictures of a request whose files lie in a folder, written there: by the command that asks for them."""
        from jaxpa.app.jobs import OUT

        verb, *words = words_of(request, self.checkpoint, OUT)
        command: Any = parse_command(JOBS[verb], verb, words, f"jaxpa {verb}")
        located(command, folder)
        command.checkpoint, command.out, command.figure = self.checkpoint, folder / OUT, False
        prepared = command.prepare()

        def drawn(pipe: Any, asked: Request, pictures: Any, progress: Callable[[Any], None]) -> Any:
            def hear(step: Any) -> None:
                progress(step)
                on_step(step)

            yield from pipe.stream(asked, pictures, hear)

        command.draw = drawn
        command.make(prepared)
        return prepared.outputs.files, files.labels(prepared.made)
