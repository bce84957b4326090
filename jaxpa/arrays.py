"""Shapes in annotations: `Float[Array, "B N C"]` is an array of floating-point numbers with three axes.

A letter is one size throughout a call, "#B" that size or 1, "..." any number of axes, and " {h}*{w}" a product of
arguments. The tests check every call of the book against its annotations (`tests/conftest.py`). At run time they are
words: what users pass is checked by `checks`, while a program is traced.
"""

from typing import TYPE_CHECKING

import jax
import numpy as np
from jaxtyping import Bool, Float, Float32, Int32, Key, Num, Shaped
from jaxtyping import Integer as Int  # unsigned ones, too

if TYPE_CHECKING:
    Array = jax.Array
    Scalar = jax.Array | float
    Index = jax.Array | int
else:  # NumPy's arrays are taken wherever JAX's are
    Array = jax.Array | np.ndarray
    Scalar = Num[Array, ""] | np.number | float | int
    Index = Int[Array, ""] | np.integer | int

__all__ = ["Array", "Bool", "Float", "Float32", "Index", "Int", "Int32", "Key", "Scalar", "Shaped"]
