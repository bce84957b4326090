"""Single files of eight bits: what torch reads in them, kept, widened, rounded, converted; and every fault."""

import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from eight_bit_files import FORMS, PREFIX, File, eight_bits, explicit, quantised, release, save
from safetensors.numpy import save_file
from small_checkpoint import CONFIG, make, same

from jaxpa.adapters.lay import adapt
from jaxpa.adapters.spec import Lora
from jaxpa.checkpoint.convert import convert
from jaxpa.checkpoint.load import load_parts
from jaxpa.checkpoint.report import format_info, info
from jaxpa.checkpoint.source import resolve
from jaxpa.config import Rounding
from jaxpa.devices import cost
from jaxpa.errors import CheckpointError
from jaxpa.lowrank import LowRank

# Heads as wide as FLUX's, so that the file alone tells the configuration.
BIG = replace(CONFIG.transformer, num_attention_heads=1, attention_head_dim=128, axes_dims_rope=(16, 56, 56))
STORED = {"e5m2": jnp.float8_e5m2, "int8": jnp.int8}


@pytest.fixture(scope="module")
def numbers():
    return release("transformer", BIG)


@pytest.fixture(scope="module")
def files(torch, numbers, tmp_path_factory):
    """Form -> a file of eight bits, and the plain file of the numbers that it means."""
    root = tmp_path_factory.mktemp("eight")
    out = {}
    for form in FORMS:
        file = eight_bits(torch, numbers, form)
        save_file(file.truth, root / f"{form}-truth.safetensors")
        out[form] = save(torch, file, root / f"{form}.safetensors"), root / f"{form}-truth.safetensors", file
    return out


@pytest.fixture(scope="module")
def rest(tmp_path_factory):
    """A pipeline without its transformer."""
    folder = make(tmp_path_factory.mktemp("rest") / "small")
    shutil.rmtree(folder / "transformer")
    return folder


def transformer(path, dtype=np.float32, weights=None):
    return load_parts(path, dtype=dtype, parts=("transformer",), weights=weights).transformer


@pytest.mark.parametrize("form", FORMS)
def test_means_what_torch_reads(files, form):
    path, truth, _ = files[form]
    want = transformer(truth)
    kept = transformer(path)
    kernels = quantised("transformer", BIG, kept)
    assert {each.values.dtype for each in kernels} == {jnp.dtype(STORED.get(form, jnp.float8_e4m3fn))}
    assert same(explicit(kept), explicit(want))
    assert same(transformer(path, weights="wide"), want)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), want)  # rounded once
    assert same(transformer(path, jnp.bfloat16, "wide"), half)


@pytest.mark.parametrize("form", ["plain", "e5m2", "comfy-old", "rows", "int8"])
@pytest.mark.parametrize("weights", [None, "int8", "fp8", "wide"])
def test_converted_it_loads_the_same(files, rest, tmp_path, form, weights):
    path, _, _ = files[form]
    dtype = np.float32 if weights == "wide" else None
    alike = replace(CONFIG, transformer=BIG)
    folder = convert(path, tmp_path / "own", rest, weights=weights, dtype=dtype)
    assert resolve(folder).config.transformer == alike.transformer
    for kind in (jnp.float32, jnp.bfloat16):
        # Widened tensors are bfloat16 in the folder unless told otherwise: the rest of a float32 network differs.
        if kind is jnp.bfloat16 or dtype is not None:
            assert same(transformer(folder, kind), transformer(path, kind, weights))
    kernels = [explicit(transformer(each, weights=how)) for each, how in ((folder, None), (path, weights))]
    pairs = zip(*(each.double_blocks.img.qkv.q.kernel.get_value()[None] for each in kernels), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)


def test_other_kinds_are_rounded_from_the_numbers(files):
    """fp8 to int8 and back: each rounding is that of the numbers that the file means."""
    for form, kind in (("comfy-new", "int8"), ("int8", "fp8"), ("plain", "int8")):
        path, truth, _ = files[form]
        assert same(transformer(path, weights=kind), transformer(truth, weights=kind))


