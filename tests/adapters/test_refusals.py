"""What a LoRA's file may not be: each ends in a message that names it, before any network is loaded if possible."""

import json
import os

import numpy as np
import pytest
from safetensors.numpy import save_file
from small_checkpoint import CONFIG, make
from small_loras import D, bfl_ends, bfl_layers, changes, diffusers_layers, kohya, named, save

from jaxpa.adapters.lay import adapt, over
from jaxpa.adapters.read import open_adapter
from jaxpa.adapters.report import format_adapter, info_adapter
from jaxpa.adapters.spec import Lora, parse_lora, to_loras
from jaxpa.checkpoint.convert import convert
from jaxpa.checkpoint.load import load_parts
from jaxpa.checkpoint.source import resolve
from jaxpa.errors import CheckpointError, JaxpaError

GOOD = named(changes({"transformer_blocks.0.attn.to_q": (D, D), "proj_out": (16, D)}), "transformer.")
A, B = "transformer.proj_out.lora_A.weight", "transformer.proj_out.lora_B.weight"


def refused(tensors, tmp_path, metadata=None):
    """The message about a file over the small network; it is short."""
    file = save(tensors, tmp_path / "lora.safetensors", metadata)
    with pytest.raises(CheckpointError) as caught:
        over(CONFIG, [Lora(str(file))], keep=True)
    assert str(file) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("suffix", "kind"), [
    ("dora_scale", "DoRA"), ("lora_magnitude_vector", "DoRA"), ("lokr_w1", "LoKr"), ("lokr_w2_a", "LoKr"),
    ("hada_w1_a", "LoHa"), ("lora_mid.weight", "Tucker"), ("oft_blocks", "OFT"), ("a1.weight", "GLoRA"),
])  # fmt: skip
def test_other_kinds_are_named_in_one_line(suffix, kind, tmp_path):
    said = refused(GOOD | {f"lora_unet_double_blocks_0_img_attn_qkv.{suffix}": np.ones((2, 2), np.float32)}, tmp_path)
    assert kind in said
    assert "only LoRA is" in said
    assert "\n" not in said
    assert "LoKr" in refused({"lycoris_transformer_blocks_0_attn_to_q.lokr_w1": np.ones(2, np.float32)}, tmp_path)
    peft = {"lora_adapter_metadata": json.dumps({"transformer.use_dora": True})}
    assert "DoRA" in refused(GOOD, tmp_path, peft)


def test_every_key_that_matches_nothing_is_listed(tmp_path):
    extra = {
        "transformer.transformer_blocks.7.attn.to_q.lora_A.weight": np.ones((3, D), np.float32),  # no such block
        "transformer.transformer_blocks.7.attn.to_q.lora_B.weight": np.ones((D, 3), np.float32),
        "lora_unet_input_blocks_1_1_proj_in.alpha": np.float32([3]),  # of SDXL
        "clip_l": np.ones((4, 8), np.float32),
        "transformer.transformer_blocks.0.attn.to_k.alpha": np.float32([3]),  # of no matrices
    }
    said = refused(GOOD | extra, tmp_path)
    assert all(key in said for key in list(extra)[:4])
    assert "to_k' lacks its down and its up" in said
    content = info_adapter(tmp_path / "lora.safetensors", str(make(tmp_path / "small")))
    assert sorted(content["unused"]) == sorted(list(extra)[:4])
    assert not content["loads"]
    assert all(key in format_adapter(content) for key in list(extra)[:4])


def test_layers_that_are_not_here_and_never_trained(tmp_path):
    """Zeros change nothing: said by info, no error."""
    idle = {"text_encoders.t5xxl.transformer.nowhere.lora_up.weight": np.zeros((4, 2), np.float32),
            "text_encoders.t5xxl.transformer.nowhere.lora_down.weight": np.ones((2, 4), np.float32)}  # fmt: skip
    adapter = open_adapter(save(GOOD | idle, tmp_path / "lora.safetensors"), CONFIG)
    assert (adapter.faults, sorted(adapter.idle)) == ([], sorted(idle))


