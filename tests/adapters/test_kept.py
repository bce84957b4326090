"""LoRAs beside the weights: data of one program, other LoRAs on the same weights, and every place that weights lie."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from small_checkpoint import CONFIG, make
from small_loras import bfl_layers, changes, kohya, save, t5_layers

import jaxpa
from jaxpa.adapters.lay import adapt, over
from jaxpa.adapters.spec import Lora
from jaxpa.checkpoint.load import load_parts, load_stages
from jaxpa.checkpoint.residence import arrange, settle
from jaxpa.checkpoint.source import resolve
from jaxpa.devices.memory import Held
from jaxpa.devices.plan import kept_of
from jaxpa.devices.programs import Job, program
from jaxpa.devices.sharding import make_mesh, rules
from jaxpa.errors import JaxpaError
from jaxpa.layers import contract
from jaxpa.lowrank import LowRank, of_factors
from jaxpa.quantised import Quantised, quantise, wide
from jaxpa.tokens import grid_positions
from jaxpa.transformer import FluxConditions

C = CONFIG.transformer
FORMS = [("...i,io->...o", (2, 3, 12), ()), ("bsi,iho->bhso", (2, 3, 12), (12, 2, -1)),
         ("bhsi,hio->bso", (2, 2, 3, 6), (2, 6, -1))]  # fmt: skip


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two LoRAs of one rank, and one of another that leaves blocks out."""
    root, layers = tmp_path_factory.mktemp("loras"), bfl_layers()
    few = {name: size for name, size in layers.items() if ".1." in name}
    return [
        save(kohya(changes(each, ranks, seed=seed), "lora_unet_", 2.0), root / f"{seed}.safetensors")
        for seed, each, ranks in ((1, layers, (3,)), (2, layers, (3,)), (3, few, (1, 4)))
    ]


@pytest.fixture(scope="module")
def forward():
    """A velocity, and how often its program was traced."""
    traces = []

    def call(model, x):
        traces.append(1)
        txt, vec = (normal(seed, 2, *shape) for seed, shape in ((1, (5, C.joint_attention_dim)),
                                                                 (2, (C.pooled_projection_dim,))))  # fmt: skip
        conditions = FluxConditions(jnp.asarray(txt), jnp.asarray(vec), jnp.array([2.0, 4.0]), grid_positions(2, 3))
        return conditions.bind(model)(x, jnp.array([0.3, 0.8]))

    program = jax.jit(call)
    return (lambda model: np.asarray(program(model, normal(3, 2, 6, C.in_channels)))), traces


def network(folder, loras, keep, weights=None):
    found = adapt(resolve(folder), loras, keep, weights)
    return load_parts(found, dtype=np.float32, parts=("transformer",), weights=weights)


def close(got, want):
    np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max(), rtol=0)


@pytest.mark.parametrize("form", FORMS, ids=["plain", "to heads", "from heads"])
@pytest.mark.parametrize("base", ["wide", "int8"])
def test_products(form, base):
    subscripts, size, shape = form
    w, down, up, strength = normal(0, 12, 8), normal(1, 12, 3), normal(2, 3, 8), normal(3, 3)
    held = jnp.asarray(w) if base == "wide" else jax.tree.map(jnp.asarray, quantise(w, "int8"))
    whole = (w if base == "wide" else np.asarray(wide(held))) + (down * strength) @ up
    x, kernel = jnp.asarray(normal(4, *size)), LowRank(held, *map(jnp.asarray, (down, up, strength)))
    np.testing.assert_allclose(
        contract(subscripts, x, kernel, shape), contract(subscripts, x, jnp.asarray(whole), shape), atol=1e-4
    )
    factors = (each.astype(jnp.bfloat16) for each in (kernel.down, kernel.up))
    half = LowRank(held if base == "int8" else held.astype(jnp.bfloat16), *factors, kernel.strength)
    assert contract(subscripts, x.astype(jnp.bfloat16), half, shape).dtype == jnp.bfloat16