def test_blocks_that_are_wide_in_the_file_are_rounded_beside_those_that_are_not(torch, numbers, files, rest, tmp_path):
    file = eight_bits(torch, numbers, "comfy-new")
    key = "single_blocks.1.linear1"
    tensors = dict(file.tensors)
    for name in ("weight_scale", "comfy_quant"):
        tensors.pop(f"{key}.{name}")
    tensors[f"{key}.weight"] = torch.from_numpy(numbers[f"{key}.weight"])
    path = save(torch, File(tensors, {}, {}), tmp_path / "mixed.safetensors")
    said = info(path)["components"]["transformer"]
    assert said["becomes"]["rounded"] == 1
    mixed, whole = (explicit(transformer(each)) for each in (path, files["comfy-new"][0]))
    got, want = (each.single_blocks.mlp_in.kernel.get_value() for each in (mixed, whole))
    wide = numbers[f"{key}.weight"][3 * BIG.width :].T
    np.testing.assert_allclose(got[1], wide, atol=np.abs(wide).max() / 16)
    np.testing.assert_array_equal(got[0], want[0])
    assert same(mixed.double_blocks, whole.double_blocks)
    assert same(transformer(convert(path, tmp_path / "own", rest), jnp.bfloat16), transformer(path, jnp.bfloat16))


def test_of_two_kinds_of_fp8_the_one_that_is_rounded_to_is_kept(torch, numbers, files, tmp_path):
    """Blocks of one parameter: those in E5M2 are rounded from their numbers, and `info` counts each as what it is."""
    key = "single_blocks.1.linear1.weight"
    tensors = eight_bits(torch, numbers, "plain").tensors
    tensors[key] = torch.from_numpy(numbers[key]).to(torch.float8_e5m2)
    path = save(torch, File(tensors, {}, {}), tmp_path / "both.safetensors")
    said = {name: info(each)["components"]["transformer"]["becomes"] for name, each in
            (("both", path), ("plain", files["plain"][0]))}  # fmt: skip
    assert said["both"] == said["plain"] | {"kept": said["plain"]["kept"] - 1, "rounded": 1}
    both, plain = (transformer(each) for each in (path, files["plain"][0]))
    kernels = [each.single_blocks.mlp_in.kernel.get_value() for each in (both, plain)]
    assert [each.values.dtype for each in kernels] == [jnp.float8_e4m3fn] * 2
    np.testing.assert_array_equal(*(each.values[0] for each in kernels))
    meant = tensors[key].float().numpy()[3 * BIG.width :].T
    got = explicit(both).single_blocks.mlp_in.kernel.get_value()[1]
    np.testing.assert_allclose(got, meant, atol=np.abs(meant).max() / 16)


def test_what_info_and_plan_say(files, rest):
    for form, weights in (("comfy-old", "fp8"), ("int8", "int8")):
        path, _, _ = files[form]
        content = info(path)
        assert content["loads"], format_info(content)
        part = content["components"]["transformer"]
        stored = [leaf for leaf in resolve(path).parts["transformer"].leaves if leaf.path.endswith(".kernel")]
        matrices = {key for leaf in stored for key in leaf.sources}
        kept = {key for key in matrices if "blocks" in key and "mod" not in key}
        assert part["weights"] == weights
        assert part["becomes"] == {"kept": len(kept), "widened": len(matrices - kept)}
        assert part["prefix"] == (PREFIX if form == "comfy-old" else "")
        found = load_parts(path, dtype=jnp.bfloat16, parts=("transformer",)).transformer
        assert part["memory_bytes"] == sum(x.nbytes for x in jax.tree.leaves(found))
        source = resolve(path, rest)
        assert source.rounded(None) == Rounding(weights)  # T5, which another folder has, stays as it is there
        sizes = cost.weight_bytes(source.config, 2, source.rounded(None))
        assert sizes["transformer"] == part["memory_bytes"]
        assert f"{len(kept)} kept in {weights}, {len(matrices - kept)} widened" in format_info(content)
        assert path.stat().st_size - content["bytes"] < 100_000  # the header, and what is not used


