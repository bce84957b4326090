"""What is read off compiled programs, against programs whose work is known."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jaxpa.devices import hlo

# An H100's text: a scan of 3 cuBLAS products inside a loop of 28, cut down from what XLA wrote.
GPU = """
HloModule jit_f, is_scheduled=true

%slices (p0: bf16[3,64,32], p1: s32[]) -> bf16[64,32] {
  %p0 = bf16[3,64,32]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %c0 = s32[] constant(0)
  %same = bf16[3,64,32]{2,1,0} bitcast(%p0)
  %cut = bf16[1,64,32]{2,1,0} dynamic-slice(%same, %p1, %c0, %c0), dynamic_slice_sizes={1,64,32}
  ROOT %b = bf16[64,32]{1,0} bitcast(%cut)
}

%inner (i: (s32[], bf16[8,64], bf16[3,64,32])) -> (s32[], bf16[8,64], bf16[3,64,32]) {
  %i = (s32[], bf16[8,64]{1,0}, bf16[3,64,32]{2,1,0}) parameter(0)
  %n = s32[] get-tuple-element(%i), index=0
  %x = bf16[8,64]{1,0} get-tuple-element(%i), index=1
  %w = bf16[3,64,32]{2,1,0} get-tuple-element(%i), index=2
  %copied = bf16[64,32]{1,0} fusion(%w, %n), kind=kLoop, calls=%slices
  %y = (bf16[8,32]{1,0}, s8[33554432]{0}) custom-call(%x, %copied), custom_call_target="__cublas$lt$matmul", DIMENSIONS
  ROOT %t = (s32[], bf16[8,64]{1,0}, bf16[3,64,32]{2,1,0}) tuple(%n, %x, %w)
}

%bound (i: (s32[], bf16[8,64], bf16[3,64,32])) -> pred[] {
  %i = (s32[], bf16[8,64]{1,0}, bf16[3,64,32]{2,1,0}) parameter(0)
  %three = s32[] constant(3)
  %n = s32[] get-tuple-element(%i), index=0
  ROOT %lt = pred[] compare(%n, %three), direction=LT
}

%outer (o: (s32[], bf16[8,64], bf16[3,64,32])) -> (s32[], bf16[8,64], bf16[3,64,32]) {
  %o = (s32[], bf16[8,64]{1,0}, bf16[3,64,32]{2,1,0}) parameter(0)
  ROOT %l = (s32[], bf16[8,64]{1,0}, bf16[3,64,32]{2,1,0}) while(%o), condition=%bound, body=%inner
}

%dynamic (o: (s32[], bf16[8,64], bf16[3,64,32])) -> pred[] {
  %o = (s32[], bf16[8,64]{1,0}, bf16[3,64,32]{2,1,0}) parameter(0)
  %n = s32[] get-tuple-element(%o), index=0
  ROOT %go = pred[] compare(%n, %n), direction=LT
}

ENTRY %main (a: (s32[], bf16[8,64], bf16[3,64,32])) -> bf16[8,64] {
  %a = (s32[], bf16[8,64]{1,0}, bf16[3,64,32]{2,1,0}) parameter(0)
  %l = (s32[], bf16[8,64]{1,0}, bf16[3,64,32]{2,1,0}) while(%a), condition=%dynamic, body=%outer
  %x = bf16[8,64]{1,0} get-tuple-element(%l), index=1
  %g = (bf16[2,64]{1,0}, bf16[8,64]{1,0}) all-gather-start(%x), dimensions={0}
  ROOT %d = bf16[8,64]{1,0} all-gather-done(%g)
}
"""
DIMENSIONS = """backend_config={"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}"""
GPU = GPU.replace("DIMENSIONS", DIMENSIONS)


def test_loops_multiply_what_is_in_them():
    program = hlo.read(GPU, hlo.Peak(flops=1e12, bandwidth=1e9), trips=[28])
    (outer,) = program.root.loops
    (inner,) = outer.loops
    assert (outer.trips, inner.trips) == (28, 3)
    whole = hlo.total(program.root)
    assert whole.launches == 28 * 3 * 2 + 1
    assert whole.seconds["TFLOP"] * 1e12 == pytest.approx(28 * 3 * 2 * 8 * 64 * 32)
    # A slice is read and written once; the two thirds of the stack that it skips are not.
    assert whole.seconds["slices"] == pytest.approx(28 * 3 * 2 * (64 * 32 * 2) / 1e9, rel=0.01)
    assert dict(whole.collectives) == {"all-gather": 1, "all-gather bytes": 8 * 64 * 2}


def test_bounds_that_are_known_at_run_time_count_once():
    assert hlo.total(hlo.read(GPU).root).launches == 3 * 2 + 1


def test_products_of_a_program_of_this_machine():
    """FLOPs of a nest of loops, compiled here: those of its products, times 5 x 7."""

    def f(x: jax.Array, w: jax.Array) -> jax.Array:
        def inner(x: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
            return jnp.tanh(x @ w), None

        return jax.lax.fori_loop(0, 5, lambda _, x: jax.lax.scan(inner, x, w)[0], x)

    text = jax.jit(f).lower(jnp.ones((16, 32)), jnp.ones((7, 32, 32))).compile().as_text()
    whole = hlo.total(hlo.read(text, hlo.Peak(1e12, 1e9)).root)
    assert whole.seconds["TFLOP"] * 1e12 == pytest.approx(5 * 7 * 2 * 16 * 32 * 32)


# Four host devices: the second of two products is summed over "model", once in each of 3 blocks.
SHARDED = """
import jax, jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from jaxpa.devices import hlo

mesh = jax.make_mesh((1, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
put = lambda shape, *spec: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, P(*spec)))
body = lambda x, w: (jnp.tanh(x @ w[0]) @ w[1], None)
f = lambda x, a, b: jax.lax.scan(body, x, (a, b))[0]
text = jax.jit(f).lower(put((8, 32)), put((3, 32, 64), None, None, "model"), put((3, 64, 32), None, "model")).compile()
print(dict(hlo.total(hlo.read(text.as_text()).root).collectives))
"""


def test_collectives_of_a_sharded_program():
    out = subprocess.run(
        [sys.executable, "-c", SHARDED], capture_output=True, text=True, cwd=Path(__file__).parents[2],
        env={"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu", "PATH": ""},
    )  # fmt: skip
    assert out.returncode == 0, out.stderr[-500:]
    assert out.stdout.strip() == str({"all-reduce": 3, "all-reduce bytes": 3 * 8 * 32 * 4})
