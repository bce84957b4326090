"""Flags that commands share."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from jaxpa.cli import console
from jaxpa.errors import JaxpaError

if TYPE_CHECKING:  # the networks are imported when a command runs
    from jaxpa.pipeline import Pipeline

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
        return _load(self.model, None if self.dtype == "auto" else self.dtype, self.components)


@lru_cache(maxsize=1)  # the next command of a batch finds the networks, and their compiled programs, still there
def _load(model: str, dtype: str | None, components: str | None) -> "Pipeline":
    from jaxpa.pipeline import load

    return load(model, dtype, components=components)


class Made(NamedTuple):
    """What a command has written: for --json, and in a line."""

    content: dict[str, Any]
    line: str


@dataclass(kw_only=True)
class Making(Checkpoint):
    """A command that writes pictures."""

    out: Path
    """The file to write."""

    def check(self) -> None:
        """Refuse what can be refused before anything loads: a typing error should not cost the loading."""
        from jaxpa.media.images import check_output

        check_output(self.out)

    def make(self) -> Made:
        """Make and write the pictures."""
        raise NotImplementedError

    def run(self) -> int:
        self.check()
        content, line = self.make()
        console.report(self.json, content, [line])
        return 0


@dataclass(kw_only=True)
class Sampling(Making):
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

    @property
    def seeds(self) -> list[int]:
        return [self.seed + k for k in range(self.num_images)]

    def check(self) -> None:
        from jaxpa.model import MAX_STEPS

        super().check()
        if self.num_images < 1:
            raise JaxpaError(f"--num-images must be at least 1, not {self.num_images}")
        if self.steps is not None and not 1 <= self.steps <= MAX_STEPS:
            raise JaxpaError(f"--steps must be 1 to {MAX_STEPS}, not {self.steps}")

    def arguments(self) -> dict[str, Any]:
        """The keywords that every sampling method of the pipeline takes."""
        names = ("seed", "num_images", "steps", "guidance", "height", "width", "negative_prompt")
        return {name: getattr(self, name) for name in names}
