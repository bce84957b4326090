"""What a personalised picture will cost, from a checkpoint's headers alone: memory, sample-forwards, FLOPs."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpa.checkpoint.load import default_dtype, settings_of
from jaxpa.checkpoint.source import Source
from jaxpa.devices import cost
from jaxpa.errors import JaxpaError
from jaxpa.personalize import Preset
from jaxpa.schedule import Steps, flow_times, steps_above, tau_time
from jaxpa.tokens import PATCH


def plan(
    source: Source, preset: Preset | None, *, taus: Sequence[float | Steps] = (), references: int = 1, images: int = 1,
    steps: int | None = None, height: int | None = None, width: int | None = None, guidance: float | None = None,
    dtype: Any = None,
) -> dict[str, Any]:  # fmt: skip
    """The cost of `images` images at each tau with `references` references (0: plain generation) under a preset.

    taus: None given: the preset's. sample_forwards counts rows of tokens that ask the network once; classifier-free
    guidance asks twice for an image. activation_bytes is an estimate: the widest arrays of one block for all rows.
    """
    settings, config = settings_of(source), source.config
    cell = PATCH * config.vae.downscale
    height, width = height or settings.size, width or settings.size
    if height % cell or width % cell:
        raise JaxpaError(f"{width} x {height} pixels cannot be cut into tokens of {cell} x {cell}")
    n, m = height * width // cell**2, settings.max_length
    times = flow_times(steps or settings.steps, n, config.scheduler)
    count, guided = len(times) - 1, not config.transformer.guidance_embeds and (guidance or settings.guidance) > 1
    gates, inversion, context, level = [1.0], 0, 0, "layer"
    if preset is not None and references:
        gates = [tau_time(tau, times) for tau in taus or (preset.tau,)]
        inversion = count if preset.path == "ode" or (preset.path == "rf" and preset.gamma < 1) else 0
        context, level = references * n if preset.concat else 0, preset.level
    above = [int(steps_above(jnp.asarray(times), gate)) for gate in gates]
    early = sum(cost.sample_forwards(a, a, references, images, level, False, guided=guided) for a in above)
    late = sum(cost.sample_forwards(0, count - a, references, images, level, context > 0, guided=guided) for a in above)
    inverted = references * inversion
    per_forward = cost.transformer_flops(config.transformer, n, m)
    kind = np.dtype(default_dtype() if dtype is None else dtype)
    weights = cost.weight_bytes(config, kind.itemsize)
    rows = references * (level == "layer") + images * (1 + guided)
    activations = rows * (n + m) * (3 + 4 + 5 + 2) * config.transformer.width * kind.itemsize
    text = cost.t5_flops(config.text_encoder_2, m) + cost.clip_flops(config.text_encoder)
    pictures = references * cost.autoencoder_flops(config.vae, height, width, "encode")
    pictures += len(gates) * images * cost.autoencoder_flops(config.vae, height, width, "decode")
    flops = (early + inverted) * per_forward + late * cost.transformer_flops(config.transformer, n, m, context)
    return {
        "model": source.name, "dtype": kind.name, "device": jax.devices()[0].device_kind,
        "height": height, "width": width, "image_tokens": n, "text_tokens": m, "steps": count,
        "references": references, "images": images * len(gates), "level": level if references else None,
        "tau": gates if references else [], "steps_above_tau": above, "inversion_steps": inversion,
        "sample_forwards": early + late + inverted, "tflop_per_forward": per_forward / 1e12,
        "tflop": (flops + (1 + references + guided) * text + pictures) / 1e12, "weight_bytes": weights,
        "activation_bytes": activations, "memory_bytes": sum(weights.values()) + activations,
    }  # fmt: skip


def format_plan(content: dict[str, Any]) -> str:
    """The dictionary of `plan` as a small table."""
    c, gib = content, 2.0**30
    tau = "".join(f", {a} of them above tau {t:.3g}" for a, t in zip(c["steps_above_tau"], c["tau"], strict=False))
    inversion = f", {c['inversion_steps']} of inversion" if c["inversion_steps"] else ""
    rows = {
        "model": f"{c['model']}, {c['dtype']} on {c['device']}",
        "input": f"{c['references']} references, {c['images']} images of {c['width']} x {c['height']}: "
        f"{c['image_tokens']} image + {c['text_tokens']} text tokens",
        "steps": f"{c['steps']}{tau}{inversion}",
        "forwards": f"{c['sample_forwards']} sample-forwards of {c['tflop_per_forward']:.4g} TFLOP",
        "work": f"{c['tflop']:.4g} TFLOP in all, text and pictures included",
        "memory": f"{c['memory_bytes'] / gib:.2f} GiB: weights {sum(c['weight_bytes'].values()) / gib:.2f}, "
        f"activations about {c['activation_bytes'] / gib:.2f}",
    }
    if "compiled" in c:
        rows["programs"] = "compiled before, from the cache" if c["compiled"] else "to be compiled on the first run"
    return "\n".join(f"{name:<9}{value}" for name, value in rows.items())


def signature(source: Source, content: dict[str, Any], preset: Preset | None) -> str:
    """A name for the compiled programs of such a run: what shapes and switches, on which device, by which JAX."""
    switches = (
        {} if preset is None else {k: v for k, v in asdict(preset).items() if k in ("level", "path", "start", "concat")}
    )
    shapes = {k: content[k] for k in ("dtype", "device", "height", "width", "steps", "references", "images")}
    text = json.dumps([asdict(source.config), switches, shapes, jax.__version__], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def was_compiled(cache: Path, name: str) -> bool:
    """Whether a run of this signature has left its programs in the cache."""
    return (cache / "runs" / name).exists()


def remember(cache: Path, name: str) -> None:
    """Note that a run of this signature has filled the cache."""
    (cache / "runs").mkdir(parents=True, exist_ok=True)
    (cache / "runs" / name).touch()
