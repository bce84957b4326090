"""Sampling: a velocity callable and an array of tokens in, an array of tokens out.

A velocity is any `velocity(x (B, N, C), t (B,)) -> (B, N, C)`; the flow runs from t = 1 (noise) to t = 0 (data) and
one Euler step is x += (t_next - t) * velocity. Everything is a pure function of arrays: no scheduler, no state.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from jaxpa.tokens import Routing


class Velocity(Protocol):
    """What the samplers ask of a model. `routing` is passed only where a method replaces features inside it."""

    def __call__(self, x: jax.Array, t: jax.Array, routing: Routing | None = None) -> jax.Array: ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class ClassifierFree:
    """Classifier-free guidance: v = v_negative + scale * (v_positive - v_negative).

    `velocity` has the rows [references; positive; negative] and is asked once for all; the first `references` rows
    are not guided. `scale` is an array that broadcasts against the guided rows (B, N, C): () for one guidance,
    (B, N, 1) for a guidance of each token's own.
    """

    velocity: Velocity
    scale: jax.Array
    references: int = field(default=0, metadata={"static": True})

    def __call__(self, x: jax.Array, t: jax.Array, routing: Routing | None = None) -> jax.Array:
        r, b = self.references, x.shape[0] - self.references
        both = None if routing is None else routing.repeat(2, shared=r)
        out = self.velocity(jnp.concatenate([x, x[r:]]), jnp.concatenate([t, t[r:]]), both)
        positive, negative = out[r : r + b], out[r + b :]
        return jnp.concatenate([out[:r], negative + self.scale * (positive - negative)])


def euler_step(x: jax.Array, v: jax.Array, t: jax.Array, t_next: jax.Array) -> jax.Array:
    """x at the next flow time: x + (t_next - t) v."""
    return x + (t_next - t) * v


def step(velocity: Velocity, x: jax.Array, times: jax.Array, i: jax.Array) -> jax.Array:
    """Step i of a schedule: x (B, N, C) at times[i] -> x at times[i + 1]."""
    t = jnp.broadcast_to(times[i], x.shape[:1])
    return euler_step(x, velocity(x, t), times[i], times[i + 1])


def sample(
    velocity: Velocity,
    x: jax.Array,
    times: jax.Array,
    start: jax.Array | int = 0,
    stop: jax.Array | int | None = None,
) -> jax.Array:
    """All steps in one compiled loop: x (B, N, C) at times[start] -> tokens at times[stop] (default: the last).

    The bounds may be traced, so one program serves every split of a schedule.
    """
    stop = times.shape[0] - 1 if stop is None else stop
    return jax.lax.fori_loop(start, stop, lambda i, x: step(velocity, x, times, i), x)


def host_loop(
    body: Callable[[jax.Array, Any], Any], state: Any, start: int, stop: int, on_step: Callable[[int], None]
) -> Any:
    """`fori_loop` on the host: the same body, already jitted, with a callback after every step (a progress bar)."""
    for i in range(start, stop):
        state = body(jnp.int32(i), state)
        jax.block_until_ready(state)
        on_step(i)
    return state


def initial_noise(seeds: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal noise, one image per seed: seeds (B,) int -> (B, *shape) float32.

    An image's noise is a function of its own seed: neither its place in a batch nor the batch's size matters.
    """
    return jax.vmap(lambda seed: jax.random.normal(jax.random.key(seed), shape, jnp.float32))(seeds)
