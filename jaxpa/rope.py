"""Rotary position embedding over explicit 2D positions (FLUX: three axes, the first one always 0).

A token's position is data, (row, column); text sits at (0, 0). Each axis a owns d_a of the head's channels, in pairs
(2i, 2i + 1) that turn by the angle position_a * theta^(-2i / d_a). Everything is float32, whatever the weights are.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

THETA = 10_000.0


class Rotary(NamedTuple):
    """cos, sin: (B | 1, S, Dh / 2) float32."""

    cos: jax.Array
    sin: jax.Array


def frequencies(axis_width: int, theta: float = THETA) -> np.ndarray:
    """The turning rate of each channel pair of one axis: (axis_width / 2,) float32, radians per cell."""
    return (theta ** (-np.arange(0, axis_width, 2, dtype=np.float64) / axis_width)).astype(np.float32)


def table(positions: jax.Array, axes_dims: tuple[int, int, int], theta: float = THETA) -> Rotary:
    """Rotary table of positions (..., S, 2): FLUX's first axis is 0 for every token, so it does not turn."""
    positions = positions.astype(jnp.float32)
    if positions.ndim == 2:
        positions = positions[None]
    still = jnp.zeros((*positions.shape[:-1], axes_dims[0] // 2), jnp.float32)
    turning = [positions[..., a, None] * frequencies(axes_dims[a + 1], theta) for a in range(2)]
    angle = jnp.concatenate([still, *turning], -1)  # (B | 1, S, Dh / 2)
    return Rotary(jnp.cos(angle), jnp.sin(angle))


def rotate(x: jax.Array, rotary: Rotary) -> jax.Array:
    """Turn the channel pairs of queries or keys: x (B, S, H, Dh) -> the same shape and dtype."""
    cos, sin = rotary.cos[:, :, None], rotary.sin[:, :, None]  # one table for all heads
    even, odd = jnp.split(x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2), 2, -1)
    even, odd = even[..., 0], odd[..., 0]
    turned = jnp.stack([cos * even - sin * odd, sin * even + cos * odd], -1)
    return turned.reshape(x.shape).astype(x.dtype)
