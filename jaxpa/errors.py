"""Errors that a user can solve, and warnings: what was wrong, with which file or value, and what to do."""

import math
import operator
import sys
import warnings
from collections.abc import Callable, Hashable, Iterable, Sequence
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
        lines = [printable_lines(summary), *(f"  - {printable(problem)}" for problem in problems[:shown])]
        if len(problems) > shown:
            lines.append(f"  ... and {len(problems) - shown} more: `jaxpa info` lists them all")
        super().__init__("\n".join(lines))
        self.problems = tuple(problems)


def warn(message: str) -> None:
    """A UserWarning that points at the line which called the package, from wherever in it."""
    frame, level = sys._getframe(), 1
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "jaxpa":
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


LONGEST = 4000  # characters of a line


def printable(text: str) -> str:
    """A line of text that a terminal shows as it stands: names from files may hold escape sequences or surrogates, and
    megabytes, of which the middle is left out."""
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def printable_lines(text: str) -> str:
    """The same for a text of several lines."""
    return "\n".join(map(printable, text.split("\n")))


def memory_is_full(error: BaseException) -> bool:
    """Whether it was raised because a device's memory, or the machine's, is full; XLA says so in its text alone."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()


# Values that a user gives: a right one is returned, a wrong one is named ---------------------------------------


def quoted(value: Any, most: int = 200) -> str:
    """A value as Python writes it, shortened; digits that Python itself would not write are told in words."""
    digits = sys.get_int_max_str_digits()
    if isinstance(value, int) and digits and value.bit_length() > 3 * digits:
        return f"a number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]} ..."


def whole(name: str, value: Any, least: int = 0, most: int = sys.maxsize) -> int:
    """A whole number of any integer type, NumPy's and JAX's included, as an int. Raises JaxpaError for others."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least or number > most:
        limits = f"{least} or more" if most == sys.maxsize else f"{least} to {most}"
        raise JaxpaError(f"{name} must be a whole number, {limits}, not {quoted(value)}")
    return number


def real(name: str, value: Any, least: float = -math.inf, most: float = math.inf) -> float:
    """A finite number of any real type as a float. Raises JaxpaError for others, and outside [least, most]."""
    try:
        number = math.nan if isinstance(value, str | bytes | bool) or _is_flag(value) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not (math.isfinite(number) and least <= number <= most):
        limits = (
            "" if least == -math.inf else f", {least:g} or more" if most == math.inf else f" in [{least:g}, {most:g}]"
        )
        raise JaxpaError(f"{name} must be a finite number{limits}, not {quoted(value)}")
    return number


def _is_flag(value: Any) -> bool:
    """Whether it is a bool of NumPy or JAX."""
    return getattr(getattr(value, "dtype", None), "kind", None) == "b"


def flag(name: str, value: Any) -> bool:
    """True or false, NumPy's and JAX's included, as a bool. Raises JaxpaError for others, which would count as true."""
    if isinstance(value, bool) or (_is_flag(value) and getattr(value, "ndim", None) == 0):
        return bool(value)
    raise JaxpaError(f"{name} must be true or false, not {quoted(value)}")


def text(name: str, value: Any) -> str:
    """A string of UTF-8. Raises JaxpaError for others."""
    if not isinstance(value, str):
        raise JaxpaError(f"{name} must be a string, not {quoted(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise JaxpaError(f"{name} {quoted(value)} is not text in UTF-8") from None
    return value


def several(name: str, value: Any, of: type) -> tuple[Any, ...]:
    """Values of a type, or one alone, as a tuple. Raises JaxpaError for others."""
    try:
        found = tuple(value)
    except TypeError:
        found = (value,)
    if not all(isinstance(each, of) for each in found):
        raise JaxpaError(f"{name} must be a list of {of.__name__}, not {quoted(value)}")
    return found


def first_repeated(values: Iterable[Hashable]) -> Any:
    """The first value that was there before; None: each is there once."""
    seen: set[Hashable] = set()
    return next((value for value in values if value in seen or seen.add(value)), None)


def check_choice(
    name: str, value: Any, options: Iterable[str | None], error: Callable[[str], Exception] = ValueError
) -> Any:
    """Return `value` if it is one of the options; else raise `error`, which names the nearest of them."""
    options = list(options)
    if (value is None or isinstance(value, str)) and value in options:
        return value
    listed = ", ".join(map(repr, options))
    near = did_you_mean(value, options) if isinstance(value, str) else ""
    raise error(f"{name} must be one of {listed}, not {quoted(value)}{near}")


def did_you_mean(word: object, known: Iterable[str | None]) -> str:
    """`: did you mean 'layer'?` if a known word is near, else an empty string."""
    near = get_close_matches(str(word).lower(), [each for each in known if each], 1, 0.5)
    return f": did you mean {near[0]!r}?" if near else ""
