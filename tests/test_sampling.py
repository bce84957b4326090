"""Samplers against flows with a known solution.

And what a whole generation promises: an image is a function of its own seed, and new data compiles nothing.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxpa import personalize
from jaxpa.config import ScheduleConfig, TransformerConfig
from jaxpa.devices.timing import Clock
from jaxpa.inversion import straight_line
from jaxpa.personalize import Phase, Task
from jaxpa.routing import replacement_source
from jaxpa.sampling import ClassifierFree, initial_noise, sample
from jaxpa.schedule import flow_times
from jaxpa.solvers import SOLVERS
from jaxpa.tokens import Placement, Routing, grid_positions, identity_source, pair
from jaxpa.transformer import Flux, FluxConditions, FluxVelocity


def close(got, want, atol):
    np.testing.assert_allclose(np.asarray(got), np.asarray(want), atol=atol, rtol=0)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# Samplers -------------------------------------------------------------------------------------------------

MEAN, SPREAD = 0.7, 0.4


def gaussian(mean=MEAN, spread=SPREAD):
    """The exact velocity E[noise - data | x_t] where every channel of the data is N(mean, spread^2)."""

    def velocity(x, t, routing=None):
        t = t[:, None, None]
        a, variance = 1 - t, (1 - t) ** 2 * spread**2 + t**2
        return (t - a * spread**2) / variance * (x - a * mean) - mean

    return velocity


def flow(noise, t, mean=MEAN, spread=SPREAD):
    """Where the flow of `gaussian` takes a noise by the time t: its quantile stays what it is."""
    return (1 - t) * mean + np.sqrt((1 - t) ** 2 * spread**2 + t**2) * noise


def schedule(steps: int) -> jax.Array:
    return jnp.asarray(flow_times(steps, 1024, ScheduleConfig()))


NOISE = normal(3, 2, 6, 4)
split = jax.jit(lambda x, times, start, stop: sample(gaussian(), x, times, start, stop))


def test_euler_steps_in_float64():
    times, x = schedule(12), NOISE.astype(np.float64)
    for now, after in zip(np.asarray(times, np.float64), np.asarray(times[1:], np.float64), strict=False):
        x = x + (after - now) * gaussian()(x, np.full(2, now))
    close(jax.jit(lambda x: sample(gaussian(), x, times))(NOISE), x, 2e-6)
    close(sample(gaussian(), jnp.asarray(NOISE), times), x, 2e-6)
    close(sample(gaussian(), NOISE, np.asarray(times)), x, 2e-6)


@pytest.mark.parametrize("solver", SOLVERS)
def test_tokens_of_half_precision_stay_so(solver):
    """Times stay float32; 12 steps of rounding to eight bits of mantissa."""
    half = jnp.asarray(NOISE, jnp.bfloat16)
    got = sample(gaussian(), half, np.asarray(schedule(12)), solver=solver)
    assert got.dtype == jnp.bfloat16
    close(got.astype(jnp.float32), sample(gaussian(), NOISE, schedule(12), solver=solver), 0.1)


def test_error_of_the_flow_halves_with_the_steps():
    errors = [np.abs(split(NOISE, schedule(n), 0, n) - flow(NOISE, 0)).max() for n in (32, 64, 128)]
    assert errors[-1] < 0.03
    assert 1.8 < errors[0] / errors[1] < 2.2
    assert 1.8 < errors[1] / errors[2] < 2.2


def test_flow_to_a_point_is_straight():
    """Data without spread: every Euler step is exact, whatever the times."""
    times = schedule(7)
    stops = jnp.arange(8)
    states = jax.vmap(lambda stop: sample(gaussian(spread=0.0), NOISE, times, 0, stop))(stops)
    for t, state in zip(np.asarray(times), states, strict=True):
        close(state, flow(NOISE, t, spread=0.0), 1e-6)


def test_bounds_split_a_schedule():
    """One program for all bounds; in pieces it gives the same bits, with none it gives its input."""
    times = schedule(11)
    with Clock() as first:
        whole = split(NOISE, times, 0, 11)
    assert first.programs  # what is counted is heard of
    with Clock() as more:
        for cut in (1, 4, 10):
            np.testing.assert_array_equal(split(split(NOISE, times, 0, cut), times, cut, 11), whole)
        np.testing.assert_array_equal(split(NOISE, times, 5, 5), NOISE)
    assert more.programs == 0


def test_samplers_under_transforms():
    times = schedule(6)
    one = jax.jit(lambda x, times: sample(gaussian(), x, times))
    batch = jax.vmap(one)(jnp.stack([NOISE, 2 * NOISE]), jnp.stack([times, times**2]))
    close(batch[1], one(2 * NOISE, times**2), 1e-6)
    # An Euler step is linear in x, so the derivative is the product of the steps' slopes.
    t, width = np.asarray(times[:-1], np.float64), np.diff(np.asarray(times, np.float64))
    slope = np.prod(1 + width * (t - (1 - t) * SPREAD**2) / ((1 - t) ** 2 * SPREAD**2 + t**2))
    close(jax.grad(lambda x: sample(gaussian(), x, times).sum())(NOISE), np.full(NOISE.shape, slope), 1e-6)
    _, tangent = jax.jvp(lambda x: split(x, times, 0, 6), (NOISE,), (np.ones_like(NOISE),))
    close(tangent, np.full(NOISE.shape, slope), 1e-6)
    # And with respect to what the velocity holds: all data at `mean` ends there.
    end = jax.jit(lambda mean: sample(gaussian(mean, 0.0), NOISE, times).mean())
    close(jax.grad(end)(0.3), 1.0, 1e-6)


@pytest.mark.parametrize("references", [0, 1])
def test_classifier_free_guidance(references):
    """Whole numbers, so that every value is exact: v = negative + scale (positive - negative)."""
    images, n, asked = 2, 3, []

    def velocity(x, t, routing=None):
        asked.append((x, t, routing))
        return x + 10 * jnp.arange(x.shape[0])[:, None, None]

    x, t = jnp.arange(2.0 * (images + references) * n).reshape(-1, n, 2), jnp.arange(1.0 + references + 1)
    plain, positive, negative = np.split(10 * np.arange(references + 2 * images), [references, references + images])
    for scale in (0.0, 1.0, 3.0, np.arange(images * n).reshape(images, n, 1)):
        out = np.asarray(ClassifierFree(velocity, jnp.asarray(scale), references)(x, t)) - np.asarray(x)
        np.testing.assert_array_equal(out[:references], np.broadcast_to(plain[:, None, None], (references, n, 2)))
        want = negative[:, None, None] + np.asarray(scale) * (positive - negative)[:, None, None]
        np.testing.assert_array_equal(out[references:], np.broadcast_to(want, (images, n, 2)))
    assert len(asked) == 4  # once for both prompts
    rows, times, routing = asked[-1]
    np.testing.assert_array_equal(rows, np.concatenate([x, x[references:]]))
    np.testing.assert_array_equal(times, np.concatenate([t, t[references:]]))
    assert routing is None
    own = Routing(identity_source(references + images, n).at[-1].set(0))
    ClassifierFree(velocity, jnp.float32(2.0), references)(x, t, own)
    np.testing.assert_array_equal(asked[-1][2].source, own.repeat(n, 2, shared=references).source)


# Noise ----------------------------------------------------------------------------------------------------

SHAPE = (6, 4)
noise_of = jax.jit(lambda seeds: initial_noise(seeds, SHAPE))


def test_a_process_s_own_random_numbers_change_nothing():
    """Seeds are promises: settings of `jax.random` that a program has for itself do not reach them."""
    wanted = np.asarray(initial_noise(jnp.arange(3), SHAPE))
    for name, value in (("jax_default_prng_impl", "rbg"), ("jax_threefry_partitionable", False),
                        ("jax_random_seed_offset", 7)):  # fmt: skip
        before = getattr(jax.config, name)
        jax.config.update(name, value)
        try:
            assert not np.array_equal(jax.random.normal(jax.random.key(0), SHAPE), wanted[0])
            np.testing.assert_array_equal(jax.jit(lambda seeds: initial_noise(seeds, SHAPE))(jnp.arange(3)), wanted)
        finally:
            jax.config.update(name, before)


def test_noise_is_the_seed_s_alone():
    """Bit-equal alone, in any batch, in any order, compiled or not, and from any type of integer."""
    some = np.array([7, 0, 123_456_789, 2**31 - 1, 7])
    batch = noise_of(some)
    for k in range(len(some)):
        np.testing.assert_array_equal(noise_of(some[k : k + 1])[0], batch[k])
    np.testing.assert_array_equal(noise_of(some[::-1]), batch[::-1])
    np.testing.assert_array_equal(initial_noise(jnp.asarray(some, jnp.uint32), SHAPE), batch)
    assert len({row.tobytes() for row in np.asarray(batch)}) == 4


def test_noise_is_standard_normal():
    noise = np.asarray(initial_noise(jnp.arange(50), (1000,)), np.float64)
    # 50,000 numbers: five standard deviations of each estimate.
    assert abs(noise.mean()) < 5 / np.sqrt(noise.size)
    assert abs(noise.var() - 1) < 5 * np.sqrt(2 / noise.size)
    between = np.corrcoef(noise)[np.triu_indices(50, 1)]
    assert np.abs(between).max() < 6 / np.sqrt(1000)


# A whole generation ---------------------------------------------------------------------------------------

CONFIG = TransformerConfig(in_channels=8, num_layers=1, num_single_layers=1, num_attention_heads=2,
                           attention_head_dim=12, joint_attention_dim=10, pooled_projection_dim=6,
                           axes_dims_rope=(4, 4, 4))  # fmt: skip
H, W, M, STEPS = 3, 4, 5, 4
N = H * W


@pytest.fixture(scope="module")
def flux() -> Flux:
    """Random weights, of about a layer's usual size; the biases too."""
    rng, abstract = np.random.default_rng(0), jax.eval_shape(lambda: Flux(CONFIG, rngs=nnx.Rngs(0)))
    return jax.tree.map(lambda p: jnp.asarray(rng.normal(0, 0.2, p.shape), p.dtype), abstract)


