"""Samplers against flows with a known solution, token arithmetic against plain loops, rotation against complex numbers.

And what a whole generation promises: an image is a function of its own seed, and new data compiles nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpa import personalize, rope
from jaxpa.config import ScheduleConfig, TransformerConfig
from jaxpa.inversion import straight_line
from jaxpa.personalize import Phase, Task
from jaxpa.sampling import ClassifierFree, host_loop, initial_noise, sample, step
from jaxpa.schedule import flow_times
from jaxpa.tokens import Placement, Routing, gather, grid_positions, identity_source, pair, patchify, unpatchify
from jaxpa.transformer import Flux, FluxVelocity

few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**32 - 1)


def close(got, want, atol):
    np.testing.assert_allclose(np.asarray(got), np.asarray(want), atol=atol, rtol=0)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@contextmanager
def compilations() -> Iterator[list[str]]:
    """Every program that is compiled meanwhile, by anything in this process."""
    seen: list[str] = []

    def listen(event: str, duration: float, **_) -> None:
        if event.endswith("backend_compile_duration"):
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


# Tokens ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 2, 2, 1), (2, 4, 6, 3), (1, 6, 4, 16)])
def test_patchify_is_a_loop_over_cells(shape):
    x = normal(0, *shape)
    b, rows, cols, c = shape
    h, w = rows // 2, cols // 2
    want = np.empty((b, h * w, 4 * c), np.float32)
    for row, col, channel, dy, dx in np.ndindex(h, w, c, 2, 2):
        want[:, row * w + col, channel * 4 + dy * 2 + dx] = x[:, 2 * row + dy, 2 * col + dx, channel]
    tokens = patchify(jnp.asarray(x))
    np.testing.assert_array_equal(tokens, want)
    np.testing.assert_array_equal(unpatchify(tokens, h, w), x)


@pytest.mark.parametrize("shape", [(1, 3, 4, 1), (1, 4, 5, 1)])
def test_odd_latents_do_not_patchify(shape):
    with pytest.raises(ValueError, match=f"{shape[1]} x {shape[2]}"):
        patchify(jnp.zeros(shape))


def test_patchify_under_transforms():
    """It is a permutation: its transpose is its inverse, also batched and compiled."""
    x, weight = jnp.asarray(normal(0, 3, 2, 4, 6, 2)), jnp.asarray(normal(1, 2, 6, 8))
    np.testing.assert_array_equal(jax.jit(jax.vmap(patchify))(x)[1], patchify(x[1]))
    gradient = jax.grad(lambda x: jnp.sum(patchify(x) * weight))(x[0])
    np.testing.assert_array_equal(gradient, unpatchify(weight, 2, 3))


def test_positions_are_rows_and_columns():
    want = [(row, col) for row in range(3) for col in range(5)]
    assert grid_positions(3, 5).tolist() == [list(map(float, cell)) for cell in want]


paired = jax.jit(pair)


@few
@given(seeds, seeds)
def test_pairing_drops_what_has_no_partner(seed, other):
    mask = np.random.default_rng(seed).random(35) < 0.4
    target = np.random.default_rng(other).random(35) < 0.4
    placement = paired(mask, target)
    count = min(mask.sum(), target.sum())
    cells = np.flatnonzero(target)[:count]
    assert np.flatnonzero(placement.target).tolist() == cells.tolist()
    assert np.asarray(placement.source)[cells].tolist() == np.flatnonzero(mask)[:count].tolist()
    outside = np.setdiff1d(np.arange(35), cells)
    assert np.asarray(placement.source)[outside].tolist() == outside.tolist()


@pytest.mark.parametrize("shared", [0, 1])
def test_repeated_routing_points_into_its_own_copy(shared):
    """Gathering from [shared; rows; rows'] is gathering from [shared; rows] and from [shared; rows']."""
    rng, (batch, n, k, count) = np.random.default_rng(0), (3, 4, 5, 3)
    common, copies = normal(1, shared * n, 2), [normal(2 + i, (batch - shared) * n, 2) for i in range(count)]
    source, context = rng.integers(0, batch * n, (batch, n)), rng.integers(0, batch * n, (batch, k))
    for index in (source, context):
        index[:shared] %= max(shared, 1) * n  # shared rows are the same for all copies
    positions, valid = normal(9, batch, k, 2), rng.random((batch, k)) < 0.5
    repeat = jax.jit(lambda routing: routing.repeat(count, shared=shared))
    out = repeat(Routing(*map(jnp.asarray, (source, context, positions, valid))))
    for index, repeated in ((source, out.source), (context, out.context)):
        alone = [np.concatenate([common, copy])[index] for copy in copies]
        want = np.concatenate([alone[0][:shared], *(one[shared:] for one in alone)])
        np.testing.assert_array_equal(np.concatenate([common, *copies])[repeated], want)
    for given_, repeated in ((positions, out.positions), (valid, out.valid)):
        np.testing.assert_array_equal(repeated, np.concatenate([given_[:shared], *[given_[shared:]] * count]))
    plain = repeat(Routing(identity_source(batch, n)))
    np.testing.assert_array_equal(plain.source, identity_source(shared + (batch - shared) * count, n))
    assert (plain.context, plain.positions, plain.valid) == (None, None, None)


def test_gather_picks_across_rows():
    """And its gradient counts how often a token is used."""
    index = jnp.array([[0, 0, 5], [1, 5, 5]])
    picked = gather(jnp.arange(12.0).reshape(2, 3, 2), index)
    np.testing.assert_array_equal(picked[..., 0], 2 * index)
    gradient = jax.grad(lambda x: gather(x, index).sum())(jnp.zeros((2, 3, 1)))
    assert gradient.reshape(-1).tolist() == [2, 1, 0, 0, 0, 3]


# Rotary positions -----------------------------------------------------------------------------------------

AXES = (4, 6, 8)
rotated = jax.jit(lambda x, positions: rope.rotate(x, rope.table(positions, AXES)))


def turn(x: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Channel pairs as complex numbers times exp(i angle), float64: x (B, S, H, Dh), positions (S, 2)."""
    places = np.concatenate([np.zeros((len(positions), 1)), positions], 1)  # FLUX's first axis is 0
    rates = [10_000.0 ** (-np.arange(0, d, 2) / d) for d in AXES]
    angle = np.concatenate([places[:, a, None] * rates[a] for a in range(3)], 1)  # (S, Dh / 2)
    turned = (x[..., 0::2].astype(float) + 1j * x[..., 1::2]) * np.exp(1j * angle)[:, None]
    return np.stack([turned.real, turned.imag], -1).reshape(x.shape)


