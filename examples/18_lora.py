# %% [markdown]
"""
# 18. A LoRA beside token replacement

Personalize Anything trains nothing. The other way to a subject is to train a little: every weight matrix W of the
attention gets a low-rank change (LoRA, Hu et al. 2021), which learns from pictures of the subject by the loss of lesson
9, while W itself stays as it is:

    x W' = x W + scale (x A) B         W (In, Out), A (In, R) random at first, B (R, Out) zero at first

Here R = 4, and the subject is the one picture that replacement uses, too. DreamBooth (Ruiz et al. 2023) takes three to
five; `python -m weights.recipe.lora` does it with five, and writes a file that `--lora` reads.

    python examples/18_lora.py
"""

# %%
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _show import drawn, figure, picture, save, stack, subject
from flax import nnx

import jaxpa
from jaxpa.lowrank import LowRank
from jaxpa.media.figures import sheet
from jaxpa.tokens import grid_positions
from jaxpa.transformer import FluxConditions

CAPTION = "a yellow striped car in the snow"
PROMPTS = ("a yellow striped car on a beach", "a blue dotted car on a beach", "a red mug in a room")
RANK, STEPS, BATCH, RATE = 4, 60, 4, 1e-2

# %% [markdown]
"""
## By hand

Queries, keys and values of all blocks; stacked blocks are one array, so A is (L, In, R) and B is (L, R, Out).
"""


# %%
def layers(model: Any) -> list[Any]:
    streams = (model.double_blocks.img, model.double_blocks.txt, model.single_blocks)
    return [layer for stream in streams for layer in (stream.qkv.q, stream.qkv.k, stream.qkv.v)]


def with_kernels(model: Any, kernels: list[Any]) -> Any:
    """The same network with other matrices."""
    out = jax.tree.map(lambda x: x, model)
    for layer, kernel in zip(layers(out), kernels, strict=True):
        layer.kernel = nnx.Param(kernel)
    return out


def adapted(model: Any, factors: Any, scale: float = 1.0) -> Any:
    """The change stays beside the weights, so that its scale is data."""
    bases = [layer.kernel.get_value() for layer in layers(model)]
    strength = jnp.full((1, RANK), scale)
    return with_kernels(model, [
        LowRank(base, a, b, jnp.broadcast_to(strength, (len(base), RANK)))
        for base, (a, b) in zip(bases, factors, strict=True)
    ])  # fmt: skip


def merged(model: Any, factors: Any) -> Any:
    """W' = W + A B."""
    bases = [layer.kernel.get_value() for layer in layers(model)]
    return with_kernels(model, [base + a @ b for base, (a, b) in zip(bases, factors, strict=True)])


def initial(model: Any, key: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
    shapes = [layer.kernel.get_value().shape for layer in layers(model)]  # (L, In, Out)
    keys = jax.random.split(key, len(shapes))
    return [
        (jax.random.normal(k, (count, inputs, RANK)) * inputs**-0.5, jnp.zeros((count, RANK, outputs)))
        for k, (count, inputs, outputs) in zip(keys, shapes, strict=True)
    ]


# %%
pipe = jaxpa.load("mini", np.float32)
model, text = pipe.parts.transformer, pipe.encode_text([CAPTION] * BATCH)
x0 = jnp.repeat(pipe.encode_image(picture("car")), BATCH, 0)  # (B, 144, 32)
conditions = FluxConditions(text.txt, text.vec, jnp.ones(BATCH), grid_positions(12, 12))


def loss(factors: Any, key: jax.Array) -> jax.Array:
    k_noise, k_time = jax.random.split(key)
    e = jax.random.normal(k_noise, x0.shape)
    t = (jnp.arange(BATCH) + jax.random.uniform(k_time, (BATCH,))) / BATCH  # one from each part of the way
    x = x0 + t[:, None, None] * (e - x0)
    return jnp.mean((conditions.bind(adapted(model, factors))(x, t) - (e - x0)) ** 2)


adam = optax.adam(optax.cosine_decay_schedule(RATE, STEPS))


@jax.jit
def update(factors: Any, state: Any, key: jax.Array) -> tuple[Any, Any, jax.Array]:
    value, grads = jax.value_and_grad(loss)(factors, key)
    changes, state = adam.update(grads, state)
    return optax.apply_updates(factors, changes), state, value


factors: Any = initial(model, jax.random.key(0))
state, values = adam.init(factors), []
for key in jax.random.split(jax.random.key(1), STEPS):
    factors, state, value = update(factors, state, key)
    values.append(float(value))
print(f"loss {np.mean(values[:10]):.3f} at first, {np.mean(values[-10:]):.3f} at the end")
numbers = sum(x.size for x in jax.tree.leaves(factors)), sum(x.size for x in jax.tree.leaves(model))
print(f"{numbers[0]} numbers learned, beside {numbers[1]} that stay")
t = jnp.full(BATCH, 0.5)
beside, inside = (conditions.bind(each)(x0, t) for each in (adapted(model, factors), merged(model, factors)))
print(f"beside and merged into the weights: {np.abs(beside - inside).max():.1e} apart")

# %% [markdown]
"""
## Side by side

The same noise without and with the change, and replacement with no training at all.
"""


# %%
parts: Any = pipe.parts


def with_scale(scale: float) -> jaxpa.Pipeline:
    return replace(pipe, parts=replace(parts, transformer=adapted(model, factors, scale)))


rows = []
for prompt in PROMPTS:
    learnt = [(f"LoRA, scale {scale:g}", with_scale(scale).generate(prompt, seed=3)[0]) for scale in (0.0, 0.5, 1.0)]
    replaced = pipe.personalize(prompt, [subject("car", caption=CAPTION)], seed=3, tau=0.5)[0]
    rows.append([(f"{name}\n{prompt}", image) for name, image in (*learnt, ("replacement, tau 0.5", replaced))])

# %%
curve, (axis,) = figure(7.2, 2.0)
axis.plot(values)
axis.set(xlabel="update", ylabel="loss", title="one picture, again and again")
save(stack(sheet(rows, 160), drawn(curve)), "18-lora")

# %% [markdown]
"""
The LoRA obeys the prompt: asked for a blue car it draws one, in the learnt shape, and a mug stays a mug. Replacement
keeps the subject, even where a mug is asked for. A LoRA costs its training, half a minute here; replacement costs one
more row above tau.

## Change something

Turn the scale up to 2. The car's outlines double, the blue car turns brown, and the mug, which has grown already, runs
out of the picture. What was learnt from one picture is not only the car, but also this picture; the more of it, the
more it shows everywhere.
"""
