"""GGUF files against the package that writes them and torch's unpacking, and their faults."""

import struct
from dataclasses import replace
from importlib import util

import jax.numpy as jnp
import numpy as np
import pytest
from eight_bit_files import PACKED, explicit, is_matrix, pack, packed_file, quantised, release, unpack, write_gguf
from safetensors.numpy import save_file
from small_checkpoint import CONFIG, make, same

from jaxpa.checkpoint import gguf as reader
from jaxpa.checkpoint.convert import convert
from jaxpa.checkpoint.load import load_component, load_parts
from jaxpa.checkpoint.report import format_info, info
from jaxpa.checkpoint.source import resolve
from jaxpa.config import Rounding
from jaxpa.errors import CheckpointError

# Rows of 256 weights are the shortest that all types have whole blocks of.
BIG = replace(CONFIG.transformer, num_layers=1, num_single_layers=1, num_attention_heads=2, attention_head_dim=128,
              axes_dims_rope=(16, 56, 56))  # fmt: skip
T5 = replace(CONFIG.text_encoder_2, d_model=64, d_kv=32, d_ff=96)


@pytest.fixture(scope="module")
def numbers():
    return release("transformer", BIG)


@pytest.fixture(scope="module")
def files(torch, numbers, tmp_path_factory):
    """Kind of block -> a GGUF, and the plain file of the numbers that it means."""
    root, made = tmp_path_factory.mktemp("gguf"), {}

    def file(kind):
        if kind not in made:
            path, truth = root / f"flux-{kind}.gguf", root / f"{kind}.safetensors"
            save_file(packed_file(torch, numbers, kind, path).truth, truth)
            made[kind] = path, truth
        return made[kind]

    return file


def transformer(path, dtype=np.float32, weights=None):
    return load_parts(path, dtype=dtype, parts=("transformer",), weights=weights).transformer


def test_the_table_of_types():
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    theirs = {kind.name: (kind.value, *GGML_QUANT_SIZES[kind]) for kind in GGMLQuantizationType}
    for number, (name, weights, size) in reader.TYPES.items():
        assert theirs[name] == (number, weights, size)
    assert reader.PACKED.keys() == set(PACKED)


@pytest.mark.parametrize("kind", PACKED)
def test_means_what_torch_unpacks(files, kind):
    """Fused and stacked tensors, whose rows are unpacked apart: the numbers bit for bit."""
    path, truth = files(kind)
    assert same(transformer(path, weights="wide"), transformer(truth))


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K"])
def test_becomes_int8_unless_told_otherwise(files, kind):
    path, truth = files(kind)
    got = transformer(path)
    quantised("transformer", BIG, got)
    assert same(got, transformer(truth, weights="int8"))
    assert same(transformer(path, weights="fp8"), transformer(truth, weights="fp8"))
    part = info(path)["components"]["transformer"]
    packed = sum(is_matrix(key, np.zeros(t.shape)) and "blocks" in key for key, t in reader.read_gguf(path)[0].items())
    modulations = 3  # of the two streams, and of the single block
    assert (part["weights"], part["becomes"]) == ("int8", {"rounded": packed - modulations, "widened": modulations})
    assert "to int8" in format_info(info(path))
    assert resolve(path).rounded(None) == Rounding("int8")


def test_plain_numbers_stay_wide(torch, numbers, tmp_path):
    half = {key: torch.from_numpy(x).to(torch.bfloat16) for key, x in numbers.items()}
    tensors = {key: (x.view(torch.uint8).numpy(), "BF16") for key, x in half.items()}
    path = write_gguf(tmp_path / "flux1-dev-BF16.gguf", tensors, None)
    save_file({key: x.float().numpy() for key, x in half.items()}, tmp_path / "truth.safetensors")
    assert same(transformer(path), transformer(tmp_path / "truth.safetensors"))
    assert info(path)["components"]["transformer"]["becomes"] == {}


def test_one_parameter_at_a_time(files, monkeypatch):
    """What is unpacked at once is a parameter's part of one tensor."""
    path, _ = files("Q8_0")
    sizes, read = [], reader.Packed.read

    def noted(self, rows=None):
        array = read(self, rows)
        sizes.append(array.size)
        return array

    monkeypatch.setattr(reader.Packed, "read", noted)
    transformer(path)
    square = BIG.width**2
    assert max(sizes) == 6 * square  # a modulation; of linear1, 7 squares, each parameter's rows alone
    assert sizes.count(square) >= 3 * 3  # q, k, v


