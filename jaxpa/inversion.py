"""The reference's way between data and noise.

A path is an array (S + 1, R, N, C): the reference tokens at every flow time of a schedule, path[i] at times[i]. The
straight line needs no model; an ODE inversion follows the model's own flow backwards; RF inversion (Rout et al. 2024)
mixes the two by gamma on the way to noise and by eta on the way back.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxpa.sampling import Velocity


def straight_line(x0: jax.Array, noise: jax.Array, times: jax.Array) -> jax.Array:
    """x_t = (1 - t) x0 + t noise: x0, noise (R, N, C), times (S + 1,) -> path (S + 1, R, N, C)."""
    t = times[:, None, None, None]
    return (1 - t) * x0 + t * noise


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class ForwardTimes:
    """Each step of the controlled forward ODE, from data to noise: all (S,) float32.

    model    the flow time at which the model is asked
    width    how far the step moves
    control  the time in the controller's denominator: 1 - control is the way that is left, never 0
    """

    model: jax.Array
    width: jax.Array
    control: jax.Array


def forward_times(times: jax.Array | np.ndarray, ask: Literal["end", "start"] = "end") -> ForwardTimes:
    """A schedule walked backwards; with gamma = 1 it ends exactly at the noise.

    ask: where each step asks the model. "end", its noisier end, repeats the times of the sampler, whose way it
    undoes; "start" is the explicit Euler step of Rout et al. 2024, whose first question is at t = 0.
    """
    backwards = jnp.asarray(times)[::-1]
    start, end = backwards[:-1], backwards[1:]
    return ForwardTimes(end if ask == "end" else start, end - start, start)


def official_forward_times(times: jax.Array | np.ndarray) -> ForwardTimes:
    """The official code's times: i / (S + 1) for model and controller, the schedule's widths in sampling order."""
    times = jnp.asarray(times)
    steps = times.shape[0] - 1
    asked = jnp.arange(steps, dtype=jnp.float32) / (steps + 1)
    return ForwardTimes(asked, times[:-1] - times[1:], asked)


def invert(
    velocity: Velocity, x0: jax.Array, noise: jax.Array, forward: ForwardTimes, gamma: jax.Array | float
) -> jax.Array:
    """The controlled forward ODE: Y += width * [u + gamma ((noise - Y) / (1 - control) - u)], u the model's velocity.

    x0, noise (R, N, C) -> every state from data to noise, (S + 1, R, N, C); reversed, it is a path. gamma = 0 is the
    plain ODE inversion; with gamma = 1 the model cancels and `closed_form` gives the same without asking it.
    Source: Rout et al. 2024, Eq. 8; `official_forward_times` for the official code's variant of t and the widths.
    """

    steps = jnp.arange(forward.model.shape[0])

    def body(y: jax.Array, i: jax.Array) -> tuple[jax.Array, jax.Array]:
        y = forward_step(velocity, y, noise, forward, gamma, i)
        return y, y

    _, states = jax.lax.scan(body, x0, steps)
    return jnp.concatenate([x0[None], states])


def forward_step(
    velocity: Velocity, y: jax.Array, noise: jax.Array, forward: ForwardTimes, gamma: jax.Array | float, i: jax.Array
) -> jax.Array:
    """Step i of `invert`: y (R, N, C) -> (R, N, C)."""
    t, width = forward.model[i], forward.width[i]
    u = velocity(y, jnp.broadcast_to(t, y.shape[:1]))
    towards = (noise - y) / (1 - forward.control[i])
    return y + width * (u + gamma * (towards - u))


def closed_form(x0: jax.Array, noise: jax.Array, forward: ForwardTimes) -> jax.Array:
    """What `invert` ends at with gamma = 1: noise + f (x0 - noise), f = prod(1 - width / (1 - control))."""
    factor = jnp.prod(1 - forward.width / (1 - forward.control))
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
