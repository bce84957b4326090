"""Softmax attention, in the form that suits each kind of device.

    attention(q, k, v) = softmax(q k^T scale) v,  q (B, H, Sq, Dh), k and v (B, H, Sk, Dh) -> (B, H, Sq, Dh)

Which implementation runs is decided where a program is lowered, not where it is traced
(`jax.lax.platform_dependent`): a program that is compiled for another platform gets that platform's attention.

    TPU     splash attention (Pallas), from LONG keys on
    NVIDIA  cuDNN's fused kernel, in half precision
    CPU     a loop over heads, whose logits then stay in cache
    else    a loop over blocks of queries: the (Sq, Sk) logits of a long sequence are never held at once
"""

import math
from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jaxpa.arrays import Array, Float, Int
from jaxpa.layers import precision

MASKED = -1e30  # logit of a key that may not be attended to; finite, so that a row without any key stays a number
LONG = 1024  # keys; from here on the logits do not fit a device's fast memory
VAST = 8192**2  # logits of one head that a CPU no longer holds at once: an autoencoder's, of a large picture


def attention(
    q: Float[Array, "B H Sq Dh"],
    k: Float[Array, "B H Sk Dh"],
    v: Float[Array, "B H Sk Dh"],
    *,
    bias: Float[Array, "#B #H #Sq Sk"] | None = None,
    length: Int[Array, " B"] | None = None,
    scale: float | None = None,
) -> Float[Array, "B H Sq Dh"]:
    """Attention of queries to keys and values.

    bias: is added to the logits; length: a row attends to its first `length` keys; scale: the logits' factor,
    1 / sqrt(Dh) by default. The softmax is float32 inside.
    """
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    by_platform: dict[str, Callable[..., jax.Array]] = {}
    if q.shape[2] * k.shape[2] <= VAST:
        by_platform["cpu"] = _by_head
    if bias is None and _splash_takes(q, k):
        by_platform["tpu"] = _splash
    if bias is None and _cudnn_takes(q):
        by_platform["cuda"] = _cudnn
    if q.shape[2] * k.shape[2] <= LONG**2 // 4:  # small: one product
        by_platform = {name: f for name, f in by_platform.items() if name == "cuda"}
    implementations = {name: partial(f, scale=factor) for name, f in by_platform.items()}
    return jax.lax.platform_dependent(
        q, k, v, bias, length, default=partial(_by_query_block, scale=factor), **implementations
    )


def _softmax(
    q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None, length: jax.Array | None, *, scale: float
) -> jax.Array:
    """The formula as it stands, with all logits at once."""
    logits = jnp.einsum("bhqd,bhkd->bhqk", q, k, precision=precision(q.dtype), preferred_element_type=jnp.float32)
    logits = logits * scale if bias is None else logits * scale + bias.astype(jnp.float32)
    if length is not None:
        logits = jnp.where(jnp.arange(k.shape[2]) < length[:, None, None, None], logits, MASKED)
    p = jax.nn.softmax(logits).astype(v.dtype)
    return jnp.einsum("bhqk,bhkd->bhqd", p, v, precision=precision(v.dtype))


def _by_head(
    q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None, length: jax.Array | None, *, scale: float
) -> jax.Array:
    """One head after the other."""
    heads = q.shape[1]
    if bias is not None:
        bias = jnp.broadcast_to(bias, (bias.shape[0], heads, *bias.shape[2:]))

    def one(head: jax.Array) -> jax.Array:
        parts = [None if x is None else jax.lax.dynamic_slice_in_dim(x, head, 1, axis=1) for x in (q, k, v, bias)]
        return _softmax(*parts, length, scale=scale)[:, 0]  # type: ignore[arg-type]

    return jnp.moveaxis(jax.lax.map(one, jnp.arange(heads)), 0, 1)


def _by_query_block(
    q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None, length: jax.Array | None, *, scale: float
) -> jax.Array:
    """One block of queries after the other; a short sequence is one block."""
    queries = q.shape[2]
    size = block_of(queries, k.shape[2])
    if size == queries:
        return _softmax(q, k, v, bias, length, scale=scale)
    blocks = -(-queries // size)
    q = _padded(q, blocks * size)
    if bias is not None and bias.shape[2] > 1:
        bias = _padded(bias, blocks * size)

    def one(block: jax.Array) -> jax.Array:
        rows = partial(jax.lax.dynamic_slice_in_dim, start_index=block * size, slice_size=size, axis=2)
        part = bias if bias is None or bias.shape[2] == 1 else rows(bias)
        return _softmax(rows(q), k, v, part, length, scale=scale)

    out = jax.lax.map(one, jnp.arange(blocks))  # (blocks, B, H, size, Dh)
    return jnp.moveaxis(out, 0, 2).reshape(q.shape)[:, :, :queries]


def block_of(queries: int, keys: int) -> int:
    """Queries of a block whose logits are about LONG x LONG; all of a short sequence's."""
    return -(-queries // 2 ** max(0, math.ceil(math.log2(queries * keys / LONG**2))))


# NVIDIA ------------------------------------------------------------------------------------------------------


def _cudnn_takes(q: jax.Array) -> bool:
    """Half precision, heads of at most 128 channels in eights, cuDNN at hand, and no card too old for its kernel."""
    half = q.dtype in (jnp.bfloat16, jnp.float16)
    return half and q.shape[-1] <= 128 and q.shape[-1] % 8 == 0 and _cudnn_is_here() and not _old_card()


@cache
def _cudnn_is_here() -> bool:
    """JAX asks cuDNN for its version while tracing, so without its plugin no program can be traced for it."""
    return any(find_spec(f"jax_cuda{version}_plugin") for version in (12, 13))


def _old_card() -> bool:
    """Whether this process runs on an NVIDIA card older than Ampere, which cuDNN's kernel leaves out."""
    if jax.default_backend() != "gpu":
        return False
    capability = getattr(jax.devices()[0], "compute_capability", None)  # AMD's are "gfx90a"
    return isinstance(capability, str) and capability[:1].isdigit() and float(capability) < 8


def _cudnn(
    q: jax.Array, k: jax.Array, v: jax.Array, bias: None, length: jax.Array | None, *, scale: float
) -> jax.Array:
    lengths: dict[str, Any] = {}
    if length is not None:  # the kernel needs both
        queries = jnp.full(q.shape[0], q.shape[2], jnp.int32)
        lengths = {"query_seq_lengths": queries, "key_value_seq_lengths": length.astype(jnp.int32)}
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))  # (B, S, H, Dh)
    out = jax.nn.dot_product_attention(q, k, v, scale=scale, implementation="cudnn", **lengths)
    return out.swapaxes(1, 2)


