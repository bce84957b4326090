"""The annotations of the book are checked in the tests: a wrong shape, type or number of axes is refused by name."""

from importlib import import_module

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from annotations import BOOK
from jaxtyping import TypeCheckError

from jaxpa import inversion, rope, sampling, tokens

MASK = np.ones(12, bool)


@pytest.mark.parametrize("name", BOOK)
def test_every_module_of_the_book_is_checked(name):
    """A function that was compiled with the checks is wrapped; one that is not has its own code."""
    module = import_module(f"jaxpa.{name}")
    own = [x for x in vars(module).values() if getattr(x, "__module__", "") == module.__name__ and callable(x)]
    functions = [x for x in own if not isinstance(x, type) and not isinstance(x, jax.stages.Wrapped)]
    assert "jaxtyping" in vars(module)  # the import that the hook writes into the source
    assert all(hasattr(function, "__wrapped__") for function in functions)


@pytest.mark.parametrize(("call", "argument"), [
    (lambda: tokens.dilate(MASK, 3, 5, 3), "mask"),  # 12 cells are no grid of 3 x 5
    (lambda: tokens.dilate(MASK.astype(int), 3, 4, 3), "mask"),
    (lambda: tokens.pair(MASK, MASK[1:]), "target"),
    (lambda: tokens.gather(np.zeros((2, 3, 4)), np.zeros(3, int)), "index"),
    (lambda: rope.rotate(np.zeros((3, 6), np.float32), rope.table(np.zeros((3, 3)), (2, 2, 2))), "x"),
    (lambda: sampling.euler_step(np.zeros(3), np.zeros(4), 1.0, 0.5), "v"),
    (lambda: inversion.straight_line(np.zeros((1, 4, 2)), np.zeros((1, 4, 3)), np.array([1.0, 0.0])), "noise"),
])  # fmt: skip
def test_wrong_arrays_are_refused(call, argument):
    with pytest.raises(TypeCheckError, match=rf"typechecking parameter '{argument}'"):
        call()


def test_what_a_function_returns_is_checked(monkeypatch):
    monkeypatch.setattr(tokens, "PATCH", 1)
    with pytest.raises(TypeCheckError, match=r"return value of jaxpa\.tokens\.patchify"):
        tokens.patchify(np.zeros((1, 4, 4, 2), np.float32))


def test_checked_while_traced():
    with pytest.raises(TypeCheckError, match="parameter 'v'"):
        jax.eval_shape(sampling.euler_step, jnp.zeros(3), jnp.zeros(4), 1.0, 0.5)


@pytest.mark.usefixtures("as_users_call")
def test_users_hear_from_the_boundary():
    with pytest.raises(ValueError, match=r"target must be an array of bool \(12,\)"):
        tokens.pair(MASK, MASK[1:])
