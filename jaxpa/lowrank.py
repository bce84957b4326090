"""A weight matrix and a low-rank change of it (LoRA, Hu et al. 2021, arXiv:2106.09685), kept side by side.

    x W' = x W + ((x A) * strength) B          W' = W + A diag(strength) B

Several adapters are one: their ranks stand side by side. Strength is data, and so are A and B, so that another scale,
or another adapter of the same rank, runs the program that is compiled already.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxpa.layers import contract, precision


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LowRank:
    """A `layers.Kernel`: base (..., In, Out) or another kernel, down (..., In, R), up (..., R, Out), strength (..., R).

    base may have an axis of heads, as a `Linear`'s kernel may; strength is float32.
    """

    base: Any
    down: Any
    up: Any
    strength: Any

    def contract(self, subscripts: str, x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """einsum(subscripts, x, W'), W's axes split as `shape` says."""
        y = contract(subscripts, x, self.base, shape)
        operands, out = subscripts.split("->")
        rows, axes = operands.split(",")
        inside = [axis for axis in axes if axis not in out]  # summed over
        down, up = self.down, self.up
        if shape:
            sizes = dict(zip(axes, shape, strict=True))
            down = down.reshape(*(sizes[axis] for axis in inside), down.shape[-1])
            up = up.reshape(up.shape[0], *(sizes[axis] for axis in axes if axis in out))
        kept = "".join(axis for axis in rows if axis not in inside)
        exact = precision(x.dtype)
        hidden = jnp.einsum(
            f"{rows},{''.join(inside)}r->{kept}r", x, down, precision=exact, preferred_element_type=jnp.float32
        )
        hidden = (hidden * self.strength).astype(x.dtype)
        change = f"{kept}r,r{''.join(axis for axis in axes if axis in out)}->{out}"
        return y + jnp.einsum(change, hidden, up, precision=exact)

    def rows(self, split: Any, whole: Any) -> "LowRank":
        """`split` in place of what lies apart where W's inputs do, `whole` in place of the rest."""
        base = self.base.rows(split, whole) if hasattr(self.base, "rows") else split
        return LowRank(base, split, whole, whole)


def of_factors(base: Any, inputs: int) -> tuple[Any, Any, Any]:
    """The shardings of down, up and strength beside a base of so many inputs.

    base: an array or a `jax.ShapeDtypeStruct` (In, Out) or (L, In, Out), or a stack with an axis of heads.
    """
    sharding, blocks = base.sharding, base.ndim > 2
    if not isinstance(sharding, NamedSharding):
        return sharding, sharding, sharding
    spec = (*sharding.spec, *(None,) * (base.ndim - len(sharding.spec)))
    rest, (first, second, *third) = spec[:blocks], spec[blocks:]
    outputs = third[0] if third and base.shape[1] != inputs else second  # (H, In / H, Out), or (In, H, Out / H)
    specs = P(*rest, first, None), P(*rest, None, outputs), P(*rest, None)
    down, up, strength = (NamedSharding(sharding.mesh, spec) for spec in specs)
    return down, up, strength
