"""Skipped steps: against the same rule written out in NumPy, and against a run that skips nothing."""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import C, N, Toy, ToyConditions, close, make_task, some, times_of

from jaxpa import personalize, sampling
from jaxpa.batching import Part, likeness
from jaxpa.caching import stepper
from jaxpa.loops import stepped
from jaxpa.personalize import Task, gate
from jaxpa.sampling import ClassifierFree, sample, sampling_run

STEPS, TIMES = 12, times_of(12)
NOISE = some(1, 3, 6, 4) * np.float32([0.5, 1, 3])[:, None, None]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Curved:
    """A velocity that each row changes at a pace of its own, and what it says it reads."""

    pace: jax.Array

    def __call__(self, x, t, routing=None):
        return jnp.sin(self.pace * x) + t[:, None, None] * x

    def glance(self, x, t):
        return jnp.cos(x) + self.pace * t[:, None, None]


CURVED = Curved(jnp.float32([0.3, 1, 2])[:, None, None])
run = jax.jit(sample, static_argnames="solver")


def written_out(x: np.ndarray, threshold: float) -> tuple[np.ndarray, int]:
    """Euler's steps; the network is asked where a row's sum has reached the threshold, and that row takes it."""
    pace, x, before, asked = np.asarray(CURVED.pace), x.astype(np.float64), None, 0
    velocity, total = np.zeros_like(x), np.full(len(x), np.inf)
    for t, following in zip(TIMES[:-1].astype(float), TIMES[1:], strict=True):
        seen = np.cos(x) + pace * t
        if before is not None:
            total = total + np.abs(seen - before).mean((1, 2)) / np.abs(before).mean((1, 2))
        due, before = total >= threshold, seen
        asked += len(x) * bool(due.any())
        velocity[due] = (np.sin(pace * x) + t * x)[due]
        total[due] = 0
        x = x + (following - t) * velocity
    return x, asked


@pytest.mark.parametrize("threshold", [0.0, 0.08, 0.25, 100.0])
def test_the_rule(threshold):
    got, forwards = run(CURVED, NOISE, TIMES, cache=jnp.float32(threshold))
    want, asked = written_out(NOISE, threshold)
    assert forwards == asked
    close(got, want, 1e-5)
    assert {0.0: STEPS * 3, 100.0: 3}.get(threshold, asked) == asked
    *_, last = stepped(sampling_run(CURVED, NOISE, jnp.asarray(TIMES), cache=jnp.float32(threshold)))
    np.testing.assert_array_equal(last.result[1], forwards)
    close(last.result[0], got, 1e-6)


def test_nothing_is_skipped_at_threshold_0():
    for solver in ("euler", "ab2"):
        got, forwards = run(CURVED, NOISE, TIMES, cache=jnp.float32(0), solver=solver)
        close(got, run(CURVED, NOISE, TIMES, solver=solver), 1e-6)
        assert forwards == 3 * STEPS


def test_the_network_is_not_asked():
    """What is counted is what runs: the velocity tells the host whenever it does."""
    calls = []

    def told(x, t, routing=None):
        jax.debug.callback(lambda _: calls.append(1), t)
        return CURVED(x, t)

    velocity = partial(told)
    velocity.glance = CURVED.glance  # type: ignore[attr-defined]
    _, forwards = jax.block_until_ready(jax.jit(partial(sample, velocity))(NOISE, TIMES, cache=jnp.float32(0.25)))
    jax.effects_barrier()
    assert len(calls) == forwards / 3 < STEPS


def test_neighbours_change_nothing():
    together, _ = run(CURVED, NOISE, TIMES, cache=jnp.float32(0.2))
    for k in range(3):
        row = slice(k, k + 1)
        alone, _ = run(Curved(CURVED.pace[row]), NOISE[row], TIMES, cache=jnp.float32(0.2))
        close(together[row], alone, 1e-6)


def test_a_threshold_is_data():
    run(CURVED, NOISE, TIMES, cache=jnp.float32(0.1))
    compiled = run._cache_size()
    run(CURVED, NOISE, TIMES, cache=jnp.float32(0.3))
    assert run._cache_size() == compiled


def test_guided_rows_count_twice():
    """The negative rows read the same tokens, so the positive ones decide."""
    guided = ClassifierFree(Curved(jnp.concatenate([CURVED.pace] * 2)), jnp.float32(1.0))
    got, forwards = run(guided, NOISE, TIMES, cache=jnp.float32(0.2))
    want, alone = run(CURVED, NOISE, TIMES, cache=jnp.float32(0.2))
    close(got, want, 1e-5)
    assert forwards == 2 * alone


def test_what_cannot_skip():
    with pytest.raises(ValueError, match="asks 2 times a step"):
        stepper("heun", 0.1)
    with pytest.raises(ValueError, match="has no `glance`"):
        sample(lambda x, t: x, NOISE, TIMES, cache=0.1)


# The method ---------------------------------------------------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Seen(Toy):
    def glance(self, x, t):
        return jnp.tanh(x[:, :N] + self.shift) + t[:, None, None]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SeenConditions(ToyConditions):
    def bind(self, model):
        return Seen(model, self.shift)


def task_of(cache: float | None, **keywords) -> Task:
    task = make_task(**keywords)
    early, late = (
        phase._replace(conditions=SeenConditions(phase.conditions.shift)) for phase in (task.early, task.late)
    )
    return replace(task, early=early, late=late, cache=None if cache is None else jnp.float32(cache))


PERSONALIZE = jax.jit(personalize.sample)


@pytest.mark.parametrize("keywords", [{"references": 2, "images": 2, "concat": "zero"}, {"concat": "joined"}])
def test_the_method(keywords):
    """Equal to the plain run where nothing is skipped; asked once on either side of tau where everything is."""
    r, g = keywords.get("references", 1), keywords.get("images", 1)
    x, plain = some(5, g, N, C), task_of(None, **keywords)
    above, steps = int(gate(plain)), len(plain.times) - 1
    early, late = r + g, r * (keywords["concat"] == "zero") + g
    want = PERSONALIZE(plain, x)
    got, forwards = PERSONALIZE(task_of(0, **keywords), x)
    close(got, want, 1e-6)
    assert forwards == above * early + (steps - above) * late
    once, forwards = PERSONALIZE(task_of(1e9, **keywords), x)
    assert forwards == early + late
    assert np.abs(np.asarray(once) - np.asarray(want)).max() > 1e-2


def test_the_method_stepped():
    """By the host, the steps are the same, even where one of the two loops has none."""
    x = some(5, 1, N, C)
    for tau in (0.0, 0.6, 1.0):
        task = replace(task_of(0.1, level="token"), tau=jnp.float32(tau))
        fused = PERSONALIZE(task, x)
        *_, last = stepped(personalize.task_run(task, x))
        close(last.result[0], fused[0], 1e-6)
        assert last.result[1] == fused[1]


def test_tasks_of_several_thresholds_share_no_batch():
    x = some(5, 1, N, C)
    none, one, same, other = (likeness(Part(task_of(cache), x)) for cache in (None, 0.1, 0.1, 0.2))
    assert one == same
    assert len({none, one, other}) == 3


def test_noised():
    x0, noise = some(1, 1, N, C), some(2, 3, N, C)
    np.testing.assert_array_equal(sampling.noised(x0, noise, np.float32(1)), noise)
    close(sampling.noised(x0, noise, np.float32(0.25)), 0.75 * x0 + 0.25 * noise, 1e-6)
