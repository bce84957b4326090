"""Files that commands write. One rule for all of them:

a default name     counts on: jaxpa.png, jaxpa-2.png, ...
a name that is free                is taken
a picture that jaxpa has made      is replaced, and the command says so
any other file                     is refused, unless --force is given
a file that comes meanwhile        is kept, unless --force is given: the name counts on; in a batch, the line fails
a file that the command reads      is refused always
"""

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxpa.errors import JaxpaError, first_repeated
from jaxpa.media.images import check_output, is_recorded


class Outputs(NamedTuple):
    """The files of a command: its pictures, a sheet beside them, and those of both that exist and will be replaced."""

    files: list[Path]
    figure: Path | None = None
    replaced: tuple[Path, ...] = ()

    @property
    def all(self) -> list[Path]:
        return [*self.files, *([self.figure] if self.figure else [])]


def outputs(out: Path, labels: Sequence[str] = ("",), figure: bool = False) -> Outputs:
    """`out` for one picture; with the picture's label in its name for several."""
    files = [out] if len(labels) == 1 else [out.with_name(f"{out.stem}-{label}{out.suffix}") for label in labels]
    return Outputs(files, out.with_name(f"{out.stem}-figure.png") if figure else None)


def named(files: Sequence[Path], labels: Sequence[str], figure: bool = False) -> Outputs:
    """Files that have a name each; where names are alike, the pictures' labels tell them apart."""
    if len(set(files)) < len(files):
        files = [file.with_name(f"{file.stem}-{label}{file.suffix}") for file, label in zip(files, labels, strict=True)]
    return Outputs(list(files), files[0].with_name(f"{files[0].stem}-figure.png") if figure else None)


def check_labels(labels: Sequence[str]) -> None:
    """Raise JaxpaError for a picture that is asked for twice."""
    if (twice := first_repeated(labels)) is not None:
        of_label = f" ({twice})" if twice else ""
        raise JaxpaError(f"the same picture is asked for twice{of_label}: give each tau, seed and place once")


def free(out: Path, labels: Sequence[str], figure: bool) -> Outputs:
    """The first files of a default name that are free."""
    check_output(out)
    choices = (outputs(name, labels, figure) for name in counting_on(out))
    return next(chosen for chosen in choices if not any(map(os.path.lexists, chosen.all)))


def counting_on(file: Path) -> Iterator[Path]:
    """A name, and those that follow where it is taken: a.png, a-2.png, a-3.png and so on, without end."""
    yield file
    yield from (file.with_name(f"{file.stem}-{count}{file.suffix}") for count in itertools.count(2))


def settle(chosen: Outputs, inputs: Iterable[Path], force: bool) -> Outputs:
    """The files, if they may be written, by the rule of this module. Raises JaxpaError."""
    read = [file for file in inputs if file.exists()]
    for file in chosen.all:
        check_output(file)
        if not force and file.is_symlink() and not file.exists():
            raise JaxpaError(f"{file} is a link to nowhere: name another --out, or replace the link with --force")
        if file.exists():
            if any(os.path.samefile(file, each) for each in read):
                raise JaxpaError(f"{file} is an input of this command: name another --out")
            if not force and not is_recorded(file):
                raise JaxpaError(
                    f"{file} exists and was not made by jaxpa: name another --out, or replace it with --force"
                )
    return chosen._replace(replaced=tuple(file for file in chosen.all if file.exists()))


def labels(made: Sequence[dict[str, Any]]) -> list[str]:
    """A short name for each image: that in which they differ, as `tau0.5-seed3`; a seed alone needs no word."""
    names = [name for name in made[0] if len({one[name] for one in made}) > 1]
    if names == ["seed"]:
        return [str(one["seed"]) for one in made]
    return ["-".join(f"{name}{one[name]}" for name in names) for one in made]
