"""The commands that make pictures: generate, personalize, inpaint, outpaint, invert."""

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import UseAppendAction

from jaxpa.cli import console
from jaxpa.cli.console import PadFlag, PlaceFlag, SubjectFlag, TauFlag
from jaxpa.cli.options import Made, Sampling
from jaxpa.errors import JaxpaError

if TYPE_CHECKING:  # the networks are imported when a command runs
    from PIL import Image

    from jaxpa.devices.timing import Clock
    from jaxpa.personalize import Preset
    from jaxpa.pipeline import Pipeline
    from jaxpa.schedule import Steps


@dataclass(kw_only=True)
class Generate(Sampling):
    """Make pictures of a prompt."""

    def make(self) -> Made:
        with console.clock() as clock:
            with clock.stage("load"):
                pipe = self.load()
            with clock.stage("sample"):
                images = pipe.generate(self.prompt, **self.arguments(), on_step=console.Progress())
        made = [{"seed": seed} for seed in self.seeds]
        return write(self, console.numbered(self.out, console.labels(made)), images, clock, pipe, {}, made)


@dataclass(kw_only=True)
class Method(Sampling):
    """The switches of Personalize Anything."""

    preset: Literal["official", "paper", "mini"] | None = None
    """The method's setting: the official code's, the paper's, or what suits the embedded model (default: the
    checkpoint's own). The switches below change it."""
    level: Literal["layer", "token"] | None = None
    """Replace what feeds queries, keys and values in every block, or the sampler's own tokens."""
    path: Literal["line", "ode", "rf"] | None = None
    """The reference's way to noise: a straight line, the model's own flow, RF inversion."""
    start: Literal["independent", "moved"] | None = None
    """Noise under the subject: its own, or the reference's inverted noise."""
    concat: Literal["zero", "target", "original", "shifted"] | None = None
    """Attend to the reference after tau, at these positions."""
    guidance_inside: float | None = None
    """Guidance of replaced tokens while t > tau; if it is embedded, of what the reference feeds them."""
    gamma: float | None = None
    """Of RF inversion, 0 to 1."""
    eta: float | None = None
    """How firmly the reference is held on its path, 0 to 1."""
    figure: bool = True
    """Also write OUT-figure.png: the inputs, their token masks, the results."""

    SWITCHES = ("level", "path", "start", "concat", "guidance_inside", "gamma", "eta")

    def check(self) -> None:
        super().check()
        self.switches()

    def switches(self) -> dict[str, Any]:
        """Those that are given. Raises JaxpaError for a bad value."""
        from jaxpa.personalize import PRESETS

        given = {name: value for name in self.SWITCHES if (value := getattr(self, name)) is not None}
        replace(PRESETS["official"], **given)
        return given if self.preset is None else {"preset": self.preset, **given}

    def figure_file(self) -> Path:
        return self.out.with_name(f"{self.out.stem}-figure.png")


@dataclass(kw_only=True)
class Personalize(Method):
    """Put the subjects of your pictures into a new one (Personalize Anything, Feng et al. 2025)."""

    subject: UseAppendAction[tuple[SubjectFlag, ...]] = ()
    """A reference; its mask is white on the subject (any size of the same aspect), or its own transparency, or found
    by --word, which names the subject. --at puts the subject's centre, or its box, there: fractions of the canvas.
    --caption says what it shows. --flip mirrors."""
    scene: str | None = None
    """A picture of the whole scene; subjects lie over it."""
    place: UseAppendAction[tuple[PlaceFlag, ...]] = ()
    """Layout: an image with the last subject here, and another for each further --place."""
    tau: tuple[TauFlag, ...] = ()
    """Replace tokens while t > tau: a flow time, or a percentage of the steps; lower keeps more of the reference.
    Several values make an image each."""
    shuffle: float | None = None
    """Perturbation: share of the subject's tokens that change places within 3 x 3 windows."""
    outline: int | None = None
    """Perturbation: side in tokens (odd) of the square that dilates or erodes the mask at random."""
    coverage: float | None = None
    """A token belongs to the subject if the mask covers this share of it."""

    SWITCHES = (*Method.SWITCHES, "shuffle", "outline", "coverage")

    def check(self) -> None:
        from jaxpa.media.images import read_image
        from jaxpa.media.subjects import has_mask, read_mask_of

        super().check()
        for subject in self.subject:
            if has_mask(subject):
                read_mask_of(subject)
            else:
                read_image(subject.image)
        if self.scene is not None:
            read_image(self.scene)

    def make(self) -> Made:
        from jaxpa.media.images import save_image
        from jaxpa.media.subjects import Subject, figure

        switches, scene = self.switches(), None if self.scene is None else Subject(self.scene)
        with console.clock() as clock:
            with clock.stage("load"):
                pipe = self.load()
            preset = pipe.preset(**switches)
            with clock.stage("sample"):
                references = pipe.references(
                    self.subject, scene, height=self.height, width=self.width, at=self.place or None,
                    coverage=preset.coverage,
                )  # fmt: skip
                images = pipe.personalize(
                    self.prompt, references, tau=self.tau or None, **self.arguments(), **switches,
                    on_step=console.Progress(),
                )  # fmt: skip
        taus = [console.show_tau(tau) for tau in self.tau or (preset.tau,)]
        made = [
            {"tau": tau, "seed": seed, "place": place}
            for tau, seed, place in itertools.product(taus, self.seeds, range(1, max(1, len(self.place)) + 1))
        ]
        labels = console.labels(made)
        extra = {
            "subjects": [str(s.image) for s in self.subject], "scene": self.scene, "switches": asdict(preset),
            "places": self.place,
        }  # fmt: skip
        files, count = console.numbered(self.out, labels), len(references.masks)
        report = write(self, files, images, clock, pipe, extra, made, preset, count, self.tau)
        if self.figure:
            save_image(figure(references, images, labels), self.figure_file())
        return report


