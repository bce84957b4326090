"""GGUF files: headers, and tensors in blocks of few bits that are unpacked where they are read.

After "GGUF" and a version come counts, metadata (typed keys and values), a table of tensors, and their bytes. A block
is 32 or 256 weights of a row with scales of their own. The header is read here, within bounds, so that `jaxpa info`
needs nothing else; the package gguf, an extra, unpacks blocks.
"""

import math
import struct
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from jaxpa.checkpoint.documents import check_regular
from jaxpa.checkpoint.files import MAX_HEADER, MAX_TENSORS, Tensor, counts, incomplete
from jaxpa.errors import CheckpointError

SUFFIX = ".gguf"
ARCHITECTURES = ("flux", "t5", "t5encoder", "pig", "")  # "pig" and none: of any network, which the names tell
NEEDS = "weights of this file are unpacked by the package gguf: pip install 'jaxpa[gguf]'"

# Number of a type -> its name here, weights of a block, bytes of a block.
PLAIN = {0: ("F32", 1, 4), 1: ("F16", 1, 2), 28: ("F64", 1, 8), 30: ("BF16", 1, 2)}
BLOCKS = {
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    20: ("IQ4_NL", 32, 18),
    23: ("IQ4_XS", 256, 136),
}
TYPES = PLAIN | BLOCKS
PACKED = {name: (number, weights, size) for number, (name, weights, size) in BLOCKS.items()}

# Values of metadata: number of a type -> format of `struct`. 8 is a string, 9 an array.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9


@dataclass(frozen=True)
class Packed(Tensor):
    """A tensor in blocks; its rows are the last axis, and `shape` is that of its numbers."""

    def read(self, rows: slice | None = None) -> np.ndarray:
        """Its numbers, float32; of a matrix, those rows alone. Raises CheckpointError without the package gguf."""
        if not self.size:
            return np.empty(self.shape, np.float32)
        try:
            quants, constants = import_module("gguf.quants"), import_module("gguf.constants")
        except ImportError as error:
            raise CheckpointError(f"{self.file}: {NEEDS} ({error})") from None
        number, weights, size = PACKED[self.dtype]
        raw = self.bytes().reshape(*self.shape[:-1], self.shape[-1] // weights * size)
        with np.errstate(all="ignore"):  # what is not finite is found by who reads the numbers
            return quants.dequantize(raw if rows is None else raw[rows], constants.GGMLQuantizationType(number))


def can_unpack() -> bool:
    """Whether the package gguf is installed."""
    return find_spec("gguf") is not None


class Ended(ValueError):
    """The header goes on beyond what was read of it."""


class _Cursor:
    """Numbers and strings of a header, one after another."""

    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        if count > len(self.data) - self.at:
            raise Ended
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, kind: str) -> Any:
        return struct.unpack(f"<{kind}", self.take(struct.calcsize(f"<{kind}")))[0]

    def string(self) -> str:
        try:
            return self.take(self.number("Q")).decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError("a string is not UTF-8") from None

    def value(self, kind: int, wanted: bool) -> Any:
        """A value of metadata; of an array that nobody wants, None."""
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            raise ValueError(f"a value has the unknown type {kind}")
        inner, count = self.number("I"), self.number("Q")
        if inner in SCALARS:
            raw = self.take(count * struct.calcsize(f"<{SCALARS[inner]}"))
            return list(struct.unpack(f"<{count}{SCALARS[inner]}", raw)) if wanted else None
        if inner != STRING:
            raise ValueError(f"an array has values of the type {inner}")
        for _ in range(count):  # each takes eight bytes at least, so there cannot be many
            self.take(self.number("Q"))
        return None


