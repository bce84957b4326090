"""The boundary of the book: what came, what was wanted, and which argument it was."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxpa import checks

FALLING = np.linspace(1, 0, 5, dtype=np.float32)


@pytest.mark.parametrize(("x", "shape", "kind", "message"), [
    (np.zeros((3, 2)), ("N", 4), float, r"x must be an array of floating-point numbers \(N, 4\), not float64 \(3, 2\)"),
    (np.zeros((3, 4), np.uint8), ("N", 4), float, r"not uint8 \(3, 4\)"),
    (np.zeros((3, 4), np.int32), ("N", 4), bool, r"an array of bool \(N, 4\), not int32"),
    (np.zeros((3, 4), bool), ("N", 4), int, r"whole numbers \(N, 4\), not bool"),
    (np.zeros(3), ("...", 4), float, r"\(\.\.\., 4\), not float64 \(3,\)"),
    ([1.0, 2.0], ("N",), float, r"x must be an array of floating-point numbers \(N,\), not list \[1.0, 2.0\]"),
    ("word", ("N",), None, "not str 'word'"),
    (None, ("N",), None, "not NoneType None"),
])  # fmt: skip
def test_wrong_arrays(x, shape, kind, message):
    with pytest.raises(ValueError, match=message):
        checks.array("x", x, shape, kind)


def test_right_arrays():
    for dtype in (np.float64, np.float32, np.float16, ml_dtypes.bfloat16):
        checks.array("x", np.zeros((3, 4), dtype), ("N", 4))
    checks.array("x", jnp.zeros((2, 3, 4)), ("...", 4))
    checks.array("x", np.zeros(3, np.uint32), ("N",), int)
    checks.array("x", np.zeros(3, "U1"), (3,), None)


@pytest.mark.parametrize("good", [0, 0.5, np.float32(0.5), np.float64(1), jnp.float32(0.25), np.int64(1), jnp.int32(1)])
def test_numbers_of_any_type(good):
    checks.number("tau", good, 0, 1)


@pytest.mark.parametrize(("bad", "message"), [
    (80, r"tau must lie in \[0, 1\], not 80"), (-0.1, "not -0.1"), (np.nan, "not nan"), (jnp.float32(1.5), "not 1.5"),
    ("0.5", "tau must be a number, not str '0.5'"), (True, "not bool True"), ([0.5], r"not list \[0.5\]"),
    (np.zeros(2), r"not float64 \(2,\)"), (None, "not NoneType None"),
])  # fmt: skip
def test_what_is_no_number(bad, message):
    with pytest.raises(ValueError, match=message):
        checks.number("tau", bad, 0, 1)


@pytest.mark.parametrize(("bad", "message"), [
    (FALLING[::-1], "times must fall from step to step"),
    (FALLING[[0, 2, 1, 3]], "must fall"),
    (FALLING[[0, 1, 1, 3]], "must fall"),
    (1000 * FALLING, r"times must lie in \[0, 1\], from noise at 1 to data at 0, not 1000"),
    (FALLING[:1], "at least 2 flow times"),
    (FALLING[None], r"\(S \+ 1,\), not float32 \(1, 5\)"),
    (np.array([1, 0]), "not int64"),
])  # fmt: skip
def test_flow_times(bad, message):
    checks.flow_times("times", FALLING)
    checks.flow_times("times", jnp.asarray(FALLING[::-1]), rising=True)
    with pytest.raises(ValueError, match=message):
        checks.flow_times("times", bad)


def test_indices():
    checks.indices("source", np.array([[0, 5]]), (1, "N"), 6)
    for bad in (-1, 6):
        with pytest.raises(ValueError, match=rf"source must lie in \[0, 5\], not {bad}"):
            checks.indices("source", jnp.array([[0, bad]]), (1, "N"), 6)


def test_values_of_other_processes_are_not_looked_at():
    class Elsewhere:
        shape, dtype, is_fully_addressable = (5,), np.dtype(np.float32), False

        def __array__(self, *_):
            raise RuntimeError("fetching value spans non-addressable devices")

    assert not checks.known(Elsewhere())
    checks.within("times", Elsewhere(), 0, 1)


def test_traced_values_have_a_shape_only():
    """Inside a program the shape is still checked, and a wrong value goes through."""

    @jax.jit
    def inside(times, tau):
        checks.flow_times("times", times)
        checks.number("tau", tau, 0, 1)
        return times

    inside(FALLING[::-1], 80)
    jax.vmap(inside)(np.stack([FALLING, FALLING]), np.zeros(2))
    with pytest.raises(ValueError, match=r"not float32\[?\]? ?\(1, 5\)|float32 \(1, 5\)"):
        inside(FALLING[None], 0.5)
