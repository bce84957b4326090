"""Damaged checkpoints end in a CheckpointError or load, and `info` says which before any tensor is read."""

import json
import math
import shutil

import jax
import numpy as np
import pytest
from fuzzing import altered, damaged, fuzz, values
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from small_checkpoint import FILES, holding, make

from jaxpa.checkpoint.load import load_parts
from jaxpa.checkpoint.report import format_info, info
from jaxpa.encoders.text import Tokenizers
from jaxpa.errors import JaxpaError

DOCUMENTS = ["model_index.json", "scheduler/scheduler_config.json", "transformer/config.json", "vae/config.json",
             "text_encoder/config.json", "text_encoder_2/config.json", "tokenizer/tokenizer_config.json",
             "tokenizer_2/tokenizer.json"]  # fmt: skip
DTYPES = ["F64", "F32", "F16", "BF16", "F8_E4M3", "I64", "U8", "BOOL", "F4", "f32", ""]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "folder", dirs_exist_ok=True)


def survives(folder, component):
    """Loads as `info` said, or is refused; nothing is written."""
    before = {file: file.stat().st_size for file in folder.rglob("*")}
    try:
        promised = info(folder)
        format_info(promised)
    except JaxpaError:
        promised = {"loads": False}
    try:
        parts = load_parts(folder, dtype=np.float32, parts=(component,) if component in FILES else ())
        if component.startswith("tokenizer"):
            Tokenizers.load(folder / "tokenizer", folder / "tokenizer_2")
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(getattr(parts, component, ())))
        refused = ""
    except JaxpaError as error:
        refused = str(error)
    assert not (refused and promised["loads"]) or "finite" in refused or "tokenizer" in refused, refused
    assert {file: file.stat().st_size for file in folder.rglob("*")} == before


@fuzz
@given(data=st.data(), name=st.sampled_from(DOCUMENTS))
def test_documents(data, name, folder):
    original = (folder / name).read_bytes()
    lies = altered(json.loads(original)).map(lambda said: json.dumps(said).encode())
    with holding(folder / name, data.draw(lies | damaged(original))):
        survives(folder, name.split("/")[0])


@fuzz
@given(data=st.data(), name=st.sampled_from(sorted(FILES)))
def test_tensors(data, name, folder):
    """A file of tensors, damaged anywhere: in its length, its header or its numbers."""
    file = folder / name / FILES[name]
    with holding(file, data.draw(damaged(file.read_bytes()))):
        survives(folder, name)


@fuzz
@given(data=st.data(), name=st.sampled_from(sorted(FILES)))
def test_headers(data, name, folder):
    """A header of well-formed JSON that lies: types, shapes, places, names."""
    file = folder / name / FILES[name]
    original = file.read_bytes()
    size = int.from_bytes(original[:8], "little")
    header = json.loads(original[8 : 8 + size])
    names = st.sampled_from([key for key in header if key != "__metadata__"])
    for key in data.draw(st.lists(names, min_size=1, max_size=2, unique=True)):
        entry = dict(header[key])
        match data.draw(st.sampled_from(["dtype", "shape", "offsets", "any", "name", "metadata"])):
            case "dtype":
                entry["dtype"] = data.draw(st.sampled_from(DTYPES))
            case "shape":
                entry["shape"] = data.draw(
                    st.lists(st.integers(-1, 2**40), max_size=4) | st.just(entry["shape"][::-1]) | values
                )
            case "offsets":
                entry["data_offsets"] = data.draw(st.lists(st.integers(-(2**40), 2**65), max_size=3) | values)
            case "any":
                entry = data.draw(values)
            case "name":
                header[data.draw(st.text(max_size=20))] = entry
            case "metadata":
                header["__metadata__"] = data.draw(values)
        header[key] = entry
    text = json.dumps(header).encode()
    with holding(file, len(text).to_bytes(8, "little") + text + original[8 + size :]):
        survives(folder, name)


@fuzz
@given(data=st.data())
def test_what_loads_is_what_the_library_reads(data, folder):
    """Where numbers are changed and the file still opens, they are the ones that safetensors' own reader finds."""
    file = folder / "vae" / FILES["vae"]
    original = file.read_bytes()
    size = int.from_bytes(original[:8], "little")
    at = data.draw(st.integers(8 + size, len(original) - 1))
    with holding(file, original[:at] + data.draw(st.binary(min_size=1, max_size=1)) + original[at + 1 :]):
        with safe_open(file, "numpy") as opened:
            stored = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        if all(np.isfinite(x).all() for x in stored.values()):
            network = load_parts(folder, dtype=np.float32, parts=("vae",)).vae
            ours = [float(np.abs(x).astype(np.float64).sum()) for x in jax.tree.leaves(network)]
            theirs = [float(np.abs(x).astype(np.float64).sum()) for x in stored.values()]
            assert math.isclose(sum(ours), sum(theirs), rel_tol=1e-6)
        else:
            with pytest.raises(JaxpaError, match="finite"):
                load_parts(folder, dtype=np.float32, parts=("vae",))
