"""Checks of the arguments of public functions: shapes and types always, values if they are known.

While a program is traced, an array has a shape and a type but no values; its values are then not checked. Every message
names the argument, what it must be and what it was.
"""

from typing import Any

import chex
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxpa.errors import quoted

Size = int | str | None
KINDS = {float: "floating-point", int: "whole", bool: "bool"}


def array(name: str, x: Any, shape: tuple[Size, ...], kind: type | None = float) -> None:
    """An array of a shape and kind; sizes may be numbers, or letters for any size: ("S", 1, "N") or just ("N",).

    A first size of "..." stands for any number of axes. kind: float, int, bool, or None for any. Raises ValueError.
    """
    sizes = tuple(size if isinstance(size, int) else ... if size == "..." else None for size in shape)
    try:
        chex.assert_shape(x, sizes)
        if kind is not None:
            chex.assert_type(x, kind)
    except (AssertionError, ValueError, TypeError):
        wanted = ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")
        kinds = "" if kind is None else f"{KINDS[kind]} numbers " if kind is not bool else "bool "
        raise ValueError(f"{name} must be an array of {kinds}({wanted}), not {described(x)}") from None


def described(x: Any) -> str:
    """An array's type and shape, or what else it is."""
    if hasattr(x, "shape") and hasattr(x, "dtype"):
        return f"{x.dtype} {tuple(x.shape)}"
    return f"{type(x).__name__} {quoted(x)}"


def known(x: Any) -> bool:
    """Whether this process can read the values of x: it is not being traced, and no other process holds a part."""
    return not isinstance(x, Tracer) and getattr(x, "is_fully_addressable", True)


def within(name: str, x: Any, low: float, high: float, meaning: str = "") -> None:
    """Values from low to high, both included. Raises ValueError."""
    if known(x) and not np.all((np.asarray(x) >= low) & (np.asarray(x) <= high)):
        raise ValueError(f"{name} must lie in [{low:g}, {high:g}]{meaning}, not {_outside(x, low, high)}")


def _outside(x: Any, low: float, high: float) -> Any:
    values = np.ravel(np.asarray(x))
    return values[~((values >= low) & (values <= high))][0].item()


def number(name: str, x: Any, low: Any = -np.inf, high: Any = np.inf) -> None:
    """A number or a scalar array of any real type, from low to high. Raises ValueError."""
    dtype = x.dtype if hasattr(x, "dtype") else np.asarray(x).dtype
    if np.shape(x) or not (jnp.issubdtype(dtype, np.floating) or jnp.issubdtype(dtype, np.integer)):
        raise ValueError(f"{name} must be a number, not {described(x)}")
    within(name, x, low, high)


def whole(name: str, x: Any, low: int) -> None:
    """A whole number of any type, at least `low`. Raises ValueError."""
    number(name, x)
    if not jnp.issubdtype(np.asarray(x).dtype, np.integer) or x < low:
        raise ValueError(f"{name} must be a whole number, at least {low}, not {quoted(x)}")


def block_range(name: str, x: Any, count: int | None = None) -> None:
    """The numbers of a first and a last block, out of `count` where it is known. Raises ValueError."""
    if not isinstance(x, tuple | list) or len(x) != 2:
        raise ValueError(f"{name} must be a first and a last block, such as (10, 20), not {quoted(x)}")
    for each in x:
        whole(name, each, 0)
    if x[0] > x[1] or (count is not None and x[1] >= count):
        out_of = "" if count is None else f" out of 0 to {count - 1}"
        raise ValueError(f"{name} must be a first and a last block in this order{out_of}, not {x!r}")


def indices(name: str, x: Any, shape: tuple[Size, ...], size: int) -> None:
    """Whole numbers from 0 to size - 1. Raises ValueError."""
    array(name, x, shape, int)
    within(name, x, 0, size - 1)


def flow_times(name: str, times: Any, rising: bool | None = False) -> None:
    """Flow times of a schedule, (S + 1,) with S at least 1: in [0, 1], each below the one before. Raises ValueError.

    rising: each above the one before, as an inversion walks them; None: either.
    """
    array(name, times, ("S + 1",))
    if times.shape[0] < 2:
        raise ValueError(f"{name} must have at least 2 flow times, the ends of one step, not {times.shape[0]}")
    within(name, times, 0, 1, ", from noise at 1 to data at 0")
    if known(times):
        widths = np.diff(np.asarray(times, np.float64))
        sign = 1 if rising or (rising is None and widths[0] > 0) else -1
        if not np.all(widths * sign > 0):
            raise ValueError(f"{name} must {'rise' if sign > 0 else 'fall'} from step to step, not {np.asarray(times)}")
