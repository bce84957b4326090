"""The command that works through a file of requests: networks load once, and what is done stays done."""

import contextlib
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from jaxpa.batch.groups import sizes
from jaxpa.batch.journal import Journal, Progress, key_of, read_progress, status
from jaxpa.checkpoint.remote import is_url, open_url
from jaxpa.cli import console
from jaxpa.cli.command import Made, headers_read_once
from jaxpa.cli.lines import Job, Naming, in_order, read_jobs, shared
from jaxpa.errors import JaxpaError, OutputError

TERMINATED = 143  # as a shell counts signals: 128 + SIGTERM


@dataclass(kw_only=True)
class BatchCommand:
    """Work through a file of requests: commands, one a line, as one types them; a JSON object a line (.jsonl); or a
    CSV table (.csv, .tsv) whose header has the same names.

    The networks load once. Every line is checked first. Pictures of one size, number of steps and kind are sampled
    together, whichever lines they belong to: a picture depends on its own line alone. What is done is written into a
    journal (FILE.done.jsonl): when it is run again, only what is missing is made. Paths count from the file's folder.
    """

    file: Positional[str | None] = None
    """Lines such as: generate --prompt "a red cat" --seed 3 --out cat.png. A # begins a comment; `jaxpa` may stand in
    front. -: stdin (then --journal says where the journal goes)."""
    model: str | None = None
    """For lines that name no model."""
    out: str | None = None
    """For lines that name no file: a template such as {line:05d}-{seed}.png, of line, seed, tau, place, verb and
    prompt."""
    out_dir: str | None = None
    """Where the files go, instead of the file's folder; a fsspec URL (gs://, s3://) too."""
    journal: str | None = None
    """Where the journal is, instead of beside the file; a fsspec URL too."""
    batch_size: int | None = None
    """Pictures that are sampled together; auto: as many as fit the memory, 8 at most. Another number is another
    program, whose pictures may differ by a grey level."""
    share: str = "1/1"
    """I/N: this is the I-th of N processes that take every N-th line each, for who has only a shell on each machine."""
    engine: Literal["local", "ray"] = "local"
    """ray: the devices of a Ray cluster work on the file together (`pip install 'jaxpa[ray]'`)."""
    actors: int | None = None
    """With ray: how many; auto: one for each GPU or TPU chip, else one for each machine."""
    retry_failed: bool = False
    """Try lines again that failed by their own fault."""
    again: bool = False
    """Make everything again."""
    status: bool = False
    """Say what is made, failed and left, and how long it will take. Give the flags of the run; nothing is made."""
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
        share = parse_share(self.share)
        journal = self.open_journal(share)
        with contextlib.ExitStack() as stack:
            stack.enter_context(headers_read_once())
            work = None
            if self.out_dir is not None and is_url(self.out_dir):
                from tempfile import TemporaryDirectory

                work = Path(stack.enter_context(TemporaryDirectory()))
            jobs = read_jobs(self.file, Naming(self.model, self.out, self.out_dir), work)
            if self.status:
                return self.say_status(jobs, journal)
            stack.enter_context(journal.locked())
            return Session(self, jobs, share, journal, work).run()

    def open_journal(self, share: tuple[int, int]) -> Journal:
        assert self.file is not None
        if self.journal is not None:
            return Journal(self.journal)
        if not Path(self.file).is_file():
            raise JaxpaError(f"{self.file} is no file that a journal could stand beside: name one with --journal")
        return Journal.beside(Path(self.file), share)

    def progress(self, jobs: Sequence[Job], journal: Journal) -> Progress:
        """What the journal says of the jobs, whose files must still be there."""
        there = existing(self.out_dir) if self.out_dir is not None and is_url(self.out_dir) else None
        expected = {
            key_of(job.said): job.names
            for job in jobs
            if all(
                name in there if there is not None else file.exists()
                for name, file in zip(job.names, job.files, strict=True)
            )
        }
        return read_progress(journal.entries(), expected)

    def say_status(self, jobs: Sequence[Job], journal: Journal) -> int:
        content = status({key_of(job.said): job.place for job in jobs}, self.progress(jobs, journal), journal.entries())
        rate, left = content["pictures_per_minute"], content["seconds_left"]
        lines = [
            f"{content['made']} of {content['lines']} lines made, {len(content['failed'])} failed, "
            f"{content['left']} left"
            + (f"; {rate:g} pictures a minute" if rate else "")
            + (f", {left // 3600}:{left // 60 % 60:02d}:{left % 60:02d} to go" if left else "")
        ]
        lines += [f"{place}: {why}" for place, why in content["failed"].items()]
        print(console.as_line(content) if self.json else "\n".join(lines))
        return 0


def existing(url: str) -> set[str]:
    """The names of the files below a URL."""
    system, path = open_url(url)
    root = path.rstrip("/") + "/"
    return {each.removeprefix(root) for each in system.find(path)} if system.exists(path) else set()


def parse_share(text: str) -> tuple[int, int]:
    """`I/N` -> (I, N)."""
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise JaxpaError(f"--share {text!r}: give I/N with I from 1 to N, such as 2/4")
    return int(index), int(count)


