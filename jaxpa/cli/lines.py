"""From the lines of a batch to commands that have been checked: their files, and which lines wait for which."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from jaxpa.batch.groups import Share, cast_of, gates_of, is_alone, kind_of
from jaxpa.batch.names import Template
from jaxpa.batch.table import STDIN, Line, read_table, row_of
from jaxpa.checkpoint.remote import is_url
from jaxpa.cli.command import Making, spec_of
from jaxpa.cli.console import counted
from jaxpa.cli.files import labels, outputs
from jaxpa.cli.invert import InvertCommand
from jaxpa.cli.mask import MaskCommand
from jaxpa.cli.parse import join_lines, parse_command
from jaxpa.cli.pictures import EditCommand, GenerateCommand, InpaintCommand, OutpaintCommand, PersonalizeCommand
from jaxpa.cli.picturing import Picturing, Prepared, canvas_of
from jaxpa.errors import JaxpaError, did_you_mean
from jaxpa.request.groups import Checkpoint
from jaxpa.request.request import Request, rename_files

JOBS = {
    "generate": GenerateCommand,
    "personalize": PersonalizeCommand,
    "inpaint": InpaintCommand,
    "outpaint": OutpaintCommand,
    "edit": EditCommand,
    "invert": InvertCommand,
    "mask": MaskCommand,
}
ALIKE = 5  # faults that are shown of many alike


@dataclass(kw_only=True)
class RowCommand(Picturing):
    """A request that stands in a table."""

    said: Request
    figure: bool = False  # type: ignore[misc]

    def request(self) -> Request:
        self.check_redux(self.said.image_prompt)
        return self.said.with_prompt()


class Job(NamedTuple):
    """A line of the file: where it stands, what it says, the command that this is, and the files that it makes.

    names: of the files, as the journal has them. makers: numbers of the lines that make what it reads. level: lines of
    level 1 read what those of level 0 make, and so on. share: what it brings to a batch.
    """

    number: int
    place: str
    said: Any
    command: Making
    files: list[Path]
    names: list[str]
    makers: tuple[int, ...] = ()
    level: int = 0
    share: Share | None = None


@dataclass(frozen=True)
class Naming:
    """What a batch says for all its lines: the model, the template of the names, the folder of the results."""

    model: str | None = None
    out: str | None = None
    folder: str | None = None

    @property
    def template(self) -> Template | None:
        text = self.out or ("{line:05d}.png" if self.folder else None)
        return None if text is None else Template(text)


def folder_of(file: str) -> Path:
    """Where the paths of a file count from: its own folder; of stdin and of a pipe, the working directory."""
    path = Path(file)
    return path.parent if file != STDIN and path.is_file() else Path()


def read_jobs(file: str, naming: Naming = Naming(), work: Path | None = None) -> list[Job]:
    """Every line of a file as a command that has been checked. Raises JaxpaError with all that is wrong.

    work: the folder in which results are made that belong somewhere else.
    """
    jobs, faults, claims, folder = [], [], Claims(), folder_of(file)
    parsed = []
    for line in counted(read_table(file), "read"):
        try:
            parsed.append((line, *parse(line, naming.model, folder)))
        except JaxpaError as error:
            faults.append(f"{line.place}: {error}")
    _share_networks([command for _, command, _ in parsed])
    for line, command, said in counted(parsed, "check"):
        try:
            located(command, folder)
            _name_outputs(command, line, naming, (folder, work))
            _check_batch_size(command)
            makers, level = claims.makers(command.inputs())
            job = with_files(Job(line.number, line.place, said, command, [], [], makers, level), folder, work)
            claims.add(job)
            jobs.append(shared(job) if level == 0 else _foreseen(job))  # its inputs may not exist yet
        except JaxpaError as error:
            faults.append(f"{line.place}: {error}")
    if faults:
        raise JaxpaError("\n".join(few_of_each(faults)))
    if not jobs:
        raise JaxpaError(f"{file} holds no command: write one a line, such as: generate --prompt TEXT --out a.png")
    return jobs


def few_of_each(faults: Sequence[str]) -> list[str]:
    """The faults, of many alike the first ones: of those that have the same words, whatever they name."""
    alike: dict[str, list[str]] = {}
    for fault in faults:
        alike.setdefault(" ".join(word for word in fault.split() if word.rstrip(":,;.").isalpha()), []).append(fault)
    shown: list[str] = []
    for each in alike.values():
        shown += each[:ALIKE]
        shown += [f"... and {len(each) - ALIKE} more alike"] if len(each) > ALIKE else []
    return shown


def _check_batch_size(command: Making) -> None:
    """Raise JaxpaError for a line that says how many pictures are sampled together, where lines share batches."""
    if not isinstance(command, Picturing) or (request := command.request()).sampling.batch_size is None:
        return
    if not is_alone(request, spec_of(command.source())):
        raise JaxpaError(
            "batch_size would have no effect: lines share batches here. Leave it out, and say jaxpa batch --batch-size"
        )


def _share_networks(commands: Sequence[Making]) -> None:
    """Where lines differ in LoRAs, keep these beside the weights, which then load once; a line may say otherwise."""
    if len({command.checkpoint.lora for command in commands}) > 1:
        for command in commands:
            said = command.checkpoint
            command.checkpoint = replace(said, keep_lora=True if said.keep_lora is None else said.keep_lora)


def with_files(job: Job, folder: Path, work: Path | None) -> Job:
    """The job with the files that it makes."""
    files = job.command.outputs().all
    base = folder if work is None else work
    for file in files:
        if "\0" in str(file):
            raise JaxpaError(f"--out {str(file)!r}: no file has such a name")
        if work is not None and os.pardir in file.parts:
            raise JaxpaError(f"--out {os.path.relpath(file, work)}: give a name within --out-dir")
        if work is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
    return job._replace(files=files, names=[_name_in(base, file) for file in files])


def _name_in(folder: Path, file: Path) -> str:
    """A file's name from a folder; whole where it is given as such and lies elsewhere."""
    name = os.path.relpath(file, folder)
    return str(file) if file.is_absolute() and name.startswith(os.pardir) else name


