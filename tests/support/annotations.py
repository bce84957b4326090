"""The book's annotations, checked in every call that a test makes: shapes by jaxtyping, types by beartype.

Calls are checked while a program is traced, so a compiled program runs as it does elsewhere.
"""

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

BOOK = (
    "tokens", "rope", "schedule", "layers", "kernels", "blocks", "transformer", "solvers", "caching", "sampling",
    "inversion", "routing", "personalize",
)  # fmt: skip
_check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # a whole number is a float, too


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that checks its arguments and what it returns.

    Constructors are left alone: JAX puts shapes, shardings and axes in the place of a pytree's arrays.
    """
    return function if function.__name__ == "__init__" else _check(function)


def install() -> None:
    """Check the modules of the book, which must not have been imported yet."""
    install_import_hook([f"jaxpa.{name}" for name in BOOK], f"{__name__}.checked")
