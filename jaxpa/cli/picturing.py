"""A command that answers a request: from flags to pictures that are written, with how they came to be."""

import itertools
from collections import deque
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from tyro.conf import OmitArgPrefixes, arg

from jaxpa.cli import console, files
from jaxpa.cli.command import ELSEWHERE, Made, Making, Recorded, report_of, spec_of
from jaxpa.cli.files import Outputs
from jaxpa.cli.flags import Every
from jaxpa.errors import JaxpaError
from jaxpa.media.edits import Followed, MaskedPicture, StartPicture
from jaxpa.request.groups import Sampling
from jaxpa.request.request import Request, files_of
from jaxpa.request.spec import Spec
from jaxpa.request.taus import parse_tau, show_tau

if TYPE_CHECKING:  # the networks are imported when a command runs
    from collections.abc import Generator, Iterable

    from PIL import Image

    from jaxpa.batch.worker import Drawn
    from jaxpa.devices.timing import Clock
    from jaxpa.pipeline import Pipeline
    from jaxpa.request.prepare import Pictures
    from jaxpa.request.provenance import Program, Provenance
    from jaxpa.runs import OnStep, Step


Prompt = Annotated[str | None, arg(help_behavior_hint="(required, or --embedding or --image-prompt)")]


class Prepared(NamedTuple):
    """A request that was checked: its pictures as arrays (None: a mask is still to be found), results and files.

    record: how its first picture comes to be; costs: its plan.
    """

    request: Request
    pictures: "Pictures | None"
    made: list[dict[str, Any]]
    outputs: Outputs
    record: "Provenance"
    costs: dict[str, Any]


class Results(NamedTuple):
    """What is made of a request; images: as they come, or all; programs: that of each picture (None: of the request's
    own, all of them); progress: what counts the samples that pass the network, where that is counted."""

    pictures: Any
    images: "Iterable[Image.Image]"
    clock: "Clock"
    programs: "list[Program] | None" = None
    progress: console.Progress | None = None


@dataclass
class Preview:
    """Keeps a file with what a sampling takes for its first picture, every so many steps; an `on_step`."""

    file: Path
    every: int
    written: bool = False

    def __call__(self, step: "Step") -> None:
        from jaxpa.media.images import save_image

        if step.picture is not None and step.done % self.every == 0:
            save_image(step.picture(0), self.file, {"preview": step.done})
            self.written = True

    def remove(self) -> None:
        if self.written:
            self.file.unlink(missing_ok=True)