def shared(job: Job) -> Job:
    """The job with what it brings to a batch, once all that it reads is there. Raises JaxpaError."""
    prepared = job.command.prepare()
    if not isinstance(prepared, Prepared):
        return job._replace(share=None)
    canvas = canvas_of(prepared.pictures, spec_of(job.command.source()))
    return job._replace(share=_share_of(job.command, prepared.request, canvas, len(prepared.made)))


def _foreseen(job: Job) -> Job:
    """The job with what it will bring to a batch, where no picture decides the canvas: then the size of its batches
    depends neither on which of the lines that it waits for succeed, nor on who makes these. Raises JaxpaError."""
    if not isinstance(job.command, Picturing):
        return job
    request, spec = job.command.request(), spec_of(job.command.source())
    request.check(spec)
    if request.verb not in ("generate", "personalize") or request.starting or request.following:
        return job
    return job._replace(share=_share_of(job.command, request, None, len(job.command.combinations(request, spec))))


def _share_of(command: Any, request: Request, canvas: tuple[int, int] | None, count: int) -> Share:
    """What a line of so many pictures brings to the batch of its kind; kind None: it is run by itself. canvas: (height,
    width), if a picture decides it."""
    from jaxpa.devices.plan import held_of

    spec = spec_of(command.source())
    if canvas is None:
        h, w = spec.grid(request.sampling.height, request.sampling.width)
        canvas = h * spec.cell, w * spec.cell
    kind = kind_of(request, spec, canvas, request.references)
    if kind is not None:
        kind = (command.checkpoint, command.mesh, kind)
    said = command.checkpoint
    held = held_of(command.source(), command.dtype, said.weights, said.keep_resident)
    gates = gates_of(request, spec, canvas)
    return Share(kind, gates, cast_of(request, spec), count, request.references, request, canvas, spec, held)


def parse(line: Line, model: str | None, folder: Path = Path()) -> tuple[Making, Any]:
    """The command of a line, and what the journal knows it by; folder: from which paths count. Raises JaxpaError.

    What is wrong with a flag is explained on stderr, as for one that is typed.
    """
    if isinstance(line.said, dict):
        record = line.said
        group = record.get("checkpoint")
        if model is not None and "model" not in record and not (isinstance(group, dict) and "model" in group):
            record = {**record, "model": model}
        row = row_of(record, text=Path(line.place.rpartition(":")[0]).suffix.lower() in (".csv", ".tsv"))
        command = RowCommand(
            said=row.request,
            checkpoint=row.checkpoint,
            figure=row.figure,
            out=RowCommand.DEFAULT if row.out is None else Path(row.out),
        )
        return command, record
    words = line.said
    if words[0] not in JOBS:
        near = did_you_mean(words[0], JOBS)
        raise JaxpaError(f"{words[0]!r} is not a command of a batch: a line begins with {', '.join(JOBS)}{near}")
    if model is not None and not any(word.partition("=")[0] == "--model" for word in words):
        words = [words[0], "--model", model, *words[1:]]
    kind = JOBS[words[0]]
    join_lines(kind)  # once for many lines of a kind, which then parse in a quarter of the time
    try:
        command = parse_command(kind, words[0], words[1:], f"{line.place}: {words[0]}", folder)
    except SystemExit:
        raise JaxpaError(f"not the flags of {words[0]}: see jaxpa {words[0]} --help") from None
    if getattr(command, "distributed", False):
        raise JaxpaError("--distributed is for a command of its own: machines share a batch by --engine ray or --share")
    if getattr(command, "preview", None) is not None:
        raise JaxpaError(
            "--preview shows one picture while it comes, and a batch samples many together, in one program: leave it "
            "out, or run this line by itself"
        )
    return command, words


# Files ------------------------------------------------------------------------------------------------------


def located(command: Any, folder: Path) -> None:
    """Let the paths that a command reads count from a folder."""
    for each in fields(command):
        if each.name != "out":
            setattr(command, each.name, _from(getattr(command, each.name), folder))


