"""The FLUX MM-DiT: text and image tokens attend to each other, first in two streams, then in one.

    velocity = Flux(config, rngs=...)(img, txt, vec, t, guidance, positions)

Every block: x += gate * f(norm(x) * (1 + scale) + shift), where (shift, scale, gate) are linear in one vector made
of time, guidance and the pooled text (adaLN). Names follow the reference implementation.

Interventions are data, not swapped code: a `tokens.Routing` says whose image features feed each query, key and value
and which other tokens are attended to; an observer is a function that sees every block.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxpa.config import TransformerConfig
from jaxpa.layers import MASKED, MLPEmbedder, RMSNorm, attention, layer_norm, stack, timestep_embedding
from jaxpa.rope import Rotary, rotate, table
from jaxpa.tokens import Routing, gather

TIME_WIDTH = 256


class BlockTrace(NamedTuple):
    """What a block shows to an observer: its output streams, and the queries and keys that it compared.

    txt (B, M, D), img (B, N, D); q (B, M + N, H, Dh), k (B, M + N + K, H, Dh), after norm and rotation;
    bias (B, 1, 1, M + N + K) or None: what masks the padding of the context.
    """

    txt: jax.Array
    img: jax.Array
    q: jax.Array
    k: jax.Array
    bias: jax.Array | None


Observer = Callable[[BlockTrace], Any]


class Plan(NamedTuple):
    """What all blocks of one forward share: rotary tables and the routing of image features."""

    rotary: Rotary  # (B | 1, M + N + K, Dh / 2)
    routing: Routing | None
    bias: jax.Array | None


class Stream(nnx.Module):
    """One stream of a double block: its modulation, projections and MLP."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs, dtype: DTypeLike):
        d, dh = config.width, config.attention_head_dim
        self.heads = config.num_attention_heads
        self.mod = nnx.Linear(d, 6 * d, rngs=rngs, param_dtype=dtype)
        self.qkv = nnx.Linear(d, 3 * d, rngs=rngs, param_dtype=dtype)
        self.query_norm = RMSNorm(dh, dtype=dtype)
        self.key_norm = RMSNorm(dh, dtype=dtype)
        self.proj = nnx.Linear(d, d, rngs=rngs, param_dtype=dtype)
        self.mlp_in = nnx.Linear(d, config.mlp_width, rngs=rngs, param_dtype=dtype)
        self.mlp_out = nnx.Linear(config.mlp_width, d, rngs=rngs, param_dtype=dtype)

    def project(self, x: jax.Array, shift: jax.Array, scale: jax.Array) -> tuple[jax.Array, ...]:
        """q, k, v (B, S, H, Dh) of the normed, modulated stream."""
        return split_heads(self.qkv(modulate(x, shift, scale)), self.heads, self.query_norm, self.key_norm)

    def update(self, x: jax.Array, attended: jax.Array, gates: list[jax.Array]) -> jax.Array:
        """Add the attention's and the MLP's part to the stream; gates are (gate, shift, scale, gate)."""
        gate_attention, shift, scale, gate_mlp = gates
        x = x + gate_attention * self.proj(attended)  # (B, S, D)
        hidden = jax.nn.gelu(self.mlp_in(modulate(x, shift, scale)), approximate=True)  # (B, S, 4 D)
        return x + gate_mlp * self.mlp_out(hidden)  # (B, S, D)


