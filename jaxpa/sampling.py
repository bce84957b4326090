"""Sampling: a velocity callable and an array of tokens in, an array of tokens out.

A velocity is any `velocity(x (B, N, C), t (B,)) -> (B, N, C)`; the flow runs from t = 1 (noise) to t = 0 (data), and
a step of Euler's method is x += (t_next - t) * velocity (`solvers` has others). Everything is a pure function of
arrays: there is no scheduler object and no hidden state.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from jaxpa import checks
from jaxpa.arrays import Array, Float, Float32, Index, Int, Scalar
from jaxpa.caching import stepper
from jaxpa.loops import Loop, Run, fused
from jaxpa.seeds import random_key, same_everywhere
from jaxpa.solvers import Flow, Name
from jaxpa.tokens import Routing


@runtime_checkable
class Velocity(Protocol):
    """What the samplers ask of a model. `routing` is passed only where a method replaces features inside it.

    A velocity may also have `prepare(times)`, a velocity with what depends on the times alone computed for all of them,
    (S + 1,) or of each row's own (S + 1, B), and then `at(i)`, the velocity at times[i]; and `glance(x, t)`, what it
    reads, by whose change steps may be skipped (`caching`).
    """

    def __call__(
        self, x: Float[Array, "B N C"], t: Float[Array, " B"], routing: Routing | None = None
    ) -> Float[Array, "B N C"]: ...


@runtime_checkable
class Conditions(Protocol):
    """What a model is told besides tokens and time, without the model: any number of them share one set of weights."""

    def bind(self, model: Any) -> Velocity: ...


def prepare(velocity: Any, times: Float[Array, " times *B"]) -> Any:
    """The velocity, ready for the times of a schedule: before a loop, what need not be inside."""
    return velocity.prepare(times) if hasattr(velocity, "prepare") else velocity


def at(velocity: Any, i: Index) -> Any:
    """Of a prepared velocity, that at times[i]; a plain function is the same at all of them."""
    return velocity.at(i) if hasattr(velocity, "at") else velocity


def glance(velocity: Any, times: Float[Array, " times *B"]) -> Callable[[Array, Index], Array] | None:
    """(x, i) -> what a prepared velocity reads of x at times[i]; None if it does not say."""
    if not hasattr(velocity, "glance"):
        return None
    return lambda x, i: at(velocity, i).glance(x, jnp.broadcast_to(times[i], x.shape[:1]))


def rows_of(velocity: Any, rows: int) -> int:
    """How many samples pass the network when a velocity of so many rows is asked."""
    return 2 * rows - velocity.references if isinstance(velocity, ClassifierFree) else rows


def bound(conditions: Any, model: Any) -> Any:
    """The velocity of a model under conditions; what has no `bind` is a velocity already."""
    return conditions.bind(model) if hasattr(conditions, "bind") else conditions


@dataclass(frozen=True, eq=False)
class _OfAnother:
    """A velocity that asks another one: what that one prepares is prepared."""

    velocity: Any

    def prepare(self, times: Float[Array, " times *B"]) -> "_OfAnother":
        return replace(self, velocity=prepare(self.velocity, times))

    def at(self, i: Index) -> "_OfAnother":
        return replace(self, velocity=at(self.velocity, i))


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Guided:
    """Conditions of [references; positive; negative] rows that are guided; see `ClassifierFree`."""

    conditions: Conditions
    scale: Float[Array, "..."]
    references: int = field(default=0, metadata={"static": True})

    def bind(self, model: Any) -> "ClassifierFree":
        """The guided velocity of a model."""
        return ClassifierFree(self.conditions.bind(model), self.scale, self.references)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class ClassifierFree(_OfAnother):
    """Classifier-free guidance: v = v_negative + scale * (v_positive - v_negative).

    `velocity` has the rows [references; positive; negative] and is asked once for all; the first `references` rows
    are not guided. `scale` is an array that broadcasts against the guided rows (B, N, C): () for one guidance,
    (B, N, 1) for a guidance of each token's own.
    """

    scale: Float[Array, "..."]
    references: int = field(default=0, metadata={"static": True})

    def prepare(self, times: Float[Array, " times *B"]) -> "_OfAnother":
        """Of times of each row's own, the negative rows have those of the positive ones."""
        own = times if times.ndim == 1 else jnp.concatenate([times, times[:, self.references :]], 1)
        return super().prepare(own)

    def __call__(
        self,
        x: Float[Array, "B N C"],
        t: Float[Array, " B"],
        routing: Routing | None = None,
        observe: Callable[..., Any] | None = None,
    ) -> Any:
        """The velocity (B, N, C); with `observe`, what it sees has the rows of all three kinds."""
        r, (b, n) = self.references, x.shape[:2]
        both = None if routing is None else routing.repeat(n, 2, shared=r)
        watched = {} if observe is None else {"observe": observe}
        out = self.velocity(jnp.concatenate([x, x[r:]]), jnp.concatenate([t, t[r:]]), both, **watched)
        v, seen = (out, None) if observe is None else out
        positive, negative = v[r:b], v[b:]
        v = jnp.concatenate([v[:r], negative + self.scale * (positive - negative)])
        return v if observe is None else (v, seen)

    def glance(self, x: Float[Array, "B N C"], t: Float[Array, " B"]) -> Array:
        """That of the rows [references; positive]."""
        r = self.references
        return self.velocity.glance(jnp.concatenate([x, x[r:]]), jnp.concatenate([t, t[r:]]))[: x.shape[0]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Accompanied:
    """Conditions of image tokens that share their sequence with a picture's; see `InSequence`.

    conditions: those of the image tokens, with their `positions`; tokens and positions: the picture's.
    """

    conditions: Any
    tokens: Float[Array, "#B K C"]
    positions: Float[Array, "K 3"]

    def bind(self, model: Any) -> "InSequence":
        """The velocity of a model."""
        own = self.conditions.positions
        positions = jnp.broadcast_to(self.positions, (*own.shape[:-2], *self.positions.shape))
        together = replace(self.conditions, positions=jnp.concatenate([positions, own], -2))
        return InSequence(together.bind(model), self.tokens)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class InSequence(_OfAnother):
    """A velocity of image tokens that read a picture's in the same sequence, as FLUX.1-Kontext does.

    The picture stands in front, so that what a routing says of a row's end holds; what the model says of it is dropped.
    """

    tokens: Float[Array, "#B K C"]

    def __call__(
        self,
        x: Float[Array, "B N C"],
        t: Float[Array, " B"],
        routing: Routing | None = None,
        observe: Callable[..., Any] | None = None,
    ) -> Any:
        """The velocity (B, N, C); with `observe`, what it sees has all K + N image tokens."""
        (b, n), k = x.shape[:2], self.tokens.shape[1]
        tokens = jnp.broadcast_to(self.tokens, (b, *self.tokens.shape[1:])).astype(x.dtype)
        watched = {} if observe is None else {"observe": observe}
        moved = None if routing is None else routing.behind(k, n)
        out = self.velocity(jnp.concatenate([tokens, x], 1), t, moved, **watched)
        return out[:, k:] if observe is None else (out[0][:, k:], out[1])

    def glance(self, x: Float[Array, "B N C"], t: Float[Array, " B"]) -> Array:
        """That of the image tokens."""
        return self.velocity.glance(x, t)


def at_positions(conditions: Any, positions: Float[Array, "N 3"]) -> Any:
    """The conditions with other rotary positions of the image tokens."""
    if isinstance(conditions, Guided | Accompanied):
        return replace(conditions, conditions=at_positions(conditions.conditions, positions))
    return replace(conditions, positions=positions)


def euler_step(x: Float[Array, "*x"], v: Float[Array, "*x"], t: Scalar, t_next: Scalar) -> Float[Array, "*x"]:
    """x at the next flow time: x + (t_next - t) v."""
    return x + (t_next - t) * v


def step(
    velocity: Velocity, x: Float[Array, "B N C"], times: Float[Array, " times"], i: Index
) -> Float[Array, "B N C"]:
    """Step i of a schedule: x at times[i] -> x at times[i + 1]."""
    t = jnp.broadcast_to(times[i], x.shape[:1])
    return euler_step(x, velocity(x, t), times[i], times[i + 1])


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class _Sampling:
    """What a sampling reads: the velocity, the times, the threshold of skipped steps, and the solver's name."""

    velocity: Any
    times: Float[Array, " times"]
    cache: Scalar | None
    solver: Name = field(metadata={"static": True})


State = tuple[Float[Array, "B N C"], Any]  # x and the solver's memory


def _enter(data: _Sampling, state: State) -> tuple[_Sampling, State]:
    return replace(data, velocity=prepare(data.velocity, data.times)), state


def _body(data: _Sampling, i: Index, state: State) -> State:
    times = data.times

    def ask(x: Float[Array, "B N C"], j: Index) -> Float[Array, "B N C"]:
        return at(data.velocity, j)(x, jnp.broadcast_to(times[j], x.shape[:1])).astype(x.dtype)

    def move(x: Float[Array, "B N C"], v: Float[Array, "B N C"], j: Index) -> Float[Array, "B N C"]:
        return euler_step(x, v, times[j], times[j + 1]).astype(x.dtype)

    flow = Flow(ask, move, times, glance(data.velocity, times), rows_of(data.velocity, state[0].shape[0]))
    return stepper(data.solver, data.cache).step(flow, *state, i)


def _x(state: State) -> Float[Array, "B N C"]:
    return state[0]


def _counted(state: State) -> tuple[Float[Array, "B N C"], Int[Array, ""]]:
    return state[0], state[1].forwards


def sampling_run(
    velocity: Velocity,
    x: Float[Array, "B N C"],
    times: Float[Array, " times"],
    start: Index = 0,
    stop: Index | None = None,
    solver: Name = "euler",
    cache: Scalar | None = None,
) -> Run:
    """The description of `sample`, for `loops.stepped`. With rising times it follows the flow from data to noise.

    Raises ValueError for wrong shapes, times or bounds, or a solver that `SOLVERS` does not name, or that cannot skip.
    """
    checks.array("x", x, ("B", "N", "C"))
    checks.flow_times("times", times, rising=None)
    steps = times.shape[0] - 1
    stop = steps if stop is None else stop
    checks.number("stop", stop, 0, steps)
    checks.number("start", start, 0, stop if checks.known(stop) else steps)
    times = jnp.asarray(times)
    state = jnp.asarray(x), stepper(solver, cache).init(x)
    result = _x if cache is None else _counted
    return Run(_Sampling(velocity, times, cache, solver), state, (Loop(_enter, _body, start, stop),), result)


def sample(
    velocity: Velocity,
    x: Float[Array, "B N C"],
    times: Float[Array, " times"],
    start: Index = 0,
    stop: Index | None = None,
    solver: Name = "euler",
    cache: Scalar | None = None,
) -> Any:
    """All steps in one compiled loop: x at times[start] -> tokens at times[stop] (default: the last), (B, N, C).

    The bounds may be traced, so that one program serves every split of a schedule. solver: a name of `SOLVERS`. cache:
    the threshold of `caching`, lossy; the result is then (tokens, how many samples passed the network). Raises
    ValueError for what `sampling_run` refuses, and for rising times.
    """
    checks.flow_times("times", times)
    return fused(sampling_run(velocity, x, times, start, stop, solver, cache))


def noised(x0: Float[Array, "#B N C"], noise: Float[Array, "B N C"], t: Scalar) -> Float[Array, "B N C"]:
    """Data on its straight line to noise: x_t = (1 - t) x0 + t noise."""
    return (1 - t) * x0 + t * noise


def clean_estimate(
    before: Float[Array, "*x"], after: Float[Array, "*x"], t: Scalar, t_next: Scalar
) -> Float[Array, "*x"]:
    """What a step takes for the picture: where its straight line from `before` at t to `after` at t_next meets t = 0.

    This needs no model. With an Euler step it is x - t v.
    """
    return after - t_next * (after - before) / (t_next - t)


def initial_noise(seeds: Int[Array, " B"], shape: tuple[int, ...]) -> Float32[Array, "B ..."]:
    """Standard normal noise of a shape, one image per seed.

    An image's noise is a function of its own seed: neither its place in a batch nor the batch's size matters.
    """
    checks.array("seeds", seeds, ("B",), int)
    with same_everywhere():
        return jax.vmap(lambda seed: jax.random.normal(random_key(seed), shape, jnp.float32))(seeds)
