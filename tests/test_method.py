"""The method with velocities that are no network: what it costs, what recompiles, and what each switch does."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import (
    ASK,
    CONTEXT,
    MASKS,
    OFFSETS,
    SAMPLE,
    SOURCE,
    C,
    H,
    Linear,
    N,
    ToyConditions,
    W,
    by_hand,
    close,
    make_task,
    put,
    some,
    states,
    toy,
    velocity_of,
)

from jaxpa import inversion, personalize, tokens
from jaxpa.box import Box
from jaxpa.config import ScheduleConfig
from jaxpa.personalize import PRESETS, Phase, Task
from jaxpa.routing import move_noise, reference_context, replacement_source
from jaxpa.schedule import Steps, flow_times
from jaxpa.tokens import Placement, Routing

# What it costs


@pytest.mark.parametrize(
    ("level", "concat", "references", "images", "want"),
    [
        ("layer", None, 1, 1, 19 * 2 + 9 * 1),  # 47 forwards of one sample: 28, and 19 of the reference
        ("token", None, 1, 1, 28 * 1),
        ("layer", None, 2, 3, 19 * 5 + 9 * 3),  # each further image costs 28
        ("layer", "zero", 2, 3, 28 * 5),  # to be attended to, references must be there
        ("token", "zero", 1, 1, 19 * 1 + 9 * 2),
    ],
)
def test_rows_asked(level, concat, references, images, want):
    """28 steps of FLUX.1-dev at 1024 x 1024, tau 0.6: the rows that the compiled program really asks for."""
    asked = []

    def counting(x, t, routing=None):
        jax.debug.callback(lambda _: asked.append(x.shape[0]), t[0])
        return -x

    task = make_task(references, images, level=level, concat=concat)
    times = jnp.asarray(flow_times(28, 4096, ScheduleConfig()))
    path = inversion.straight_line(task.trajectory[-1], task.trajectory[0], times)
    task = replace(task, times=times, trajectory=path, eta=jnp.ones(28))

    def run(task: Task, x):
        return personalize.sample(replace(task, early=Phase(counting, task.early.routing),
                                          late=Phase(counting, task.late.routing)), x)  # fmt: skip

    jax.jit(run)(task, some(0, images, N, C)).block_until_ready()
    jax.effects_barrier()
    assert len(asked) == 28
    assert sum(asked) == want


def test_nothing_recompiles():
    """A new tau, mask, target, box, prompt, reference, seed, eta or guidance is data for the same programs."""

    @jax.jit
    def prepare(mask, box, target, flip, key, strength):
        placed = tokens.compose(tokens.place(mask, H, W, box, target, flip),
                                tokens.shuffle_windows(key, mask, H, W, 3, strength))  # fmt: skip
        placed = Placement(placed.source[None], placed.target[None])
        context = reference_context(mask[None], placed, 1, (H, W), "zero", N)
        return Routing(replacement_source(placed, 1)), Routing(**context._asdict())

    # A function of its own: programs of one function are counted together, other tests' too.
    sample, outputs = jax.jit(lambda task, start: personalize.sample(task, start)), []
    for k in range(3):
        rng = np.random.default_rng(k)
        mask = jnp.asarray(rng.random(N) < 0.6)
        box, target = (jnp.asarray(np.sort(rng.random((2, 2)) * 5, 0).reshape(4), jnp.float32) for _ in range(2))
        early, late = prepare(mask, box, target, jnp.asarray(k == 1), jax.random.key(k), jnp.float32(k / 2))
        task = make_task(seed=k, tau=0.3 * k, concat="zero", eta=1 - 0.2 * k)
        task = replace(task, model=toy(2, k).weight, early=Phase(ToyConditions(toy(2, k).shift), early),
                       late=Phase(ToyConditions(toy(2, k).shift), late))  # fmt: skip
        outputs.append(sample(task, some(k + 9, 1, N, C)))
    assert prepare._cache_size() == 1
    assert sample._cache_size() == 1
    assert all(np.isfinite(out).all() for out in outputs)


# Loops


@pytest.mark.parametrize("level", ["layer", "token"])
@pytest.mark.parametrize("concat", [None, "target"])
def test_fused_is_stepped(level, concat):
    """One program, or a step at a time from the host; gates at either end of the schedule too."""
    x = some(7, 2, N, C)
    for tau in (1.0, 0.7, 0.0):
        task = make_task(2, 2, tau=tau, level=level, concat=concat, eta=0.7)
        above = int(personalize.gate(task))
        assert above == int((np.asarray(task.times[:-1]) > tau).sum())
        after = states(task, x)
        assert len(after) == 6
        close(SAMPLE(task, x), after[-1].images, 1e-5)


def test_reference_rows():
    """With eta 1 they follow their path, with 0 the model, in between a mixture of the two."""
    task = make_task(2, 1, tau=0.0)
    walked = {
        eta: [state.references for state in states(replace(task, eta=jnp.full(6, eta)), some(3, 1, N, C))]
        for eta in (0.0, 0.25, 1.0)
    }
    close(jnp.stack(walked[1.0]), task.trajectory[1:], 1e-5)
    x, t, t_next = task.trajectory[0], task.times[0], task.times[1]
    rows = jnp.concatenate([x, some(3, 1, N, C)])
    free = x + (t_next - t) * ASK(velocity_of(task, task.early), rows, t, task.early.routing)[:2]
    close(walked[0.0][0], free, 1e-5)
    close(walked[0.25][0], 0.25 * task.trajectory[1] + 0.75 * free, 1e-5)


@pytest.mark.parametrize("concat", [None, "original"])
@pytest.mark.parametrize("reference_time", [0.8, 0.35, 0.0])
def test_references_are_read_at_a_time_of_their_own(concat, reference_time):
    """Above tau and below it; until then they are held, and at their own time again after."""
    task, x = make_task(2, 2, concat=concat, eta=0.7), some(5, 2, N, C)
    ahead = replace(task, reference_time=jnp.float32(reference_time))
    got = SAMPLE(ahead, x)
    close(got, by_hand(ahead, x), 1e-5)
    assert np.abs(got - SAMPLE(task, x)).max() > 1e-3
    close(SAMPLE(replace(task, reference_time=jnp.float32(1.0)), x), SAMPLE(task, x), 1e-6)


def test_token_level_is_the_loop():
    """x <- where(M, x_ref(t), x) before each step above tau (Eq. 2), each image and each reference by itself."""
    task = make_task(2, 2, level="token", velocity=lambda rows: Linear(jnp.float32(-0.8)))
    times, path = np.asarray(task.times), np.asarray(task.trajectory)
    x = np.array(some(5, 2, N, C))
    got = SAMPLE(task, jnp.asarray(x))
    for i in range(6):
        if times[i] > 0.6:
            for j, (rows, cols) in enumerate(OFFSETS):
                for n in np.flatnonzero(MASKS[j]):
                    r, c = n // W + rows, n % W + cols
                    if r < H and c < W:
                        x[:, r * W + c] = path[i, j, n]
        x = x + (times[i + 1] - times[i]) * -0.8 * x
    close(got, x, 1e-5)


def test_token_level_then_context():
    """References that took no part while t > tau stand on their path at tau, and are stepped along after it."""
    x = some(5, 1, N, C)
    task = make_task(level="token", concat="original", eta=0.7)
    above, (early, late) = int(personalize.gate(task)), (task.early, task.late)
    assert early.routing is not None
    rows = np.asarray(early.routing.source)[1] < N
    moved = np.asarray(early.routing.source)[1] % N
    for i in range(above):
        x = jnp.where(rows[:, None], task.trajectory[i, 0][moved], x)
        x = x + (task.times[i + 1] - task.times[i]) * ASK(velocity_of(task, early), x, task.times[i], None)
    state = (task.trajectory[above], x)
    for i in range(above, 6):
        v = ASK(velocity_of(task, late), jnp.concatenate(state), task.times[i], late.routing)
        held = inversion.reference_step(state[0], v[:1], task.trajectory, task.times, task.eta, jnp.int32(i))
        state = held, state[1] + (task.times[i + 1] - task.times[i]) * v[1:]
    got = SAMPLE(task, some(5, 1, N, C))
    close(got, state[1], 1e-5)
    plain = SAMPLE(make_task(level="token", eta=0.7), some(5, 1, N, C))
    assert np.abs(got - plain).max() > 1e-3  # the context is felt


# Where things are put


def test_later_reference_wins():
    """On overlapping targets, each image with a placement of its own; reference rows feed themselves."""
    masks = np.ones((2, N), bool)
    offsets = np.array([[[0, 0], [2, 2]], [[1, 0], [0, 3]]])  # (G, R, 2)
    placement = jax.vmap(put, (None, 0))(masks, offsets)
    got = np.asarray(SOURCE(placement, 2))
    np.testing.assert_array_equal(got[:2], np.arange(2 * N).reshape(2, N))
    for g in range(2):
        want = np.arange(N) + (2 + g) * N
        for j in range(2):
            for n in range(N):
                r, c = n // W + offsets[g, j, 0], n % W + offsets[g, j, 1]
                if r < H and c < W:
                    want[r * W + c] = j * N + n
        np.testing.assert_array_equal(got[2 + g], want)
    shared = SOURCE(Placement(placement.source[0], placement.target[0]), 2)
    np.testing.assert_array_equal(shared[3] % N, got[2] % N)


@pytest.mark.parametrize("where", ["original", "shifted", "zero", "target"])
def test_context_positions(where):
    """Every masked token of every reference, in order; where it stands depends on the image for "target" only."""
    offsets = np.array([[[1, 2], [0, 3]], [[-1, 0], [1, 1]]])
    placement = jax.vmap(put, (None, 0))(MASKS, offsets)
    got = CONTEXT(MASKS, placement, 2, (H, W), where, 9)
    cells = [(j, n) for j in range(2) for n in np.flatnonzero(MASKS[j])]
    assert len(cells) == 7
    np.testing.assert_array_equal(got.length, [N + 7] * 4)
    np.testing.assert_array_equal(got.context[:, :7], [[j * N + n for j, n in cells]] * 4)
    for row, g in enumerate((0, 0, 0, 1)):  # reference rows see what the first image sees
        for k, (j, n) in enumerate(cells):
            r, c = n // W, n % W
            moved = (r + offsets[g, j, 0], c + offsets[g, j, 1])
            moved = moved if 0 <= moved[0] < H and 0 <= moved[1] < W else (r, c)
            want = {"original": (r, c), "shifted": (r, c + W), "zero": (0, 0), "target": moved}[where]
            np.testing.assert_array_equal(got.positions[row, k], (0, *want))


def test_context_of_an_enlarged_subject():
    """A token that is put on several cells stands at the first of them."""
    placed = tokens.place(MASKS[0], H, W, Box(0, 0, 2, 2), Box(1, 0, 5, 4))
    placement = Placement(placed.source[None], placed.target[None])
    got = CONTEXT(MASKS[:1], placement, 1, (H, W), "target", 4)
    np.testing.assert_array_equal(got.positions[1], [[0, 0, 1], [0, 0, 3], [0, 2, 1], [0, 2, 3]])


def test_padding_of_the_context():
    """More padding, another program, the same picture."""
    x = some(5, 1, N, C)
    want = SAMPLE(make_task(2, concat="target", size=7), x)
    for size in (12, 2 * N):
        close(SAMPLE(make_task(2, concat="target", size=size), x), want, 1e-5)
    assert np.abs(want - SAMPLE(make_task(2, concat="zero", size=7), x)).max() > 1e-3


def test_moved_noise():
    """Under the subject the reference's noise, elsewhere the image's own."""
    noise, inverted = some(1, 2, N, C), some(2, 1, N, C)
    placement = put(MASKS[:1], OFFSETS[:1])
    got = move_noise(noise, inverted, SOURCE(placement, 2))
    moved = jnp.roll(inverted.reshape(H, W, C), (1, 2), (0, 1)).reshape(N, C)
    np.testing.assert_array_equal(got, jnp.where(placement.target[0][:, None], moved, noise))


def test_presets():
    """What the sources say: the notebooks' setting and the paper's."""
    official, paper = PRESETS["official"], PRESETS["paper"]
    assert (official.tau, official.gamma, official.eta, official.concat, official.level) == (
        0.6,
        1.0,
        1.0,
        None,
        "layer",
    )
    assert (paper.tau, paper.concat) == (Steps(0.8), "joined")
