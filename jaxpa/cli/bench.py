"""The command that times this machine."""

from dataclasses import dataclass, replace
from typing import Literal

from jaxpa.cli import console
from jaxpa.cli.command import Command


@dataclass(kw_only=True)
class BenchCommand(Command):
    """Time a sampling step on this machine: compile seconds, ms, TFLOP/s, and the share of a matrix product's."""

    config: Literal["dev", "schnell"] | None = None
    """Random weights of FLUX.1's full size instead of --model."""
    double: int | None = None
    """Fewer double blocks than --config has, for machines that cannot hold the whole."""
    single: int | None = None
    """Fewer single blocks."""
    height: int | None = None
    """Height of the canvas in pixels."""
    width: int | None = None
    """Width of the canvas in pixels."""
    text_tokens: int | None = None
    """Text tokens of a prompt."""
    batch: int = 1
    """Pictures that are sampled together."""
    steps: int = 4
    """Steps of a loop that is timed."""
    repeats: int = 3
    """How often each loop is timed."""

    def run(self) -> int:
        from jaxpa.checkpoint.load import default_dtype, load_parts
        from jaxpa.config import flux_dev, flux_schnell
        from jaxpa.devices.bench import bench, format_bench, random_model

        dtype = self.dtype or default_dtype()
        if self.config is None:
            parts = load_parts(self.checkpoint.model, self.checkpoint.components, dtype, parts=("transformer",))
            model, vae = parts.transformer, parts.config.vae
            size, text = parts.settings.size, parts.settings.max_length
        else:
            config = flux_dev() if self.config == "dev" else flux_schnell()
            blocks = {"num_layers": self.double, "num_single_layers": self.single}
            shape = replace(config.transformer, **{key: count for key, count in blocks.items() if count is not None})
            model, vae, size, text = random_model(shape, dtype), config.vae, 1024, 512
        result = bench(
            model,
            size if self.height is None else self.height,
            size if self.width is None else self.width,
            text if self.text_tokens is None else self.text_tokens,
            self.batch,
            self.steps,
            vae.downscale,
            self.repeats,
        )
        if self.json:
            console.report(True, result, ())
        else:
            print(format_bench(result))
        return 0
