"""The commands that make no picture: plan, convert, bench, info."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from jaxpa.cli import console
from jaxpa.cli.console import TauFlag
from jaxpa.cli.options import Checkpoint


@dataclass(kw_only=True)
class Plan(Checkpoint):
    """Say what a run would cost, before anything loads: memory, sample-forwards, FLOPs, cached programs."""

    references: int = 1
    """Subjects, and a scene; 0: plain generation."""
    num_images: int = 1
    steps: int | None = None
    guidance: float | None = None
    height: int | None = None
    width: int | None = None
    tau: TauFlag | None = None
    preset: Literal["official", "paper", "mini"] | None = None
    level: Literal["layer", "token"] | None = None

    def run(self) -> int:
        from jaxpa.checkpoint.load import settings_of
        from jaxpa.checkpoint.source import resolve
        from jaxpa.devices.plan import format_plan, plan, signature, was_compiled
        from jaxpa.personalize import PRESETS

        source = resolve(self.model, self.components, download=False)
        preset = PRESETS[self.preset or settings_of(source).preset]
        preset = replace(preset, tau=self.tau or preset.tau, level=self.level or preset.level)
        switches = preset if self.references else None
        content = plan(
            source, switches, references=self.references, images=self.num_images, steps=self.steps,
            height=self.height, width=self.width, guidance=self.guidance,
            dtype=None if self.dtype == "auto" else self.dtype,
        )  # fmt: skip
        content["compiled"] = was_compiled(console.compilation_cache(), signature(source, content, switches))
        if self.json:
            console.report(True, content, ())
        else:
            print(format_plan(content))
        return 0


@dataclass(kw_only=True)
class Bench(Checkpoint):
    """Time a sampling step on this machine: compile seconds, ms, TFLOP/s, and the share of a matrix product's."""

    config: Literal["dev", "schnell"] | None = None
    """Random weights of FLUX.1's full size instead of --model."""
    double: int | None = None
    """Fewer double blocks than --config has, for machines that the whole does not fit."""
    single: int | None = None
    """Fewer single blocks."""
    height: int | None = None
    width: int | None = None
    text_tokens: int | None = None
    batch: int = 1
    steps: int = 4
    repeats: int = 3

    def run(self) -> int:
        from jaxpa.checkpoint.load import default_dtype, load_parts
        from jaxpa.config import flux_dev, flux_schnell
        from jaxpa.devices.bench import bench, format_bench, random_model

        dtype = default_dtype() if self.dtype == "auto" else self.dtype
        if self.config is None:
            parts = load_parts(self.model, self.components, dtype, parts=("transformer",))
            model, vae, size, text = (
                parts.transformer,
                parts.config.vae,
                parts.settings.size,
                parts.settings.max_length,
            )
        else:
            config = flux_dev() if self.config == "dev" else flux_schnell()
            blocks = {"num_layers": self.double, "num_single_layers": self.single}
            shape = replace(config.transformer, **{key: count for key, count in blocks.items() if count is not None})
            model, vae, size, text = random_model(shape, dtype), config.vae, 1024, 512
        result = bench(
            model, self.height or size, self.width or size, self.text_tokens or text, self.batch, self.steps,
            vae.downscale, self.repeats,
        )  # fmt: skip
        if self.json:
            console.report(True, result, ())
        else:
            print(format_bench(result))
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
        from jaxpa.checkpoint.load import convert

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
        from jaxpa.checkpoint.report import format_info, info

        content = info(self.source, self.components)
        if self.json:
            console.report(True, content, ())
        else:
            print(format_info(content))
        return 0 if content["loads"] else 1
