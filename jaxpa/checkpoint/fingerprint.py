"""Which checkpoint it is, in one hash, without reading the weights."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from jaxpa.checkpoint.files import Tensor
from jaxpa.checkpoint.source import Source

SAMPLES, SAMPLE = 32, 1024  # tensors of a file that are looked into, and the first bytes of each
TOKENIZER_FILES = (".json", ".txt", ".model")


def fingerprint(source: Source) -> str:
    """SHA-256, in hexadecimal, of a checkpoint's headers, configurations and tokenizers; where it lies does not count.

    Fine-tunes have the headers of what they come from: samples of each file's numbers tell them apart.
    """
    digest = hashlib.sha256()
    for line in _lines(source):
        digest.update(line + b"\n")
    return digest.hexdigest()


def _lines(source: Source) -> Iterator[bytes]:
    scheduler = None if source.scheduler is None else dataclasses.asdict(source.scheduler)
    yield _json([dataclasses.asdict(source.own_config), scheduler, source.settings])
    for name, part in sorted(source.parts.items()):
        every = (*part.tensors.values(), *part.scales.of.values())
        tensors = sorted(every, key=lambda tensor: (tensor.file.name, tensor.start, tensor.key))
        yield _json([name, [[t.file.name, t.key, t.dtype, t.shape, t.start, t.size] for t in tensors]])
        files: dict[Path, list[Tensor]] = {}
        for tensor in tensors:
            files.setdefault(tensor.file, []).append(tensor)
        for file, inside in files.items():
            yield from _samples(file, inside)
    for name, folder in sorted(source.tokenizers.items()):
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
