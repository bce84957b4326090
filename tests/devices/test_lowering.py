"""Which attention a device's program has, seen in what its compiler is handed: neither one need be here."""

import math
import re
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo
from jax.sharding import AxisType, Mesh

from jaxpa import kernels
from jaxpa.config import TransformerConfig
from jaxpa.devices import cost
from jaxpa.devices.programs import Job, program
from jaxpa.presets import PRESETS

CONFIG = TransformerConfig(num_layers=2, num_single_layers=2, num_attention_heads=2, joint_attention_dim=64)
PLAIN = Job(CONFIG, grid=(32, 48), steps=2)  # 1536 + 512 tokens
CONTEXT = replace(PLAIN, references=1, masked=1536, preset=replace(PRESETS["official"], concat="zero"))
JOINED = replace(CONTEXT, preset=PRESETS["paper"])
GUIDED = replace(CONTEXT, guided=True, config=replace(CONFIG, guidance_embeds=False))
LENGTH = 1536 + 512
JOBS = pytest.mark.parametrize("job", [PLAIN, CONTEXT, JOINED, GUIDED], ids=["plain", "context", "joined", "guided"])


@pytest.fixture(autouse=True)
def cuda(monkeypatch):
    """As if JAX's CUDA plugin were installed: it is asked for while tracing, and not needed for lowering."""
    monkeypatch.setattr(kernels, "_cudnn_is_here", lambda: True)
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)


def lowered(job: Job, platform: str) -> str:
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    function, arguments = program(job, mesh, platform)
    return jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()


def products(job: Job) -> float:
    """The FLOP of a sampling's products, counted in what JAX traces: loops with their trips, if they are known, and
    of branches for several platforms the longest."""
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    function, arguments = program(job, mesh, "cpu")

    def count(jaxpr: Any) -> float:
        total = 0.0
        for one in jaxpr.eqns:
            inner = [
                each for value in one.params.values() for each in (value if isinstance(value, tuple) else (value,))
            ]
            inner = [getattr(each, "jaxpr", each) for each in inner if hasattr(getattr(each, "jaxpr", each), "eqns")]
            joined = max if one.primitive.name == "cond" else sum
            total += one.params.get("length", 1) * joined([0.0, *map(count, inner)])
            if one.primitive.name == "dot_general":
                (contracted, _), _ = one.params["dimension_numbers"]
                depth = math.prod(one.invars[0].aval.shape[axis] for axis in contracted)
                total += 2 * depth * one.outvars[0].aval.size
        return total

    return count(jax.make_jaxpr(function)(*arguments).jaxpr)


SMALL = replace(PLAIN, grid=(4, 4), text_tokens=8, dtype="float32", steps=2)
DRAWN = replace(SMALL, references=1, masked=16, above=1, preset=replace(PRESETS["official"], concat=None))


@pytest.mark.parametrize("job", [SMALL, DRAWN], ids=["plain", "references"])
def test_the_solver_is_in_the_program(job):
    """Heun's asks the network twice a step. Attention's padding on another platform is counted too: within a tenth."""
    euler, heun, ab2 = (products(replace(job, solver=solver)) for solver in ("euler", "heun", "ab2"))
    rows = 1 + 1 + job.references if job.references else job.steps  # a step on either side of tau, or all steps
    step = rows * cost.transformer_flops(CONFIG, 16, 8)
    assert ab2 == euler
    assert heun - euler == pytest.approx(step, rel=0.1)
    assert products(replace(job, cache=True)) == pytest.approx(euler, rel=0.02)  # a glance costs little


def test_a_soft_mask_is_in_the_program():
    """The shares of the mask are an argument that something reads."""
    jobs = (replace(DRAWN, preset=replace(PRESETS["official"], soft=soft)) for soft in (False, True))
    heads = (re.search(r"func public @main\((.*?)\) ->", lowered(job, "cpu"), re.DOTALL) for job in jobs)
    assert [head and head[1].count("tensor<1x16xf32>") for head in heads] == [0, 1]


def logits(text: str) -> list[str]:
    """The types of arrays that have two axes as long as a sequence."""
    types = set(re.findall(r"tensor<([\dx]+)x[a-z]\w*>", text))
    return [t for t in types if sum(int(n) >= LENGTH for n in t.split("x")) >= 2]