def test_all_in_one(torch, rest, tmp_path):
    """The transformer, both text encoders and the autoencoder in one file; only the tokenizers come from elsewhere."""
    config = replace(CONFIG, text_encoder=replace(CONFIG.text_encoder, hidden_size=64, num_attention_heads=1),
                     transformer=replace(BIG, pooled_projection_dim=64))  # fmt: skip
    where = {"transformer": (PREFIX, "bfl"), "vae": ("vae.", "bfl"),
             "text_encoder": ("text_encoders.clip_l.transformer.text_model.", "diffusers"),
             "text_encoder_2": ("text_encoders.t5xxl.transformer.", "diffusers")}  # fmt: skip
    tensors, truth = {}, {}
    for seed, (name, (prefix, layout)) in enumerate(where.items()):
        made = release(name, getattr(config, name), seed, layout)
        made = {key: torch.from_numpy(array) for key, array in made.items()}
        made = {key: x if name == "vae" else x.to(torch.float8_e4m3fn) for key, x in made.items()}
        tensors |= {prefix + key: x for key, x in made.items()}
        truth |= {prefix + key: x.float().numpy() for key, x in made.items()}
    tensors["text_encoders.clip_l.logit_scale"] = torch.tensor(4.6)
    tensors["text_encoders.clip_l.transformer.text_projection.weight"] = torch.eye(64)
    path = save(torch, File(tensors, {}, {}), tmp_path / "all.safetensors")
    save_file(truth, tmp_path / "truth.safetensors")
    content = info(path, rest)
    assert content["loads"], format_info(content)
    assert [part["weights"] for part in content["components"].values()] == ["fp8", None, None, "fp8"]
    assert info(path)["absent"] == ["tokenizer", "tokenizer_2"]
    got, want = (load_parts(each, rest, np.float32) for each in (path, tmp_path / "truth.safetensors"))
    assert got.config == want.config
    assert (got.weights, want.weights) == (Rounding("fp8", "fp8"), Rounding())
    for name in where:
        assert getattr(got.config, name) == getattr(config, name)
        assert same(explicit(getattr(got, name)), explicit(getattr(want, name)))


def change(key, **to):
    """The file with a tensor replaced, or without it (None)."""

    def changed(torch, tensors):
        module = "double_blocks.0.img_attn.proj"
        name = f"{module}.{key}" if not key.startswith("=") else key[1:]
        tensors.pop(name, None)
        if to["to"] is not None:
            tensors[name] = to["to"](torch)
        return tensors

    return changed


JSON = lambda text: lambda torch: torch.tensor(list(text.encode()), dtype=torch.uint8)  # noqa: E731