@dataclass(kw_only=True)
class Picturing(Making):
    """A command that answers a `Request`."""

    prompt: Prompt = None
    """What the picture shows."""
    embedding: Path | None = None
    """An encoded prompt in place of --prompt: a file that TextEmbedding.save wrote."""
    image_prompt: Path | None = None
    """A picture whose look and content the new one takes (FLUX.1-Redux; see --redux), beside --prompt or without."""
    sampling: OmitArgPrefixes[Sampling] = field(default_factory=Sampling)
    start_from: Annotated[Path | None, arg(name="from")] = None
    """Start from the settings of a picture that jaxpa made; flags that are given here override them."""
    preview: Every | None = None
    """Every N steps (`--preview 5`, or `every 5`), write the current estimate of the picture to OUT.preview.png. Of
    several pictures it shows the first that is being sampled. The file is deleted at the end."""
    distributed: bool = False
    """This process is one of several that run the same command: --mesh spreads it over the devices of all of them, and
    the first writes. On Slurm, Open MPI, Kubernetes and Cloud TPU, JAX finds the others; elsewhere, see
    docs/devices.md."""

    def begin(self) -> None:
        if self.distributed:
            from jaxpa.devices.processes import join

            if self.preview is not None:
                raise JaxpaError("--preview is for one process: leave it out with --distributed")
            if self.mesh is None:
                raise JaxpaError("--distributed needs --mesh data=D,model=M: how the devices of all processes are used")
            join()
            console.keep_stdout()

    def request(self) -> Request:
        """What the flags ask for. Raises JaxpaError for what does not go together."""
        raise NotImplementedError

    def words(self) -> dict[str, Any]:
        """The parts of the request that every command has."""
        return self.texts() | {"sampling": self.sampling, "image_prompt": self.image_prompt}

    def texts(self) -> dict[str, Any]:
        """What the picture shows."""
        self.check_redux(self.image_prompt)
        return {"prompt": self.prompt, "embedding": self.embedding}

    def check_redux(self, image_prompt: Any) -> None:
        """Raise JaxpaError for an image prompt that nothing reads."""
        if image_prompt is not None and self.checkpoint.redux is None:
            raise JaxpaError("--image-prompt is read by FLUX.1-Redux: name its folder or hub id with --redux")

    def combinations(self, request: Request, spec: Spec) -> list[dict[str, Any]]:
        """What each picture is made with, as far as that differs."""
        return combinations(request, spec)

    def prepare(self) -> Prepared:
        from jaxpa.media.images import read_image
        from jaxpa.media.subjects import has_mask, load_subject
        from jaxpa.request.prepare import prepare
        from jaxpa.request.provenance import check_room

        request = self.request()
        spec = spec_of(self.source(download=True))
        request.check(spec)
        read = replace(request, subjects=tuple(load_subject(each) for each in request.subjects))
        if request.image_prompt is not None:
            read_image(request.image_prompt)
        known = not [each for each in read.subjects if not has_mask(each)]  # all are asked: one has neither
        pictures = prepare(read, spec) if known else None
        costs = self.require_memory(request, canvas_of(pictures, spec))
        made, record = self.combinations(request, spec), self.record(request)
        _check_embedding(request.embedding)  # which is a file: else it has no hash for the record
        if self.force:
            request = replace(request, sampling=replace(request.sampling, batch_size=costs["batch_size"]))
        outputs = self.settle(made)
        if self.preview is not None:
            self.settle_preview()
        check_room(_largest(request), outputs.files)
        return Prepared(request, pictures, made, outputs, record, costs)

    def settle_preview(self) -> None:
        """Raise JaxpaError for a file that is not an earlier preview: this one replaces it, and goes at the end."""
        from jaxpa.media.images import read_metadata

        files.settle(Outputs([self.preview_file]), self.inputs(), self.force)
        if not self.force and self.preview_file.exists() and "preview" not in (read_metadata(self.preview_file) or {}):
            raise JaxpaError(f"{self.preview_file} is a picture, and the previews need its name: name another --out")

    def record(self, request: Request) -> "Provenance":
        """How the first picture of a request comes to be; its files are read for their hashes."""
        from jaxpa.request.provenance import Provenance, with_inputs

        seed = request.sampling.seeds(request.prompt_count)[0]
        return with_inputs(Provenance(**self.made_by(), request=request, seed=seed), self.keep_paths)

    def inputs(self) -> list[Path]:
        read = [Path(each) for each in files_of(self.request())]
        return read if self.start_from is None else [*read, self.start_from]

    def made_with(self) -> list[dict[str, Any]]:
        return self.combinations(self.request(), spec_of(self.source()))

    @property
    def sheet_wanted(self) -> bool:
        request = self.request()
        return self.figure and (request.references > 0 or request.verb == "edit")

    def make(self, prepared: Prepared) -> Made:
        from jaxpa.devices.processes import writes

        request, pictures, progress = prepared.request, prepared.pictures, console.Progress()
        with console.clock() as clock:
            with clock.stage("load"):
                pipe = self.load()
            with clock.stage("sample"):
                pictures = pipe.prepare(request) if pictures is None else pictures
            with closing(self.draw(pipe, request, pictures, progress)) as drawn:
                images = clock.coming(drawn, "sample")
                if writes():
                    return self.write(prepared, Results(pictures, images, clock, progress=progress), pipe)
                deque(images, maxlen=0)
        return ELSEWHERE

    @property
    def preview_file(self) -> Path:
        return self.out.with_name(f"{self.out.stem}.preview.png")

    def draw(
        self, pipe: "Pipeline", request: Request, pictures: Any, on_step: "OnStep"
    ) -> "Generator[Image.Image, None, None]":
        """The pictures as they come; while they do, the preview shows the next one."""
        if self.preview is None:
            yield from pipe.stream(request, pictures, on_step)
            return
        preview = Preview(self.preview_file, self.preview)

        def hear(step: "Step") -> None:
            on_step(step)
            preview(step)

        try:
            yield from pipe.stream(request, pictures, hear)
        finally:
            preview.remove()

    def finish(self, prepared: Prepared, pictures: Any, drawn: "Drawn", pipe: "Pipeline") -> Made:
        """The pictures of a batch, written as `make` writes them."""
        from jaxpa.devices.timing import Clock
        from jaxpa.request.provenance import Program

        clock = Clock()
        clock.seconds["sample"] = drawn.seconds
        programs = [Program(**size._asdict(), merged=True, mesh=self.mesh) for size in drawn.sizes]
        return self.write(prepared, Results(pictures, drawn.images, clock, programs), pipe)

    def write(self, prepared: Prepared, results: Results, pipe: "Pipeline") -> Made:
        """The pictures with how they were made inside, each when it comes, and the report."""
        from jaxpa.devices.known import remember, signature

        request, made = prepared.request, prepared.made
        pictures, images, clock, programs, progress = results
        canvas = canvas_of(pictures, pipe.spec) or (prepared.costs["height"], prepared.costs["width"])
        costs = self.costs(prepared, canvas, pipe)
        resolved = {
            **{name: costs[name] for name in ("steps", "width", "height")},
            "guidance": request.guidance(pipe.spec),
            "drawn_by": costs["drawn_by"],
            "switches": asdict(request.switches(pipe.spec)) if request.riding(pipe.spec) else None,
        }
        own = [_program_of(request, costs["batch_size"], self.mesh)] * len(made) if programs is None else programs
        labels = files.labels(made)
        if prepared.outputs.figure is not None:
            images = list(images)  # it shows them all, and is written first
        recorded = (
            (image, replace(self.picture_record(prepared, k, own[k]), resolved=resolved).as_record())
            for k, image in enumerate(images)
        )

        def sheet() -> Recorded:
            return _sheet_of(pictures, list(images), labels, pipe.cell), {"figure": labels}

        outputs = self.save(prepared.outputs, made, recorded, sheet)
        if programs is None:
            remember(console.compilation_cache(), signature(self.source(), request, costs, self.mesh))
        common = {
            "prompt": request.prompt or "",
            "model": self.checkpoint.model,
            "weights": self.checkpoint.weights,
            "loras": [asdict(lora) for lora in self.checkpoint.lora],
            **resolved,
            "request": as_record(request),
        }
        if isinstance(pictures, MaskedPicture):
            common["scale"] = pictures.scale
        content = {**common, "images": made, "sample_forwards": costs["sample_forwards"], "tflop": costs["tflop"]}
        if request.sampling.cache is not None:  # what was planned is the most; not counted where lines share a batch
            inverted = costs["references"] * costs["inversion_steps"]
            forwards = None if progress is None else progress.forwards
            content["forwards_run"] = None if forwards is None else inverted + forwards
        report = report_of(outputs, content, clock)
        if request.editing is None:
            return report
        return report._replace(line=f"{report.line}; {request.verb} by {costs['drawn_by']}{enlarged(pictures)}")

    def costs(self, prepared: Prepared, canvas: tuple[int, int], pipe: "Pipeline") -> dict[str, Any]:
        """The plan of what was drawn: the one that was made before, unless the networks lie otherwise in memory."""
        from jaxpa.devices.plan import plan

        said, resident = self.checkpoint, pipe.parts.resident
        drawn = {"height": canvas[0], "width": canvas[1], "dtype": pipe.dtype.name, "resident": resident}
        if all(prepared.costs[name] == value for name, value in drawn.items()):
            return prepared.costs
        return plan(self.source(), prepared.request, pipe.dtype, canvas, said.weights, resident)

    def picture_record(self, prepared: Prepared, k: int, program: "Program") -> "Provenance":
        """How picture k of a request came to be."""
        record, own = prepared.record, prepared.made[k]
        request, prompts = record.request, record.request.prompts
        if len(prompts) > 1:
            request = _alone(request, prompts[k % len(prompts)], own["seed"])
        tau = parse_tau(own["tau"]) if "tau" in own else None
        return replace(record, request=request, seed=own["seed"], tau=tau, place=own.get("place"), program=program)


