"""Weights of eight bits against the network whose weights are what they stand for."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from small_checkpoint import CONFIG, make

from jaxpa.checkpoint import load as loading
from jaxpa.checkpoint.convert import convert
from jaxpa.checkpoint.keys import COMPONENTS, component
from jaxpa.checkpoint.load import load_component, load_parts
from jaxpa.checkpoint.residence import arrange
from jaxpa.config import Rounding
from jaxpa.devices import cost
from jaxpa.devices.programs import Job, model
from jaxpa.errors import CheckpointError
from jaxpa.layers import Linear, contract
from jaxpa.media.images import read_metadata
from jaxpa.quantised import DTYPES, Quantised, quantise, wide
from jaxpa.tokens import grid_positions
from jaxpa.transformer import FluxConditions

KINDS = pytest.mark.parametrize("kind", ["int8", "fp8"])
FORMS = [("...i,io->...o", (2, 3, 12), ()), ("bsi,iho->bhso", (2, 3, 12), (12, 2, -1)),
         ("bhsi,hio->bso", (2, 2, 3, 6), (2, 6, -1))]  # fmt: skip


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@KINDS
def test_rounding(kind):
    w = normal(0, 2, 12, 8) * np.float32(10) ** np.arange(-4, 4, dtype=np.float32)
    w[1, :, 3] = 0
    q = quantise(w, kind)
    assert (q.values.dtype, q.values.shape, q.scale.shape) == (DTYPES[kind], w.shape, (2, 8))
    error = np.abs(np.asarray(wide(jax.tree.map(jnp.asarray, q))) - w)
    # Half a step; of e4m3, half of its last of three digits behind the point, and 2^-10 where it has none before.
    bound = q.scale[:, None] / 2 if kind == "int8" else np.maximum(np.abs(w) / 16, q.scale[:, None] * 2.0**-10)
    assert (error <= bound * 1.0001).all()
    assert error[1, :, 3].max() == 0
    again = quantise(np.asarray(wide(jax.tree.map(jnp.asarray, q))), kind)
    np.testing.assert_array_equal(again.values.astype(np.float32), q.values.astype(np.float32))


@KINDS
@pytest.mark.parametrize("form", FORMS, ids=["plain", "to heads", "from heads"])
def test_products(kind, form):
    subscripts, size, shape = form
    q = jax.tree.map(jnp.asarray, quantise(normal(1, 12, 8), kind))
    x = jnp.asarray(normal(2, *size))
    np.testing.assert_allclose(contract(subscripts, x, q, shape), contract(subscripts, x, wide(q), shape), atol=1e-5)
    half = contract(subscripts, x.astype(jnp.bfloat16), q, shape)
    exact = contract(subscripts, x.astype(jnp.bfloat16).astype(jnp.float32), wide(q), shape)
    assert half.dtype == jnp.bfloat16  # rounded once, at the end
    np.testing.assert_allclose(half.astype(jnp.float32), exact, rtol=2.0**-8, atol=1e-5)


@pytest.mark.parametrize("form", FORMS, ids=["plain", "to heads", "from heads"])
def test_products_of_int8(form):
    """A token's inputs, of all its heads, are rounded to 127 steps of its largest one; one token has none."""
    subscripts, size, shape = form
    w = jax.tree.map(jnp.asarray, quantise(normal(1, 12, 8), "int8"))
    x = normal(2, *size) * np.float32(10) ** np.arange(-1, 2, dtype=np.float32)[:, None]  # tokens of unlike sizes
    x[0, ..., 1, :] = 0
    heads = (1, 3) if subscripts[:4] == "bhsi" else (x.ndim - 1,)
    step = np.maximum(np.abs(x).max(heads, keepdims=True), 1e-30) / np.float32(127)
    rounded = jnp.asarray(np.rint(x / step) * step)
    got = contract(subscripts, jnp.asarray(x), replace(w, inputs=True), shape)
    np.testing.assert_allclose(got, contract(subscripts, rounded, wide(w), shape), rtol=1e-5, atol=1e-5 * x.max())
    assert np.abs(got - contract(subscripts, jnp.asarray(x), wide(w), shape)).max() > 1e-3
    half = contract(subscripts, jnp.asarray(x, jnp.bfloat16), replace(w, inputs=True), shape)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), got, atol=0.05 * np.abs(got).max())