def bind(flux: Flux, rows: int, seed: int) -> FluxVelocity:
    """The network with random prompts and guidances of `rows` images."""
    guidance = jnp.asarray(np.random.default_rng(seed).uniform(1, 5, rows).astype(np.float32))
    txt, vec = normal(seed, rows, M, CONFIG.joint_attention_dim), normal(seed + 1, rows, CONFIG.pooled_projection_dim)
    return FluxConditions(jnp.asarray(txt), jnp.asarray(vec), guidance, grid_positions(H, W)).bind(flux)


@pytest.fixture(scope="module")
def generate():
    return jax.jit(
        lambda velocity, seeds, times: sample(velocity, initial_noise(seeds, (N, CONFIG.in_channels)), times)
    )


def test_an_image_of_a_batch_is_the_image_alone(flux, generate):
    some, velocity, times = jnp.array([5, 3, 8]), bind(flux, 3, 0), schedule(STEPS)
    batch = generate(velocity, some, times)
    assert np.asarray(batch).std() > 0.1
    for k in range(3):
        alone = generate(velocity.rows(slice(k, k + 1)), some[k : k + 1], times)
        close(alone[0], batch[k], 1e-5)  # other shapes, other order of summation
    order = jnp.array([2, 0, 1])
    close(generate(velocity.rows(order), some[order], times), batch[order], 1e-5)


