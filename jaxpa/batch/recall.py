"""What the runs of a file were asked for: each leaves it in its journal, so that nobody has to say it again."""

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import PositiveInt

from jaxpa.batch.journal import LATEST
from jaxpa.checkpoint.remote import is_url
from jaxpa.errors import JaxpaError
from jaxpa.request.record import CONFIG, from_json, to_json

FORMAT = 1
PLACES = ("out_dir", "journal")


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """The flags of a run that say which pictures it makes, and where; None: not given. Places count from the file's
    folder. at: when it began, in seconds since 1970.
    """

    format: Literal[1] = FORMAT
    model: str | None = None
    out: str | None = None
    out_dir: str | None = None
    journal: str | None = None
    batch_size: PositiveInt | None = None
    at: float = 0.0

    @classmethod
    def of(cls, flags: Mapping[str, Any], folder: Path) -> "RunRecord":
        """flags: as they are given, with places as the working directory sees them."""
        known: dict[str, Any] = {name: flags[name] for name in FLAGS}
        known |= {name: _from_folder(known[name], folder) for name in PLACES}
        return cls(**known, at=time.time())

    def flags(self, folder: Path) -> dict[str, Any]:
        """The flags as one would give them here."""
        known = {name: getattr(self, name) for name in FLAGS}
        return known | {name: _from_here(known[name], folder) for name in PLACES}

    @property
    def pictures(self) -> "RunRecord":
        """What tells runs apart: those of equal ones make the same pictures."""
        return replace(self, batch_size=None, at=0.0)

    def fits(self, other: "RunRecord") -> bool:
        """Whether another run has every flag that is given here, in what tells them apart."""
        return all(getattr(self.pictures, name) in (None, getattr(other, name)) for name in FLAGS)

    def repeats(self, entries: Iterable[Mapping[str, Any]]) -> bool:
        """Whether the last run that a journal tells of was asked for the same."""
        last = next(iter(runs_in(entries)), None)
        return last is not None and replace(last, at=0.0) == replace(self, at=0.0)

    @property
    def words(self) -> str:
        """For a report."""
        given = {f"--{name.replace('_', '-')}": getattr(self, name) for name in FLAGS}
        said = " ".join(f"{flag} {value}" for flag, value in given.items() if value is not None)
        return f"run of {time.strftime('%Y-%m-%d %H:%M', time.localtime(self.at))}" + (f" with {said}" if said else "")

    def as_entry(self) -> dict[str, Any]:
        """As it stands in a journal."""
        return {"run": {"format": FORMAT, **to_json(self)}}


RunRecord.__pydantic_config__ = CONFIG  # type: ignore[attr-defined]
FLAGS = tuple(each.name for each in fields(RunRecord) if each.name not in ("format", "at"))


def runs_in(entries: Iterable[Mapping[str, Any]]) -> list[RunRecord]:
    """The runs that a journal tells of, each as it was begun last, the latest first."""
    found = sorted(filter(None, map(_read, entries)), key=lambda each: -each.at)
    latest: dict[RunRecord, RunRecord] = {}
    for each in found:
        latest.setdefault(each.pictures, each)
    return list(latest.values())


def _read(entry: Mapping[str, Any]) -> RunRecord | None:
    """None: not a run, torn, or of a program that knows more."""
    try:
        found = from_json(entry["run"], RunRecord)
        return found if 0 <= found.at < LATEST else None
    except (KeyError, TypeError, JaxpaError):
        return None


def _from_folder(place: str | None, folder: Path) -> str | None:
    if place is None or is_url(place):
        return place
    inside = os.path.relpath(place, folder)
    return place if os.path.isabs(place) and inside.startswith(os.pardir) else inside


def _from_here(place: str | None, folder: Path) -> str | None:
    return place if place is None or is_url(place) else os.path.normpath(folder / place)