@pytest.mark.parametrize(("form", "damage", "says"), [
    ("rows", change("weight_scale", to=lambda t: t.ones(7)), "weight_scale' is \\[7\\], neither one number nor one an"),
    ("rows", change("weight_scale", to=lambda t: t.ones(1, 128)), "is \\[1, 128\\], neither"),
    ("rows", change("=nobody.weight_scale", to=lambda t: t.ones(1)), "'nobody.weight_scale' belongs to no weight"),
    ("rows", change("=img_in.scale_weight", to=lambda t: t.ones(1)), "second scale of the same weight"),
    ("comfy-old", change("=model.diffusion_model.img_in.bias", to=lambda t: t.ones(128, dtype=t.int8)), "type I8"),
    ("comfy-new", change("weight", to=lambda t: t.ones(128, 128)), "belongs to a weight of F32, not of eight bits"),
    ("comfy-new", change("weight_scale", to=lambda t: t.tensor(float("nan"))), "scale '.*' has numbers that are not"),
    ("comfy-new", change("weight_scale", to=lambda t: t.tensor(0.0)), "not above zero"),
    ("comfy-new", change("weight_scale", to=lambda t: t.tensor(3)), "has the type I64"),
    ("comfy-new", change("comfy_quant", to=JSON('{"format": "mxfp8"}')), "names the format 'mxfp8', which is not read"),
    ("comfy-new", change("comfy_quant", to=JSON('{"format": "float8_e5m2"}')), "but the weight is F8_E4M3"),
    ("comfy-new", change("comfy_quant", to=JSON("no")), "says no format: not JSON"),
    ("comfy-new", change("comfy_quant", to=JSON('{"format": []}')), r"names the format '\[\]', which is not read"),
    ("int8", change("comfy_quant", to=JSON('{"format": "int8_tensorwise", "convrot": true}')), "rotated weights"),
    ("int8", change("weight_scale", to=None), "has the type I8, which is not supported"),
    ("plain", change("weight.absmax", to=lambda t: t.ones(4)), "packed by NF4 of bitsandbytes .*: use the fp8"),
    ("plain", change("weight_scale_2", to=lambda t: t.ones(1)), "packed by NVFP4"),
    ("plain", change("wscales", to=lambda t: t.ones(1)), "packed by SVDQuant of Nunchaku"),
    ("plain", change("weight", to=lambda t: t.full((128, 128), 255, dtype=t.uint8).view(t.float8_e4m3fn)), "not fin"),
])  # fmt: skip
def test_faults(torch, files, tmp_path, form, damage, says):
    tensors = damage(torch, dict(files[form][2].tensors))
    path = save(torch, File(tensors, {}, {}), tmp_path / "damaged.safetensors")
    with pytest.raises(CheckpointError, match=says) as caught:
        transformer(path)
    assert len(caught.value.problems) == 1


def test_formats_of_the_header(torch, files, tmp_path):
    file = files["header"][2]
    for text, says in (('{"layers": {"img_in": {"format": "nvfp4"}}}', "layer 'img_in' names the format 'nvfp4'"),
                       ("[]", "_quantization_metadata in the header: not a JSON object")):  # fmt: skip
        path = save(torch, file._replace(metadata={"_quantization_metadata": text}), tmp_path / "f.safetensors")
        with pytest.raises(CheckpointError, match=says):
            transformer(path)


def test_loras_beside_and_merged(files, tmp_path):
    """Beside the bits that stay; merged where they are widened, or rounded to others, as into the plain file."""
    rng, key = np.random.default_rng(0), "lora_unet_double_blocks_0_img_attn_proj"
    down, up = (rng.standard_normal(shape).astype(np.float32) / 8 for shape in ((2, BIG.width), (BIG.width, 2)))
    save_file({f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}, tmp_path / "lora.safetensors")
    loras = [Lora(str(tmp_path / "lora.safetensors"))]
    path, truth, _ = files["comfy-new"]

    def load(file, keep, weights=None):
        found = adapt(resolve(file), loras, keep, weights)
        return load_parts(found, dtype=np.float32, parts=("transformer",), weights=weights).transformer

    kernel = load(path, None).double_blocks.img.proj.kernel.get_value()
    assert isinstance(kernel, LowRank)
    assert same(kernel.base, transformer(path).double_blocks.img.proj.kernel.get_value())
    with pytest.raises(CheckpointError, match="kept beside them, or merged with --weights wide"):
        load(path, False)
    for weights in ("wide", "int8"):
        assert same(load(path, False, weights), load(truth, False, weights))


def test_unknown_words_for_weights(files):
    with pytest.raises(CheckpointError, match=r"weights must be one of .*: did you mean 'wide'"):
        transformer(files["plain"][0], weights="wid")
