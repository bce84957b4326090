"""The command that makes a picture again, from what stands in it."""

from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

import numpy as np
from tyro.conf import Positional, UseAppendAction, arg

from jaxpa.cli import console
from jaxpa.cli.command import Made, Making, spec_of
from jaxpa.cli.lines import RowCommand
from jaxpa.cli.mask import MaskCommand
from jaxpa.cli.picturing import Prepared, canvas_of
from jaxpa.errors import JaxpaError
from jaxpa.request.origin import differences, found, read_origin
from jaxpa.request.provenance import MaskProvenance, Origin, Program, Provenance, Record, model_name, versions
from jaxpa.request.request import Request

if TYPE_CHECKING:
    from collections.abc import Generator

    from PIL import Image

    from jaxpa.batch.worker import Drawn
    from jaxpa.pipeline import Pipeline
    from jaxpa.runs import OnStep


@dataclass(kw_only=True)
class Again(RowCommand):
    """A picture once more, or others that differ from it in their seeds.

    origin: how it was made; program: what it came from (None: sample it by itself); picture: its file.
    """

    origin: Provenance
    program: Program | None
    picture: Path

    def prepare(self) -> Prepared:
        from jaxpa.batch.groups import kind_of

        prepared = super().prepare()
        request, spec = prepared.request, spec_of(self.source())
        canvas = canvas_of(prepared.pictures, spec)
        if self.program is not None and self.program.merged:
            h, w = spec.grid(request.sampling.height, request.sampling.width)
            size = (h * spec.cell, w * spec.cell) if canvas is None else canvas
            if kind_of(request, spec, size, request.references) is None:
                raise JaxpaError(f"{self.picture} says that it shared a batch, which such pictures do not: try --alone")
        self.require_memory(self.filled(request), canvas)
        return prepared

    def inputs(self) -> list[Path]:
        return [*super().inputs(), self.picture]

    def record(self, request: Request) -> Provenance:
        return now(self.origin, self)

    def picture_record(self, prepared: Prepared, k: int, program: Program) -> Provenance:
        seed, request = prepared.made[k]["seed"], self.origin.request
        if seed not in request.sampling.seeds(request.prompt_count):
            request = replace(request, sampling=replace(request.sampling, seed=seed, num_images=1))
        return replace(prepared.record, request=request, seed=seed, program=self.program or program)

    def filled(self, request: Request) -> Request:
        """The request with the last picture again and again, until it fills the program that it came from."""
        if self.program is None:
            return request
        seeds, rows = request.sampling.seeds(), self.program.images
        seeds = (*seeds, *seeds[-1:] * (rows - len(seeds)))
        return replace(request, sampling=replace(request.sampling, seed=seeds, num_images=1, batch_size=rows))

    def draw(
        self, pipe: "Pipeline", request: Request, pictures: Any, on_step: "OnStep"
    ) -> "Generator[Image.Image, None, None]":
        yield from islice(super().draw(pipe, self.filled(request), pictures, on_step), len(request.sampling.seeds()))

    def make(self, prepared: Prepared) -> Made:
        if self.program is None or not self.program.merged:
            return super().make(prepared)
        from jaxpa.batch.worker import Worker
        from jaxpa.batching import Size

        console.compilation_cache()
        outcomes: list[Any] = []
        size = Size(self.program.images, self.program.references)
        Worker(self.load(), size, outcomes.append).run([(None, Line(self, prepared))])
        if outcomes[0].error is not None:
            raise outcomes[0].error
        return outcomes[0].made


class Line(NamedTuple):
    """A picture as the only line of a batch."""

    command: Again
    prepared: Prepared

    def prepare(self) -> Prepared:
        return self.prepared

    def finish(self, prepared: Prepared, pictures: Any, drawn: "Drawn", pipe: "Pipeline") -> Made:
        return self.command.finish(prepared, pictures, drawn, pipe)


@dataclass(kw_only=True)
class MaskAgain(MaskCommand):
    """A mask once more; origin: how it was made, picture: its file."""

    DEFAULT: ClassVar[Path] = RowCommand.DEFAULT  # replay's own

    origin: MaskProvenance
    picture: Path

    def inputs(self) -> list[Path]:
        return [*super().inputs(), self.picture]

    def record(self) -> MaskProvenance:
        return now(self.origin, self)


def now(was: Record, command: Making) -> Record:
    """The record as it stands in the picture, but for what is different now: the model, where it is another one."""
    networks, sha256 = was.checkpoint, command.source().sha256
    if sha256 != networks.sha256:
        networks = replace(networks, model=model_name(command.checkpoint.model), sha256=sha256)
    return replace(was, **versions(), checkpoint=networks)


