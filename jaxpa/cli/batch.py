"""The command that works through a file of requests: networks load once, and what is done stays done."""

import contextlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from jaxpa.batch.journal import Journal, status
from jaxpa.batch.recall import RunRecord, runs_in
from jaxpa.checkpoint.remote import is_url
from jaxpa.cli import console
from jaxpa.cli.command import check_platform
from jaxpa.cli.lines import Naming, folder_of, read_jobs
from jaxpa.cli.session import Batch, Manner, Session
from jaxpa.errors import JaxpaError, OutputError, printable_lines, whole


@dataclass(kw_only=True)
class BatchCommand:
    """Work through a file of requests: commands, one a line, as one types them; a JSON object a line (.jsonl); or a
    CSV table (.csv, .tsv) whose header has the same names.

    The networks load once. Every line is checked first. Pictures of one size, number of steps and kind are sampled
    together, whichever lines they belong to: a picture depends on its own line alone. What is done is written into a
    journal (FILE.done.jsonl): when it is run again, only what is missing is made. Paths count from the file's folder.
    """

    file: Annotated[Positional[str | None], arg(metavar="[FILE]")] = None
    """Lines such as: generate --prompt "a red cat" --seed 3 --out cat.png. A # begins a comment; `jaxpa` may stand in
    front. -: stdin (then --journal says where the journal goes)."""
    model: str | None = None
    """For lines that name no model."""
    out: str | None = None
    """For lines that name no file: a template such as {line:05d}-{seed}.png, of line, seed, tau, place, verb and
    prompt."""
    out_dir: str | None = None
    """Where the files go, instead of the file's folder; made if it is not there. An fsspec URL (gs://, s3://) too."""
    journal: str | None = None
    """Where the journal is, instead of beside the file; an fsspec URL too. A note beside the file then says where."""
    batch_size: int | None = None
    """Pictures that are sampled together; auto: as many as fit in half of the memory, 8 at most. Another number
    is another program, whose pictures may differ by a grey level."""
    share: str = "1/1"
    """I/N: this is the I-th of N processes that take every N-th line each, for machines that share no more than a
    folder."""
    engine: Literal["local", "ray"] = "local"
    """ray: the devices of a Ray cluster work on the file together (`pip install 'jaxpa[ray]'`)."""
    actors: int | None = None
    """With ray: how many; auto: one for each GPU or TPU chip, else one for each machine."""
    retry_failed: bool = False
    """Try lines again that failed by their own fault, as the last run of this file was asked for (see --status)."""
    again: bool = False
    """Make everything again, as the last run of this file was asked for."""
    status: bool = False
    """Say what is made, failed and left, and how long it will take; nothing is made. The journal holds the flags of the
    run; where there have been several with different flags, each is reported, and flags choose among them."""
    schema: bool = False
    """Print the JSON schema of a line of JSON."""
    json: bool = False
    """A JSON line on stdout for every job; everything else goes to stderr."""
    quiet: bool = False
    """Print only warnings and errors."""

    def run(self) -> int:
        if self.schema:
            from jaxpa.batch.table import table_schema

            print(json.dumps(table_schema(), indent=1))
            return 0
        if self.file is None:
            raise JaxpaError("name the file of the batch, or say --schema")
        for name in ("batch_size", "actors"):
            if (value := getattr(self, name)) is not None:
                whole(f"--{name.replace('_', '-')}", value, 1)
        if self.actors is not None and self.engine != "ray":
            raise JaxpaError("--actors would have no effect: they are those of --engine ray. Leave it out")
        self.check_places()
        check_platform()
        share, journal, asked = parse_share(self.share), self.journal_of(), RunRecord.of(vars(self), self.folder)
        if not (self.status or self.retry_failed or self.again):
            return self.work(share, asked)
        entries = list(journal.entries())
        # The runs that are known, the latest first; where flags are given, those that had them.
        runs = [each for each in runs_in(entries) if asked.fits(each)]
        if self.status:
            return self.say_status(runs, {journal: entries})
        if not runs:
            return self.work(share, asked)
        console.LOG.info("as the %s", runs[0].words)
        command = self.as_in(runs[0])
        return command.work(share, replace(runs[0], batch_size=command.batch_size, at=time.time()))

    def check_places(self) -> None:
        """Raise JaxpaError for names that no file has, and for a journal that would be written into the file itself."""
        for name in ("out", "out_dir", "journal"):
            if (value := getattr(self, name)) is not None and (not value or "\0" in value):
                raise JaxpaError(f"--{name.replace('_', '-')} {value!r}: no file has such a name")
        if self.journal is not None and os.path.realpath(self.journal) == os.path.realpath(str(self.file)):
            raise JaxpaError(f"--journal {self.journal} is the file of the batch itself: name another")

    @property
    def folder(self) -> Path:
        assert self.file is not None
        return folder_of(self.file)

    def journal_of(self, share: tuple[int, int] = (1, 1)) -> Journal:
        if self.journal is not None:
            return Journal(self.journal)
        return self.journal_beside(share)

    def journal_beside(self, share: tuple[int, int] = (1, 1)) -> Journal:
        assert self.file is not None
        if not Path(self.file).is_file():
            raise JaxpaError(f"{self.file} is no file that a journal could stand beside: name one with --journal")
        return Journal.beside(Path(self.file), share)

    def as_in(self, run: RunRecord) -> "BatchCommand":
        """This command with the flags of a run."""
        flags = run.flags(self.folder)
        return replace(self, **flags | {"batch_size": self.batch_size or flags["batch_size"]})

    @contextlib.contextmanager
    def read(self, to_make: bool) -> Iterator[Batch]:
        """The file, checked; within this, its pictures have a folder to be made in; to_make: whether they will be."""
        assert self.file is not None
        url = self.out_dir if self.out_dir is not None and is_url(self.out_dir) else None
        with contextlib.ExitStack() as stack:
            work = None if url is None else Path(stack.enter_context(TemporaryDirectory()))
            if to_make and url is None and self.out_dir is not None:
                stack.enter_context(_made_folder(Path(self.out_dir)))
            jobs = read_jobs(self.file, Naming(self.model, self.out, self.out_dir), work)
            yield Batch(self.file, jobs, self.folder, work, url, self.batch_size)

    def work(self, share: tuple[int, int], asked: RunRecord) -> int:
        """Make what is missing of what is asked for."""
        journal = self.journal_of(share)
        manner = Manner(share, self.engine, self.actors, self.retry_failed, self.again, self.json)
        with self.read(to_make=True) as batch, journal.locked():
            session, entries = Session(batch, journal, manner), list(journal.entries())
            session.ask(entries)
            if session.todo or not asked.repeats(entries):  # where its work begins is a part of the rate
                journal.append(asked.as_entry())
            self.point_to(asked, share)
            return session.run()

    def point_to(self, asked: RunRecord, share: tuple[int, int]) -> None:
        """Say beside the file where the journal is, where that is elsewhere."""
        if self.journal is None or not Path(str(self.file)).is_file():
            return
        beside = self.journal_beside(share)
        with contextlib.suppress(OutputError):  # a folder that is closed: that is why the journal is elsewhere
            if not asked.repeats(beside.entries()):
                beside.append(asked.as_entry())

    def say_status(self, runs: Sequence[RunRecord], journals: dict[Journal, list[Any]]) -> int:
        """How far each run is that made pictures of its own; journals: that have been read."""
        unread = 0
        for asked in runs or [None]:
            command = self if asked is None else self.as_in(asked)
            name = f"{self.file}, {asked.words}" if asked else str(self.file)
            try:
                journal = command.journal_of()
                if journal not in journals:
                    journals[journal] = list(journal.entries())
                content = command.status_of(journals[journal], 0.0 if asked is None else asked.at)
            except JaxpaError as error:
                if len(runs) < 2:
                    raise
                console.LOG.error("%s: %s", name, error)
                unread = 1
                continue
            if self.json:
                print(console.as_line({"run": asked and asked.as_entry()["run"], **content}))
            else:
                print("\n".join([f"{name}: {_in_words(content)}", *_failures(content)]))
        return unread

    def status_of(self, entries: Sequence[dict[str, Any]], since: float) -> dict[str, Any]:
        """How far a run is that began last at a time; entries: of its journal."""
        with self.read(to_make=False) as batch:
            places = {batch.key_of(job): job.place for job in batch.jobs}
            return status(places, batch.progress(batch.jobs, entries), since)


