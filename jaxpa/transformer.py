"""The FLUX MM-DiT: text and image tokens attend to each other, first in two streams, then in one.

    velocity = Flux(config, rngs=...)(img, txt, vec, t, guidance, positions)

Interventions are data and arguments, not swapped code: a `tokens.Routing` says whose image features feed each query,
key and value and which other tokens are attended to; an observer is a function that sees every block; an extension is
a function with parameters of its own that adds to the image stream of every block.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from jaxpa import checks
from jaxpa.arrays import Array, Float, Index, Int
from jaxpa.blocks import DoubleBlock, Shared, SingleBlock, chunks, modulate
from jaxpa.config import TIME_WIDTH, TransformerConfig
from jaxpa.layers import Linear, MLPEmbedder, Numbered, stack, timestep_embedding
from jaxpa.partition import by_groups, over_data, row_groups
from jaxpa.rope import table
from jaxpa.tokens import Routing


class BlockTrace(NamedTuple):
    """What a block shows to observers and extensions: its output streams, and what its attention compared.

    block: its number, double blocks first; query: normed, not yet rotated; q and k: after norm and rotation, of
    S = M + N tokens and T = S + K keys; length: rows attend to their first `length` keys, or None: to all.
    """

    block: Int[Array, ""]
    txt: Float[Array, "B M D"]
    img: Float[Array, "B N D"]
    query: Float[Array, "B H S Dh"]
    q: Float[Array, "B H S Dh"]
    k: Float[Array, "B H T Dh"]
    v: Float[Array, "B H T Dh"]
    length: Int[Array, " B"] | None


Observer = Callable[[BlockTrace], Any]


@runtime_checkable
class Extension(Protocol):
    """A pytree that adds to the image stream of every block: an image-prompt adapter, for instance.

    double, single: its parameters, each with a leading axis of blocks. A call gets one block's slice of them and the
    block's trace, and returns what is added to img.
    """

    double: Any
    single: Any

    def __call__(self, parameters: Any, trace: BlockTrace) -> Float[Array, "B N D"]: ...


class Modulation(NamedTuple):
    """What a forward computes from time, guidance and pooled text alone: every block's shift, scale and gate."""

    img: Float[Array, "double B 6*D"]
    txt: Float[Array, "double B 6*D"]
    single: Float[Array, "single B 3*D"]
    final: Float[Array, "B 2*D"]


