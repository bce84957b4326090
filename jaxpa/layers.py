"""The layers that the networks share.

Modules are Flax NNX modules used as immutable pytrees: a constructor makes parameters, a call is a pure function,
`jax.*` transforms do the rest. Compute runs in the weights' dtype; normalisation and rotation run in float32.
"""

import math
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

Module = TypeVar("Module", bound=nnx.Module)

MASKED = -1e30  # bias of what may not be attended to; finite, so that a row without any key stays a number


def stack(count: int, make: Callable[[nnx.Rngs], Module], rngs: nnx.Rngs) -> Module:
    """`count` modules as one, every parameter with a leading axis L: what `jax.lax.scan` runs over."""
    return jax.vmap(lambda key: make(nnx.Rngs(key)))(jax.random.split(rngs.params(), count))


def layer_norm(x: jax.Array, eps: float = 1e-6) -> jax.Array:
    """Layer norm over the last axis, without scale and bias (adaLN supplies them); f32 inside."""
    x32 = x.astype(jnp.float32)
    centred = x32 - x32.mean(-1, keepdims=True)
    return (centred * jax.lax.rsqrt(jnp.mean(centred**2, -1, keepdims=True) + eps)).astype(x.dtype)


class RMSNorm(nnx.Module):
    """Root mean square norm over the last axis with a learned scale; f32 inside."""

    def __init__(self, width: int, *, eps: float = 1e-6, dtype: DTypeLike = jnp.float32):
        self.scale = nnx.Param(jnp.ones((width,), dtype))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.mean(x32**2, -1, keepdims=True) + self.eps)
        return (normed * self.scale.astype(jnp.float32)).astype(x.dtype)


class MLPEmbedder(nnx.Module):
    """Linear, SiLU, linear: how time, guidance and the pooled text become one vector."""

    def __init__(self, in_width: int, width: int, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        self.in_layer = nnx.Linear(in_width, width, rngs=rngs, param_dtype=dtype)
        self.out_layer = nnx.Linear(width, width, rngs=rngs, param_dtype=dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.out_layer(jax.nn.silu(self.in_layer(x)))


def timestep_embedding(t: jax.Array, width: int = 256, max_period: float = 10_000.0) -> jax.Array:
    """Sinusoids of 1000 t, cosines first: t (B,) in [0, 1] -> (B, width), float32.

    The frequencies repeat the reference's float32 arithmetic step by step: at 1000 t = 1000 a rounding of the
    exponent turns the phase by more than the whole network's rounding error.
    """
    half = width // 2
    exponent = np.float32(-math.log(max_period)) * np.arange(half, dtype=np.float32) / np.float32(half)
    frequencies = np.exp(exponent.astype(np.float64)).astype(np.float32)
    phase = (1000.0 * t.astype(jnp.float32))[:, None] * frequencies  # (B, width / 2)
    return jnp.concatenate([jnp.cos(phase), jnp.sin(phase)], -1)


def attention(
    q: jax.Array, k: jax.Array, v: jax.Array, *, bias: jax.Array | None = None, scale: float | None = None
) -> jax.Array:
    """Softmax attention: q (B, Sq, H, Dh), k and v (B, Sk, H, Dh), bias (B | 1, H | 1, Sq | 1, Sk) -> like q.

    The one place where an implementation is chosen. On NVIDIA XLA's default would write the (Sq, Sk) logits to
    memory, so half precision takes cuDNN's fused kernel where its shapes allow; on CPU one head at a time keeps the
    logits in cache. `scale` defaults to 1 / sqrt(Dh).
    """
    backend = jax.default_backend()
    if backend == "gpu" and _cudnn_takes(q, k, bias):
        bias = None if bias is None else bias.astype(q.dtype)
        return jax.nn.dot_product_attention(q, k, v, bias=bias, scale=scale, implementation="cudnn")
    if backend == "cpu" and q.shape[1] * k.shape[1] >= HEAD_BY_HEAD_LOGITS:
        return _head_by_head(q, k, v, bias, scale)
    return jax.nn.dot_product_attention(q, k, v, bias=bias, scale=scale)


def _cudnn_takes(q: jax.Array, k: jax.Array, bias: jax.Array | None) -> bool:
    """Half precision, heads of at most 128 channels in eights, and even lengths where there is a bias."""
    half = q.dtype in (jnp.bfloat16, jnp.float16)
    even = q.shape[1] % 2 == 0 and k.shape[1] % 2 == 0
    return half and q.shape[-1] <= 128 and q.shape[-1] % 8 == 0 and (bias is None or even)


HEAD_BY_HEAD_LOGITS = 512 * 512  # logits of one head from which a loop over heads pays on CPU


def _head_by_head(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None, scale: float | None) -> jax.Array:
    heads = q.shape[2]
    if bias is not None:
        bias = jnp.broadcast_to(bias, (bias.shape[0], heads, *bias.shape[2:]))

    def one(head: jax.Array) -> jax.Array:
        part = [jax.lax.dynamic_slice_in_dim(x, head, 1, axis=2) for x in (q, k, v)]
        part_bias = None if bias is None else jax.lax.dynamic_slice_in_dim(bias, head, 1, axis=1)
        return jax.nn.dot_product_attention(*part, bias=part_bias, scale=scale)[:, :, 0]  # (B, Sq, Dh)

    return jnp.moveaxis(jax.lax.map(one, jnp.arange(heads)), 0, 2)
