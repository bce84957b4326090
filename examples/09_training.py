# %% [markdown]
"""
# 9. Training a flow, and distilling it

A flow small enough to train here: its "pictures" are points of the plane, its "prompts" two words, one for each arm of
a spiral. Training needs no more than this (Lipman et al. 2023): draw a point x0, noise e and a time t, and regress

    loss = | v(x_t, t, word) - (e - x0) |^2,    x_t = (1 - t) x0 + t e

Every tenth word is left out, so that the network also knows the flow without a word (lesson 8). Then two students learn
from it. One is asked once and gives the guided velocity, as FLUX.1-dev does (Meng et al. 2023):

    loss = | student(x_t, t, word, g) - [v_without + g (v_with - v_without)] |^2

The other takes few steps, as FLUX.1-schnell does. Here it learns the straight lines from each noise to the point where
the teacher's flow ends (Liu et al. 2022; schnell's own way is adversarial, Sauer et al. 2024).

    python examples/09_training.py
"""

# %%
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _show import drawn, figure, save, stack

WORDS = ("one arm", "other arm")
NOTHING = 2  # the word that is no word


def points(key: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """x0 (count, 2) and its word (count,)."""
    along, word, off = jax.random.split(key, 3)
    words = jax.random.bernoulli(word, 0.5, (count,)).astype(int)
    angle = 1 + 6 * jnp.sqrt(jax.random.uniform(along, (count,)))
    arm = jnp.stack([jnp.cos(angle + jnp.pi * words), jnp.sin(angle + jnp.pi * words)], -1) * angle[:, None] / 4
    return arm + 0.12 * jax.random.normal(off, (count, 2)), words


# %% [markdown]
"""
The network: three hidden layers, which read the point, sines of the time, the word, and a guidance.
"""


# %%
def initial(key: jax.Array, widths: tuple[int, ...] = (14, 96, 96, 96, 2)) -> list[tuple[jax.Array, jax.Array]]:
    pairs = zip(jax.random.split(key, len(widths) - 1), widths[:-1], widths[1:], strict=True)
    return [(jax.random.normal(k, (a, b)) * a**-0.5, jnp.zeros(b)) for k, a, b in pairs]


def velocity(net: Any, x: jax.Array, t: jax.Array, word: jax.Array, g: Any = 1.0) -> jax.Array:
    """x (B, 2), t (B,), word (B,) -> (B, 2)."""
    waves = t[:, None] * jnp.pi * jnp.array([0.5, 1, 2, 4])  # (B, 4)
    g = jnp.broadcast_to(jnp.asarray(g, float), t.shape)[:, None]
    x = jnp.concatenate([x, jnp.sin(waves), jnp.cos(waves), jax.nn.one_hot(word, 3), g], -1)  # (B, 14)
    for weight, bias in net[:-1]:
        x = jax.nn.gelu(x @ weight + bias)
    return x @ net[-1][0] + net[-1][1]


def guided(net: Any, x: jax.Array, t: jax.Array, word: jax.Array, g: Any) -> jax.Array:
    """Two questions."""
    without = velocity(net, x, t, jnp.full_like(word, NOTHING))
    return without + jnp.reshape(g, (-1, 1)) * (velocity(net, x, t, word) - without)


@partial(jax.jit, static_argnames=("way", "steps"))
def sample(way: Any, net: Any, noise: jax.Array, word: jax.Array, steps: int, g: Any = 1.0) -> jax.Array:
    """Euler's steps from t = 1 to 0."""

    def step(i: int, x: jax.Array) -> jax.Array:
        return x - way(net, x, jnp.full(len(x), 1 - i / steps), word, g) / steps

    return jax.lax.fori_loop(0, steps, step, noise)


# %% [markdown]
"""
## Three losses, one training
"""


# %%
def flow_loss(net: Any, key: jax.Array, _: Any) -> jax.Array:
    k_data, k_noise, k_time, k_word = jax.random.split(key, 4)
    x0, word = points(k_data, 512)
    e, t = jax.random.normal(k_noise, x0.shape), jax.random.uniform(k_time, (512,))
    word = jnp.where(jax.random.uniform(k_word, (512,)) < 0.1, NOTHING, word)
    return jnp.mean((velocity(net, x0 + t[:, None] * (e - x0), t, word) - (e - x0)) ** 2)


def guidance_loss(net: Any, key: jax.Array, teacher: Any) -> jax.Array:
    k_data, k_noise, k_time, k_scale = jax.random.split(key, 4)
    x0, word = points(k_data, 512)
    e, t = jax.random.normal(k_noise, x0.shape), jax.random.uniform(k_time, (512,))
    g, x = jax.random.uniform(k_scale, (512,), minval=1, maxval=4), x0 + t[:, None] * (e - x0)
    return jnp.mean((velocity(net, x, t, word, g) - guided(teacher, x, t, word, g)) ** 2)


def straight_loss(net: Any, key: jax.Array, pairs: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
    k_row, k_time = jax.random.split(key)
    rows = jax.random.randint(k_row, (512,), 0, len(pairs[0]))
    (e, x0, word), t = (each[rows] for each in pairs), jax.random.uniform(k_time, (512,))
    return jnp.mean((velocity(net, x0 + t[:, None] * (e - x0), t, word) - (e - x0)) ** 2)


@partial(jax.jit, static_argnames=("loss", "steps"))
def train(net: Any, loss: Any, data: Any, steps: int) -> tuple[Any, jax.Array]:
    """Adam, whose rate falls by a cosine -> the network, and the loss of each step."""
    adam = optax.adam(optax.cosine_decay_schedule(3e-3, steps))

    def step(carry: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        net, state = carry
        value, grads = jax.value_and_grad(loss)(net, key, data)
        changes, state = adam.update(grads, state)
        return (optax.apply_updates(net, changes), state), value

    (net, _), losses = jax.lax.scan(step, (net, adam.init(net)), jax.random.split(jax.random.key(1), steps))
    return net, losses


# %%
STEPS = 2000
teacher, flow_losses = train(initial(jax.random.key(0)), flow_loss, None, STEPS)
one_question, guidance_losses = train(teacher, guidance_loss, teacher, STEPS)
k_noise, k_word = jax.random.split(jax.random.key(2))
noise, word = jax.random.normal(k_noise, (20_000, 2)), jax.random.bernoulli(k_word, 0.5, (20_000,)).astype(int)
few_steps, straight_losses = train(
    teacher, straight_loss, (noise, sample(velocity, teacher, noise, word, 50), word), STEPS
)
for name, losses in (("flow", flow_losses), ("guidance", guidance_losses), ("straight", straight_losses)):
    print(f"{name}: loss {losses[:50].mean():.3f} at first, {losses[-50:].mean():.4f} at the end")

# %%
k_noise, k_word, k_data = jax.random.split(jax.random.key(3), 3)
e, words = jax.random.normal(k_noise, (1500, 2)), jax.random.bernoulli(k_word, 0.5, (1500,)).astype(int)
x0, which = points(k_data, 1500)
nothing = jnp.full_like(words, NOTHING)
panels = [
    [("data", x0, which),
     ("teacher, 50 steps", sample(velocity, teacher, e, words, 50), words),
     ("teacher, 2 steps", sample(velocity, teacher, e, words, 2), words),
     ("straightened, 2 steps", sample(velocity, few_steps, e, words, 2), words)],
    [("no word, 50 steps", sample(velocity, teacher, e, nothing, 50), nothing),
     ("g = 1", sample(guided, teacher, e, words, 50, 1.0), words),
     ("g = 3, asked twice", sample(guided, teacher, e, words, 50, 3.0), words),
     ("g = 3, asked once", sample(velocity, one_question, e, words, 50, 3.0), words)],
]  # fmt: skip


def row(panels: Any) -> Any:
    made, axes = figure(9.6, 2.8, 4, sharex=True, sharey=True)
    for axis, (title, x, word) in zip(axes, panels, strict=True):
        for k, name in enumerate((*WORDS, "no word")):
            if np.any(chosen := np.asarray(word) == k):
                axis.scatter(*np.asarray(x)[chosen].T, s=1, color=("C0", "C1", "0.4")[k], label=name)
        axis.set(xlim=(-2.4, 2.4), ylim=(-2.4, 2.4))
        axis.set_title(title, fontsize=10)
    axes[0].legend(fontsize=7, markerscale=5, loc="lower left")
    return drawn(made)


curves, (axis,) = figure(9.6, 2.2)
for name, losses in (("flow", flow_losses), ("guidance, once", guidance_losses), ("few steps", straight_losses)):
    axis.plot(np.asarray(losses).reshape(-1, 25).mean(1), label=name)
axis.set(xlabel="update, in 25", ylabel="loss", yscale="log")
axis.legend(fontsize=8, frameon=False)
save(stack(*map(row, panels), drawn(curves)), "09-training")

# %% [markdown]
"""
The loss of the flow does not fall to zero, and should not: many pairs of a point and a noise cross at the same x_t, and
the best velocity is their mean. The students' losses do, since their targets are functions of what they see.

## Change something

Never leave a word out (`< 0.1` becomes `< 0.0` in `flow_loss`). The arms come out as before at g = 1, but asked without
a word the network answers whatever it likes, here a ring, and guidance pushes away from that: at g = 3 both arms leave
their places. The two students copy it faithfully, since all that they know is from their teacher.
"""
