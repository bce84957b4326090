"""Full-size networks without allocation: the tensors and shapes of the reference's own classes, in every layout."""

import json
import math
import struct
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from types import MappingProxyType
from typing import Any

import pytest
from small_checkpoint import make_tokenizers

from jaxpa.backbones.flux import FLUX
from jaxpa.backbones.variants import VARIANTS
from jaxpa.checkpoint.keys import COMPONENTS, canonical, leaves
from jaxpa.checkpoint.report import format_info, info
from jaxpa.checkpoint.single import infer_autoencoder
from jaxpa.checkpoint.source import resolve
from jaxpa.config import AutoencoderConfig, Rounding, flux_dev, flux_schnell
from jaxpa.devices.cost import weight_bytes

VAE = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 16,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}


def reference(name: str, guidance: bool = True, **sizes: int) -> Any:
    """The class that FLUX.1's folders name, at full size, without memory."""
    import torch
    from diffusers import AutoencoderKL, FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    with torch.device("meta"):
        if name == "transformer":
            return FluxTransformer2DModel(guidance_embeds=guidance, **sizes)
        if name == "vae":
            return AutoencoderKL(**VAE)
        if name == "text_encoder":
            return CLIPTextModel(CLIPTextConfig(vocab_size=49408, hidden_size=768, intermediate_size=3072,
                                                num_hidden_layers=12, num_attention_heads=12))  # fmt: skip
        return T5EncoderModel(T5Config(vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=24,
                                       num_heads=64, feed_forward_proj="gated-gelu"))  # fmt: skip


def shapes(name: str, config, layout) -> dict[str, tuple[int, ...]]:
    return {key: all_[0] for leaf in leaves(name, config, layout) for key, all_ in leaf.expected().items()}


def torch_shapes(name: str, state: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(state[actual].shape) for key, actual in canonical(name, list(state)).items()}


@pytest.mark.parametrize(("name", "guidance"), [("transformer", True), ("transformer", False), ("vae", True),
                                                ("text_encoder", True), ("text_encoder_2", True)])  # fmt: skip
@pytest.mark.usefixtures("torch")
def test_same_tensors_as_the_reference(name, guidance):
    config = getattr(flux_dev() if guidance else flux_schnell(), name)
    model = reference(name, guidance)
    assert shapes(name, config, "diffusers") == torch_shapes(name, model.state_dict())
    parameters = sum(leaf.size for leaf in leaves(name, config, "diffusers"))
    assert parameters == sum(p.numel() for p in model.parameters())
    if name == "transformer" and guidance:
        assert parameters == 11_901_408_320


def test_original_transformer_names(torch):
    """diffusers' own converter takes every original name that our table gives, and finds all that it needs."""
    from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers

    config = flux_dev().transformer
    names = shapes("transformer", config, "bfl")
    state = {key: torch.empty(shape, device="meta") for key, shape in names.items()}
    converted = convert_flux_transformer_checkpoint_to_diffusers(state)
    assert not state  # the converter takes what it uses
    assert {k: tuple(v.shape) for k, v in converted.items()} == shapes("transformer", config, "diffusers")
    assert FLUX.infer(names, None) == config
    assert FLUX.infer(shapes("transformer", flux_schnell().transformer, "bfl"), None).guidance_embeds is False


SISTERS = {  # a single file's name -> how its network differs from dev's, and which variant it is
    "flux1-krea-dev": ({}, "text"),
    "flux1-lite-8b": ({"num_layers": 8}, "text"),
    "flux-mini": ({"num_layers": 5, "num_single_layers": 10}, "text"),
    "flux1-kontext-dev": ({}, "kontext"),
    "flux1-fill-dev": ({"in_channels": 384, "out_channels": 64}, "fill"),
    "flux1-canny-dev": ({"in_channels": 128, "out_channels": 64}, "canny"),
    "flux1-depth-dev": ({"in_channels": 128, "out_channels": 64}, "depth"),
}


