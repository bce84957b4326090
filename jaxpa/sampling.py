"""Sampling: a velocity callable and an array of tokens in, an array of tokens out.

A velocity is any `velocity(x (B, N, C), t (B,)) -> (B, N, C)`; the flow runs from t = 1 (noise) to t = 0 (data), and
a step of Euler's method is x += (t_next - t) * velocity (`solvers` has others). Everything is a pure function of
arrays: there is no scheduler object and no hidden state.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from jaxpa import checks
from jaxpa.loops import Loop, Run, fused
from jaxpa.solvers import Flow, Name, solver_of
from jaxpa.tokens import Routing


class Velocity(Protocol):
    """What the samplers ask of a model. `routing` is passed only where a method replaces features inside it.

    A velocity may also have `prepare(times (S + 1,))`, a velocity with what depends on the times alone computed for all
    of them, and then `at(i)`, the velocity at times[i].
    """

    def __call__(self, x: jax.Array, t: jax.Array, routing: Routing | None = None) -> jax.Array: ...


class Conditions(Protocol):
    """What a model is told besides tokens and time, without the model: any number of them share one set of weights."""

    def bind(self, model: Any) -> Velocity: ...


def prepare(velocity: Any, times: jax.Array) -> Any:
    """The velocity, ready for the times (S + 1,) of a schedule: before a loop, what need not be inside."""
    return velocity.prepare(times) if hasattr(velocity, "prepare") else velocity


def at(velocity: Any, i: jax.Array | int) -> Any:
    """Of a prepared velocity, that at times[i]; a plain function is the same at all of them."""
    return velocity.at(i) if hasattr(velocity, "at") else velocity


def bound(conditions: Any, model: Any) -> Any:
    """The velocity of a model under conditions; what has no `bind` is a velocity already."""
    return conditions.bind(model) if hasattr(conditions, "bind") else conditions


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Guided:
    """Conditions of [references; positive; negative] rows that are guided; see `ClassifierFree`."""

    conditions: Conditions
    scale: jax.Array
    references: int = field(default=0, metadata={"static": True})

    def bind(self, model: Any) -> "ClassifierFree":
        """The guided velocity of a model."""
        return ClassifierFree(self.conditions.bind(model), self.scale, self.references)


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

    def __call__(
        self, x: jax.Array, t: jax.Array, routing: Routing | None = None, observe: Callable[..., Any] | None = None
    ) -> Any:
        """x (B, N, C), t (B,) -> velocity (B, N, C); with `observe`, what it sees has the rows of all three kinds."""
        r, (b, n) = self.references, x.shape[:2]
        both = None if routing is None else routing.repeat(n, 2, shared=r)
        watched = {} if observe is None else {"observe": observe}
        out = self.velocity(jnp.concatenate([x, x[r:]]), jnp.concatenate([t, t[r:]]), both, **watched)
        v, seen = (out, None) if observe is None else out
        positive, negative = v[r:b], v[b:]
        v = jnp.concatenate([v[:r], negative + self.scale * (positive - negative)])
        return v if observe is None else (v, seen)

    def prepare(self, times: jax.Array) -> "ClassifierFree":
        return replace(self, velocity=prepare(self.velocity, times))

    def at(self, i: jax.Array | int) -> "ClassifierFree":
        return replace(self, velocity=at(self.velocity, i))


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Accompanied:
    """Conditions of image tokens that share their sequence with a picture's; see `InSequence`.

    conditions: those of the image tokens, with their `positions` (N, 3) or (B, N, 3). tokens (1 | B, K, C) and
    positions (K, 3): the picture's.
    """

    conditions: Any
    tokens: jax.Array
    positions: jax.Array

    def bind(self, model: Any) -> "InSequence":
        """The velocity of a model."""
        own = self.conditions.positions
        positions = jnp.broadcast_to(self.positions, (*own.shape[:-2], *self.positions.shape))
        together = replace(self.conditions, positions=jnp.concatenate([positions, own], -2))
        return InSequence(together.bind(model), self.tokens)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class InSequence:
    """A velocity of image tokens that read a picture's in the same sequence, as FLUX.1-Kontext does.

    The picture stands in front, so that what a routing says of a row's end holds; what the model says of it is dropped.
    tokens: (1 | B, K, C).
    """

    velocity: Any
    tokens: jax.Array

    def __call__(
        self, x: jax.Array, t: jax.Array, routing: Routing | None = None, observe: Callable[..., Any] | None = None
    ) -> Any:
        """x (B, N, C), t (B,) -> velocity (B, N, C); with `observe`, what it sees has all K + N image tokens."""
        (b, n), k = x.shape[:2], self.tokens.shape[1]
        tokens = jnp.broadcast_to(self.tokens, (b, *self.tokens.shape[1:])).astype(x.dtype)
        watched = {} if observe is None else {"observe": observe}
        moved = None if routing is None else routing.behind(k, n)
        out = self.velocity(jnp.concatenate([tokens, x], 1), t, moved, **watched)
        return out[:, k:] if observe is None else (out[0][:, k:], out[1])

    def prepare(self, times: jax.Array) -> "InSequence":
        return replace(self, velocity=prepare(self.velocity, times))

    def at(self, i: jax.Array | int) -> "InSequence":
        return replace(self, velocity=at(self.velocity, i))


def at_positions(conditions: Any, positions: jax.Array) -> Any:
    """The conditions with other rotary positions (N, 3) of the image tokens."""
    if isinstance(conditions, Guided | Accompanied):
        return replace(conditions, conditions=at_positions(conditions.conditions, positions))
    return replace(conditions, positions=positions)


def euler_step(x: jax.Array, v: jax.Array, t: jax.Array, t_next: jax.Array) -> jax.Array:
    """x at the next flow time: x + (t_next - t) v."""
    return x + (t_next - t) * v


def step(velocity: Velocity, x: jax.Array, times: jax.Array, i: jax.Array) -> jax.Array:
    """Step i of a schedule: x (B, N, C) at times[i] -> x at times[i + 1]."""
    t = jnp.broadcast_to(times[i], x.shape[:1])
    return euler_step(x, velocity(x, t), times[i], times[i + 1])


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class _Sampling:
    """What a sampling reads: the velocity, the times (S + 1,) and the solver's name."""

    velocity: Any
    times: jax.Array
    solver: Name = field(metadata={"static": True})


