"""The seams of the network, each used as its next user would: other kernels, adapters, weights, channels."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from jaxpa import blocks, partition
from jaxpa.checkpoint.keys import abstract
from jaxpa.checkpoint.residence import arrange, path_of
from jaxpa.config import TransformerConfig
from jaxpa.devices.sharding import rules
from jaxpa.layers import Linear, Numbered
from jaxpa.partition import row_groups
from jaxpa.sampling import Accompanied, Guided, at, prepare
from jaxpa.tokens import Routing, grid_positions, identity_source
from jaxpa.transformer import Flux, FluxConditions, FluxVelocity, Opening

CONFIG = TransformerConfig(in_channels=8, num_layers=2, num_single_layers=3, num_attention_heads=2,
                           attention_head_dim=8, joint_attention_dim=12, pooled_projection_dim=8,
                           axes_dims_rope=(4, 2, 2))  # fmt: skip
BLOCKS, B, M, H, W = 5, 2, 5, 3, 4
N = H * W


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def make(config: TransformerConfig) -> Flux:
    """Random weights, biases too."""
    shapes = jax.eval_shape(lambda: Flux(config, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda p: jnp.asarray(rng.normal(0, 0.3, p.shape), p.dtype), shapes)


@pytest.fixture(scope="module")
def flux() -> Flux:
    return make(CONFIG)


CONDITIONS = FluxConditions(normal(2, B, M, 12), normal(3, B, 8), jnp.array([2.0, 4.0]), grid_positions(H, W))
X, T = normal(1, B, N, 8), jnp.array([0.3, 0.8])
ask = jax.jit(lambda velocity, x, t, routing=None: velocity(x, t, routing))


def velocity(model: Flux) -> FluxVelocity:
    return CONDITIONS.bind(model)


# Kernels of another kind -------------------------------------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Int8:
    """Eight bits and a scale for each output, as the next issue will store them."""

    values: jax.Array  # (In, Out) int8
    scale: jax.Array  # (Out,)

    def contract(self, subscripts: str, x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        kernel = self.values.reshape(shape) if shape else self.values
        y = jnp.einsum(subscripts, x, kernel.astype(x.dtype))
        heads = subscripts.endswith("bhso")
        return y * (self.scale.reshape(shape[1], 1, -1) if heads else self.scale)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LowRank:
    """A kernel with a low-rank change; its strength is data."""

    base: jax.Array
    down: jax.Array  # (In, R)
    up: jax.Array  # (R, Out)
    strength: jax.Array

    def contract(self, subscripts: str, x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        whole = self.base + self.strength * self.down @ self.up
        return jnp.einsum(subscripts, x, whole.reshape(shape) if shape else whole)


def with_kernels(model: Any, change: Any) -> Any:
    """The network with another kind of kernel in every linear layer of its blocks."""

    def visit(module: Any) -> Any:
        if isinstance(module, Linear):
            module.kernel = nnx.Param(change(module.kernel[...]))
        elif isinstance(module, nnx.Module):
            for value in vars(module).values():
                visit(value)
        return module

    out = jax.tree.map(lambda x: x, model)
    visit(out.double_blocks)
    visit(out.single_blocks)
    return out


def test_kernels_of_eight_bits_are_another_parameter_not_another_network(flux):
    def quantise(w: jax.Array) -> Int8:
        scale = jnp.abs(w).max(-2) / 127
        return Int8(jnp.round(w / scale[..., None, :]).astype(jnp.int8), scale)

    def widen(w: jax.Array) -> jax.Array:
        q = quantise(w)
        return q.values * q.scale[..., None, :]

    got, want = (ask(velocity(with_kernels(flux, change)), X, T) for change in (quantise, widen))
    np.testing.assert_allclose(got, want, atol=2e-4)  # scaled before or after the sum; values of order 10
    assert np.abs(want - ask(velocity(flux), X, T)).max() > 1e-2


def test_a_low_rank_change_is_data(flux):
    rng = np.random.default_rng(5)

    def change(strength: float) -> Any:
        def one(w: jax.Array) -> LowRank:
            down, up = rng.normal(0, 0.3, (*w.shape[:-1], 2)), rng.normal(0, 0.3, (*w.shape[:-2], 2, w.shape[-1]))
            return LowRank(w, jnp.float32(down), jnp.float32(up), jnp.full(w.shape[0], strength))

        return one

    run = jax.jit(lambda v, x, t: v(x, t))
    off, on = (run(velocity(with_kernels(flux, change(s))), X, T) for s in (0.0, 1.0))
    assert run._cache_size() == 1
    np.testing.assert_allclose(off, ask(velocity(flux), X, T), atol=1e-4)
    assert np.abs(on - off).max() > 1e-2


# Extensions and observers ------------------------------------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Adapter:
    """An image-prompt adapter in small: a block's image queries attend to tokens of a picture."""

    double: Any  # (keys, values) of every block: (L, K, H Dh) each
    single: Any

    def __call__(self, parameters: Any, trace: Any) -> jax.Array:
        keys, values = (x.reshape(-1, 2, 8).swapaxes(0, 1) for x in parameters)  # (H, K, Dh)
        query = trace.query[:, :, trace.txt.shape[1] :]  # (B, H, N, Dh)
        p = jax.nn.softmax(jnp.einsum("bhnd,hkd->bhnk", query, keys))
        return jnp.einsum("bhnk,hkd->bnhd", p, values).reshape(trace.img.shape)