@pytest.mark.parametrize("name", SISTERS)
@pytest.mark.usefixtures("torch")
def test_sister_models(name, tmp_path):
    """The reference's tensors at full size, and the same network from a single file's header."""
    sizes, variant = SISTERS[name]
    config = replace(flux_dev().transformer, **sizes)
    assert shapes("transformer", config, "diffusers") == torch_shapes(
        "transformer", reference("transformer", **sizes).state_dict()
    )
    file = tmp_path / f"{name}.safetensors"
    sparse(file, shapes("transformer", config, "bfl"))
    content = info(file)
    assert content["loads"], format_info(content)
    assert content["components"]["transformer"]["config"] == asdict(config)
    assert content["variant"] == variant
    said = VARIANTS[variant].title + ", "
    assert (said in format_info(content)) == (variant != "text")


def test_original_autoencoder_names(torch, goldens):
    """A small original file has exactly the names that its configuration gives; diffusers converts large ones."""
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    small = {key: tensor.shape for key, tensor in goldens.load("bfl/ae-tiny.safetensors").items()}
    hint = goldens.json("flux-dev-tiny/vae/config.json")
    assert shapes("vae", infer_autoencoder(small, hint), "bfl").keys() == small.keys()
    config = AutoencoderConfig()
    names = shapes("vae", config, "bfl")
    # With the original's 1x1 convolutions in the attention:
    pointwise = [key for key, shape in names.items() if ".attn_1." in key and len(shape) == 2]
    stored = names | {key: (*names[key], 1, 1) for key in pointwise}
    converted = convert_ldm_vae_checkpoint({k: torch.empty(s, device="meta") for k, s in stored.items()}, VAE)
    assert {k: tuple(v.shape) for k, v in converted.items()} == shapes("vae", config, "diffusers")
    assert infer_autoencoder(stored, None) == config
    assert all(stored[key] in all_ for leaf in leaves("vae", config, "bfl") for key, all_ in leaf.expected().items())


