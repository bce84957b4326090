"""The command that works through a file of commands: networks load once, and what is done stays done."""

import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import tyro
from tyro.conf import Positional

from jaxpa.cli import console
from jaxpa.cli.mask import Mask
from jaxpa.cli.options import Making
from jaxpa.cli.pictures import Generate, Inpaint, Invert, Outpaint, Personalize
from jaxpa.errors import JaxpaError

JOBS = {
    "generate": Generate,
    "personalize": Personalize,
    "inpaint": Inpaint,
    "outpaint": Outpaint,
    "invert": Invert,
    "mask": Mask,
}


class Job(NamedTuple):
    """A line of the file: where it stands, its words, and the command that they are."""

    place: str
    words: list[str]
    command: Making


@dataclass(kw_only=True)
class Batch:
    """Work through a file of commands, one a line, as one types them after `jaxpa`.

    The networks load once. Every line is checked first. What is done is written into a journal beside the file
    (FILE.done.jsonl), with seeds, settings and seconds: when it is run again, only what is missing is made.
    """

    file: Positional[Path]
    """Lines such as: generate --prompt "a red cat" --seed 3 --out cat.png. A # begins a comment."""
    model: str | None = None
    """For lines that name no --model."""
    share: str = "1/1"
    """I/N: of N machines that work on the same file, this is the I-th and takes every N-th line."""
    again: bool = False
    """Make everything again."""
    json: bool = False
    """A JSON line on stdout for every job; everything else goes to stderr."""

    def run(self) -> int:
        index, count = parse_share(self.share)
        jobs = read_jobs(self.file, self.model)
        suffix = ".done.jsonl" if count == 1 else f".{index}of{count}.done.jsonl"
        done = set() if self.again else finished(self.file)
        own = jobs[index - 1 :: count]
        todo = [job for job in own if tuple(job.words) not in done]
        failed = 0
        with self.file.with_name(self.file.name + suffix).open("a") as journal:
            for number, job in enumerate(todo, 1):
                try:
                    job.command.check()
                    content, line = job.command.make()
                except JaxpaError as error:
                    print(f"jaxpa: {job.place}: {error}", file=sys.stderr)
                    failed += 1
                    continue
                content = {"job": job.words, **content}
                journal.write(console.as_line(content) + "\n")
                journal.flush()
                console.report(self.json, content, [line.replace("jaxpa: ", f"jaxpa: [{number}/{len(todo)}] ", 1)])
        print(
            f"jaxpa: {self.file}: {len(todo) - failed} made, {failed} failed, {len(own) - len(todo)} done before",
            file=sys.stderr,
        )
        return 1 if failed else 0


def parse_share(text: str) -> tuple[int, int]:
    """`I/N` -> (I, N)."""
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise JaxpaError(f"--share {text!r}: give I/N with I from 1 to N, such as 2/4")
    return int(index), int(count)


def read_jobs(file: Path, model: str | None = None) -> list[Job]:
    """Every line of a file as a command that has been checked. Raises JaxpaError with all that is wrong."""
    jobs, faults = [], []
    outs: dict[str, str] = {}  # the files of all lines so far, and where they stand
    for place, words in read_lines(file):
        if model is not None and not any(word.partition("=")[0] == "--model" for word in words):
            words = [words[0], "--model", model, *words[1:]]
        try:
            job = Job(place, words, parse(place, words))
            if (out := str(job.command.out)) in outs:
                raise JaxpaError(f"--out {out} is written by {outs[out]} already")
            if outs.keys().isdisjoint(words):  # else its input may not exist yet
                job.command.check()
            jobs.append(job)
            outs[out] = place
        except JaxpaError as error:
            faults.append(f"{place}: {error}")
    if faults:
        raise JaxpaError("\n".join(faults))
    if not jobs:
        raise JaxpaError(f"{file} holds no command: write one a line, such as: generate --prompt TEXT --out a.png")
    return jobs


def read_lines(file: Path) -> Iterator[tuple[str, list[str]]]:
    """(FILE:NUMBER, words) of every line that is not empty."""
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise JaxpaError(f"{file} cannot be read: {error}") from None
    for number, line in enumerate(lines, 1):
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise JaxpaError(f"{file}:{number}: {error}") from None
        if words:
            yield f"{file}:{number}", words


def parse(place: str, words: Sequence[str]) -> Making:
    """The command that the words are. What is wrong with a flag is explained on stderr, as for one that is typed."""
    if words[0] not in JOBS:
        raise JaxpaError(f"{words[0]!r} is no command: a line begins with {', '.join(JOBS)}")
    try:
        return tyro.cli(JOBS[words[0]], prog=f"{place}: {words[0]}", args=console.group_subjects(words[1:]))
    except SystemExit:
        raise JaxpaError(f"not the flags of {words[0]}: see jaxpa {words[0]} --help") from None


def finished(file: Path) -> set[tuple[str, ...]]:
    """The words of every job that a journal beside the file names, and whose files are still there."""
    found = set()
    for journal in file.parent.glob(f"{file.name}*.done.jsonl"):
        for line in journal.read_text().splitlines():
            try:
                entry: dict[str, Any] = json.loads(line)
            except json.JSONDecodeError:  # torn by a crash: the job is made again
                continue
            if all(Path(made).exists() for made in entry["files"]):
                found.add(tuple(entry["job"]))
    return found
