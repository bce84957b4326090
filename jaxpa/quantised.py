"""Weights of eight bits: int8 or fp8 (e4m3), with one scale for each output of a layer; W8A8: inputs of int8 as well.

    W[i, o] = values[i, o] * scale[o]     so that     x W = (x values) * scale

The scale leaves the sum, since it belongs to an output: the product reads eight bits a weight, widened on the way, and
one multiplication of its result follows. Widening is exact in bfloat16 and float32; all that is lost is lost in
rounding the weights (`quantise`), by at most half a step of int8 (scale / 2), or 1 / 16 of each weight in fp8.

With "w8a8" the product itself is of int8: a token's inputs are rounded when they are known, with a scale of its own.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpa.config import Weights
from jaxpa.layers import precision

INT8 = np.dtype(np.int8)
DTYPES: dict[Weights, np.dtype] = {"int8": INT8, "fp8": np.dtype(jnp.float8_e4m3fn), "w8a8": INT8}
LARGEST: dict[Weights, float] = {"int8": 127.0, "fp8": 448.0, "w8a8": 127.0}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Quantised:
    """A `layers.Kernel`: values (..., In, Out) of eight bits, scale (..., Out) float32.

    inputs: whether what is multiplied by them is rounded to int8, too ("w8a8").
    """

    values: Any
    scale: Any
    inputs: bool = field(default=False, metadata={"static": True})

    def contract(self, subscripts: str, x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """einsum(subscripts, x, W), W's axes split as `shape` says."""
        values = self.values.reshape(shape) if shape else self.values
        to_heads = subscripts.endswith("hso")  # the outputs are split into heads, which stand before the tokens
        scale = self.scale.reshape(shape[1], 1, -1) if to_heads else self.scale
        if not self.inputs:
            how = {"precision": precision(x.dtype), "preferred_element_type": jnp.float32}
            return (jnp.einsum(subscripts, x, values.astype(x.dtype), **how) * scale).astype(x.dtype)
        from_heads = subscripts.startswith("bhs")  # a token's inputs are those of all its heads
        x8, step = rounded(x, (1, 3) if from_heads else -1)
        step = step[:, 0] if from_heads else step[:, None] if to_heads else step
        y = jnp.einsum(subscripts, x8, values, preferred_element_type=jnp.int32)  # exact
        return (y.astype(jnp.float32) * step * scale).astype(x.dtype)

    def rows(self, split: Any, whole: Any) -> "Quantised":
        """`split` in place of the values, which lie apart where the inputs do, `whole` in place of the scale."""
        return replace(self, values=split, scale=whole)


def rounded(x: jax.Array, axes: int | tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """x in int8, and the float32 steps that these count: one for all numbers along the axes."""
    largest = jnp.abs(x).max(axes, keepdims=True).astype(jnp.float32)
    step = jnp.where(largest == 0, 1, largest / LARGEST["int8"])
    # Without the barrier, a TPU's compiler rounds again for every tile of every product.
    return jax.lax.optimization_barrier((jnp.rint(x.astype(jnp.float32) / step).astype(jnp.int8), step))


def quantise(w: np.ndarray, kind: Weights) -> Quantised:
    """Weights (..., In, Out) rounded to eight bits, on the host; a stack is taken block by block."""
    values = np.empty(w.shape, DTYPES[kind])
    scale = np.empty((*w.shape[:-2], w.shape[-1]), np.float32)
    for block in np.ndindex(w.shape[:-2]):
        wide = w[block].astype(np.float32)
        scale[block] = steps(wide, kind)
        wide = wide / scale[block]
        values[block] = np.rint(wide) if values.dtype == INT8 else wide
    return Quantised(values, scale)


def steps(w: np.ndarray, kind: Weights) -> np.ndarray:
    """The scale of each output of weights (In, Out) float32: the largest weight becomes the largest value."""
    step = np.maximum(w.max(0), -w.min(0)) / np.float32(LARGEST[kind])
    step[step == 0] = 1
    return step


def wide(kernel: Quantised) -> jax.Array:
    """The weights that a quantised kernel stands for, (..., In, Out) float32."""
    return kernel.values.astype(jnp.float32) * kernel.scale[..., None, :]


def of_scale(sharding: Any, axes: int) -> Any:
    """The sharding of a scale (..., Out) beside values (..., In, Out), of so many axes, of this sharding."""
    if not isinstance(sharding, jax.sharding.NamedSharding):
        return sharding
    *rest, _, outputs = (*sharding.spec, *(None,) * (axes - len(sharding.spec)))
    return jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec(*rest, outputs))
