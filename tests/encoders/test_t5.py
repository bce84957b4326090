"""The T5 encoder against transformers', and its full size against the reference's tensors."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from flax import nnx
from text_reference import fill_t5, state_dict

from jaxpa.config import T5Config
from jaxpa.encoders.t5 import T5Encoder, relative_buckets

needs_torch = pytest.mark.usefixtures("torch")
# Inner width != model width; an odd number of layers; buckets and distances that are not the defaults.
SIZES = [
    {"vocab_size": 50, "d_model": 24, "d_kv": 8, "d_ff": 40, "num_layers": 3, "num_heads": 5},
    {
        "vocab_size": 33,
        "d_model": 32,
        "d_kv": 12,
        "d_ff": 20,
        "num_layers": 1,
        "num_heads": 2,
        "relative_attention_num_buckets": 20,
        "relative_attention_max_distance": 37,
        "layer_norm_epsilon": 1e-3,
    },
]


def pair(sizes: dict[str, float]) -> tuple[Any, T5Encoder]:
    """transformers' encoder and ours, with the same random weights."""
    import torch

    torch.manual_seed(0)
    model = transformers.T5EncoderModel(transformers.T5Config(**sizes, feed_forward_proj="gated-gelu")).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "layer_norm" in name:  # ones at first, which would hide a norm without scale
                value += 0.3 * torch.randn_like(value)
            if "relative_attention_bias" in name:
                value += torch.randn_like(value)
    config = T5Config.from_json(model.config.to_dict())
    return model, fill_t5(config, state_dict(model))


def random_ids(sizes: dict[str, float], batch: int, length: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, sizes["vocab_size"], (batch, length)).astype(np.int32)


def run(model: T5Encoder, *inputs: np.ndarray) -> np.ndarray:
    return np.asarray(jax.jit(lambda m, *x: m(*x))(model, *inputs))


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("length", [1, 7, 160])  # 160: past the largest distance
def test_equals_transformers(torch: Any, sizes: dict[str, float], length: int) -> None:
    theirs, ours = pair(sizes)
    ids = random_ids(sizes, 2, length)
    with torch.no_grad():
        expected = theirs(torch.tensor(ids).long()).last_hidden_state.numpy()
    # Outputs reach 7; each side is within 5e-6 of float64.
    np.testing.assert_allclose(run(ours, ids), expected, atol=1e-5, rtol=0)


def test_mask_equals_transformers(torch: Any) -> None:
    theirs, ours = pair(SIZES[0])
    ids = random_ids(SIZES[0], 3, 11)
    mask = (np.arange(11) < np.array([[11], [4], [1]])).astype(np.int32)
    with torch.no_grad():
        expected = theirs(torch.tensor(ids).long(), torch.tensor(mask)).last_hidden_state.numpy()
    np.testing.assert_allclose(run(ours, ids, mask), expected, atol=1e-5, rtol=0)
    # Without a mask padding is read, so that it changes the first token.
    assert np.abs(run(ours, ids) - expected)[2, 0].max() > 1e-2


@pytest.mark.parametrize(("buckets", "distance"), [(32, 128), (20, 37), (64, 256), (8, 16)])
def test_buckets_equal_transformers_at_every_distance(torch: Any, buckets: int, distance: int) -> None:
    from transformers.models.t5.modeling_t5 import T5Attention

    offset = torch.arange(-600, 601)
    bucket = T5Attention._relative_position_bucket
    expected = bucket(offset, bidirectional=True, num_buckets=buckets, max_distance=distance)
    ours = relative_buckets(601, buckets, distance)
    np.testing.assert_array_equal(np.concatenate([ours[600, :600], ours[0]]), expected.numpy())


@needs_torch
def test_bfloat16_stays_bfloat16_and_close() -> None:
    theirs, _ = pair(SIZES[0])
    config = T5Config.from_json(theirs.config.to_dict())
    full = fill_t5(config, state_dict(theirs))
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), full)
    ids = random_ids(SIZES[0], 2, 9)
    out = jax.jit(lambda m, x: m(x))(half, ids)
    assert out.dtype == jnp.bfloat16
    # 8 bits of mantissa over three blocks, outputs of order 3.
    np.testing.assert_allclose(np.asarray(out, np.float32), run(full, ids), atol=0.15, rtol=0)


def test_initial_outputs_are_of_order_one() -> None:
    config = T5Config(vocab_size=64, d_model=48, d_kv=64, d_ff=96, num_layers=4, num_heads=2)
    model = T5Encoder(config, rngs=nnx.Rngs(0))
    q, k = (np.asarray(part.kernel[...]) for part in (model.blocks.attention.q, model.blocks.attention.k))
    # The logits are not scaled: q starts smaller by sqrt(d_kv).
    np.testing.assert_allclose(k.std() / q.std(), 8.0, rtol=0.05)
    assert 0.5 < run(model, np.arange(64, dtype=np.int32)[None]).std() < 2.0


def test_id_outside_the_vocabulary_is_not_silent() -> None:
    config = T5Config(**SIZES[0])
    ours = T5Encoder(config, rngs=nnx.Rngs(0))
    assert np.isfinite(run(ours, np.array([[1, 49]], np.int32))).all()
    assert np.isnan(run(ours, np.array([[1, 50]], np.int32))).all()


def test_full_size_has_the_tensors_of_the_reference(torch: Any) -> None:
    config = T5Config()
    with torch.device("meta"):
        theirs = transformers.T5EncoderModel(
            transformers.T5Config(
                vocab_size=32128,
                d_model=4096,
                d_kv=64,
                d_ff=10240,
                num_layers=24,
                num_heads=64,
                feed_forward_proj="gated-gelu",
            )
        )
    names = {name: tuple(value.shape) for name, value in theirs.named_parameters()}  # tied ones once
    abstract = jax.eval_shape(lambda: T5Encoder(config, rngs=nnx.Rngs(0), dtype=jnp.bfloat16))
    ours = {".".join(map(str, path)): p for path, p in nnx.to_flat_state(nnx.state(abstract))}
    layer, attention = "encoder.block.{}.layer.", "encoder.block.{}.layer.0.SelfAttention."
    sources = {
        "token_embedding": ["shared"],
        "relative_bias": [attention.format(0) + "relative_attention_bias"],
        "blocks.attention_norm.scale": [layer + "0.layer_norm"],
        **{f"blocks.attention.{part}.kernel": [attention + part] for part in "qkvo"},
        "blocks.mlp_norm.scale": [layer + "1.layer_norm"],
        **{f"blocks.mlp.{part}.kernel": [layer + "1.DenseReluDense." + part] for part in ("wi_0", "wi_1", "wo")},
        "final_norm.scale": ["encoder.final_layer_norm"],
    }
    assert set(ours) == set(sources)
    for path, parts in sources.items():
        stacked = path.startswith("blocks.")
        for i in range(config.num_layers if stacked else 1):
            shapes = [names.pop(part.format(i) + ".weight") for part in parts]
            expected = (sum(shape[0] for shape in shapes), *shapes[0][1:])
            if path.endswith("kernel"):
                expected = expected[::-1]
            assert ours[path].shape == ((config.num_layers, *expected) if stacked else expected), path
            assert ours[path].dtype == jnp.bfloat16
    assert not names  # nothing left over
    out = jax.eval_shape(lambda m, x: m(x), abstract, jax.ShapeDtypeStruct((2, 512), jnp.int32))
    assert (out.shape, out.dtype) == ((2, 512, 4096), jnp.bfloat16)
