"""One job at a time, in a thread of its own, watched step by step; whoever stops watching stops it."""

import queue
import shutil
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from PIL import Image

from jaxpa.pipeline import Pipeline
from jaxpa.request.groups import Checkpoint
from jaxpa.request.request import Request
from jaxpa.request.spec import Spec
from jaxpa.runs import OnStep, Step

OUT = "picture.png"
PREVIEWS = 7  # of a sampling, the finished picture among them


class Seen(NamedTuple):
    """A job at work: its stage, how many of its steps are done, and what this one takes for the picture, now and then.

    Of several pictures, the first that is being sampled.
    """

    stage: str
    done: int
    total: int
    preview: Image.Image | None = None


def seen(step: Step) -> Seen:
    """A step as the page shows it; every few steps it is decoded, `PREVIEWS` times in a sampling."""
    due = step.done * PREVIEWS // step.total != (step.done - 1) * PREVIEWS // step.total and step.done < step.total
    return Seen(*step[:3], step.picture(0) if due and step.picture is not None else None)


class Drawn(NamedTuple):
    """A job that is done: its files, what each differs in, the seconds that it took, and its warnings."""

    files: list[Path]
    labels: list[str]
    seconds: float
    warnings: list[str]


class Draw(Protocol):
    """Makes the pictures of a request whose files lie in a folder, as the command does: (files, labels)."""

    def __call__(self, request: Request, folder: Path, on_step: OnStep) -> tuple[list[Path], list[str]]: ...


class Stopped(Exception):
    """Nobody waits for the job any more."""


@dataclass
class Studio:
    """A checkpoint at work for a page.

    load: the networks; draw: a request's pictures; words: its command; folder: for the files of all who look at the
    page, one folder each.
    """

    checkpoint: Checkpoint
    spec: Spec
    load: Callable[[], Pipeline]
    draw: Draw
    words: Callable[[Request], list[str]]
    folder: Path
    working: threading.Lock = field(default_factory=threading.Lock)
    stops: dict[str, threading.Event] = field(default_factory=dict)

    def room(self, session: str) -> Path:
        """An empty folder for the next job of a session."""
        self.leave(session)
        return Path(tempfile.mkdtemp(prefix=f"{_name(session)}-", dir=self.folder))

    def leave(self, session: str) -> None:
        """A session's files go, and its job stops."""
        self.stop(session)
        for old in self.folder.glob(f"{_name(session)}-*"):
            shutil.rmtree(old, ignore_errors=True)

    def stop(self, session: str) -> None:
        """A session's job ends at its next step, by `Stopped`."""
        if (stop := self.stops.pop(session, None)) is not None:
            stop.set()

    def run(self, request: Request, folder: Path, session: str = "") -> Iterator[Seen | Drawn]:
        """Every step of a job of a session, and what came of it. Raises what the job raised."""

        def work(on_step: OnStep) -> Drawn:
            start = time.monotonic()
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always", UserWarning)
                files, labels = self.draw(request, folder, on_step)
            texts = dict.fromkeys(str(each.message) for each in said if each.category is UserWarning)
            return Drawn(files, labels, time.monotonic() - start, list(texts))

        stop = self.stops[session] = threading.Event()
        return self.watched(work, stop)

    def watched(self, work: Callable[[OnStep], Any], stop: threading.Event | None = None) -> Iterator[Any]:
        """The steps that a function reports, and its result last; it waits for its turn. `stop` ends it."""
        said: queue.Queue[tuple[str, Any]] = queue.Queue()
        stop = stop or threading.Event()

        def on_step(step: Step) -> None:
            if stop.is_set():
                raise Stopped
            if step.stage != "forwards":
                said.put(("step", seen(step)))

        def job() -> None:
            try:
                with self.working:
                    said.put(("done", work(on_step)))
            except BaseException as error:
                said.put(("error", error))

        thread = threading.Thread(target=job, daemon=True)
        thread.start()
        try:
            while True:
                kind, what = said.get()
                if kind == "error":
                    raise what
                yield what
                if kind == "done":
                    return
        finally:
            stop.set()
            thread.join()


def _name(session: str) -> str:
    """A session's name without what a folder's name should not hold."""
    return "".join(c for c in session if c.isalnum()) or "someone"
