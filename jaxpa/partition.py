"""How the networks' work is shared out: rows over "data", few sums over "model", and rows that take turns on a chip.

Everything else is read off the arrays by XLA's partitioner. Where no mesh is in use, nothing is spread and summed.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P


def over_data(x: jax.Array, rows: int | None = 0) -> jax.Array:
    """Spread the axis `rows` of x (None: no axis) over the mesh axis "data"; keep x whole on every device of "model".

    Behind a layer whose inputs are split over "model", this asks for the sum.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or "data" not in mesh.auto_axes:
        return x
    apart = rows is not None and mesh.shape["data"] > 1 and x.shape[rows] > 1
    axes = [None] * x.ndim if not apart else ["data" if axis == rows else None for axis in range(x.ndim)]
    return jax.lax.with_sharding_constraint(x, P(*axes))


def together(*sums: jax.Array) -> tuple[jax.Array, ...]:
    """`over_data` of what several layers make of inputs that are split over "model": one all-reduce for all of them."""
    sums = tuple(map(over_data, sums))
    # XLA combines collectives that do not depend on each other. Behind the barrier each user of one depends on all.
    return sums if _split_over_model() is None else jax.lax.optimization_barrier(sums)


def summed(
    function: Callable[..., jax.Array], kernels: Any, bias: jax.Array, *inputs: jax.Array, axes: Sequence[int]
) -> jax.Array:
    """function(kernels, bias, *inputs) (B, ...): sums over what "model" splits, and a bias; by one all-reduce.

    kernels: a pytree of arrays (In, Out) and `layers.Kernel`s, split along In; inputs (B, ...), each split along one of
    `axes`.
    XLA's partitioner would reduce every sum for itself; here a device adds up its own shares first.
    """
    mesh = _split_over_model()
    if mesh is None or not _divides(mesh, inputs, axes):
        return over_data(function(kernels, bias, *inputs))

    def share(kernels: Any, bias: jax.Array, *inputs: jax.Array) -> jax.Array:
        once = jnp.where(jax.lax.axis_index("model") == 0, bias, jnp.zeros_like(bias))
        return jax.lax.psum(function(kernels, once, *inputs), "model")

    def rows_of(kernel: Any) -> Any:
        return kernel.rows(P("model"), P()) if hasattr(kernel, "rows") else P("model")

    rows = jax.tree.map(rows_of, kernels, is_leaf=lambda x: hasattr(x, "rows"))
    columns = [P("data", *[None] * (axis - 1), "model") for axis in axes]
    whole = jax.shard_map(share, mesh=mesh, in_specs=(rows, P(), *columns), out_specs=P("data"), check_vma=False)
    return whole(kernels, bias, *inputs)


def _divides(mesh: AbstractMesh, inputs: Sequence[jax.Array], axes: Sequence[int]) -> bool:
    data, model = mesh.shape["data"], mesh.shape["model"]
    return all(x.shape[0] % data == 0 and x.shape[axis] % model == 0 for x, axis in zip(inputs, axes, strict=True))


def _split_over_model() -> AbstractMesh | None:
    """The mesh in use, if XLA partitions over its axes "data" and "model", the latter of several devices."""
    mesh = jax.sharding.get_abstract_mesh()
    split = not mesh.empty and {"data", "model"} <= set(mesh.auto_axes) and mesh.shape["model"] > 1
    return mesh if split else None


GROUP = 4096  # tokens that are enough to fill a chip


def row_groups(rows: int, tokens: int) -> int:
    """Into how many equal groups rows of so many tokens divide, of at least GROUP tokens on each device of "data"."""
    mesh = jax.sharding.get_abstract_mesh()
    data = 1 if mesh.empty else mesh.shape.get("data", 1)
    own = rows // data if rows % data == 0 else 1
    return max(n for n in range(1, own + 1) if own % n == 0 and (n == 1 or own // n * tokens >= GROUP))


def by_groups(of_group: Callable[[Callable[[jax.Array], jax.Array]], jax.Array], groups: int) -> jax.Array:
    """What `of_group` makes of one group of rows after the other, for all rows (B, ...).

    of_group(share) has the rows of share(x), which are those of its group among the rows of x. They stand `groups`
    apart, so that every device of "data" holds as many of each group.
    """

    def one(index: jax.Array) -> jax.Array:
        def share(x: jax.Array) -> jax.Array:
            apart = x.reshape(-1, groups, *x.shape[1:])
            return jax.lax.dynamic_index_in_dim(apart, index, 1, keepdims=False)

        return of_group(share)

    y = jax.lax.map(one, jnp.arange(groups)).swapaxes(0, 1)  # (B / groups, groups, ...)
    return y.reshape(-1, *y.shape[2:])