@dataclass(kw_only=True)
class Edit(Method):
    """What changes a picture and keeps the rest."""

    image: str
    """The picture."""
    caption: str = ""
    """What the picture shows; the inversion follows it."""
    tau: TauFlag | None = None
    """Hold what is kept while t > tau: a flow time, or a percentage of the steps."""
    feather: float = 0.0
    """Pixels over which old and new are blended; 0: the kept pixels come back exactly."""

    def finish(self, pipe: "Pipeline", edit: Any, clock: "Clock", switches: dict[str, Any], tau: Any) -> Made:
        """Sample, paste, write."""
        from jaxpa.media.figures import overlay, sheet
        from jaxpa.media.images import save_image, to_image

        arguments = {**self.arguments(), "height": None, "width": None, **switches, "tau": tau}
        with clock.stage("sample"):
            images = pipe.edit(self.prompt, edit, self.feather, **arguments, on_step=console.Progress())
        preset = pipe.preset(**switches, tau=tau)
        made = [{"seed": seed} for seed in self.seeds]
        files = console.numbered(self.out, console.labels(made))
        extra = {"image": self.image, "switches": asdict(preset)}
        report = write(self, files, images, clock, pipe, extra, made, preset, 1)
        if self.figure:
            picture, references = to_image(edit.picture), edit.references(pipe.cell)
            kept = ("kept tokens", overlay(picture, references.masks[0], *references.grid))
            rows = [[("input", picture), kept, *(("result", image) for image in images)]]
            save_image(sheet(rows), self.figure_file())
        return report


@dataclass(kw_only=True)
class Inpaint(Edit):
    """Draw the masked part of a picture anew."""

    mask: str
    """White where the picture may change."""
    grow: float = 0.0
    """Pixels of the picture by which the mask is grown first."""

    def check(self) -> None:
        from jaxpa.media.images import read_image, read_mask

        super().check()
        read_mask(self.mask, read_image(self.image).size)

    def make(self) -> Made:
        from jaxpa.media.edits import prepare_edit
        from jaxpa.media.images import grow, read_image, read_mask

        switches, picture = self.switches(), read_image(self.image)
        mask = read_mask(self.mask, picture.size)
        if self.grow:
            mask = grow(mask, self.grow * mask.shape[1] / picture.width)
        with console.clock() as clock:
            with clock.stage("load"):
                pipe = self.load()
            tau = pipe.preset(**switches).inpaint_tau if self.tau is None else self.tau
            edit = prepare_edit(picture, mask, pipe.canvas(picture.size, self.height, self.width), self.caption)
            return self.finish(pipe, edit, clock, switches, tau)


