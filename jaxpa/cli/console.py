"""What commands say: progress and warnings on stderr, one JSON line on stdout; and where compiled programs are kept."""

import dataclasses
import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

if TYPE_CHECKING:
    from jaxpa.devices.timing import Clock


class Progress:
    """A bar on stderr for every stage; an `on_step` of the pipeline. forwards: of runs that may skip the network."""

    def __init__(self) -> None:
        self.bar: tqdm | None = None
        self.forwards: int | None = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage == "forwards":
            self.forwards = done + (self.forwards or 0)
            return
        if self.bar is None:
            self.bar = tqdm(total=total, desc=stage, file=sys.stderr, leave=False, dynamic_ncols=True, disable=None)
        self.bar.update(done - self.bar.n)
        if done == total:
            self.bar.close()
            self.bar = None


@contextmanager
def one_line_warnings() -> Iterator[None]:
    """Warnings as a user reads them: no file, no line of code, and each text once.

    A command checks its request before anything loads, and the pipeline, which Python calls too, checks it again.
    """
    said: set[str] = set()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        if str(message) not in said:
            said.add(str(message))
            print(f"jaxpa: warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


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
        print("\n".join(lines), file=sys.stderr)


def as_line(content: dict[str, Any]) -> str:
    """JSON without a line break."""
    return json.dumps(content, default=_plain)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return str(value)
