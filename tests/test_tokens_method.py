"""Index arithmetic of the method, against loops over cells: placement, perturbation, and what tau counts."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpa import schedule, tokens
from jaxpa.box import Box
from jaxpa.config import ScheduleConfig

GRIDS = [(6, 8), (7, 5)]  # few: every other number of a test is data for a program that is compiled once a grid
few = settings(max_examples=25, deadline=None)


def jitted(function, **fixed):
    """The function with the grid and `fixed` static, everything else traced."""
    return {grid: jax.jit(partial(function, h=grid[0], w=grid[1], **fixed)) for grid in GRIDS}


PLACE = jitted(tokens.place)
SHIFT = jitted(tokens.shift)
BOX = jitted(tokens.bounding_box)
NEAREST = jitted(tokens.nearest)
SHUFFLE = {size: jitted(tokens.shuffle_windows, size=size) for size in (2, 3)}
PERTURB = jitted(tokens.perturb_mask, size=3)
MORPH = {size: (jitted(tokens.dilate, size=size), jitted(tokens.erode, size=size)) for size in (1, 3, 5)}


@st.composite
def masks(draw) -> tuple[tuple[int, int], np.ndarray]:
    """A grid and a token mask (N,) on it; empty and full ones come up too."""
    grid = draw(st.sampled_from(GRIDS))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    share = draw(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))
    return grid, rng.random(grid[0] * grid[1]) < share


def edges(side: int):
    return st.tuples(st.integers(-2, side + 1), st.integers(1, side + 2)).map(lambda e: (e[0], e[0] + e[1]))


@st.composite
def boxes(draw, grid) -> np.ndarray:
    """(left, top, right, bottom) in whole or quarter tokens, over the grid's edges too."""
    (top, bottom), (left, right) = draw(edges(grid[0])), draw(edges(grid[1]))
    box = np.array([left, top, right, bottom], np.float64)
    if draw(st.booleans()):
        box += np.array(draw(st.lists(st.sampled_from([-0.25, 0.0, 0.25]), min_size=4, max_size=4)))
    return box


def place_by_loop(mask, grid, source_box, target_box, flip):
    """`place`, cell by cell in float64."""
    h, w = grid
    out = np.arange(h * w), np.zeros(h * w, bool)

    def stretch(k, axis, mirrored):
        (s0, s1), (t0, t1), centre = source_box[axis::2], target_box[axis::2], k + 0.5
        if not t0 <= centre < t1:
            return -1
        along = t1 - centre if mirrored else centre - t0
        cell = np.floor(s0 + along * (s1 - s0) / (t1 - t0) + tokens.TIE)
        return int(np.clip(cell, np.floor(s0), np.ceil(s1) - 1))

    for r in range(h):
        for c in range(w):
            row, col = stretch(r, 1, False), stretch(c, 0, flip)
            if 0 <= row < h and 0 <= col < w and mask[row * w + col]:
                out[0][r * w + c], out[1][r * w + c] = row * w + col, True
    return out


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_place_is_the_loop(data):
    grid, mask = data.draw(masks())
    source, target, flip = data.draw(boxes(grid)), data.draw(boxes(grid)), data.draw(st.booleans())
    same(PLACE[grid](mask, source_box=source, target_box=target, flip=flip),
         place_by_loop(mask, grid, source, target, flip))  # fmt: skip


@few
@given(masks(), st.integers(-9, 9), st.integers(-9, 9))
def test_translation(drawn, rows, cols):
    """By whole cells `shift` and `place` are one; the pairs are those of raster order."""
    grid, mask = drawn
    h, w = grid
    moved = SHIFT[grid](mask, rows=rows, cols=cols)
    want = np.arange(h * w), np.zeros(h * w, bool)
    for r in range(h):
        for c in range(w):
            if 0 <= r - rows < h and 0 <= c - cols < w and mask[(r - rows) * w + c - cols]:
                want[0][r * w + c], want[1][r * w + c] = (r - rows) * w + c - cols, True
    same(moved, want)
    box = np.asarray(BOX[grid](mask))
    same(PLACE[grid](mask, source_box=box, target_box=box + np.array([cols, rows, cols, rows])), want)
    if want[1].sum() == mask.sum():
        same(tokens.pair(jnp.asarray(mask), moved.target), want)


