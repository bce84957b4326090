"""Samplings that are merged into one batch: every image is what it is alone, wherever its rows stand."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import SAMPLE, C, N, ToyConditions, close, make_task, some, toy

from jaxpa.batching import Part, Size, likeness, merge
from jaxpa.personalize import Task
from jaxpa.sampling import Guided, bound, sample
from jaxpa.schedule import ScheduleConfig, flow_times

KINDS = {
    "rows": {"references": 2, "images": 2},
    "tokens": {"level": "token"},
    "joined": {"concat": "joined"},
    "context": {"concat": "zero"},
}


def parts_of(count: int, **keywords) -> list[Part]:
    """Tasks of one shape, each with references, noise and conditions of its own, on the same weights."""
    model, parts = make_task().model, []
    for seed in range(count):
        task = replace(make_task(seed=10 * seed, **keywords), model=model)
        rng = np.random.default_rng(seed)
        early, late = (
            phase._replace(conditions=ToyConditions(some(rng.integers(99), *phase.conditions.shift.shape)))
            for phase in (task.early, task.late)
        )
        parts.append(Part(replace(task, early=early, late=late), some(100 + seed, keywords.get("images", 1), N, C)))
    return parts


def alone(part: Part) -> np.ndarray:
    return np.asarray(SAMPLE(part.what, part.x))


@pytest.mark.parametrize("name", KINDS)
def test_each_image_is_what_it_is_alone(name):
    """In a batch that is filled up, in another order, and beside others, of a program that serves all of them."""
    parts, g = parts_of(3, **KINDS[name]), KINDS[name].get("images", 1)
    r = KINDS[name].get("references", 1)
    size = Size(4 * g, 4 * r)
    compiled, made = SAMPLE._cache_size(), {}
    for order in ([0, 1, 2], [2, 0]):
        task, x = merge([parts[k] for k in order], size)
        assert task.trajectory.shape[1:] == (4 * r, N, C)
        out = np.asarray(SAMPLE(task, x))
        for place, k in enumerate(order):
            made.setdefault(k, []).append(out[place * g : place * g + g])
    assert SAMPLE._cache_size() <= compiled + 1
    for k, found in made.items():
        close(found[0], alone(parts[k]), 2e-6)  # of another program
        for other in found[1:]:
            np.testing.assert_array_equal(found[0], other)


def test_equal_casts_are_computed_once():
    parts = [Part(part.what, part.x, "the same") for part in parts_of(1) * 2]
    task, x = merge([parts[0], parts[1]._replace(x=some(7, 1, N, C))], Size(2, 1))
    assert task.trajectory.shape[1] == 1
    close(SAMPLE(task, x)[:1], alone(parts[0]), 2e-6)
    close(SAMPLE(task, x)[1:], alone(parts[1]._replace(x=some(7, 1, N, C))), 2e-6)
    with pytest.raises(ValueError, match="do not fit"):
        merge([part._replace(cast=None) for part in parts], Size(2, 1))


def test_soft_weights_follow_their_rows():
    parts = []
    for k, part in enumerate(parts_of(2)):
        weight = jnp.asarray(np.random.default_rng(k).uniform(size=(1, 2, N, 1)), jnp.float32)
        early = part.what.early
        routed = early._replace(routing=replace(early.routing, weight=weight))
        parts.append(part._replace(what=replace(part.what, early=routed)))
    out = SAMPLE(*merge(parts, Size(3, 2)))
    for k, part in enumerate(parts):
        close(out[k : k + 1], alone(part), 2e-6)


def test_guided_without_a_classifier():
    """[references; positive; negative] rows of every part end up in that order, each guided as it says."""

    def guided(part: Part, scale: float) -> Part:
        task: Task = part.what
        made = []
        for phase, references in ((task.early, 1), (task.late, 0)):
            rows = np.concatenate([phase.conditions.shift, some(int(scale), 1, 1, C)])
            inside = jnp.full((1, N, 1), scale) if references else jnp.float32(scale)
            made.append(phase._replace(conditions=Guided(ToyConditions(rows), inside, references)))
        return part._replace(what=replace(task, early=made[0], late=made[1]))

    parts = [guided(part, scale) for part, scale in zip(parts_of(2), (1.5, 3.0), strict=True)]
    out = SAMPLE(*merge(parts, Size(3, 3)))
    for k, part in enumerate(parts):
        close(out[k : k + 1], alone(part), 4e-6)


def test_images_without_references():
    model, times = toy(1).weight, flow_times(4, N, ScheduleConfig())
    run = jax.jit(lambda conditions, x: sample(bound(conditions, model), x, jnp.asarray(times)))
    parts = [Part(ToyConditions(some(k, 1, 1, C)), some(10 + k, 1, N, C)) for k in range(3)]
    out = run(*merge(parts, Size(4)))
    assert out.shape == (4, N, C)
    for k, part in enumerate(parts):
        close(out[k : k + 1], run(part.what, part.x), 2e-6)


def test_what_is_not_alike_is_not_merged():
    (one,) = parts_of(1)
    others = {
        "another gate": one._replace(what=replace(one.what, tau=jnp.float32(0.1))),
        "another hold": one._replace(what=replace(one.what, eta=one.what.eta * 0.5)),
        "another solver": one._replace(what=replace(one.what, solver="heun")),
        "other shapes": parts_of(1, references=2)[0],
        "no references": Part(ToyConditions(some(0, 1, 1, C)), one.x),
    }
    # The same steps are above a tau that differs little.
    assert likeness(one) == likeness(one._replace(what=replace(one.what, tau=one.what.tau + 1e-6)))
    for name, other in others.items():
        assert likeness(other) != likeness(one), name
        with pytest.raises(ValueError, match="several shapes"):
            merge([one, other], Size(2, 4))