@pytest.mark.parametrize(("change", "word"), [
    ({A: np.ones((3, D + 1), np.float32)}, "no change of a layer of 16 inputs"),
    ({A: np.ones((2, D), np.float32)}, "it takes [rank, 16]"),
    ({A: np.ones((0, D), np.float32), B: np.ones((16, 0), np.float32)}, "[rank, 16]"),
    ({A: np.ones((900, D), np.float32), B: np.ones((16, 900), np.float32)}, "[rank, 16]"),
    ({A: np.ones(D, np.float32)}, "[rank, 16]"),
    ({A: np.ones((3, D), np.int8)}, "has the type I8"),
    ({"transformer.proj_out.alpha": np.float32([np.nan])}, "no finite number"),
    ({"transformer.proj_out.alpha": np.float32([1, 2])}, "no finite number"),
    ({"transformer.proj_out.alpha": np.int32([1])}, "no finite number"),
    ({"transformer.proj_out.lora_B.bias": np.ones(5, np.float32)}, "[5], not [16]"),
    ({"transformer.proj_out.lora_down.weight": np.ones((3, D), np.float32)}, "mean the same"),
    ({"base_model.model.proj_out.lora_A.weight": np.ones((3, D), np.float32),
      "base_model.model.proj_out.lora_B.weight": np.ones((16, 3), np.float32)}, "change one layer"),
    ({"transformer.transformer_blocks.0.attn.norm_q.weight": np.ones(8, np.float32),
      "double_blocks.0.img_attn.norm.query_norm.scale": np.ones(8, np.float32)}, "change one layer"),
    ({"transformer.proj_out": np.ones(1, np.float32)}, "'transformer.proj_out' belongs to no layer"),
])  # fmt: skip
def test_shapes_types_and_doubles(change, word, tmp_path):
    assert word in refused(GOOD | change, tmp_path)


@pytest.mark.parametrize(("peft", "word"), [
    ("[1]", "damaged"), ('{"transformer.lora_alpha": "much"}', "must be a finite number"), ("{", "damaged"),
    ('{"transformer.lora_alpha": 2, "transformer.alpha_pattern": {"(a+)+b": 1}}', "only ends of names"),
    ('{"transformer.lora_alpha": 2, "transformer.alpha_pattern": [1]}', "not an object"),
    ('{"transformer.lora_alpha": true}', "alpha must be a finite number"),
    (f'{{"transformer.lora_alpha": 1{"0" * 400}}}', "alpha must be a finite number"),
    ('{"transformer.use_rslora": "false"}', "transformer.use_rslora must be true or false, not 'false'"),
    ('{"transformer.use_dora": 1}', "transformer.use_dora must be true or false"),
])  # fmt: skip
def test_metadata(peft, word, tmp_path):
    assert word in refused(GOOD, tmp_path, {"lora_adapter_metadata": peft})
    twice = {"transformer.proj_out.alpha": np.float32([2])}
    both = {"lora_adapter_metadata": '{"transformer.lora_alpha": 2}'}
    assert "leave one out" in refused(GOOD | twice, tmp_path, both)


def test_numbers_that_are_not_finite(tmp_path):
    """Found when they are read: the networks do not load."""
    folder = make(tmp_path / "small")
    bad = {A: np.where(np.arange(3 * D).reshape(3, D) == 7, np.nan, GOOD[A]).astype(np.float32)}
    file = save(GOOD | bad, tmp_path / "lora.safetensors")
    for keep in (True, False):
        with pytest.raises(CheckpointError, match="not finite") as caught:
            load_parts(adapt(resolve(folder), [Lora(str(file))], keep), dtype=np.float32, parts=("transformer",))
        assert A in str(caught.value)


@pytest.mark.parametrize(("change", "scale"), [
    ({}, 1e300),
    ({"transformer.proj_out.alpha": np.float32([3e38])}, 1e30),
    ({A: np.full((3, D), 1e300), B: np.full((16, 3), 1e300)}, 1.0),
    ({"transformer.proj_out.diff_b": np.full(16, 3e38)}, 10.0),
])  # fmt: skip
@pytest.mark.filterwarnings("error")
def test_changes_that_are_too_large(change, scale, tmp_path):
    """Finite in the file, and not where they are computed: said by the LoRA's name, before a picture is all noise."""
    folder, file = make(tmp_path / "small"), save(GOOD | change, tmp_path / "lora.safetensors")
    for keep in (True, False):
        with pytest.raises(CheckpointError, match=r"lora\.safetensors.* too large for a number: give a smaller scale"):
            load_parts(adapt(resolve(folder), [Lora(str(file), scale)], keep), dtype=np.float32, parts=("transformer",))


def test_names_without_end(tmp_path):
    said = refused(GOOD | {"x" * 10**6 + ".alpha": np.float32([1])}, tmp_path)
    assert len(said) < 10_000
    assert said.endswith(".alpha' belongs to no layer of this model")