def test_rotation_is_complex_multiplication():
    x, positions = normal(0, 2, 12, 3, sum(AXES)), np.asarray(grid_positions(3, 4))
    # Angles of up to 3 are rounded to 2e-7, the products once more.
    close(rotated(x, positions), turn(x, positions), 2e-6)
    batch = np.stack([positions, positions[::-1]])  # positions of each row's own
    for row in range(2):
        close(rotated(x, batch)[row], turn(x, batch[row])[row], 2e-6)


@few
@given(seeds, st.tuples(*[st.integers(-30, 30)] * 2), st.tuples(*[st.integers(0, 60)] * 2))
def test_only_relative_positions_count(seed, offset, place):
    """A query and a key that move together meet under the same logit."""
    q, k = normal(seed, 1, 1, 2, sum(AXES)), normal(seed + 1, 1, 1, 2, sum(AXES))

    def logit(at: np.ndarray) -> np.ndarray:
        key = rotated(k, at[None] + np.asarray(offset, np.float32))
        return np.asarray((rotated(q, at[None]) * key).sum(-1))

    # Angles reach 90, whose last bit is 8e-6; what comes of it in 18 channels of order 1 is 4e-6.
    close(logit(np.asarray(place, np.float32)), logit(np.zeros(2, np.float32)), 2e-5)