State = tuple[jax.Array, Any]  # x and the solver's memory


def _enter(data: _Sampling, state: State) -> tuple[_Sampling, State]:
    return replace(data, velocity=prepare(data.velocity, data.times)), state


def _body(data: _Sampling, i: jax.Array, state: State) -> State:
    times = data.times

    def ask(x: jax.Array, j: jax.Array) -> jax.Array:
        return at(data.velocity, j)(x, jnp.broadcast_to(times[j], x.shape[:1]))

    def move(x: jax.Array, v: jax.Array, j: jax.Array) -> jax.Array:
        return euler_step(x, v, times[j], times[j + 1])

    return solver_of(data.solver).step(Flow(ask, move, times), *state, i)


def _x(state: State) -> jax.Array:
    return state[0]


def sampling_run(
    velocity: Velocity,
    x: jax.Array,
    times: jax.Array,
    start: jax.Array | int = 0,
    stop: jax.Array | int | None = None,
    solver: Name = "euler",
) -> Run:
    """The description of `sample`, for `loops.stepped`. With rising times it follows the flow from data to noise.

    Raises ValueError for wrong shapes, times or bounds, or a solver that `SOLVERS` does not name.
    """
    checks.array("x", x, ("B", "N", "C"))
    checks.flow_times("times", times, rising=None)
    steps = times.shape[0] - 1
    stop = steps if stop is None else stop
    checks.number("stop", stop, 0, steps)
    checks.number("start", start, 0, stop if checks.known(stop) else steps)
    state = jnp.asarray(x), solver_of(solver).init(x)
    return Run(_Sampling(velocity, times, solver), state, (Loop(_enter, _body, start, stop),), _x)


def sample(
    velocity: Velocity,
    x: jax.Array,
    times: jax.Array,
    start: jax.Array | int = 0,
    stop: jax.Array | int | None = None,
    solver: Name = "euler",
) -> jax.Array:
    """All steps in one compiled loop: x (B, N, C) at times[start] -> tokens at times[stop] (default: the last).

    The bounds may be traced, so that one program serves every split of a schedule. solver: a name of `SOLVERS`.
    Raises ValueError for what `sampling_run` refuses, and for rising times.
    """
    checks.flow_times("times", times)
    return fused(sampling_run(velocity, x, times, start, stop, solver))


def clean_estimate(before: jax.Array, after: jax.Array, t: jax.Array, t_next: jax.Array) -> jax.Array:
    """What a step takes for the picture: where its straight line from `before` at t to `after` at t_next meets t = 0.

    This needs no model. With an Euler step it is x - t v.
    """
    return after - t_next * (after - before) / (t_next - t)


def initial_noise(seeds: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal noise, one image per seed: seeds (B,) int -> (B, *shape) float32.

    An image's noise is a function of its own seed: neither its place in a batch nor the batch's size matters.
    """
    checks.array("seeds", seeds, ("B",), int)
    return jax.vmap(lambda seed: jax.random.normal(jax.random.key(seed), shape, jnp.float32))(seeds)