def test_a_block_may_be_extended(flux):
    parameters = tuple((normal(i, layers, 3, 16), normal(i + 1, layers, 3, 16)) for i, layers in ((7, 2), (9, 3)))

    def run(model: Flux, extension: Any) -> Any:
        c = CONDITIONS
        return model(X, c.txt, c.vec, T, c.guidance, c.positions, observe=lambda t: (t.block, t.img, t.query),
                     extension=extension)  # fmt: skip

    plain, extended = (jax.jit(run)(flux, each) for each in (None, Adapter(*parameters)))
    nothing = jax.jit(run)(flux, Adapter(*jax.tree.map(jnp.zeros_like, parameters)))
    np.testing.assert_array_equal(nothing[0], plain[0])
    assert np.abs(extended[0] - plain[0]).max() > 1e-2
    # By hand: what the first block adds to its own output.
    _, (index, img, query) = extended[0], extended[1][0]
    keys, values = (np.asarray(x[0]).reshape(3, 2, 8) for x in parameters[0])
    logits = np.einsum("bhnd,khd->bhnk", query[0][:, :, M:], keys)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    added = np.einsum("bhnk,khd->bnhd", p, values).reshape(B, N, 16)
    np.testing.assert_allclose(img[0], plain[1][0][1][0] + added, atol=1e-4)
    assert [*index, *extended[1][1][0]] == list(range(BLOCKS))


def test_observers_see_values_and_guidance(flux):
    """Under classifier-free guidance as well, whose rows are [references; positive; negative]."""

    def see(trace: Any) -> Any:
        p = jax.nn.softmax(jnp.einsum("bhqd,bhkd->bhqk", trace.q, trace.k) / 8**0.5)
        return trace.block, jnp.einsum("bhqk,bhkd->bhqd", p, trace.v)

    two = jax.tree.map(lambda x: jnp.concatenate([x, x[:1]]) if x.ndim > 1 and len(x) == B else x, CONDITIONS)
    two = replace(two, guidance=jnp.array([2.0, 4.0, 2.0]))
    guided = Guided(two, jnp.float32(3.0), references=1).bind(flux)
    v, (double, single) = jax.jit(lambda g: g(X, T, observe=see))(guided)
    np.testing.assert_array_equal(v, ask(guided, X, T))
    assert double[1].shape == (2, 3, 2, M + N, 8)
    assert [*double[0], *single[0]] == list(range(BLOCKS))


# Routing -----------------------------------------------------------------------------------------------------

SOURCE = identity_source(B, N).at[1, :6].set(jnp.arange(6))  # the second row's first half from the first row


def routed(flux: Flux, weight: Any) -> np.ndarray:
    return np.asarray(ask(velocity(flux), X, T, Routing(SOURCE, None if weight is None else jnp.float32(weight))))