def test_activations_of_eight_bits(folder, tmp_path):
    """The transformer's alone; a converted folder of int8 is as good a source, and one of fp8 is none."""
    parts, int8 = (load_parts(folder, dtype=np.float32, weights=kind) for kind in ("w8a8", "int8"))
    held = {
        name: [
            x.inputs
            for x in jax.tree.leaves(getattr(parts, name), is_leaf=lambda x: isinstance(x, Quantised))
            if isinstance(x, Quantised)
        ]
        for name in ("transformer", "text_encoder_2")
    }
    assert all(held["transformer"])
    assert not any(held["text_encoder_2"])
    assert parts.weights == Rounding("w8a8", "int8")
    got, want = velocity(parts.transformer), velocity(int8.transformer)
    assert 1e-3 < np.linalg.norm(got - want) / np.linalg.norm(want) < 0.05
    for platform in ("gpu", "tpu"):
        np.testing.assert_allclose(velocity(arrange(parts.transformer, platform)), got, atol=1e-2 * np.abs(want).max())
    converted = convert(folder, tmp_path / "int8", weights="int8")
    again = load_component(converted / "transformer", np.float32, weights="w8a8")
    np.testing.assert_array_equal(velocity(again), got)
    other = convert(folder, tmp_path / "fp8", weights="fp8")
    with pytest.raises(CheckpointError, match="holds weights in fp8"):
        load_component(other / "transformer", np.float32, weights="w8a8")
    with pytest.raises(CheckpointError, match="convert with int8"):
        convert(folder, tmp_path / "none", weights="w8a8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make(tmp_path_factory.mktemp("small"))


def explicit(network):
    """The same network of float32, every kernel of eight bits multiplied out."""
    return jax.tree.map(
        lambda x: wide(x) if isinstance(x, Quantised) else x, network, is_leaf=lambda x: isinstance(x, Quantised)
    )


def velocity(model):
    config = model.config
    guidance = jnp.array([2.0, 4.0]) if config.guidance_embeds else None
    txt, vec = normal(3, 2, 5, config.joint_attention_dim), normal(4, 2, config.pooled_projection_dim)
    ask = jax.jit(lambda v, x, t: v(x, t))
    conditions = FluxConditions(jnp.asarray(txt), jnp.asarray(vec), guidance, grid_positions(3, 4))
    return ask(conditions.bind(model), normal(5, 2, 12, config.in_channels), jnp.array([0.3, 0.8]))


@KINDS
def test_a_checkpoint_is_rounded_as_it_is_read(folder, kind, monkeypatch):
    placed = []
    monkeypatch.setattr(loading, "_place", lambda host, where: placed.append(host.dtype) or jax.device_put(host))
    parts = load_parts(folder, dtype=np.float32, weights=kind)
    assert DTYPES[kind] in placed
    plain = load_parts(folder, dtype=np.float32)
    for name in ("transformer", "text_encoder_2", "text_encoder", "vae"):
        is_kernel = lambda x: isinstance(x, Quantised)  # noqa: E731
        ours = jax.tree_util.tree_flatten_with_path(getattr(parts, name), is_leaf=is_kernel)[0]
        for (path, x), y in zip(ours, jax.tree.leaves(getattr(plain, name)), strict=True):
            path = jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")
            assert isinstance(x, Quantised) == component(name, getattr(CONFIG, name)).rounds(path)
            np.testing.assert_allclose(
                wide(x) if isinstance(x, Quantised) else x, y, atol=0.3 * isinstance(x, Quantised)
            )
    model = parts.transformer
    blocks = (model.double_blocks.img, model.double_blocks.txt, model.single_blocks)
    kernels = [getattr(block, name).kernel for block in blocks for name in ("proj", "mlp_in", "mlp_out")]
    assert all(isinstance(each.get_value(), Quantised) for each in kernels)
    assert not isinstance(model.double_blocks.img.mod.kernel.get_value(), Quantised)
    want = velocity(explicit(model))
    np.testing.assert_allclose(velocity(model), want, atol=1e-4 * np.abs(want).max())
    assert np.abs(want - velocity(plain.transformer)).max() > 1e-3 * np.abs(want).max()
    ids = jnp.arange(14).reshape(2, 7)
    np.testing.assert_allclose(parts.text_encoder_2(ids), explicit(parts.text_encoder_2)(ids), atol=1e-4)


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_every_platforms_layout(folder, platform):
    model = load_component(folder / "transformer", np.float32, weights="int8")
    there = arrange(model, platform)
    want = velocity(model)
    np.testing.assert_allclose(velocity(there), want, atol=1e-6 * np.abs(want).max())  # scales are fused otherwise
    one = there.double_blocks[0] if platform == "gpu" else there.double_blocks
    kernel = one.img.qkv.q.kernel.get_value()
    assert (kernel.scale.ndim, kernel.values.ndim) == ((1, 2) if platform == "gpu" else (2, 4))  # with an axis of heads
    if platform == "tpu":
        assert kernel.values.format.layout.major_to_minor == (0, 2, 3, 1)


def test_a_layer_takes_them():
    layer = Linear(12, 8, rngs=nnx.Rngs(0))
    w = normal(6, 12, 8)
    layer.kernel = nnx.Param(jax.tree.map(jnp.asarray, quantise(w, "int8")))
    x = normal(7, 3, 12)
    np.testing.assert_allclose(layer(jnp.asarray(x)), x @ w, atol=0.2)


@KINDS
def test_what_they_weigh(folder, kind):
    """The plan's bytes are those of the arrays, and the shapes that are compiled for elsewhere are theirs."""
    parts = load_parts(folder, dtype=jnp.bfloat16, weights=kind)
    found = {name: sum(x.nbytes for x in jax.tree.leaves(getattr(parts, name))) for name in COMPONENTS}
    assert cost.weight_bytes(CONFIG, 2, Rounding(kind, kind)) == found
    mesh = jax.make_mesh((1, 1), ("data", "model"))
    shapes = model(Job(CONFIG.transformer, (3, 4), weights=kind), mesh, "cpu")
    pairs = zip(jax.tree.leaves(shapes), jax.tree.leaves(parts.transformer), strict=True)
    assert all((a.shape, a.dtype) == (b.shape, b.dtype) for a, b in pairs)


def test_the_command_takes_them(run, tmp_path):
    words = ["generate", "--prompt", "a red car", "--steps", 2, "--out"]
    for name, more in (("plain", []), ("eight", ["--weights", "int8"])):
        assert run(*words, tmp_path / f"{name}.png", *more)[0] == 0
        assert read_metadata(tmp_path / f"{name}.png")["checkpoint"].get("weights") == (
            None if name == "plain" else "int8"
        )
    plain, eight = (np.asarray(Image.open(tmp_path / f"{name}.png"), float) for name in ("plain", "eight"))
    assert 0 < np.abs(plain - eight).mean() < 5
    planned = [json.loads(run("plan", "--json", *more)[1]) for more in ([], ["--weights", "fp8"])]
    assert planned[1]["weights"] == "fp8"
    assert planned[1]["memory_bytes"] < planned[0]["memory_bytes"]
    assert "int8, fp8" in run("plan", "--weights", "int4")[2]
    assert "no effect" in run("bench", "--config", "dev", "--weights", "int8")[2]
