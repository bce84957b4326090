"""A run of a batch: what is still to do, level by level, and into the journal what became of it."""

import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from jaxpa.batch.groups import sizes
from jaxpa.batch.journal import Journal, Key, Progress, read_progress, words_of
from jaxpa.cli import console
from jaxpa.cli.command import Made, headers_read_once
from jaxpa.cli.lines import Job, few_of_each, in_order, shared, shares_of
from jaxpa.cli.signals import TERMINATED, finishing
from jaxpa.cli.urls import AtUrl, existing
from jaxpa.errors import JaxpaError, OutputError


@dataclass(frozen=True)
class Batch:
    """A file that has been read. name: what the user calls it; folder: from which its paths count; work: the folder in
    which pictures are made that go to the URL `out_url`; size: of every batch of pictures, if one is asked for."""

    name: str
    jobs: list[Job]
    folder: Path
    work: Path | None = None
    out_url: str | None = None
    size: int | None = None

    def key_of(self, job: Job) -> Key:
        """What the journal knows a job by."""
        names = job.names if self.out_url is not None else map(os.path.abspath, job.files)
        return words_of(job.said), tuple(names)

    def progress(self, jobs: Sequence[Job], entries: Iterable[dict[str, Any]]) -> Progress:
        """What the journal's entries say of the jobs, whose files must still be there."""
        if self.out_url is not None:
            return read_progress(entries, {self.key_of(job): self.there.issuperset(job.names) for job in jobs})
        lines = {self.key_of(job): all(file.exists() for file in job.files) for job in jobs}
        return read_progress(entries, lines, self.place_of)

    def place_of(self, name: str) -> str:
        """The file that an entry means: from the batch's folder; of an older journal, from the working directory."""
        there, here = os.path.abspath(self.folder / name), os.path.abspath(name)
        return here if os.path.exists(here) and not os.path.exists(there) else there

    @cached_property
    def there(self) -> set[str]:
        """The names of the files below the URL, if there is one."""
        return set() if self.out_url is None else existing(self.out_url)

    def check_url(self, jobs: Iterable[Job], known: Set[str]) -> None:
        """Raise JaxpaError for what lies at the URL and may not be replaced, before networks are loaded.

        known: names that need not be looked at before their line is made, since the journal has them.
        """
        faults = []
        for job in jobs:
            try:
                if self.out_url and not job.command.force and self.there.intersection(job.names) - known:
                    AtUrl(job, self.out_url).settle()
            except JaxpaError as error:
                faults.append(f"{job.place}: {self.named(str(error))}")
        if faults:
            raise JaxpaError("\n".join(few_of_each(faults)))

    def named(self, text: str) -> str:
        """A text that names files where they belong, and not where they are made on the way to a URL."""
        return text if self.out_url is None else text.replace(f"{self.work}/", f"{self.out_url.rstrip('/')}/")


@dataclass(frozen=True)
class Manner:
    """How a batch is worked through; see the flags of the command. share: (the number of this process, of how many)."""

    share: tuple[int, int] = (1, 1)
    engine: Literal["local", "ray"] = "local"
    actors: int | None = None
    retry_failed: bool = False
    again: bool = False
    json: bool = False


