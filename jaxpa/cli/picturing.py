"""A command that answers a request: from flags to pictures that are written, with how they came to be."""

import itertools
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from tyro.conf import OmitArgPrefixes, arg

from jaxpa.cli import console, files
from jaxpa.cli.command import ELSEWHERE, Made, Making, report_of, spec_of
from jaxpa.cli.files import Outputs
from jaxpa.errors import JaxpaError
from jaxpa.media.edits import Followed, MaskedPicture
from jaxpa.request.groups import Sampling, show_tau
from jaxpa.request.request import Request
from jaxpa.request.spec import Spec

if TYPE_CHECKING:  # the networks are imported when a command runs
    from PIL import Image

    from jaxpa.devices.timing import Clock
    from jaxpa.pipeline import Pipeline
    from jaxpa.request.prepare import Pictures


class Prepared(NamedTuple):
    """A request that was checked: its pictures as arrays (None: a mask is still to be found), results and files."""

    request: Request
    pictures: "Pictures | None"
    made: list[dict[str, Any]]
    outputs: Outputs


@dataclass(kw_only=True)
class Picturing(Making):
    """A command that answers a `Request`."""

    prompt: Annotated[str | None, arg(help_behavior_hint="(required, or --embedding)")] = None
    """What the picture shows."""
    embedding: Path | None = None
    """An encoded prompt in place of --prompt: a file that TextEmbedding.save wrote."""
    image_prompt: Path | None = None
    """A picture whose look and content the new one takes (FLUX.1-Redux; see --redux), beside --prompt or without."""
    sampling: OmitArgPrefixes[Sampling] = field(default_factory=Sampling)
    distributed: bool = False
    """This process is one of several that run the same command: --mesh spreads it over the devices of all of them, and
    the first writes. Found by JAX on Slurm, Open MPI, Kubernetes and Cloud TPU; else see docs/devices.md."""

    def begin(self) -> None:
        if self.distributed:
            from jaxpa.devices.processes import join

            if self.mesh is None:
                raise JaxpaError("--distributed needs --mesh data=D,model=M: how the devices of all processes are used")
            join()
            console.keep_stdout()

    def request(self) -> Request:
        """What the flags ask for. Raises JaxpaError for what does not go together."""
        raise NotImplementedError

    def words(self) -> dict[str, Any]:
        """The parts of the request that every command has."""
        if self.prompt is not None and self.embedding is not None:
            raise JaxpaError("give --prompt or --embedding, not both: an embedding is an encoded prompt")
        if self.prompt is self.embedding is self.image_prompt is None:
            raise JaxpaError(
                "give a --prompt: what the picture shows (or an --embedding FILE, or an --image-prompt PICTURE)"
            )
        if self.image_prompt is not None and self.checkpoint.redux is None:
            raise JaxpaError("--image-prompt is read by FLUX.1-Redux: name its folder or hub id with --redux")
        said = {"prompt": self.prompt or "", "embedding": self.embedding, "sampling": self.sampling}
        return said | {"image_prompt": self.image_prompt}

    def prepare(self) -> Prepared:
        from jaxpa.media.images import read_image
        from jaxpa.media.subjects import has_mask, load_subject
        from jaxpa.request.prepare import prepare

        request = self.request()
        spec = spec_of(self.source(download=True))
        request.check(spec)
        read = replace(request, subjects=tuple(load_subject(each) for each in request.subjects))
        if request.image_prompt is not None:
            read_image(request.image_prompt)
        known = not [each for each in read.subjects if not has_mask(each)]  # all are asked: one has neither
        pictures = prepare(read, spec) if known else None
        costs = self.require_memory(request, canvas_of(pictures, spec))
        if self.force:
            request = replace(request, sampling=replace(request.sampling, batch_size=costs["batch_size"]))
        made = combinations(request, spec)
        return Prepared(request, pictures, made, self.settle(made))

    def inputs(self) -> list[Path]:
        return files.inputs_of(self.request())

    def made_with(self) -> list[dict[str, Any]]:
        return combinations(self.request(), spec_of(self.source()))

    @property
    def sheet_wanted(self) -> bool:
        request = self.request()
        return self.figure and (request.references > 0 or request.verb == "edit")

    def make(self, prepared: Prepared) -> Made:
        from jaxpa.devices.processes import writes

        request, pictures = prepared.request, prepared.pictures
        with console.clock() as clock:
            with clock.stage("load"):
                pipe = self.load()
            with clock.stage("sample"):
                pictures = pipe.prepare(request) if pictures is None else pictures
                images = pipe.make(request, pictures, console.Progress())
        if not writes():
            return ELSEWHERE
        return self.write(prepared, pictures, images, clock, pipe)

    def finish(
        self, prepared: Prepared, pictures: Any, images: "list[Image.Image]", seconds: float, pipe: "Pipeline"
    ) -> Made:
        """The pictures of a batch, written as `make` writes them."""
        from jaxpa.devices.timing import Clock

        clock = Clock()
        clock.seconds["sample"] = seconds
        return self.write(prepared, pictures, images, clock, pipe)

    def write(
        self, prepared: Prepared, pictures: Any, images: "list[Image.Image]", clock: "Clock", pipe: "Pipeline"
    ) -> Made:
        """The pictures with how they were made inside, and the report."""
        from jaxpa.devices.plan import plan, remember, signature
        from jaxpa.media.images import save_image

        request, made, outputs = prepared.request, prepared.made, prepared.outputs
        source, canvas, parts = self.source(), (images[0].height, images[0].width), pipe.parts
        costs = plan(source, request, pipe.dtype, canvas, parts.weights, parts.resident)
        common = {
            "prompt": request.prompt,
            "model": self.checkpoint.model,
            "weights": self.checkpoint.weights,
            "loras": [asdict(lora) for lora in self.checkpoint.lora],
            **{name: costs[name] for name in ("steps", "width", "height")},
            "guidance": pipe.spec.guidance(self.sampling.guidance),
            "drawn_by": costs["drawn_by"],
            "switches": asdict(request.switches(pipe.spec)) if request.riding(pipe.spec) else None,
            "request": as_record(request),
        }
        if outputs.figure is not None:
            labels = files.labels(made)
            save_image(sheet_of(pictures, images, labels, pipe.cell), outputs.figure, {"figure": labels})
        for file, image, own in zip(outputs.files, images, made, strict=True):
            save_image(image, file, common | own)
        remember(console.compilation_cache(), signature(source, request, costs))
        content = {**common, "images": made, "sample_forwards": costs["sample_forwards"], "tflop": costs["tflop"]}
        report = report_of(outputs, content, clock)
        edited = request.editing is not None
        return report._replace(line=report.line + f"; {request.verb} by {costs['drawn_by']}" * edited)


def as_record(request: Request) -> dict[str, Any]:
    from jaxpa.request.record import to_json

    return to_json(request)


def sheet_of(pictures: Any, images: "list[Image.Image]", labels: list[str], cell: int) -> "Image.Image":
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
    if isinstance(pictures, MaskedPicture | Followed):
        return pictures.canvas
    h, w = pictures.grid
    return h * spec.cell, w * spec.cell


def combinations(request: Request, spec: Spec) -> list[dict[str, Any]]:
    """What each picture of a request is made with, in the pipeline's order: tau, seed, and the place's number."""
    seeds = request.sampling.seeds(len(request.prompts))
    taus = [show_tau(tau) for tau in request.taus(spec)]
    places = range(1, max(1, len(request.places)) + 1)
    if not request.riding(spec):
        return [{"seed": seed} for seed in seeds]
    if request.verb == "personalize":
        return [{"tau": tau, "seed": seed, "place": k} for tau, seed, k in itertools.product(taus, seeds, places)]
    return [{"tau": tau, "seed": seed} for tau, seed in itertools.product(taus, seeds)]
