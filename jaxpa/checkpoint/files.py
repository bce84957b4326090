"""Safetensors files: headers, memory-mapped tensors, a streaming writer.

The format is eight bytes of header length, a JSON header, and the tensors' bytes without gaps. The safetensors library
opens every file first and judges its header. Reading the bytes here afterwards gives bfloat16 without torch, a tensor
as a view of the mapped file, and every incomplete tensor of a truncated file.
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxpa.checkpoint.documents import check_regular, parse, read_json

# Types that are read. The library knows more of them; a new one needs its row here and its bits in `finite`.
DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
}
# Types of eight bits, most of which are numbers only beside scales, so that their reader must ask for them.
EIGHT_BITS = {
    "I8": np.dtype(np.int8),
    "F8_E4M3": np.dtype(jnp.float8_e4m3fn),
    "F8_E5M2": np.dtype(jnp.float8_e5m2),
}
EVERY = DTYPES | EIGHT_BITS
NAMES = {dtype: name for name, dtype in EVERY.items()}
SUFFIXES = (".safetensors", ".sft", ".gguf")  # of weights; .sft: some files of the original release
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".msgpack", ".h5")
MAX_HEADER = 16 << 20  # bytes; that of FLUX.1's transformer takes 0.1 MB. The format allows 100 MB
MAX_TENSORS = 100_000  # that an index lists


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies: `start` and `size` in bytes of the file."""

    file: Path
    key: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int

    def read(self, rows: slice | None = None) -> np.ndarray:
        """The tensor, or these rows of it, as a read-only view of the mapped file, which lasts as long as the view."""
        whole = self.bytes().view(EVERY[self.dtype]).reshape(self.shape)
        return whole if rows is None else whole[rows]

    def bytes(self) -> np.ndarray:
        """What lies in the file, (size,) uint8, in the same way."""
        if not self.size:
            return np.empty(0, np.uint8)
        return np.frombuffer(np.memmap(self.file, np.uint8, mode="r", offset=self.start, shape=(self.size,)), np.uint8)


def finite(array: np.ndarray) -> bool:
    """Whether all numbers are finite: by their exponent bits, a piece at a time, so that nothing large is made."""
    if array.dtype.itemsize == 8:
        return bool(np.isfinite(array).all())
    if array.dtype == np.int8:
        return True
    bits, exponent = {
        EVERY["F8_E4M3"]: (np.uint8, 0x7F),  # no infinities; one bit pattern is no number
        EVERY["F8_E5M2"]: (np.uint8, 0x7C),
        DTYPES["F32"]: (np.uint32, 0x7F800000),
        DTYPES["F16"]: (np.uint16, 0x7C00),
        DTYPES["BF16"]: (np.uint16, 0x7F80),
    }[array.dtype]
    flat = array.reshape(-1).view(bits)
    step = 1 << 20
    return all(((flat[i : i + step] & bits(exponent)) != exponent).all() for i in range(0, flat.size, step))


@dataclass
class Files:
    """The headers of one component's files, and what is wrong with them.

    unknown: tensors that an index promises in a file that is missing or unreadable (None: any tensor may be).
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    unknown: set[str] | None = field(default_factory=set)

    def add(self, file: Path, promised: Iterable[str] | None = None, read: "Reader | None" = None) -> None:
        """Read one file's header; `promised`: the tensors that an index expects in it; read: `read_header` if None."""
        try:
            tensors, metadata, problems = (read or read_header)(file)
        except OSError as error:
            self.problems.append(f"{file}: {error.strerror or error}")
        except ValueError as error:
            self.problems.append(f"{file}: {error}")
        else:
            for key in tensors.keys() & self.tensors.keys():
                self.problems.append(f"{file}: tensor '{key}' is also in {self.tensors[key].file.name}")
            self.tensors |= tensors
            self.metadata |= metadata
            self.problems += problems
            return
        if promised is None or self.unknown is None:
            self.unknown = None
        else:
            self.unknown.update(promised)


Reader = Callable[[Path], tuple[dict[str, Tensor], dict[str, str], list[str]]]


def read_header(file: Path) -> tuple[dict[str, Tensor], dict[str, str], list[str]]:
    """Tensors, metadata, and tensors that the file does not hold in full. Raises ValueError where nothing is usable."""
    total = check_regular(file)
    refusal = _refusal(file)
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if total < 8 or length + 8 > total:
            if total >= 8 and length <= MAX_HEADER:
                raise ValueError(f"truncated: the header alone takes {length + 8:,} bytes, the file has {total:,}")
            raise ValueError("not a safetensors file (a git-lfs pointer, a web page or an interrupted download?)")
        if length > MAX_HEADER:
            raise ValueError(f"its header takes {length:,} bytes, more than any checkpoint's (at most {MAX_HEADER:,})")
        raw = stream.read(length)
    try:
        header = parse(raw)
        metadata = _metadata(header.pop("__metadata__", {}))
        tensors = {key: _tensor(file, key, entry, length + 8) for key, entry in header.items()}
    except ValueError as error:
        raise ValueError(f"not a safetensors file: its header is damaged ({error})") from None
    problems = [f"{file}: tensor '{t.key}': {fault}" for t in tensors.values() if (fault := _fault(t))]
    problems = problems or incomplete(file, tensors, total)
    if refusal and not problems:
        raise ValueError(f"not a sound safetensors file ({refusal})")
    return tensors, metadata, problems