def test_scales_and_loras_are_data(folder, files, forward):
    """One trace for all scales and all LoRAs of a rank; each equals its merge, and the weights are the same arrays."""
    velocity, traces = forward
    bare = network(folder, (), None)
    start = len(traces)
    for scale, file in ((1.0, files[0]), (-0.5, files[0]), (0.0, files[0]), (0.3, files[1])):
        kept = bare.over(over(CONFIG, [Lora(str(file), scale)], keep=True))
        mine, base = (x.transformer.single_blocks.proj.kernel.get_value() for x in (kept, bare))
        assert mine.base is base
        got = velocity(kept.transformer)
        close(got, velocity(network(folder, [Lora(str(file), scale)], False).transformer))
    assert len(traces) - start == 2  # with LoRAs, and without: merged
    both = [Lora(str(files[0]), 0.5), Lora(str(files[2]), 2.0)]
    of_both = velocity(network(folder, both, True).transformer)
    close(of_both, velocity(network(folder, both, False).transformer))
    assert np.abs(of_both - velocity(bare.transformer)).max() > 0.1 * np.abs(of_both).max()


def test_beside_eight_bits(folder, files, forward):
    """The default there: the rounded weights stay, and the change is exact beside them."""
    velocity, _ = forward
    loras = [Lora(str(files[0]), 0.7)]
    parts = network(folder, loras, None, "int8")
    assert isinstance(parts.transformer.double_blocks.img.mlp_in.kernel.get_value().base, Quantised)

    def whole(x):
        if not isinstance(x, LowRank):
            return x
        base = wide(x.base) if isinstance(x.base, Quantised) else x.base
        return base + (x.down * x.strength[..., None, :]) @ x.up

    explicit = jax.tree.map(whole, parts.transformer, is_leaf=lambda x: isinstance(x, LowRank))
    np.testing.assert_allclose(velocity(parts.transformer), velocity(explicit), atol=1e-3)
    rounded = velocity(network(folder, loras, False, "int8").transformer)  # merged first, then rounded
    exact = velocity(network(folder, loras, False).transformer)
    assert 0 < np.abs(rounded - exact).max() < 0.2 * np.abs(exact).max()


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_where_blocks_and_layouts_differ(folder, files, forward, platform):
    velocity, _ = forward
    laid = over(CONFIG, [Lora(str(files[2]))], keep=True)
    there = laid.attach("transformer", arrange(load_parts(folder, dtype=np.float32, parts=("transformer",)).transformer,
                                               platform))  # fmt: skip
    close(velocity(there), velocity(network(folder, [Lora(str(files[2]))], False).transformer))
    block = there.double_blocks[1] if platform == "gpu" else there.double_blocks
    kernel = block.img.qkv.q.kernel.get_value()
    assert kernel.down.ndim == (2 if platform == "gpu" else 3)
    if platform == "tpu":
        assert kernel.base.format.layout.major_to_minor == (0, 2, 3, 1)
    plain = Job(C, grid=(2, 3), text_tokens=5, steps=1, dtype="float32")
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    function, arguments = program(replace(plain, adaptation=laid), mesh, platform)  # as a plan compiles it
    sizes = lambda model: [(x.shape, x.dtype) for x in jax.tree.leaves(model)]  # noqa: E731
    assert sizes(arguments[0]) == sizes(there) != sizes(program(plain, mesh, platform)[1][0])
    traced = jax.jit(function).trace(*arguments)
    if platform == "tpu":  # nothing is between a block's slice of its weights and the product: it would be a copy
        text, d = traced.lower(lowering_platforms=("tpu",)).as_text(), C.width
        by_heads = f"{d}x{C.num_attention_heads}x{C.attention_head_dim}"
        assert re.search(rf"dynamic_slice.*-> tensor<1x{by_heads}xf32>", text)
        assert not re.search(rf"dynamic_slice.*-> tensor<1x{d}x{d}xf32>", text)


def test_networks_that_take_turns(folder, files, forward):
    velocity, _ = forward
    t5 = save(kohya(changes(t5_layers(), (2,)), "lora_te3_"), files[0].parent / "t5.safetensors")
    loras = [Lora(str(files[0])), Lora(str(t5))]
    for keep in (True, False):
        staged, parts = (
            load(adapt(resolve(folder), loras, keep), dtype=np.float32) for load in (load_stages, load_parts)
        )
        close(velocity(staged.transformer), velocity(parts.transformer))
        ids = jnp.arange(6)[None]
        close(np.asarray(staged.text_encoder_2(ids)), np.asarray(parts.text_encoder_2(ids)))
        assert staged.kept == parts.kept == kept_of(adapt(resolve(folder), loras, keep))
    assert parts.kept == 0


