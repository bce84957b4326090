"""Sharding: the rules on full-size shapes, and a small pipeline on four host devices against the same on one."""

import json
import math
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import jax
import pytest
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P
from small_checkpoint import CONFIG, make

from jaxpa.checkpoint.keys import COMPONENTS, leaves
from jaxpa.config import flux_dev
from jaxpa.devices.programs import Job, program
from jaxpa.devices.sharding import make_mesh, rules, table
from jaxpa.errors import JaxpaError

# Runs on four devices: the pipeline of argv, loaded whole and in shares, forward by forward; facts as JSON.
SCRIPT = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
from jaxpa.checkpoint.load import load_parts
from jaxpa.errors import JaxpaError
from jaxpa.devices.sharding import make_mesh, over_rows, rules
from jaxpa.tokens import grid_positions

def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)

transformer = jax.jit(lambda net, *args: net(*args))
t5 = jax.jit(lambda net, ids: net(ids))
clip = jax.jit(lambda net, ids: net(ids).pooled)
ids = np.arange(4 * 6, dtype=np.int32).reshape(4, 6)
rows = (normal(0, 4, 12, 16), normal(1, 4, 5, 12), normal(2, 4, 8), np.full(4, 0.7, np.float32),
        np.full(4, 3.5, np.float32))

def outputs(parts, put):
    return {"transformer": transformer(parts.transformer, *map(put, rows), grid_positions(3, 4)),
            "text_encoder_2": t5(parts.text_encoder_2, put(ids)), "text_encoder": clip(parts.text_encoder, put(ids))}

facts = {"devices": jax.device_count(), "bad": {}, "meshes": {}}
for data, model in ((3, 1), (4, 4), (0, None), (3, None), (2, 0)):
    try:
        make_mesh(data, model)
    except JaxpaError as error:
        facts["bad"][f"{data} {model}"] = str(error)
whole = load_parts(sys.argv[1])
for data, model in ((2, 2), (1, None), (4, None)):
    mesh = make_mesh(data, model)
    asked, shares = {}, {}
    def sharding(component, path, shape):
        asked[component, path] = rules(mesh)(component, path, shape)
        return asked[component, path]
    parts = load_parts(sys.argv[1], sharding=sharding)
    for name in ("transformer", "vae", "text_encoder", "text_encoder_2"):
        arrays, originals = (jax.tree.leaves(getattr(each, name)) for each in (parts, whole))
        paths = [path for component, path in asked if component == name]
        for path, array, original in zip(paths, arrays, originals, strict=True):
            assert array.sharding == asked[name, path], path
            assert len(array.sharding.device_set) == 4
            np.testing.assert_array_equal(array, original)
            shares[f"{name}.{path}"] = array.addressable_shards[0].data.size / array.size
    facts["meshes"][f"{mesh.shape['data']} x {mesh.shape['model']}"] = {
        "shares": shares, "types": [str(kind) for kind in mesh.axis_types],
        "rows": [shard.data.shape[0] for shard in over_rows(mesh, rows[0]).addressable_shards]}
    if (data, model) == (2, 2):
        want, got = outputs(whole, lambda x: x), outputs(parts, lambda x: over_rows(mesh, x))
        facts["errors"] = {name: float(np.abs(np.asarray(got[name]) - want[name]).max()) for name in want}
        facts["scales"] = {name: float(np.abs(want[name]).max()) for name in want}
        eight, whole_eight = (load_parts(sys.argv[1], sharding=s, weights="int8") for s in (rules(mesh), None))
        want = outputs(whole_eight, lambda x: x)
        got = outputs(eight, lambda x: over_rows(mesh, x))
        facts["eight errors"] = {name: float(np.abs(np.asarray(got[name]) - want[name]).max()) for name in want}
        for name in ("q", "proj"):
            stream = eight.transformer.double_blocks.img
            kernel = (stream.qkv.q if name == "q" else stream.proj).kernel.get_value()
            facts["eight " + name] = [str(x.sharding.spec) for x in (kernel.values, kernel.scale)]
