"""The CLIP text encoder against transformers', and its full size against the reference's tensors."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from flax import nnx
from text_reference import fill_clip, state_dict

from jaxpa.config import CLIPConfig
from jaxpa.encoders.clip import CLIPTextEncoder, activation

needs_torch = pytest.mark.usefixtures("torch")
SIZES = {
    "vocab_size": 61,
    "hidden_size": 36,
    "intermediate_size": 50,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "max_position_embeddings": 19,
    "pad_token_id": 0,
    "bos_token_id": 1,
}


def pair(**options: object) -> tuple[Any, CLIPTextEncoder]:
    """transformers' encoder and ours, with the same random weights."""
    import torch

    torch.manual_seed(0)
    model = transformers.CLIPTextModel(transformers.CLIPTextConfig(**SIZES, **options)).eval()
    with torch.no_grad():
        for value in model.parameters():  # small, zero or one at first: tell every weight and bias apart
            value += 0.2 * torch.randn_like(value)
    config = CLIPConfig.from_json(model.config.to_dict())
    return model, fill_clip(config, state_dict(model))


def prompts(eos: int) -> np.ndarray:
    """End of text in the middle, repeated as padding, first, last."""
    ids = np.random.default_rng(1).integers(3, 55, (5, 19)).astype(np.int32)
    ids[0, 7] = ids[1, 4:] = ids[2, 0] = ids[3, -1] = ids[4, 3] = eos
    ids[4, 9] = 60  # the largest id, later: the two rules differ here
    return ids


def run(model: CLIPTextEncoder, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    states, pooled = jax.jit(lambda m, x: m(x))(model, ids)
    return np.asarray(states), np.asarray(pooled)


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
@pytest.mark.parametrize(("eos", "eos_token_id"), [(58, 2), (58, 58)])
def test_equals_transformers(torch: Any, act: str, eos: int, eos_token_id: int) -> None:
    theirs, ours = pair(hidden_act=act, eos_token_id=eos_token_id)
    ids = prompts(eos)
    with torch.no_grad():
        expected = theirs(torch.tensor(ids).long())
    states, pooled = run(ours, ids)
    # Outputs reach 5; each side is within 2.5e-6 of float64.
    np.testing.assert_allclose(states, expected.last_hidden_state.numpy(), atol=5e-6, rtol=0)
    np.testing.assert_allclose(pooled, expected.pooler_output.numpy(), atol=5e-6, rtol=0)
    np.testing.assert_array_equal(pooled[4], states[4, 9 if eos_token_id == 2 else 3])


def test_the_two_activations_differ() -> None:
    x = jnp.linspace(-3, 3, 7)
    assert np.abs(activation("gelu", x) - activation("quick_gelu", x)).max() > 1e-2
    with pytest.raises(ValueError, match="relu"):
        activation("relu", x)


def test_shorter_sequence_equals_transformers_and_is_causal(torch: Any) -> None:
    theirs, ours = pair(eos_token_id=2)
    ids = prompts(58)[:, :8]
    with torch.no_grad():
        expected = theirs(torch.tensor(ids).long()).last_hidden_state.numpy()
    states, _ = run(ours, ids)
    np.testing.assert_allclose(states, expected, atol=5e-6, rtol=0)
    other = ids.copy()
    other[:, 5:] = 3
    np.testing.assert_allclose(run(ours, other)[0][:, :5], states[:, :5], atol=1e-6, rtol=0)


def test_too_long_is_an_error() -> None:
    config = CLIPConfig.from_json({**SIZES, "eos_token_id": 2})
    ours = CLIPTextEncoder(config, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="19 positions"):
        ours(jnp.zeros((1, 20), jnp.int32))


@needs_torch
def test_bfloat16_stays_bfloat16_and_close() -> None:
    _, full = pair(eos_token_id=2)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), full)
    states, pooled = jax.jit(lambda m, x: m(x))(half, prompts(58))
    assert states.dtype == pooled.dtype == jnp.bfloat16
    # 8 bits of mantissa over three blocks, outputs of order 3.
    np.testing.assert_allclose(np.asarray(states, np.float32), run(full, prompts(58))[0], atol=0.15, rtol=0)


def test_full_size_has_the_tensors_of_the_reference(torch: Any) -> None:
    config = CLIPConfig()
    with torch.device("meta"):
        theirs = transformers.CLIPTextModel(
            transformers.CLIPTextConfig(
                vocab_size=49408,
                hidden_size=768,
                intermediate_size=3072,
                num_hidden_layers=12,
                num_attention_heads=12,
                max_position_embeddings=77,
            )
        )
    names = {name.removeprefix("text_model."): tuple(p.shape) for name, p in theirs.named_parameters()}
    abstract = jax.eval_shape(lambda: CLIPTextEncoder(config, rngs=nnx.Rngs(0)))
    ours = {".".join(map(str, path)): p.shape for path, p in nnx.to_flat_state(nnx.state(abstract))}
    assert ours.pop("token_embedding") == names.pop("embeddings.token_embedding.weight")
    assert ours.pop("position_embedding") == names.pop("embeddings.position_embedding.weight")
    layer = "encoder.layers.{}."
    modules = {
        "blocks.attention_norm": [layer + "layer_norm1"],
        **{f"blocks.attention.{part}": [f"{layer}self_attn.{part}_proj"] for part in "qkv"},
        "blocks.attention.out": [layer + "self_attn.out_proj"],
        "blocks.mlp_norm": [layer + "layer_norm2"],
        "blocks.fc1": [layer + "mlp.fc1"],
        "blocks.fc2": [layer + "mlp.fc2"],
        "final_norm": ["final_layer_norm"],
    }
    for path, parts in modules.items():
        stacked = path.startswith("blocks.")
        for kind, theirs_kind in (("scale" if "norm" in path else "kernel", "weight"), ("bias", "bias")):
            shape = ours.pop(f"{path}.{kind}")
            for i in range(config.num_hidden_layers if stacked else 1):
                shapes = [names.pop(f"{part.format(i)}.{theirs_kind}") for part in parts]
                expected = (sum(s[0] for s in shapes), *shapes[0][1:])[::-1]
                assert shape == ((config.num_hidden_layers, *expected) if stacked else expected), path
    assert not names  # nothing left over on either side
    assert not ours
    out = jax.eval_shape(lambda m, x: m(x), abstract, jax.ShapeDtypeStruct((2, 77), jnp.int32))
    assert (out.last_hidden_state.shape, out.pooled.shape) == ((2, 77, 768), (2, 768))
