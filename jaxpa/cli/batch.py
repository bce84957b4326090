"""The command that works through a file of commands: networks load once, and what is done stays done."""

import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from glob import escape
from pathlib import Path
from typing import Any, NamedTuple

from tyro.conf import Positional

from jaxpa.cli import console, files
from jaxpa.cli.command import Making
from jaxpa.cli.invert import InvertCommand
from jaxpa.cli.mask import MaskCommand
from jaxpa.cli.parse import parse_command
from jaxpa.cli.pictures import EditCommand, GenerateCommand, InpaintCommand, OutpaintCommand, PersonalizeCommand
from jaxpa.errors import JaxpaError, did_you_mean

JOBS = {
    "generate": GenerateCommand,
    "personalize": PersonalizeCommand,
    "inpaint": InpaintCommand,
    "outpaint": OutpaintCommand,
    "edit": EditCommand,
    "invert": InvertCommand,
    "mask": MaskCommand,
}


class Job(NamedTuple):
    """A line of the file: where it stands, its words, and the command that they are."""

    place: str
    words: list[str]
    command: Making


@dataclass(kw_only=True)
class BatchCommand:
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
        share_networks(jobs)
        suffix = ".done.jsonl" if count == 1 else f".{index}of{count}.done.jsonl"
        done = set() if self.again else finished(self.file)
        own = jobs[index - 1 :: count]
        todo = [job for job in own if tuple(job.words) not in done]
        failed = 0
        journal = self.file.with_name(self.file.name + suffix)
        for number, job in enumerate(todo, 1):
            try:
                content, line = job.command.make(job.command.prepare())
                append(journal, {"job": job.words, **content})
            except Exception as error:  # whatever it is, the lines after it are made
                said = str(error) if isinstance(error, JaxpaError) else f"{type(error).__name__}: {error}"
                print(f"jaxpa: {job.place}: {said}", file=sys.stderr)
                failed += 1
                continue
            content = {"job": job.words, **content}
            console.report(self.json, content, [line.replace("jaxpa: ", f"jaxpa: [{number}/{len(todo)}] ", 1)])
        print(
            f"jaxpa: {self.file}: {len(todo) - failed} made, {failed} failed, {len(own) - len(todo)} done before",
            file=sys.stderr,
        )
        return 1 if failed else 0


def share_networks(jobs: Sequence[Job]) -> None:
    """Where lines differ in LoRAs, keep these beside the weights, which then load once; a line may say otherwise."""
    if len({job.command.checkpoint.lora for job in jobs}) > 1:
        for job in jobs:
            said = job.command.checkpoint
            job.command.checkpoint = replace(said, keep_lora=True if said.keep_lora is None else said.keep_lora)


def append(journal: Path, entry: dict[str, Any]) -> None:
    """Add a line to a journal, after a line break that a crash may have cost it. Raises JaxpaError."""
    try:
        with journal.open("a+b") as file:
            if file.tell():
                file.seek(-1, 2)
                torn = file.read() != b"\n"
                file.write(b"\n" if torn else b"")
            file.write(console.as_line(entry).encode() + b"\n")
    except OSError as error:
        raise JaxpaError(f"made, but {journal} cannot be written: {error.strerror or error}") from None


def parse_share(text: str) -> tuple[int, int]:
    """`I/N` -> (I, N)."""
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise JaxpaError(f"--share {text!r}: give I/N with I from 1 to N, such as 2/4")
    return int(index), int(count)


@dataclass
class Claims:
    """The files that the lines of a batch write, as far as they have been read, and where each stands."""

    places: dict[Path, str] = field(default_factory=dict)

    def add(self, place: str, command: Making) -> None:
        """Raises JaxpaError if another line writes one of these files."""
        own = [file.absolute().resolve() for file in possible_outputs(command)]
        for file in own:
            if file in self.places:
                raise JaxpaError(f"--out {command.out}: {file.name} is written by {self.places[file]} already")
        self.places.update(dict.fromkeys(own, place))

    def has(self, words: Sequence[str]) -> bool:
        """Whether an earlier line makes a file that is named here."""
        named = (part for word in words for part in (word, word.partition("=")[2]) if part)
        return any(Path(word).absolute().resolve() in self.places for word in named if "\0" not in word)


def possible_outputs(command: Making) -> list[Path]:
    """Every file that a command will write."""
    labels = command.labels()
    return files.outputs(command.out, labels, command.figure).all


def read_jobs(file: Path, model: str | None = None) -> list[Job]:
    """Every line of a file as a command that has been checked. Raises JaxpaError with all that is wrong."""
    jobs, faults, claims = [], [], Claims()
    for place, words in read_lines(file):
        if model is not None and not any(word.partition("=")[0] == "--model" for word in words):
            words = [words[0], "--model", model, *words[1:]]
        try:
            job = Job(place, words, parse(place, words))
            if not claims.has(words):  # else its input may not exist yet
                job.command.prepare()
            claims.add(place, job.command)
            jobs.append(job)
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
        lines = file.read_text(encoding="utf-8").split("\n")  # and not where Unicode, too, sees the end of a line
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
        near = did_you_mean(words[0], JOBS)
        raise JaxpaError(f"{words[0]!r} is not a command of a batch: a line begins with {', '.join(JOBS)}{near}")
    try:
        command = parse_command(JOBS[words[0]], words[0], words[1:], f"{place}: {words[0]}")
    except SystemExit:
        raise JaxpaError(f"not the flags of {words[0]}: see jaxpa {words[0]} --help") from None
    if getattr(command, "distributed", False):
        raise JaxpaError("--distributed is for a command of its own: machines share a batch by --share I/N")
    return command


def finished(file: Path) -> set[tuple[str, ...]]:
    """The words of every job that a journal beside the file names, and whose files are still there."""
    found = set()
    for journal in file.parent.glob(f"{escape(file.name)}*.done.jsonl"):
        for line in journal.read_bytes().split(b"\n"):
            try:
                entry: Any = json.loads(line)
                if all(Path(made).exists() for made in entry["files"]):
                    found.add(tuple(entry["job"]))
            except (ValueError, TypeError, KeyError):  # torn by a crash, or not of this program: the job is made again
                continue
    return found
