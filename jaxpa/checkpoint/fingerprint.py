"""Which checkpoint it is, in one hash, without reading the weights."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxpa.checkpoint.files import Tensor
from jaxpa.checkpoint.parts import Part

SAMPLES, SAMPLE = 32, 1024  # tensors of a file that are looked into, and the first bytes of each
TOKENIZER_FILES = (".json", ".txt", ".model")


def fingerprint(configs: Any, parts: Mapping[str, Part], tokenizers: Mapping[str, Path]) -> str:
    """SHA-256, in hexadecimal, of a checkpoint's headers, configurations and tokenizers; where it lies does not count.

    Fine-tunes have the headers of what they come from: samples of each file's numbers tell them apart.
    configs: as JSON takes them; tokenizers: their folders.
    """
    digest = hashlib.sha256(_json(configs) + b"\n")
    for line in _lines(parts, tokenizers):
        digest.update(line + b"\n")
    return digest.hexdigest()


def _lines(parts: Mapping[str, Part], tokenizers: Mapping[str, Path]) -> Iterator[bytes]:
    for name, part in sorted(parts.items()):
        tensors = sorted(part.stored_tensors, key=lambda tensor: (tensor.file.name, tensor.start, tensor.key))
        yield _json([name, [[t.file.name, t.key, t.dtype, t.shape, t.start, t.size] for t in tensors]])
        files: dict[Path, list[Tensor]] = {}
        for tensor in tensors:
            files.setdefault(tensor.file, []).append(tensor)
        for file, inside in files.items():
            yield from _samples(file, inside)
    for name, folder in sorted(tokenizers.items()):
        for file in sorted(folder.iterdir()):
            if file.suffix in TOKENIZER_FILES and file.is_file():
                yield _json([name, file.name, hashlib.sha256(file.read_bytes()).hexdigest()])


def _samples(file: Path, tensors: list[Tensor]) -> Iterator[bytes]:
    with file.open("rb") as opened:
        for tensor in tensors[:: -(-len(tensors) // SAMPLES)]:
            opened.seek(tensor.start)
            yield opened.read(min(SAMPLE, tensor.size))


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, default=str).encode()
