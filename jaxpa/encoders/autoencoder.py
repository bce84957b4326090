"""The KL autoencoder: it turns pictures into latents with an eighth of their side (in FLUX), and back.

The network is that of latent diffusion (Rombach et al., arXiv:2112.10752) with FLUX's 16 channels and without
convolutions around the latents. Submodules carry diffusers' names (`AutoencoderKL`), so a parameter's path reads like
a key of `vae/*.safetensors`. Besides the alphabet of config.py: H and W are pixels, h and w latent cells, and C is the
number of channels at that point.
"""

from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxpa.config import AutoencoderConfig
from jaxpa.kernels import attention
from jaxpa.layers import Linear, Numbered, precision

Module = TypeVar("Module", bound=nnx.Module)


class GroupNorm(nnx.Module):
    """Group norm of (B, h, w, C) with a learned scale and bias; f32 inside."""

    def __init__(self, channels: int, groups: int, *, eps: float = 1e-6, dtype: DTypeLike = jnp.float32):
        if channels % groups:
            raise ValueError(f"norm_num_groups {groups} does not divide {channels} channels")
        self.scale = nnx.Param(jnp.ones((channels,), dtype))
        self.bias = nnx.Param(jnp.zeros((channels,), dtype))
        self.groups = groups
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        # Pixels are summed before channels: every pass over x then runs along its contiguous axis.
        x32 = x.astype(jnp.float32)
        centred = x32 - self._over_groups(x32.mean((1, 2)))  # (B, h, w, C)
        variance = self._over_groups(jnp.mean(centred**2, (1, 2)))  # (B, 1, 1, C)
        gain = jax.lax.rsqrt(variance + self.eps) * self.scale.astype(jnp.float32)  # (B, 1, 1, C)
        return (centred * gain + self.bias.astype(jnp.float32)).astype(x.dtype)

    def _over_groups(self, x: jax.Array) -> jax.Array:
        """The mean of each group, for each of its channels: (B, C) -> (B, 1, 1, C)."""
        means = x.reshape(x.shape[0], self.groups, -1).mean(-1)  # (B, groups)
        return jnp.repeat(means, x.shape[1] // self.groups, axis=1)[:, None, None]


def _conv(in_channels: int, channels: int, rngs: nnx.Rngs, dtype: DTypeLike, size: int = 3) -> nnx.Conv:
    return nnx.Conv(
        in_channels, channels, (size, size), padding=size // 2, precision=precision(dtype), rngs=rngs, param_dtype=dtype
    )


class Resnet(nnx.Module):
    """Norm, SiLU and convolution, twice, with a shortcut around them: (B, h, w, in) -> (B, h, w, out)."""

    def __init__(self, in_channels: int, channels: int, groups: int, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        self.norm1 = GroupNorm(in_channels, groups, dtype=dtype)
        self.conv1 = _conv(in_channels, channels, rngs, dtype)
        self.norm2 = GroupNorm(channels, groups, dtype=dtype)
        self.conv2 = _conv(channels, channels, rngs, dtype)
        self.conv_shortcut = None if in_channels == channels else _conv(in_channels, channels, rngs, dtype, size=1)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.conv1(jax.nn.silu(self.norm1(x)))  # (B, h, w, out)
        y = self.conv2(jax.nn.silu(self.norm2(y)))  # (B, h, w, out)
        return y + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Attention(nnx.Module):
    """Self-attention over all h * w cells with a single head as wide as the channels."""

    def __init__(self, channels: int, groups: int, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        def linear() -> Linear:
            return Linear(channels, channels, rngs=rngs, dtype=dtype)

        self.group_norm = GroupNorm(channels, groups, dtype=dtype)
        self.to_q, self.to_k, self.to_v = linear(), linear(), linear()
        self.to_out = Numbered([linear()])

    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        y = self.group_norm(x).reshape(batch, height * width, channels)  # (B, h w, C)
        y = attention(*(f.to_heads(y, 1) for f in (self.to_q, self.to_k, self.to_v)))  # (B, 1, h w, C)
        return x + self.to_out[0].from_heads(y).reshape(x.shape)  # (B, h, w, C)


class Downsample(nnx.Module):
    """A strided convolution, padded below and on the right only: (B, h, w, C) -> (B, h / 2, w / 2, C)."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        padding = ((0, 1), (0, 1))
        self.conv = nnx.Conv(
            channels,
            channels,
            (3, 3),
            strides=2,
            padding=padding,
            precision=precision(dtype),
            rngs=rngs,
            param_dtype=dtype,
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv(x)


class Upsample(nnx.Module):
    """Repeats every cell 2 x 2, then convolves: (B, h, w, C) -> (B, 2 h, 2 w, C)."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        self.conv = _conv(channels, channels, rngs, dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        x = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
        return self.conv(x.reshape(batch, 2 * height, 2 * width, channels))


class MidBlock(nnx.Module):
    """Two resnets at the lowest resolution, with attention (if configured) between them."""

    def __init__(self, channels: int, config: AutoencoderConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        groups = config.norm_num_groups
        attentions = 1 if config.mid_block_add_attention else 0
        self.resnets = Numbered(Resnet(channels, channels, groups, rngs=rngs, dtype=dtype) for _ in range(2))
        self.attentions = Numbered(Attention(channels, groups, rngs=rngs, dtype=dtype) for _ in range(attentions))

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.resnets[0](x)  # (B, h, w, C)
        for layer in self.attentions:
            x = layer(x)  # (B, h, w, C)
        return self.resnets[1](x)


def _resnets(
    count: int, in_channels: int, channels: int, groups: int, rngs: nnx.Rngs, dtype: DTypeLike
) -> Numbered[Resnet]:
    widths = [in_channels] + [channels] * (count - 1)
    return Numbered(Resnet(width, channels, groups, rngs=rngs, dtype=dtype) for width in widths)


class DownBlock(nnx.Module):
    """The resnets of one resolution; every block but the last then halves it."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        config: AutoencoderConfig,
        *,
        last: bool,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        self.resnets = _resnets(config.layers_per_block, in_channels, channels, config.norm_num_groups, rngs, dtype)
        self.downsamplers = Numbered([] if last else [Downsample(channels, rngs=rngs, dtype=dtype)])

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in (*self.resnets, *self.downsamplers):
            x = layer(x)  # (B, h, w, C), after the last layer (B, h / 2, w / 2, C)
        return x


class UpBlock(nnx.Module):
    """The resnets of one resolution, one more than on the way down; every block but the last then doubles it."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        config: AutoencoderConfig,
        *,
        last: bool,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        self.resnets = _resnets(config.layers_per_block + 1, in_channels, channels, config.norm_num_groups, rngs, dtype)
        self.upsamplers = Numbered([] if last else [Upsample(channels, rngs=rngs, dtype=dtype)])

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in (*self.resnets, *self.upsamplers):
            x = layer(x)  # (B, h, w, C), after the last layer (B, 2 h, 2 w, C)
        return x


class Encoder(nnx.Module):
    """Pictures (B, H, W, 3) -> moments (B, h, w, 2 C), mean before log variance."""

    def __init__(self, config: AutoencoderConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        widths = config.block_out_channels
        pairs = list(zip((widths[0], *widths[:-1]), widths, strict=True))
        self.conv_in = _conv(config.in_channels, widths[0], rngs, dtype)
        self.down_blocks = Numbered(
            DownBlock(*pair, config, last=i == len(pairs) - 1, rngs=rngs, dtype=dtype) for i, pair in enumerate(pairs)
        )
        self.mid_block = MidBlock(widths[-1], config, rngs=rngs, dtype=dtype)
        self.conv_norm_out = GroupNorm(widths[-1], config.norm_num_groups, dtype=dtype)
        self.conv_out = _conv(widths[-1], 2 * config.latent_channels, rngs, dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.conv_in(x)  # (B, H, W, C)
        for block in self.down_blocks:
            x = block(x)  # (B, H / 2, W / 2, C), and so on down to (B, h, w, C)
        x = self.mid_block(x)  # (B, h, w, C)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(x)))


class Decoder(nnx.Module):
    """Unscaled latents (B, h, w, C) -> pictures (B, H, W, 3), not clipped."""

    def __init__(self, config: AutoencoderConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        widths = config.block_out_channels[::-1]
        pairs = list(zip((widths[0], *widths[:-1]), widths, strict=True))
        self.conv_in = _conv(config.latent_channels, widths[0], rngs, dtype)
        self.mid_block = MidBlock(widths[0], config, rngs=rngs, dtype=dtype)
        self.up_blocks = Numbered(
            UpBlock(*pair, config, last=i == len(pairs) - 1, rngs=rngs, dtype=dtype) for i, pair in enumerate(pairs)
        )
        self.conv_norm_out = GroupNorm(widths[-1], config.norm_num_groups, dtype=dtype)
        self.conv_out = _conv(widths[-1], config.out_channels, rngs, dtype)

    def __call__(self, z: jax.Array) -> jax.Array:
        x = self.mid_block(self.conv_in(z))  # (B, h, w, C)
        for block in self.up_blocks:
            x = block(x)  # (B, 2 h, 2 w, C), and so on up to (B, H, W, C)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(x)))


class Posterior(NamedTuple):
    """The diagonal Gaussian over a picture's unscaled latents; both fields are (B, h, w, C), float32."""

    mean: jax.Array
    logvar: jax.Array

    def mode(self) -> jax.Array:
        """The most likely latents, (B, h, w, C)."""
        return self.mean

    def sample(self, key: jax.Array) -> jax.Array:
        """One draw, (B, h, w, C)."""
        noise = jax.random.normal(key, self.mean.shape, self.mean.dtype)
        return self.mean + jnp.exp(0.5 * self.logvar) * noise


class Autoencoder(nnx.Module):
    """Encoder and decoder. They compute in the weights' dtype and return float32."""

    def __init__(self, config: AutoencoderConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        self.config = config
        self.encoder = Encoder(config, rngs=rngs, dtype=dtype)
        self.decoder = Decoder(config, rngs=rngs, dtype=dtype)

    def encode(self, images: jax.Array) -> Posterior:
        """Images (B, H, W, 3) in [-1, 1] -> posterior over latents (B, H / downscale, W / downscale, C).

        Raises ValueError if a side is not a multiple of `config.downscale`.
        """
        step = self.config.downscale
        if images.shape[1] % step or images.shape[2] % step:
            raise ValueError(f"image {images.shape[1]}x{images.shape[2]}: sides must be multiples of {step}")
        moments = self.encoder(images.astype(self.encoder.conv_in.kernel.dtype))  # (B, h, w, 2 C)
        mean, logvar = jnp.split(moments.astype(jnp.float32), 2, -1)  # (B, h, w, C) each
        return Posterior(mean, jnp.clip(logvar, -30.0, 20.0))  # the reference's bounds

    def decode(self, z: jax.Array) -> jax.Array:
        """Unscaled latents (B, h, w, C) -> images (B, H, W, 3) around [-1, 1], not clipped."""
        return self.decoder(z.astype(self.decoder.conv_in.kernel.dtype)).astype(jnp.float32)

    def encode_latents(self, images: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Images (B, H, W, 3) in [-1, 1] -> the transformer's latents (B, h, w, C), about unit variance.

        These are the posterior's mode or, given a random key, a draw from it. Raises ValueError as `encode` does.
        """
        posterior = self.encode(images)
        z = posterior.mode() if key is None else posterior.sample(key)  # (B, h, w, C)
        return (z - self.config.shift_factor) * self.config.scaling_factor

    def decode_latents(self, latents: jax.Array) -> jax.Array:
        """The transformer's latents (B, h, w, C) -> images (B, H, W, 3) around [-1, 1], not clipped."""
        # Float32 even if the weights are not: in less, the sum would round.
        z = latents.astype(jnp.float32) / self.config.scaling_factor + self.config.shift_factor  # (B, h, w, C)
        return self.decode(z)
