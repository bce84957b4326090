"""One description of a loop, run as one program and step by step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpa.devices.timing import Clock
from jaxpa.loops import Loop, Run, fused, stepped, trajectory

PIECES = {"up": jnp.float32(1.5), "network": jnp.ones((3, 3)) / 4}


def enter_up(data, state):
    return {**data, "twice": 2 * data["up"]}, (*state, jnp.zeros_like(state[0]))


def enter_turn(data, state):
    return data["network"], state[:1]


def up(data, i, state):
    x, total = state
    return x + data["twice"] * i, total + x.sum()


def turn(network, i, state):
    return (state[0] @ network + i,)


def first(state):
    return state[0]


def run_of(split, stop=7, start=2, data=PIECES) -> Run:
    """Two loops whose data and states have different structures."""
    x = jnp.arange(6, dtype=jnp.float32).reshape(2, 3)
    return Run(data, (x,), (Loop(enter_up, up, start, split), Loop(enter_turn, turn, split, stop)), first)


def by_hand(split, stop=7, start=2) -> list[np.ndarray]:
    x, seen = np.arange(6.0).reshape(2, 3), []
    for i in range(start, stop):
        x = x + 3.0 * i if i < split else x @ np.full((3, 3), 0.25) + i
        seen.append(x)
    return seen


@pytest.mark.parametrize("split", [2, 4, 7])
def test_both_ways(split):
    """After every step, and with either loop empty."""
    want, got = by_hand(split), list(stepped(run_of(split)))
    np.testing.assert_allclose(jax.jit(fused)(run_of(split)), want[-1], rtol=1e-6)
    assert [(p.step, p.steps) for p in got] == [(k + 1, 5) for k in range(5)]
    for progress, each in zip(got, want, strict=True):
        np.testing.assert_allclose(progress.result, each, rtol=1e-6)
        np.testing.assert_array_equal(progress.state[0], progress.result)


def test_trajectory():
    run = Run(PIECES, (jnp.ones((2, 3)),), (Loop(enter_turn, turn, 1, 4),), first)
    states = [np.ones((2, 3)), *(progress.result for progress in stepped(run))]
    np.testing.assert_allclose(jax.jit(lambda: trajectory(run))(), np.stack(states), rtol=1e-6)


def test_nothing_to_do():
    assert list(stepped(run_of(2, 2))) == []
    np.testing.assert_array_equal(fused(run_of(2, 2)), run_of(2, 2).state[0])


def test_new_bounds_and_data_compile_nothing():
    program = jax.jit(lambda run: fused(run))
    program(run_of(3)), list(stepped(run_of(3)))
    others = [run_of(5, 6, data=jax.tree.map(lambda a: a + 1, PIECES)), run_of(4, 9, 1)]
    with Clock() as again:
        for run in others:
            program(run), list(stepped(run))
    assert again.programs == 0


def test_the_host_is_one_step_behind_and_can_stop():
    """When a step is yielded it is done, and the next one runs; after the last look nothing else is started."""
    started = []

    def body(data, i, state):
        jax.debug.callback(lambda i: started.append(int(i)), i)
        return (state[0] + 1,)

    for progress in stepped(Run(PIECES, (jnp.zeros((2, 3)),), (Loop(enter_turn, body, 0, 50),), first)):
        assert float(progress.result[0, 0]) == progress.step
        if progress.step == 3:
            break
    jax.effects_barrier()
    assert started == [0, 1, 2, 3]


def test_the_network_is_not_copied():
    """Data that a loop hands through stays the array that it is, however often the loop is entered."""
    shape = (123, 457)
    data = {**PIECES, "network": jnp.ones(shape)}

    def body(data, i, state):
        return (state[0] + data["network"][0, 0], state[1])

    def alive():
        return sum(each.shape == shape for each in jax.live_arrays())

    run = Run(data, (jnp.zeros(3),), (Loop(enter_up, body, 0, 3),), first)
    assert [alive() for _ in stepped(run)] == [1, 1, 1]