@dataclass(kw_only=True)
class Outpaint(Edit):
    """Continue a picture beyond its sides."""

    pad: PadFlag
    """Pixels of the picture to add at the top, right, bottom and left."""

    def check(self) -> None:
        from jaxpa.media.edits import pad_picture
        from jaxpa.media.images import read_image

        super().check()
        pad_picture(read_image(self.image), self.pad)

    def make(self) -> Made:
        from jaxpa.media.edits import pad_picture, prepare_edit
        from jaxpa.media.images import read_image

        switches = self.switches()
        picture, mask = pad_picture(read_image(self.image), self.pad)
        with console.clock() as clock:
            with clock.stage("load"):
                pipe = self.load()
            tau = pipe.preset(**switches).outpaint_tau if self.tau is None else self.tau
            edit = prepare_edit(picture, mask, pipe.canvas(picture.size, self.height, self.width), self.caption)
            return self.finish(pipe, edit, clock, switches, tau)


@dataclass(kw_only=True)
class Invert(Sampling):
    """Walk a picture back to its noise and sample it again: how much an inversion loses.

    --prompt says what the picture shows.
    """

    image: str
    """The picture."""

    def check(self) -> None:
        from jaxpa.media.images import read_image

        super().check()
        if self.num_images != 1:
            raise JaxpaError("invert makes one image: leave --num-images at 1")
        read_image(self.image)

    def make(self) -> Made:
        from jaxpa.media.edits import prepare_edit
        from jaxpa.media.figures import sheet
        from jaxpa.media.images import psnr, read_image, save_image, to_image

        picture = read_image(self.image)
        with console.clock() as clock:
            with clock.stage("load"):
                pipe = self.load()
            height, width = pipe.canvas(picture.size, self.height, self.width)
            edit = prepare_edit(picture, None, (height, width))
            with clock.stage("sample"):
                made, _ = pipe.reconstruct(
                    picture, caption=self.prompt, steps=self.steps, height=height, width=width,
                    on_step=console.Progress(),
                )  # fmt: skip
                (ceiling,) = pipe.decode(pipe.encode_image(edit.picture[None]), height, width)
        old = to_image(edit.picture)
        error, best = psnr(old, made), psnr(old, ceiling)
        extra = {"image": self.image, "psnr": error, "psnr_autoencoder": best}
        report = write(self, [self.out], [made], clock, pipe, extra, [{}])
        rows = [
            [("input", old), (f"autoencoder\n{best:.1f} dB", ceiling), (f"inverted, resampled\n{error:.1f} dB", made)]
        ]
        save_image(sheet(rows), self.out.with_name(f"{self.out.stem}-figure.png"))
        found = f"reconstruction {error:.1f} dB; the autoencoder alone reaches {best:.1f} dB"
        return report._replace(line=f"{report.line}\njaxpa: {found}")


def write(
    command: Sampling, files: list[Path], images: "list[Image.Image]", clock: "Clock", pipe: "Pipeline",
    extra: dict[str, Any], made: Sequence[dict[str, Any]], preset: "Preset | None" = None, references: int = 0,
    taus: "Sequence[float | Steps]" = (),
) -> Made:  # fmt: skip
    """The pictures with how they were made inside, and the report."""
    from jaxpa.checkpoint.source import resolve
    from jaxpa.devices.plan import plan, remember, signature
    from jaxpa.media.images import save_image

    source = resolve(command.model, command.components, download=False)
    costs = plan(
        source, preset, taus=taus, references=references, images=len(images) // max(1, len(taus)), steps=command.steps,
        height=images[0].height, width=images[0].width, guidance=command.guidance, dtype=pipe.dtype,
    )  # fmt: skip
    guidance = pipe.settings.guidance if command.guidance is None else command.guidance
    common = {
        "prompt": command.prompt, "model": command.model, "steps": costs["steps"], "width": costs["width"],
        "height": costs["height"], "guidance": guidance, **extra,
    }  # fmt: skip
    for file, image, own in zip(files, images, made, strict=True):
        save_image(image, file, common | own)
    remember(console.compilation_cache(), signature(source, costs, preset))
    content = {
        "files": [str(file) for file in files], **common, "images": made,
        "sample_forwards": costs["sample_forwards"], "tflop": costs["tflop"],
        "seconds": {name: round(value, 3) for name, value in clock.seconds.items()},
        "compile_seconds": round(clock.compile_seconds, 3), "programs": clock.programs, "cached_programs": clock.cached,
    }  # fmt: skip
    total = ", ".join(f"{name} {value:.1f} s" for name, value in clock.seconds.items())
    line = f"jaxpa: {', '.join(map(str, files))}: {total}, of which compiling {clock.compile_seconds:.1f} s"
    return Made(content, line)