@few
@given(st.data())
def test_flip_is_an_involution(data):
    """Mirrored in whole boxes of one size, twice: a translation there and back. Once: the mirrored picture."""
    grid, mask = data.draw(masks())
    h, w = grid
    source = np.asarray(BOX[grid](mask))
    if not mask.any():
        return
    there = PLACE[grid](mask, source_box=source, target_box=source, flip=True)
    back = PLACE[grid](np.asarray(there.target), source_box=source, target_box=source, flip=True)
    np.testing.assert_array_equal(np.asarray(back.target), mask)
    np.testing.assert_array_equal(np.asarray(there.source)[np.asarray(back.source)][mask], np.arange(h * w)[mask])
    left, right = int(source[0]), int(source[2])
    np.testing.assert_array_equal(
        np.asarray(there.target).reshape(h, w)[:, left:right], mask.reshape(h, w)[:, left:right][:, ::-1]
    )


def test_place_scales():
    """To twice the width and half the height: every second row, every column twice; ties take the lower right."""
    h, w = 6, 8
    full = np.ones(h * w, bool)
    boxes = {"source_box": Box(0.0, 0, 2, 4), "target_box": Box(2.0, 1, 6, 3)}
    got, mirrored = PLACE[h, w](full, **boxes), PLACE[h, w](full, **boxes, flip=True)
    for one, other in zip(got, mirrored, strict=True):
        one, other = (np.asarray(x).reshape(h, w)[1:3, 2:6] for x in (one, other))
        np.testing.assert_array_equal(one, other[:, ::-1])
    np.testing.assert_array_equal(np.asarray(got.target).reshape(h, w).nonzero(),
                                  ([1] * 4 + [2] * 4, [2, 3, 4, 5] * 2))  # fmt: skip
    np.testing.assert_array_equal(np.asarray(got.source)[np.asarray(got.target)],
                                  [1 * w, 1 * w, 1 * w + 1, 1 * w + 1, 3 * w, 3 * w, 3 * w + 1, 3 * w + 1])  # fmt: skip


@few
@given(masks())
def test_bounding_box(drawn):
    grid, mask = drawn
    rows, cols = mask.reshape(grid).nonzero()
    want = Box(cols.min(), rows.min(), cols.max() + 1, rows.max() + 1) if mask.any() else Box(0, 0, 0, 0)
    got = BOX[grid](mask)
    assert isinstance(got, Box)
    np.testing.assert_array_equal(got, want)


@pytest.mark.usefixtures("as_users_call")
def test_a_mask_of_another_grid_is_refused():
    """Twenty cells too short: indices past its end would be clamped to its last cell in silence."""
    short, box = np.ones(144 - 20, bool), Box(0, 0, 12, 12)
    for refused in (
        lambda: tokens.bounding_box(short, 12, 12),
        lambda: tokens.place(short, 12, 12, box, box),
        lambda: tokens.shift(short, 12, 12, 1, 1),
    ):
        with pytest.raises(ValueError, match=r"mask has the shape \(124,\): a grid of 12 x 12 tokens wants \(144,\)"):
            refused()


def test_nearest_is_the_centre_pixel():
    pixels = np.random.default_rng(0).integers(0, 256, (20, 33), np.uint8)
    for h, w in GRIDS:
        want = [pixels[int((r + 0.5) * 20 / h), int((c + 0.5) * 33 / w)] for r in range(h) for c in range(w)]
        np.testing.assert_array_equal(NEAREST[h, w](pixels), want)


