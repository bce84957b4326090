"""LoRAs against diffusers' own loading of the same tensors: forwards, and its converters at FLUX.1's full width."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_checkpoint import CONFIG, make
from small_loras import (
    bfl_ends,
    bfl_layers,
    changes,
    clip_layers,
    diffusers_layers,
    kohya,
    named,
    save,
    xlabs,
)

from jaxpa.adapters.lay import adapt, over
from jaxpa.adapters.spec import Lora
from jaxpa.checkpoint.load import load_parts
from jaxpa.checkpoint.source import resolve
from jaxpa.config import flux_dev
from jaxpa.tokens import grid_positions

H, W, M, ALPHA = 2, 3, 5, 2.0
C = CONFIG.transformer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make(tmp_path_factory.mktemp("small"))


def inputs():
    rng = np.random.default_rng(0)
    shapes = ((2, H * W, C.in_channels), (2, M, C.joint_attention_dim), (2, C.pooled_projection_dim))
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


TIMES, GUIDANCE = np.float32([0.3, 0.8]), np.float32([2.0, 4.0])
PEFT = {"transformer.r": 3, "transformer.lora_alpha": 5.0, "transformer.rank_pattern": {"proj_mlp": 2},
        "transformer.alpha_pattern": {"attn.to_q": 1.5, "transformer_blocks.1.ff.net.2": 4.0},
        "transformer.use_rslora": True, "transformer.target_modules": sorted(diffusers_layers())}  # fmt: skip


def cases():
    """Name -> (tensors, PEFT's configuration): what diffusers reads of each format in networks of any width.

    Its converter of kohya's files has the widths of FLUX.1's fused single blocks written into it, knows no other layers
    of the mixture than attention's, and lets the layers around the blocks fall.
    """
    theirs = changes(diffusers_layers(), (3, 1, 5), seed=3)
    layers = {name: size for name, size in bfl_layers().items() if "linear1" not in name}
    attention = changes({name: size for name, size in diffusers_layers().items() if ".attn." in name}, seed=7)
    uniform = {name: size for name, size in diffusers_layers().items() if "proj_mlp" not in name}
    narrow = {name: size for name, size in diffusers_layers().items() if "proj_mlp" in name}
    of_blocks = changes(layers, (3, 1, 6), seed=8)
    down_up = ("lora_down.weight", "lora_up.weight")
    return {
        "plain": (named(theirs, "transformer."), None),
        "alpha": (named(theirs, "transformer.", alpha=ALPHA), None),
        "metadata": (named(changes(uniform, (3,), seed=9) + changes(narrow, (2,), seed=10), "transformer."), PEFT),
        "kohya": (kohya(of_blocks, "lora_unet_", ALPHA), None),
        "kohya-no-alpha": (kohya(of_blocks, "lora_unet_"), None),
        "comfy": (named(of_blocks, "diffusion_model.", down_up, ALPHA), None),
        "mixture": (kohya(attention, "lora_transformer_", ALPHA), None),
        "xlabs": (xlabs()[1], None),
    }


CASES = cases()


@pytest.fixture(scope="module")
def forward():
    def call(model, img, txt, vec):
        return model(img, txt, vec, jnp.asarray(TIMES), jnp.asarray(GUIDANCE), grid_positions(H, W))

    return jax.jit(call)


def theirs(torch, folder, file):
    """diffusers' velocity of the small network under a LoRA."""
    from diffusers import FluxTransformer2DModel
    from diffusers.loaders import FluxLoraLoaderMixin

    model = FluxTransformer2DModel.from_pretrained(folder / "transformer")
    state, alphas, metadata = FluxLoraLoaderMixin.lora_state_dict(
        str(file), return_alphas=True, return_lora_metadata=True
    )
    FluxLoraLoaderMixin.load_lora_into_transformer(state, alphas, model, metadata=metadata)
    img, txt, vec = map(torch.from_numpy, inputs())
    with torch.no_grad():
        return model(
            img, txt, vec, torch.from_numpy(TIMES), torch.from_numpy(np.array(grid_positions(H, W))),
            torch.zeros(M, 3), torch.from_numpy(GUIDANCE), return_dict=False,
        )[0].numpy()  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_velocities(name, torch, folder, forward, tmp_path):
    tensors, peft = CASES[name]
    metadata = None if peft is None else {"lora_adapter_metadata": json.dumps(peft)}
    file = save(tensors, tmp_path / "lora.safetensors", metadata)
    want, plain = theirs(torch, folder, file), load_parts(folder, dtype=np.float32, parts=("transformer",))
    for keep in (True, False):
        found = adapt(resolve(folder), [Lora(str(file))], keep)
        model = load_parts(found, dtype=np.float32, parts=("transformer",)).transformer
        got = forward(model, *inputs())
        # Sinusoids of 1000 t differ by rounding (tests/parity), and what the low-rank products add is of their order.
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-3 * np.abs(want).max())
    assert np.abs(want - forward(plain.transformer, *inputs())).max() > 0.05 * np.abs(want).max()


