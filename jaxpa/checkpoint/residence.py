"""How a platform wants a transformer to lie in its memory: the one place that decides.

All platforms compute the same from the same parameters (In, Out), block on block.

    NVIDIA  blocks one by one: XLA copies every slice of a stack before its product (14 ms of the 101 ms of a step of
            FLUX.1-dev on an H100, by a roofline of the compiled program), but no array that is a block's own. The
            program is longer: it takes 75 s to compile instead of 17.
    TPU     blocks stacked, as elsewhere; the kernels around attention have an axis of heads, (L, In, H, Dh) and
            (L, H, Dh, Out), or the compiler copies every slice that is still to be reshaped. Those before it lie
            transposed, so that heads come out first (15% of the cycles of such projections, by the compiler's
            estimate). Whatever lies otherwise than the compiler wants it is copied once an image: of FLUX.1-dev, the
            image's projections behind attention, 0.34 GiB (transposed, all others would be).
"""

from dataclasses import replace
from typing import Any

import jax
from jax.experimental.layout import Format, Layout
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxpa.backbones.backbone import BackboneConfig
from jaxpa.backbones.registry import backbone_of
from jaxpa.checkpoint.keys import path_of
from jaxpa.layers import Numbered
from jaxpa.quantised import Quantised


def settle(path: str, x: Any, platform: str, config: BackboneConfig) -> Any:
    """A transformer's parameter ("double_blocks.img.proj.kernel") as a platform ("cpu", "gpu", "tpu") wants it.

    x: an array or a `jax.ShapeDtypeStruct` of a stack, or a `Quantised` of two; only one with a sharding has a layout.
    config: of the transformer. Where blocks stand apart the result is a list, for `assemble`.
    """
    if isinstance(x, Quantised):
        pair = ((path, x.values), (f"{path}.scale", x.scale))
        values, scale = (settle(name, each, platform, config) for name, each in pair)
        apart = isinstance(values, list)
        held = zip(values, scale, strict=True) if apart else [(values, scale)]
        kernels = [replace(x, values=values, scale=scale) for values, scale in held]
        return kernels if apart else kernels[0]
    shape_only = isinstance(x, jax.ShapeDtypeStruct)
    if platform in ("gpu", "cuda") and path.startswith(backbone_of(config).stacks):
        one = jax.ShapeDtypeStruct(x.shape[1:], x.dtype, sharding=_of_a_block(x.sharding)) if shape_only else None
        return [one or x[i] for i in range(x.shape[0])]
    return _by_heads(path, x, config) if platform == "tpu" else x


def _by_heads(path: str, x: Any, config: BackboneConfig) -> Any:
    """A stacked kernel around attention with an axis of heads, unless a mesh splits a head; others as they are."""
    backbone, heads = backbone_of(config), config.num_attention_heads
    before, after = (bool(each.fullmatch(path)) for each in (backbone.to_heads, backbone.from_heads))
    if not before and not after:
        return x
    (depth, inputs, outputs), where = x.shape, x.sharding
    shape = (depth, inputs, heads, outputs // heads) if before else (depth, heads, inputs // heads, outputs)
    if isinstance(where, NamedSharding):
        blocks, rows, columns = (*where.spec, *(None,) * (3 - len(where.spec)))
        split = columns if before else rows
        if split is not None and heads % where.mesh.shape[split]:
            return x
        where = NamedSharding(where.mesh, P(blocks, rows, columns) if before else P(blocks, rows, None, columns))
    if where is not None:
        where = Format(Layout((0, 2, 3, 1) if before else (0, 1, 2, 3)), where)
    if isinstance(x, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(shape, x.dtype, sharding=where)
    return jax.device_put(x.reshape(shape), where)


def _of_a_block(sharding: Any) -> Any:
    """The sharding of a stack without its axis of blocks."""
    if isinstance(sharding, NamedSharding):
        return NamedSharding(sharding.mesh, P(*sharding.spec[1:]))
    return sharding


def assemble(transformer: Any) -> Any:
    """A transformer whose parameters are settled: its stacks of lists become `Numbered` blocks."""

    def is_list(x: Any) -> bool:
        return isinstance(x, list)

    for name in backbone_of(transformer.config).stacks:
        stack = getattr(transformer, name)
        lists = [x for x in jax.tree.leaves(stack, is_leaf=is_list) if is_list(x)]
        if lists:
            blocks = (jax.tree.map(lambda x, i=i: x[i], stack, is_leaf=is_list) for i in range(len(lists[0])))
            setattr(transformer, name, Numbered(blocks))
    return transformer


def arrange(transformer: Any, platform: str | None = None) -> Any:
    """A whole transformer with stacked blocks, of arrays or shapes, as a platform (None: this process's) wants it."""
    platform = jax.default_backend() if platform is None else platform

    def wanted(path: Any, x: Any) -> Any:
        return settle(path_of(path), x, platform, transformer.config)

    return assemble(jax.tree_util.tree_map_with_path(wanted, transformer, is_leaf=lambda x: isinstance(x, Quantised)))
