"""Errors that a user can solve: what was wrong, with which file or value, and what to do."""

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from typing import Any


class JaxpaError(Exception):
    """Bad input. The user reads its text, without a traceback."""


class OutputError(JaxpaError):
    """A result that cannot be written: a full disk, a folder that is gone or closed. The input is not to blame."""


class CheckpointError(JaxpaError):
    """A checkpoint that cannot be found, fetched or loaded.

    `problems` lists every fault, one line each; the text shows the first ones.
    """

    def __init__(self, summary: str, problems: Sequence[str] = (), shown: int = 20):
        lines = [*map(printable, summary.split("\n")), *(f"  - {printable(problem)}" for problem in problems[:shown])]
        if len(problems) > shown:
            lines.append(f"  ... and {len(problems) - shown} more: `jaxpa info` lists them all")
        super().__init__("\n".join(lines))
        self.problems = tuple(problems)


def printable(text: str) -> str:
    """A line of text that a terminal shows as it stands: names from files may hold escape sequences or surrogates."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def memory_is_full(error: BaseException) -> bool:
    """Whether it was raised because a device's memory, or the machine's, is full; XLA says so in its text alone."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()


# Values that a user gives: a right one is returned, a wrong one is named ---------------------------------------


def whole(name: str, value: Any, least: int = 0, most: int | None = None) -> int:
    """A whole number of any integer type, NumPy's and JAX's included, as an int. Raises JaxpaError for others."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least or (most is not None and number > most):
        limits = f"{least} or more" if most is None else f"{least} to {most}"
        raise JaxpaError(f"{name} must be a whole number, {limits}, not {value!r}")
    return number


def real(name: str, value: Any, least: float = -math.inf, most: float = math.inf) -> float:
    """A finite number of any real type as a float. Raises JaxpaError for others, and outside [least, most]."""
    try:
        number = math.nan if isinstance(value, str | bytes | bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and least <= number <= most):
        limits = (
            "" if least == -math.inf else f", {least:g} or more" if most == math.inf else f" in [{least:g}, {most:g}]"
        )
        raise JaxpaError(f"{name} must be a finite number{limits}, not {value!r}")
    return number


def check_choice(
    name: str, value: Any, options: Iterable[str | None], error: Callable[[str], Exception] = ValueError
) -> Any:
    """Return `value` if it is one of the options; else raise `error`, which names the nearest of them."""
    options = list(options)
    if (value is None or isinstance(value, str)) and value in options:
        return value
    listed = ", ".join(map(repr, options))
    raise error(f"{name} must be one of {listed}, not {value!r}{did_you_mean(value, options)}")


def did_you_mean(word: object, known: Iterable[str | None]) -> str:
    """`: did you mean 'layer'?` if a known word is near, else an empty string."""
    near = get_close_matches(str(word).lower(), [each for each in known if each], 1, 0.5)
    return f": did you mean {near[0]!r}?" if near else ""
