"""The command that times this machine."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import numpy as np
from tyro.conf import OmitArgPrefixes, Suppress, UseAppendAction

from jaxpa.cli import console
from jaxpa.cli.command import OF_FILES, Command, spec_of
from jaxpa.config import WIDE, Rounding, Settings, flux_dev, flux_schnell
from jaxpa.errors import JaxpaError, whole
from jaxpa.request.groups import Checkpoint
from jaxpa.request.spec import Spec

if TYPE_CHECKING:
    from jaxpa.checkpoint.source import Source


class Timed(NamedTuple):
    """What is timed: a checkpoint (None: random numbers), and how it is in memory; kept: see `Parts`."""

    source: "Source | None"
    spec: Spec
    weights: Rounding = WIDE
    kept: int = 0


@dataclass(frozen=True, kw_only=True)
class Network(Checkpoint):
    """The network that is timed."""

    # Of `Checkpoint`, what the transformer alone does not need.
    redux: Suppress[str | None] = None
    keep_resident: Suppress[bool | None] = None


@dataclass(kw_only=True)
class BenchCommand(Command):
    """Time a sampling step on this machine: compile seconds, ms, and TFLOP/s, also as a share of what a plain matrix
    product reaches."""

    checkpoint: OmitArgPrefixes[UseAppendAction[Network]] = field(default_factory=Network)  # type: ignore[misc]
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
        from jaxpa.checkpoint.load import default_dtype
        from jaxpa.devices.bench import Workload, bench, format_bench

        dtype = np.dtype(self.dtype or default_dtype())
        timed = self.of_checkpoint() if self.config is None else self.of_full_size(self.config)
        settings = timed.spec.settings
        height, width = (settings.size if side is None else side for side in (self.height, self.width))
        text = settings.max_length if self.text_tokens is None else self.text_tokens
        if not self.force:
            self.require_memory(timed, timed.spec.grid(height, width), text, dtype)
        work = Workload(height, width, text, self.batch, self.steps, self.repeats)
        result = bench(self.model(timed, dtype), work, timed.spec.config.vae.downscale)
        if self.json:
            console.report(True, result, ())
        else:
            print(format_bench(result))
        return 0

    def of_checkpoint(self) -> Timed:
        """The network of --model. Raises JaxpaError for flags that it does not read."""
        from jaxpa.devices.plan import kept_of

        source = self.source()
        kept = kept_of(source)
        if not kept:
            self.refuse(["lora"], "nothing of it is kept beside the weights (see --keep-lora), so it costs no time")
        if self.double is not None or self.single is not None:
            raise JaxpaError("--double and --single would have no effect: they cut the network of --config")
        return Timed(source, spec_of(source), source.rounded(self.checkpoint.weights), kept)

    def of_full_size(self, name: Literal["dev", "schnell"]) -> Timed:
        """FLUX.1's network, or fewer blocks of it. Raises JaxpaError for flags that it does not read."""
        self.refuse([*OF_FILES, "weights"], "the numbers of --config are drawn, not read")
        config = flux_dev() if name == "dev" else flux_schnell()
        full, said = config.transformer, dict[str, int]()
        for flag, blocks, count in (
            ("--double", "num_layers", self.double),
            ("--single", "num_single_layers", self.single),
        ):
            if count is not None:
                said[blocks] = whole(flag, count, 0, getattr(full, blocks))
        return Timed(None, Spec(replace(config, transformer=replace(full, **said)), Settings()))

    def require_memory(self, timed: Timed, grid: tuple[int, int], text: int, dtype: np.dtype) -> None:
        """Raise JaxpaError where a batch of this grid and so many text tokens does not fit."""
        from jaxpa.devices.memory import Load, peak_bytes, require

        batch = whole("batch", self.batch, 1)
        held = {"itemsize": dtype.itemsize, "weights": timed.weights, "kept": timed.kept}
        load = Load(timed.spec.config, grid, text, batch, pictures=0, **held)
        need = peak_bytes(load, jax.default_backend(), ("transformer",))
        require(need, f"a batch of {batch:,}", "give a smaller --batch or size, or fewer blocks")

    def model(self, timed: Timed, dtype: np.dtype) -> Any:
        """The transformer, loaded or drawn."""
        from jaxpa.checkpoint.load import load_parts
        from jaxpa.devices.bench import random_model

        if timed.source is None:
            return random_model(timed.spec.config.transformer, dtype)
        said = self.checkpoint.weights
        return load_parts(timed.source, None, dtype, parts=("transformer",), weights=said).transformer
