"""The CLIP text encoder: token ids -> one vector per prompt, FLUX's `vec`.

It is a causal pre-norm transformer with learned positions. The pooled vector is the last state, after the final norm,
of the first end-of-text token, which is the first to have read the whole prompt.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxpa.config import CLIPConfig, SiglipVisionConfig
from jaxpa.kernels import MASKED, attention
from jaxpa.layers import Linear, stack


class CLIPOutput(NamedTuple):
    last_hidden_state: jax.Array  # (B, M, Dv), after the final norm
    pooled: jax.Array  # (B, Dv)


def activation(name: str, x: jax.Array) -> jax.Array:
    """`quick_gelu` is x sigmoid(1.702 x), `gelu` the exact function, `gelu_pytorch_tanh` its approximation.

    Raises ValueError for other names.
    """
    if name == "quick_gelu":
        return x * jax.nn.sigmoid(1.702 * x)
    if name == "gelu":
        return jax.nn.gelu(x, approximate=False)
    if name == "gelu_pytorch_tanh":
        return jax.nn.gelu(x, approximate=True)
    raise ValueError(f"unsupported activation {name!r} (supported: quick_gelu, gelu, gelu_pytorch_tanh)")


class LayerNorm(nnx.LayerNorm):
    """Flax's, which relies on promotion in half precision: it may, even under `jax_numpy_dtype_promotion=strict`."""

    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        with jax.numpy_dtype_promotion("standard"):
            return super().__call__(x, mask=mask)


def layer_norm(config: CLIPConfig | SiglipVisionConfig, rngs: nnx.Rngs, dtype: DTypeLike) -> LayerNorm:
    # The fast variance, mean(x^2) - mean(x)^2, loses digits. Statistics are float32 in any dtype.
    return LayerNorm(
        config.hidden_size,
        epsilon=config.layer_norm_eps,
        use_fast_variance=False,
        rngs=rngs,
        param_dtype=dtype,
    )


class CLIPAttention(nnx.Module):
    """Self-attention, with a bias on the logits where it is causal."""

    def __init__(self, config: CLIPConfig | SiglipVisionConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        self.heads = config.num_attention_heads
        width = config.hidden_size
        self.q, self.k, self.v, self.out = (Linear(width, width, rngs=rngs, dtype=dtype) for _ in range(4))

    def __call__(self, x: jax.Array, bias: jax.Array | None) -> jax.Array:
        """x (B, M, D), bias (1, 1, M, M) or None -> (B, M, D)."""
        q, k, v = (f.to_heads(x, self.heads) for f in (self.q, self.k, self.v))  # (B, H, M, Dh) each
        return self.out.from_heads(attention(q, k, v, bias=bias))  # (B, M, D)


class CLIPBlock(nnx.Module):
    """Attention and MLP, each behind a layer norm and inside a residual: of CLIP's text and of vision transformers."""

    def __init__(self, config: CLIPConfig | SiglipVisionConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        width, inner = config.hidden_size, config.intermediate_size
        self.hidden_act = config.hidden_act
        self.attention_norm = layer_norm(config, rngs, dtype)
        self.attention = CLIPAttention(config, rngs=rngs, dtype=dtype)
        self.mlp_norm = layer_norm(config, rngs, dtype)
        self.fc1 = Linear(width, inner, rngs=rngs, dtype=dtype)
        self.fc2 = Linear(inner, width, rngs=rngs, dtype=dtype)

    def __call__(self, x: jax.Array, bias: jax.Array | None) -> jax.Array:
        """x (B, M, D), bias (1, 1, M, M) or None -> (B, M, D)."""
        x = x + self.attention(self.attention_norm(x), bias)  # (B, M, D)
        hidden = activation(self.hidden_act, self.fc1(self.mlp_norm(x)))  # (B, M, F)
        return x + self.fc2(hidden)  # (B, M, D)


class CLIPTextEncoder(nnx.Module):
    """The text half of CLIP, without projection. Source: transformers' `CLIPTextModel`."""

    def __init__(self, config: CLIPConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        width, positions = config.hidden_size, config.max_position_embeddings
        normal = nnx.initializers.normal(0.02)
        self.config = config
        self.token_embedding = nnx.Param(normal(rngs.params(), (config.vocab_size, width), dtype))
        self.position_embedding = nnx.Param(normal(rngs.params(), (positions, width), dtype))
        self.blocks = stack(config.num_hidden_layers, lambda r: CLIPBlock(config, rngs=r, dtype=dtype), rngs)
        self.final_norm = layer_norm(config, rngs, dtype)

    def __call__(self, ids: jax.Array) -> CLIPOutput:
        """Token ids (B, M) int32, M at most `max_position_embeddings` -> states (B, M, Dv) and pooled (B, Dv).

        An id outside the vocabulary gives NaN. Raises ValueError if M is too long.
        """
        batch, length = ids.shape
        if length > self.config.max_position_embeddings:
            raise ValueError(f"{length} tokens; this encoder has {self.config.max_position_embeddings} positions")
        later = jnp.triu(jnp.ones((length, length), bool), 1)  # (M, M)
        bias = jnp.where(later, MASKED, 0.0)[None, None]  # (1, 1, M, M)
        x = jnp.take(self.token_embedding[...], ids, axis=0)  # (B, M, Dv)
        x = x + self.position_embedding[:length]  # (B, M, Dv)
        x, _ = jax.lax.scan(lambda x, block: (block(x, bias), None), x, self.blocks)  # (B, M, Dv)
        x = self.final_norm(x)  # (B, M, Dv)
        return CLIPOutput(x, x[jnp.arange(batch), self.end_of_text(ids)])  # (B, M, Dv), (B, Dv)

    def end_of_text(self, ids: jax.Array) -> jax.Array:
        """Index of the token whose state stands for the prompt: ids (B, M) -> (B,).

        Early CLIP configurations, FLUX.1's included, say `eos_token_id` 2, which is not the tokenizer's; there the
        end of text is the largest id.
        """
        eos = self.config.eos_token_id
        return jnp.argmax(ids if eos == 2 else ids == eos, -1)  # (B,), the first of equals