@JOBS
@pytest.mark.parametrize(("platform", "kernel"), [("cuda", "__cudnn$fmha"), ("tpu", "tpu_custom_call")])
def test_half_precision_takes_the_fused_kernel(job, platform, kernel):
    text = lowered(job, platform)
    assert kernel in text
    assert logits(text) == []
    others = {"__cudnn$fmha", "tpu_custom_call"} - {kernel}
    assert not any(other in text for other in others)


@pytest.mark.parametrize("text_tokens", [512, 512 + 729])  # the second: an odd number, with an image prompt's
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_float32_is_taken_in_blocks(platform, text_tokens):
    text = lowered(replace(CONTEXT, dtype="float32", text_tokens=text_tokens), platform)
    assert "__cudnn$fmha" not in text
    assert logits(text) == []


@pytest.mark.parametrize("bias", [None, (1, 2, 1, 45), (2, 1, 37, 45)], ids=str)
@pytest.mark.parametrize("queries", [37, 32])
def test_blocks_of_queries_are_the_whole(monkeypatch, queries, bias):
    """In as many blocks as it takes, the last one padded where they do not come out even."""
    monkeypatch.setattr(kernels, "LONG", 10)
    rng = np.random.default_rng(0)
    q, k, v = (jax.numpy.asarray(rng.normal(size=(2, 2, n, 8)), "float32") for n in (queries, 45, 45))
    drawn = None if bias is None else jax.numpy.asarray(rng.normal(size=bias), "float32")[:, :, :queries]
    length = jax.numpy.array([45, 20])
    assert kernels.block_of(queries, 45) == 2
    blocks = kernels._by_query_block(q, k, v, drawn, length, scale=0.3)
    np.testing.assert_allclose(blocks, kernels._softmax(q, k, v, drawn, length, scale=0.3), 2e-6, 2e-6)


def test_kernels_of_queries_keys_and_values_stay_apart_on_nvidia():
    """XLA would merge the products of the text, and copy their kernels into one for it."""
    kernel = f"tensor<{CONFIG.width}x{CONFIG.width}xbf16>"
    apart = {p: sum("optimization_barrier" in line and kernel in line for line in lowered(PLAIN, p).splitlines())
             for p in ("cuda", "tpu", "rocm")}  # fmt: skip
    assert apart == {"cuda": 2 * 3 + 3, "tpu": 0, "rocm": 0}  # of the two streams, and of a single block: traced once


def test_a_tpus_products_read_their_slices_of_a_stack():
    """Nothing, not even a reshape, is between a block's slice of its kernels and the product: it would be a copy."""
    text = lowered(PLAIN, "tpu")
    d, heads, width = CONFIG.width, CONFIG.num_attention_heads, CONFIG.attention_head_dim
    for kernel in (f"{d}x{heads}x{width}", f"{heads}x{width}x{d}"):  # of q, k, v, and behind attention
        assert re.search(rf"dynamic_slice.*-> tensor<1x{kernel}xbf16>", text)
    assert not re.search(rf"dynamic_slice.*-> tensor<1x{d}x{d}xbf16>", text)


def test_hidden_channels_are_computed_once():
    """Without a barrier behind the activation a TPU computes a large MLP's first layer for every tile of its second."""
    barriers = [line for line in lowered(PLAIN, "tpu").splitlines() if "optimization_barrier" in line]
    assert sum(f"x{CONFIG.mlp_width}xbf16>" in line for line in barriers) == 3  # two streams, and a single block


def test_amd_is_not_taken_for_nvidia():
    text = lowered(CONTEXT, "rocm")
    assert "__cudnn$fmha" not in text
    assert logits(text) == []


def test_without_cuda_half_precision_is_traced_all_the_same(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(kernels, "_cudnn_is_here", lambda: False)
    assert "tpu_custom_call" in lowered(PLAIN, "tpu")


def test_logits_would_be_seen():
    text = jax.jit(lambda q: jax.nn.dot_product_attention(q, q, q)).lower(np.zeros((1, LENGTH, 2, 8))).as_text()
    assert logits(text) != []
