"""What commands say: the log "jaxpa" and progress on stderr, a JSON line on stdout; where programs are kept."""

import dataclasses
import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tqdm import tqdm

from jaxpa.errors import printable_lines

if TYPE_CHECKING:
    from jaxpa.devices.timing import Clock
    from jaxpa.runs import Step

LOG = logging.getLogger("jaxpa")
Item = TypeVar("Item")


class Terminal(logging.Handler):
    """What is logged, as a user reads it on stderr; names and values may hold escape sequences."""

    def emit(self, record: logging.LogRecord) -> None:
        kind = "warning: " if record.levelno == logging.WARNING else ""
        print(f"jaxpa: {kind}{printable_lines(self.format(record))}", file=sys.stderr)


@contextmanager
def talking() -> Iterator[None]:
    """Within this, what the package logs goes to the terminal, and warnings as a user reads them: no file, no line of
    code, and each text once.

    A command checks its request before anything loads, and the pipeline, which Python calls too, checks it again.
    """
    said: set[str] = set()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        if (text := _about_cache(str(message))) not in said:
            said.add(text)
            LOG.warning("%s", text)

    terminal, level = Terminal(), LOG.level
    LOG.addHandler(terminal)
    LOG.setLevel(logging.INFO)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show
            yield
    finally:
        LOG.removeHandler(terminal)
        LOG.setLevel(level)


UNREAD = re.compile("Error reading persistent compilation cache entry for '[^']*': (.*)", re.DOTALL)


def _about_cache(text: str) -> str:
    """What a warning says; of JAX's, that it cannot read a program, what to do: it never writes a damaged one anew."""
    if not (found := UNREAD.fullmatch(text)):
        return text
    import jax

    folder = jax.config.values["jax_compilation_cache_dir"]
    return f"compiled programs in {folder} cannot be read, and are compiled each time: delete it ({found[1]})"


def hush(quiet: bool) -> None:
    """From now on, nothing but warnings and errors, if that is asked for."""
    LOG.setLevel(logging.WARNING if quiet else logging.INFO)


class Progress:
    """A bar on stderr for every stage, with its rate and the time that is left; an `on_step` of the pipeline.

    Only on a terminal, and not for who wants it quiet. forwards: of runs that may skip the network.
    """

    def __init__(self) -> None:
        self.bar: tqdm | None = None
        self.forwards: int | None = None

    def __call__(self, step: "Step") -> None:
        if step.stage == "forwards":
            self.forwards = step.done + (self.forwards or 0)
        else:
            self.show(*step[:3])

    def show(self, stage: str, done: int, total: int) -> None:
        if self.bar is None:
            self.bar = tqdm(total=total, desc=stage, unit_scale=total >= 10**6, **_shown())  # of bytes: 1.2G
        self.bar.update(done - self.bar.n)
        if done == total:
            self.bar.close()
            self.bar = None


def counted(items: Sequence[Item], stage: str) -> Iterator[Item]:
    """The items one by one; where they take more than a second, with a bar."""
    yield from tqdm(items, stage, delay=1, **_shown())


def _shown() -> dict[str, Any]:
    """How bars look; whether there are any."""
    off = None if LOG.isEnabledFor(logging.INFO) else True  # None: where stderr is no terminal
    return {"file": sys.stderr, "leave": False, "dynamic_ncols": True, "disable": off}


def compilation_cache() -> Path | None:
    """Keep compiled programs between processes: where the user's JAX is told to, else in a folder of this program.

    Returns the folder; None, after a warning, where none can be written: everything runs without.
    """
    import jax

    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if named := jax.config.values["jax_compilation_cache_dir"]:
        return Path(named)
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = base.absolute() / "jaxpa" / "programs"
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(f"{folder} cannot be written to")
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: there is no home
        warnings.warn(f"compiled programs are not kept: {error}", stacklevel=1)  # one place: it is said once
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    return folder


def keep_stdout() -> None:
    """From now on, what libraries write to stdout goes to stderr (Gloo greets there): stdout is for reports."""
    if sys.stdout is None or sys.stderr is None:  # as they are without a console, where nobody reads
        return
    sys.stdout.flush()
    reports = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    sys.stdout = reports


def clock() -> "Clock":
    """A clock for a command, whose programs are kept from now on."""
    from jaxpa.devices.timing import Clock

    compilation_cache()
    return Clock()


def report(as_json: bool, content: dict[str, Any], lines: Sequence[str]) -> None:
    """One JSON line on stdout, or the lines on stderr."""
    if as_json:
        print(as_line(content), flush=True)
    else:
        for line in lines:
            LOG.info("%s", line)


def as_line(content: dict[str, Any]) -> str:
    """JSON without a line break."""
    return json.dumps(content, default=_plain)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return str(value)