def test_weights_of_a_routing(flux):
    hard, none = routed(flux, None), np.asarray(ask(velocity(flux), X, T))
    for shape in ((1, 1, 1, 1), (BLOCKS, B, N, 3), (1, B, 1, 3)):
        np.testing.assert_array_equal(routed(flux, np.ones(shape)), hard)
        np.testing.assert_array_equal(routed(flux, np.zeros(shape)), none)
    half = routed(flux, np.full((1, 1, 1, 1), 0.5))
    assert min(np.abs(half - other).max() for other in (hard, none)) > 1e-3


def test_a_weight_of_blocks_tokens_and_values(flux, monkeypatch):
    """Values alone, of tokens 2 to 5 of the second row, in blocks 1 and 3: the same, written out."""
    weight = np.zeros((BLOCKS, B, N, 3), np.float32)
    weight[np.ix_([1, 3], [1], range(2, 6), [2])] = 1
    got = routed(flux, weight)
    numbers = iter(range(BLOCKS))

    def by_hand(x: jax.Array, shared: Any) -> tuple[jax.Array, ...]:
        text = x.shape[1] - N  # in front, in single blocks
        there = x.at[1, text + 2 : text + 6].set(x[0, text + 2 : text + 6])
        return x, x, there if next(numbers) in (1, 3) else x

    monkeypatch.setattr(blocks, "routed", by_hand)
    with jax.disable_jit():  # block by block, not traced once for all
        want = velocity(arrange(flux, "gpu"))(X, T)
    assert next(numbers, None) is None
    np.testing.assert_allclose(got, want, atol=1e-4)
    assert np.abs(got - routed(flux, None)).max() > 1e-2


# Rows in groups ----------------------------------------------------------------------------------------------


def of_six(more: int = 0) -> FluxConditions:
    """Six rows, with positions and lengths of their own, and another text above times of their own."""
    places = jnp.broadcast_to(grid_positions(H, W), (6, N, 3)) + jnp.arange(6)[:, None, None]
    channels = normal(14, 6, N, more) if more else None
    opening = Opening(jnp.linspace(1.0, 0.0, 6), normal(15, 6, M, 12), normal(16, 6, 8))
    return FluxConditions(normal(11, 6, M, 12), normal(12, 6, 8), jnp.arange(6.0), places, channels, opening)


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("groups", [2, 3, 6])
def test_groups_of_rows_are_the_same_velocity(flux, groups, prepared):
    x, times = normal(13, 6, N, 8), jnp.array([0.8, 0.3])
    velocity, t = of_six().bind(flux), jnp.full(6, 0.3) if prepared else jnp.linspace(0.1, 0.9, 6)
    routing = Routing(length=jnp.array([3, 12, 7, 1, 9, 12]))

    @jax.jit
    def both(velocity: FluxVelocity, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        ready = at(prepare(velocity, times), 1) if prepared else velocity
        return ready.by_groups(groups, x, t, routing), ready(x, t, routing)

    got, want = both(velocity, x)
    assert got.shape == (6, N, 8)
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())  # other shapes, other orders of sums


@pytest.mark.parametrize("prepared", [False, True])
def test_another_text_above_a_time_of_each_row(flux, prepared):
    """Row by row what it is with the one text or with the other, at its own time; the first block's glance, too."""
    told, x = of_six(), normal(13, 6, N, 8)
    assert told.opening is not None
    plain = replace(told, opening=None)
    first = replace(plain, txt=told.opening.txt, vec=told.opening.vec)
    for i, t in enumerate(jnp.array([[0.8] * 6, [0.3] * 6])):
        velocities = [each.bind(flux) for each in (told, first, plain)]
        if prepared:
            velocities = [at(prepare(each, jnp.array([0.8, 0.3])), i) for each in velocities]
        above = np.asarray(t > told.opening.time)
        assert 0 < above.sum() < 6
        for look in (ask, jax.jit(lambda velocity, x, t: velocity.glance(x, t))):
            got, one, other = (np.asarray(look(velocity, x, t)) for velocity in velocities)
            np.testing.assert_allclose(got, np.where(above[:, None, None], one, other), rtol=0, atol=1e-5)
    picked = FluxConditions.concatenate([told.rows(slice(3)), told.rows(slice(3, None))])
    jax.tree.map(np.testing.assert_array_equal, picked, told)


