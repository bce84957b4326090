"""The command that walks a picture to its noise and back."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tyro.conf import OmitArgPrefixes, Suppress

from jaxpa.cli import console
from jaxpa.cli.command import Made, Making, report_of, spec_of
from jaxpa.cli.files import Outputs
from jaxpa.request.groups import Sampling, Seeds
from jaxpa.request.request import Request
from jaxpa.solvers import Name

if TYPE_CHECKING:
    from PIL import Image


class Walk(NamedTuple):
    """A picture, its canvas (height, width), and the files to write."""

    picture: "Image.Image"
    canvas: tuple[int, int]
    outputs: Outputs


@dataclass(frozen=True, kw_only=True)
class Walking(Sampling):
    """How the picture is walked to its noise and back."""

    # What an inversion does not read of `Sampling`.
    seed: Suppress[Seeds] = 0
    num_images: Suppress[int] = 1
    guidance: Suppress[float | None] = None
    solver: Suppress[Name] = "euler"
    cache: Suppress[float | None] = None
    negative_prompt: Suppress[str | None] = None
    batch_size: Suppress[int | None] = None


@dataclass(kw_only=True)
class InvertCommand(Making):
    """Walk a picture back to its noise and sample it again: how much an inversion loses."""

    image: Path
    """The picture."""
    prompt: str
    """What the picture shows."""
    figure: bool = True  # type: ignore[misc]
    """Also write OUT-figure.png: the picture, what the autoencoder makes of it, and the result."""
    sampling: OmitArgPrefixes[Walking] = field(default_factory=Walking)

    def prepare(self) -> Walk:
        from jaxpa.media.images import read_image

        spec, picture = spec_of(self.source(download=True)), read_image(self.image)
        spec.check_text_alone("invert")
        canvas = spec.canvas(picture.size, self.sampling.height, self.sampling.width)
        self.require_memory(Request(prompt=self.prompt, sampling=self.sampling), canvas)
        return Walk(picture, canvas, self.settle([{}]))

    def inputs(self) -> list[Path]:
        return [self.image]

    def make(self, prepared: Walk) -> Made:
        from jaxpa.media.edits import prepare_edit
        from jaxpa.media.figures import sheet
        from jaxpa.media.images import psnr, to_image

        picture, (height, width), outputs = prepared
        with console.clock() as clock:
            with clock.stage("load"):
                pipe = self.load()
            edit = prepare_edit(picture, None, (height, width))
            with clock.stage("sample"):
                said = {name: getattr(self.sampling, name) for name in ("steps", "sigmas", "shift")}
                said |= {"height": height, "width": width}
                made, _ = pipe.reconstruct(picture, caption=self.prompt, on_step=console.Progress(), **said)
                (ceiling,) = pipe.decode(pipe.encode_image(edit.picture[None]), height, width)
        old = to_image(edit.picture)
        error, best = psnr(old, made), psnr(old, ceiling)
        content = {"prompt": self.prompt, "model": self.checkpoint.model, "image": str(self.image)}
        content |= {"psnr": error, "psnr_autoencoder": best, "height": height, "width": width}
        shown = content if self.keep_paths else content | self.named_alone()
        labels = ("input", f"autoencoder\n{best:.1f} dB", f"inverted, resampled\n{error:.1f} dB")
        row = list(zip(labels, (old, ceiling, made), strict=True))
        outputs = self.save(outputs, [{}], [(made, shown)], lambda: (sheet([row]), shown))
        report = report_of(outputs, content, clock)
        found = f"reconstruction {error:.1f} dB; the autoencoder alone reaches {best:.1f} dB"
        return report._replace(line=f"{report.line}; {found}")

    def named_alone(self) -> dict[str, Any]:
        """The files and the model without the folders that they lie in."""
        from jaxpa.request.provenance import model_name

        return {"image": self.image.name, "model": model_name(self.checkpoint.model)}
