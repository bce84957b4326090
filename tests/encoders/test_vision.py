"""Vision transformers and Redux's layers against transformers' and diffusers', through the files that these write."""

from typing import Any

import jax
import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file, save_file

from jaxpa.checkpoint.keys import leaves
from jaxpa.checkpoint.load import load_component
from jaxpa.config import ReduxConfig, SiglipVisionConfig
from jaxpa.errors import CheckpointError

SIZES = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 30,
         "patch_size": 8}  # fmt: skip
PIXELS = np.random.default_rng(0).uniform(-1, 1, (2, 30, 30, 3)).astype(np.float32)
run = jax.jit(lambda network, x: network(x))


def randomised(model: Any) -> Any:
    import torch

    torch.manual_seed(0)
    with torch.no_grad():
        for value in model.parameters():  # small, zero or one at first: tell every weight and bias apart
            value += 0.2 * torch.randn_like(value)
    return model.eval()


@pytest.fixture(scope="module")
def siglip(torch, tmp_path_factory):
    """transformers' SigLIP, and the folder that it writes."""
    model = randomised(transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**SIZES)))
    folder = tmp_path_factory.mktemp("siglip") / "image_encoder"
    model.save_pretrained(folder)
    return model, folder


def test_siglip_equals_transformers(torch, siglip):
    """Thirty pixels hold three patches of eight; the rest of a picture is not read."""
    model, folder = siglip
    with torch.no_grad():
        want = model(torch.tensor(PIXELS).permute(0, 3, 1, 2)).last_hidden_state.numpy()
    got = run(load_component(folder), PIXELS)
    assert got.pooled is None
    assert got.states.shape == (2, 9, 24)
    np.testing.assert_allclose(got.states, want, atol=1e-5)  # of values up to 3; float32 on both sides
    with pytest.raises(ValueError, match=r"reads \(B, 30, 30, 3\)"):
        load_component(folder)(PIXELS[:, 1:])


def test_older_names_and_missing_ones(siglip, tmp_path):
    _, folder = siglip
    tensors = load_file(folder / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    save_file({f"vision_model.{key}": value for key, value in tensors.items()}, tmp_path / "model.safetensors")
    for old, new in zip(*(jax.tree.leaves(load_component(each)) for each in (tmp_path, folder)), strict=True):
        np.testing.assert_array_equal(old, new)
    tensors.pop("post_layernorm.bias")
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"post_layernorm\.bias' \[24\] is missing"):
        load_component(tmp_path)


def test_clip_equals_transformers(torch, tmp_path):
    config = transformers.CLIPVisionConfig(**SIZES, projection_dim=12)
    model = randomised(transformers.CLIPVisionModelWithProjection(config))
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        want = model(torch.tensor(PIXELS).permute(0, 3, 1, 2))
    got = run(load_component(tmp_path), PIXELS)
    np.testing.assert_allclose(got.states, want.last_hidden_state.numpy(), atol=1e-5)
    np.testing.assert_allclose(got.pooled, want.image_embeds.numpy(), atol=1e-5)


def test_redux_equals_diffusers(torch, tmp_path):
    from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder

    model = randomised(ReduxImageEncoder(24, 12))
    model.save_pretrained(tmp_path)
    states = np.random.default_rng(1).standard_normal((2, 9, 24)).astype(np.float32)
    with torch.no_grad():
        want = model(torch.tensor(states)).image_embeds.numpy()
    np.testing.assert_allclose(run(load_component(tmp_path), states), want, atol=1e-5)


def test_full_size(torch):
    """SigLIP so400m at 384 pixels and Redux: the tensors that the reference's classes have, its pooling head aside."""
    from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder

    sizes = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
             "image_size": 384, "patch_size": 14}  # fmt: skip
    with torch.device("meta"):
        theirs = {
            "image_encoder": transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**sizes)),
            "image_embedder": ReduxImageEncoder(),
        }
    configs: dict[str, Any] = {"image_encoder": SiglipVisionConfig(**sizes), "image_embedder": ReduxConfig()}
    for name, config in configs.items():
        ours = {k: s[0] for leaf in leaves(name, config, "diffusers") for k, s in leaf.expected().items()}
        state = theirs[name].state_dict().items()
        assert ours == {key: tuple(value.shape) for key, value in state if not key.startswith("head.")}
    assert configs["image_encoder"].tokens == 729