def test_biases_alone(folder, tmp_path):
    """Nothing is beside the weights then; the other layer's product is of none of ours, and zero."""
    zeros = {f"diffusion_model.nothing.lora_{which}.weight": np.zeros((2, 2), np.float32) for which in "AB"}
    save({"diffusion_model.final_layer.linear.diff_b": normal(5, C.in_channels)} | zeros, tmp_path / "b.safetensors")
    loras = [Lora(str(tmp_path / "b.safetensors"), 0.5)]
    for load in (load_stages, load_parts):
        merged, kept = (load(adapt(resolve(folder), loras, keep), dtype=np.float32) for keep in (False, True))
        got, want = (parts.transformer.final_linear.bias.get_value() for parts in (kept, merged))
        np.testing.assert_array_equal(got, want)
        assert np.abs(want - kept.bare.transformer.final_linear.bias.get_value()).max() > 0.1
        assert kept.kept == 0


def test_what_they_weigh(folder, files):
    """The plan's numbers are those of the arrays."""
    loras = [Lora(str(files[0])), Lora(str(files[2]))]
    parts = network(folder, loras, True)
    is_kernel = lambda x: isinstance(x, LowRank)  # noqa: E731
    kernels = [x for x in jax.tree.leaves(parts.transformer, is_leaf=is_kernel) if is_kernel(x)]
    numbers = sum(x.size for kernel in kernels for x in (kernel.down, kernel.up, kernel.strength))
    assert numbers == parts.kept == kept_of(adapt(resolve(folder), loras, True)) > 0
    assert Held(kept=numbers).kept == numbers


@pytest.mark.parametrize(("platform", "axes"), [("cpu", 3), ("tpu", 4)])
def test_shardings_of_factors(platform, axes):
    """Apart where the base is, with an axis of heads or without one."""
    rule = rules(make_mesh(1, 1))
    for path, down, up in (("double_blocks.img.qkv.k.kernel", (None, None, None), (None, None, "model")),
                           ("single_blocks.proj.kernel", (None, "model", None), (None, None, None))):  # fmt: skip
        base = jax.ShapeDtypeStruct((2, C.width, C.width), np.float32, sharding=rule("transformer", path, (2, 16, 16)))
        base = settle(path, base, platform, C)
        assert base.ndim == axes
        specs = [tuple(each.spec) for each in of_factors(base, C.width)]
        assert specs == [down, up, (None, None)]


def test_a_pipelines_loras(tmp_path):
    """mini under a LoRA, without it again, and what merged ones do not allow."""
    sizes = {"transformer_blocks.0.attn.to_q": (192, 192), "single_transformer_blocks.3.proj_mlp": (768, 192)}
    made = changes(sizes, (4,))
    tensors = {f"transformer.{name}.lora_{which}.weight": x for name, down, up, _ in made
               for which, x in (("A", down), ("B", 30 * up))}  # fmt: skip
    file = save(tensors, tmp_path / "lora.safetensors")
    words = {"prompt": "a red car on a beach", "steps": 1, "height": 32, "width": 32}
    bare = jaxpa.load("mini", np.float32)
    pictures = [np.asarray(pipe.generate(**words)[0], int) for pipe in
                (bare, bare.with_loras([file]), bare.with_loras([file]).with_loras(()), bare.with_loras([(file, 0)]),
                 jaxpa.load("mini", np.float32, loras=[file]))]  # fmt: skip
    assert np.abs(pictures[1] - pictures[0]).max() > 20
    np.testing.assert_array_equal(pictures[2], pictures[0])
    assert np.abs(pictures[3] - pictures[0]).max() <= 1
    assert np.abs(pictures[4] - pictures[1]).max() <= 1
    with pytest.raises(JaxpaError, match="keep_loras=True"):
        jaxpa.load("mini", np.float32, loras=str(file)).with_loras(())
