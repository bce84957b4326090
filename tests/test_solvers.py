"""Solvers against flows whose solution is known: alone, in the method on both sides of tau, and backwards."""

from dataclasses import replace
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import MASKS, OFFSETS, C, Linear, N, close, make_task, put, some, states, times_of

from jaxpa import inversion, personalize
from jaxpa.loops import stepped
from jaxpa.personalize import Phase
from jaxpa.sampling import clean_estimate, sample, sampling_run
from jaxpa.solvers import SOLVERS, evaluations

MEAN, SPREAD = 0.7, 0.4
NOISE = some(3, 2, 6, 4)
every_solver = pytest.mark.parametrize("solver", SOLVERS)


def gaussian(x, t, routing=None):
    """The exact velocity E[noise - data | x_t] where every channel of the data is N(MEAN, SPREAD^2)."""
    t = t[:, None, None]
    variance = (1 - t) ** 2 * SPREAD**2 + t**2
    return (t - (1 - t) * SPREAD**2) / variance * (x - (1 - t) * MEAN) - MEAN


def flow(noise, t):
    """Where the flow of `gaussian` takes a noise by the time t: its quantile stays what it is."""
    return (1 - t) * MEAN + np.sqrt((1 - t) ** 2 * SPREAD**2 + t**2) * noise


def slope(errors, counts) -> float:
    """p of error ~ steps^-p, fitted on logarithms."""
    return -np.polyfit(np.log(counts), np.log(errors), 1)[0]


run = jax.jit(partial(sample, gaussian), static_argnames="solver")
COUNTS = (32, 64, 128)


@every_solver
def test_order(solver):
    """On FLUX's shifted schedule, whose steps are of all lengths."""
    counts = (128, 256, 512)  # with fewer steps higher orders still show, with more the rounding of float32
    errors = [np.abs(run(NOISE, times_of(n), solver=solver) - flow(NOISE, 0)).max() for n in counts]
    assert slope(errors, counts) == pytest.approx(SOLVERS[solver].order, abs=0.1)


def test_second_order_is_worth_it():
    """With as many evaluations as Euler's 64, a tenth of its error."""
    euler, heun, ab2 = (np.abs(run(NOISE, times_of(n), solver=name) - flow(NOISE, 0)).max()
                        for name, n in (("euler", 64), ("heun", 32), ("ab2", 64)))  # fmt: skip
    assert max(heun, ab2) < euler / 10


def test_steps_in_float64():
    """Each solver's formula, written out."""
    times = np.asarray(times_of(9), np.float64)

    def v(x, t):
        return np.asarray(gaussian(x, np.full(2, t)))

    want = {name: NOISE.astype(np.float64) for name in SOLVERS}
    last, last_width = None, None
    for t, after in pairwise(times):
        h = after - t
        x = want["heun"]
        predicted = x + h * v(x, t)
        want["heun"] = x + h / 2 * (v(x, t) + v(predicted, after))
        x, now = want["ab2"], v(want["ab2"], t)
        ratio = 0 if last is None else h / last_width
        want["ab2"] = x + h * ((1 + ratio / 2) * now - ratio / 2 * (now if last is None else last))
        last, last_width = now, h
        want["euler"] = want["euler"] + h * v(want["euler"], t)
    for name, x in want.items():
        close(run(NOISE, np.float32(times), solver=name), x, 1e-5)


@every_solver
def test_stepped_and_counted(solver):
    """From the host the same picture, from as many evaluations as `evaluations` says."""
    asked = []

    def counting(x, t, routing=None):
        asked.append(float(t[0]))
        return gaussian(x, t)

    times = times_of(7)
    with jax.disable_jit():
        eager = sample(counting, NOISE, times, solver=solver)
    assert len(asked) == evaluations(solver, 7)
    assert set(asked) <= {float(t) for t in times}
    task = make_task(velocity=lambda rows: Linear(jnp.float32(-0.8)), solver=solver)
    close(states(task, some(7, 1, N, C))[-1].images, personalize.sample(task, some(7, 1, N, C)), 1e-5)
    close(run(NOISE, times, solver=solver), eager, 1e-5)


@every_solver
def test_transforms(solver):
    """Under vmap over schedules, and the gradient against a difference quotient."""
    times = jnp.stack([times_of(6), times_of(6) ** 2])
    both = jax.jit(jax.vmap(lambda t: sample(gaussian, NOISE, t, solver=solver)))(times)
    for k in range(2):
        close(both[k], run(NOISE, times[k], solver=solver), 1e-5)
    total = jax.jit(lambda scale: sample(gaussian, scale * NOISE, times[0], solver=solver)[0, 0, 0])
    # The flow is affine in the noise, so that the quotient is exact but for rounding.
    close(jax.grad(total)(1.0), (total(2.0) - total(0.0)) / 2, 1e-5)


# The method ---------------------------------------------------------------------------------------------------

SLOPE = 0.9


def known(task, x, x0, noise) -> np.ndarray:
    """The images where each token's velocity is SLOPE times the token that feeds it.

    While t > tau a target cell is fed by the reference's straight line, whose integral is known; else by itself.
    """
    split = float(task.times[int(personalize.gate(task))])
    placement = put(MASKS[:1], OFFSETS[:1])
    source, target = np.asarray(placement.source)[0], np.asarray(placement.target)[0]
    line = x0 * (split - 1) + (noise - x0) * (split**2 - 1) / 2
    fed = (x + SLOPE * line[:, source]) * np.exp(-SLOPE * split)
    return np.where(target[:, None], fed, x * np.exp(-SLOPE))