def _from(value: Any, folder: Path) -> Any:
    if isinstance(value, Path):
        return folder / value
    if not isinstance(value, Checkpoint):
        return rename_files(value, lambda name: str(folder / name))
    named = {name: getattr(value, name) for name in ("model", "components", "redux")}  # folders, and not names
    # "mini" is the embedded checkpoint whatever stands beside the file.
    here = {
        name: str(folder / text) for name, text in named.items() if text and text != "mini" and (folder / text).exists()
    }
    loras = tuple(replace(each, file=str(folder / Path(each.file).expanduser())) for each in value.lora)
    return replace(value, **here, lora=loras)


def _name_outputs(command: Making, line: Line, naming: Naming, places: tuple[Path, Path | None]) -> None:
    """Where a command writes: by its own --out, or by the template; in the folder of the results, if there is one.

    places: the folder from which names count, and the one in which results are made that go to a URL.
    """
    command.fixed_names = True  # type: ignore[misc]
    folder, work = places
    if work is not None:
        if command.out.is_absolute():
            raise JaxpaError(f"--out {command.out}: give a name within --out-dir {naming.folder}")
        folder = work
    elif naming.folder is not None and not is_url(naming.folder):
        folder = Path(naming.folder)
    if command.out != command.DEFAULT:
        command.out = folder / command.out
        return
    if naming.template is None:  # one name, which does not count on: a rerun must find it
        command.naming = lambda made: outputs(folder / command.DEFAULT, labels(made)).files  # type: ignore[misc]
        return
    template, prompt = naming.template, getattr(command, "prompt", None) or ""
    verb = type(command).__name__.removesuffix("Command").lower()
    if isinstance(command, Picturing):
        prompt, verb = command.request().prompt or "", command.request().verb
    said = {"line": line.number, "verb": verb, "prompt": prompt if isinstance(prompt, str) else " ".join(prompt)}

    def name(made: list[dict[str, Any]]) -> list[Path]:
        return [folder / each for each in template.names(said, made)]

    command.naming = name  # type: ignore[misc]


@dataclass
class Claims:
    """The files that the lines of a batch write, as far as they have been read, and by which line; and those that
    they read, with the first line that does."""

    lines: dict[Path, Job] = field(default_factory=dict)
    readers: dict[Path, Job] = field(default_factory=dict)

    def add(self, job: Job) -> None:
        """Raises JaxpaError if another line writes one of these files, or a line before it reads one."""
        own = _whole(job.files)
        for file in own:
            said = f"--out {job.command.out.name}: {file.name}"
            if file in self.lines:
                raise JaxpaError(f"{said} is written by {self.lines[file].place} already")
            if file in self.readers:  # which is not always made first
                raise JaxpaError(f"{said} is read by {self.readers[file].place}: put this line before it")
        self.lines.update(dict.fromkeys(own, job))
        for file in _whole(job.command.inputs()):
            self.readers.setdefault(file, job)

    def makers(self, inputs: Sequence[Path]) -> tuple[tuple[int, ...], int]:
        """The numbers of the lines that make what is read, and a level above theirs; 0: it is all there."""
        makers = [self.lines[file] for file in _whole(inputs) if file in self.lines]
        return tuple(each.number for each in makers), max((each.level + 1 for each in makers), default=0)


def _whole(files: Iterable[Path]) -> list[Path]:
    """The files by the names that tell them apart."""
    return [file.absolute().resolve() for file in files if "\0" not in str(file)]


def shares_of(jobs: Sequence[Job], count: int) -> list[int]:
    """The process, of 1 to `count`, that takes each line: every one in turn, but lines that read what others make stay
    with these, and all go where the first of them does."""
    first: dict[int, int] = {}  # of each line, one before it with which it goes; itself, if there is none

    def root(number: int) -> int:
        while first[number] != number:
            first[number] = number = first[first[number]]
        return number

    for job in jobs:
        first[job.number] = job.number
        together = {root(number) for number in (job.number, *job.makers)}
        first.update(dict.fromkeys(together, min(together)))
    order = {job.number: k for k, job in enumerate(jobs)}
    return [order[root(job.number)] % count + 1 for job in jobs]


def in_order(jobs: Sequence[Job]) -> Iterator[list[Job]]:
    """Jobs of one level in groups that are run one after the other: one checkpoint after the other; what is sampled
    together, its references side by side; and each of the others by itself."""
    groups: dict[Any, list[Job]] = {}
    for job in jobs:
        kind = None if job.share is None else job.share.kind
        alone = job.number if kind is None else 0
        groups.setdefault((repr(job.command.checkpoint), alone, kind), []).append(job)
    for key in sorted(groups, key=lambda key: key[:1]):
        casts: dict[Any, int] = {}
        for job in groups[key]:
            if job.share is not None:
                casts.setdefault(job.share.cast, len(casts))
        yield sorted(groups[key], key=lambda job: 0 if job.share is None else casts[job.share.cast])