def read_gguf(file: Path) -> tuple[dict[str, Tensor], dict[str, str], list[str]]:
    """What `files.read_header` returns, of a GGUF. Raises ValueError where nothing is usable."""
    total = check_regular(file)
    with file.open("rb") as stream:
        cursor = _Cursor(stream.read(MAX_HEADER))
    try:
        metadata, shapes = _metadata(cursor)
        tensors, align = _table(cursor, file, metadata, shapes)
    except Ended:
        if total > MAX_HEADER:
            raise ValueError(f"its header takes more than {MAX_HEADER:,} bytes, more than any checkpoint's") from None
        raise ValueError(f"truncated: its header goes on beyond the {total:,} bytes of the file") from None
    begin = -(-cursor.at // align) * align
    tensors = {key: type(t)(file, key, t.dtype, t.shape, begin + t.start, t.size) for key, t in tensors.items()}
    return tensors, {"format": "gguf"}, incomplete(file, tensors, total)


def _metadata(cursor: _Cursor) -> tuple[dict[str, Any], dict[str, list[int]]]:
    """The values, after the number of tensors under ""; and the shapes of tensors that were made to fit blocks."""
    if cursor.data[:4] != b"GGUF":
        raise ValueError("not a GGUF file (a git-lfs pointer, a web page or an interrupted download?)")
    cursor.take(4)
    if (version := cursor.number("I")) not in (2, 3):
        raise ValueError(f"a GGUF of version {version}; 2 and 3 are read, of little-endian machines")
    values: dict[str, Any] = {"": cursor.number("Q")}
    shapes: dict[str, list[int]] = {}
    for _ in range(cursor.number("Q")):
        key, kind = cursor.string(), cursor.number("I")
        before = "comfy.gguf.orig_shape."
        value = cursor.value(kind, key.startswith(before))
        if key in values:
            raise ValueError(f"the key {key!r} stands there twice")
        values[key] = value
        if key.startswith(before) and counts(value):
            shapes[key.removeprefix(before)] = value
    said = values.get("general.architecture", "")
    if said not in ARCHITECTURES:
        raise ValueError(f"a GGUF of the architecture {said!r}; those of 'flux', and of 't5encoder', are read")
    return values, shapes


def _table(
    cursor: _Cursor, file: Path, metadata: dict[str, Any], shapes: dict[str, list[int]]
) -> tuple[dict[str, Tensor], int]:
    """The tensors, each with its start counted from where they all begin, and the alignment of that."""
    align = metadata.get("general.alignment", 32)
    if type(align) is not int or align not in (1 << n for n in range(17)):
        raise ValueError(f"its alignment is {align!r}, not a power of two up to 65,536")
    if metadata[""] > MAX_TENSORS:
        raise ValueError(f"it lists {metadata['']:,} tensors; a checkpoint has {MAX_TENSORS:,} at most")
    tensors: dict[str, Tensor] = {}
    expected: int | None = 0  # one tensor begins where the one before it ends, on the next multiple
    for _ in range(metadata[""]):
        key, axes = cursor.string(), cursor.number("I")
        if axes > 8:
            raise ValueError(f"tensor '{key}' has {axes:,} axes")
        lengths = [cursor.number("Q") for _ in range(axes)]
        kind, start = cursor.number("I"), cursor.number("Q")
        if key in tensors:
            raise ValueError(f"tensor '{key}' stands there twice")
        if expected is not None and start != expected:
            raise ValueError(f"tensor '{key}' begins at {start:,}, not at {expected:,}, behind the one before it")
        tensors[key] = _tensor(file, key, tuple(reversed(lengths)), kind, start, shapes.get(key))
        expected = start + -(-tensors[key].size // align) * align if kind in TYPES else None
    return tensors, align


def _tensor(file: Path, key: str, shape: tuple[int, ...], kind: int, start: int, own: list[int] | None) -> Tensor:
    """One tensor. own: its shape, if it lies in another one that suits blocks better.

    One of an unknown type keeps no bytes: who wants it refuses it, as one of safetensors.
    """
    if own is not None and math.prod(own) != math.prod(shape):
        raise ValueError(f"tensor '{key}' of {list(shape)} cannot have been {own}")
    if kind not in TYPES:
        return Tensor(file, key, f"GGML type {kind}", shape, start, 0)
    name, weights, size = TYPES[kind]
    if shape and shape[-1] % weights:
        raise ValueError(f"tensor '{key}' {list(shape)} has rows that are no whole blocks of {name} ({weights})")
    count = math.prod(shape) // weights * size
    if kind in PLAIN:
        return Tensor(file, key, name, tuple(own or shape), start, count)
    if own is not None and tuple(own) != shape:
        return Reshaped(file, key, name, tuple(own), start, count)
    return Packed(file, key, name, shape, start, count)


@dataclass(frozen=True)
class Reshaped(Packed):
    """A tensor whose blocks run over the ends of its rows."""

    def read(self, rows: slice | None = None) -> np.ndarray:
        flat = Packed(self.file, self.key, self.dtype, (math.prod(self.shape),), self.start, self.size)
        whole = flat.read().reshape(self.shape)
        return whole if rows is None else whole[rows]
