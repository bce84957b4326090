"""Which runs have left their compiled programs in the cache: a name for what a run compiles, and a note beside them."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax

from jaxpa.checkpoint.load import settings_of
from jaxpa.checkpoint.source import Source
from jaxpa.devices.plan import images_of
from jaxpa.devices.sharding import read_sides
from jaxpa.presets import Preset, asks_network
from jaxpa.request.request import Request
from jaxpa.request.spec import Spec

# Of a plan: shapes, and what networks there are.
SHAPES = (
    "device", "dtype", "weights", "text_weights", "lora_bytes", "drawn_by", "height", "width", "text_tokens",
    "picture_tokens", "references", "steps",
)  # fmt: skip
SWITCHES = ("level", "path", "start", "concat", "outline", "margin", "sweeps")


def signature(source: Source, request: Request, content: dict[str, Any], mesh: str | None = None) -> str:
    """A name for a run's compiled programs: a hash of their shapes, switches, devices and version of JAX.

    content: the run's `plan`. mesh: as flags have it. What a program takes as data is left out: masks, places, seeds,
    tau, guidance, a threshold, and the switches that are numbers.
    """
    spec, said = Spec(source.config, settings_of(source)), request.sampling
    run = {
        "images": images_of(request, content["batch_size"]),
        "guided": request.guided(spec),
        "solver": said.solver,
        "cache": said.cache is not None,
        "starting": request.starting is not None,
        "scene": request.scene is not None,
        "text": request.reads_text,
        "surroundings": request.method.surroundings is not None,
        "mesh": None if mesh is None else {axis: size for axis, size in read_sides(mesh).items() if size > 1},
        "switches": _compiled_in(request.switches(spec)) if request.riding(spec) else None,
    }
    shapes = {name: content[name] for name in SHAPES}
    text = json.dumps([asdict(source.config), run, shapes, jax.__version__], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _compiled_in(preset: Preset) -> dict[str, Any]:
    """What programs depend on. Which parts, blocks and taus are chosen is data; that some are is a shape."""
    chosen = {
        "inverts": asks_network(preset),
        "parts": preset.parts != "qkv",
        "blocks": preset.blocks is not None,
        "soft": preset.soft,
        "reference_time": preset.reference_time is not None,
        "tau_blocks": bool(preset.tau_blocks),
    }
    return chosen | {name: getattr(preset, name) for name in SWITCHES}


def was_compiled(cache: Path | None, name: str) -> bool:
    """Whether a run of this signature has left its programs in the cache; None: there is no cache."""
    return cache is not None and (cache / "runs" / name).exists()


def remember(cache: Path | None, name: str) -> None:
    """Note that a run of this signature has filled the cache, if there is one."""
    if cache is None:
        return
    try:
        (cache / "runs").mkdir(parents=True, exist_ok=True)
        (cache / "runs" / name).touch()
    except OSError:  # the pictures are worth more than this note
        return
