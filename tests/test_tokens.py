"""Token arithmetic and rotary positions against plain loops and complex numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpa import rope
from jaxpa.tokens import Routing, gather, grid_positions, identity_source, pair, patchify, pixel_channels, unpatchify

few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**32 - 1)


def close(got, want, atol):
    np.testing.assert_allclose(np.asarray(got), np.asarray(want), atol=atol, rtol=0)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


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


def test_pixel_channels_are_a_loop_over_pixels():
    """Channels run over (pixel row, pixel column) inside a latent cell, then over the cells of a token."""
    mask, side = normal(0, 2, 12, 18), 3
    want = np.empty((2, 6, 4 * side**2), np.float32)
    for row, col, y, x, dy, dx in np.ndindex(2, 3, side, side, 2, 2):
        channel = (y * side + x) * 4 + dy * 2 + dx
        want[:, row * 3 + col, channel] = mask[:, (2 * row + dy) * side + y, (2 * col + dx) * side + x]
    np.testing.assert_array_equal(pixel_channels(jnp.asarray(mask), side), want)
    with pytest.raises(ValueError, match="does not divide into tokens of 6 pixels"):
        pixel_channels(jnp.zeros((1, 12, 15)), side)


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
    assert grid_positions(3, 5).tolist() == [[0.0, *map(float, cell)] for cell in want]
    assert set(np.asarray(grid_positions(2, 2, index=1))[:, 0]) == {1.0}


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
    weight, positions, length = rng.random((2, batch, 1, 3)), normal(9, batch, k, 3), rng.integers(0, n + k, batch)
    repeat = jax.jit(lambda routing: routing.repeat(n, count, shared=shared))
    out = repeat(Routing(*map(jnp.asarray, (source, weight, context, positions, length))))
    for index, repeated in ((source, out.source), (context, out.context)):
        alone = [np.concatenate([common, copy])[index] for copy in copies]
        want = np.concatenate([alone[0][:shared], *(one[shared:] for one in alone)])
        np.testing.assert_array_equal(np.concatenate([common, *copies])[repeated], want)
    moved = np.moveaxis(weight, 1, 0).astype(np.float32), jnp.moveaxis(out.weight, 1, 0)
    for given_, repeated in (moved, (positions, out.positions), (length, out.length)):
        np.testing.assert_array_equal(repeated, np.concatenate([given_[:shared], *[given_[shared:]] * count]))
    plain = repeat(Routing(identity_source(batch, n)))
    np.testing.assert_array_equal(plain.source, identity_source(shared + (batch - shared) * count, n))
    assert (plain.weight, plain.context, plain.positions, plain.length) == (None,) * 4
    same = repeat(Routing(weight=jnp.ones((1, 1, n, 1))))  # a weight that all rows share
    assert (same.source, same.weight.shape) == (None, (1, 1, n, 1))


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
    """Channel pairs as complex numbers times exp(i angle), float64: x (B, H, S, Dh), positions (S, 3)."""
    rates = [10_000.0 ** (-np.arange(0, d, 2) / d) for d in AXES]
    angle = np.concatenate([positions[:, a, None] * rates[a] for a in range(3)], 1)  # (S, Dh / 2)
    turned = (x[..., 0::2].astype(float) + 1j * x[..., 1::2]) * np.exp(1j * angle)
    return np.stack([turned.real, turned.imag], -1).reshape(x.shape)


def test_rotation_is_complex_multiplication():
    x, positions = normal(0, 2, 3, 12, sum(AXES)), np.asarray(grid_positions(3, 4))
    # Angles of up to 3 are rounded to 2e-7, the products once more.
    close(rotated(x, positions), turn(x, positions), 2e-6)
    batch = np.stack([positions, positions[::-1]])  # positions of each row's own
    for row in range(2):
        close(rotated(x, batch)[row], turn(x, batch[row])[row], 2e-6)


@few
@given(seeds, st.tuples(*[st.integers(-30, 30)] * 3), st.tuples(*[st.integers(0, 60)] * 3))
def test_only_relative_positions_count(seed, offset, place):
    """A query and a key that move together meet under the same logit."""
    q, k = normal(seed, 1, 2, 1, sum(AXES)), normal(seed + 1, 1, 2, 1, sum(AXES))

    def logit(at: np.ndarray) -> np.ndarray:
        key = rotated(k, at[None] + np.asarray(offset, np.float32))
        return np.asarray((rotated(q, at[None]) * key).sum(-1))

    # Angles reach 90, whose last bit is 8e-6; what comes of it in 18 channels of order 1 is 4e-6.
    close(logit(np.asarray(place, np.float32)), logit(np.zeros(3, np.float32)), 2e-5)


def test_position_zero_and_the_first_axis_do_not_turn():
    x = normal(0, 1, 2, 6, sum(AXES))
    np.testing.assert_array_equal(rotated(x, np.zeros((6, 3), np.float32)), x)
    np.testing.assert_array_equal(rotated(x, np.asarray(grid_positions(2, 3)))[..., : AXES[0]], x[..., : AXES[0]])
    half = jnp.asarray(x, jnp.bfloat16)  # whatever the type, the arithmetic is float32
    want = rotated(half.astype(jnp.float32), np.asarray(grid_positions(2, 3)))
    np.testing.assert_array_equal(rotated(half, np.asarray(grid_positions(2, 3))), want.astype(jnp.bfloat16))


def test_rotation_under_transforms():
    """vmap over sets of positions; the gradient is the rotation back."""
    x, weight = normal(0, 1, 2, 6, sum(AXES)), normal(1, 1, 2, 6, sum(AXES))
    positions = np.asarray(grid_positions(2, 3))
    batch = jax.vmap(lambda p: rotated(x, p))(np.stack([positions, positions + 5]))
    close(batch[1], turn(x, positions + 5), 2e-6)
    gradient = jax.grad(lambda x: jnp.sum(rotated(x, positions) * weight))(x)
    close(gradient, turn(weight, -positions), 2e-6)
