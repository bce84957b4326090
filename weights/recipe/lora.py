"""A LoRA that teaches the embedded checkpoint one subject, from a few pictures of it (DreamBooth's use of LoRA).

    python -m weights.recipe.lora --out subject.safetensors       five drawn pictures of one subject
    jaxpa generate --lora subject.safetensors --prompt "a red striped mug on a beach"

Every picture is one example of conditional flow matching, as in training (`flow`): with x_t = (1 - t) x0 + t e the
network predicts e - x0. Only the factors of the change learn, W + A B with A random and B zero at first, in the
projections to queries, keys and values and out of attention; guidance is that of data, 1. The file has diffusers'
names, so diffusers reads it too.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from PIL import Image
from safetensors.numpy import save_file

import jaxpa
from jaxpa.adapters.lay import modules_at
from jaxpa.checkpoint.keys import leaves
from jaxpa.errors import JaxpaError
from jaxpa.lowrank import LowRank
from jaxpa.pipeline import Pipeline
from jaxpa.tokens import grid_positions
from jaxpa.transformer import Flux, FluxConditions
from weights.recipe import world

LAYERS = ("qkv.q.kernel", "qkv.k.kernel", "qkv.v.kernel", "blocks.img.proj.kernel", "blocks.txt.proj.kernel")


class Factors(NamedTuple):
    """The change of one layer in all blocks: down (L, In, R), up (L, R, Out)."""

    down: jax.Array
    up: jax.Array


class Examples(NamedTuple):
    """Pictures as tokens (P, N, C), their captions' txt (P, M, Dt) and vec (P, Dv), rotary positions (N, 3)."""

    tokens: jax.Array
    txt: jax.Array
    vec: jax.Array
    positions: jax.Array


def initial(network: Flux, rank: int, seed: int) -> dict[str, Factors]:
    """Factors by the paths of the kernels that they change, of no change yet."""
    out, key = {}, jax.random.key(seed)
    for leaf in leaves("transformer", network.config, "diffusers"):
        if leaf.path.endswith(LAYERS):
            key, own = jax.random.split(key)
            blocks, inputs, outputs = leaf.shape
            down = jax.random.normal(own, (blocks, inputs, rank)) * inputs**-0.5
            out[leaf.path] = Factors(down, jnp.zeros((blocks, rank, outputs)))
    return out


def changed(network: Flux, factors: dict[str, Factors]) -> Flux:
    """The network with a change beside its weights."""
    out = jax.tree.map(lambda x: x, network)
    for path, (down, up) in factors.items():
        (linear,) = modules_at(out, path)
        strength = jnp.ones((*down.shape[:1], down.shape[-1]))
        linear.kernel = nnx.Param(LowRank(linear.kernel.get_value(), down, up, strength))
    return out


def read_examples(pipe: Pipeline, pictures: Sequence[Any], captions: Sequence[str]) -> Examples:
    """Pictures of the checkpoint's size, through its autoencoder and text encoders."""
    text = pipe.encode_text(captions)
    return Examples(pipe.encode_image(list(pictures)), text.txt, text.vec, grid_positions(*pipe.grid()))


def loss(factors: dict[str, Factors], network: Flux, data: Examples, key: jax.Array, batch: int) -> jax.Array:
    """Mean squared error of the velocity, of `batch` rows whose times are stratified."""
    k_time, k_noise, k_row = jax.random.split(key, 3)
    rows = jax.random.permutation(k_row, jnp.arange(batch) % len(data.tokens))
    x0 = data.tokens[rows]  # (B, N, C)
    noise = jax.random.normal(k_noise, x0.shape)
    t = (jnp.arange(batch) + jax.random.uniform(k_time, (batch,))) / batch  # (B,)
    guidance = jnp.ones(batch) if network.config.guidance_embeds else None
    conditions = FluxConditions(data.txt[rows], data.vec[rows], guidance, data.positions)
    mixed = x0 + t[:, None, None] * (noise - x0)
    return jnp.mean((conditions.bind(changed(network, factors))(mixed, t) - (noise - x0)) ** 2)