def test_groups_read_their_channels_once():
    model = make(replace(CONFIG, in_channels=20, out_channels=8))
    velocity, x, t = of_six(12).bind(model), normal(13, 6, N, 8), jnp.full(6, 0.5)
    got, want = jax.jit(lambda v: (v.by_groups(3, x, t), v(x, t)))(velocity)
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


def test_which_rows_are_grouped():
    """A TPU's program takes long rows apart, unless one reads another or an observer wants them all."""
    rows = [(1, 9000), (4, 1023), (4, 1024), (4, 4096), (4, 4608), (6, 1536), (16, 1536), (5, 1536), (7, 5000)]
    assert [row_groups(*each) for each in rows] == [1, 1, 1, 4, 4, 2, 4, 1, 7]
    with jax.sharding.use_abstract_mesh(AbstractMesh((2, 2), ("data", "model"))):
        assert [row_groups(*each) for each in ((4, 4608), (2, 4608), (3, 4608))] == [2, 1, 1]


@pytest.mark.parametrize(("platform", "grouped"), [("tpu", True), ("cuda", False), ("cpu", False)])
def test_where_rows_are_grouped(flux, platform, grouped, monkeypatch):
    monkeypatch.setattr(partition, "GROUP", 2 * (M + N))
    velocity, x, t = of_six().bind(flux), normal(13, 6, N, 8), jnp.full(6, 0.5)
    source = identity_source(6, N)

    def loops(routing: Routing | None, observe: Any = None) -> bool:
        """Whether the program has a loop over groups of two rows."""
        traced = jax.jit(lambda v: v(x, t, routing, observe)).trace(velocity)
        return f"tensor<3x2x{N}x8xf32>" in traced.lower(lowering_platforms=(platform,)).as_text()

    assert loops(None) == loops(Routing(length=jnp.full(6, N))) == grouped
    assert not loops(Routing(source=source))
    assert not loops(None, lambda trace: trace.block)


# Layouts, channels, transforms -------------------------------------------------------------------------------


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_every_platforms_layout_is_the_same_network(flux, platform):
    there = arrange(flux, platform)
    np.testing.assert_array_equal(ask(velocity(there), X, T), ask(velocity(flux), X, T))
    assert isinstance(there.double_blocks, Numbered) == (platform == "gpu")
    img = there.double_blocks[0].img if platform == "gpu" else there.double_blocks.img
    held = [(x.shape, x.format.layout.major_to_minor) for x in (img.qkv.q.kernel[...], img.proj.kernel[...])]
    if platform == "gpu":
        assert held == [((16, 16), (0, 1))] * 2
    else:  # with an axis of heads, those before attention transposed
        assert held == [((2, 16, 2, 8), (0, 2, 3, 1)), ((2, 2, 8, 16), (0, 1, 2, 3))]


@pytest.mark.parametrize("heads", [4, 3])
def test_heads_that_do_not_divide_over_a_mesh_keep_their_kernels(heads):
    config = replace(CONFIG, num_attention_heads=heads)
    mesh = AbstractMesh((1, 2), ("data", "model"))

    def spread(path: Any, x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rules(mesh)("transformer", path_of(path), x.shape))

    shapes = abstract("transformer", config, np.dtype(np.float32))
    single = arrange(jax.tree_util.tree_map_with_path(spread, shapes), "tpu").single_blocks
    q, proj, width = single.qkv.q.kernel.get_value(), single.proj.kernel.get_value(), 8 * heads
    specs = [x.sharding.spec for x in (q, proj)]
    if heads == 4:
        assert (q.shape, proj.shape) == ((3, width, 4, 8), (3, 4, 8, width))
        assert specs == [P(None, None, "model"), P(None, "model", None, None)]
    else:
        assert (q.shape, proj.shape) == ((3, width, width), (3, width, width))
        assert specs == [P(None, None, "model"), P(None, "model", None)]


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_layouts_of_shapes_alone(flux, platform):
    shapes = arrange(abstract("transformer", CONFIG, np.dtype(np.float32)), platform)
    pairs = zip(jax.tree.leaves(shapes), jax.tree.leaves(arrange(flux, platform)), strict=True)
    assert all((a.shape, a.dtype) == (b.shape, b.dtype) for a, b in pairs)


