# %% [markdown]
"""
# 19. The method in your own hands

Underneath `personalize` are arrays: a trajectory of the reference, an index of who feeds whom, a schedule, and a tau.
They make a `Task`, a pytree, and `personalize.sample` is a function of it that can be jitted, vmapped and
differentiated. This lesson builds one from arrays, takes its gradient, and then leaves the package's loop for one of
its own.

    python examples/19_own_hands.py
"""

# %%
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _show import drawn, figure, picture, save, stack, subject

import jaxpa
from jaxpa import inversion, personalize, sampling
from jaxpa.media.figures import overlay, sheet
from jaxpa.personalize import Phase, Task
from jaxpa.routing import replacement_source
from jaxpa.tokens import Placement, Routing, erode, grid_positions, shift
from jaxpa.transformer import FluxConditions

CAPTION, PROMPT = "a yellow striped car in the snow", "a blue dotted car on a beach"
STEPS, TAU = 12, 0.5

# %% [markdown]
"""
## A task from arrays

Rows are [reference; image]. The car goes one column to the right; its cells are fed by the reference's tokens, all others by the
image's own.
"""

# %%
pipe = jaxpa.load("mini", np.float32)
model, grid = pipe.parts.transformer, (12, 12)
x0 = pipe.encode_image(picture("car"))  # (1, 144, 32): any tokens will do
mask = np.asarray(pipe.references([subject("car")]).masks[0])  # (144,) bool: any mask will do
noise = pipe.noise(np.array([0, 3], np.uint32), grid)  # of the reference, and of the image
times = jnp.asarray(pipe.times(STEPS, grid))
trajectory = inversion.straight_line(x0, noise[:1], times)  # (13, 1, 144, 32)

moved = shift(jnp.asarray(mask), *grid, 0, 1)
where = Placement(moved.source[None], moved.target[None])  # (R, N) each
source = replacement_source(where, 1)  # (2, 144), into the 288 tokens of both rows

text, positions = pipe.encode_text([CAPTION, PROMPT]), grid_positions(*grid)
together = FluxConditions(text.txt, text.vec, jnp.array([1.0, 2.5]), positions)
alone = together.rows(slice(1, None))
task = Task(
    trajectory=trajectory,
    eta=jnp.ones(STEPS),  # the reference stays on its trajectory
    times=times,
    tau=jnp.float32(TAU),
    early=Phase(together, Routing(source)),
    late=Phase(alone),
    model=model,
)
made = jax.jit(personalize.sample)(task, noise[1:])  # (1, 144, 32)

# %% [markdown]
"""
## Which block holds the subject?

A routing's weight says how far features are replaced, from 0 to 1, for each block, row, token, and for query, key and
value. It is an argument, so the likeness of the result to the reference has a gradient in it. `above`, the number of
steps above tau, has to be known for `grad`: a loop of unknown length cannot be walked back.
"""

# %%
above, depth = int(personalize.gate(task)), pipe.spec.blocks


def unlike(x: jax.Array) -> jax.Array:
    """x (1, N, C) -> the mean squared difference of the moved subject's tokens from the reference's."""
    off = (x[0] - x0[0, moved.source]) ** 2
    return jnp.sum(off * moved.target[:, None]) / jnp.sum(moved.target) / x0.shape[-1]


def unlikeness(weight: jax.Array, task: Task, x: jax.Array) -> jax.Array:
    """weight (L, 3) -> how unlike the reference the subject comes out."""
    early = Phase(together, Routing(source, weight[:, None, None, :]))
    done = personalize.sample(replace(task, early=early), x, above)
    return unlike(done)


half = jnp.full((depth, 3), 0.5)
ask = jax.jit(jax.value_and_grad(unlikeness))
value, slope = ask(half, task, noise[1:])
nudged, _ = ask(half.at[0, 2].add(0.02), task, noise[1:])
print(f"slope {slope[0, 2]:.3f} by grad, {(nudged - value) / 0.02:.3f} by a finite difference")

# %% [markdown]
"""
## Your own replacement

Nothing ties you to a gate. This loop asks the network itself, and replaces as far as the weights of each step say. They
are data: one program runs all the ways below.
"""


# %%
@jax.jit
def sample(weights: jax.Array, x: jax.Array) -> jax.Array:
    """weights (S, L, 1, N, 3), x (1, N, C) -> (1, N, C)."""
    velocity = together.bind(model)

    def step(i: Any, x: jax.Array) -> jax.Array:
        rows = jnp.concatenate([trajectory[i], x])  # (2, N, C)
        v = velocity(rows, jnp.full(2, times[i]), Routing(source, weights[i]))[1:]
        return sampling.euler_step(x, v, times[i], times[i + 1])

    return jax.lax.fori_loop(0, STEPS, step, x)


t = np.asarray(times)[:-1].reshape(-1, 1, 1, 1, 1)
gate = (t > TAU).astype(np.float32)  # the method: all above tau, nothing below
values = np.array([0.0, 0.0, 1.0])  # what the reference holds, but not where it looks
inner = np.asarray(erode(moved.target, *grid, 3))
rim = np.where(inner, 1.0, 0.5)[:, None]  # the outermost tokens only half
ways = {
    "the prompt alone": 0 * gate,
    "as the method does": gate,
    "a ramp, no gate": t,
    "values only": gate * values,
    "half at the rim": gate * rim,
}
own = [sample(np.broadcast_to(each, (STEPS, depth, 1, 144, 3)).astype(np.float32), noise[1:]) for each in ways.values()]
print(f"by hand and by jaxpa.personalize: {np.abs(own[1] - made).max():.1e} apart")

# %%
free, *pictures = pipe.decode(jnp.concatenate(own))
target = overlay(free, np.asarray(moved.target), *grid)
rows = [
    [
        ("the reference", picture("car")),
        ("where it goes", target),
        (f"the prompt alone\nunlike by {unlike(own[0]):.2f}", free),
    ],
    [
        (f"{name}\nunlike by {unlike(x):.2f}", each)
        for name, x, each in zip(list(ways)[1:], own[1:], pictures, strict=True)
    ],
]
bars, (axis,) = figure(7.6, 2.4)
for k, name in enumerate(("query", "key", "value")):
    axis.bar(np.arange(depth) + 0.25 * (k - 1), -slope[:, k], 0.25, label=name)
axis.axhline(0, color="black", lw=0.5)
axis.set(xlabel="block (0 and 1 are double)", ylabel="likeness gained", title="slope of the weight, where all are 0.5")
axis.legend(frameon=False, fontsize=8)
save(stack(sheet(rows, 168), drawn(bars)), "19-own-hands")

# %% [markdown]
"""
## Change something

Replace in one block alone (`gate * (np.arange(depth) == k).reshape(-1, 1, 1, 1)`). Block 5, with the steepest slope,
does most: it brings the difference from 3.06 to 1.89, where any other alone stays above 2.2 and all together reach
0.95. Then leave out block 5 only: 1.39. Leave out one of the first two, and nothing changes.
"""