class DoubleBlock(nnx.Module):
    """Two streams with weights of their own, one attention over both (text first)."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs, dtype: DTypeLike):
        self.img = Stream(config, rngs=rngs, dtype=dtype)
        self.txt = Stream(config, rngs=rngs, dtype=dtype)

    def __call__(self, img: jax.Array, txt: jax.Array, vec: jax.Array, plan: Plan) -> BlockTrace:
        img_shift, img_scale, *img_gates = chunks(self.img.mod(vec), 6)  # (B, 1, D) each
        txt_shift, txt_scale, *txt_gates = chunks(self.txt.mod(vec), 6)
        txt_qkv = self.txt.project(txt, txt_shift, txt_scale)  # (B, M, H, Dh) each
        img_qkv = self.img.project(img, img_shift, img_scale)  # (B, N, H, Dh) each
        attended, q, k = attend(txt_qkv, img_qkv, plan)  # (B, M + N, D)
        m = txt.shape[1]
        img = self.img.update(img, attended[:, m:], img_gates)  # (B, N, D)
        txt = self.txt.update(txt, attended[:, :m], txt_gates)  # (B, M, D)
        return BlockTrace(txt, img, q, k, plan.bias)


class SingleBlock(nnx.Module):
    """Both streams as one sequence; attention and MLP run side by side from the same features."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs, dtype: DTypeLike):
        d, dh = config.width, config.attention_head_dim
        self.heads = config.num_attention_heads
        self.mod = nnx.Linear(d, 3 * d, rngs=rngs, param_dtype=dtype)
        self.linear1 = nnx.Linear(d, 3 * d + config.mlp_width, rngs=rngs, param_dtype=dtype)
        self.query_norm = RMSNorm(dh, dtype=dtype)
        self.key_norm = RMSNorm(dh, dtype=dtype)
        self.linear2 = nnx.Linear(d + config.mlp_width, d, rngs=rngs, param_dtype=dtype)

    def __call__(self, img: jax.Array, txt: jax.Array, vec: jax.Array, plan: Plan) -> BlockTrace:
        m, d = txt.shape[1], txt.shape[2]
        x = jnp.concatenate([txt, img], 1)  # (B, M + N, D)
        shift, scale, gate = chunks(self.mod(vec), 3)  # (B, 1, D) each
        qkv, mlp = jnp.split(self.linear1(modulate(x, shift, scale)), [3 * d], -1)
        qkv = split_heads(qkv, self.heads, self.query_norm, self.key_norm)  # (B, M + N, H, Dh) each
        attended, q, k = attend(tuple(s[:, :m] for s in qkv), tuple(s[:, m:] for s in qkv), plan)
        hidden = jnp.concatenate([attended, jax.nn.gelu(mlp, approximate=True)], -1)  # (B, M + N, 5 D)
        x = x + gate * self.linear2(hidden)  # (B, M + N, D)
        return BlockTrace(x[:, :m], x[:, m:], q, k, plan.bias)


class Flux(nnx.Module):
    """The whole network: tokens in, velocity out."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        d = config.width
        self.config = config
        self.img_in = nnx.Linear(config.in_channels, d, rngs=rngs, param_dtype=dtype)
        self.txt_in = nnx.Linear(config.joint_attention_dim, d, rngs=rngs, param_dtype=dtype)
        self.time_in = MLPEmbedder(TIME_WIDTH, d, rngs=rngs, dtype=dtype)
        self.vector_in = MLPEmbedder(config.pooled_projection_dim, d, rngs=rngs, dtype=dtype)
        if config.guidance_embeds:
            self.guidance_in = MLPEmbedder(TIME_WIDTH, d, rngs=rngs, dtype=dtype)
        self.double_blocks = stack(config.num_layers, lambda r: DoubleBlock(config, rngs=r, dtype=dtype), rngs)
        self.single_blocks = stack(config.num_single_layers, lambda r: SingleBlock(config, rngs=r, dtype=dtype), rngs)
        self.final_mod = nnx.Linear(d, 2 * d, rngs=rngs, param_dtype=dtype)
        self.final_linear = nnx.Linear(d, config.in_channels, rngs=rngs, param_dtype=dtype)

    def condition(self, vec: jax.Array, t: jax.Array, guidance: jax.Array | None) -> jax.Array:
        """One vector of time, guidance and pooled text: vec (B, Dv), t (B,), guidance (B,) -> (B, D)."""
        dtype = self.dtype
        out = self.time_in(timestep_embedding(t, TIME_WIDTH).astype(dtype))
        if self.config.guidance_embeds:
            if guidance is None:
                raise ValueError("this checkpoint embeds its guidance: pass guidance (B,)")
            out = out + self.guidance_in(timestep_embedding(guidance, TIME_WIDTH).astype(dtype))
        return out + self.vector_in(vec.astype(dtype))

    @property
    def dtype(self) -> jnp.dtype:
        return self.img_in.kernel[...].dtype

    def __call__(
        self,
        img: jax.Array,
        txt: jax.Array,
        vec: jax.Array,
        t: jax.Array,
        guidance: jax.Array | None,
        positions: jax.Array,
        routing: Routing | None = None,
        observe: Observer | None = None,
    ) -> Any:
        """Velocity (noise - data) of image tokens, float32.

        img (B, N, C), txt (B, M, Dt), vec (B, Dv), t (B,) flow time in [0, 1], guidance (B,) or None,
        positions (N, 2) or (B, N, 2) -> (B, N, C). With `observe` the result is (velocity, (double, single)),
        where each of the two is what `observe` returned for every block, stacked along a new axis 0.
        """
        dtype = self.dtype
        plan = self._plan(txt.shape[1], positions, routing)
        vec = jax.nn.silu(self.condition(vec, t, guidance))[:, None]  # (B, 1, D)
        streams = (self.img_in(img.astype(dtype)), self.txt_in(txt.astype(dtype)))  # (B, N, D), (B, M, D)

        def run(streams: tuple[jax.Array, jax.Array], block: DoubleBlock | SingleBlock) -> tuple[Any, Any]:
            trace = block(*streams, vec, plan)
            return (trace.img, trace.txt), observe(trace) if observe else None

        streams, double = jax.lax.scan(run, streams, self.double_blocks, unroll=SCAN_UNROLL)
        streams, single = jax.lax.scan(run, streams, self.single_blocks, unroll=SCAN_UNROLL)
        shift, scale = chunks(self.final_mod(vec), 2)  # (B, 1, D) each
        velocity = self.final_linear(modulate(streams[0], shift, scale)).astype(jnp.float32)  # (B, N, C)
        return (velocity, (double, single)) if observe else velocity

    def _plan(self, m: int, positions: jax.Array, routing: Routing | None) -> Plan:
        places = positions if positions.ndim == 3 else positions[None]  # (B | 1, N, 2)
        bias = None
        if routing is not None and routing.context is not None:
            assert routing.positions is not None
            assert routing.valid is not None
            b, k = routing.context.shape
            places = jnp.broadcast_to(places, (b, *places.shape[1:]))
            places = jnp.concatenate([places, routing.positions], 1)  # (B, N + K, 2)
            attended = jnp.pad(routing.valid, ((0, 0), (places.shape[1] - k + m, 0)), constant_values=True)
            bias = jnp.where(attended, 0.0, MASKED)[:, None, None]  # (B, 1, 1, M + N + K)
        places = jnp.pad(places, ((0, 0), (m, 0), (0, 0)))  # text sits at (0, 0)
        return Plan(table(places, self.config.axes_dims_rope), routing, bias)


SCAN_UNROLL = 1  # blocks per iteration of the scan over depth: same parameters, more code where it pays


def modulate(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    """adaLN: norm(x) * (1 + scale) + shift."""
    return layer_norm(x) * (1 + scale) + shift


def chunks(x: jax.Array, count: int) -> list[jax.Array]:
    return jnp.split(x, count, -1)


def split_heads(
    qkv: jax.Array, heads: int, query_norm: RMSNorm, key_norm: RMSNorm
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(B, S, 3 D) = [q; k; v] -> three (B, S, H, Dh), queries and keys normed per head."""
    q, k, v = jnp.moveaxis(qkv.reshape(*qkv.shape[:2], 3, heads, -1), 2, 0)
    return query_norm(q), key_norm(k), v


