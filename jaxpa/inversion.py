"""The reference's way between data and noise.

A path is an array (S + 1, R, N, C): the reference tokens at every flow time of a schedule, path[i] at times[i]. The
straight line needs no model; an ODE inversion follows the model's own flow backwards; RF inversion (Rout et al. 2024)
mixes the two by gamma on the way to noise and by eta on the way back.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxpa.sampling import Velocity


def straight_line(x0: jax.Array, noise: jax.Array, times: jax.Array) -> jax.Array:
    """x_t = (1 - t) x0 + t noise: x0, noise (R, N, C), times (S + 1,) -> path (S + 1, R, N, C)."""
    t = times[:, None, None, None]
    return (1 - t) * x0 + t * noise


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ForwardTimes:
    """When the controlled forward ODE asks the model, and how far it moves: both (S,) float32, data to noise."""

    model: jax.Array
    width: jax.Array


def forward_times(times: jax.Array | np.ndarray) -> ForwardTimes:
    """A schedule walked backwards: each step asks the model at the noisier end, as the sampler did on its way."""
    backwards = jnp.asarray(times)[::-1]
    return ForwardTimes(backwards[1:], backwards[1:] - backwards[:-1])


def official_forward_times(times: jax.Array | np.ndarray) -> ForwardTimes:
    """The official code's times: i / (S + 1) for the model, and the schedule's widths in sampling order."""
    times = jnp.asarray(times)
    steps = times.shape[0] - 1
    return ForwardTimes(jnp.arange(steps, dtype=jnp.float32) / (steps + 1), times[:-1] - times[1:])


def invert(
    velocity: Velocity, x0: jax.Array, noise: jax.Array, forward: ForwardTimes, gamma: jax.Array | float
) -> jax.Array:
    """The controlled forward ODE: Y += width * [u + gamma ((noise - Y) / (1 - t) - u)], u the model's velocity.

    x0, noise (R, N, C) -> every state from data to noise, (S + 1, R, N, C); reversed, it is a path. gamma = 0 is the
    plain ODE inversion; with gamma = 1 the model cancels and `closed_form` gives the same without asking it.
    Source: Rout et al. 2024, Eq. 8; `official_forward_times` for the official code's variant of t and the widths.
    """

    def body(y: jax.Array, at: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        t, width = at
        u = velocity(y, jnp.broadcast_to(t, y.shape[:1]))
        # 1 - t is 0 only at the very end of a full schedule, where gamma = 0 must not meet 0 / 0.
        towards = (noise - y) / jnp.maximum(1 - t, 1e-6)
        y = y + width * (u + gamma * (towards - u))
        return y, y

    _, states = jax.lax.scan(body, x0, (forward.model, forward.width))
    return jnp.concatenate([x0[None], states])


def closed_form(x0: jax.Array, noise: jax.Array, forward: ForwardTimes) -> jax.Array:
    """What `invert` ends at with gamma = 1: noise + f (x0 - noise), f = prod(1 - width / (1 - t))."""
    factor = jnp.prod(1 - forward.width / (1 - forward.model))
    return noise + factor * (x0 - noise)


def control(
    steps: int, eta: float, start: float = 0.0, stop: float = 0.99, decay_power: float | None = None
) -> np.ndarray:
    """eta of every step, (S,): `eta` for int(start S) <= i < min(int(stop S), S), 0 elsewhere.

    `decay_power` p multiplies it by (1 - i / S)^p. The official code's rule and its names.
    """
    i = np.arange(steps)
    inside = (i >= int(start * steps)) & (i < min(int(stop * steps), steps))
    fade = 1.0 if decay_power is None else (1 - i / steps) ** decay_power
    return np.where(inside, eta * fade, 0.0).astype(np.float32)


def reference_step(
    x: jax.Array, v: jax.Array, path: jax.Array, times: jax.Array, eta: jax.Array, i: jax.Array
) -> jax.Array:
    """Step i of the reference rows: x, v (R, N, C) at times[i] -> x at times[i + 1].

    With eta[i] = 1 the rows follow their path, with 0 the model, in between a mixture. Off the path, the pull is
    towards the path's data end: on a straight line it is exactly the controller v_cond = (x - x0) / t of RF inversion.
    """
    t, t_next = times[i], times[i + 1]
    on_path = path[i + 1] + (x - path[i]) * (t_next / t)
    return eta[i] * on_path + (1 - eta[i]) * (x + (t_next - t) * v)