# TPU ---------------------------------------------------------------------------------------------------------

LANES = 128  # channels of a TPU's vector register: the unit of the kernel's blocks
UNIT = 512  # sequences are padded to multiples of it
ROWS = (1536, 1024, 768, 512)  # queries of a block
PART = 1536  # keys of one product, about
# What a kernel may take of a TPU's fast memory: v5e and v5p allow 16 MiB, v6e 32. The lowering does not know the chip,
# and the larger blocks would save a v6e 6%: 74.3 instead of 79.1 M cycles for 57 calls of 4608 x 4608 tokens.
VMEM = 16 * 2**20


def _splash_takes(q: jax.Array, k: jax.Array) -> bool:
    return q.dtype == jnp.bfloat16 and q.shape[-1] % LANES == 0 and k.shape[2] >= LONG and q.shape[2] >= LONG


def _block_sizes(rows: int, columns: int, channels: int = LANES) -> tuple[int, int, int]:
    """Queries of a block, keys of a block, keys of a product, for sequences in whole multiples of UNIT.

    As many keys as fit with UNIT queries, then as many queries as fit: one pass over the keys saves more.
    """
    blocks = [n for n in range(LANES, columns + 1, LANES) if columns % n == 0]
    keys = max(n for n in blocks if _vmem(UNIT, n, channels) <= VMEM)
    part = min((n for n in blocks if keys % n == 0), key=lambda n: abs(math.log(n / PART)))
    return next(n for n in ROWS if rows % n == 0 and (n == UNIT or _vmem(n, keys, channels) <= VMEM)), keys, part


def _vmem(queries: int, keys: int, channels: int) -> int:
    """Bytes that the kernel takes at most: its loop over the keys' parts is unrolled, and all logits may be alive."""
    logits = 4 * queries * keys
    blocks = 2 * 2 * channels * (2 * queries + 2 * keys)  # q, out, k and v in bfloat16, while the next ones are loaded
    segments = 2 * 4 * (LANES * queries + 8 * keys)
    sums = 4 * queries * (2 * LANES + channels)  # maxima, sums and the result of the softmax
    return logits + blocks + segments + sums


def _splash(
    q: jax.Array, k: jax.Array, v: jax.Array, bias: None, length: jax.Array | None, *, scale: float
) -> jax.Array:
    """JAX's splash attention; incomplete blocks are padded, and segments mask the padding."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    queries, keys = q.shape[2], k.shape[2]
    rows, columns = (-(-size // UNIT) * UNIT for size in (queries, keys))
    if columns > keys and length is None:
        length = jnp.full(q.shape[0], keys, jnp.int32)
    sizes = splash.BlockSizes(*_block_sizes(rows, columns, q.shape[-1]))

    def local(q: jax.Array, k: jax.Array, v: jax.Array, length: jax.Array | None) -> jax.Array:
        mask = splash.MultiHeadMask([splash.FullMask((rows, columns))] * q.shape[1])
        kernel = jax.vmap(splash.make_splash_mha_single_device(mask, block_sizes=sizes))
        if length is None:
            return kernel(q, k, v)  # type: ignore[return-value]  # residuals are not asked for
        masked = (jnp.arange(columns) >= length[:, None]).astype(jnp.int32)  # (B, Sk): another segment
        queries = jnp.zeros((q.shape[0], rows), jnp.int32)
        return kernel(q, k, v, splash.SegmentIds(queries, masked))  # type: ignore[return-value]

    q = _padded((q.astype(jnp.float32) * scale).astype(q.dtype), rows)  # the kernel does not scale
    return _over_mesh(local, q, _padded(k, columns), _padded(v, columns), length)[:, :, :queries]


def _padded(x: jax.Array, size: int) -> jax.Array:
    """(B, H, S, D) -> (B, H, size, D)."""
    return jnp.pad(x, ((0, 0), (0, 0), (0, size - x.shape[2]), (0, 0)))


def _over_mesh(
    local: Callable[..., jax.Array], q: jax.Array, k: jax.Array, v: jax.Array, length: jax.Array | None
) -> jax.Array:
    """Run a kernel that XLA cannot partition on each device's own rows and heads, if a mesh is in use."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return local(q, k, v, length)
    data, model = (
        name if name in mesh.axis_names and size % mesh.shape[name] == 0 else None
        for name, size in zip(("data", "model"), q.shape[:2], strict=True)
    )
    heads, lengths = P(data, model), None if length is None else P(data)
    return jax.shard_map(local, mesh=mesh, in_specs=(heads, heads, heads, lengths), out_specs=heads, check_vma=False)(
        q, k, v, length
    )
