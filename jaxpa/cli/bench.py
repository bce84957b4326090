"""The command that times this machine."""

from dataclasses import dataclass, replace
from typing import Literal

from jaxpa.cli import console
from jaxpa.cli.command import Command
from jaxpa.errors import JaxpaError, whole


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
    force: bool = False
    """Run what does not seem to fit in memory."""

    def run(self) -> int:
        import jax
        import numpy as np

        from jaxpa.checkpoint.load import default_dtype, load_parts, settings_of
        from jaxpa.config import WIDE, Settings, flux_dev, flux_schnell
        from jaxpa.devices.bench import Workload, bench, format_bench, random_model
        from jaxpa.devices.memory import Load, peak_bytes, require
        from jaxpa.devices.plan import kept_of
        from jaxpa.request.spec import Spec

        dtype = np.dtype(self.dtype or default_dtype())
        source = None if self.config is not None else self.source()
        kept = 0 if source is None else kept_of(source)
        if self.checkpoint.lora and not kept:
            raise JaxpaError(
                "--lora would have no effect: a merged one costs no time. Leave it out, or --keep-lora yes"
            )
        if self.config is not None and self.checkpoint.weights is not None:
            raise JaxpaError("--weights would have no effect: the numbers of --config are drawn, not read")
        if source is not None:
            if self.double is not None or self.single is not None:
                raise JaxpaError("--double and --single would have no effect: they cut the network of --config")
            config, settings = source.config, settings_of(source)
            weights = source.rounded(self.checkpoint.weights)
        else:
            weights = WIDE
            config, settings = flux_dev() if self.config == "dev" else flux_schnell(), Settings()
            blocks = {"num_layers": self.double, "num_single_layers": self.single}
            said = {name: whole(name, count) for name, count in blocks.items() if count is not None}
            config = replace(config, transformer=replace(config.transformer, **said))
        height, width = (settings.size if side is None else side for side in (self.height, self.width))
        text = settings.max_length if self.text_tokens is None else self.text_tokens
        if not self.force:
            grid = Spec(config, settings).grid(height, width)
            load = Load(
                config,
                grid,
                text,
                whole("batch", self.batch, 1),
                pictures=0,
                itemsize=dtype.itemsize,
                weights=weights,
                kept=kept,
            )
            need = peak_bytes(load, jax.default_backend(), ("transformer",))
            require(need, f"a batch of {self.batch:,}", "give a smaller --batch or size, or fewer blocks")
        if source is not None:
            parts = load_parts(source, None, dtype, parts=("transformer",), weights=self.checkpoint.weights)
            model = parts.transformer
        else:
            model = random_model(config.transformer, dtype)
        work = Workload(height, width, text, self.batch, self.steps, self.repeats)
        result = bench(model, work, config.vae.downscale)
        if self.json:
            console.report(True, result, ())
        else:
            print(format_bench(result))
        return 0
