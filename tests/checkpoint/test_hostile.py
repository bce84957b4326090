"""Hostile checkpoints: a typed error that names the file, or the right numbers; never a traceback, a wait, or a lie.

Each is a small valid checkpoint with one thing changed. `info` and loading must agree on all of them.
"""

import dataclasses
import json
import os
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from small_checkpoint import CONFIG, FILES, holding, make, release, rewrite, shard

from jaxpa.checkpoint.keys import COMPONENTS, leaves
from jaxpa.checkpoint.load import load_component, load_parts
from jaxpa.checkpoint.report import format_info, info
from jaxpa.errors import CheckpointError

SECONDS = 5  # that a refusal may take; each takes milliseconds

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
fuzz = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("hostile") / "flux")


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    return shutil.copytree(whole, tmp_path / "flux")


def refused(path: Path, *words: str) -> None:
    """Both `info` and loading refuse it, soon, in lines that a terminal shows."""
    start = time.perf_counter()
    with pytest.raises(CheckpointError) as caught:
        load_parts(path)
    text = str(caught.value)
    try:
        content = info(path)
    except CheckpointError as error:
        text += str(error)
    else:
        assert not content["loads"]
        shown = format_info(content)
        assert all(line.isprintable() for line in shown.split("\n"))
        json.dumps(content)
    assert time.perf_counter() - start < SECONDS
    assert all(line.isprintable() for line in text.split("\n"))
    for word in words:
        assert word in text, f"{word!r} is not in:\n{text}"


def outcome(path: Path, load: Any = load_component) -> Any:
    """What was loaded, or the text of the error; `info` agrees, and nothing else is raised."""
    loads = info(path)["loads"]
    try:
        loaded, fault = load(path), None
    except CheckpointError as error:
        loaded, fault = None, str(error)
    assert loads == (fault is None) or "not finite" in str(fault)
    return loaded if fault is None else fault


# --- headers


def split(path: Path) -> tuple[dict[str, Any], bytes]:
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def joined(header: str | bytes, data: bytes) -> bytes:
    raw = header.encode() if isinstance(header, str) else header
    return len(raw).to_bytes(8, "little") + raw + data


@given(st.data())
@fuzz
def test_headers(whole, data):
    path = whole / "text_encoder" / FILES["text_encoder"]
    header, numbers = split(path)
    want = load_file(path)
    key = data.draw(st.sampled_from(sorted(want)))
    change = data.draw(st.sampled_from(["field", "item", "shift", "entry", "metadata", "dtype", "lost"]))
    if change == "field":
        header[key][data.draw(st.sampled_from(["dtype", "shape", "data_offsets"]))] = data.draw(JSON)
    elif change == "item":
        values = header[key][data.draw(st.sampled_from(["shape", "data_offsets"]))]
        values[data.draw(st.integers(0, len(values) - 1))] = data.draw(JSON)
    elif change == "shift":
        by = data.draw(st.sampled_from([-64, -4, -1, 1, 4, 2**40]))
        header[key]["data_offsets"] = [n + by for n in header[key]["data_offsets"]]
    elif change == "entry":
        header[key] = data.draw(JSON)
    elif change == "metadata":
        header["__metadata__"] = data.draw(JSON)
    elif change == "dtype":
        header[key]["dtype"] = data.draw(st.sampled_from(["F64", "F16", "BF16", "I8", "I32", "F8_E4M3", "BOOL", "f32"]))
    else:
        del header[key][data.draw(st.sampled_from(["dtype", "shape", "data_offsets"]))]
    with holding(path, joined(json.dumps(header), numbers)):
        got = outcome(whole / "text_encoder")
    if isinstance(got, str):
        assert str(path) in got
    else:
        embedding = got.token_embedding
        np.testing.assert_array_equal(jax.tree.leaves(embedding)[0], want["embeddings.token_embedding.weight"])


@given(st.integers(0, 5000), st.integers(0, 255), st.sampled_from(["flip", "cut", "insert"]))
@fuzz
def test_bytes_of_a_header(whole, at, byte, change):
    path = whole / "text_encoder_2" / FILES["text_encoder_2"]
    raw = path.read_bytes()
    at %= 8 + int.from_bytes(raw[:8], "little")
    bad = {
        "flip": raw[:at] + bytes([byte]) + raw[at + 1 :],
        "cut": raw[:at],
        "insert": raw[:at] + bytes([byte]) + raw[at:],
    }[change]
    with holding(path, bad):
        got = outcome(whole / "text_encoder_2")
    assert bad == raw or isinstance(got, str) or len(bad) == len(raw)  # a byte of blank space or of the metadata