def test_files(tmp_path):
    """Whatever else stands in a LoRA's place."""
    (tmp_path / "a.ckpt").write_bytes(b"\x80\x02")
    (tmp_path / "empty.safetensors").write_bytes(b"")
    save_file({"a": np.ones(2, np.float32)}, tmp_path / "none.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(save(GOOD, tmp_path / "good.safetensors").read_bytes()[:-9])
    os.mkfifo(tmp_path / "pipe.safetensors")
    for name, word in (("a.ckpt", "pickle"), ("empty.safetensors", "not a safetensors file"), (".", "a folder"),
                       ("none.safetensors", "not a LoRA"), ("cut.safetensors", "truncated"),
                       ("pipe.safetensors", "named pipe"), ("nowhere.safetensors", "No such file")):  # fmt: skip
        with pytest.raises(CheckpointError, match=word):
            over(CONFIG, [Lora(str(tmp_path / name))], keep=True)


def test_weights_of_eight_bits_on_disk_are_not_merged_into(tmp_path):
    folder = convert(make(tmp_path / "small"), tmp_path / "int8", weights="int8")
    file = save(GOOD, tmp_path / "lora.safetensors")
    assert adapt(resolve(folder), [Lora(str(file))], None).adaptation.kept
    with pytest.raises(CheckpointError, match="kept beside them"):
        adapt(resolve(folder), [Lora(str(file))], False)


def test_a_control_lora_needs_channels_that_fit(tmp_path):
    """Twice a token's channels make it a control model; others fit nothing."""
    layers = bfl_layers() | bfl_ends(inputs=32)
    norm = {"double_blocks.0.img_attn.norm.query_norm.scale": np.ones(8, np.float32)}
    file = save(named(changes(layers), "") | norm, tmp_path / "control.safetensors")
    found = adapt(resolve(make(tmp_path / "small")), [Lora(str(file))], True)
    assert (found.config.transformer.in_channels, found.variant.name) == (32, "control")
    for keep in (True, False):
        parts = load_parts(adapt(resolve(tmp_path / "small"), [Lora(str(file))], keep), dtype=np.float32)
        assert (parts.settings.variant, parts.transformer.config.in_channels) == ("control", 32)
        assert parts.transformer.double_blocks.img.qkv.query_norm.scale[0].tolist() == [1] * 8
    assert (parts.bare, parts.transformer.img_in.kernel.shape) == (None, (32, D))
    odd = save(named(changes(bfl_ends(inputs=24)), ""), tmp_path / "odd.safetensors")
    with pytest.raises(CheckpointError, match="in_channels are 24"):
        adapt(resolve(tmp_path / "small"), [Lora(str(odd))], True)


def test_what_is_said_of_a_lora():
    assert [parse_lora(text) for text in ("a.safetensors", "a:0.5", "a:b:-1", "C:\\x", "a:1:1", ":2")] == [
        Lora("a.safetensors"), Lora("a", 0.5), Lora("a:b", -1.0), Lora("C:\\x"), Lora("a:1", 1.0), Lora(":2"),
    ]  # fmt: skip
    assert to_loras("a:2") == to_loras([("a", 2)]) == to_loras([Lora("a", 2.0)]) == (Lora("a", 2.0),)
    assert str(parse_lora("a:0.25")) == "a:0.25"
    for bad in ([3], 5, [("a", "x")], ["a:nan"], [("a", np.inf)], [""], [("a", 1, 2)]):
        with pytest.raises(JaxpaError):
            to_loras(bad)


def test_real_files_by_shape(tmp_path):
    """Names and shapes of files that trainers write for FLUX.1-dev, at rank 2: nothing is left over."""
    every = bfl_layers((19, 38), 3072)
    trained = {name: size for name, size in every.items() if "mod" not in name}
    for tensors, formats in (
        (kohya(changes(trained, (2,)), "lora_unet_", 1.0), ["kohya"]),
        (named(changes(every, (2,)), "diffusion_model."), ["Comfy"]),
    ):
        content = info_adapter(save(tensors, tmp_path / "lora.safetensors"))
        assert (content["model"], content["loads"], content["formats"]) == ("FLUX.1-dev", True, formats)
        assert (content["ranks"], content["unused"]) == ([2], [])
        assert content["changes"]["transformer"]["single_blocks.qkv.q.kernel"] == 38
    assert len(diffusers_layers()) > 40
