"""The T5 v1.1 encoder: token ids -> one vector per token, FLUX's `txt`.

Pre-norm blocks (RMS norm) hold self-attention and a gated GELU, both without biases. Positions enter only through a
bias on the attention logits: a learned table (buckets, heads) that all blocks share, indexed by the binned distance
between two tokens (Raffel et al. 2020, section 2.1). The logits are not scaled by 1 / sqrt(Dh).

FLUX passes no attention mask: T5 reads padding like any other token.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from jaxpa.config import T5Config
from jaxpa.kernels import MASKED, attention
from jaxpa.layers import Linear, RMSNorm, stack


def relative_buckets(length: int, buckets: int, max_distance: int) -> np.ndarray:
    """Bucket of every (query, key) pair -> (M, M) int32; half of the buckets are for keys after the query.

    Half of each side counts single steps; the other half grows logarithmically up to `max_distance`. A boundary falls
    exactly on some distances, so the arithmetic repeats the reference's float32 step by step, on the host.
    """
    side = buckets // 2
    exact = side // 2
    offset = np.arange(length)[None, :] - np.arange(length)[:, None]  # (M, M), key - query
    distance = np.abs(offset)
    ratio = np.maximum(distance, 1).astype(np.float32) / np.float32(exact)
    log = np.log(ratio.astype(np.float64)).astype(np.float32)
    steps = log / np.float32(math.log(max_distance / exact)) * np.float32(side - exact)
    far = np.minimum(exact + steps.astype(np.int32), side - 1)
    return (np.where(offset > 0, side, 0) + np.where(distance < exact, distance, far)).astype(np.int32)


class T5Attention(nnx.Module):
    """Self-attention with a bias on the logits; the inner width H * Dh need not be the model's."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        self.heads = config.num_heads
        inner = config.num_heads * config.d_kv

        width, lecun = config.d_model, nnx.initializers.lecun_normal()

        def query_init(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
            # The initial q carries the 1 / sqrt(Dh) that the logits lack.
            return lecun(key, shape, dtype) * np.asarray(config.d_kv**-0.5, dtype)

        self.q, self.k, self.v = (
            Linear(width, inner, use_bias=False, kernel_init=init, rngs=rngs, dtype=dtype)  # type: ignore[arg-type]
            for init in (query_init, lecun, lecun)
        )
        self.o = Linear(inner, width, use_bias=False, rngs=rngs, dtype=dtype)

    def __call__(self, x: jax.Array, bias: jax.Array) -> jax.Array:
        """x (B, M, D), bias (B | 1, H, M, M) -> (B, M, D)."""
        q, k, v = (f.to_heads(x, self.heads) for f in (self.q, self.k, self.v))  # (B, H, M, Dh) each
        return self.o.from_heads(attention(q, k, v, bias=bias, scale=1.0))  # (B, M, D)


class T5MLP(nnx.Module):
    """gelu(x wi_0) * (x wi_1), then wo."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        self.wi_0 = Linear(config.d_model, config.d_ff, use_bias=False, rngs=rngs, dtype=dtype)
        self.wi_1 = Linear(config.d_model, config.d_ff, use_bias=False, rngs=rngs, dtype=dtype)
        self.wo = Linear(config.d_ff, config.d_model, use_bias=False, rngs=rngs, dtype=dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        """x (B, M, D) -> (B, M, D)."""
        return self.wo(jax.nn.gelu(self.wi_0(x), approximate=True) * self.wi_1(x))  # (B, M, F), then (B, M, D)


class T5Block(nnx.Module):
    """Attention and MLP, each behind a norm and inside a residual."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        eps = config.layer_norm_epsilon
        self.attention_norm = RMSNorm(config.d_model, eps=eps, dtype=dtype)
        self.attention = T5Attention(config, rngs=rngs, dtype=dtype)
        self.mlp_norm = RMSNorm(config.d_model, eps=eps, dtype=dtype)
        self.mlp = T5MLP(config, rngs=rngs, dtype=dtype)

    def __call__(self, x: jax.Array, bias: jax.Array) -> jax.Array:
        """x (B, M, D), bias (B | 1, H, M, M) -> (B, M, D)."""
        x = x + self.attention(self.attention_norm(x), bias)  # (B, M, D)
        return x + self.mlp(self.mlp_norm(x))  # (B, M, D)


class T5Encoder(nnx.Module):
    """The encoder half of T5 v1.1. Source: transformers' `T5EncoderModel`."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        normal = nnx.initializers.normal
        vocabulary, buckets = config.vocab_size, config.relative_attention_num_buckets
        self.config = config
        self.token_embedding = nnx.Param(normal(1.0)(rngs.params(), (vocabulary, config.d_model), dtype))
        self.relative_bias = nnx.Param(normal(config.d_model**-0.5)(rngs.params(), (buckets, config.num_heads), dtype))
        self.blocks = stack(config.num_layers, lambda r: T5Block(config, rngs=r, dtype=dtype), rngs)
        self.final_norm = RMSNorm(config.d_model, eps=config.layer_norm_epsilon, dtype=dtype)

    def attention_bias(self, length: int, attention_mask: jax.Array | None = None) -> jax.Array:
        """The bias on the logits: mask (B, M), 1 = attend, or None -> (B | 1, H, M, M), float32."""
        config = self.config
        buckets = relative_buckets(
            length, config.relative_attention_num_buckets, config.relative_attention_max_distance
        )
        table = self.relative_bias[...].astype(jnp.float32)  # (buckets, H)
        bias = jnp.moveaxis(table[buckets], -1, 0)[None]  # (1, H, M, M)
        if attention_mask is None:
            return bias
        return bias + jnp.where(attention_mask[:, None, None, :] != 0, 0.0, MASKED)  # (B, H, M, M)

    def __call__(self, ids: jax.Array, attention_mask: jax.Array | None = None) -> jax.Array:
        """Token ids (B, M) int32, mask (B, M) with 1 = attend, or None for all -> (B, M, Dt).

        FLUX passes no mask. An id outside the vocabulary gives NaN.
        """
        bias = self.attention_bias(ids.shape[1], attention_mask)  # (B | 1, H, M, M)
        x = jnp.take(self.token_embedding[...], ids, axis=0)  # (B, M, Dt)
        x, _ = jax.lax.scan(lambda x, block: (block(x, bias), None), x, self.blocks)  # (B, M, Dt)
        return self.final_norm(x)  # (B, M, Dt)
