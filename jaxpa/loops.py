"""A loop over the steps of a schedule, described once and run in two ways: as one program, or step by step.

`fused` runs a `Run` under `jax.jit`, `vmap` and `grad`; `stepped` runs the same steps from the host and hands out what
a progress bar, a preview and a cancellation need. Neither compiles again for new data of the same shapes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Enter = Callable[[Any, Any], tuple[Any, Any]]
Body = Callable[[Any, jax.Array, Any], Any]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Loop:
    """Steps start <= i < stop of a run; the bounds may be traced.

    enter   (data of the run, state) -> (data of this loop, state): what is done once, before the first step
    body    (data of this loop, i, state) -> state: step i

    Both are functions of a module: a closure made anew for every run would be compiled anew.
    """

    enter: Enter = field(metadata={"static": True})
    body: Body = field(metadata={"static": True})
    start: jax.Array | int
    stop: jax.Array | int


def _all_of_it(state: Any) -> Any:
    return state


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Run:
    """One loop, or several that follow each other: a pytree, to be passed through `jax.jit`.

    data    what the loops read
    state   what they carry, before the first
    loops   in order; one that has no step may be left out, so the next must not rely on what its `enter` does
    result  (state) -> what the run is for, out of the state
    """

    data: Any
    state: Any
    loops: tuple[Loop, ...]
    result: Callable[[Any], Any] = field(default=_all_of_it, metadata={"static": True})


class Progress(NamedTuple):
    """A run after a step: how many of its steps are done, the whole state, and the result so far."""

    step: int
    steps: int
    state: Any
    result: Any


def fused(run: Run) -> Any:
    """The result of a run, all in one program."""
    state = run.state
    for loop in run.loops:
        data, state = loop.enter(run.data, state)
        state = jax.lax.fori_loop(loop.start, loop.stop, partial(loop.body, data), state)
    return run.result(state)


def trajectory(run: Run) -> Any:
    """The result before the first and after every step of a run of one loop, stacked along a new axis 0.

    The bounds must be known while tracing.
    """
    (loop,) = run.loops
    data, state = loop.enter(run.data, run.state)

    def body(state: Any, i: jax.Array) -> tuple[Any, Any]:
        state = loop.body(data, i, state)
        return state, run.result(state)

    _, after = jax.lax.scan(body, state, jnp.arange(loop.start, loop.stop))
    return _stack_results(run.result(run.state), after)


def _stack_results(first: Any, after: Any) -> Any:
    """A first result in front of those that are stacked already."""
    return jax.tree.map(lambda one, rest: jnp.concatenate([one[None], rest]), first, after)


def stepped(run: Run) -> Iterator[Progress]:
    """The same steps, called from the host: yields after each of them.

    A step is yielded when it is done; the one after it has been started by then, so that the device does not wait for
    whoever looks. To cancel, stop iterating. The bounds must be concrete.
    """
    bounds = [range(int(loop.start), int(loop.stop)) for loop in run.loops]
    state, done, steps, waiting = run.state, 0, sum(map(len, bounds)), None
    for loop, indices in zip(run.loops, bounds, strict=True):
        if not indices:
            continue
        leaves, tree, state = _enter(loop.enter, run.data, state)
        step = _step_program(loop.body, tree)
        for i in indices:
            state, done = step(leaves, np.int32(i), state), done + 1
            if waiting is not None:
                yield jax.block_until_ready(waiting)
            waiting = Progress(done, steps, state, run.result(state))
    if waiting is not None:
        yield jax.block_until_ready(waiting)


# A network has hundreds of arrays inside nested objects. The programs below take them as a flat list, so that the host
# takes the objects apart once a loop instead of once a step.


@lru_cache(maxsize=64)
def _step_program(body: Body, tree: Any) -> Callable[..., Any]:
    return jax.jit(lambda leaves, i, state: body(jax.tree.unflatten(tree, leaves), i, state))


@jax.tree_util.register_static
@dataclass(frozen=True)
class _Origin:
    """The structure of a loop's data, and for each leaf which leaf of the run's data it is (None: it is made)."""

    tree: Any
    leaves: tuple[int | None, ...]


def _enter(enter: Enter, data: Any, state: Any) -> tuple[list[Any], Any, Any]:
    """`enter`, compiled: the leaves and the structure of the loop's data, and the state."""
    leaves, tree = jax.tree.flatten(data)
    made, origin, state = _enter_program(enter, tree)(leaves, state)
    made = iter(made)
    return [next(made) if k is None else leaves[k] for k in origin.leaves], origin.tree, state


@lru_cache(maxsize=64)
def _enter_program(enter: Enter, tree: Any) -> Callable[..., Any]:
    """What passes through `enter` is not returned: a program returns copies, and the network is among it."""

    def program(leaves: list[Any], state: Any) -> tuple[list[Any], _Origin, Any]:
        loop_data, state = enter(jax.tree.unflatten(tree, leaves), state)
        out, out_tree = jax.tree.flatten(loop_data)
        place = {id(leaf): k for k, leaf in enumerate(leaves)}
        origin = tuple(place.get(id(leaf)) for leaf in out)
        return [leaf for leaf, k in zip(out, origin, strict=True) if k is None], _Origin(out_tree, origin), state

    return jax.jit(program)
