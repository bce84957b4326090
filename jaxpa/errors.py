"""The errors that are the user's to solve: what was wrong, with which file or value, and what to do."""

from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from typing import Any


class JaxpaError(Exception):
    """Bad input. Its text is for the user and needs no traceback."""


class CheckpointError(JaxpaError):
    """A checkpoint that cannot be found, fetched or loaded.

    `problems` has every fault that was found, one line each; the text shows the first ones.
    """

    def __init__(self, summary: str, problems: Sequence[str] = (), shown: int = 20):
        lines = [summary, *(f"  - {problem}" for problem in problems[:shown])]
        if len(problems) > shown:
            lines.append(f"  ... and {len(problems) - shown} more: `jaxpa info` lists them all")
        super().__init__("\n".join(lines))
        self.problems = tuple(problems)


def check_choice(
    name: str, value: Any, options: Iterable[str | None], error: Callable[[str], Exception] = ValueError
) -> Any:
    """`value`, where it is one of the options; else raises `error`, naming the nearest of them."""
    options = list(options)
    if (value is None or isinstance(value, str)) and value in options:
        return value
    listed = ", ".join(map(repr, options))
    near = get_close_matches(str(value).lower(), [each for each in options if each], 1, 0.5)
    hint = f": did you mean {near[0]!r}?" if near else ""
    raise error(f"{name} must be one of {listed}, not {value!r}{hint}")
