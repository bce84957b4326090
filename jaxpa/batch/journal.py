"""What is done, and what failed: a line of JSON each, beside the file, or an object each at an fsspec URL.

An entry has the line's own words (`job`), and either the `files` that it made or why it `failed`; those of runs have
their flags (`recall`). What a crash has torn is passed over: its line is made again.
"""

import json
import os
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any, NamedTuple

from jaxpa.batch.lock import locked_file, locked_url
from jaxpa.checkpoint.remote import is_url, open_url
from jaxpa.errors import JaxpaError, OutputError

SUFFIX = ".done.jsonl"


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
        """What became of lines, as far as it can be read, of one journal after the other."""
        return (each for each in self.everything() if "job" in each)

    def everything(self) -> Iterator[dict[str, Any]]:
        """Every entry that can be read: those of lines, and those that tell of runs (`recall`)."""
        for text in self._texts():
            for line in text.split(b"\n"):
                try:
                    entry: Any = json.loads(line)
                except (ValueError, RecursionError):  # torn by a crash, or not of this program
                    continue
                if isinstance(entry, dict):
                    yield entry

    def _texts(self) -> Iterator[bytes]:
        if is_url(self.place):
            yield from self._objects()
            return
        for file in dict.fromkeys([*self.siblings, Path(self.place)]):
            try:
                yield file.read_bytes()
            except FileNotFoundError:
                continue
            except OSError as error:
                raise JaxpaError(f"the journal {file} cannot be read: {error.strerror or error}") from None

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


class Progress(NamedTuple):
    """What a journal says of lines: the keys of those that are done, and why others failed; `again`: those that
    failed for a reason that was not the line's own, and are tried again without being asked for."""

    done: set[str]
    failed: dict[str, str]
    again: set[str]


def key_of(said: Any) -> str:
    """What a line is known by."""
    return json.dumps(said, sort_keys=True, default=str)


def read_progress(
    entries: Iterable[dict[str, Any]], expected: dict[str, list[str]], place_of: Callable[[str], str] = str
) -> Progress:
    """expected: of each line its files, if they are all there; place_of: which file a name in an entry means."""
    done, failed, again = set[str](), dict[str, str](), set[str]()
    for entry in entries:
        key, files = key_of(entry["job"]), entry.get("files")
        if "failed" in entry:
            done.discard(key)
            failed[key] = str(entry["failed"])
            (again.add if entry.get("again") else again.discard)(key)
        elif isinstance(files, list) and files and [place_of(str(each)) for each in files] == expected.get(key):
            done.add(key)
            failed.pop(key, None)
            again.discard(key)
    return Progress(done, failed, again)


def status(keys: dict[str, str], progress: Progress, entries: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """How far a file is: keys, of every line with its place. The rate is that of the last twenty entries."""
    timed = [each for each in entries if isinstance(each.get("at"), int | float)]
    last = sorted(timed, key=lambda each: each["at"])[-20:]  # of several shares
    made = [len(each.get("files") or ()) for each in last]
    seconds = last[-1]["at"] - last[0]["at"] if len(last) > 1 else 0
    left = [key for key in keys if key not in progress.done and (key not in progress.failed or key in progress.again)]
    per_line = seconds / (len(last) - 1) if seconds else None
    return {
        "lines": len(keys),
        "made": sum(key in progress.done for key in keys),
        "failed": {keys[key]: progress.failed[key] for key in keys if key in progress.failed},
        "left": len(left),
        "pictures_per_minute": round(60 * sum(made[1:]) / seconds, 1) if seconds else None,
        "seconds_left": round(per_line * len(left)) if per_line is not None else None,
    }