@few
@given(masks(), st.integers(0, 1000), st.sampled_from([2, 3]), st.sampled_from([0.0, 0.3, 1.0]))
def test_shuffle(drawn, seed, size, strength):
    """A permutation inside windows that touches nothing outside the mask; key and strength decide everything."""
    (h, w), mask = drawn
    shuffle = SHUFFLE[size][h, w]
    got = np.asarray(shuffle(jax.random.key(seed), mask, strength=strength))
    np.testing.assert_array_equal(np.sort(got), np.arange(h * w))
    np.testing.assert_array_equal(got[~mask], np.arange(h * w)[~mask])
    window = np.arange(h * w) // w // size * w + np.arange(h * w) % w // size
    np.testing.assert_array_equal(window[got], window)
    np.testing.assert_array_equal(shuffle(jax.random.key(seed), mask, strength=strength), got)
    if strength == 0.0:
        np.testing.assert_array_equal(got, np.arange(h * w))


def test_shuffle_is_uniform():
    """Each cell of a full window is as likely to take any of its tokens; the share that takes part is `strength`."""
    h, w = 6, 8
    full = np.ones(h * w, bool)
    keys = jax.random.split(jax.random.key(0), 3600)
    many = jax.jit(jax.vmap(partial(tokens.shuffle_windows, h=h, w=w), (0, None)))
    first = np.asarray(many(keys, full))[:, 0]  # of the window of rows and columns 0 to 2
    counts = np.bincount(first, minlength=h * w)[[0, 1, 2, w, w + 1, w + 2, 2 * w, 2 * w + 1, 2 * w + 2]]
    assert counts.sum() == 3600
    assert np.abs(counts - 400).max() < 5 * 20  # five standard deviations
    weak = jax.jit(jax.vmap(partial(tokens.shuffle_windows, h=h, w=w, size=8, strength=jnp.float32(0.3)), (0, None)))
    moved = np.mean(np.asarray(weak(keys[:400], full)) != np.arange(h * w))
    assert 0.26 < moved < 0.30  # of 30% that take part, one in about 14 of a window keeps its own token


@few
@given(masks(), st.sampled_from([1, 3, 5]))
def test_morphology(drawn, size):
    """Beyond the grid a dilation sees background, an erosion the subject."""
    grid, mask = drawn
    square = np.ones((size, size), bool)
    dilated, eroded = (np.asarray(f[grid](mask)).reshape(grid) for f in MORPH[size])
    np.testing.assert_array_equal(dilated, scipy.ndimage.binary_dilation(mask.reshape(grid), square))
    np.testing.assert_array_equal(eroded, scipy.ndimage.binary_erosion(mask.reshape(grid), square, border_value=1))


def test_morphology_needs_a_centre():
    for size in (0, 2, -1):
        with pytest.raises(ValueError, match="odd"):
            tokens.dilate(jnp.ones(12, bool), 3, 4, size)


@few
@given(masks(), st.integers(0, 1000), st.sampled_from([0.0, 0.5, 1.0]))
def test_perturb_mask(drawn, seed, dilation):
    grid, mask = drawn
    got = np.asarray(PERTURB[grid](jax.random.key(seed), mask, dilation=dilation))
    grown, shrunk = (np.asarray(f[grid](mask)) for f in MORPH[3])
    shrunk = shrunk if shrunk.any() else mask
    choices = {0.0: [shrunk], 1.0: [grown]}.get(dilation, [shrunk, grown])
    assert any((got == choice).all() for choice in choices)
    np.testing.assert_array_equal(PERTURB[grid](jax.random.key(seed), mask, dilation=dilation), got)


def test_perturb_mask_takes_both():
    h, w = 7, 5
    mask = np.zeros((h, w), bool)
    mask[1:6, 1:4] = True
    keys = jax.random.split(jax.random.key(1), 200)
    sizes = jax.vmap(lambda key: tokens.perturb_mask(key, mask.reshape(-1), h, w, size=3).sum())(keys)
    assert set(np.asarray(sizes).tolist()) == {35, 3}
    assert 60 < int((sizes == 35).sum()) < 140