@every_solver
def test_order_of_the_method(solver):
    """Replaced above tau, free below it: were one evaluation of a step replaced and the other not, it would be 1."""
    (x, x0, noise), errors = (some(seed, 1, N, C) for seed in (5, 1, 2)), []
    for steps in COUNTS:
        task = make_task(velocity=lambda rows: Linear(jnp.float32(SLOPE)), steps=steps, solver=solver)
        task = replace(task, eta=jnp.ones(steps))
        errors.append(np.abs(jax.jit(personalize.sample)(task, x) - known(task, x, x0, noise)).max())
    assert slope(errors, COUNTS) == pytest.approx(SOLVERS[solver].order, abs=0.15)


@every_solver
@pytest.mark.parametrize("level", ["layer", "token"])
def test_which_evaluations_are_replaced(level, solver):
    """Those of the steps that start above tau, all of them; with their references on the path at the time asked."""
    task, asked = make_task(level=level, solver=solver, tau=0.6), []

    def early(x, t, routing=None):
        asked.append(("early", float(t[0]), x))
        return -x

    def late(x, t, routing=None):
        asked.append(("late", float(t[0]), x))
        return -x

    assert task.early.routing is not None
    task = replace(task, early=Phase(early, task.early.routing), late=Phase(late), model=None, eta=jnp.ones(6))
    with jax.disable_jit():
        personalize.sample(task, some(7, 1, N, C))
    ends = {"euler": [0], "ab2": [0], "heun": [0, 1]}[solver]
    above, times = int(personalize.gate(task)), task.times
    want = [("early" if i < above else "late", float(times[i + end])) for i in range(6) for end in ends]
    assert [(phase, t) for phase, t, _ in asked] == want
    indices = [i + end for i in range(above) for end in ends]
    taken = np.asarray(task.early.routing.source)[1] < N
    for j, (_, _, x) in zip(indices, asked, strict=False):
        if level == "layer":
            close(x[:1], task.trajectory[j], 1e-6)
        else:
            moved = np.asarray(task.trajectory[j, 0])[np.asarray(task.early.routing.source)[1][taken]]
            close(x[0][taken], moved, 1e-6)


# Backwards ----------------------------------------------------------------------------------------------------


@every_solver
def test_order_of_the_way_back(solver):
    """From data to noise along the known flow: every state of the path."""
    back = jax.jit(lambda x0, times: inversion.follow_back(gaussian, x0, times, solver))
    errors = []
    for steps in COUNTS:
        times = times_of(steps)
        path = np.asarray(back(flow(NOISE, 0).astype(np.float32), times))
        errors.append(np.abs(path - np.stack([flow(NOISE, t) for t in times])).max())
    assert slope(errors, COUNTS) == pytest.approx(SOLVERS[solver].order, abs=0.15)


def test_sweeps_find_where_the_sampler_came_from():
    """One step of Euler on an affine flow can be solved for its start: what the sweeps converge to."""
    times = times_of(12)
    invert = jax.jit(partial(inversion.invert, gaussian), static_argnames="sweeps")
    forward, data = inversion.forward_times(times), flow(NOISE, 0).astype(np.float32)
    want = [data]
    for t, t_next in zip(times[-2::-1], times[:0:-1], strict=True):
        offset = np.asarray(gaussian(np.zeros_like(NOISE), np.full(2, t)))
        gain = np.asarray(gaussian(np.ones_like(NOISE), np.full(2, t))) - offset
        want.append((want[-1] - (t_next - t) * offset) / (1 + (t_next - t) * gain))
    errors = [np.abs(invert(data, NOISE, forward, 0.0, sweeps=k)[-1] - want[-1]).max() for k in (0, 1, 2, 4, 12)]
    assert all(after < before / 2 for before, after in pairwise(errors[:4]))
    assert errors[-1] < 1e-5
    # And sampled from there, the data again.
    lost = [np.abs(run(invert(data, NOISE, forward, 0.0, sweeps=k)[-1], times) - data).max() for k in (0, 2, 12)]
    assert lost[2] < 1e-5 < lost[1] < lost[0] / 4


def test_sweeps_step_by_step():
    forward, x0 = inversion.forward_times(times_of(5)), some(1, 1, N, C)
    linear = Linear(jnp.float32(0.7))
    whole = jax.jit(inversion.invert, static_argnames="sweeps")(linear, x0, x0, forward, 0.3, sweeps=2)
    got = [progress.result for progress in stepped(inversion.inversion_run(linear, x0, x0, forward, 0.3, 2))]
    close(jnp.stack([x0, *got]), whole, 1e-6)


# Names and previews ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "message"), [("Heun", "did you mean 'heun'"), ("adams", "one of 'euler', 'heun'")])
@pytest.mark.usefixtures("as_users_call")
def test_unknown_names(name, message):
    with pytest.raises(ValueError, match=message):
        sample(gaussian, NOISE, times_of(2), solver=name)
    with pytest.raises(ValueError, match=message):
        personalize.sample(make_task(solver=name), some(7, 1, N, C))
    with pytest.raises(ValueError, match=message):
        evaluations(name, 4)


@jax.tree_util.register_static
class StraightToMean:
    def __call__(self, x, t, routing=None):
        return (x - MEAN) / t[:, None, None]


straight_to_mean = StraightToMean()


def test_estimate_of_the_clean_picture():
    """A step's straight line meets t = 0 at x - t v, for data without spread from the first step on."""
    times, before = times_of(5), jnp.asarray(NOISE)

    for i, progress in enumerate(stepped(sampling_run(straight_to_mean, before, times))):
        close(clean_estimate(before, progress.result, times[i], times[i + 1]), np.full(NOISE.shape, MEAN), 1e-5)
        v = straight_to_mean(before, jnp.full(2, times[i]))
        close(clean_estimate(before, progress.result, times[i], times[i + 1]), before - times[i] * v, 1e-5)
        before = progress.result