def incomplete(file: Path, tensors: dict[str, Tensor], total: int) -> list[str]:
    """A line that names the tensors of which a file of so many bytes lacks some; none if it has them all."""
    short = [t for t in tensors.values() if t.start + t.size > total]
    if not short:
        return []
    needed = max(t.start + t.size for t in short)
    names = ", ".join(f"'{t.key}'" for t in sorted(short, key=lambda t: t.start)[:8])
    more = f" and {len(short) - 8} more" if len(short) > 8 else ""
    return [f"{file}: truncated: {total:,} of {needed:,} bytes; incomplete: {names}{more}"]


def _refusal(file: Path) -> str | None:
    """Why the safetensors library does not open a file; None: it does, so offsets, shapes and sizes are consistent."""
    try:
        with safe_open(file, framework="numpy"):
            return None
    except SafetensorError as error:
        return str(error)


def _metadata(content: Any) -> dict[str, str]:
    if not isinstance(content, dict) or not all(isinstance(value, str) for value in content.values()):
        raise ValueError("__metadata__ is not an object of strings")
    return content


def _tensor(file: Path, key: str, entry: Any, base: int) -> Tensor:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor '{key}' is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or not counts(shape) or not counts(offsets) or len(offsets) != 2:
        raise ValueError(f"tensor '{key}' has the type {dtype!r}, the shape {shape!r} and the offsets {offsets!r}")
    start, end = offsets
    if start > end:
        raise ValueError(f"tensor '{key}' has the offsets {start}, {end}")
    return Tensor(file, key, dtype, tuple(shape), base + start, end - start)


def counts(value: Any) -> bool:
    """Whether it is a list of whole numbers from 0 up."""
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


def _fault(tensor: Tensor) -> str | None:
    dtype = EVERY.get(tensor.dtype)
    if dtype is None:
        return None  # a buffer that nobody reads may have any type: judged by whoever wants it
    if math.prod(tensor.shape) * dtype.itemsize != tensor.size:
        return f"{tensor.size:,} bytes cannot be {tensor.dtype} {list(tensor.shape)}"
    return None


def read_folder(folder: Path) -> Files:
    """The headers of a component's folder: an index with its shards, or one file."""
    files = Files()
    names = sorted(path.name for path in folder.iterdir())
    single = [name for name in names if name.endswith(".safetensors") and "-of-" not in name]
    usual = [name for name in ("diffusion_pytorch_model.safetensors", "model.safetensors") if name in single]
    index = [name for name in names if name.endswith(".safetensors.index.json")]
    index = [name for name in index if name.count(".") == 3] or index  # one without a variant's name in it
    if usual or (len(single) == 1 and not index):
        files.add(folder / (usual or single)[0])
    elif index:
        _read_shards(folder, index[0], files)
    else:
        files.problems.append(_absent(folder, names, single))
        files.unknown = None
    return files


def _absent(folder: Path, names: list[str], single: list[str]) -> str:
    if single:
        return f"{folder}: which one to read of {', '.join(single)}? Keep one"
    shards = [name for name in names if name.endswith(".safetensors")]
    if shards:
        return f"{folder}: {len(shards)} shards, but no .safetensors.index.json that lists them"
    pickles = [name for name in names if name.endswith(PICKLES)]
    if pickles:
        return f"{folder}: {pickles[0]} is a pickle, which can run code and is never read; use .safetensors"
    return f"{folder}: no .safetensors file"


def _read_shards(folder: Path, index: str, files: Files) -> None:
    try:
        weights = _weight_map(folder / index)
    except ValueError as error:
        files.problems.append(str(error))
        files.unknown = None
        return
    shards: dict[str, list[str]] = {}
    for key, name in weights.items():
        shards.setdefault(name, []).append(key)
    for name, promised in sorted(shards.items()):
        if Path(name).name != name or not name.endswith(".safetensors"):
            files.problems.append(f"{folder / index}: shard {name!r} is not a .safetensors file of this folder")
        elif not os.path.exists(folder / name):
            files.problems.append(f"{folder / name}: shard missing ({len(promised)} tensors, '{promised[0]}' first)")
        else:
            files.add(folder / name, promised)
            continue
        if files.unknown is not None:
            files.unknown.update(promised)


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor -> file. Raises ValueError that names the index."""
    weights = read_json(index).get("weight_map")
    if not isinstance(weights, dict) or not all(isinstance(name, str) for name in weights.values()):
        raise ValueError(f"{index}: not an index of shards: weight_map must be an object of file names")
    if len(weights) > MAX_TENSORS:
        raise ValueError(f"{index}: it lists {len(weights):,} tensors; a checkpoint has {MAX_TENSORS:,} at most")
    return weights


def write(
    path: Path,
    entries: list[tuple[str, np.dtype, tuple[int, ...], Callable[[], Iterator[np.ndarray]]]],
    metadata: dict[str, str],
    wrote: Callable[[int], None],
) -> None:
    """Write a file tensor by tensor; an entry is (name, dtype, shape, its consecutive pieces).

    Tensors of whole cache lines come first and the header ends on one, so that mapped tensors are aligned and can be
    used where they lie. `wrote` hears the bytes of each piece.
    """
    sizes = [math.prod(shape) * dtype.itemsize for _, dtype, shape, _ in entries]
    order = sorted(range(len(entries)), key=lambda i: sizes[i] % 64 != 0)
    header: dict[str, Any] = {"__metadata__": metadata}
    start = 0
    for i in order:
        name, dtype, shape, _ = entries[i]
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [start, start + sizes[i]]}
        start += sizes[i]
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-(len(raw) + 8) % 64)
    with path.open("wb") as stream:
        stream.write(len(raw).to_bytes(8, "little") + raw)
        for i in order:
            for piece in entries[i][3]():
                stream.write(np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data)
                wrote(piece.nbytes)
