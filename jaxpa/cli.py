"""The `jaxpa` command. `jaxpa COMMAND --help` explains each; bad input ends in one line on stderr and status 2."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro
from tyro.conf import Positional, UseAppendAction

from jaxpa import console
from jaxpa.console import SubjectFlag, TauFlag
from jaxpa.errors import JaxpaError

if TYPE_CHECKING:  # the networks are imported when a command runs
    from PIL import Image

    from jaxpa.pipeline import Pipeline
    from jaxpa.timing import Clock

Auto = Literal["auto", "float32", "bfloat16"]


@dataclass(kw_only=True)
class Checkpoint:
    """Which networks, and how to report."""

    model: str = "mini"
    """`mini`, a diffusers or converted folder, a .safetensors file of the original release, or a hub id."""
    components: str | None = None
    """Where the rest comes from, if --model is a single file: a folder or a hub id."""
    dtype: Auto = "auto"
    """Of the weights. auto: float32 on CPU, bfloat16 on GPU and TPU."""
    json: bool = False
    """One JSON line on stdout; everything else goes to stderr."""

    def load(self) -> "Pipeline":
        from jaxpa.pipeline import load

        return load(self.model, None if self.dtype == "auto" else self.dtype, components=self.components)


@dataclass(kw_only=True)
class Sampling(Checkpoint):
    """What every command that makes pictures takes."""

    prompt: str
    """What the picture shows."""
    out: Path = Path("jaxpa.png")
    """The file to write (.png, .jpg, .webp). Several images get their seed into their name."""
    seed: int = 0
    """Of the first image; the next ones count on."""
    num_images: int = 1
    steps: int | None = None
    """Default: what suits the checkpoint, as for guidance, height and width."""
    guidance: float | None = None
    height: int | None = None
    width: int | None = None
    negative_prompt: str | None = None
    """What the picture should not show; for checkpoints without embedded guidance."""

    def check(self) -> list[int]:
        """Refuse what can be refused before anything loads; the seeds."""
        from jaxpa.images import check_output
        from jaxpa.model import MAX_STEPS

        check_output(self.out)
        if self.num_images < 1:
            raise JaxpaError(f"--num-images must be at least 1, not {self.num_images}")
        if self.steps is not None and not 1 <= self.steps <= MAX_STEPS:
            raise JaxpaError(f"--steps must be 1 to {MAX_STEPS}, not {self.steps}")
        return [self.seed + k for k in range(self.num_images)]

    def arguments(self) -> dict[str, Any]:
        """The keywords that every sampling method of the pipeline takes."""
        names = ("seed", "num_images", "steps", "guidance", "height", "width", "negative_prompt")
        return {name: getattr(self, name) for name in names}


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
        _write(self, files, images, clock, {})
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
        _write(self, files, images, clock, extra)
        if self.figure:
            from jaxpa.images import save_image
            from jaxpa.subjects import figure

            name = self.out.with_name(f"{self.out.stem}-figure.png")
            save_image(figure(references, images), name)
            print(f"jaxpa: {name}: references, token masks, targets, results", file=sys.stderr)
        return 0


@dataclass
class Convert:
    """Write a checkpoint in the layout that the networks use: it loads faster, without transposing."""

    source: Positional[str]
    """Any checkpoint that --model takes."""
    folder: Positional[Path]
    """A new folder."""
    components: str | None = None
    """Where the rest comes from, if SOURCE is a single file."""
    dtype: Literal["stored", "float32", "bfloat16"] = "stored"
    """Of the tensors that are written."""

    def run(self) -> int:
        from jaxpa.checkpoint import convert

        dtype = None if self.dtype == "stored" else self.dtype
        folder = convert(self.source, self.folder, self.components, dtype, progress=console.Progress())
        print(f"jaxpa: wrote {folder}; use it with --model {folder}", file=sys.stderr)
        return 0


@dataclass
class Info:
    """Say what a checkpoint holds, from its headers alone; status 1 if it would not load."""

    source: Positional[str] = "mini"
    """A pipeline, one component's folder, a single file, or a hub id."""
    components: str | None = None
    """Where the rest comes from, if SOURCE is a single file."""
    json: bool = False
    """One JSON line instead of a table."""

    def run(self) -> int:
        from jaxpa.report import format_info, info

        content = info(self.source, self.components)
        if self.json:
            console.report(True, content, ())
        else:
            print(format_info(content))
        return 0 if content["loads"] else 1


COMMANDS = {"generate": Generate, "personalize": Personalize, "convert": Convert, "info": Info}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; its exit status."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        command: Any = tyro.extras.subcommand_cli_from_dict(
            COMMANDS, prog="jaxpa", description=__doc__, args=console.group_subjects(argv)
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
    command: Sampling, files: list[Path], images: "list[Image.Image]", clock: "Clock", extra: dict[str, Any]
) -> None:
    """The pictures with how they were made inside, and the report."""
    from jaxpa.images import save_image

    made = {
        "prompt": command.prompt,
        "model": command.model,
        "steps": command.steps,
        "guidance": command.guidance,
        **extra,
    }
    for file, image, seed in zip(files, images, range(command.seed, command.seed + len(files)), strict=True):
        save_image(image, file, {**made, "seed": seed})
    seconds = {name: round(value, 3) for name, value in clock.seconds.items()}
    content = {
        "files": [str(file) for file in files], **made, "seed": command.seed, "seconds": seconds,
        "compile_seconds": round(clock.compile_seconds, 3), "programs": clock.programs, "cached_programs": clock.cached,
    }  # fmt: skip
    total = ", ".join(f"{name} {value:.1f} s" for name, value in clock.seconds.items())
    line = f"jaxpa: {', '.join(map(str, files))}: {total}, of which compiling {clock.compile_seconds:.1f} s"
    console.report(command.json, content, [line])
