"""Vision transformers that read a picture whole: SigLIP's, which FLUX.1-Redux reads, and CLIP's, for image prompts.

patches -> tokens (with positions; CLIP has one more for the whole picture) -> blocks as in CLIP's text encoder
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxpa.config import CLIPVisionConfig, ReduxConfig, SiglipVisionConfig
from jaxpa.encoders.clip import CLIPBlock, layer_norm
from jaxpa.layers import Linear, precision, stack


class VisionOutput(NamedTuple):
    states: jax.Array  # (B, N, D): SigLIP's after the final norm; CLIP's before it, the whole picture's token first
    pooled: jax.Array | None  # (B, P): CLIP's embedding of the whole picture; of SigLIP none is read


class VisionEncoder(nnx.Module):
    """A picture's tokens. Source: transformers' `SiglipVisionModel` and `CLIPVisionModelWithProjection`."""

    def __init__(
        self, config: SiglipVisionConfig | CLIPVisionConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32
    ):
        width, patch = config.hidden_size, (config.patch_size, config.patch_size)
        normal, whole = nnx.initializers.normal(0.02), isinstance(config, CLIPVisionConfig)
        self.config = config
        self.patch_embedding = nnx.Conv(
            3,
            width,
            patch,
            strides=patch,
            padding="VALID",
            use_bias=not whole,
            precision=precision(dtype),
            rngs=rngs,
            param_dtype=dtype,
        )
        self.position_embedding = nnx.Param(normal(rngs.params(), (config.tokens + whole, width), dtype))
        self.blocks = stack(config.num_hidden_layers, lambda r: CLIPBlock(config, rngs=r, dtype=dtype), rngs)
        self.final_norm = layer_norm(config, rngs, dtype)
        if isinstance(config, CLIPVisionConfig):
            self.class_embedding = nnx.Param(normal(rngs.params(), (width,), dtype))
            self.pre_norm = layer_norm(config, rngs, dtype)
            self.projection = Linear(width, config.projection_dim, use_bias=False, rngs=rngs, dtype=dtype)

    @property
    def dtype(self) -> jnp.dtype:
        return self.position_embedding[...].dtype

    def __call__(self, pixels: jax.Array) -> VisionOutput:
        """Normalised pixels (B, S, S, 3), S the configuration's `image_size` -> states (B, N, D), and what is pooled.

        Raises ValueError for another size.
        """
        side = self.config.image_size
        if pixels.shape[1:] != (side, side, 3):
            raise ValueError(f"pixels have the shape {pixels.shape}: this encoder reads (B, {side}, {side}, 3)")
        x = self.patch_embedding(pixels.astype(self.dtype))  # (B, h, w, D)
        x = x.reshape(len(x), -1, x.shape[-1])  # (B, N, D)
        if whole := isinstance(self.config, CLIPVisionConfig):
            first = jnp.broadcast_to(self.class_embedding[...], (len(x), 1, x.shape[-1]))
            x = jnp.concatenate([first, x], 1)  # (B, 1 + N, D)
        x = x + self.position_embedding[...]
        x = self.pre_norm(x) if whole else x
        x, _ = jax.lax.scan(lambda x, block: (block(x, None), None), x, self.blocks)
        if whole:
            return VisionOutput(x, self.projection(self.final_norm(x[:, 0])))
        return VisionOutput(self.final_norm(x), None)


class ReduxEmbedder(nnx.Module):
    """FLUX.1-Redux: a picture's states as text tokens. Source: diffusers' `ReduxImageEncoder`."""

    def __init__(self, config: ReduxConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        inner = 3 * config.txt_in_features
        self.config = config
        self.up = Linear(config.redux_dim, inner, rngs=rngs, dtype=dtype)
        self.down = Linear(inner, config.txt_in_features, rngs=rngs, dtype=dtype)

    def __call__(self, states: jax.Array) -> jax.Array:
        """(B, N, D) -> (B, N, Dt)."""
        return self.down(jax.nn.silu(self.up(states)))