@dataclass
class Session:
    """One run of a batch, by a process that holds the journal."""

    command: BatchCommand
    jobs: list[Job]
    share: tuple[int, int]
    journal: Journal
    work: Path | None
    made: int = 0
    failed: int = 0
    total: int = 0
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> int:
        said, (index, count) = self.command, self.share
        own = [job for k, job in enumerate(self.jobs) if k % count == index - 1]
        if said.again:
            skip, failed = set[str](), dict[str, str]()
        else:
            progress = said.progress(own, self.journal)
            failed = {} if said.retry_failed else {k: v for k, v in progress.failed.items() if k not in progress.again}
            skip = progress.done | failed.keys()
        keys = {job.number: key_of(job.said) for job in own}
        todo = {job.number for job in own if keys[job.number] not in skip}
        self.total = len(todo)
        before = sum(keys[job.number] in failed for job in own)
        with terminated(self.stop):
            for level in range(1 + max(job.level for job in self.jobs)):
                self.run_level([job for job in self.jobs if job.level == level], todo)
        line = f"{said.file}: {self.made} made, {self.failed} failed, {len(own) - len(todo) - before} done before"
        line += f", {before} failed before (--retry-failed tries them again)" if before else ""
        if self.stop.is_set():
            line += f"; stopped, {len(todo) - self.made - self.failed} left"
        console.LOG.info("%s", line)
        return TERMINATED if self.stop.is_set() else 1 if self.failed or before else 0

    def run_level(self, jobs: list[Job], todo: set[int]) -> None:
        """Lines whose inputs are all there."""
        ready: list[Job] = []
        for job in jobs:
            try:
                ready.append(shared(job) if job.level and (job.number in todo or job.share is None) else job)
            except Exception as error:  # what should have made its input has failed
                if job.number in todo:
                    self.done(job, None, error)
                    todo.discard(job.number)
        # The size of a batch is that of the whole file's: what is done already counts.
        size = sizes([job.share for job in ready if job.share is not None], self.command.batch_size)
        groups = ([job for job in group if job.number in todo] for group in in_order(ready))
        groups = [group for group in groups if group]
        sized = [(group, size.get(None if group[0].share is None else group[0].share.kind)) for group in groups]
        if self.command.engine == "ray":
            self.run_on_ray(sized)
            return
        run = LineRunner(self.out_url, self.stop)
        for group, each in sized:
            if not self.stop.is_set():
                run(group, each, lambda outcome: self.done(*outcome))

    def run_on_ray(self, sized: list[tuple[list[Job], Any]]) -> None:
        from jaxpa.batch.engine_ray import Task, chunks, run_tasks

        cache, run = console.compilation_cache(), LineRunner(self.out_url)
        tasks = [Task(chunk, size, run, cache and str(cache)) for group, size in sized for chunk in chunks(group, size)]
        by_number = {job.number: job for group, _ in sized for job in group}
        for number, made, error in run_tasks(tasks, self.command.actors) if tasks else ():
            self.done(by_number[number], made, error)
            if self.stop.is_set():
                return

    @property
    def out_url(self) -> str | None:
        """Where results go that are made in a folder of their own."""
        return None if self.work is None else self.command.out_dir

    def done(self, job: Job, made: Made | None, error: Exception | None) -> None:
        """A line is made, or failed: into the journal, and said. Raises OutputError if the journal is not writable."""
        entry: dict[str, Any] = {"job": job.said, "line": job.number}
        if made is None:
            from jaxpa.batch.worker import said_of

            assert error is not None
            # What the line cannot help is tried again without being asked: a full disk, a full memory.
            own = isinstance(error, JaxpaError) and not isinstance(error, OutputError)
            entry |= {"failed": said_of(error), "again": not own, "at": time.time()}
            console.LOG.error("%s: %s", job.place, said_of(error))
            self.failed += 1
            self.journal.append(entry)
            return
        entry |= {**made.content, "files": job.names, "at": time.time()}
        self.journal.append(entry)
        self.made += 1
        console.report(self.command.json, entry, [f"[{self.made + self.failed}/{self.total}] {made.line}"])


@dataclass
class LineRunner:
    """Runs jobs that are sampled together, or that are not (size None); done: hears (job, made, error) of each.

    url: where their files go from the folder in which they are made; stop: no further batch is begun once it is set.
    """

    url: str | None = None
    stop: threading.Event | None = None

    def __call__(self, jobs: list[Job], size: Any, done: Callable[[tuple[Job, Made | None, Any]], None]) -> None:
        from jaxpa.batch.worker import Worker

        console.compilation_cache()
        for folder in {file.parent for job in jobs for file in job.files if self.url is not None}:
            folder.mkdir(parents=True, exist_ok=True)

        def sent(outcome: tuple[Job, Made | None, Any]) -> None:
            job, made, error = outcome
            if made is not None and self.url is not None:
                try:
                    upload(job, self.url)
                except Exception as fault:  # each file system has errors of its own
                    made, error = None, OutputError(f"{self.url} cannot be written: {fault}")
            done((job, made, error))

        if size is None:
            for job in jobs:
                try:
                    outcome = job, job.command.make(job.command.prepare()), None
                except Exception as error:  # whatever it is, the lines after it are made
                    outcome = job, None, error
                sent(outcome)
            return
        try:
            pipe = jobs[0].command.load()
        except Exception as error:
            for job in jobs:
                sent((job, None, error))
            return
        lines: Any = ((job, job.command) for job in jobs)
        Worker(pipe, size, lambda each: sent((each.line, each.made, each.error)), self.stop).run(lines)


def upload(job: Job, url: str) -> None:
    """The files of a line to where they belong; their local ones go."""
    system, path = open_url(url)
    for name, file in zip(job.names, job.files, strict=True):
        target = f"{path.rstrip('/')}/{name}"
        system.makedirs(target.rpartition("/")[0], exist_ok=True)
        system.pipe_file(target, file.read_bytes())
        file.unlink()


@contextlib.contextmanager
def terminated(stop: threading.Event) -> Iterator[None]:
    """Within this, SIGTERM asks for an end after the pictures that are being made."""

    def ask(*_: object) -> None:
        stop.set()
        console.LOG.info("the pictures in flight are finished, then this ends")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
