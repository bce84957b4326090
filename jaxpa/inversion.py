"""The reference's way between data and noise.

A trajectory is an array "times R N C": the reference tokens at each flow time of a schedule, trajectory[i] at
times[i]. The straight line needs no model; an ODE inversion follows the model's own flow backwards; RF inversion (Rout
et al. 2024) mixes the two by gamma on the way to noise and by eta on the way back.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxpa import checks
from jaxpa.arrays import Array, Float, Float32, Index, Scalar
from jaxpa.errors import check_choice
from jaxpa.loops import Loop, Run, trajectory
from jaxpa.sampling import Velocity, at, prepare, sampling_run
from jaxpa.solvers import Name


def straight_line(
    x0: Float[Array, "R N C"], noise: Float[Array, "R N C"], times: Float[Array, " times"]
) -> Float[Array, "times R N C"]:
    """The trajectory x_t = (1 - t) x0 + t noise."""
    _check_ends(x0, noise)
    checks.flow_times("times", times, rising=None)
    t = times[:, None, None, None]
    return (1 - t) * x0 + t * noise


def _check_ends(x0: Array, noise: Array) -> None:
    checks.array("x0", x0, ("R", "N", "C"))
    checks.array("noise", noise, x0.shape)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class ForwardTimes:
    """Each step of the controlled forward ODE, from data to noise.

    model    the flow time at which the model is asked
    width    how far the step moves
    control  the time in the controller's denominator: 1 - control is the time that remains, never 0
    """

    model: Float[Array, " S"]
    width: Float[Array, " S"]
    control: Float[Array, " S"]


def forward_times(times: Float[Array | np.ndarray, " times"], ask: Literal["end", "start"] = "end") -> ForwardTimes:
    """A schedule walked backwards; with gamma = 1 it ends exactly at the noise.

    ask: the end of each step at which the model is asked. At "end", the noisier one, the times are those at which the
    sampler asks, so that its steps are undone; "start" is the explicit Euler step of Rout et al. 2024, whose first
    evaluation is at t = 0. Raises ValueError for another word, and for times that do not fall.
    """
    check_choice("ask", ask, ("end", "start"))
    checks.flow_times("times", times)
    backwards = jnp.asarray(times)[::-1]
    start, end = backwards[:-1], backwards[1:]
    return ForwardTimes(end if ask == "end" else start, end - start, start)


def official_forward_times(times: Float[Array | np.ndarray, " times"]) -> ForwardTimes:
    """The official code's times: i / (S + 1) for model and controller, the schedule's widths in sampling order.

    Raises ValueError for times that do not fall.
    """
    checks.flow_times("times", times)
    times = jnp.asarray(times)
    steps = times.shape[0] - 1
    asked = jnp.arange(steps, dtype=jnp.float32) / (steps + 1)
    return ForwardTimes(asked, times[:-1] - times[1:], asked)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class _Inversion:
    """What an inversion reads; see `invert`."""

    velocity: Any
    noise: Float[Array, "R N C"]
    forward: ForwardTimes
    gamma: Scalar
    sweeps: int = field(metadata={"static": True})


def _enter(data: _Inversion, y: Float[Array, "R N C"]) -> tuple[_Inversion, Float[Array, "R N C"]]:
    return replace(data, velocity=prepare(data.velocity, data.forward.model)), y


def _body(data: _Inversion, k: Index, y: Float[Array, "R N C"]) -> Float[Array, "R N C"]:
    velocity, t, width = at(data.velocity, k), data.forward.model[k], data.forward.width[k]
    towards = (data.noise - y) / (1 - data.forward.control[k])

    def arrive(end: Float[Array, "R N C"]) -> Float[Array, "R N C"]:
        u = velocity(end, jnp.broadcast_to(t, y.shape[:1]))
        return (y + width * (u + data.gamma * (towards - u))).astype(y.dtype)

    if not data.sweeps:
        return arrive(y)
    return jax.lax.fori_loop(0, data.sweeps + 1, lambda _, end: arrive(end), y)


def inversion_run(
    velocity: Velocity,
    x0: Float[Array, "R N C"],
    noise: Float[Array, "R N C"],
    forward: ForwardTimes,
    gamma: Scalar = 0.0,
    sweeps: int = 0,
) -> Run:
    """The description of `invert`, for `loops.stepped`: its results are the states after each step."""
    _check_ends(x0, noise)
    checks.array("forward.model", forward.model, ("S",))
    for name in ("width", "control"):
        checks.array(f"forward.{name}", getattr(forward, name), forward.model.shape)
    checks.number("gamma", gamma, 0, 1)
    checks.whole("sweeps", sweeps, 0)
    data = _Inversion(velocity, noise, forward, gamma, sweeps)
    return Run(data, jnp.asarray(x0), (Loop(_enter, _body, 0, forward.model.shape[0]),))


def invert(
    velocity: Velocity,
    x0: Float[Array, "R N C"],
    noise: Float[Array, "R N C"],
    forward: ForwardTimes,
    gamma: Scalar = 0.0,
    sweeps: int = 0,
) -> Float[Array, "times R N C"]:
    """The controlled forward ODE: Y += width * [u + gamma ((noise - Y) / (1 - control) - u)], u the model's velocity.

    Returns every state from data to noise; reversed, a trajectory. gamma = 0 is the plain ODE inversion; with
    gamma = 1 the model cancels and `closed_form` gives the same without asking it.

    sweeps: how often each step is repeated with the model asked where the step arrived, at one evaluation a sweep. With
    `forward_times` and gamma = 0 this is fixed-point iteration: it converges to the state from which an Euler step of
    the sampler leads exactly back to Y.

    Source: Rout et al. 2024, Eq. 8; `official_forward_times` for the official code's variant of t and the widths.
    """
    return trajectory(inversion_run(velocity, x0, noise, forward, gamma, sweeps))


def follow_back(
    velocity: Velocity, x0: Float[Array, "R N C"], times: Float[Array, " times"], solver: Name = "euler"
) -> Float[Array, "times R N C"]:
    """The model's own flow from data to noise, by any solver: a trajectory.

    The solver walks the schedule backwards, from t = 0, so its error has the solver's order; unlike `invert`, it does
    not undo the sampler's own steps.
    """
    checks.flow_times("times", times)
    return trajectory(sampling_run(velocity, x0, times[::-1], solver=solver))[::-1]


def closed_form(
    x0: Float[Array, "R N C"], noise: Float[Array, "R N C"], forward: ForwardTimes
) -> Float[Array, "R N C"]:
    """What `invert` ends at with gamma = 1: noise + f (x0 - noise), f = prod(1 - width / (1 - control))."""
    _check_ends(x0, noise)
    factor = jnp.prod(1 - forward.width / (1 - forward.control))
    return noise + factor * (x0 - noise)


def control(
    steps: int, eta: float, start: float = 0.0, stop: float = 0.99, decay_power: float | None = None
) -> Float32[np.ndarray, " {steps}"]:
    """eta of every step: `eta` for int(start S) <= i < min(int(stop S), S), 0 elsewhere.

    `decay_power` p multiplies it by (1 - i / S)^p. The official code's rule and its names.
    """
    checks.whole("steps", steps, 1)
    for name, value in (("eta", eta), ("start", start), ("stop", stop)):
        checks.number(name, value, 0, 1)
    i = np.arange(steps)
    inside = (i >= int(start * steps)) & (i < min(int(stop * steps), steps))
    fade = 1.0 if decay_power is None else (1 - i / steps) ** decay_power
    return np.where(inside, eta * fade, 0.0).astype(np.float32)


def reference_step(
    x: Float[Array, "R N C"],
    v: Float[Array, "R N C"],
    trajectory: Float[Array, " times #R N C"],
    times: Float[Array, " times"],
    eta: Float[Array, " times-1"],
    i: Index,
) -> Float[Array, "R N C"]:
    """Step i of the reference rows: x at times[i], and its velocity v -> x at times[i + 1].

    With eta[i] = 1 the rows follow their trajectory, with 0 the model, in between a mixture. Away from it, the pull is
    towards its data end: on a straight line it is exactly the controller v_cond = (x - x0) / t of RF inversion.
    """
    t, t_next = times[i], times[i + 1]
    on_trajectory = trajectory[i + 1] + (x - trajectory[i]) * (t_next / t)
    return eta[i] * on_trajectory + (1 - eta[i]) * (x + (t_next - t) * v)
