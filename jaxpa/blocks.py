"""The two kinds of blocks of the MM-DiT.

    x += gate * f(norm(x) * (1 + scale) + shift)

f is attention over text and image, or an MLP. (shift, scale, gate) are linear functions of one vector of time, guidance
and pooled text (adaLN), computed outside. Double blocks keep text and image in two streams with weights of their own;
single blocks hold both in one sequence. Names follow the reference implementation.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxpa.arrays import Array, Float, Int
from jaxpa.config import TransformerConfig
from jaxpa.kernels import attention
from jaxpa.layers import Linear, RMSNorm, contract, contract_heads, layer_norm
from jaxpa.partition import summed, together
from jaxpa.rope import Rotary, rotate
from jaxpa.tokens import gather


class Shared(NamedTuple):
    """What all blocks of one kind share in a forward, and one block's slice of the routing's weight.

    rotary: of all M + N + K tokens; source and weight: see `Routing`, of the image's tokens in double blocks (S = N)
    and of all in single ones (S = M + N); context: into B * (M + N); length: valid keys.
    """

    rotary: Rotary
    source: Int[Array, "B S"] | None = None
    context: Int[Array, "B K"] | None = None
    length: Int[Array, " B"] | None = None
    weight: Float[Array, "#B #S #3"] | None = None


class Attended(NamedTuple):
    """The attention's output, and what it compared: see `BlockTrace`. S = M + N tokens, T = S + K keys."""

    out: Float[Array, "B H S Dh"]
    query: Float[Array, "B H S Dh"]
    q: Float[Array, "B H S Dh"]
    k: Float[Array, "B H T Dh"]
    v: Float[Array, "B H T Dh"]


Streams = tuple[Float[Array, "B N D"], Float[Array, "B M D"]]  # img, txt


class Heads(nnx.Module):
    """The projections to queries, keys and values; queries and keys are normed head by head."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs, dtype: DTypeLike):
        d, dh = config.width, config.attention_head_dim
        self.heads = config.num_attention_heads
        self.q, self.k, self.v = (Linear(d, d, rngs=rngs, dtype=dtype) for _ in range(3))
        self.query_norm, self.key_norm = RMSNorm(dh, dtype=dtype), RMSNorm(dh, dtype=dtype)

    def __call__(
        self, q: Float[Array, "B S D"], k: Float[Array, "B S D"], v: Float[Array, "B S D"]
    ) -> tuple[Float[Array, "B H S Dh"], Float[Array, "B H S Dh"], Float[Array, "B H S Dh"]]:
        """The features that feed queries, keys and values -> the three by heads."""
        q, k, v = (f.to_heads(x, self.heads) for f, x in ((self.q, q), (self.k, k), (self.v, v)))
        # Rounded here, in memory: XLA would keep them in float32 for the rotation.
        return *jax.lax.optimization_barrier((self.query_norm(q), self.key_norm(k))), v


class Stream(nnx.Module):
    """One stream of a double block: its modulation, projections and MLP."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs, dtype: DTypeLike):
        d = config.width
        self.mod = Linear(d, 6 * d, rngs=rngs, dtype=dtype)
        self.qkv = Heads(config, rngs=rngs, dtype=dtype)
        self.proj = Linear(d, d, rngs=rngs, dtype=dtype)
        self.mlp_in = Linear(d, config.mlp_width, rngs=rngs, dtype=dtype)
        self.mlp_out = Linear(config.mlp_width, d, rngs=rngs, dtype=dtype)

    def mlp(
        self, x: Float[Array, "B S D"], shift: Float[Array, "B 1 D"], scale: Float[Array, "B 1 D"]
    ) -> Float[Array, "B S D"]:
        hidden = gelu(self.mlp_in(modulate(x, shift, scale)))  # (B, S, 4 D)
        return self.mlp_out(hidden)


