"""What weights of eight bits cost: `python examples/measure_weights.py --out weights-of-8-bits.json`.

Three questions, the last on blocks as wide as FLUX.1's. How far is `mini`'s velocity from that of float32 weights, on
the way of a picture? How far are its pictures, and is a subject that is moved still the subject? And how far are two
random blocks of width 3072 (one double, one single), beside what bfloat16 costs?
"""

import gc
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import jaxpa
from jaxpa.checkpoint.keys import component
from jaxpa.checkpoint.residence import path_of
from jaxpa.config import TransformerConfig, flux_dev
from jaxpa.devices.bench import random_model
from jaxpa.evaluation.evaluate import correlation, moved
from jaxpa.layers import Linear, Numbered
from jaxpa.media import images
from jaxpa.pipeline import Pipeline
from jaxpa.quantised import DTYPES, Quantised, quantise
from jaxpa.tokens import grid_positions
from jaxpa.transformer import Flux, FluxConditions

PICTURES = Path(__file__).parent / "pictures"
KINDS = ("bfloat16", "int8", "fp8", "w8a8")
TIMES = (0.95, 0.8, 0.6, 0.4, 0.2, 0.05)
PROMPTS = [
    "a red car on a beach",
    "a striped blue fish in the snow",
    "a green mushroom under a night sky",
    "a yellow house in a meadow",
]


@dataclass(frozen=True)
class Options:
    out: Path | None = None
    """A JSON file for the figures."""
    seeds: int = 8
    """Pictures of each kind."""
    width: int = 3072
    """Of the random blocks; 0 leaves them out."""
    tokens: int = 64


def loaded(kind: str) -> Pipeline:
    """mini with weights of a kind; it computes in float32 whatever they are, so that the weights alone differ."""
    if kind in DTYPES:
        return jaxpa.load("mini", "float32", weights=kind)  # type: ignore[arg-type]
    pipe = jaxpa.load("mini", "float32")
    if kind == "bfloat16":
        rounded = {name: rounded_blocks(name, getattr(pipe.parts, name)) for name in ("transformer", "text_encoder_2")}
        pipe = replace(pipe, parts=replace(pipe.parts, **rounded))  # type: ignore[type-var]
    return pipe


def rounded_blocks(name: str, network: Any) -> Any:
    """The parameters that would have eight bits, rounded to bfloat16 instead."""
    described = component(name, network.config)

    def visit(path: Any, x: jax.Array) -> jax.Array:
        return x.astype(jnp.bfloat16).astype(x.dtype) if described.rounds(path_of(path)) else x

    return jax.tree_util.tree_map_with_path(visit, network)


def apart(got: Any, want: Any) -> float:
    """Root of the mean squared difference, as a share of that of the truth."""
    got, want = (np.asarray(x, np.float64) for x in (got, want))
    return float(np.sqrt(np.mean((got - want) ** 2) / np.mean(want**2)))


def velocities(pipe: Pipeline, text: Any, path: np.ndarray) -> np.ndarray:
    """At every flow time, from the same tokens: (T, B, N, C)."""
    velocity = pipe.velocity(text)
    ask = jax.jit(lambda v, x, t: v(x, t))
    return np.stack([ask(velocity, x, np.full(len(x), t, np.float32)) for x, t in zip(path, TIMES, strict=True)])