def test_another_image_compiles_nothing(flux, generate):
    calls = [(bind(flux, 3, seed), jnp.arange(3) + seed, schedule(STEPS) ** (1 + seed)) for seed in (0, 1)]
    one = np.asarray(generate(*calls[0]))
    with Clock() as more:
        two = np.asarray(generate(*calls[1]))
    assert more.programs == 0
    assert np.abs(one - two).max() > 0.1


def task_of(flux: Flux, seed: int, tau: float) -> Task:
    """A reference and two images, guided by a negative prompt: everything but the shapes depends on the seed."""
    rng, times = np.random.default_rng(seed), schedule(STEPS)
    mask, moved = rng.random((2, N)) < 0.5
    one = jax.jit(pair)(mask, moved)
    routing = Routing(replacement_source(Placement(one.source[None], one.target[None]), 2))
    path = straight_line(normal(seed, 1, N, CONFIG.in_channels), normal(seed + 1, 1, N, CONFIG.in_channels), times)
    scale = jnp.float32(rng.uniform(1, 4))
    early, late = ClassifierFree(bind(flux, 5, seed), scale, 1), ClassifierFree(bind(flux, 4, seed), scale)
    return Task(path, jnp.ones(STEPS), times, jnp.float32(tau), Phase(early, routing), Phase(late))


def test_another_subject_prompt_and_tau_compile_nothing(flux):
    # A function of its own: programs of one function are counted together, other tests' too.
    run = jax.jit(lambda task, start: personalize.sample(task, start))
    noise = jnp.asarray(normal(0, 2, N, CONFIG.in_channels))
    tasks = [task_of(flux, 0, 0.6), task_of(flux, 0, 0.9), task_of(flux, 4, 0.3)]
    outs = [jax.block_until_ready(run(tasks[0], noise))]
    with Clock() as again:
        outs += [jax.block_until_ready(run(task, noise)) for task in tasks[1:]]
    assert again.programs == 0
    assert run._cache_size() == 1
    assert min(np.abs(outs[i] - outs[j]).max() for i, j in ((0, 1), (1, 2), (0, 2))) > 1e-3
