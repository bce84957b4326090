"""The benchmark on a small network: it runs, its figures hang together, and its weights are what they claim."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpa.checkpoint.keys import abstract
from jaxpa.config import TransformerConfig, flux_dev
from jaxpa.devices import cost
from jaxpa.devices.bench import Workload, _random_tree, bench, format_bench, matmul_ceiling, random_model
from jaxpa.errors import JaxpaError

CONFIG = TransformerConfig(in_channels=16, num_layers=2, num_single_layers=3, num_attention_heads=2,
                           attention_head_dim=32, joint_attention_dim=48, pooled_projection_dim=24,
                           axes_dims_rope=(8, 12, 12))  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return random_model(CONFIG)


@pytest.fixture(scope="module")
def result(model):
    return bench(model, Workload(64, 48, text_tokens=12, batch=2, steps=3, repeats=2), vae_downscale=4)


def test_what_was_run(result, model):
    said = {key: result[key] for key in ("height", "width", "image_tokens", "text_tokens", "batch", "steps", "dtype")}
    assert said == {"height": 64, "width": 48, "image_tokens": 48, "text_tokens": 12, "batch": 2, "steps": 3,
                    "dtype": "float32"}  # fmt: skip
    assert result["jax"] == jax.__version__
    assert result["devices"] == 1
    assert result["blocks"] == {"double blocks": 2, "single blocks": 3}
    assert result["parameters"] == sum(x.size for x in jax.tree.leaves(model))


def test_figures_hang_together(result):
    assert result["tflop_per_step"] == 2 * cost.transformer_flops(CONFIG, 48, 12) / 1e12
    assert result["tflops"] == pytest.approx(result["tflop_per_step"] / (result["step_ms"] / 1e3))
    assert result["fraction"] == pytest.approx(result["tflops"] / result["ceiling_tflops"])
    positive = ("step_ms", "loop_ms", "tflops", "ceiling_tflops", "fraction", "program_lines", "temp_bytes")
    assert all(result[key] > 0 for key in positive)
    assert all(seconds > 0 for seconds in result["compile_seconds"].values())


def test_table(result):
    text = format_bench(result)
    assert "2 x 48 x 64 px: 48 image + 12 text tokens" in text
    assert f"{result['fraction']:.1%}" in text
    assert f"{result['parameters']:,}" in text
    assert max(map(len, text.splitlines())) <= 120


def test_random_weights():
    wanted = abstract("transformer", CONFIG, np.dtype(jnp.bfloat16))
    model = random_model(CONFIG, jnp.bfloat16)
    assert jax.tree_util.tree_structure(model) == jax.tree_util.tree_structure(wanted)
    pairs = zip(jax.tree.leaves(model), jax.tree.leaves(wanted), strict=True)
    assert all((a.shape, a.dtype) == (b.shape, b.dtype) for a, b in pairs)
    kernels = [
        np.asarray(x.kernel[...], np.float32) for x in (model.double_blocks.img.qkv.q, model.single_blocks.mlp_in)
    ]
    for w in kernels:
        # Of 2e4 numbers and more: means within 5 standard errors, no pattern along any axis or between blocks.
        assert abs(w.mean()) < 5 * 0.02 / w.size**0.5
        assert w.std() == pytest.approx(0.02, rel=0.02)
        for axis in range(3):
            a, b = w.take(range(1, w.shape[axis]), axis).ravel(), w.take(range(w.shape[axis] - 1), axis).ravel()
            assert abs(np.corrcoef(a, b)[0, 1]) < 5 / a.size**0.5
    assert not np.array_equal(model.double_blocks.img.qkv.q.kernel[...], model.double_blocks.txt.qkv.q.kernel[...])
    np.testing.assert_array_equal(model.single_blocks.qkv.query_norm.scale[...], 1)
    assert model.img_in.bias is not None
    np.testing.assert_array_equal(model.img_in.bias[...], 0)


def test_full_size_needs_no_memory_beside_the_weights():
    """FLUX.1-dev's 11.9 B weights are made in place: compiled here, not run."""
    make = jax.jit(lambda: _random_tree(flux_dev().transformer, np.dtype(jnp.bfloat16)))
    memory = make.lower().compile().memory_analysis()
    assert memory is not None
    assert memory.output_size_in_bytes == pytest.approx(2 * 11_901_408_320, rel=1e-3)
    assert memory.temp_size_in_bytes < 2**20


def test_ceiling_is_a_rate():
    small = matmul_ceiling(jnp.float32, size=128, repeats=2)
    assert 1e-4 < small < 1e3  # TFLOP/s


@pytest.mark.parametrize(("height", "width", "message"), [(64, 50, "the nearest valid size is 48 x 64"),
                                                          (3, 8, "the nearest valid size is 8 x 8")])  # fmt: skip
def test_bad_size(model, height, width, message):
    with pytest.raises(JaxpaError, match=message):
        bench(model, Workload(height, width, 4), vae_downscale=4)


def test_nothing_to_run(model):
    with pytest.raises(JaxpaError, match="steps must be a whole number, 1 or more"):
        Workload(8, 8, 4, steps=0)