class Flux(nnx.Module):
    """The whole network: tokens in, velocity out."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        d = config.width
        self.config = config
        self.img_in = Linear(config.in_channels, d, rngs=rngs, dtype=dtype)
        self.txt_in = Linear(config.joint_attention_dim, d, rngs=rngs, dtype=dtype)
        self.time_in = MLPEmbedder(TIME_WIDTH, d, rngs=rngs, dtype=dtype)
        self.vector_in = MLPEmbedder(config.pooled_projection_dim, d, rngs=rngs, dtype=dtype)
        if config.guidance_embeds:
            self.guidance_in = MLPEmbedder(TIME_WIDTH, d, rngs=rngs, dtype=dtype)
        self.double_blocks = stack(config.num_layers, lambda r: DoubleBlock(config, rngs=r, dtype=dtype), rngs)
        self.single_blocks = stack(config.num_single_layers, lambda r: SingleBlock(config, rngs=r, dtype=dtype), rngs)
        self.final_mod = Linear(d, 2 * d, rngs=rngs, dtype=dtype)
        self.final_linear = Linear(d, config.velocity_channels, rngs=rngs, dtype=dtype)

    @property
    def dtype(self) -> jnp.dtype:
        assert self.img_in.bias is not None
        return self.img_in.bias.get_value().dtype

    def condition(
        self, vec: Float[Array, "B Dv"], t: Float[Array, " B"], guidance: Float[Array, " B"] | None
    ) -> Float[Array, "B D"]:
        """One vector for time, guidance and pooled text."""
        dtype = self.dtype
        out = self.time_in(timestep_embedding(t, TIME_WIDTH).astype(dtype))
        if self.config.guidance_embeds:
            if guidance is None:
                raise ValueError("this checkpoint embeds its guidance: pass guidance (B,)")
            out = out + self.guidance_in(timestep_embedding(guidance, TIME_WIDTH).astype(dtype))
        return out + self.vector_in(vec.astype(dtype))

    def modulation(
        self, vec: Float[Array, "B Dv"], t: Float[Array, " B"], guidance: Float[Array, " B"] | None
    ) -> Modulation:
        """All that a forward at flow time t needs of time, guidance and pooled text.

        It takes a quarter of all weights. A sampler that knows its flow times computes it for all steps at once, before
        its loop.
        """
        c = jax.nn.silu(self.condition(vec, t, guidance))  # (B, D)
        img, txt = _map_blocks(lambda block, c: (block.img.mod(c), block.txt.mod(c)), self.double_blocks, c)
        single = _map_blocks(lambda block, c: block.mod(c), self.single_blocks, c)
        return Modulation(*(over_data(mod, rows=None) for mod in (img, txt, single, self.final_mod(c))))

    def __call__(
        self,
        img: Float[Array, "B N C"],
        txt: Float[Array, "B M Dt"],
        vec: Float[Array, "B Dv"],
        t: Float[Array, " B"],
        guidance: Float[Array, " B"] | None,
        positions: Float[Array, "N 3"] | Float[Array, "B N 3"],
        routing: Routing | None = None,
        *,
        observe: Observer | None = None,
        extension: Extension | None = None,
        modulation: Modulation | None = None,
        remat: bool = False,
    ) -> Any:
        """Velocity (noise - data) of image tokens at flow times t in [0, 1]: (B, N, C') float32.

        With `observe` the result is (velocity, (double, single)), where each of the two is what `observe` returned for
        every block, stacked along a new axis 0. modulation: what the method of that name returned, if it is known
        already. remat: compute blocks anew in a backward pass.
        """
        mod = self.modulation(vec, t, guidance) if modulation is None else modulation
        m = txt.shape[1]
        shared = self._shared(m, positions, routing or Routing())
        img, txt = over_data(img.astype(self.dtype)), over_data(txt.astype(self.dtype))
        streams = (self.img_in(img), self.txt_in(txt))  # (B, N, D), (B, M, D)
        hooks = Hooks(m, observe, extension, remat)
        streams, double = _scan_blocks(self.double_blocks, streams, (mod.img, mod.txt), shared[0], hooks)
        x = jnp.concatenate(streams[::-1], 1)  # (B, M + N, D), text first
        x, single = _scan_blocks(self.single_blocks, x, mod.single, shared[1], hooks, first=self.config.num_layers)
        shift, scale = chunks(mod.final, 2)  # (B, 1, D) each
        velocity = self.final_linear(modulate(x[:, m:], shift, scale)).astype(jnp.float32)  # (B, N, C')
        return (velocity, (double, single)) if observe else velocity

    def _shared(self, m: int, positions: Array, routing: Routing) -> tuple[Shared, Shared]:
        """What the double blocks share, and what the single ones do; weights still have their axis of blocks."""
        places = positions if positions.ndim == 3 else positions[None]  # (B | 1, N, 3)
        n, source, context = places.shape[1], routing.source, routing.context
        if context is not None:
            assert routing.positions is not None
            places = jnp.broadcast_to(places, (len(context), *places.shape[1:]))
            places = jnp.concatenate([places, routing.positions], 1)  # (B, N + K, 3)
            context = joint(context, m, n)
        places = jnp.pad(places, ((0, 0), (m, 0), (0, 0)))  # text sits at (0, 0, 0)
        length = None if routing.length is None else m + routing.length
        double = single = Shared(table(places, self.config.axes_dims_rope), source, context, length)
        if source is not None:
            text = jnp.arange(len(source))[:, None] * (m + n) + jnp.arange(m)  # text is its own source
            single = single._replace(source=jnp.concatenate([text, joint(source, m, n)], 1))
        if routing.weight is not None:
            blocks = self.config.num_layers + self.config.num_single_layers
            weight = jnp.broadcast_to(routing.weight, (blocks, *routing.weight.shape[1:]))
            first, rest = jnp.split(weight, [self.config.num_layers])
            if rest.shape[2] > 1:
                rest = jnp.pad(rest, ((0, 0), (0, 0), (m, 0), (0, 0)))
            double, single = double._replace(weight=first), single._replace(weight=rest)
        return double, single


class Hooks(NamedTuple):
    """What else a forward does at every block; `text` is M."""

    text: int
    observe: Observer | None = None
    extension: Extension | None = None
    remat: bool = False


def _scan_blocks(blocks: Any, carry: Any, mod: Any, shared: Shared, hooks: Hooks, first: int = 0) -> tuple[Any, Any]:
    """Run blocks one after the other -> the carry, and what the observer returned for each, stacked.

    Stacked blocks are scanned; separate ones (`Numbered`) are written out one by one.

    carry: the streams of double blocks, the sequence of single ones; mod, shared.weight: with a leading axis of blocks;
    first: the number of the first block.
    """
    extension, m, parameters = hooks.extension, hooks.text, None
    if extension is not None:
        parameters = extension.double if isinstance(carry, tuple) else extension.single

    def body(carry: Any, of_block: Any) -> tuple[Any, Any]:
        index, block, mod, weight, parameters = of_block
        carry, seen = block(carry, mod, shared._replace(weight=weight))
        img, txt = carry if isinstance(carry, tuple) else (carry[:, m:], carry[:, :m])
        trace = BlockTrace(index, txt, img, seen.query, seen.q, seen.k, seen.v, shared.length)
        if extension is not None:
            img = img + extension(parameters, trace).astype(img.dtype)
            carry = (img, txt) if isinstance(carry, tuple) else jnp.concatenate([txt, img], 1)
            trace = trace._replace(img=img)
        return carry, None if hooks.observe is None else hooks.observe(trace)

    body = jax.checkpoint(body) if hooks.remat else body
    of_all = (mod, shared.weight, parameters)
    if not isinstance(blocks, Numbered):
        index = first + jnp.arange(len(jax.tree.leaves(blocks)[0]))
        return jax.lax.scan(body, carry, (index, blocks, *of_all))
    body, seen = jax.jit(body), []  # traced once for all blocks
    for i, block in enumerate(blocks):
        carry, one = body(carry, (jnp.int32(first + i), block, *jax.tree.map(lambda x, i=i: x[i], of_all)))
        seen.append(one)
    return carry, jax.tree.map(lambda *each: jnp.stack(each), *seen)


def _map_blocks(function: Callable[[Any, Array], Any], blocks: Any, x: Array) -> Any:
    """function(block, x) for each block, stacked; one block after the other, so that little is held at once."""
    if not isinstance(blocks, Numbered):
        return jax.lax.map(lambda block: function(block, x), blocks)
    out = []
    for block in blocks:
        # One by one, or XLA would make one product of copies of all their kernels.
        x, one = jax.lax.optimization_barrier((x, function(block, x)))
        out.append(one)
    return jax.tree.map(lambda *each: jnp.stack(each), *out)


def joint(index: Int[Array, "*index"], m: int, n: int) -> Int[Array, "*index"]:
    """An index into B * N image tokens -> the same tokens' index into B * (M + N) tokens of [text; image]."""
    return index // n * (m + n) + m + index % n


class Opening(NamedTuple):
    """Another text for every row, while its flow time is above the row's own `time` (at 1: never)."""

    time: Float[Array, " B"]
    txt: Float[Array, "B M Dt"]
    vec: Float[Array, "B Dv"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class FluxConditions:
    """What FLUX reads besides tokens and time, without the network: a pytree.

    channels: further channels of the image tokens (the masked picture of Fill, the control picture of Canny and
    Depth), or None. opening: what is read in place of txt and vec at first, or None.
    """

    txt: Float[Array, "B M Dt"]
    vec: Float[Array, "B Dv"]
    guidance: Float[Array, " B"] | None
    positions: Float[Array, "N 3"] | Float[Array, "B N 3"]
    channels: Float[Array, "B N extra"] | None = None
    opening: Opening | None = None

    def bind(self, model: Flux) -> "FluxVelocity":
        """The network under these conditions."""
        return FluxVelocity(model, self)

    def at_time(self, t: Float[Array, " B"]) -> "FluxConditions":
        """What is read at flow times t, which has no opening."""
        if self.opening is None:
            return self
        time, txt, vec = self.opening
        above = jnp.asarray(t > time)
        txt, vec = jnp.where(above[:, None, None], txt, self.txt), jnp.where(above[:, None], vec, self.vec)
        return replace(self, txt=txt, vec=vec, opening=None)

    def rows(self, index: slice | Int[Array, " rows"]) -> "FluxConditions":
        """The conditions of some of the rows."""
        return self.each_row(lambda x: x[index])

    def each_row(self, change: Callable[..., Any], *others: "FluxConditions") -> "FluxConditions":
        """What `change` makes of every array that has rows, of these conditions and of others."""
        made = {}
        for name in ("txt", "vec", "guidance", "channels", "positions"):
            arrays = [getattr(each, name) for each in (self, *others)]
            shared = arrays[0] is None or (name == "positions" and arrays[0].ndim == 2)
            made[name] = arrays[0] if shared else change(*arrays)
        opening = jax.tree.map(change, *(each.opening for each in (self, *others)))  # None has no arrays
        return FluxConditions(**made, opening=opening)

    @staticmethod
    def concatenate(parts: Sequence["FluxConditions"]) -> "FluxConditions":
        """The rows of several conditions, in order; positions without rows are the first's."""
        return parts[0].each_row(
            lambda *x: np.concatenate(x) if isinstance(x[0], np.ndarray) else jnp.concatenate(x), *parts[1:]
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class FluxVelocity:
    """The network with its conditions bound: a velocity callable that is itself a pytree.

    Pass it through `jax.jit` as an argument: a new prompt, guidance or checkpoint of the same shapes then runs the
    program that is already compiled. modulation: of one step or, with a leading axis, of all steps (`prepare`).
    """

    model: Flux
    conditions: FluxConditions
    modulation: Modulation | None = None

    def __call__(
        self,
        x: Float[Array, "B N C"],
        t: Float[Array, " B"],
        routing: Routing | None = None,
        observe: Observer | None = None,
    ) -> Any:
        """The velocity (B, N, C); with `observe`, as `Flux` returns it.

        Raises ValueError if x is not of floating point or lacks channels, or if a t is outside [0, 1].
        """
        checks.array("x", x, ("B", "N", "C"))
        checks.array("t", t, (x.shape[0],))
        checks.within("t", t, 0, 1, ", from noise at 1 to data at 0")
        c, y = self.conditions.at_time(t), self._read(x)
        if y.shape[-1] != (wanted := self.model.config.in_channels):
            raise ValueError(
                f"the network reads tokens of {wanted} channels, not {y.shape[-1]}: "
                "the conditions' `channels` hold those beside the sampled ones"
            )
        ask = partial(
            self.model,
            y,
            c.txt,
            c.vec,
            t,
            c.guidance,
            c.positions,
            routing,
            observe=observe,
            modulation=self.modulation,
        )
        alone = observe is None and (routing is None or routing.within_rows)
        groups = row_groups(x.shape[0], c.txt.shape[1] + x.shape[1]) if alone else 1
        if groups == 1:
            return ask()
        return jax.lax.platform_dependent(tpu=lambda: self.by_groups(groups, x, t, routing), default=ask)

    def by_groups(
        self, groups: int, x: Float[Array, "B N C"], t: Float[Array, " B"], routing: Routing | None = None
    ) -> Float[Array, "B N C"]:
        """The same velocity, of so many groups of rows one after the other. No row may have to do with another.

        A TPU keeps the activations of few rows in its fast memory: 4 images of 4,608 tokens in turn take 21% fewer
        cycles of a v6e than side by side, by its compiler's estimate.
        """

        def of_group(share: Callable[[Array], Array]) -> Array:
            mod, length = self.modulation, None if routing is None else routing.length
            if mod is not None:
                img, txt, single = (jax.vmap(share)(of_blocks) for of_blocks in mod[:3])
                mod = Modulation(img, txt, single, share(mod.final))
            velocity = FluxVelocity(self.model, self.conditions.each_row(share), mod)
            return velocity(share(x), share(t), None if length is None else Routing(length=share(length)))

        return by_groups(of_group, groups)

    def _read(self, x: Float[Array, "B N C"]) -> Float[Array, "B N in"]:
        channels = self.conditions.channels
        return x if channels is None else jnp.concatenate([x, channels.astype(x.dtype)], -1)

    def glance(self, x: Float[Array, "B N C"], t: Float[Array, " B"]) -> Float[Array, "B N D"]:
        """What the first double block's attention reads of the image: the tokens, embedded and modulated."""
        model, c = self.model, self.conditions.at_time(t)
        mod = self.modulation or model.modulation(c.vec, t, c.guidance)
        shift, scale, *_ = chunks(mod.img[0], 6)
        return modulate(model.img_in(self._read(x).astype(model.dtype)), shift, scale)

    def prepare(self, times: Float[Array, " times *B"]) -> "FluxVelocity":
        """Compute the modulation for all times of a schedule; `at(i)` is then the velocity at times[i]."""
        c, rows = self.conditions, len(self.conditions.vec)

        def of_step(t: Float[Array, "*B"]) -> Modulation:
            t = jnp.broadcast_to(t, rows)
            return self.model.modulation(c.at_time(t).vec, t, c.guidance)

        return replace(self, modulation=jax.vmap(of_step)(times))

    def rows(self, index: slice | Int[Array, " rows"]) -> "FluxVelocity":
        """The same network for some of the rows, not prepared."""
        return self.conditions.rows(index).bind(self.model)

    def at(self, i: Index) -> "FluxVelocity":
        """The velocity of step i, once it is prepared."""
        return replace(self, modulation=jax.tree.map(lambda x: x[i], self.modulation))
