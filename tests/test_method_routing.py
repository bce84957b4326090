"""How far, in which blocks and to what the reference's features go, and the two forms of concatenation."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from toys import (
    ASK,
    MASKS,
    OFFSETS,
    SAMPLE,
    C,
    H,
    Linear,
    N,
    W,
    close,
    make_task,
    put,
    some,
    states,
    times_of,
    velocity_of,
)

from jaxpa import inversion, personalize
from jaxpa.config import TransformerConfig
from jaxpa.errors import JaxpaError
from jaxpa.personalize import Phase, Preset, Task
from jaxpa.routing import join, replacement_source, replacement_weight
from jaxpa.sampling import Guided
from jaxpa.tokens import Routing, grid_positions
from jaxpa.transformer import Flux, FluxConditions

# Weights as arrays ------------------------------------------------------------------------------------------------

SOURCE = np.asarray(replacement_source(put(MASKS[:1], OFFSETS[:1]), 2))


def test_no_weight_is_no_array():
    assert replacement_weight() is None
    assert replacement_weight("qkv", None, 6) is None


def test_weights():
    """Each axis by itself, and their product."""
    np.testing.assert_array_equal(replacement_weight("v"), [[[[0, 0, 1]]]])
    np.testing.assert_array_equal(replacement_weight("qk"), [[[[1, 1, 0]]]])
    blocks = replacement_weight(blocks=(1, 3), depth=5)
    np.testing.assert_array_equal(blocks, np.array([0, 1, 1, 1, 0])[:, None, None, None])
    shares = np.linspace(0, 1, N, dtype=np.float32)[None]
    soft = np.ones((1, 3, N, 1))
    for row in (1, 2):
        for cell in range(N):
            if SOURCE[row, cell] < N:
                soft[0, row, cell] = shares[0, SOURCE[row, cell]]
    close(replacement_weight(shares=shares, source=SOURCE), soft, 1e-7)
    assert (soft < 1).sum() == 2 * 4  # a mask of 2 x 2 cells in two images
    close(replacement_weight("v", (1, 3), 5, shares, SOURCE), blocks * soft * np.array([0, 0, 1]), 1e-7)


@pytest.mark.parametrize(("switches", "message"), [
    ({"parts": "vk"}, "did you mean"), ({"parts": "x"}, "parts must be one of 'qkv'"),
    ({"blocks": (3, 5), "depth": 5}, r"in this order out of 0 to 4, not \(3, 5\)"),
    ({"blocks": (3, 1), "depth": 5}, "in this order"),
    ({"blocks": 3, "depth": 5}, "a first and a last block"), ({"blocks": (0, 1.5), "depth": 5}, "whole number"),
    ({"shares": np.ones((1, N), np.float32)}, "need the source"),
    ({"shares": 2 * np.ones((1, N), np.float32), "source": SOURCE}, "shares must lie"),
    ({"shares": np.ones((1, N - 1), np.float32), "source": SOURCE}, r"shares must be .*\(R, 20\)"),
])  # fmt: skip
@pytest.mark.usefixtures("as_users_call")
def test_wrong_weights(switches, message):
    with pytest.raises(ValueError, match=message):
        replacement_weight(**switches)


@pytest.mark.parametrize("switches", [{"parts": "v"}, {"blocks": (0, 1)}])
def test_whole_tokens_have_no_parts(switches):
    Preset(0.5, **switches)
    with pytest.raises(JaxpaError, match="belong to level"):
        Preset(0.5, level="token", **switches)


# Weights at work: a real network of four blocks ---------------------------------------------------------------------

CONFIG = TransformerConfig(in_channels=C, num_layers=2, num_single_layers=2, num_attention_heads=2,
                           attention_head_dim=12, joint_attention_dim=10, pooled_projection_dim=6,
                           axes_dims_rope=(4, 4, 4))  # fmt: skip
DEPTH, STEPS = 4, 4


@pytest.fixture(scope="module")
def flux() -> Flux:
    rng, abstract = np.random.default_rng(0), jax.eval_shape(lambda: Flux(CONFIG, rngs=nnx.Rngs(0)))
    return jax.tree.map(lambda p: jnp.asarray(rng.normal(0, 0.3, p.shape), p.dtype), abstract)


def told(rows: int, positions=None) -> FluxConditions:
    rng = np.random.default_rng(rows)
    txt, vec = rng.standard_normal((rows, 5, 10), np.float32), rng.standard_normal((rows, 6), np.float32)
    positions = grid_positions(H, W) if positions is None else positions
    return FluxConditions(jnp.asarray(txt), jnp.asarray(vec), jnp.full(rows, 3.0), positions)


def flux_task(flux: Flux, weight=None, tau=0.6, references: int = 1) -> Task:
    times = jnp.asarray(times_of(STEPS))
    source = replacement_source(put(MASKS[:references], OFFSETS[:references]), 1)
    path = inversion.straight_line(some(1, references, N, C), some(2, references, N, C), times)
    before = Phase(told(references + 1), Routing(source, weight))
    return Task(path, jnp.ones(STEPS), times, jnp.asarray(tau, jnp.float32), before, Phase(told(1)), flux)


def by_hand(flux: Flux, task: Task, weight_of) -> np.ndarray:
    """Euler steps from the host; weight_of(t): (L, 1, 1, 1) of a step."""
    ask = jax.jit(lambda conditions, x, t, routing: conditions.bind(flux)(x, jnp.broadcast_to(t, len(x)), routing))
    x, times, r = jnp.asarray(some(7, 1, N, C)), task.times, task.trajectory.shape[1]
    for i in range(STEPS):
        weight = weight_of(float(times[i]))
        if weight.any():
            rows = jnp.concatenate([task.trajectory[i], x])
            v = ask(task.early.conditions, rows, times[i], Routing(task.early.routing.source, jnp.asarray(weight)))[r:]
        else:
            v = ask(task.late.conditions, x, times[i], None)
        x = x + (times[i + 1] - times[i]) * v
    return np.asarray(x)


def test_a_tau_of_each_block(flux):
    """A block is fed by the reference while t > its tau, strictly; after the last of them the image goes alone."""
    taus = np.array([0.95, 0.5, 1.0, 0.7], np.float32)
    task = flux_task(flux, tau=taus)
    want = by_hand(flux, task, lambda t: (t > taus).astype(np.float32)[:, None, None, None])
    close(SAMPLE(task, some(7, 1, N, C)), want, 1e-5)
    close(states(task, some(7, 1, N, C))[-1].images, want, 1e-5)
    one = SAMPLE(flux_task(flux), some(7, 1, N, C))
    np.testing.assert_array_equal(SAMPLE(flux_task(flux, tau=np.full(DEPTH, 0.6)), some(7, 1, N, C)), one)
    assert np.abs(want - one).max() > 1e-3
    below = np.array([0.6, 0.6, 0.6, 1.0], np.float32)  # a tau of 1 is no replacement at all
    but_last = replacement_weight(blocks=(0, 2), depth=DEPTH)
    np.testing.assert_array_equal(SAMPLE(flux_task(flux, tau=below), some(7, 1, N, C)),
                                  SAMPLE(flux_task(flux, but_last), some(7, 1, N, C)))  # fmt: skip


def test_new_weights_and_taus_compile_nothing(flux):
    program = jax.jit(lambda task, x: personalize.sample(task, x))
    outs = [program(flux_task(flux, replacement_weight(parts, blocks, DEPTH), tau), some(7, 1, N, C))
            for parts, blocks, tau in (("v", (0, 2), [0.5] * 4), ("qk", (1, 3), [0.9, 0.2, 0.3, 0.4]))]  # fmt: skip
    assert program._cache_size() == 1
    assert np.abs(outs[0] - outs[1]).max() > 1e-4


def test_the_model_is_counted_once(flux):
    """The compiled program takes every weight once, both phases and classifier-free guidance included."""
    task = flux_task(flux)
    both = jax.tree.map(lambda a: jnp.concatenate([a, a[1:]]), told(2).rows(slice(None)))
    early = Phase(Guided(replace(both, positions=grid_positions(H, W)), jnp.float32(2.0), 1), task.early.routing)
    late = Phase(Guided(told(2), jnp.float32(2.0)))
    task, x = replace(task, early=early, late=late), some(7, 1, N, C)
    memory = jax.jit(personalize.sample).lower(task, x).compile().memory_analysis()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(flux))
    others = sum(leaf.nbytes for leaf in jax.tree.leaves((replace(task, model=None), x)))
    assert others < size / 2
    assert size <= memory.argument_size_in_bytes <= size + others


# Weights at work: velocities with closed steps -----------------------------------------------------------------------


@pytest.mark.parametrize("level", ["layer", "token"])
def test_soft_masks(level):
    """A token is replaced as far as its source is the subject's, by the features or by the tokens themselves."""
    task = make_task(level=level, velocity=lambda rows: Linear(jnp.float32(-0.8)))
    source = np.asarray(task.early.routing.source)
    shares = np.random.default_rng(0).random((1, N)).astype(np.float32)
    weight = replacement_weight(shares=shares, source=task.early.routing.source)
    task = replace(task, early=Phase(task.early.conditions, Routing(task.early.routing.source, weight)))
    x, times, path = some(5, 1, N, C)[0], np.asarray(task.times), np.asarray(task.trajectory)[:, 0]
    taken, w = source[1] < N, np.where(source[1] < N, shares[0][source[1] % N], 0)[:, None]
    got = SAMPLE(task, x[None])[0]
    for i in range(6):
        h = times[i + 1] - times[i]
        seen = x
        if times[i] > 0.6:
            seen = np.where(taken[:, None], (1 - w) * x + w * path[i][source[1] % N], x)
            x = seen if level == "token" else x
        x = x + h * -0.8 * seen
    close(got, x, 1e-5)


