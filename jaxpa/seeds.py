"""Random numbers that follow from a seed alone: the process's own settings of `jax.random` do not change a picture."""

from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp

from jaxpa.arrays import Array, Int, Key


def random_key(seed: Int[Array, ""]) -> Key[Array, ""]:
    """A seed's key, whatever generator and offset have been chosen for `jax.random.key`."""
    words = jnp.stack([jnp.zeros_like(seed), seed]).astype(jnp.uint32)
    return jax.random.wrap_key_data(words, impl="threefry2x32")


def same_everywhere() -> AbstractContextManager[Any]:
    """Within this, a key's numbers are those of JAX's default, `jax_threefry_partitionable`."""
    return jax.threefry_partitionable(True)
