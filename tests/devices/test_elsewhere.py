"""Plans for devices that are not here: names, meshes, the formula, and programs, where a compiler is installed."""

import json
import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType

from jaxpa.config import TransformerConfig, flux_dev
from jaxpa.devices import cost, elsewhere, hlo
from jaxpa.devices.compiled import _read, compiled, meshes, missing
from jaxpa.devices.elsewhere import parse_mesh
from jaxpa.devices.programs import Job, model
from jaxpa.devices.targets import find
from jaxpa.errors import JaxpaError

SMALL = TransformerConfig(num_layers=2, num_single_layers=3, num_attention_heads=4, joint_attention_dim=64)


@pytest.mark.parametrize(
    ("name", "count", "platform", "gib"),
    [
        ("v5e-1", 1, "tpu", 16), ("V5E-8", 8, "tpu", 16), ("v5p-8", 4, "tpu", 96), ("v6e-4", 4, "tpu", 32),
        ("h100", 1, "cuda", 80), ("h100x8", 8, "cuda", 80), ("rtx4080", 1, "cuda", 16), ("a100-40gbx2", 2, "cuda", 40),
    ],
)  # fmt: skip
def test_names_as_devices_are_rented(name, count, platform, gib):
    target = find(name)
    assert (target.count, target.chip.platform) == (count, platform)
    assert 0.94 * gib <= target.chip.memory / 2**30 <= gib  # what is left of it


@pytest.mark.parametrize(
    ("name", "says"),
    [("v6e-3", "v6e comes as v6e-1, v6e-4, v6e-8"), ("v5p-4", "v5p comes as v5p-8"), ("h100x9", "1 to 8 GPUs"),
     ("m3", "not known: v4-N")],
)  # fmt: skip
def test_names_that_are_refused(name, says):
    with pytest.raises(JaxpaError, match=says):
        find(name)


def test_meshes_use_all_chips_and_divide_the_work():
    job = Job(SMALL, (16, 16), images=2)
    assert meshes(job, find("v6e-4")) == [(2, 2), (1, 4)]
    assert meshes(job, find("h100x8")) == [(2, 4)]  # four heads
    assert meshes(job, find("h100")) == [(1, 1)]
    assert parse_mesh("model=4", find("v6e-4")) == (1, 4)
    for text in ("data=2,model=4", "data", "model=2,model=2x", "rows=2"):
        with pytest.raises(JaxpaError, match="--mesh"):
            parse_mesh(text, find("v6e-4"))


def test_the_network_as_shapes_is_the_whole_network():
    job = Job(flux_dev().transformer, (64, 64))
    mesh = AbstractMesh((1, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    leaves = jax.tree.leaves(model(job, mesh, "tpu"))  # type: ignore[arg-type]
    assert sum(math.prod(x.shape) for x in leaves) == cost.weight_parameters(flux_dev())["transformer"]
    share = sum(math.prod(x.sharding.shard_shape(x.shape)) for x in leaves)
    assert share < 0.26 * sum(math.prod(x.shape) for x in leaves)  # a quarter, and the layers at the ends


def test_a_loop_over_blocks_is_no_step():
    """As many blocks as steps: the loop that computes what all steps share is not counted among them."""

    def f(x: jax.Array, blocks: jax.Array) -> jax.Array:
        shared = jax.lax.map(lambda w: jnp.tanh(x @ w), blocks)  # 3 blocks
        body = lambda x, of_block: (jnp.tanh(x @ of_block[0]) + of_block[1], None)  # noqa: E731
        return jax.lax.fori_loop(0, 3, lambda _, x: jax.lax.scan(body, x, (blocks, shared))[0], x)

    text = jax.jit(f).lower(jnp.ones((16, 32)), jnp.ones((3, 32, 32))).compile().as_text()
    loops = hlo.read(text).root.loops
    assert [(loop.trips, len(loop.loops)) for loop in loops] == [(3, 0), (3, 1)]
    (step,) = _read(text, Job(SMALL, (4, 4), steps=3), find("v6e-1"))["stretches"]
    assert [block["trips"] for block in step["blocks"]] == [3]


def test_the_formula_stands_in_for_a_compiler(run, monkeypatch):
    monkeypatch.setattr(elsewhere, "missing", lambda target: "pip install 'jaxpa[tpu]'")
    status, out, err = run("plan", "--config", "dev", "--references", 0, "--device", "v5e-1", "--json")
    assert status == 0, err
    content = json.loads(out)
    assert (content["method"], content["needs"]) == ("formula", "pip install 'jaxpa[tpu]'")
    assert (content["dtype"], content["fits"]) == ("bfloat16", False)  # 22 GiB of weights, 16 GiB of memory
    assert content["peak_seconds"] == pytest.approx(28 * 74.385e12 / 197e12, rel=1e-4)
    status, out, _ = run("plan", "--config", "dev", "--references", 0, "--device", "h100")
    assert status == 0
    assert "fits: " in out
    assert "pip install 'jaxpa[tpu]'" in out
    status, _, err = run("plan", "--device", "v6e-5")
    assert (status, err.count("\n")) == (2, 1)


@pytest.mark.parametrize("name", ["v6e-1", "v5e-4", "h100", "h100x2"])
@pytest.mark.parametrize("references", [0, 1])
def test_compiled_for_it(name, references):
    target = find(name)
    if need := missing(target):
        pytest.skip(f"needs {need}")
    job = Job(SMALL, (32, 32), images=1, references=references, steps=3, above=2 if references else None)
    report = compiled(job, target)
    chips = target.count
    assert report["label"] == "compiled, not run"
    assert report["fits"]
    assert report["mesh"] == {"data": 1, "model": chips}
    assert report["peak_bytes"] >= report["argument_bytes"] >= report["weight_bytes"]
    kernel = "cudnn" if target.chip.platform == "cuda" else "splash"
    assert kernel in report["kernel"]
    # Blocks of one kind are one loop: once a step, and a personalisation has two stretches of steps.
    for stretch in report["stretches"]:
        assert sum(stretch["kernels"].values()) == 5
    assert len(report["stretches"]) == 1 + references
    assert bool(report["collectives"]) == (chips > 1)
    if target.chip.platform == "tpu":
        assert report["cycles"] > 0
    else:
        forwards = 3 + 2 * references  # reference rows ride along above tau
        least = forwards * cost.transformer_flops(SMALL, 32 * 32, 512) / target.chip.flops / chips
        assert report["seconds"]["products"] + report["seconds"]["attention"] > 0.95 * least