class DoubleBlock(nnx.Module):
    """Two streams with weights of their own, one attention over both (text first)."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs, dtype: DTypeLike):
        self.img = Stream(config, rngs=rngs, dtype=dtype)
        self.txt = Stream(config, rngs=rngs, dtype=dtype)

    def __call__(
        self, streams: Streams, mod: tuple[Float[Array, "B 6*D"], Float[Array, "B 6*D"]], shared: Shared
    ) -> tuple[Streams, Attended]:
        """The streams and their modulations -> the streams, and what the attention saw."""
        img, txt = streams
        m = txt.shape[1]
        img_mod, txt_mod = (chunks(each, 6) for each in mod)  # (B, 1, D) each
        img_y, txt_y = modulate(img, *img_mod[:2]), modulate(txt, *txt_mod[:2])  # (B, N, D), (B, M, D)
        qkv = zip(self.txt.qkv(txt_y, txt_y, txt_y), self.img.qkv(*routed(img_y, shared)), strict=True)
        q, k, v = (jnp.concatenate(pair, 2) for pair in qkv)  # (B, H, M + N, Dh) each
        seen = attend(q, k, v, shared)
        img_y, txt_y = self.img.proj.from_heads(seen.out[:, :, m:]), self.txt.proj.from_heads(seen.out[:, :, :m])
        img_y, txt_y = together(img_y, txt_y)
        img, txt = img + img_mod[2] * img_y, txt + txt_mod[2] * txt_y  # (B, N, D), (B, M, D)
        img_y, txt_y = together(self.img.mlp(img, *img_mod[3:5]), self.txt.mlp(txt, *txt_mod[3:5]))
        return (img + img_mod[5] * img_y, txt + txt_mod[5] * txt_y), seen


class SingleBlock(nnx.Module):
    """Both streams as one sequence; attention and MLP run side by side from the same features."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs, dtype: DTypeLike):
        d = config.width
        self.mod = Linear(d, 3 * d, rngs=rngs, dtype=dtype)
        self.qkv = Heads(config, rngs=rngs, dtype=dtype)
        self.proj = Linear(d, d, use_bias=False, rngs=rngs, dtype=dtype)
        self.mlp_in = Linear(d, config.mlp_width, rngs=rngs, dtype=dtype)
        self.mlp_out = Linear(config.mlp_width, d, rngs=rngs, dtype=dtype)  # its bias serves both

    def __call__(
        self, x: Float[Array, "B S D"], mod: Float[Array, "B 3*D"], shared: Shared
    ) -> tuple[Float[Array, "B S D"], Attended]:
        """[text; image] and its modulation -> the sequence, and what the attention saw."""
        shift, scale, gate = chunks(mod, 3)  # (B, 1, D) each
        y = modulate(x, shift, scale)  # (B, M + N, D)
        seen = attend(*self.qkv(*routed(y, shared)), shared)  # of (B, H, M + N, Dh) each
        hidden = gelu(self.mlp_in(y))  # (B, M + N, 4 D)
        return x + gate * self.output(seen.out, hidden), seen  # (B, M + N, D)

    def output(self, attended: Float[Array, "B H S Dh"], hidden: Float[Array, "B S mlp"]) -> Float[Array, "B S H*Dh"]:
        """The sum of the attention's output and the MLP's hidden channels, both projected."""
        assert self.mlp_out.bias is not None
        kernels, bias = (self.proj.kernel.get_value(), self.mlp_out.kernel.get_value()), self.mlp_out.bias[...]

        def sums(kernels: tuple[Any, Any], bias: jax.Array, attended: jax.Array, hidden: jax.Array) -> jax.Array:
            return contract_heads(attended, kernels[0]) + (contract("...i,io->...o", hidden, kernels[1]) + bias)

        return summed(sums, kernels, bias, attended, hidden, axes=(1, 2))


def modulate(
    x: Float[Array, "B S D"], shift: Float[Array, "B 1 D"], scale: Float[Array, "B 1 D"]
) -> Float[Array, "B S D"]:
    """adaLN: norm(x) * (1 + scale) + shift."""
    # Without the barrier, a TPU's compiler computes the norm again for every tile of the product that follows.
    return jax.lax.optimization_barrier(layer_norm(x) * (1 + scale) + shift)


def gelu(x: Float[Array, "*x"]) -> Float[Array, "*x"]:
    """The activation between the two layers of an MLP."""
    # Without the barrier, a TPU's compiler saves the memory of several images' hidden channels, and computes the first
    # layer again for every tile of the second: 24 instead of 6 M cycles on a v6e, in a single block of four images.
    return jax.lax.optimization_barrier(jax.nn.gelu(x, approximate=True))


def chunks(mod: Float[Array, "B parts"], count: int) -> list[Float[Array, "B 1 parts//{count}"]]:
    """A modulation in so many parts."""
    return jnp.split(mod[:, None], count, -1)


def routed(
    x: Float[Array, "B S D"], shared: Shared
) -> tuple[Float[Array, "B S D"], Float[Array, "B S D"], Float[Array, "B S D"]]:
    """The features that feed queries, keys and values: x, replaced as the routing says."""
    if shared.source is None:
        return x, x, x
    there = gather(x, shared.source)  # (B, S, D)
    if shared.weight is None:
        return there, there, there
    weights = jnp.broadcast_to(shared.weight, (*shared.weight.shape[:2], 3)).astype(x.dtype)
    q, k, v = (weights[..., i, None] for i in range(3))  # (B | 1, S | 1, 1) each
    return tuple((1 - w) * x + w * there for w in (q, k, v))  # type: ignore[return-value]


def attend(
    q: Float[Array, "B H S Dh"], k: Float[Array, "B H S Dh"], v: Float[Array, "B H S Dh"], shared: Shared
) -> Attended:
    """Joint attention over [text; image] and the context."""
    query = q
    if shared.context is not None:
        k, v = (jnp.concatenate([x, _gather_heads(x, shared.context)], 2) for x in (k, v))  # (B, H, M + N + K, Dh)
    own = q.shape[2]
    q = rotate(q, Rotary(shared.rotary.cos[:, :own], shared.rotary.sin[:, :own]))
    k = rotate(k, shared.rotary)
    return Attended(attention(q, k, v, length=shared.length), query, q, k, v)


def _gather_heads(x: Float[Array, "B H S Dh"], index: Int[Array, "B K"]) -> Float[Array, "B H K Dh"]:
    """Pick tokens across rows by their index into B * S."""
    b, h, s, dh = x.shape
    return x.swapaxes(0, 1).reshape(h, b * s, dh)[:, index].swapaxes(0, 1)