@pytest.mark.parametrize("weights", [None, "wide"])
def test_converted_it_loads_the_same(files, tmp_path, weights):
    rest = make(tmp_path / "rest")
    (rest / "transformer" / "config.json").unlink()
    path, _ = files("Q5_1")
    folder = convert(path, tmp_path / "own", rest, weights=weights)
    assert same(transformer(folder, jnp.bfloat16), transformer(path, jnp.bfloat16, weights))


def test_t5_under_its_other_names(torch, tmp_path):
    """As llama.cpp writes it."""
    numbers, tensors, truth = release("text_encoder_2", T5, layout="diffusers"), {}, {}
    ends = {"shared": "token_embd", "encoder.final_layer_norm": "enc.output_norm"}
    layers = {"0.SelfAttention.q": "attn_q", "0.SelfAttention.k": "attn_k", "0.SelfAttention.v": "attn_v",
              "0.SelfAttention.o": "attn_o", "0.SelfAttention.relative_attention_bias": "attn_rel_b",
              "0.layer_norm": "attn_norm", "1.DenseReluDense.wi_0": "ffn_gate", "1.DenseReluDense.wi_1": "ffn_up",
              "1.DenseReluDense.wo": "ffn_down", "1.layer_norm": "ffn_norm"}  # fmt: skip
    for key, array in numbers.items():
        module = key.removesuffix(".weight")
        if module in ends:
            name = ends[module]
        else:
            _, _, block, _, layer = module.split(".", 4)
            name = f"enc.blk.{block}.{layers[layer]}"
        packed = is_matrix(key, array) and "bias" not in key
        rows = pack(array, "Q8_0", np.random.default_rng(0)) if packed else array
        tensors[f"{name}.weight"] = rows, "Q8_0" if packed else "F32"
        truth[key] = unpack(torch, rows, "Q8_0") if packed else array
    path = write_gguf(tmp_path / "t5.gguf", tensors, "t5encoder")
    save_file(truth, tmp_path / "t5.safetensors")
    both = [load_component(each, np.float32, weights="wide") for each in (path, tmp_path / "t5.safetensors")]
    assert same(*both)
    assert resolve(path).parts["text_encoder_2"].config == T5
    kept = load_component(path, np.float32)
    assert same(kept, load_component(tmp_path / "t5.safetensors", np.float32, weights="int8"))
    assert np.asarray(explicit(kept).blocks.mlp.wo.kernel.get_value()).shape == (2, 96, 64)


def test_rows_that_blocks_run_over(torch, tmp_path):
    """A tensor that was given another shape, so that it has whole blocks."""
    array = np.random.default_rng(0).standard_normal((16, 128)).astype(np.float32)
    rows = pack(array, "Q8_0", np.random.default_rng(0))
    tensor = reader._tensor(tmp_path, "x", (16, 128), 8, 0, [64, 32])
    path = tmp_path / "rows"
    path.write_bytes(rows.tobytes())
    tensor = type(tensor)(path, "x", tensor.dtype, tensor.shape, 0, tensor.size)
    want = unpack(torch, rows, "Q8_0").reshape(64, 32)
    np.testing.assert_array_equal(tensor.read(), want)
    np.testing.assert_array_equal(tensor.read(slice(5, 9)), want[5:9])


def test_without_the_package(files, monkeypatch):
    path, _ = files("Q8_0")
    monkeypatch.setattr(reader, "find_spec", lambda name: None if name == "gguf" else util.find_spec(name))
    with pytest.raises(CheckpointError, match=r"unpacked by the package gguf: pip install 'jaxpa\[gguf\]'"):
        transformer(path)
    assert not info(path)["loads"]  # and its header is read
    assert info(path)["components"]["transformer"]["missing"] == []


HEAD = b"GGUF" + struct.pack("<IQQ", 3, 1, 1)
NAME = struct.pack("<Q", 4) + b"some"


