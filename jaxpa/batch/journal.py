"""What is done, and what failed: a line of JSON each, beside the file, or an object each at an fsspec URL.

An entry has the line's own words (`job`), and either the `files` that it made, or those that were `wanted` and why it
`failed`; those of runs have their flags (`recall`). What a crash has torn is passed over: its line is made again.
"""

import json
import os
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any, NamedTuple

from jaxpa.batch.lock import locked_file, locked_url
from jaxpa.checkpoint.documents import check_regular
from jaxpa.checkpoint.remote import is_url, open_url
from jaxpa.errors import JaxpaError, OutputError

SUFFIX = ".done.jsonl"
LATEST = 32e9  # seconds since 1970: before the year 3000


@dataclass(frozen=True)
class Journal:
    """place: a file, or a URL under which every entry is an object (object stores append to nothing).

    siblings: journals that other processes write of the same lines, which are read as well.
    """

    place: str
    siblings: tuple[Path, ...] = ()

    @classmethod
    def beside(cls, file: Path, share: tuple[int, int] = (1, 1)) -> "Journal":
        """FILE.done.jsonl, or that of a share."""
        index, count = share
        name = file.name + (SUFFIX if count == 1 else f".{index}of{count}{SUFFIX}")
        shares = re.compile(rf"{re.escape(file.name)}(\.\d+of\d+)?{re.escape(SUFFIX)}")
        there = file.parent.glob(f"{escape(file.name)}*{SUFFIX}")
        return cls(str(file.with_name(name)), tuple(sorted(each for each in there if shares.fullmatch(each.name))))

    def entries(self) -> Iterator[dict[str, Any]]:
        """Every entry that can be read, of one journal after the other: what became of lines, and what the runs were
        asked for (`recall`)."""
        for text in self._texts():
            for line in text.split(b"\n"):
                try:
                    entry: Any = json.loads(line)
                except (ValueError, RecursionError):  # torn by a crash, or not of this program
                    continue
                if isinstance(entry, dict) and ("job" in entry or "run" in entry):
                    yield entry

    def _texts(self) -> Iterator[bytes]:
        if is_url(self.place):
            yield from self._objects()
            return
        for file in dict.fromkeys([*self.siblings, Path(self.place)]):
            if not file.exists():
                continue
            try:
                check_regular(file)
                yield file.read_bytes()
            except (OSError, ValueError) as error:
                said = getattr(error, "strerror", None) or error
                raise JaxpaError(f"the journal {file} cannot be read: {said}") from None

    def _objects(self) -> Iterable[bytes]:
        system, path = open_url(self.place)
        try:
            system.invalidate_cache()
            found = system.find(path) if system.exists(path) else []
            names = sorted(each for each in found if each.endswith(".json"))
            return system.cat(names).values() if names else ()
        except Exception as error:  # each file system has errors of its own
            raise JaxpaError(f"the journal {self.place} cannot be read: {error}") from None

    def append(self, entry: dict[str, Any]) -> None:
        """Add an entry, on the disk when this returns. Raises OutputError."""
        text = json.dumps(entry, default=str).encode() + b"\n"
        try:
            if is_url(self.place):
                system, path = open_url(self.place)
                system.pipe_file(f"{path.rstrip('/')}/{time.time_ns():020}-{uuid.uuid4().hex[:8]}.json", text)
                return
            with open(self.place, "a+b") as file:
                if file.tell():
                    file.seek(-1, 2)
                    text = text if file.read() == b"\n" else b"\n" + text  # a line break that a crash has cost it
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except Exception as error:  # each file system has errors of its own
            said = getattr(error, "strerror", None) or error
            raise OutputError(f"the journal {self.place} cannot be written: {said}") from error

    def locked(self) -> AbstractContextManager[None]:
        """While this process writes the journal. Raises JaxpaError if another one does."""
        return locked_url(self.place) if is_url(self.place) else locked_file(self.place)


Key = tuple[str, tuple[str, ...]]
"""What a line is known by: its words, and its files. Lines may say the same and have their names from a template."""


def words_of(said: Any) -> str:
    """What a line says, in one spelling."""
    return json.dumps(said, sort_keys=True, default=str)


class Progress(NamedTuple):
    """What a journal says of lines: the keys of those that are done, and why others failed; `again`: those that
    failed for a reason that was not the line's own, and are tried again without being asked for; `ends`: when each
    entry was written, in seconds since 1970, and how many pictures it has.
    """

    done: set[Key]
    failed: dict[Key, str]
    again: set[Key]
    ends: list[tuple[float, int]]


def read_progress(
    entries: Iterable[dict[str, Any]], lines: Mapping[Key, bool], place_of: Callable[[str], str] = str
) -> Progress:
    """lines: of each whether all its files are there; place_of: which file a name in an entry means.

    The latest entry of a line counts, whichever of several journals it is in.
    """
    progress, alike = Progress(set(), {}, set(), []), dict[str, list[Key]]()
    for key in lines:
        alike.setdefault(key[0], []).append(key)
    for entry in sorted(entries, key=lambda entry: _written_at(entry) or 0.0):
        made, at = "failed" not in entry, _written_at(entry)
        for key in _keys_in(entry, made, alike, place_of):
            if key not in lines:  # of other flags, or not of this file any more
                continue
            if at is not None:
                progress.ends.append((at, len(key[1]) if made else 0))
            if not made:
                progress.done.discard(key)
                progress.failed[key] = str(entry["failed"])
                (progress.again.add if entry.get("again") else progress.again.discard)(key)
            elif lines[key]:
                progress.done.add(key)
                progress.failed.pop(key, None)
                progress.again.discard(key)
    return progress


def _written_at(entry: dict[str, Any]) -> float | None:
    """In seconds since 1970; None: it does not say."""
    at = entry.get("at")
    return at if isinstance(at, int | float) and 0 <= at < LATEST else None


def _keys_in(
    entry: dict[str, Any], made: bool, alike: Mapping[str, list[Key]], place_of: Callable[[str], str]
) -> Iterable[Key]:
    """Of which lines an entry tells; alike: the lines by what they say."""
    if "job" not in entry:
        return ()
    words = words_of(entry["job"])
    names = entry.get("files" if made else "wanted")
    if isinstance(names, list) and names and words in alike:
        return [(words, tuple(place_of(str(each)) for each in names))]
    return () if made else alike.get(words, ())  # a failure in an older journal, which names no files


def status(places: Mapping[Key, str], progress: Progress, since: float = 0.0) -> dict[str, Any]:
    """How far a file is; places: where each line stands. The rate is that of the last twenty entries, of those that
    were written `since` the latest run began: a pause between two runs is not work."""
    last = sorted(each for each in progress.ends if each[0] >= since)[-20:]  # of several shares
    seconds = last[-1][0] - last[0][0] if len(last) > 1 else 0
    settled = progress.done | (progress.failed.keys() - progress.again)
    left = [key for key in places if key not in settled]
    per_line = seconds / (len(last) - 1) if seconds else None
    return {
        "lines": len(places),
        "made": sum(key in progress.done for key in places),
        "failed": {places[key]: progress.failed[key] for key in places if key in progress.failed},
        "left": len(left),
        "pictures_per_minute": round(60 * sum(count for _, count in last[1:]) / seconds, 1) if seconds else None,
        "seconds_left": round(per_line * len(left)) if per_line is not None else None,
    }