@few
@given(st.data())
def test_compose(data):
    """Rearranging the reference and then placing it is one gather, for one placement and for a stack of them."""
    grid, mask = data.draw(masks())
    n = len(mask)
    where = [PLACE[grid](mask, source_box=data.draw(boxes(grid)), target_box=data.draw(boxes(grid))) for _ in range(2)]
    permutation = SHUFFLE[3][grid](jax.random.key(data.draw(st.integers(0, 99))), mask, strength=1.0)
    reference = np.random.default_rng(0).standard_normal(n)
    for one in where:
        got = tokens.compose(one, permutation)
        shuffled = reference[np.asarray(permutation)]
        target = np.asarray(one.target)
        np.testing.assert_array_equal(got.target, target)
        np.testing.assert_array_equal(reference[np.asarray(got.source)][target],
                                      shuffled[np.asarray(one.source)][target])  # fmt: skip
        np.testing.assert_array_equal(np.asarray(got.source)[~target], np.arange(n)[~target])
        assert mask[np.asarray(got.source)[target]].all()
    stacked = tokens.Placement(*(jnp.stack(x) for x in zip(*where, strict=True)))
    same(tokens.compose(stacked, permutation),
         [np.stack(x) for x in zip(*(tokens.compose(one, permutation) for one in where), strict=True)])  # fmt: skip


def test_many_at_once():
    """Under vmap over masks, boxes, flips, keys and strengths: row by row what each gives alone."""
    h, w = 6, 8
    rng = np.random.default_rng(3)
    mask = rng.random((4, h * w)) < 0.5
    box = np.array([[0, 0, 4, 4], [2, 1, 8, 5], [0, 0, 8, 6], [3, -1, 7, 3]], np.float32)
    flip, strength = np.array([True, False, True, False]), np.array([0.0, 0.4, 0.8, 1.0], np.float32)
    keys = jax.random.split(jax.random.key(5), 4)

    def all_of(mask, box, flip, strength, key):
        placed = tokens.place(mask, h, w, tokens.bounding_box(mask, h, w), box, flip)
        shuffled = tokens.shuffle_windows(key, mask, h, w, 3, strength)
        return tokens.compose(placed, shuffled), tokens.perturb_mask(key, mask, h, w, 3, strength)

    once = jax.jit(all_of)
    together = jax.jit(jax.vmap(all_of))(mask, box, flip, strength, keys)
    for k in range(4):
        alone = once(mask[k], box[k], flip[k], strength[k], keys[k])
        jax.tree.map(lambda a, b, k=k: np.testing.assert_array_equal(a, b[k]), alone, together)


def test_table_of_tau():
    """The table of `schedule` is what its functions say."""
    assert schedule.__doc__
    tau, *lines = re.findall(r"^    (\S+(?: steps)?) +((?:[\d.]+ *)+)$", schedule.__doc__, re.M)
    taus = [float(x) for x in tau[1].split()]
    assert tau[0] == "tau"
    assert len(lines) == 4
    for (count, as_time), (name, as_share) in zip(lines[::2], lines[1::2], strict=True):
        assert name == "Steps(tau)"
        times = schedule.flow_times(int(count.split()[0]), 4096, ScheduleConfig())
        for kind, want in ((float, as_time), (schedule.Steps, as_share)):
            got = [int(schedule.steps_above(times, schedule.tau_time(kind(x), times))) for x in taus]
            assert got == [int(x) for x in want.split()], (count, kind)
    small = schedule.flow_times(28, 1024, ScheduleConfig())
    assert int(schedule.steps_above(small, 0.8)) == 9  # named below the table


def test_share_of_steps():
    """`Steps(s)` replaces (1 - s) S steps, to the nearest, a half counting up, whatever the schedule."""
    for steps in (1, 4, 5, 28, 50):
        for tokens_ in (24, 1024, 4096):
            times = schedule.flow_times(steps, tokens_, ScheduleConfig())
            for share in np.linspace(0, 1, 41):
                above = int(schedule.steps_above(times, schedule.tau_time(schedule.Steps(float(share)), times)))
                assert above == int(np.floor(round((1 - share) * steps, 6) + 0.5)), (steps, share)
    for bad in (-0.1, 1.1, schedule.Steps(2.0), float("nan")):
        with pytest.raises(ValueError, match="tau"):
            schedule.tau_time(bad, schedule.flow_times(4, 24, ScheduleConfig()))


def same(got, want):
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
