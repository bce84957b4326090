"""Names of pictures by a template, such as {line:05d}-{seed}.png."""

import re
from collections.abc import Mapping, Sequence
from string import Formatter
from typing import Any

from jaxpa.errors import JaxpaError, did_you_mean

LONGEST = 255  # characters, as most file systems have it
FIELDS = ("line", "verb", "prompt", "seed", "tau", "place")


class Template:
    """Text with {fields}, formatted as Python does it. Raises JaxpaError for a field that no picture has."""

    def __init__(self, text: str):
        self.text = text
        try:
            parts = list(Formatter().parse(text))
        except ValueError as error:
            raise JaxpaError(f"--out {text!r}: {error}") from None
        named = [name for _, name, _, _ in parts if name is not None]
        if any(int(number) > LONGEST for _, _, form, _ in parts for number in re.findall(r"\d+", form or "")):
            raise JaxpaError(f"--out {text!r}: no file has a name of more than {LONGEST} characters")
        for name in named:
            if name not in FIELDS:
                raise JaxpaError(f"--out {text!r}: there is no {{{name}}}{did_you_mean(name, FIELDS)}")
        if "line" not in named:
            raise JaxpaError(
                f"--out {text!r} names the pictures of all lines alike: put {{line}} into it, as in "
                "{line:05d}-{seed}.png"
            )

    def names(self, line: Mapping[str, Any], pictures: Sequence[Mapping[str, Any]]) -> list[str]:
        """A name for each picture of a line, from what the line and the picture are. Raises JaxpaError."""
        said = {**line, "prompt": slug(str(line.get("prompt", "")))}
        try:
            return [self.text.format(**said, **picture) for picture in pictures]
        except KeyError as error:
            raise JaxpaError(
                f"--out {self.text!r}: {line.get('verb')} has no {error.args[0]}: give --out here"
            ) from None
        except (ValueError, IndexError) as error:
            raise JaxpaError(f"--out {self.text!r}: {error}") from None


def slug(text: str) -> str:
    """Words as a part of a file's name: letters and digits with hyphens between, 60 characters at most."""
    return re.sub(r"[\W_]+", "-", text.lower()).strip("-")[:60].rstrip("-") or "picture"