# --- configs

FIELDS = [(name, field.name) for name in COMPONENTS for field in dataclasses.fields(getattr(CONFIG, name))]


@given(st.sampled_from(FIELDS), JSON)
@example(("transformer", "num_attention_heads"), "2")
@example(("transformer", "num_attention_heads"), [2])
@example(("transformer", "num_attention_heads"), -4)
@example(("transformer", "num_attention_heads"), 0)
@example(("transformer", "num_layers"), True)
@example(("transformer", "num_layers"), 10**6)
@example(("transformer", "axes_dims_rope"), [3, 3, 2])
@example(("transformer", "guidance_embeds"), "yes")
@example(("vae", "scaling_factor"), float("nan"))
@example(("vae", "layers_per_block"), 10**5)
@example(("text_encoder", "hidden_act"), "relu")
@fuzz
def test_configs(whole, where, value):
    name, key = where
    path = whole / name / "config.json"
    content = json.loads(path.read_text())
    usual = content.get(key)
    with holding(path, json.dumps({**content, key: value}).encode()):
        got = outcome(whole / name)
    if isinstance(got, str):
        assert str(path) in got or str(whole / name) in got
    else:
        number = isinstance(usual, float) and type(value) is int
        assert type(value) is type(usual) or number or (value is None and key == "out_channels")


@given(st.sampled_from(["scheduler/scheduler_config.json", "jaxpa.json", "model_index.json"]), st.data())
@fuzz
def test_the_other_documents(whole, name, data):
    keys = {
        "scheduler/scheduler_config.json": ["shift", "use_dynamic_shifting", "base_image_seq_len", "shift_terminal"],
        "jaxpa.json": ["preset", "size", "steps", "guidance", "max_length", "stepz"],
        "model_index.json": ["_class_name"],
    }[name]
    path = whole / name
    if not path.exists():
        path.write_text("{}")
    with holding(path, json.dumps({data.draw(st.sampled_from(keys)): data.draw(JSON)}).encode()):
        got = outcome(whole, partial(load_parts, parts=("vae",)))
    assert str(path) in got if isinstance(got, str) else True


# --- documents that are none


@pytest.mark.parametrize("document", ["transformer/config.json", "scheduler/scheduler_config.json", "model_index.json",
                                      "tokenizer/tokenizer_config.json", "tokenizer/vocab.json",
                                      "tokenizer_2/tokenizer.json"])  # fmt: skip
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"a": 1, "a": 2}', "twice"),
        ('{"a": 1}'.encode("utf-16"), "UTF-8"),
        (b'{"a": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", "nested"),
        (b'{"a": NaN}', "NaN is not a number"),
        (b"<html>sign in</html>", "not JSON"),
        (b"[]", "not a JSON object"),
        (b"", "not JSON"),
        (None, "named pipe"),
        (Path("/dev/zero"), "device"),
        (Path("/"), "folder"),
    ],
)
def test_documents(folder, document, content, words):
    path = folder / document
    path.unlink()
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is None:
        os.mkfifo(path)
    else:
        path.symlink_to(content)
    no_file = not isinstance(content, bytes) and document.startswith("tokenizer")
    refused(folder, "files are missing" if no_file else f"{path}: ", "" if no_file else words)


# --- headers that are none

ONE = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
HEADERS = {
    "twice": f'{{"a":{ONE},"a":{ONE}}}',
    "utf-16": "{}".encode("utf-16"),
    "deep": '{"a":' + "[" * 10_000 + "]" * 10_000 + "}",
    "shared": f'{{"a":{ONE},"b":{ONE}}}',
    "bool": '{"a":{"dtype":"F32","shape":[true],"data_offsets":[0,4]}}',
    "float": '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0.0,4.0]}}',
    "metadata": '{"__metadata__":[],"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
}


@pytest.mark.parametrize("kind", HEADERS)
@pytest.mark.parametrize("name", ["transformer", "vae"])
def test_headers_that_are_none(folder, name, kind):
    path = folder / name / FILES[name]
    path.write_bytes(joined(HEADERS[kind], bytes(4)))
    refused(folder, f"{path}: not a s")


