"""Runs of the method: one compiled program, or stepped by the host if a callback follows."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpa import inversion, personalize, sampling
from jaxpa.inversion import ForwardTimes
from jaxpa.loops import Run, stepped
from jaxpa.personalize import Task
from jaxpa.sampling import Velocity
from jaxpa.solvers import Name


class Step(NamedTuple):
    """What an `on_step` hears: the stage, how many of its steps are done, and of how many.

    tokens: () -> what this step takes for the pictures (B, N, C), of every row that is sampled together; picture: the
    same of row k, decoded. Both are computed when they are asked for, and None where the stage makes no picture.
    After a run that may skip the network, the stage "forwards" says how many samples have passed it.
    """

    stage: str
    done: int
    total: int
    tokens: Callable[[], jax.Array] | None = None
    picture: Callable[[int], Any] | None = None


OnStep = Callable[[Step], None]
"""Where there is one, the host steps the loop."""

_sample = jax.jit(sampling.sample, static_argnames="solver")
_invert, _follow_back = jax.jit(inversion.invert, static_argnums=5), jax.jit(inversion.follow_back, static_argnums=3)
_personalize, _estimate = jax.jit(personalize.sample), jax.jit(sampling.clean_estimate)


def _watched(run: Run, times: Any, on_step: OnStep) -> Any:
    """The result of a sampling that the host steps, telling `on_step` of each step."""
    result = run.result(run.state)
    for progress in stepped(run):
        before, after, step = _tokens(result), _tokens(progress.result), progress.step
        estimate = partial(_estimate, before, after, times[step - 1], times[step])
        on_step(Step("sample", step, progress.steps, estimate))
        result = progress.result
    return result


def _tokens(result: Any) -> jax.Array:
    """The tokens of a result; those of a run that may skip the network come with a count."""
    return result[0] if isinstance(result, tuple) else result


def sampled(
    velocity: Velocity,
    x: jax.Array,
    times: np.ndarray,
    on_step: OnStep | None,
    solver: Name = "euler",
    cache: float | None = None,
) -> jax.Array:
    """The tokens of `sampling.sample`, stepped by the host if there is an `on_step`."""
    threshold = None if cache is None else jnp.float32(cache)
    if on_step is None:
        made = _sample(velocity, x, times, solver=solver, cache=threshold)
    else:
        run = sampling.sampling_run(velocity, x, jnp.asarray(times), solver=solver, cache=threshold)
        made = _watched(run, times, on_step)
    return made if cache is None else _told(made, on_step)


def personalized(task: Task, x: jax.Array, on_step: OnStep | None) -> jax.Array:
    """The tokens of `personalize.sample`, in the same way."""
    if on_step is None:
        made = _personalize(task, x)
    else:
        made = _watched(personalize.task_run(task, x), np.asarray(task.times), on_step)
    return made if task.cache is None else _told(made, on_step)


def _told(made: tuple[jax.Array, jax.Array], on_step: OnStep | None) -> jax.Array:
    """The tokens of a run that may skip the network; how often it did not is told."""
    tokens, forwards = made
    if on_step is not None:
        on_step(Step("forwards", int(forwards), int(forwards)))
    return tokens


def inverted(
    velocity: Velocity,
    x0: jax.Array,
    noise: jax.Array,
    forward: ForwardTimes,
    gamma: float,
    on_step: OnStep | None,
    sweeps: int = 0,
) -> jax.Array:
    """`inversion.invert`, in the same way."""
    if on_step is None:
        return _invert(velocity, x0, noise, forward, gamma, sweeps)
    return _kept(inversion.inversion_run(velocity, x0, noise, forward, gamma, sweeps), on_step)


def followed_back(
    velocity: Velocity, x0: jax.Array, times: np.ndarray, on_step: OnStep | None, solver: Name
) -> jax.Array:
    """`inversion.follow_back` from data to noise, in the same way."""
    if on_step is None:
        return _follow_back(velocity, x0, times, solver)[::-1]
    return _kept(sampling.sampling_run(velocity, x0, jnp.asarray(times[::-1]), solver=solver), on_step)


def _kept(run: Run, on_step: OnStep) -> jax.Array:
    """Every state of an inversion that the host steps, the first one too."""
    states = [run.result(run.state)]
    for progress in stepped(run):
        on_step(Step("invert", progress.step, progress.steps))
        states.append(progress.result)
    return jnp.stack(states)
