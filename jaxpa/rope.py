"""Rotary position embedding over explicit positions with three axes.

A token's position is data: FLUX's (index, row, column), where the index counts pictures and is 0 for the one being
made; text sits at (0, 0, 0). Each axis a owns d_a of the head's channels, in pairs (2i, 2i + 1) that turn by the angle
position_a * theta^(-2i / d_a). Angles and turns are float32, whatever the weights are.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpa.arrays import Array, Float, Float32, Shaped

THETA = 10_000.0


class Rotary(NamedTuple):
    """The cosine and the sine of every turn; one row may serve all."""

    cos: Float32[Array, "#B S Dh//2"]
    sin: Float32[Array, "#B S Dh//2"]


def frequencies(axis_width: int, theta: float = THETA) -> Float32[np.ndarray, " {axis_width}//2"]:
    """The turning rate of each channel pair of one axis, in radians per cell."""
    return (theta ** (-np.arange(0, axis_width, 2, dtype=np.float64) / axis_width)).astype(np.float32)


def table(positions: Shaped[Array, "*B S A"], axes_dims: tuple[int, ...], theta: float = THETA) -> Rotary:
    """Rotary table of positions, which have a column for each of the A axes. Raises ValueError for other columns."""
    if positions.shape[-1] != len(axes_dims):
        raise ValueError(f"positions {positions.shape} must have {len(axes_dims)} columns, one for each rotary axis")
    positions = positions.astype(jnp.float32)
    if positions.ndim == 2:
        positions = positions[None]
    turns = [positions[..., a, None] * frequencies(width, theta) for a, width in enumerate(axes_dims)]
    angle = jnp.concatenate(turns, -1)  # (B | 1, S, Dh / 2)
    return Rotary(jnp.cos(angle), jnp.sin(angle))


def rotate(x: Float[Array, "B H S Dh"], rotary: Rotary) -> Float[Array, "B H S Dh"]:
    """Turn the channel pairs of queries or keys; the dtype stays the same."""
    cos, sin = (jnp.repeat(part, 2, -1)[:, None] for part in rotary)  # (B | 1, 1, S, Dh), one table for all heads
    return (x.astype(jnp.float32) * cos + _quarter_turn(x).astype(jnp.float32) * sin).astype(x.dtype)


def _quarter_turn(x: Float[Array, "*S Dh"]) -> Float[Array, "*S Dh"]:
    """Every channel pair turned by 90 degrees: (x0, x1) -> (-x1, x0).

    A TPU cannot exchange neighbouring lanes cheaply, but multiplies matrices at almost no cost. There the turn is a
    product with a signed permutation, which is exact.
    """

    def by_pairs(x: Array) -> Array:
        even, odd = x[..., 0::2], x[..., 1::2]
        return jnp.stack([-odd, even], -1).reshape(x.shape)

    def by_product(x: Array) -> Array:
        turn = np.kron(np.eye(x.shape[-1] // 2), [[0, 1], [-1, 0]])
        return jnp.einsum("...c,cd->...d", x, turn.astype(x.dtype), precision=jax.lax.Precision.HIGHEST)

    return jax.lax.platform_dependent(x, tpu=by_product, default=by_pairs)