print(json.dumps(facts))
"""


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    folder = make(tmp_path_factory.mktemp("sharding") / "flux")
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu",
                        "PYTHONPATH": str(Path(__file__).parents[2])}  # fmt: skip
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(folder)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_same_numbers(facts):
    """A sum over devices adds in another order: some units in the last place of float32, relative to the largest.

    Random weights of unit variance saturate T5's softmax, whose logits are not scaled: 4e-6 there, 1e-6 elsewhere.
    """
    for name, error in facts["errors"].items():
        assert error <= 1e-5 * facts["scales"][name], (name, error)
    assert facts["errors"].keys() == {"transformer", "text_encoder", "text_encoder_2"}


def test_weights_of_eight_bits(facts):
    """A scale lies where its outputs lie; the numbers are those of one device."""
    assert facts["eight q"] == [str(P(None, None, "model")), str(P(None, "model"))]
    assert facts["eight proj"] == [str(P(None, "model", None)), str(P(None, None))]
    for name, error in facts["eight errors"].items():
        assert error <= 1e-5 * facts["scales"][name], (name, error)


def test_axes_are_automatic(facts):
    assert all("Auto" in kind for mesh in facts["meshes"].values() for kind in mesh["types"])


def test_parameters_are_shared_out(facts):
    shares = facts["meshes"]["2 x 2"]["shares"]
    split = {"transformer": ("mod", "q", "k", "v", "mlp_in", "proj", "mlp_out"),
             "text_encoder_2": ("q", "k", "v", "wi_0", "wi_1", "o", "wo"),
             "text_encoder": ("q", "k", "v", "fc1", "out", "fc2")}  # fmt: skip
    for name, share in shares.items():
        component, *path = name.split(".")
        module, kind = path[-2:] if len(path) > 1 else ("", path[0])
        inside = "blocks." in name and component != "vae" and module in split[component]
        whole_bias = kind == "bias" and module in ("proj", "mlp_out", "out", "fc2")
        assert share == (0.5 if inside and not whole_bias else 1), name
    assert set(facts["meshes"]["4 x 1"]["shares"].values()) == {1}


def test_what_does_not_divide_is_whole(facts):
    assert facts["meshes"]["1 x 4"]["shares"]["transformer.double_blocks.img.qkv.q.kernel"] == 0.25
    sizes = {"data": 1, "model": 3}
    sharding = rules(AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * 2))
    assert sharding("transformer", "single_blocks.mod.kernel", (2, 16, 48)).spec == P(None, None, "model")
    assert sharding("transformer", "single_blocks.mod.kernel", (2, 16, 50)).spec == P(None, None, None)
    assert sharding("vae", "decoder.conv_in.kernel", (3, 3, 6, 6)).spec == P(None, None, None, None)


def test_rows_over_data(facts):
    rows = {mesh: facts["meshes"][mesh]["rows"] for mesh in facts["meshes"]}
    assert rows == {"2 x 2": [2] * 4, "1 x 4": [4] * 4, "4 x 1": [1] * 4}


def test_meshes_that_do_not_fit(facts):
    assert facts["devices"] == 4
    assert len(facts["bad"]) == 5
    for message in facts["bad"].values():
        assert "does not fit 4 devices" in message
        assert "\n" not in message
    assert "data = 4 x model = 4" in facts["bad"]["4 4"]


def test_one_device():
    if jax.device_count() > 1:
        pytest.skip("this machine has several")
    assert dict(make_mesh().shape) == {"data": 1, "model": 1}
    with pytest.raises(JaxpaError, match="1 device:"):
        make_mesh(2)


def test_full_size():
    """FLUX.1-dev over eight devices: blocks are never cut along depth; an eighth each, and little more."""
    sharding = rules(AbstractMesh((1, 8), ("data", "model"), axis_types=(AxisType.Auto,) * 2))
    held, total, used = Counter(), Counter(), set()
    for name in COMPONENTS:
        for leaf in leaves(name, getattr(flux_dev(), name), "jaxpa"):
            where = sharding(name, leaf.path, leaf.shape)
            if "blocks." in leaf.path and name != "vae":
                assert where.spec[0] is None
            used |= {tuple(where.spec)}
            held[name] += math.prod(where.shard_shape(leaf.shape))
            total[name] += leaf.size
    assert used >= {(None, None, "model"), (None, "model"), (None, "model", None)}
    assert held["transformer"] < 1.01 * total["transformer"] / 8 + 60e6  # layers at the ends are 58 M, and whole
    assert held["text_encoder_2"] < 1.01 * (total["text_encoder_2"] - 132e6) / 8 + 132e6  # the embedding is whole
    assert held["vae"] == total["vae"]


def test_rows_of_a_program_are_told_apart_from_other_axes():
    """Two images, two references, two times: only what has the batch's rows is cut, whatever else is as long."""
    mesh = AbstractMesh((2, 1), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    job = Job(CONFIG.transformer, (2, 3), text_tokens=5, images=2, references=2, steps=1, masked=6)
    _, (_, text, x, times, reference) = program(replace(job, preset=replace(job.preset, soft=True)), mesh, "cpu")
    cut = {"text": {"txt", "vec", "guidance"}, "reference": {"placement"}}
    for name, fields in (("reference", reference._asdict()), ("text", text._asdict())):
        specs = {key: {each.sharding.spec for each in jax.tree.leaves(value)} for key, value in fields.items()}
        assert {key for key, value in specs.items() if value == {P("data")}} == cut[name]
        assert {each for key, value in specs.items() if key not in cut[name] for each in value} <= {P()}
    assert (x.sharding.spec, times.sharding.spec) == (P("data"), P())


@pytest.mark.parametrize("rule", table(), ids=lambda rule: rule[0])
def test_no_rule_is_idle(rule):
    names = [f"{name}.{leaf.path}" for name in COMPONENTS for leaf in leaves(name, getattr(CONFIG, name), "jaxpa")]
    assert any(re.fullmatch(rule[0], name) for name in names)