def test_clip(torch, folder, tmp_path):
    """The text encoder's part of a file, in its pooled output and its last states."""
    from diffusers.loaders import FluxLoraLoaderMixin
    from transformers import CLIPTextModel

    tensors = kohya(changes(clip_layers(), (2,), seed=5), "lora_te1_text_model_", ALPHA)
    one = changes({"double_blocks.0.img_attn.proj": (C.width, C.width)})
    file = save(tensors | kohya(one, "lora_unet_", ALPHA), tmp_path / "lora.safetensors")
    model = CLIPTextModel.from_pretrained(folder / "text_encoder")
    state, alphas = FluxLoraLoaderMixin.lora_state_dict(str(file), return_alphas=True)
    FluxLoraLoaderMixin.load_lora_into_text_encoder(state, alphas, model, prefix="text_encoder")
    ids = np.array([[1, 5, 9, 3, 2, 7, 29]])
    with torch.no_grad():
        want = model(torch.from_numpy(ids)).last_hidden_state.numpy()
    ours, plain = (
        load_parts(each, dtype=np.float32, parts=("text_encoder",)).text_encoder(jnp.asarray(ids)).last_hidden_state
        for each in (adapt(resolve(folder), [Lora(str(file))], False), resolve(folder))
    )
    np.testing.assert_allclose(ours, want, atol=2e-5)
    assert np.abs(plain - want).max() > 1e-2


# Full size -----------------------------------------------------------------------------------------------------

DEV = flux_dev()


def probe(product, vector):
    """Of our parameters: what a low-rank change makes of one input vector."""
    return (vector @ product.down * product.strength) @ product.up


def of_torch(torch, converter, tensors):
    state = converter({key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in tensors.items()})
    return {key.removeprefix("transformer."): value.numpy() for key, value in state.items()}


def compare(laid, state, pairs):
    """Our factors against diffusers' matrices, by what they make of a vector; pairs: our path, block, their layer."""
    rng = np.random.default_rng(1)
    for path, block, layer in pairs:
        factors = laid._factors(laid.parts["transformer"][path], block)
        vector = rng.normal(size=factors.down.shape[0]).astype(np.float32)
        down, up = (state[f"{layer}.lora_{which}.weight"] for which in "AB")
        np.testing.assert_allclose(probe(factors, vector), up @ (down @ vector), rtol=1e-4, atol=1e-4)


def test_kohyas_fused_single_blocks(torch, tmp_path):
    from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers as convert

    layers = {name: size for name, size in bfl_layers((1, 1), 3072).items() if "mod" not in name}
    tensors = kohya(changes(layers, (2,), seed=11), "lora_unet_", ALPHA)
    laid = over(DEV, [Lora(str(save(tensors, tmp_path / "lora.safetensors")))], keep=True)
    single, double = "single_transformer_blocks.0.", "transformer_blocks.0."
    pairs = [(f"single_blocks.qkv.{x}.kernel", 0, f"{single}attn.to_{x}") for x in "qkv"]
    pairs += [("single_blocks.mlp_in.kernel", 0, f"{single}proj_mlp")]
    pairs += [(f"double_blocks.txt.qkv.{x}.kernel", 0, f"{double}attn.add_{x}_proj") for x in "qkv"]
    compare(laid, of_torch(torch, convert, tensors), pairs)