@contextlib.contextmanager
def _made_folder(place: Path) -> Iterator[None]:
    """A folder, made if it is not there, but none around it; it goes again if nothing comes into it. OutputError."""
    try:
        place.mkdir()
    except FileExistsError:
        if not place.is_dir():
            raise OutputError(f"--out-dir {place} is no folder: name another") from None
        yield
        return
    except OSError as error:
        said = "the folder around it does not exist" if isinstance(error, FileNotFoundError) else error.strerror
        raise OutputError(f"--out-dir {place} cannot be made: {said}") from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            place.rmdir()


def _in_words(content: dict[str, Any]) -> str:
    """A status in a line."""
    rate, left = content["pictures_per_minute"], content["seconds_left"]
    line = (
        f"{content['made']} of {content['lines']} lines made, {len(content['failed'])} failed, {content['left']} left"
    )
    line += f"; {rate:g} pictures a minute" if rate else ""
    return line + (f", {left // 3600}:{left // 60 % 60:02d}:{left % 60:02d} to go" if left else "")


def _failures(content: dict[str, Any]) -> list[str]:
    return [printable_lines(f"{place}: {why}") for place, why in content["failed"].items()]


def parse_share(text: str) -> tuple[int, int]:
    """`I/N` -> (I, N)."""
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise JaxpaError(f"--share {text!r}: give I/N with I from 1 to N, such as 2/4")
    return int(index), int(count)
