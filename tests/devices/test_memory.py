"""The memory that a plan foretells, against what XLA says of the compiled programs; and what is refused."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpa
from jaxpa import kernels, sampling
from jaxpa import model as arrays
from jaxpa.checkpoint.keys import abstract
from jaxpa.config import AutoencoderConfig, FluxConfig
from jaxpa.devices import memory
from jaxpa.devices.memory import (
    Held,
    Load,
    activation_bytes,
    autoencoder_bytes,
    batch_that_fits,
    require,
    transformer_bytes,
)
from jaxpa.devices.plan import Run
from jaxpa.devices.programs import Job, program
from jaxpa.devices.sharding import make_mesh
from jaxpa.errors import JaxpaError
from jaxpa.presets import PRESETS
from jaxpa.request.spec import Spec

ROOT = Path(__file__).parents[2]
LOW, HIGH = 0.8, 1.6  # an estimate that is too low lets a run die; one that is too high refuses a run that fits


@pytest.fixture(scope="module")
def pipe():
    return jaxpa.load("mini")


def temp_bytes(function, *arguments):
    found = function.lower(*arguments).compile().memory_analysis()
    assert found is not None
    return found.temp_size_in_bytes


# The same program takes less of a newer compiler's memory: at 256 the ratio is 1.43 with JAX 0.10 and 1.84 with 0.12.
@pytest.mark.parametrize(("side", "rows", "high"), [(96, 4, HIGH), (256, 4, 1.9)])
def test_a_sampling(pipe, side, rows, high):
    grid = pipe.grid(side, side)
    x = jax.ShapeDtypeStruct((rows, grid[0] * grid[1], 32), jnp.float32)
    velocity = pipe.guided(pipe.encode_text(["a"] * rows), grid, 4.0, None)
    found = temp_bytes(jax.jit(sampling.sample), velocity, x, jnp.asarray(pipe.times(4, grid)))
    load = Load(pipe.parts.config, grid, pipe.settings.max_length, rows)
    assert LOW < transformer_bytes(load, "cpu") / found < high


@pytest.mark.parametrize("concat", [None, "zero", "joined"])
def test_references_and_images_together(pipe, concat):
    """Two references and four images: references are rows of their own before tau, joined ones longer images after."""
    c, grid, preset = pipe.parts.config, (24, 24), replace(PRESETS["mini"], concat=concat)
    job = Job(c.transformer, grid, 32, 4, 2, 4, 2, preset=preset, masked=2 * 576, dtype="float32")
    function, arguments = program(job, make_mesh(1, 1), "cpu")
    found = temp_bytes(jax.jit(function), *arguments)
    context = 2 * 576 if concat else 0
    run = Run(Spec(c, pipe.settings), grid, 32, np.linspace(1, 0, 5), [0.5], 4, 2, 0, context, False, preset)
    assert LOW < transformer_bytes(run.load(4, Held(), "cpu"), "cpu") / found < HIGH


def test_the_widest_convolution():
    config, side = AutoencoderConfig(block_out_channels=(32, 64, 64), mid_block_add_attention=False), 128
    vae, cell = abstract("vae", config, np.dtype(np.float32)), 2 * config.downscale
    tokens = jax.ShapeDtypeStruct((1, (side // cell) ** 2, 4 * config.latent_channels), jnp.float32)
    found = temp_bytes(arrays._decode, vae, tokens, side // cell, side // cell)
    load = Load(FluxConfig(vae=config), (side // cell, side // cell), 32, 1)
    assert LOW < autoencoder_bytes(load, "cpu") / found < HIGH


PEAK = """
import resource, jax.numpy as jnp, jaxpa
pipe, side = jaxpa.load("mini"), 512
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
pipe.decode(jnp.zeros((1, 64 * 64, 32)), side, side)
print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a process' memory is counted in other units elsewhere")
def test_an_autoencoder_s_attention(pipe):
    """mini at 512 x 512: its logits would be a gigabyte, were they held at once. A process of its own counts them."""
    run = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, cwd=ROOT, check=True)
    found = int(run.stdout)
    estimated = autoencoder_bytes(Load(pipe.parts.config, (64, 64), 32, 1), "cpu")
    assert max(found, estimated) < 2**29  # a process' memory before is its peak while loading: no lower bound


def test_fused_attention_writes_no_logits():
    """FLUX.1-dev at 1024 x 1024 on a GPU: none in bfloat16; in float32 those of a block of queries at a time."""
    half, full = (Load(FluxConfig(), (64, 64), 512, 1, itemsize=size) for size in (2, 4))
    assert transformer_bytes(half, "gpu") < 2**29
    assert 24 * 2**20 * 8 / 2 < transformer_bytes(full, "gpu") - 2 * transformer_bytes(half, "gpu") < 8 * 24 * 4608**2
    assert activation_bytes(half, "gpu") < 16 * 2**30


@pytest.mark.parametrize("width", [64, 128, 512])
@pytest.mark.parametrize("queries", [512, 4608])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.usefixtures("as_users_call")  # shapes stand for arrays here
def test_a_tpu_s_kernel_writes_no_logits(width, queries, dtype):
    """Where `kernels` has splash attention, and only there."""
    q, k = (jax.ShapeDtypeStruct((1, 2, tokens, width), dtype) for tokens in (queries, 4608))
    found = memory.logits_bytes("tpu", 1, 2, queries, 4608, width, q.dtype.itemsize)
    assert (found == 0) == kernels._splash_takes(q, k)  # type: ignore[arg-type]


# What the devices' compilers say of FLUX.1-dev (examples/compile_devices.py and its decoder, 2026-11-25), in GiB.
@pytest.mark.parametrize(("estimate", "side", "rows", "found"), [
    (transformer_bytes, 1024, 1, 0.305), (transformer_bytes, 1024, 2, 0.61),
    (autoencoder_bytes, 1024, 1, 1.25), (autoencoder_bytes, 2048, 1, 5.0),
])  # fmt: skip
def test_beside_an_h100_s_compiler(estimate, side, rows, found):
    load = Load(FluxConfig(), (side // 16, side // 16), 512, rows, itemsize=2)
    assert LOW < estimate(load, "gpu") / 2**30 / found < HIGH


def test_a_batch_is_the_largest_that_fits(monkeypatch):
    """Equal batches, none above the limit; where not even one image fits, none."""
    load = lambda count: Load(FluxConfig(), (64, 64), 512, count, itemsize=2)  # noqa: E731
    one, two = (memory.peak_bytes(load(count), "gpu") for count in (100, 101))
    for have, images, fits in ((two / memory.TOGETHER, 100, 100), (one / memory.TOGETHER, 150, 75), (1e9, 4, 0)):
        monkeypatch.setattr(memory, "machine_bytes", lambda have=have: int(have) + 1)
        assert batch_that_fits(load, images, "gpu") == fits
    monkeypatch.setattr(memory, "machine_bytes", lambda: None)
    assert batch_that_fits(load, 10**6, "gpu") == 10**6


def test_both_numbers_are_named(monkeypatch):
    monkeypatch.setattr(memory, "machine_bytes", lambda: 8 * 2**30)
    require(7 * 2**30, "it", "less")
    with pytest.raises(JaxpaError, match=r"9\.0 GiB of memory, and this machine has 8\.0 GiB.*--force"):
        require(9 * 2**30, "it", "make less")


def test_this_machine_has_memory():
    assert 2**28 < (memory.machine_bytes() or 0) < 2**50