def control_lora():
    """What the original release's control LoRAs hold, by name and shape, with rank 2."""
    layers = bfl_layers((19, 38), 3072) | bfl_ends(3072, 128, 4096, 768, 64)
    made = changes(layers, (2,), seed=12)
    tensors = named(made, "")
    rng = np.random.default_rng(13)
    tensors |= {f"{name}.lora_B.bias": rng.normal(size=size[0]).astype(np.float32) for name, size in layers.items()}
    norms = [f"double_blocks.{i}.{stream}_attn.norm." for i in range(19) for stream in ("img", "txt")]
    norms += [f"single_blocks.{i}.norm." for i in range(38)]
    for norm in norms:
        tensors |= {f"{norm}{part}_norm.scale": rng.normal(size=128).astype(np.float32) for part in ("query", "key")}
    return tensors


def test_control_loras(torch, tmp_path):
    """All but the last modulation: diffusers turns the halves of its A too, where only those of B change place."""
    from diffusers.loaders.lora_conversion_utils import _convert_bfl_flux_control_lora_to_diffusers as convert

    tensors = control_lora()
    file = save(tensors, tmp_path / "control.safetensors")
    laid = over(DEV, [Lora(str(file))], keep=True)
    assert (laid.config.transformer.in_channels, laid.config.transformer.velocity_channels) == (128, 64)
    state = of_torch(torch, convert, tensors)
    pairs = [("img_in.kernel", 0, "x_embedder"), ("final_linear.kernel", 0, "proj_out"),
             ("time_in.out_layer.kernel", 0, "time_text_embed.timestep_embedder.linear_2")]  # fmt: skip
    for i in (0, 18):
        at = f"transformer_blocks.{i}."
        pairs += [(f"double_blocks.img.qkv.{x}.kernel", i, f"{at}attn.to_{x}") for x in "qkv"]
        pairs += [("double_blocks.txt.proj.kernel", i, f"{at}attn.to_add_out"),
                  ("double_blocks.txt.mod.kernel", i, f"{at}norm1_context.linear")]  # fmt: skip
    for i in (0, 37):
        at = f"single_transformer_blocks.{i}."
        pairs += [
            ("single_blocks.mlp_in.kernel", i, f"{at}proj_mlp"),
            ("single_blocks.qkv.v.kernel", i, f"{at}attn.to_v"),
        ]
    compare(laid, state, pairs)
    edits = over(DEV, [Lora(str(file))], keep=False).edits("transformer")
    zeros = np.zeros
    for path, block, layer in (("double_blocks.txt.qkv.k", 18, "transformer_blocks.18.attn.add_k_proj"),
                               ("single_blocks.mlp_in", 37, "single_transformer_blocks.37.proj_mlp"),
                               ("single_blocks.mlp_out", 5, "single_transformer_blocks.5.proj_out")):  # fmt: skip
        bias = state[f"{layer}.lora_B.bias"]
        np.testing.assert_array_equal(edits[f"{path}.bias"](block, zeros(bias.shape, np.float32)), bias)
    for path, block, layer in (("double_blocks.img", 3, "transformer_blocks.3.attn.norm_k"),
                               ("single_blocks", 37, "single_transformer_blocks.37.attn.norm_k")):  # fmt: skip
        scale = state[f"{layer}.weight"]
        np.testing.assert_array_equal(edits[f"{path}.qkv.key_norm.scale"](block, zeros(128, np.float32)), scale)
    last = "final_layer.adaLN_modulation.1.lora_"
    factors = laid._factors(laid.parts["transformer"]["final_mod.kernel"], 0)
    vector = np.random.default_rng(2).normal(size=3072).astype(np.float32)
    want = tensors[f"{last}B.weight"] @ (tensors[f"{last}A.weight"] @ vector)
    np.testing.assert_allclose(probe(factors, vector), want, rtol=1e-4, atol=1e-4)
    widened = edits["img_in.kernel"](0, zeros((64, 3072), np.float32))  # the control picture's channels come last
    want = (tensors["img_in.lora_B.weight"] @ tensors["img_in.lora_A.weight"]).T
    np.testing.assert_allclose(widened, want, atol=1e-5)
