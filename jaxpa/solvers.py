"""Solvers of the flow's ODE dx/dt = v(x, t): how the velocities at the times of a schedule become a step.

A solver is `init` and `step` with a carried memory, chosen by name:

    name    order   evaluations a step
    euler   1       1   x' = x + h v
    heun    2       2   v averaged over both ends of the step, the far one reached by Euler
    ab2     2       1   v extrapolated from this step's and the last one's (Adams-Bashforth with variable steps)

A solver asks for velocities by the index of a time of the schedule, so that what depends on the time alone can be
computed before the loop. It never moves x itself: `Flow.move` does, and may do more than x + h v (a reference that is
held on its path).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp

from jaxpa.arrays import Array, Float, Index
from jaxpa.errors import check_choice

Name = Literal["euler", "heun", "ab2"]


class Flow(NamedTuple):
    """A flow on a schedule, as a solver sees it.

    ask     (x, i) -> the velocity of x at times[i]
    move    (x, v, i) -> x at times[i + 1], where x is at times[i] and v is its velocity over the step
    glance  (x, i) -> what the network reads of x at times[i], (B, ...), as far as it is cheap to know; or None
    rows    samples that pass the network when it is asked
    """

    ask: Callable[[Array, Index], Array]
    move: Callable[[Array, Array, Index], Array]
    times: Float[Array, " times"]
    glance: Callable[[Array, Index], Array] | None = None
    rows: int = 0


@dataclass(frozen=True)
class Solver:
    """One way to step along a flow.

    init          (x) -> the memory before the first step; a multistep solver forgets by it
    step          (flow, x, memory, i) -> x at times[i + 1] and the memory after it, from x at times[i]
    evaluations   velocities asked for in a step
    order         p: the error of a smooth flow shrinks with the p-th power of the step
    """

    init: Callable[[Array], Any]
    step: Callable[[Flow, Array, Any, Index], tuple[Array, Any]]
    evaluations: int
    order: int


def _nothing(x: Array) -> tuple[()]:
    return ()


def _euler(flow: Flow, x: Float[Array, "*x"], memory: tuple[()], i: Index) -> tuple[Float[Array, "*x"], tuple[()]]:
    return flow.move(x, flow.ask(x, i), i), memory


def _heun(flow: Flow, x: Float[Array, "*x"], memory: tuple[()], i: Index) -> tuple[Float[Array, "*x"], tuple[()]]:
    here = flow.ask(x, i)
    there = flow.ask(flow.move(x, here, i), i + 1)
    return flow.move(x, (here + there) / 2, i), memory


class Last(NamedTuple):
    """What `ab2` remembers: the last step's velocity, and how far it went (0: there is no last step)."""

    velocity: Array
    width: Float[Array, ""]


def _no_last(x: Array) -> Last:
    return Last(jnp.zeros_like(x), jnp.zeros((), x.dtype))


def _ab2(flow: Flow, x: Float[Array, "*x"], memory: Last, i: Index) -> tuple[Float[Array, "*x"], Last]:
    v, width = flow.ask(x, i), (flow.times[i + 1] - flow.times[i]).astype(x.dtype)
    first = memory.width == 0
    # v changes linearly in time: at the middle of this step it is v + (v - last) * width / (2 * last width).
    ahead = jnp.where(first, 0, width / (2 * jnp.where(first, 1, memory.width)))
    return flow.move(x, v + ahead * (v - memory.velocity), i), Last(v, width)


SOLVERS: dict[Name, Solver] = {
    "euler": Solver(_nothing, _euler, evaluations=1, order=1),
    "heun": Solver(_nothing, _heun, evaluations=2, order=2),
    "ab2": Solver(_no_last, _ab2, evaluations=1, order=2),
}


def solver_of(name: Name) -> Solver:
    """The solver of a name. Raises ValueError for a name that `SOLVERS` does not have."""
    return SOLVERS[check_choice("solver", name, SOLVERS)]


def evaluations(solver: Name, steps: int) -> int:
    """How often a solver asks for the velocity in so many steps of a schedule. Raises ValueError for another name."""
    return solver_of(solver).evaluations * steps