def _alone(request: Request, prompt: str, seed: int) -> Request:
    """What a picture holds of a request of several prompts, which take turns."""
    return replace(request, prompt=prompt, sampling=replace(request.sampling, seed=seed, num_images=1))


def _largest(request: Request) -> Request:
    """The longest that one of a request's pictures holds."""
    prompts, said = request.prompts, request.sampling
    return _alone(request, max(prompts, key=len), max(said.seeds(len(prompts)))) if len(prompts) > 1 else request


def _program_of(request: Request, together: int, mesh: str | None) -> "Program":
    """What a request's pictures come from where so many are sampled together; see `Sampler`."""
    from jaxpa.devices.plan import images_of
    from jaxpa.request.provenance import Program

    return Program(images=images_of(request, together), mesh=mesh)


def enlarged(pictures: "MaskedPicture") -> str:
    """What is said of a picture whose new part had to be drawn smaller than the picture is."""
    if pictures.scale >= 1:
        return ""
    h, w = pictures.canvas
    return f" at {pictures.scale:.0%} of the picture's size ({w} x {h}), and enlarged"


def as_record(request: Request) -> dict[str, Any]:
    from jaxpa.request.record import to_json

    return to_json(request)


def _sheet_of(pictures: Any, images: "list[Image.Image]", labels: list[str], cell: int) -> "Image.Image":
    """The inputs of a request, their token masks, and the results."""
    from jaxpa.media.figures import overlay, sheet
    from jaxpa.media.images import to_image
    from jaxpa.media.subjects import References, figure

    if isinstance(pictures, References):
        return figure(pictures, images, labels)
    picture = to_image(pictures.picture)
    if isinstance(pictures, Followed):
        return sheet([[("input", picture), *(("result", image) for image in images)]])
    references = pictures.references(cell)
    kept = ("kept tokens", overlay(picture, references.masks[0], *references.grid))
    return sheet([[("input", picture), kept, *(("result", image) for image in images)]])