def test_position_zero_and_the_first_axis_do_not_turn():
    x = normal(0, 1, 6, 2, sum(AXES))
    np.testing.assert_array_equal(rotated(x, np.zeros((6, 2), np.float32)), x)
    np.testing.assert_array_equal(rotated(x, np.asarray(grid_positions(2, 3)))[..., : AXES[0]], x[..., : AXES[0]])
    half = jnp.asarray(x, jnp.bfloat16)  # whatever the type, the arithmetic is float32
    want = rotated(half.astype(jnp.float32), np.asarray(grid_positions(2, 3)))
    np.testing.assert_array_equal(rotated(half, np.asarray(grid_positions(2, 3))), want.astype(jnp.bfloat16))


def test_rotation_under_transforms():
    """vmap over sets of positions; the gradient is the rotation back."""
    x, weight = normal(0, 1, 6, 2, sum(AXES)), normal(1, 1, 6, 2, sum(AXES))
    positions = np.asarray(grid_positions(2, 3))
    batch = jax.vmap(lambda p: rotated(x, p))(np.stack([positions, positions + 5]))
    close(batch[1], turn(x, positions + 5), 2e-6)
    gradient = jax.grad(lambda x: jnp.sum(rotated(x, positions) * weight))(x)
    close(gradient, turn(weight, -positions), 2e-6)


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
    with compilations() as first:
        whole = split(NOISE, times, 0, 11)
    assert first  # what is counted is heard of
    with compilations() as more:
        for cut in (1, 4, 10):
            np.testing.assert_array_equal(split(split(NOISE, times, 0, cut), times, cut, 11), whole)
        np.testing.assert_array_equal(split(NOISE, times, 5, 5), NOISE)
    assert more == []


def test_host_loop_is_the_fused_loop():
    times, seen = schedule(9), []
    body = jax.jit(lambda i, x: step(gaussian(), x, times, i))
    out = host_loop(body, jnp.asarray(NOISE), 2, 9, seen.append)
    assert seen == list(range(2, 9))
    close(out, split(NOISE, times, 2, 9), 1e-6)
    assert host_loop(body, "state", 4, 4, seen.append) == "state"


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
    np.testing.assert_array_equal(asked[-1][2].source, own.repeat(2, shared=references).source)


# Noise ----------------------------------------------------------------------------------------------------

SHAPE = (6, 4)
noise_of = jax.jit(lambda seeds: initial_noise(seeds, SHAPE))


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
    return FluxVelocity(flux, jnp.asarray(txt), jnp.asarray(vec), guidance, grid_positions(H, W))


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
    with compilations() as more:
        two = np.asarray(generate(*calls[1]))
    assert more == []
    assert np.abs(one - two).max() > 0.1


def task_of(flux: Flux, seed: int, tau: float) -> Task:
    """A reference and two images, guided by a negative prompt: everything but the shapes depends on the seed."""
    rng, times = np.random.default_rng(seed), schedule(STEPS)
    mask, moved = rng.random((2, N)) < 0.5
    one = paired(mask, moved)
    routing = Routing(personalize.replacement_source(Placement(one.source[None], one.target[None]), 2))
    path = straight_line(normal(seed, 1, N, CONFIG.in_channels), normal(seed + 1, 1, N, CONFIG.in_channels), times)
    scale = jnp.float32(rng.uniform(1, 4))
    early, late = ClassifierFree(bind(flux, 5, seed), scale, 1), ClassifierFree(bind(flux, 4, seed), scale)
    return Task(path, jnp.ones(STEPS), times, jnp.float32(tau), Phase(early, routing), Phase(late))


def test_another_subject_prompt_and_tau_compile_nothing(flux):
    # How often counts here, not how well: without optimisation the compiler takes a third of the time.
    run = jax.jit(personalize.sample, compiler_options={"xla_backend_optimization_level": 0})
    noise = jnp.asarray(normal(0, 2, N, CONFIG.in_channels))
    tasks = [task_of(flux, 0, 0.6), task_of(flux, 0, 0.9), task_of(flux, 4, 0.3)]
    outs = [jax.block_until_ready(run(tasks[0], noise))]
    with compilations() as again:
        outs += [jax.block_until_ready(run(task, noise)) for task in tasks[1:]]
    assert again == []
    assert run._cache_size() == 1
    assert min(np.abs(outs[i] - outs[j]).max() for i, j in ((0, 1), (1, 2), (0, 2))) > 1e-3