@pytest.mark.parametrize(("content", "says"), [
    (b"", "not a GGUF file"),
    (b"version https://git-lfs.github.com/spec/v1", "not a GGUF file"),
    (b"GGUF" + struct.pack("<I", 1), "a GGUF of version 1"),
    (b"GGUF" + struct.pack(">I", 3), "of version 50331648; 2 and 3 are read, of little-endian machines"),
    (HEAD, "truncated: its header goes on beyond the 24 bytes"),
    (b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0), "it lists 9,223,372,036,854,775,808 tensors"),
    (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63), "truncated"),
    (HEAD + struct.pack("<Q", 2**62), "truncated"),
    (HEAD + NAME + struct.pack("<I", 77), "a value has the unknown type 77"),
    (HEAD + NAME + struct.pack("<IIQ", 9, 4, 2**60), "truncated"),
    (HEAD + NAME + struct.pack("<IIQ", 9, 9, 1), "an array has values of the type 9"),
    (HEAD + NAME + struct.pack("<II", 4, 0) + NAME + struct.pack("<I", 9), "tensor 'some' has 9 axes"),
    (HEAD + struct.pack("<Q", 2) + b"\xff\xfe", "a string is not UTF-8"),
    (HEAD + NAME + struct.pack("<II", 4, 0) + NAME + struct.pack("<IQIQ", 1, 33, 8, 0), "no whole blocks of Q8_0"),
])  # fmt: skip
def test_headers_that_are_none(tmp_path, content, says):
    path = tmp_path / "flux.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=says):
        transformer(path)
    assert not info(path)["loads"]


def test_truncated(files, tmp_path):
    whole = files("Q8_0")[0].read_bytes()
    path = tmp_path / "flux.gguf"
    path.write_bytes(whole[:-40])
    with pytest.raises(CheckpointError, match=rf"truncated: {len(whole) - 40:,} of {len(whole):,} bytes; incomplete"):
        transformer(path)


@pytest.mark.parametrize(("architecture", "kind", "says"), [
    ("llama", "F32", "a GGUF of the architecture 'llama'"),
    ("flux", "I8", "'img_in.weight' has the type GGML type 24, which is not supported"),
    ("flux", "nan", "'img_in.weight' has numbers that are not finite"),
    ("flux", "blocks", "double_blocks.0.img_attn.proj.weight' has numbers that are not finite"),
    ("flux", "names", "do not have the names of"),
    ("flux", "shape", "'txt_in.bias' is .7., the configuration asks for .256."),
])  # fmt: skip
def test_faults(numbers, tmp_path, architecture, kind, says):
    tensors = {key: (array, "F32") for key, array in numbers.items()}
    match kind:
        case "I8":
            tensors["img_in.weight"] = numbers["img_in.weight"].astype(np.int8), "I8"
        case "nan":
            tensors["img_in.weight"] = np.full_like(numbers["img_in.weight"], np.nan), "F32"
        case "blocks":
            key = "double_blocks.0.img_attn.proj.weight"
            tensors[key] = np.full((256, 272), 255, np.uint8), "Q8_0"
        case "names":
            tensors = {f"layer.{i}": each for i, each in enumerate(tensors.values())}
        case "shape":
            tensors["txt_in.bias"] = np.zeros(7, np.float32), "F32"
    path = write_gguf(tmp_path / "flux.gguf", tensors, architecture)
    with pytest.raises(CheckpointError, match=says) as caught:
        transformer(path)
    assert len(caught.value.problems) <= 1


def test_tensors_lie_one_behind_another(files, tmp_path):
    whole = bytearray(files("Q8_0")[0].read_bytes())
    name = b"double_blocks.0.img_mlp.0.weight"
    at = whole.index(name) + len(name) + 4 + 2 * 8 + 4
    whole[at : at + 8] = bytes(8)
    path = tmp_path / "flux.gguf"
    path.write_bytes(whole)
    with pytest.raises(
        CheckpointError, match=r"0.img_mlp.0.weight' begins at 0, not at [\d,]+, behind the one before it"
    ):
        transformer(path)


@pytest.mark.parametrize("name", ["flux.ckpt", "flux.pt", "flux.pth", "flux.bin"])
def test_pickles_are_refused_by_name(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(
        CheckpointError, match=r"is a pickle, which can run code and is never read; use a \.safetensors"
    ):
        transformer(tmp_path / name)