def test_further_channels_come_from_the_conditions():
    """Fill, Canny and Depth: more channels in than out."""
    config = replace(CONFIG, in_channels=20, out_channels=8)
    model, more = make(config), normal(5, B, N, 12)
    got = ask(replace(CONDITIONS, channels=more).bind(model), X, T)
    assert got.shape == X.shape
    c, whole = CONDITIONS, jnp.concatenate([X, more], -1)
    want = jax.jit(lambda m: m(whole, c.txt, c.vec, T, c.guidance, c.positions))(model)
    np.testing.assert_array_equal(got, want)
    with pytest.raises(ValueError, match="reads tokens of 20 channels, not 8"):
        CONDITIONS.bind(model)(X, T)


def test_the_index_axis_of_positions_turns(flux):
    """Kontext's reference sits at (1, row, column)."""
    other = replace(CONDITIONS, positions=grid_positions(H, W, index=1))
    assert np.abs(ask(other.bind(flux), X, T) - ask(velocity(flux), X, T)).max() > 1e-3


def test_a_picture_in_the_sequence_with_every_kind_of_routing(flux):
    """Kontext: indices, weights, context and lengths mean the image tokens, wherever the picture stands.

    The truth is the network itself, with the picture behind instead of in front and the routing written out by hand.
    """
    k, rng = 5, np.random.default_rng(1)
    picture, there = normal(7, 1, k, 8), jnp.pad(jnp.arange(1.0, k + 1)[:, None], ((0, 0), (0, 2)), constant_values=1.0)
    source, weight = rng.integers(0, B * N, (B, N)), rng.random((BLOCKS, B, N, 3), np.float32)
    context, places = rng.integers(0, B * N, (B, 4)), rng.random((B, 4, 3), np.float32)
    conditions = Accompanied(CONDITIONS, picture, there)
    got = ask(
        conditions.bind(flux), X, T, Routing(jnp.asarray(source), jnp.asarray(weight), jnp.asarray(context), places)
    )

    def moved(index):
        return jnp.asarray(index // N * (N + k) + index % N)

    own = jnp.asarray([[row * (N + k) + N + i for i in range(k)] for row in range(B)])
    routing = Routing(
        jnp.concatenate([moved(source), own], 1),
        jnp.pad(weight, ((0, 0), (0, 0), (0, k), (0, 0))),
        moved(context),
        places,
    )
    whole = jnp.concatenate([X, jnp.broadcast_to(picture, (B, k, 8))], 1)
    behind = replace(CONDITIONS, positions=jnp.concatenate([CONDITIONS.positions, there]))
    want = ask(behind.bind(flux), whole, T, routing)[:, :N]
    np.testing.assert_allclose(got, want, atol=1e-4)  # of values up to 10, summed in another order
    plain = ask(conditions.bind(flux), X, T)
    assert np.abs(got - plain).max() > 1e-2
    np.testing.assert_allclose(plain, ask(behind.bind(flux), whole, T)[:, :N], atol=1e-4)
    cut = ask(conditions.bind(flux), X, T, Routing(length=jnp.full(B, N - 2)))  # of the image tokens, the last two
    alone = Accompanied(replace(CONDITIONS, positions=CONDITIONS.positions[: N - 2]), picture, there)
    np.testing.assert_allclose(cut[:, : N - 2], ask(alone.bind(flux), X[:, : N - 2], T), atol=1e-4)


def test_what_depends_on_time_alone_is_computed_before(flux):
    times = jnp.array([0.9, 0.5, 0.1])
    ready = jax.jit(prepare)(velocity(flux), times)
    for i, t in enumerate(times):
        want = ask(velocity(flux), X, jnp.full(B, t))
        # The same products in a larger batch; values of order 10.
        np.testing.assert_allclose(ask(at(ready, i), X, jnp.full(B, t)), want, atol=1e-4)


def test_rematerialisation_changes_no_gradient(flux):
    c = CONDITIONS

    def loss(model: Flux, remat: bool) -> jax.Array:
        return jnp.sum(model(X, c.txt, c.vec, T, c.guidance, c.positions, remat=remat) ** 2)

    grad = jax.jit(jax.grad(loss), static_argnums=1)
    for a, b in zip(jax.tree.leaves(grad(flux, False)), jax.tree.leaves(grad(flux, True)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(a).max())