def sparse(path, names: dict[str, tuple[int, ...]], types: Mapping[str, str] = MappingProxyType({})) -> None:
    """A safetensors file with a true header, and a hole where the numbers would be; types: not BF16."""
    header, start = {}, 0
    for key, shape in names.items():
        dtype = types.get(key, "BF16")
        end = start + {"BF16": 2, "F32": 4, "F8_E4M3": 1}[dtype] * math.prod(shape)
        header[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
        start = end
    raw = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        stream.write(len(raw).to_bytes(8, "little") + raw)
        stream.truncate(8 + len(raw) + start)


def test_info_on_full_size(tmp_path, goldens):
    """A whole FLUX.1-dev, described from its headers in about a second."""
    tiny = goldens.path / "flux-dev-tiny"
    for name in COMPONENTS:
        sparse(tmp_path / name / "model.safetensors", shapes(name, getattr(flux_dev(), name), "diffusers"))
        content = json.loads((tiny / name / "config.json").read_text())
        kept = {key: content[key] for key in ("_class_name", "architectures") if key in content}
        (tmp_path / name / "config.json").write_text(json.dumps(kept))  # all the rest at FLUX.1's defaults
    make_tokenizers(tmp_path, flux_dev(), padding=28)
    (tmp_path / "scheduler").symlink_to(tiny / "scheduler")
    start = time.perf_counter()
    content = info(tmp_path)
    assert time.perf_counter() - start < 5  # about 1 alone; the machine is shared
    assert content["loads"], format_info(content)
    assert content["components"]["transformer"]["parameters"] == 11_901_408_320
    assert content["bytes"] == 2 * content["parameters"] > 33e9
    assert "11,901,408,320" in format_info(content)


@pytest.mark.parametrize("name", ["dev", "schnell"])
def test_a_full_size_file_of_fp8(tmp_path, name):
    """All in one, with scales, as the hub has it: what stays in eight bits, and the bytes in memory."""
    config = flux_dev() if name == "dev" else flux_schnell()
    where = {"transformer": ("model.diffusion_model.", "bfl"), "vae": ("vae.", "bfl"),
             "text_encoder": ("text_encoders.clip_l.transformer.text_model.", "diffusers"),
             "text_encoder_2": ("text_encoders.t5xxl.transformer.", "diffusers")}  # fmt: skip
    names, types = {}, {}
    for part, (prefix, layout) in where.items():
        for key, shape in shapes(part, getattr(config, part), layout).items():
            names[prefix + key] = shape
            if part in ("transformer", "text_encoder_2") and len(shape) == 2 and "bias" not in key:
                types[prefix + key] = "F8_E4M3"
                if "shared" not in key:
                    scale = f"{prefix}{key.removesuffix('weight')}scale_weight"
                    names[scale], types[scale] = (1,), "F32"
    names["model.diffusion_model.scaled_fp8"] = (0,)
    path = tmp_path / f"flux1-{name}-fp8.safetensors"
    sparse(path, names, types=types)
    content = info(path)
    assert content["loads"], format_info(content)
    assert content["absent"] == ["tokenizer", "tokenizer_2"]
    found = resolve(path)
    assert replace(found.config, scheduler=config.scheduler) == config
    assert found.rounded(None) == Rounding("fp8", "fp8")
    memory = {part: each["memory_bytes"] for part, each in content["components"].items()}
    assert memory == weight_bytes(config, 2, Rounding("fp8", "fp8"))
    double, single = config.transformer.num_layers, config.transformer.num_single_layers
    becomes = content["components"]["transformer"]["becomes"]
    assert becomes["kept"] == 8 * double + 2 * single
    assert content["components"]["text_encoder_2"]["becomes"] == {"kept": 24 * 7, "widened": 1}


@pytest.mark.parametrize("name", ["dev", "schnell"])
def test_a_full_size_gguf(tmp_path, name):
    """Blocks in Q4_K, the layers around them in F16, vectors in F32, as the hub has it: known by its shapes."""
    config = (flux_dev() if name == "dev" else flux_schnell()).transformer
    kinds = {"F32": (0, 1, 4), "F16": (1, 1, 2), "Q4_K": (12, 256, 144)}  # number, weights of a block, its bytes
    text = lambda said: struct.pack("<Q", len(said)) + said.encode()  # noqa: E731
    tensors, at = b"", 0
    names = shapes("transformer", config, "bfl")
    for key, shape in names.items():
        in_blocks = key.startswith(("double_blocks", "single_blocks"))
        number, weights, size = kinds["F32" if len(shape) == 1 else "Q4_K" if in_blocks else "F16"]
        tensors += text(key) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], number, at)
        at += -(-(math.prod(shape) // weights * size) // 32) * 32
    start = b"GGUF" + struct.pack("<IQQ", 3, len(names), 1) + text("general.architecture") + struct.pack("<I", 8)
    header = start + text("flux") + tensors
    path = tmp_path / f"flux1-{name}-Q4_K.gguf"
    with path.open("wb") as file:
        file.write(header)
        file.truncate(-(-len(header) // 32) * 32 + at)
    content = info(path)
    assert content["loads"], format_info(content)
    found = resolve(path)
    assert found.config.transformer == config
    assert found.rounded(None) == Rounding("int8")
    part = content["components"]["transformer"]
    assert part["memory_bytes"] == weight_bytes(found.config, 2, Rounding("int8"))["transformer"]
    assert set(part["dtypes"]) == {"F32", "F16", "Q4_K"}


def test_info_on_a_full_size_single_file(tmp_path):
    names = {f"model.diffusion_model.{k}": s for k, s in shapes("transformer", flux_dev().transformer, "bfl").items()}
    del names["model.diffusion_model.txt_in.bias"]
    sparse(tmp_path / "flux1-dev.safetensors", names)
    content = info(tmp_path / "flux1-dev.safetensors")
    part = content["components"]["transformer"]
    assert part["missing"] == ["model.diffusion_model.txt_in.bias"]
    assert part["parameters"] == 11_901_408_320
    assert not content["loads"]
    assert content["absent"] == ["vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"]
