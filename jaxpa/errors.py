"""The errors that are the user's to solve: what was wrong, with which file or value, and what to do."""

from collections.abc import Sequence


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