@dataclass
class Session:
    """One run of a batch, by a process that holds the journal."""

    batch: Batch
    journal: Journal
    manner: Manner
    todo: frozenset[int] = frozenset()
    made: int = 0
    failed: int = 0
    done_before: int = 0
    failed_before: int = 0
    stop: threading.Event = field(default_factory=threading.Event)
    cluster: Any = None

    def ask(self, entries: Sequence[dict[str, Any]]) -> None:
        """Find out what there is to do, of what the journal says. Raises JaxpaError where that may not be written."""
        (index, count), jobs = self.manner.share, self.batch.jobs
        own = [job for job, share in zip(jobs, shares_of(jobs, count), strict=True) if share == index]
        keys = {job.number: self.batch.key_of(job) for job in own}
        done, failed = set[Key](), set[Key]()
        if not self.manner.again:
            progress = self.batch.progress(own, entries)
            done = progress.done
            failed = set() if self.manner.retry_failed else progress.failed.keys() - progress.again
        self.todo = frozenset(number for number, key in keys.items() if key not in done | failed)
        self.failed_before = len(failed)
        self.done_before = len(own) - len(self.todo) - len(failed)
        known = {str(name) for entry in entries if isinstance(entry.get("files"), list) for name in entry["files"]}
        self.batch.check_url((job for job in own if job.number in self.todo), known)

    def run(self) -> int:
        """Make what there is to do; the exit status."""
        batch, before = self.batch, self.failed_before
        if self.manner.engine == "ray" and self.todo:
            from jaxpa.batch.engine_ray import connect

            self.cluster = connect(self.stop)  # before SIGTERM is taken, which Ray would take itself
        with finishing(self.stop):
            for level in range(1 + max(job.level for job in batch.jobs)):
                self.run_level([job for job in batch.jobs if job.level == level])
        line = f"{batch.name}: {self.made} made, {self.failed} failed, {self.done_before} done before"
        line += f", {before} failed before (--retry-failed tries them again)" if before else ""
        if self.stop.is_set():
            line += f"; stopped, {len(self.todo) - self.made - self.failed} left"
        console.LOG.info("%s", line)
        return TERMINATED if self.stop.is_set() else 1 if self.failed or before else 0

    def run_level(self, jobs: list[Job]) -> None:
        """Lines whose inputs are all there."""
        ready, shares, todo = list[Job](), list[Any](), self.todo
        for job in jobs:
            try:
                job = shared(job) if job.level and (job.number in todo or job.share is None) else job
                ready.append(job)
            except Exception as error:
                if job.number in todo:
                    self.done(job, None, error)
            shares.append(job.share)
        # The size of a batch is that of the whole file's: what is done, or cannot be done yet, counts as well.
        size = sizes([share for share in shares if share is not None], self.batch.size)
        groups = ([job for job in group if job.number in todo] for group in in_order(ready))
        groups = [group for group in groups if group]
        sized = [(group, size.get(None if group[0].share is None else group[0].share.kind)) for group in groups]
        if self.manner.engine == "ray":
            self.run_on_ray(sized)
            return
        run = LineRunner(self.batch.out_url)
        for group, each in sized:
            run(group, each, lambda outcome: self.done(*outcome), self.stop)

    def run_on_ray(self, sized: list[tuple[list[Job], Any]]) -> None:
        from jaxpa.batch.engine_ray import Task, chunks, run_tasks

        cache, run = console.compilation_cache(), LineRunner(self.batch.out_url)
        tasks = [
            Task(chunk, size, run, self.cluster, cache and str(cache))
            for group, size in sized
            for chunk in chunks(sorted(group, key=_gates_of), size)
        ]
        by_number = {job.number: job for group, _ in sized for job in group}
        devices = max((_devices_of(job.command.mesh) for job in by_number.values()), default=1)
        for number, made, error in run_tasks(tasks, self.manner.actors, devices) if tasks else ():
            self.done(by_number[number], made, error)

    def done(self, job: Job, made: Made | None, error: Exception | None) -> None:
        """A line is made, or failed: into the journal, and said. Raises OutputError if the journal is not writable."""
        entry: dict[str, Any] = {"job": job.said, "line": job.number}
        if made is None:
            from jaxpa.batch.worker import said_of

            assert error is not None
            # What the line cannot help is tried again without being asked: a full disk, a full memory.
            own = isinstance(error, JaxpaError) and not isinstance(error, OutputError)
            if job.level and not all(each.exists() for each in job.command.inputs()):
                own = False  # nor that a line before it has failed
            said = self.batch.named(said_of(error))
            entry |= {"wanted": job.names, "failed": said, "again": not own, "at": time.time()}
            console.LOG.error("%s: %s", job.place, said)
            self.failed += 1
            self.journal.append(entry)
            return
        figure, replaced = made.content["figure"], made.content["replaced"]
        entry |= {**made.content, "files": job.names, "at": time.time()}
        entry |= {"figure": figure and self.batch.named(figure), "replaced": [*map(self.batch.named, replaced)]}
        self.journal.append(entry)
        self.made += 1
        line = f"[{self.made + self.failed}/{len(self.todo)}] {self.batch.named(made.line)}"
        console.report(self.manner.json, entry, [line])


@dataclass
class LineRunner:
    """Runs jobs that are sampled together, or that are not (size None); done: hears (job, made, error) of each; stop:
    no further batch is begun once it is set. url: where their files go from the folder in which they are made.
    """

    url: str | None = None

    @headers_read_once()  # in an actor, too
    def __call__(
        self, jobs: list[Job], size: Any, done: Callable[[tuple[Job, Made | None, Any]], None], stop: Any
    ) -> None:
        if stop.is_set():
            return
        from jaxpa.batch.worker import Worker

        console.compilation_cache()
        lines: list[Any] = [(job, job.command if self.url is None else AtUrl(job, self.url)) for job in jobs]
        if size is None:
            for job, work in lines:
                if stop.is_set():
                    return
                try:
                    outcome = job, work.make(work.prepare()), None
                except Exception as error:  # whatever it is, the lines after it are made
                    outcome = job, None, error
                done(outcome)
            return
        try:
            pipe = jobs[0].command.load()
        except Exception as error:
            for job in jobs:
                done((job, None, error))
            return
        Worker(pipe, size, lambda each: done((each.line, each.made, each.error)), stop).run(lines)


def _gates_of(job: Job) -> str:
    """An order in which pictures that can share a batch stand side by side, where a task has a few of them."""
    return "" if job.share is None else repr(job.share.gates)


def _devices_of(mesh: str | None) -> int:
    """How many devices a line is spread over, at least."""
    from jaxpa.devices.sharding import read_sides

    return 1 if mesh is None else max(1, math.prod(read_sides(mesh).values()))
