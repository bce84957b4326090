"""The method under vmap and grad, with guidance, and the inversions: with velocities that are no network."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import (
    ASK,
    MASKS,
    SAMPLE,
    C,
    Linear,
    N,
    Toy,
    close,
    make_task,
    some,
    times_of,
    toy,
)

from jaxpa import inversion, personalize, sampling
from jaxpa.sampling import ClassifierFree

# Under the transforms


def test_vmap():
    """Over tau, noise and reference at once, though each has a loop of another length."""
    task, taus = make_task(concat="zero"), jnp.array([0.95, 0.6, 0.1])
    x, paths = some(8, 3, 1, N, C), jnp.stack([task.trajectory, 2 * task.trajectory, -task.trajectory])

    def one(tau, x, path):
        return personalize.sample(replace(task, tau=tau, trajectory=path), x)

    together = jax.jit(jax.vmap(one))(taus, x, paths)
    for k in range(3):
        close(together[k], SAMPLE(replace(task, tau=taus[k], trajectory=paths[k]), x[k]), 1e-5)


@pytest.mark.parametrize("level", ["layer", "token"])
def test_grad(level):
    """Backwards to the reference's tokens: finite, nothing from outside the mask, something from all of it."""
    task = make_task(tau=0.5, level=level, velocity=lambda rows: Linear(jnp.float32(-0.8)))
    above, noise = int(personalize.gate(task)), some(2, 1, N, C)

    @jax.jit
    @jax.grad
    def gradient(x0, task):
        path = inversion.straight_line(x0, noise, task.times)
        return jnp.sum(personalize.sample(replace(task, trajectory=path), some(4, 1, N, C), above=above) ** 2)

    got = np.abs(np.asarray(gradient(some(3, 1, N, C), task))[0]).max(-1)
    landed = np.asarray(MASKS[0])
    assert np.isfinite(got).all()
    assert (got[landed] > 1e-4).all()
    assert (got[~landed] == 0).all()


def test_grad_through_attention():
    """The same with features that mix: against a difference quotient, context and free reference rows included."""
    task, above = make_task(2, concat="zero", eta=0.5), 4

    @jax.jit
    def loss(x0, task):
        path = inversion.straight_line(x0, some(2, 2, N, C), task.times)
        return jnp.sum(personalize.sample(replace(task, trajectory=path), some(4, 1, N, C), above=above) ** 2)

    assert int(personalize.gate(task)) == above
    x0, along = some(3, 2, N, C), some(6, 2, N, C)
    got = np.sum(np.asarray(jax.jit(jax.grad(loss))(x0, task)) * along)
    eps = 1e-2
    quotient = (loss(x0 + eps * along, task) - loss(x0 - eps * along, task)) / (2 * eps)
    assert abs(float(quotient)) > 0.1
    np.testing.assert_allclose(got, quotient, rtol=2e-2)  # float32, and a curved function


def test_guidance_with_references():
    """Classifier-free guidance doubles the images only; the references are asked once and not guided."""
    task = make_task(2, 2)
    x, t, routing = some(1, 4, N, C), jnp.float32(0.7), task.early.routing
    assert routing is not None
    positive, negative = toy(4, 0), toy(4, 1)
    shift = jnp.concatenate([positive.shift, negative.shift[2:]])
    scale = jnp.where(task.early.routing.source[2:, :, None] < 2 * N, 1.0, 3.0)  # 1 inside the mask
    got = ASK(ClassifierFree(Toy(positive.weight, shift), scale, references=2), x, t, routing)
    yes = ASK(positive, x, t, routing)
    no = ASK(Toy(positive.weight, jnp.concatenate([positive.shift[:2], negative.shift[2:]])), x, t, routing)
    close(got[:2], yes[:2], 1e-5)
    close(got[2:], no[2:] + scale * (yes[2:] - no[2:]), 1e-5)


# Inversion


def test_inversion_by_gamma():
    """gamma 1 is the closed form, and no model; gamma 0 of a straight flow arrives exactly, in between the mixture."""
    times, x0, noise = times_of(8), some(1, 2, N, C), some(2, 2, N, C)
    invert = jax.jit(inversion.invert)

    def straight(x, t, routing=None):
        return noise - x0

    for forward in (inversion.forward_times(times), inversion.forward_times(times, ask="start"),
                    inversion.official_forward_times(times)):  # fmt: skip
        full = invert(toy(2), x0, noise, forward, 1.0)
        close(full[-1], inversion.closed_form(x0, noise, forward), 1e-5)
        close(full, invert(toy(2, 5), x0, noise, forward, 1.0), 1e-5)
        free = jax.jit(lambda forward: inversion.invert(straight, x0, noise, forward, 0.0))(forward)
        close(free[-1], noise, 1e-5)
        half = invert(toy(2), x0, noise, forward, 0.5)
        assert np.isfinite(half).all()
        first = x0 + forward.width[0] * 0.5 * (
            ASK(toy(2), x0, forward.model[0], None) + (noise - x0) / (1 - forward.control[0])
        )
        close(half[1], first, 1e-5)
    close(invert(toy(2), x0, noise, inversion.forward_times(times), 1.0)[::-1],
          inversion.straight_line(x0, noise, times), 1e-5)  # fmt: skip


def test_inversion_round_trip():
    """The plain ODE inversion followed back by the sampler's steps: the error shrinks with the step."""
    errors, invert, sample = [], jax.jit(inversion.invert), jax.jit(sampling.sample)
    for steps in (16, 64):
        times = times_of(steps)
        path = invert(toy(1), some(1, 1, N, C), jnp.zeros((1, N, C)), inversion.forward_times(times), 0.0)
        x = path[-1]
        x = sample(toy(1), x, times)
        errors.append(float(jnp.abs(x - path[0]).max()))
    assert errors[1] < 0.4 * errors[0] < 0.2


def test_inversion_under_transforms():
    """vmap over gamma and noise; the gradient with respect to the picture of a linear flow, in closed form."""
    forward, x0, noise = inversion.forward_times(times_of(5)), some(1, 1, N, C), some(2, 3, 1, N, C)
    gammas, flow = jnp.array([0.0, 0.5, 1.0]), Linear(jnp.float32(0.3))

    @jax.jit
    def last(x0, noise, gamma):
        return inversion.invert(flow, x0, noise, forward, gamma)[-1]

    together = jax.jit(jax.vmap(last, (None, 0, 0)))(x0, noise, gammas)
    for k in range(3):
        close(together[k], last(x0, noise[k], gammas[k]), 1e-5)
    slope = jax.jit(jax.grad(lambda x: last(x, noise[0], 0.5).sum()))(x0)
    one = 1 + forward.width * 0.5 * (0.3 - 1 / (1 - forward.control))
    close(slope, np.full(x0.shape, np.prod(np.asarray(one))), 1e-5)


def test_control():
    np.testing.assert_allclose(inversion.control(10, 0.5), [0.5] * 9 + [0])
    np.testing.assert_allclose(inversion.control(10, 0.5, 0.25, 0.5), [0, 0, 0.5, 0.5, 0.5, 0, 0, 0, 0, 0])
    np.testing.assert_allclose(inversion.control(4, 1.0, 0.0, 1.0, decay_power=2), [1, 0.5625, 0.25, 0.0625])
