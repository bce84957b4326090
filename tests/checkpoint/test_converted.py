"""Converted folders whose weights have eight bits: the same networks as rounding on load makes, and every fault."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from small_checkpoint import CONFIG, make, same

from jaxpa.checkpoint import load
from jaxpa.checkpoint.convert import FORMAT, convert
from jaxpa.checkpoint.files import read_header, write
from jaxpa.checkpoint.load import load_parts
from jaxpa.checkpoint.parts import PARTS
from jaxpa.checkpoint.report import info
from jaxpa.checkpoint.source import resolve
from jaxpa.cli.main import main
from jaxpa.config import Rounding
from jaxpa.devices import cost
from jaxpa.devices.plan import plan
from jaxpa.devices.sharding import make_mesh, rules
from jaxpa.errors import CheckpointError
from jaxpa.request.groups import Sampling
from jaxpa.request.request import Request

KINDS = pytest.mark.parametrize("kind", ["int8", "fp8"])


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make(tmp_path_factory.mktemp("source") / "small")


@pytest.fixture(scope="module")
def folders(source, tmp_path_factory):
    root = tmp_path_factory.mktemp("converted")
    return {kind: convert(source, root / kind, weights=kind) for kind in ("int8", "fp8")}


@KINDS
def test_loads_as_rounding_on_load_does(source, folders, kind):
    """Bit for bit, fused and stacked tensors and T5's too; nobody needs to say of how many bits they are."""
    got, want = load_parts(folders[kind]), load_parts(source, weights=kind)
    assert (got.weights.transformer, got.transformer.double_blocks.img.proj.kernel.get_value().values.dtype) == (
        kind, {"int8": jnp.int8, "fp8": jnp.float8_e4m3fn}[kind])  # fmt: skip
    for name in PARTS:
        pairs = [jax.tree.leaves(getattr(parts, name)) for parts in (got, want)]
        assert len(pairs[0]) == len(pairs[1])
        for a, b in zip(*pairs, strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(np.asarray(a).view(np.uint8), np.asarray(b).view(np.uint8))


def test_from_the_own_layout_too(source, folders, tmp_path):
    """Stacked in the source already."""
    again = convert(convert(source, tmp_path / "own"), tmp_path / "eight", weights="int8")
    for name in PARTS:
        a, b = ((folder / name / "model.safetensors").read_bytes() for folder in (again, folders["int8"]))
        assert a == b


@pytest.mark.parametrize("kind", ["stored", "int8"])
def test_shards_are_cut_out_of_the_mapped_file(source, folders, tmp_path, monkeypatch, kind):
    """The host holds no copy of any matrix: each is handed over as a read-only view of the file."""
    folder = folders["int8"] if kind == "int8" else convert(source, tmp_path / "own")
    handed, place = [], load._place
    monkeypatch.setattr(load, "_place", lambda host, sharding: handed.append(host) or place(host, sharding))
    mesh = make_mesh()
    load_parts(folder, dtype=np.float32, sharding=rules(mesh))
    matrices = [host for host in handed if host.ndim > 2 or host.dtype == np.int8]
    assert len(matrices) > 20
    assert not any(host.flags.writeable or host.flags.owndata for host in matrices)


@KINDS
def test_what_it_weighs(folders, kind):
    """`plan`, `info` and the file agree."""
    found = resolve(folders[kind])
    content = plan(found, Request(sampling=Sampling(height=64, width=64)), np.float32)
    assert (content["weights"], content["weight_bytes"]) == (kind, cost.weight_bytes(CONFIG, 4, Rounding(kind, kind)))
    said = info(folders[kind])
    assert said["loads"]
    assert said["bytes"] == sum(content["weight_bytes"].values())
    assert said["parameters"] == sum(cost.weight_parameters(CONFIG).values())


@pytest.mark.parametrize(("types", "becomes"), [
    ({"to_k": jnp.bfloat16}, np.float32),
    ({"to_q": jnp.bfloat16, "to_k": np.float16, "to_v": jnp.bfloat16}, np.float32),  # neither holds the other's
    (dict.fromkeys(("to_q", "to_k", "to_v"), jnp.bfloat16), jnp.bfloat16),
    ({"to_q": jnp.float8_e4m3fn, "to_k": jnp.bfloat16, "to_v": jnp.bfloat16}, jnp.bfloat16),
    (dict.fromkeys(("to_q", "to_k", "to_v"), jnp.float8_e4m3fn), jnp.bfloat16),
    ({"blocks.0.attn.to_q": jnp.float8_e4m3fn, "to_k": jnp.bfloat16, "to_v": jnp.bfloat16}, np.float32),  # of one block
])  # fmt: skip
def test_a_fused_tensor_holds_the_numbers_of_each_part(source, tmp_path, types, becomes):
    file = next((source / "transformer").glob("*.safetensors"))
    tensors = load_file(file)
    for key in tensors:
        kind = next((kind for name, kind in types.items() if f"{name}." in key), np.float32)
        tensors[key] = tensors[key].astype(kind)
    mixed = shutil.copytree(source, tmp_path / "mixed")
    entries = [(key, x.dtype, x.shape, lambda x=x: iter([x])) for key, x in tensors.items()]
    (mixed / "transformer" / file.name).unlink()
    write(mixed / "transformer" / file.name, entries, {}, lambda count: None)
    folder = convert(mixed, tmp_path / "own", weights="wide")
    qkv = read_header(folder / "transformer" / "model.safetensors")[0]["double_blocks.img.qkv.kernel"]
    assert qkv.read().dtype == becomes
    got, want = (load_parts(each, dtype=np.float32, weights="wide").transformer for each in (folder, mixed))
    assert same(got, want)


def test_other_weights_than_the_stored_are_refused(folders, tmp_path):
    with pytest.raises(CheckpointError, match="holds weights in int8: leave --weights away"):
        load_parts(folders["int8"], weights="fp8")
    with pytest.raises(CheckpointError, match="int8 already"):
        convert(folders["int8"], tmp_path / "twice", weights="int8")
    assert not (tmp_path / "twice").exists()


def damaged(folder, tmp_path, change):
    """The transformer's folder with other tensors."""
    file = folder / "transformer" / "model.safetensors"
    tensors = {key: tensor.read().copy() for key, tensor in read_header(file)[0].items()}
    change(tensors)
    entries = [(key, x.dtype, x.shape, lambda x=x: iter([x])) for key, x in tensors.items()]
    (tmp_path / "transformer").mkdir()
    write(tmp_path / "transformer" / "model.safetensors", entries, FORMAT, lambda count: None)
    (tmp_path / "transformer" / "config.json").write_text((folder / "transformer" / "config.json").read_text())
    return load_parts(tmp_path / "transformer", parts=("transformer",))


SCALE = "single_blocks.proj.kernel.scale"


@pytest.mark.parametrize(("kind", "change", "says"), [
    ("int8", lambda t: t.pop(SCALE), f"'{SCALE}' .* is missing"),
    ("int8", lambda t: t.update({"img_in.kernel.scale": t[SCALE]}), "'img_in.kernel.scale' belongs nowhere"),
    ("int8", lambda t: t.update({SCALE: t[SCALE][:, :3]}), f"'{SCALE}' is .*asks for"),
    ("int8", lambda t: t[SCALE].fill(np.inf), f"'{SCALE}' has numbers that are not finite"),
    ("int8", lambda t: t.update({"img_in.kernel": np.zeros_like(t["img_in.kernel"], np.int8)}), "type I8"),
    ("fp8", lambda t: t["single_blocks.linear2.kernel"].view(np.uint8)[0, 1].fill(0xFF), "not finite"),
])  # fmt: skip
def test_faults(folders, tmp_path, kind, change, says):
    with pytest.raises(CheckpointError, match=says):
        damaged(folders[kind], tmp_path, change)


def test_eight_bits_without_scales_are_no_weights(source, tmp_path):
    """A foreign file's integers are not taken for numbers."""
    file = next((source / "transformer").glob("*.safetensors"))
    tensors = load_file(file)
    key = "transformer_blocks.0.attn.to_q.weight"
    tensors[key] = tensors[key].astype(np.int8)
    (tmp_path / "transformer").mkdir()
    save_file(tensors, tmp_path / "transformer" / file.name)
    (tmp_path / "transformer" / "config.json").write_text((source / "transformer" / "config.json").read_text())
    with pytest.raises(CheckpointError, match="type I8, which is not supported"):
        load_parts(tmp_path / "transformer", parts=("transformer",))


def test_the_command(source, tmp_path, capsys):
    assert main(["convert", str(source), str(tmp_path / "eight"), "--weights", "int8"]) == 0
    assert main(["info", str(tmp_path / "eight"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["components"]["transformer"]["dtypes"]["I8"] > 0


def test_bf16_is_the_type_of_all_tensors(source, tmp_path, capsys):
    assert main(["convert", str(source), str(tmp_path / "half"), "--weights", "bf16"]) == 0
    assert main(["info", str(tmp_path / "half"), "--json"]) == 0
    components = json.loads(capsys.readouterr().out)["components"].values()
    assert [list(part["dtypes"]) for part in components] == [["BF16"]] * 4
    assert main(["convert", str(source), str(tmp_path / "both"), "--weights", "bf16", "--dtype", "float32"]) == 2
    assert "contradict" in capsys.readouterr().err