# Concatenation ---------------------------------------------------------------------------------------------------


def test_joined_tokens():
    """Which tokens, where they stand, and how much of the sequence counts."""
    got = join(MASKS, (H, W), 9)
    cells = [(j, n) for j in range(2) for n in np.flatnonzero(MASKS[j])]
    np.testing.assert_array_equal(got.tokens[:7], [j * N + n for j, n in cells])
    np.testing.assert_array_equal(got.positions, np.concatenate([grid_positions(H, W), np.zeros((9, 3))]))
    assert got.length == N + 7


@pytest.mark.parametrize("eta", [1.0, 0.4])
@pytest.mark.parametrize("solver", ["euler", "heun", "ab2"])
def test_joined_steps(eta, solver):
    """After tau each image's sequence is [its tokens; the reference's], which are held on their path by eta."""
    task, x = make_task(2, 2, concat="joined", eta=eta, solver=solver), some(5, 2, N, C)
    above, joined = int(personalize.gate(task)), np.asarray(task.late.joined)
    walked = states(task, x)
    before, velocity, routing = walked[above - 1], velocity_of(task, task.late), task.late.routing
    path, times = np.asarray(task.trajectory).reshape(7, 1, -1, C)[:, :, joined], np.asarray(task.times)

    def ask(images, references, i):
        v = np.asarray(ASK(velocity, np.concatenate([images, references], 1), times[i], routing))
        return v[:, :N], v[:, N:]

    def move(images, references, v, i):
        h, held = times[i + 1] - times[i], float(task.eta[i])
        on_path = path[i + 1] + (references - path[i]) * times[i + 1] / times[i]
        return images + h * v[0], held * on_path + (1 - held) * (references + h * v[1])

    images = np.asarray(before.images)
    references = np.broadcast_to(np.asarray(before.references).reshape(1, -1, C)[:, joined], (2, len(joined), C))
    last, last_width = None, None
    for i in range(above, 6):
        now, h = ask(images, references, i), times[i + 1] - times[i]
        v = now
        if solver == "heun":
            there = ask(*move(images, references, now, i), i + 1)
            v = tuple((a + b) / 2 for a, b in zip(now, there, strict=True))
        elif solver == "ab2" and last is not None:
            v = tuple(a + h / (2 * last_width) * (a - b) for a, b in zip(now, last, strict=True))
        images, references = move(images, references, v, i)
        last, last_width = now, h
        close(walked[i].images, images, 1e-5)
        close(walked[i].references, references, 1e-5)
    close(SAMPLE(task, x), images, 1e-5)


def test_joined_is_another_picture_than_keys_and_values():
    x = some(5, 1, N, C)
    joined, zero, none = (np.asarray(SAMPLE(make_task(concat=c), x)) for c in ("joined", "zero", None))
    assert min(np.abs(a - b).max() for a, b in ((joined, zero), (zero, none), (joined, none))) > 1e-3


def test_padding_of_the_sequence(flux):
    """Padded references change nothing: not the images, and not the rows of the reference that count."""
    x, outs = some(5, 1, N, C), []
    for size in (4, 7, N):
        joined = join(MASKS[:1], (H, W), size)
        late = Phase(told(1, joined.positions), Routing(length=joined.length[None]), joined.tokens)
        outs.append(SAMPLE(replace(flux_task(flux), late=late, eta=jnp.full(STEPS, 0.5)), x))
    close(outs[1], outs[0], 1e-5)
    close(outs[2], outs[0], 1e-5)
    assert np.abs(outs[0] - SAMPLE(flux_task(flux), x)).max() > 1e-3
