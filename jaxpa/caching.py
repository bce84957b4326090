"""Steps in which the network is not asked: TeaCache (Liu et al. 2024) around any solver that asks once a step. Lossy.

A velocity changes from one step to the next about as much as what its network reads. So the relative change of a cheap
`Flow.glance`, |g_i - g_(i-1)| / |g_(i-1)| in mean absolute values, is summed up over the steps, and as long as the sum
stays below a threshold the last velocity is taken again; when it reaches it, the network is asked, and the sum begins
anew. Liu et al. fit a polynomial of the change to one network first; here the change itself counts.

Every row has a sum of its own and takes a velocity anew by it alone, so its neighbours in a batch change nothing: the
network is asked, for all rows, where one of them needs it.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxpa.arrays import Array, Float, Index, Int, Scalar
from jaxpa.solvers import Flow, Name, Solver, solver_of


class Kept(NamedTuple):
    """What is carried from step to step.

    memory     the solver's own
    x          the tokens at the start of the last step
    velocity   the last one of each row
    change     the sum of each row since its velocity was taken; infinite before the first
    forwards   samples that have passed the network so far
    """

    memory: Any
    x: Float[Array, "B N C"]
    velocity: Float[Array, "B N C"]
    change: Float[Array, " B"]
    forwards: Int[Array, ""]


def stepper(name: Name, threshold: Scalar | None) -> Solver:
    """The solver of a name; with a threshold, one that skips the network.

    Raises ValueError for a name that `SOLVERS` does not have, and for a solver that asks more than once a step.
    """
    solver = solver_of(name)
    return solver if threshold is None else skipping(solver, threshold)


def skipping(solver: Solver, threshold: Scalar) -> Solver:
    """The solver, asking the network only where the change of a row has reached the threshold. Raises ValueError.

    At threshold 0 its steps are those of the solver itself.
    """
    if solver.evaluations != 1:
        raise ValueError(f"a solver that asks {solver.evaluations} times a step cannot skip the network")

    def init(x: Float[Array, "B N C"]) -> Kept:
        x = jnp.asarray(x)
        return Kept(solver.init(x), x, jnp.zeros_like(x), jnp.full(x.shape[0], jnp.inf), jnp.int32(0))

    def step(flow: Flow, x: Float[Array, "B N C"], kept: Kept, i: Index) -> tuple[Float[Array, "B N C"], Kept]:
        change = kept.change + _relative_change(flow, kept.x, x, i)
        due = change >= threshold  # (B,)

        def ask() -> Array:
            return jnp.where(due[:, None, None], flow.ask(x, i).astype(x.dtype), kept.velocity)

        v = jax.lax.cond(due.any(), ask, lambda: kept.velocity)
        after, memory = solver.step(flow._replace(ask=lambda *_: v), x, kept.memory, i)
        forwards = kept.forwards + jnp.where(due.any(), flow.rows, 0)
        return after, Kept(memory, x, v, jnp.where(due, 0.0, change), forwards)

    return replace(solver, init=init, step=step)


def _relative_change(flow: Flow, before: Array, x: Array, i: Index) -> Float[Array, " B"]:
    """How far what the network reads has moved over the step that ended at times[i], for each row."""
    if flow.glance is None:
        raise ValueError("this velocity has no `glance`, by which steps could be skipped")
    old, new = flow.glance(before, jnp.maximum(i - 1, 0)), flow.glance(x, i)
    old, new = old.astype(jnp.float32), new.astype(jnp.float32)
    axes = tuple(range(1, new.ndim))
    return jnp.abs(new - old).mean(axes) / jnp.maximum(jnp.abs(old).mean(axes), 1e-12)
