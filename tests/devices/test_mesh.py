"""A mesh really spreads the work: pictures of eight host devices against those of one, with all that a run may have."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# The embedded checkpoint on a mesh and on one device: the largest difference of pictures, and where rows lay.
SCRIPT = """
import json, sys, tempfile, warnings
import jax, numpy as np
from jax.sharding import AxisType, Mesh
import jaxpa
from safetensors.numpy import save_file
from jaxpa.checkpoint.keys import leaves
from jaxpa.devices.sharding import make_mesh, parse_mesh
from jaxpa.errors import JaxpaError

pictures = "examples/pictures/"
subject = jaxpa.Subject(pictures + "car.png", mask=pictures + "car-mask.png", at=(0.4, 0.6))
STEPS = 3

def make_lora(pipe):
    "A random one in every layer of a block that a mesh splits."
    file, rng, tensors = tempfile.mkdtemp() + "/lora.safetensors", np.random.default_rng(0), {}
    for block in ("transformer_blocks.0.", "single_transformer_blocks.1."):
        for leaf in leaves("transformer", pipe.parts.config.transformer, "diffusers"):
            for source in leaf.sources:
                if source.startswith(block) and leaf.path.endswith(".kernel"):
                    (out, inputs), name = leaf.stored_shape, source.removesuffix("weight")
                    tensors["transformer." + name + "lora_A.weight"] = rng.normal(0, inputs**-0.5, (4, inputs))
                    tensors["transformer." + name + "lora_B.weight"] = rng.normal(0, 0.2, (out, 4))
    save_file({key: value.astype(np.float32) for key, value in tensors.items()}, file)
    return file

def runs(pipe, kinds):
    if "generate" in kinds:
        yield "generate", pipe.generate("a red car on a beach", num_images=8, steps=STEPS)
    for concat in {"zero", "joined"} & kinds:
        yield concat, pipe.personalize("a red car on a beach", [subject], concat=concat, num_images=3, steps=STEPS)

EVERYTHING = {"generate", "zero", "joined"}
bare = jaxpa.load("mini")
one = dict(runs(bare, EVERYTHING))
explicit = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
facts = {"worst": {}, "bad": {}}
for name, mesh, kinds in (("data", parse_mesh("data=8"), {"generate"}), ("both", parse_mesh("model=2"), EVERYTHING),
                          ("explicit", explicit, set())):
    pipe = jaxpa.load("mini", mesh=mesh)
    spread = dict(runs(pipe, kinds))
    facts["worst"][name] = {
        run: max(float(np.abs(np.asarray(a, int) - np.asarray(b, int)).max()) for a, b in zip(spread[run], one[run]))
        for run in spread}
    rows = pipe.noise(np.arange(8, dtype=np.uint32), (4, 4))
    facts[name] = sorted({shard.data.shape[0] for shard in rows.addressable_shards})
    if name == "both":
        lora = [make_lora(pipe)]
        (got,), (want,) = (each.with_loras(lora).generate("a red car on a beach", steps=1) for each in (pipe, bare))
        facts["lora"] = [float(np.abs(np.asarray(got, int) - np.asarray(other, int)).max())
                         for other in (want, bare.generate("a red car on a beach", steps=1)[0])]
        kernel = pipe.with_loras(lora).parts.transformer.single_blocks.mlp_out.kernel.get_value()
        facts["lora shares"] = [x.addressable_shards[0].data.size / x.size for x in (kernel.down, kernel.up)]
    weight = pipe.parts.transformer.double_blocks.img.qkv.q.kernel[...]
    facts[name + " weight"] = weight.addressable_shards[0].data.size / weight.size
for text in ("data=3", "rows=2", "data=2,data=4", "data", "model=x"):
    try:
        parse_mesh(text)
    except JaxpaError as error:
        facts["bad"][text] = str(error)
try:
    jaxpa.load("mini", mesh=Mesh(np.array(jax.devices()), ("x",)))
except JaxpaError as error:
    facts["bad"]["axis"] = str(error)
print(json.dumps(facts))
"""


@pytest.fixture(scope="module")
def facts():
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, env=env | {"PYTHONPATH": str(ROOT)}, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_pictures_are_those_of_one_device(facts):
    """Sums in another order: within one grey level."""
    assert {name: set(worst) for name, worst in facts["worst"].items() if worst} == {
        "data": {"generate"}, "both": {"generate", "zero", "joined"},
    }  # fmt: skip
    assert max(value for worst in facts["worst"].values() for value in worst.values()) <= 1


def test_rows_and_weights_are_spread(facts):
    assert (facts["data"], facts["both"], facts["explicit"]) == ([1], [2], [2])
    assert (facts["data weight"], facts["both weight"], facts["explicit weight"]) == (1, 0.5, 0.5)


def test_a_lora_beside_weights_that_are_split(facts):
    """Its factors lie apart as the weights do: of the second layer of two, A's inputs, and B whole."""
    against_one_device, against_none = facts["lora"]
    assert against_one_device <= 1 < 20 < against_none
    assert facts["lora shares"] == [0.5, 1]


def test_what_is_no_mesh(facts):
    assert facts["bad"].keys() == {"data=3", "rows=2", "data=2,data=4", "data", "model=x", "axis"}
    assert "does not fit 8 devices" in facts["bad"]["data=3"]
    assert "data=2,model=4" in facts["bad"]["rows=2"]
    assert "axis 'x'" in facts["bad"]["axis"]


def test_the_command_takes_a_mesh(run, tmp_path):
    """Of the one device that is here; what does not fit it is refused."""
    words = ("generate", "--prompt", "a red star at night", "--steps", 1, "--out", tmp_path / "a.png")
    assert run(*words, "--mesh", "data=1,model=1")[0] == 0
    status, _, err = run(*words[:-1], tmp_path / "b.png", "--mesh", "model=3")
    assert (status, "does not fit 1 device" in err) == (2, True)