def canvas_of(pictures: "Pictures | None", spec: Spec) -> tuple[int, int] | None:
    """The canvas (height, width) of pictures that are prepared; None: what the request says."""
    if pictures is None:
        return None
    if isinstance(pictures, MaskedPicture | StartPicture | Followed):
        return pictures.canvas
    h, w = pictures.grid
    return h * spec.cell, w * spec.cell


def _check_embedding(file: Any) -> None:
    """Raise JaxpaError for a file that is not one encoded prompt; None: there is none."""
    from jaxpa.encoders.text import TextEmbedding

    if file is not None and (rows := len(TextEmbedding.load(file))) != 1:
        raise JaxpaError(f"{file} holds {rows} prompts, and a command draws one: save the rows apart (text[0].save)")


def combinations(request: Request, spec: Spec) -> list[dict[str, Any]]:
    """What each picture of a request is made with, in the pipeline's order: tau, seed, and the place's number."""
    seeds = request.sampling.seeds(request.prompt_count)
    taus = [show_tau(tau) for tau in request.taus(spec)]
    places = range(1, max(1, len(request.places)) + 1)
    if not request.riding(spec):
        return [{"seed": seed} for seed in seeds]
    if request.verb == "personalize":
        return [{"tau": tau, "seed": seed, "place": k} for tau, seed, k in itertools.product(taus, seeds, places)]
    return [{"tau": tau, "seed": seed} for tau, seed in itertools.product(taus, seeds)]