@pytest.mark.parametrize("target", [None, "/dev/zero", "/"])
def test_weights_that_are_no_files(folder, target):
    path = folder / "vae" / FILES["vae"]
    path.unlink()
    os.mkfifo(path) if target is None else path.symlink_to(target)
    refused(folder, f"{path}: this is a ")
    refused(path)


# --- counts


def test_counts_are_bounded(folder):
    file = release("transformer", folder)
    tensors = load_file(file)
    save_file(tensors | {"double_blocks.1000000000.x": np.zeros(1, np.float32)}, file)
    with pytest.raises(CheckpointError, match=r"the number 1000000000, but there are only \d+ tensors"):
        load_parts(file, folder)
    save_file({key: x for key, x in tensors.items() if not key.startswith("double_blocks")}, file)
    with pytest.raises(CheckpointError, match="double_blocks"):
        load_parts(file, folder)
    assert not info(file, folder)["loads"]


def test_an_index_of_a_million_keys(folder):
    shard(folder)
    index = folder / "transformer" / f"{FILES['transformer']}.index.json"
    index.write_text(json.dumps({"weight_map": {f"k{i}": "a.safetensors" for i in range(10**6)}}))
    refused(folder, f"{index}: ", "bytes are too many")
    index.write_text(json.dumps({"weight_map": {f"{i}": "a.safetensors" for i in range(100_001)}}))
    refused(folder, f"{index}: it lists 100,001 tensors")
    index.write_text(json.dumps({"weight_map": {"x": 3}}))
    refused(folder, f"{index}: not an index")


# --- components that do not belong together


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("text_encoder_2", {"d_model": 16}, "d_model is 16, joint_attention_dim is 12"),
        ("text_encoder", {"hidden_size": 16}, "hidden_size is 16, pooled_projection_dim is 8"),
        ("vae", {"latent_channels": 8}, "4 x latent_channels is 32, in_channels is 16"),
        ("transformer", {"in_channels": 24, "out_channels": 16}, "can be 16"),
        ("text_encoder", {"vocab_size": 29}, "largest id is 29, the text encoder has 29 rows"),
        ("text_encoder", {"max_position_embeddings": 11}, "12 tokens"),
    ],
)
def test_components_are_compared(folder, name, change, words):
    config = dataclasses.replace(getattr(CONFIG, name), **change)
    content = json.loads((folder / name / "config.json").read_text())
    (folder / name / "config.json").write_text(json.dumps(content | change))
    expected = {k: s[0] for leaf in leaves(name, config, "diffusers") for k, s in leaf.expected().items()}
    save_file({k: np.zeros(s, np.float32) for k, s in expected.items()}, folder / name / FILES[name])
    refused(folder, words)
    content = info(folder)
    assert not content["components"][name]["misshaped"]  # each is sound by itself
    assert any(words in line for line in content["problems"])


@pytest.mark.parametrize(("tokenizer", "file"), [("tokenizer", "vocab.json"), ("tokenizer", "merges.txt"),
                                                 ("tokenizer", "tokenizer_config.json"),
                                                 ("tokenizer_2", "tokenizer.json"),
                                                 ("tokenizer_2", "tokenizer_config.json")])  # fmt: skip
def test_tokenizers_are_whole(folder, tokenizer, file):
    (folder / tokenizer / file).unlink()
    (folder / tokenizer / "README.md").write_text("a tokenizer")
    refused(folder, f"{folder / tokenizer}: a tokenizer's files are missing")


def test_a_vocabulary_of_nothing(folder):
    (folder / "tokenizer" / "vocab.json").write_text("{}")
    refused(folder, f"{folder / 'tokenizer'}: the vocabulary is empty")


# --- names


def test_names(folder, tmp_path):
    rewrite(folder / "vae" / FILES["vae"], lambda t: t | {"\x1b]0;owned\x07\n": np.zeros(1, np.float32)})
    refused(folder, r"\x1b]0;owned\x07\n")
    for source in ("~no-such-user/flux", "x" * 300, "x" * 5000, "a\0b", "\udce4", f"{tmp_path}/\x1b[31m"):
        refused(source)  # type: ignore[arg-type]