def attend(
    txt: tuple[jax.Array, ...], img: tuple[jax.Array, ...], plan: Plan
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Joint attention of text and image, with the image's routing: (B, M + N, D), and the q and k compared.

    Projection and norm act token by token, so replacing the features before them and replacing q, k and v after
    them are the same thing; the latter needs no second projection.
    """
    routing, rotary = plan.routing, plan.rotary
    context: tuple[jax.Array, ...] = ()
    if routing is not None:
        if routing.context is not None:
            context = tuple(gather(s, routing.context) for s in img)  # (B, K, H, Dh) each
        img = tuple(gather(s, routing.source) for s in img)
    q, k, v = (jnp.concatenate(pair, 1) for pair in zip(txt, img, strict=True))  # (B, M + N, H, Dh) each
    if context:
        k, v = (jnp.concatenate(pair, 1) for pair in zip((k, v), context[1:], strict=True))
    length = q.shape[1]
    q = rotate(q, Rotary(rotary.cos[:, :length], rotary.sin[:, :length]))
    k = rotate(k, rotary)
    out = attention(q, k, v, bias=plan.bias)  # (B, M + N, H, Dh)
    return out.reshape(*out.shape[:2], -1), q, k


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class FluxVelocity:
    """The network with its conditions bound: a velocity callable that is itself a pytree.

    Pass it through `jax.jit` as an argument: a new prompt, guidance or checkpoint of the same shapes then runs the
    program that is already compiled. txt (B, M, Dt), vec (B, Dv), guidance (B,) or None, positions (N, 2).
    """

    model: Flux
    txt: jax.Array
    vec: jax.Array
    guidance: jax.Array | None
    positions: jax.Array

    def __call__(self, x: jax.Array, t: jax.Array, routing: Routing | None = None) -> jax.Array:
        """x (B, N, C), t (B,) -> velocity (B, N, C)."""
        return self.model(x, self.txt, self.vec, t, self.guidance, self.positions, routing)

    def rows(self, index: slice | jax.Array) -> "FluxVelocity":
        """The same network for some of the rows."""
        guidance = None if self.guidance is None else self.guidance[index]
        return FluxVelocity(self.model, self.txt[index], self.vec[index], guidance, self.positions)