def train(
    network: Flux,
    data: Examples,
    *,
    rank: int = 4,
    steps: int = 300,
    batch: int = 10,
    rate: float = 3e-3,
    seed: int = 0,
) -> dict[str, Factors]:
    """The factors after so many steps of Adam, whose rate falls by a cosine."""
    factors = initial(network, rank, seed)
    tx = optax.adam(optax.cosine_decay_schedule(rate, steps))
    state, begun = tx.init(factors), time.monotonic()

    @jax.jit
    def update(factors: Any, state: Any, network: Flux, data: Examples, key: jax.Array) -> tuple[Any, Any, jax.Array]:
        value, grads = jax.value_and_grad(loss)(factors, network, data, key, batch)
        changes, state = tx.update(grads, state)
        return optax.apply_updates(factors, changes), state, value

    values = []
    for step in range(1, steps + 1):
        key = jax.random.fold_in(jax.random.key(seed), step)
        factors, state, value = update(factors, state, network, data, key)
        values.append(float(value))
        if step % 25 == 0 or step == steps:
            print(f"step {step}  loss {np.mean(values[-25:]):.4f}  {time.monotonic() - begun:.0f} s", flush=True)
    return factors


def save(file: Path, network: Flux, factors: dict[str, Factors]) -> None:
    """Write factors under diffusers' names: lora_A (R, In), lora_B (Out, R) of every block."""
    tensors = {}
    for leaf in leaves("transformer", network.config, "diffusers"):
        if leaf.path not in factors:
            continue
        for block, source in enumerate(leaf.sources):
            name = f"transformer.{source.removesuffix('.weight')}"
            for which, factor in zip("AB", factors[leaf.path], strict=True):
                tensors[f"{name}.lora_{which}.weight"] = np.ascontiguousarray(np.asarray(factor[block]).T)
    save_file(tensors, file)


def drawn(count: int, seed: int) -> tuple[list[Image.Image], list[str]]:
    """Pictures of one subject, which differ in background and place, and their captions."""
    rng = np.random.default_rng(seed)
    family, colour, pattern = "mug", "red", "striped"
    subject = world.sample_subject(rng, family, colour, pattern)
    kinds = rng.permutation(list(world.BACKGROUNDS))[:count]
    scenes = []
    for kind in kinds:
        place = world.sample_subject(rng, family, colour, pattern)
        moved = replace(subject, x=place.x, bottom=place.bottom, span=place.span)
        scenes.append(world.Scene((moved,), world.sample_background(rng, str(kind))))
    return [Image.fromarray(world.render(scene)[0]) for scene in scenes], [world.caption(scene) for scene in scenes]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("subject.safetensors"))
    several = "a picture of the subject and its caption; repeat it for several (default: five drawn ones)"
    parser.add_argument("--picture", action="append", nargs=2, metavar=("FILE", "CAPTION"), help=several)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    said = parser.parse_args()
    if said.picture is None:
        pictures, captions = drawn(5, said.seed)
        for k, picture in enumerate(pictures):
            picture.save(said.out.with_name(f"{said.out.stem}-{k}.png"))
    else:
        pictures, captions = (list(column) for column in zip(*said.picture, strict=True))
    pipe = jaxpa.load("mini", np.float32)
    network: Any = pipe.parts.transformer
    data = read_examples(pipe, pictures, captions)
    save(said.out, network, train(network, data, rank=said.rank, steps=said.steps, seed=said.seed))
    print(f"wrote {said.out}: jaxpa generate --lora {said.out} --prompt {captions[0]!r}")


if __name__ == "__main__":
    try:
        main()
    except JaxpaError as error:
        raise SystemExit(f"lora: {error}") from None