def on_mini(options: Options) -> dict[str, Any]:
    """Figures of the embedded checkpoint."""
    true = loaded("float32")
    drawn = true.generate(PROMPTS)
    x0 = np.asarray(true.encode_image(drawn))
    noise = np.asarray(true.noise(np.arange(len(PROMPTS), dtype=np.uint32), true.grid()))
    path = np.stack([(1 - t) * x0 + t * noise for t in TIMES]).astype(np.float32)
    subject = jaxpa.Subject(PICTURES / "car.png", mask=PICTURES / "car-mask.png", at=(0.35, 0.6))
    references = true.references([subject])
    target = moved(references, subject)
    found: dict[str, dict[str, Any]] = {}
    for kind in ("float32", *KINDS):
        pipe = loaded(kind)
        text = pipe.encode_text(PROMPTS)
        v = velocities(pipe, true.encode_text(PROMPTS), path)
        seeds = tuple(range(options.seeds))
        pictures = pipe.generate([PROMPTS[k % len(PROMPTS)] for k in seeds], seed=seeds)
        own = pipe.personalize("a car on a snowy field", [subject], seed=seeds)
        arrays = np.stack([np.asarray(one, np.float64) for one in (*pictures, *own)])
        kept = [
            correlation(images.to_array(one, one.height, one.width), target.expected, target.subject) for one in own
        ]
        found[kind] = {"velocity": v, "text": np.asarray(text.txt), "pictures": arrays, "identity": kept}
    want = found["float32"]
    report: dict[str, Any] = {"float32": {"identity": float(np.mean(want["identity"]))}}
    for kind in KINDS:
        got = found[kind]
        far = np.abs(got["pictures"] - want["pictures"]).mean((1, 2, 3))
        report[kind] = {
            "velocity": {str(t): apart(got["velocity"][i], want["velocity"][i]) for i, t in enumerate(TIMES)},
            "text": apart(got["text"], want["text"]),
            "pictures": float(far.mean()),
            "pictures, median": float(np.median(far)),
            "identity": float(np.mean(got["identity"])),
        }
    return report


def with_kernels(model: Flux, kind: str, modulation: bool) -> Flux:
    """The network with kernels of another kind in its blocks; modulation: there too."""

    def change(module: Any, name: str) -> None:
        if isinstance(module, Linear):
            if name != "mod" or modulation:
                w = np.asarray(module.kernel[...].astype(jnp.float32))
                stood: Any = jnp.asarray(w, jnp.bfloat16).astype(jnp.float32)
                if kind != "bfloat16":
                    stood = jax.tree.map(jnp.asarray, quantise(w, kind))  # type: ignore[arg-type]
                    stood = replace(stood, inputs=kind == "w8a8")
                module.kernel = type(module.kernel)(stood)
        elif isinstance(module, Numbered) or hasattr(module, "__dict__"):
            for inner, value in list(vars(module).items()):
                if hasattr(value, "__dict__") and not isinstance(value, jax.Array | Quantised):
                    change(value, inner)

    model = jax.tree.map(lambda x: x, model)
    change(model.double_blocks, "")
    change(model.single_blocks, "")
    return model


def full_width(options: Options) -> dict[str, Any]:
    """Relative differences of the velocity of one double and one single block of FLUX.1's width, random numbers."""
    heads = options.width // 128
    config: TransformerConfig = replace(
        flux_dev().transformer, num_layers=1, num_single_layers=1, num_attention_heads=heads
    )
    model = random_model(config, jnp.float32)
    keys = jax.random.split(jax.random.key(1), 3)
    side = int(options.tokens**0.5)
    conditions = FluxConditions(
        jax.random.normal(keys[0], (1, 32, config.joint_attention_dim)),
        jax.random.normal(keys[1], (1, config.pooled_projection_dim)),
        jnp.full(1, 3.5),
        grid_positions(side, side),
    )
    x = jax.random.normal(keys[2], (1, side * side, config.in_channels))
    ask = jax.jit(lambda v, x, t: v(x, t))
    want = np.asarray(ask(conditions.bind(model), x, jnp.full(1, 0.6)))
    report: dict[str, Any] = {}
    for kind in KINDS:
        for modulation in (False, True):
            other = with_kernels(model, kind, modulation)
            got = ask(conditions.bind(other), x, jnp.full(1, 0.6))
            report[f"{kind}, modulation too" if modulation else kind] = apart(got, want)
            del other
            gc.collect()
    return report


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    report = {"mini": on_mini(options)}
    print(json.dumps(report, indent=2), flush=True)
    if options.width:
        report["full width"] = full_width(options)
        print(json.dumps(report["full width"], indent=2))
    if options.out is not None:
        options.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