@dataclass(kw_only=True)
class ReplayCommand:
    """Make a picture again, from what jaxpa wrote into it: the same bytes on the same kind of device, with the same
    versions; otherwise the command says what is different."""

    picture: Annotated[Positional[Path], arg(metavar="PICTURE")]
    """A picture that jaxpa made."""
    seed: tuple[int, ...] = ()
    """Others instead: pictures of these seeds, with all else as it was."""
    model: str | None = None
    """Where the model is, or another one."""
    inputs: UseAppendAction[tuple[Path, ...]] = ()
    """Folders of the files that it was made of, which are known by their hashes. Default: this one, and the picture's
    own."""
    alone: bool = False
    """Sample it by itself, even where other pictures were sampled beside it: quicker, but another program, so it may
    differ by a grey level."""
    out: Path = RowCommand.DEFAULT
    """The file to write, as in `generate`."""
    force: bool = False
    """Replace files that were not made by jaxpa, and run what does not seem to fit in memory."""
    mesh: str | None = None
    """Spread the work over devices, instead of over those that the picture was made on."""
    json: bool = False
    """One JSON line on stdout; everything else goes to stderr."""
    quiet: bool = False
    """Print only warnings and errors."""

    def run(self) -> int:
        origin, _ = read_origin(self.picture)
        folders = self.inputs or (Path(), self.picture.parent)
        if isinstance(origin, MaskProvenance):
            command, lines = self.mask_again(origin, found(origin, folders, self.model))
        else:
            command, lines = self.again(origin, found(origin, folders, self.model))
        lines += differences(origin, command.source(download=True), command.checkpoint.model)
        for line in lines:
            console.LOG.warning("%s: %s", self.picture, line)
        made = command.make(command.prepare())
        content, said = made.content | {"differs": lines}, [made.line]
        if not self.seed:
            compared = compare(self.picture, Path(made.content["files"][0]))
            content |= compared
            said.append(in_words(compared, self.picture))
        console.report(self.json, content, said)
        return 0

    def words(self, here: Origin) -> dict[str, Any]:
        """What both kinds of commands have."""
        from jaxpa.checkpoint.load import default_dtype

        checkpoint = here.checkpoint.as_checkpoint(np.dtype(default_dtype()).name)
        return {"checkpoint": checkpoint, "picture": self.picture, "out": self.out, "force": self.force}

    def again(self, origin: Provenance, here: Provenance) -> tuple[Making, list[str]]:
        """The command that makes the picture, and how its program is another one than it was."""
        program, lines = self.program(origin)
        mesh = self.mesh or (program.mesh if program is not None else None)
        said = here.single(self.seed or None)
        return Again(**self.words(here), said=said, origin=origin, program=program, mesh=mesh), lines

    def mask_again(self, origin: MaskProvenance, here: MaskProvenance) -> tuple[Making, list[str]]:
        """The command that makes the mask."""
        for flag in ("seed", "alone", "mesh"):
            if getattr(self, flag):
                raise JaxpaError(f"--{flag} would have no effect: {self.picture} is a mask. Leave it out")
        said: Any = vars(here.mask)
        return MaskAgain(**self.words(here), **said, origin=origin, figure=False), []

    def program(self, origin: Provenance) -> tuple[Program | None, list[str]]:
        """What the picture is to come from, and how that is another program than it was."""
        from jaxpa.devices.sharding import parse_mesh

        was, lines = origin.program, list[str]()
        if self.alone and (was.images > 1 or was.merged):
            return None, ["it was sampled beside others, and is now by itself: it may differ by a grey level"]
        if self.mesh is not None and self.mesh != was.mesh:
            lines.append(
                f"it was made on {was.mesh or 'one device'}, and this is {self.mesh}: it may differ by a grey level"
            )
            was = replace(was, mesh=self.mesh)
        elif was.mesh is not None:
            try:
                parse_mesh(was.mesh)
            except (JaxpaError, ValueError):
                lines.append(f"it was made on a mesh {was.mesh}, for which this machine has too few or other devices")
                was = replace(was, mesh=None)
        return was, lines


def compare(picture: Path, again: Path) -> dict[str, Any]:
    """Whether two files have the same bytes, and by how many levels of 255 their pixels differ at most."""
    from jaxpa.media.images import read_image

    same = picture.read_bytes() == again.read_bytes()
    a, b = (np.asarray(read_image(file), np.int32) for file in (picture, again))
    return {"same_bytes": same, "largest_difference": int(np.abs(a - b).max()) if a.shape == b.shape else None}


def in_words(compared: dict[str, Any], picture: Path) -> str:
    if compared["same_bytes"]:
        return f"the same bytes as {picture}"
    most = compared["largest_difference"]
    if most is None:
        return f"of another size than {picture}"
    return f"the same pixels as {picture}" if most == 0 else f"up to {most} of 255 levels off {picture}"
