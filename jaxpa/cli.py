"""FLUX.1 and Personalize Anything in JAX. `jaxpa COMMAND --help` explains each command.

Bad input ends in one line on stderr and status 2.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro
from tyro.conf import UseAppendAction

from jaxpa import console
from jaxpa.console import SubjectFlag, TauFlag
from jaxpa.errors import JaxpaError
from jaxpa.options import Sampling
from jaxpa.tools import Bench, Convert, Info, Plan

if TYPE_CHECKING:  # the networks are imported when a command runs
    from PIL import Image

    from jaxpa.personalize import Preset
    from jaxpa.pipeline import Pipeline
    from jaxpa.timing import Clock


@dataclass(kw_only=True)
class Generate(Sampling):
    """Make pictures of a prompt."""

    def run(self) -> int:
        files = console.numbered(self.out, self.check())
        with _clock() as clock:
            with clock.stage("load"):
                pipe = self.load()
            with clock.stage("sample"):
                images = pipe.generate(self.prompt, **self.arguments(), on_step=console.Progress())
        _write(self, files, images, clock, pipe, {})
        return 0


@dataclass(kw_only=True)
class Personalize(Sampling):
    """Put the subjects of your pictures into a new one (Personalize Anything, Feng et al. 2025)."""

    subject: UseAppendAction[tuple[SubjectFlag, ...]] = ()
    """A reference; its mask is white on the subject (any size of the same aspect), or its own transparency. --at puts
    the subject's centre, or its box, there: fractions of the canvas. --caption says what it shows. --flip mirrors."""
    scene: str | None = None
    """A picture of the whole scene; subjects lie over it."""
    tau: TauFlag | None = None
    """Replace tokens while t > tau: a flow time, or a percentage of the steps. Lower keeps more of the reference."""
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
    """Guidance of replaced tokens (without embedded guidance)."""
    gamma: float | None = None
    """Of RF inversion, 0 to 1."""
    eta: float | None = None
    """How firmly the reference is held on its path, 0 to 1."""
    figure: bool = True
    """Also write OUT-figure: references, their token masks, the target region, the result."""

    SWITCHES = ("preset", "level", "path", "start", "concat", "guidance_inside", "gamma", "eta")

    def run(self) -> int:
        from jaxpa.images import read_image
        from jaxpa.personalize import PRESETS
        from jaxpa.subjects import Subject, read_mask_of

        files = console.numbered(self.out, self.check())
        for subject in self.subject:  # a typing error should not cost the loading of a large model
            read_mask_of(subject)
        scene = None if self.scene is None else Subject(self.scene)
        if scene is not None:
            read_image(scene.image)
        switches = {name: value for name in self.SWITCHES if (value := getattr(self, name)) is not None}
        replace(PRESETS["official"], **{name: value for name, value in switches.items() if name != "preset"})
        with _clock() as clock:
            with clock.stage("load"):
                pipe = self.load()
            with clock.stage("sample"):
                references = pipe.references(self.subject, scene, height=self.height, width=self.width)
                images = pipe.personalize(
                    self.prompt, references, tau=self.tau, **self.arguments(), **switches, on_step=console.Progress()
                )
        preset = pipe.preset(**switches, tau=self.tau)
        extra = {"subjects": [str(s.image) for s in self.subject], "scene": self.scene, "switches": asdict(preset)}
        _write(self, files, images, clock, pipe, extra, preset, len(references.masks))
        if self.figure:
            from jaxpa.images import save_image
            from jaxpa.subjects import figure

            name = self.out.with_name(f"{self.out.stem}-figure.png")
            save_image(figure(references, images), name)
            print(f"jaxpa: {name}: references, token masks, targets, results", file=sys.stderr)
        return 0


COMMANDS = {
    "generate": Generate,
    "personalize": Personalize,
    "plan": Plan,
    "convert": Convert,
    "bench": Bench,
    "info": Info,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; its exit status."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        command: Any = tyro.extras.subcommand_cli_from_dict(
            COMMANDS, prog="jaxpa", description=(__doc__ or "").partition("\n")[0], args=console.group_subjects(argv)
        )
        with console.one_line_warnings():
            return command.run()
    except JaxpaError as error:
        print(f"jaxpa: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("jaxpa: stopped", file=sys.stderr)
        return 130


def _clock() -> "Clock":
    from jaxpa.timing import Clock

    console.compilation_cache()
    return Clock()


def _write(
    command: Sampling, files: list[Path], images: "list[Image.Image]", clock: "Clock", pipe: "Pipeline",
    extra: dict[str, Any], preset: "Preset | None" = None, references: int = 0,
) -> None:  # fmt: skip
    """The pictures with how they were made inside, and the report."""
    from jaxpa.images import save_image
    from jaxpa.plan import plan, remember, signature
    from jaxpa.source import resolve

    source = resolve(command.model, command.components, download=False)
    costs = plan(
        source, preset, references=references, images=len(images), steps=command.steps, height=command.height,
        width=command.width, guidance=command.guidance, dtype=pipe.dtype,
    )  # fmt: skip
    guidance = pipe.settings.guidance if command.guidance is None else command.guidance
    made = {
        "prompt": command.prompt, "model": command.model, "steps": costs["steps"], "width": costs["width"],
        "height": costs["height"], "guidance": guidance, **extra,
    }  # fmt: skip
    for file, image, seed in zip(files, images, range(command.seed, command.seed + len(files)), strict=True):
        save_image(image, file, {**made, "seed": seed})
    remember(console.compilation_cache(), signature(source, costs, preset))
    content = {
        "files": [str(file) for file in files], **made, "seed": command.seed,
        "sample_forwards": costs["sample_forwards"], "tflop": costs["tflop"],
        "seconds": {name: round(value, 3) for name, value in clock.seconds.items()},
        "compile_seconds": round(clock.compile_seconds, 3), "programs": clock.programs, "cached_programs": clock.cached,
    }  # fmt: skip
    total = ", ".join(f"{name} {value:.1f} s" for name, value in clock.seconds.items())
    line = f"jaxpa: {', '.join(map(str, files))}: {total}, of which compiling {clock.compile_seconds:.1f} s"
    console.report(command.json, content, [line])
