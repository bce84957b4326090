"""Checkpoints of the goldens: sharded, bfloat16, and the original single files, each loaded bit for bit."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file
from small_checkpoint import same

from jaxpa.checkpoint.load import load_component, load_parts

FOLDERS = ("flux-dev-tiny", "flux-schnell-tiny")


def check(ours, theirs: list[Any], transpose=None):
    """Bits of a parameter of ours against tensors of the reference, side by side along the output axis."""
    import torch

    want = torch.cat(theirs, 0)
    want = want.permute(*transpose) if transpose else want
    np.testing.assert_array_equal(np.asarray(ours[...], np.float32), want.float().detach().numpy())


def dtypes(folder):
    import torch

    schnell = "schnell" in folder.name
    return (torch.bfloat16, jnp.bfloat16) if schnell else (torch.float32, jnp.float32)


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.usefixtures("torch")
def test_transformer(goldens, folder):
    from diffusers import FluxTransformer2DModel

    kind, dtype = dtypes(goldens.path / folder)
    path = goldens.path / folder / "transformer"
    theirs = FluxTransformer2DModel.from_pretrained(path, torch_dtype=kind)
    ours = load_component(path, dtype=dtype)
    assert ours.dtype == dtype
    for i, block in enumerate(theirs.transformer_blocks):
        a = block.attn
        check(ours.double_blocks.img.qkv.k.kernel[i], [a.to_k.weight], (1, 0))
        check(ours.double_blocks.txt.qkv.v.bias[i], [a.add_v_proj.bias])
        check(ours.double_blocks.txt.mlp_out.kernel[i], [block.ff_context.net[2].weight], (1, 0))
        check(ours.double_blocks.img.qkv.key_norm.scale[i], [a.norm_k.weight])
    for i, block in enumerate(theirs.single_transformer_blocks):
        check(ours.single_blocks.qkv.q.kernel[i], [block.attn.to_q.weight], (1, 0))
        check(ours.single_blocks.mlp_in.kernel[i], [block.proj_mlp.weight], (1, 0))
        both = jnp.concatenate([ours.single_blocks.proj.kernel[i], ours.single_blocks.mlp_out.kernel[i]])
        check(both, [block.proj_out.weight], (1, 0))
        check(ours.single_blocks.mlp_out.bias[i], [block.proj_out.bias])
    scale, shift = theirs.norm_out.linear.weight.chunk(2)
    check(ours.final_mod.kernel, [shift, scale], (1, 0))


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.usefixtures("torch")
def test_text_encoders_and_autoencoder(goldens, folder):
    from diffusers import AutoencoderKL
    from transformers import CLIPTextModel, T5EncoderModel

    path = goldens.path / folder
    kind, dtype = dtypes(path)
    ours = load_parts(path, dtype=dtype, parts=("vae", "text_encoder", "text_encoder_2"))
    assert ours.transformer is None
    t5 = T5EncoderModel.from_pretrained(path / "text_encoder_2", dtype=kind)
    check(ours.text_encoder_2.token_embedding, [t5.shared.weight])
    for i, block in enumerate(t5.encoder.block):
        mlp = block.layer[1].DenseReluDense
        check(ours.text_encoder_2.blocks.mlp.wi_1.kernel[i], [mlp.wi_1.weight], (1, 0))
    clip = CLIPTextModel.from_pretrained(path / "text_encoder", dtype=kind)
    last = [value for key, value in clip.state_dict().items() if key.endswith("final_layer_norm.weight")]
    check(ours.text_encoder.final_norm.scale, last)
    vae = AutoencoderKL.from_pretrained(path / "vae", torch_dtype=kind)
    check(ours.vae.encoder.conv_in.kernel, [vae.encoder.conv_in.weight], (2, 3, 1, 0))
    attention = vae.decoder.mid_block.attentions[0]
    check(ours.vae.decoder.mid_block.attentions[0].to_q.kernel, [attention.to_q.weight], (1, 0))


def test_original_files_equal_the_folder(goldens):
    """`bfl/` holds dev-tiny's transformer and autoencoder under their original names."""
    folder = load_parts(goldens.path / "flux-dev-tiny")
    files = load_parts(goldens.path / "bfl", goldens.path / "flux-dev-tiny")
    assert files.config == folder.config
    for name in ("transformer", "vae", "text_encoder", "text_encoder_2"):
        assert same(getattr(files, name), getattr(folder, name)), name


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "transformer."])
def test_prefix(goldens, tmp_path, prefix):
    folder = goldens.path / "flux-dev-tiny"
    tensors = goldens.load("bfl/flux1-dev-tiny.safetensors")
    save_file({prefix + key: value for key, value in tensors.items()}, tmp_path / "flux.safetensors")
    loaded = load_parts(tmp_path / "flux.safetensors", folder, parts=("transformer",))
    assert same(loaded.transformer, load_component(folder / "transformer"))


def test_both_networks_in_one_file(goldens, tmp_path):
    folder = goldens.path / "flux-dev-tiny"
    flux = {f"model.diffusion_model.{k}": v for k, v in goldens.load("bfl/flux1-dev-tiny.safetensors").items()}
    vae = {f"vae.{k}": v for k, v in goldens.load("bfl/ae-tiny.safetensors").items()}
    save_file(flux | vae, tmp_path / "all.safetensors")
    loaded = load_parts(tmp_path / "all.safetensors", folder, parts=("transformer", "vae"))
    assert same(loaded.transformer, load_component(folder / "transformer"))
    assert same(loaded.vae, load_component(folder / "vae"))
