"""What devices that share a model say to each other in a block: two sums in a double one, one in a single one."""

import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jaxpa.config import TransformerConfig
from jaxpa.devices.compiled import compiled, missing
from jaxpa.devices.programs import Job
from jaxpa.devices.targets import find

ROOT = Path(__file__).parents[2]
CONFIG = TransformerConfig(
    num_layers=2, num_single_layers=3, num_attention_heads=4, joint_attention_dim=64, pooled_projection_dim=32
)
HOST = Job(CONFIG, grid=(8, 8), text_tokens=32, steps=4, dtype="float32")
# Name -> the job and its mesh, data x model.
HOSTS = {
    "plain": (HOST, 1, 4),
    "bfloat16": (replace(HOST, dtype="bfloat16"), 1, 4),
    "rows": (replace(HOST, images=2), 2, 2),
    "replacement": (replace(HOST, references=1, above=2), 1, 4),
}
# On four host devices: what is said in a step, in one double block and in one single block; and a forward's error.
SCRIPT = """
import json, pickle, sys
from dataclasses import replace
from functools import partial
import jax, numpy as np
from flax import nnx
from jaxpa.devices import hlo
from jaxpa.devices.programs import program
from jaxpa.devices.sharding import make_mesh, over_rows, rules
from jaxpa.checkpoint.residence import path_of
from jaxpa.tokens import grid_positions
from jaxpa.transformer import Flux, FluxConditions

random = np.random.default_rng(0)

def normal(*shape):
    return random.standard_normal(shape).astype(np.float32)

facts, jobs = {}, pickle.load(sys.stdin.buffer)
config = jobs["plain"][0].config
net = jax.tree.map(lambda x: 0.05 * normal(*x.shape), Flux(config, rngs=nnx.Rngs(0)))
args = (normal(2, 16, config.in_channels), normal(2, 5, 64), normal(2, 32), np.float32([0.3, 0.6]), np.float32([1, 4]),
        grid_positions(4, 4))
forward = jax.jit(lambda net, *args: net(*args))
want = np.asarray(forward(net, *args))
few = (normal(4, 16, config.in_channels), np.full(4, 0.4, np.float32))
told = FluxConditions(normal(4, 5, 64), normal(4, 32), np.float32([1, 2, 3, 4]), args[-1])
prepare = jax.jit(lambda velocity: velocity.prepare(np.float32([0.4])).at(0).modulation)
mod = jax.tree.map(np.asarray, prepare(told.bind(net)))  # else its shares are gathered in every step
in_groups = jax.jit(lambda velocity, *x: velocity.by_groups(2, *x))
whole = np.asarray(jax.jit(lambda velocity, *x: velocity(*x))(told.bind(net), *few))
facts["errors"] = {}
for data, model in ((1, 4), (2, 2)):
    rule = rules(make_mesh(data, model))
    spread = jax.tree_util.tree_map_with_path(
        lambda path, x: jax.device_put(x, rule("transformer", path_of(path), x.shape)), net)
    with jax.set_mesh(make_mesh(data, model)):
        got = np.asarray(forward(spread, *args))
        over = partial(over_rows, make_mesh(data, model))
        ready = replace(told.each_row(over).bind(spread), modulation=mod), *over(few)
        grouped = in_groups.lower(*ready).compile()
        groups = np.asarray(grouped(*ready))
    facts["errors"][f"{data} x {model}"] = float(np.abs(got - want).max() / np.abs(want).max())
    facts["errors"][f"{data} x {model} in groups"] = float(np.abs(groups - whole).max() / np.abs(whole).max())
    facts[f"{data} x {model} in groups"] = sorted(hlo.total(hlo.read(grouped.as_text()).root).collectives)
for name, (job, data, model) in jobs.items():
    mesh = make_mesh(data, model)
    function, arguments = program(job, mesh, "cpu")
    with jax.set_mesh(mesh):
        text = jax.jit(function).trace(*arguments).lower().compile().as_text()
    trips = () if job.above is None else (job.above, job.steps - job.above)
    steps = [node for node in hlo.read(text, None, trips).root.loops if node.loops]
    facts[name] = [{"own": step.collectives, "blocks": [block.collectives for block in step.loops]} for step in steps]
print(json.dumps(facts))
"""


def streams(job: Job, rows: int) -> int:
    """Bytes of both streams of so many rows."""
    tokens = job.grid[0] * job.grid[1] + job.text_tokens
    return rows * tokens * job.config.width * np.dtype(job.dtype).itemsize


@pytest.fixture(scope="module")
def facts():
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu",
                        "PYTHONPATH": str(ROOT)}  # fmt: skip
    done = subprocess.run([sys.executable, "-c", SCRIPT], input=pickle.dumps(HOSTS), env=env, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", HOSTS)
def test_blocks_on_hosts(facts, name):
    """The CPU's compiler does not keep a double block's two pairs of sums together; what it sends is the same.

    Above tau, the reference is a row of its own. Nothing is said outside blocks. Sums are in float32 there.
    """
    job, data, _ = HOSTS[name]
    assert len(facts[name]) == (1 if job.above is None else 2)
    for step, rows in zip(facts[name], (job.images // data + job.references, job.images // data), strict=False):
        sent = streams(replace(job, dtype="float32"), rows)
        double, single = step["blocks"]
        assert double.pop("all-reduce") <= 3
        assert double == {"all-reduce bytes": 2 * sent}
        assert single == {"all-reduce": 1, "all-reduce bytes": sent}
        assert step["own"] == {}


def test_numbers_are_those_of_one_device(facts):
    """Random biases, too, each added once. Sums in another order: units in the last place of float32."""
    assert facts["errors"].keys() == {"1 x 4", "1 x 4 in groups", "2 x 2", "2 x 2 in groups"}
    assert max(facts["errors"].values()) <= 1e-5


def test_groups_of_rows_say_no_more(facts):
    """Every device has its share of each group: no row travels."""
    assert facts["1 x 4 in groups"] == facts["2 x 2 in groups"] == ["all-reduce", "all-reduce bytes"]


@pytest.mark.parametrize("device", ["v6e-4", "v5p-8", "h100x4"])
def test_blocks_by_the_compilers_of_devices(device):
    """Both streams of a double block in one sum; bfloat16 is summed as such."""
    target, job = find(device), replace(HOST, grid=(32, 32), text_tokens=512, dtype="bfloat16")
    if need := missing(target):
        pytest.skip(need)
    step = compiled(job, target, (1, 4))["stretches"][0]
    if step["blocks"]:  # else they stand one by one
        counts = [block["collectives"]["all-reduce"]["count"] for block in step["blocks"]]
        assert counts == [2, 1]
    blocks = CONFIG.num_layers, CONFIG.num_single_layers
    sums = {"count": 2 * blocks[0] + blocks[1], "bytes": (2 * blocks[0] + blocks[1]) * streams(job, 1)}
    assert step["collectives"] == {"all-reduce": sums}
