"""What the commands share: the grammar of subjects, progress on stderr, files that are written, one JSON line."""

import dataclasses
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tqdm import tqdm
from tyro.constructors import PrimitiveConstructorSpec

from jaxpa.errors import JaxpaError
from jaxpa.media.subjects import Place, Subject
from jaxpa.schedule import Steps

if TYPE_CHECKING:
    from jaxpa.devices.timing import Clock

GROUP = {
    "mask": True,
    "word": True,
    "at": True,
    "caption": True,
    "flip": False,
}  # flags of a subject, and whether a value follows


def group_subjects(argv: Sequence[str]) -> list[str]:
    """`--subject I --mask M --at X,Y` -> `--subject I mask=M at=X,Y`: flags after a subject belong to it."""
    out: list[str] = []
    inside, rest = False, list(argv)
    while rest:
        word = rest.pop(0)
        flag, equals, value = word.partition("=")
        name = flag.removeprefix("--")
        if inside and flag.startswith("--") and name in GROUP:
            if GROUP[name] and not equals:
                if not rest:
                    raise JaxpaError(f"--{name} of a --subject needs a value")
                value = rest.pop(0)
            out.append(f"{name}={value}")
            continue
        if word.startswith("--"):
            inside = flag == "--subject"
            out += [flag, value] if inside and equals else [word]
            continue
        out.append(word)
    return out


def parse_subject(words: list[str]) -> Subject:
    """The words of one group: the picture, then name=value."""
    image, values = words[0], {}
    for word in words[1:]:
        name, equals, value = word.partition("=")
        if name not in GROUP or not equals:
            raise JaxpaError(
                f"{word!r} after --subject {image}: a subject takes one picture, --mask, --word, --at, --caption, "
                "--flip"
            )
        values[name] = value
    return Subject(
        image, values.get("mask"), parse_place(values["at"]) if "at" in values else None, "flip" in values,
        values.get("caption", ""), values.get("word", ""),
    )  # fmt: skip


def parse_place(text: str) -> Place:
    """`X,Y` or `LEFT,TOP,RIGHT,BOTTOM`, fractions of the canvas."""
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) not in (2, 4):
        raise JaxpaError(f"--at {text!r}: give X,Y (the centre) or LEFT,TOP,RIGHT,BOTTOM, as fractions of the canvas")
    return numbers  # type: ignore[return-value]


def parse_pad(text: str) -> tuple[int, ...]:
    """`TOP,RIGHT,BOTTOM,LEFT` in pixels; one number for all sides."""
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) not in (1, 4):
        raise JaxpaError(f"--pad {text!r}: give TOP,RIGHT,BOTTOM,LEFT in pixels, or one number for all sides")
    return numbers * (4 // len(numbers))


def parse_tau(text: str) -> float | Steps:
    """`0.6`: flow time; `80%`: share of the steps that remain. Raises JaxpaError outside [0, 1]."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = float("nan")
    if not 0 <= value <= 1:
        raise JaxpaError(f"--tau {text!r}: give a flow time in [0, 1], or a percentage of the steps such as 80%")
    return Steps(value) if text.endswith("%") else value


def _primitive(metavar: str, parse: Callable[[list[str]], Any], kind: type | tuple[type, ...], nargs: int | str) -> Any:
    return PrimitiveConstructorSpec(
        nargs=nargs, metavar=metavar, instance_from_str=parse,  # type: ignore[arg-type]
        is_instance=lambda x: isinstance(x, kind), str_from_instance=lambda x: [str(x)],
    )  # fmt: skip


SUBJECT = "IMAGE [--mask MASK | --word WORD] [--at X,Y | L,T,R,B] [--caption TEXT] [--flip]"
SubjectFlag = Annotated[Subject, _primitive(SUBJECT, parse_subject, Subject, "*")]
PlaceFlag = Annotated[Place, _primitive("X,Y|L,T,R,B", lambda words: parse_place(words[0]), tuple, 1)]
PadFlag = Annotated[tuple[int, int, int, int], _primitive("T,R,B,L", lambda words: parse_pad(words[0]), tuple, 1)]
TauFlag = Annotated[float | Steps, _primitive("T|P%", lambda words: parse_tau(words[0]), (float, Steps), 1)]


class Progress:
    """A bar on stderr for every stage; an `on_step` of the pipeline."""

    def __init__(self) -> None:
        self.bar: tqdm | None = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        if self.bar is None:
            self.bar = tqdm(total=total, desc=stage, file=sys.stderr, leave=False, dynamic_ncols=True, disable=None)
        self.bar.update(done - self.bar.n)
        if done == total:
            self.bar.close()
            self.bar = None


@contextmanager
def one_line_warnings() -> Iterator[None]:
    """Warnings as a user reads them: no file, no line of code."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print(f"jaxpa: warning: {message}", file=sys.stderr)
        yield


def compilation_cache() -> Path:
    """Keep compiled programs between processes, unless the user's JAX is told where already; the folder."""
    import jax

    if named := jax.config.values["jax_compilation_cache_dir"]:
        return Path(named)
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    jax.config.update("jax_compilation_cache_dir", str(base / "jaxpa" / "programs"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return base / "jaxpa" / "programs"


def numbered(out: Path, labels: Sequence[str]) -> list[Path]:
    """The file of every image: `out` for one, `out` with the image's label in its name for several."""
    if len(labels) == 1:
        return [out]
    return [out.with_name(f"{out.stem}-{label}{out.suffix}") for label in labels]


def labels(made: Sequence[dict[str, Any]]) -> list[str]:
    """A short name for each image: that in which they differ, as `tau0.5-seed3`; a seed alone needs no word."""
    names = [name for name in made[0] if len({one[name] for one in made}) > 1]
    if names == ["seed"]:
        return [str(one["seed"]) for one in made]
    return ["-".join(f"{name}{one[name]}" for name in names) for one in made]


def clock() -> "Clock":
    """A clock for a command, whose programs are kept from now on."""
    from jaxpa.devices.timing import Clock

    compilation_cache()
    return Clock()


def show_tau(tau: float | Steps) -> str:
    """As `parse_tau` reads it."""
    return f"{100 * tau.share:g}%" if isinstance(tau, Steps) else f"{tau:g}"


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
