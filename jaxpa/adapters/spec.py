"""Which adapter, and how strongly it counts."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from jaxpa.errors import JaxpaError, quoted, real


@dataclass(frozen=True)
class Lora:
    """A LoRA's file, and the factor of its change: 1 is what it was trained for, 0 nothing, negative the opposite."""

    file: str
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.file, str | os.PathLike) or not os.fspath(self.file):
            raise JaxpaError(f"a LoRA is the name of a file, or a pair of it and a scale, not {quoted(self.file)}")
        object.__setattr__(self, "file", os.fspath(self.file))
        object.__setattr__(self, "scale", real(f"the scale of {self.file}", self.scale))

    def __str__(self) -> str:
        return self.file if self.scale == 1 else f"{self.file}:{self.scale!r}"


Loras = Sequence[str | os.PathLike[str] | Lora | tuple[str | os.PathLike[str], float]]


def parse_lora(text: str) -> Lora:
    """`FILE` or `FILE:SCALE`. A name that ends in a colon and a number needs a scale behind it."""
    file, _, scale = text.rpartition(":")
    try:
        return Lora(file, float(scale)) if file else Lora(text)
    except ValueError:
        return Lora(text)


def to_loras(said: Any) -> tuple[Lora, ...]:
    """One LoRA or several, each a `Lora`, a file's name (with `:SCALE` or not), or a pair (file, scale)."""
    if isinstance(said, str | os.PathLike | Lora):
        said = (said,)
    if not isinstance(said, Iterable) or not getattr(said, "ndim", 1):
        raise JaxpaError(f"loras is a list of files, or of pairs (file, scale), not {quoted(said)}")
    return tuple(map(_to_lora, said))


def _to_lora(said: Any) -> Lora:
    match said:
        case Lora():
            return said
        case str():
            return parse_lora(said)
        case (file, scale):
            return Lora(file, scale)
        case _:
            return Lora(said)
