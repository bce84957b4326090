"""Any checkpoint -> a folder in the layout that the networks use, its blocks' weights in eight bits if wanted.

Tensors are written one by one, block by block: little of the checkpoint is in memory at once. A matrix of eight bits
lies where it would lie otherwise; its scales are a tensor of their own, named after the parameter (`parts.scale_of`).
The folder loads as its source does, bit for bit.
"""

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial, reduce
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxpa.checkpoint.files import DTYPES as PLAIN
from jaxpa.checkpoint.files import write
from jaxpa.checkpoint.keys import Leaf, component, leaves
from jaxpa.checkpoint.load import demand
from jaxpa.checkpoint.parts import PARTS, Part, scale_of
from jaxpa.checkpoint.reading import block, copy, raw, scales, unique
from jaxpa.checkpoint.source import MARKER, Source, resolve
from jaxpa.config import Asked, VariantName, Weights
from jaxpa.errors import CheckpointError
from jaxpa.quantised import DTYPES, quantise, steps

FORMAT = {"format": "jaxpa", "version": "1"}
Progress = Callable[[str, int, int], None]


def convert(
    source: str | Path,
    folder: str | Path,
    components: str | Path | None = None,
    dtype: DTypeLike | None = None,
    progress: Progress | None = None,
    variant: VariantName | None = None,
    weights: Asked | None = None,
) -> Path:
    """Write a checkpoint in the layout that the networks use, with its configs and tokenizers; returns the folder.

    dtype: of all tensors (None: as stored; bfloat16 where that is eight bits or fewer); weights: of the blocks of the
    transformer and of T5 ("int8", "fp8", "wide"; None: as `load_parts` has them). progress: hears (component, bytes
    written, bytes in all). variant: see `resolve`; the folder remembers it. The folder appears when it is complete.
    Raises CheckpointError where the source does not load, is a converted folder of eight bits already, or the folder is
    not free.
    """
    if weights == "w8a8":
        raise CheckpointError("w8a8 rounds what a run computes: convert with int8, and load that folder with w8a8")
    folder = Path(folder).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists and is not empty: name a new folder")
    if not folder.absolute().parent.is_dir():
        raise CheckpointError(f"{folder.parent} does not exist: create it first")
    found = resolve(source, components, variant=variant)
    demand(found, found.faults(), found.absent())
    own = [part.stored for part in found.parts.values() if part.layout == "jaxpa" and part.stored]
    if own:
        raise CheckpointError(f"{found.name} holds weights in {own[0]} already: convert what it was made from")
    rounding = found.rounded(weights)
    kept = None if dtype is None else np.dtype(dtype)
    unfinished = folder.absolute().parent / f".{folder.name}.{os.getpid()}.partial"
    try:
        unfinished.mkdir()
        for name in PARTS:
            kind = rounding.of(name)
            _Writer(found.parts[name], kept, kind).write(unfinished / name, progress)
        _copy_rest(found, unfinished)
        if folder.exists():
            folder.rmdir()
        unfinished.rename(folder)
    except OSError as error:
        raise CheckpointError(f"{folder}: {error.strerror or error}; nothing was written") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


Entry = tuple[str, np.dtype, tuple[int, ...], Callable[[], Iterator[np.ndarray]]]  # see `files.write`
Held = list[tuple[Leaf, Leaf]]  # the parameters that one of our tensors holds: as the source has them, as we do


@dataclass(frozen=True)
class _Writer:
    """One component's file. dtype and weights: see `convert`; problems: numbers that are not finite."""

    part: Part
    dtype: np.dtype | None
    weights: Weights | None
    problems: list[str] = field(default_factory=list)

    def write(self, folder: Path, progress: Progress | None) -> None:
        """The folder of the component, which must not be there yet."""
        part, entries, done = self.part, list(self.entries()), 0
        total = sum(math.prod(shape) * target.itemsize for _, target, shape, _ in entries)

        def wrote(count: int) -> None:
            nonlocal done
            done += count
            if progress is not None:
                progress(part.name, done, total)

        folder.mkdir()
        write(folder / "model.safetensors", entries, FORMAT, wrote)
        if self.problems:
            raise CheckpointError(f"{part.path} does not load: numbers that are not finite", unique(self.problems))
        _write_json(folder / "config.json", part.json or _described(part.name, part.config))

    def entries(self) -> Iterator[Entry]:
        stored: dict[str, Held] = {}
        for leaf, own in zip(self.part.leaves, leaves(self.part.name, self.part.config, "jaxpa"), strict=True):  # type: ignore[arg-type]
            stored.setdefault(own.sources[0], []).append((leaf, own))
        rounds = component(self.part.name, self.part.config).rounds  # type: ignore[arg-type]
        for name, held in stored.items():
            kind = self.weights if all(rounds(own.path) for _, own in held) else None
            target = self.target(held, kind)
            yield name, target, held[0][1].whole_shape, partial(self.pieces, held, target, kind)
            if kind is not None:
                for leaf, own in held:
                    shape = (*own.shape[:-2], own.shape[-1])
                    yield scale_of(own), np.dtype(np.float32), shape, partial(self.scales, leaf, target, kind)

    def target(self, held: Held, kind: Weights | None) -> np.dtype:
        """The type of a tensor that holds these: of eight bits, the one in which all of them are kept; else the one
        that holds the numbers of each source, in bfloat16 those that have eight bits or fewer."""
        if kind is not None:
            types = {self.part.held_as(leaf, kind) for leaf, _ in held}
            return types.pop() if len(types) == 1 else DTYPES[kind]
        stored = {PLAIN.get(name, np.dtype(jnp.bfloat16)) for leaf, _ in held for name in self.part.types(leaf)}
        return self.dtype or reduce(jnp.promote_types, stored)

    def pieces(self, held: Held, target: np.dtype, kind: Weights | None) -> Iterator[np.ndarray]:
        """A tensor block by block, where the source has it in blocks."""
        leaf, own = held[0]
        out = np.empty(own.whole_shape[1:] if leaf.stacked else own.whole_shape, target)
        for index in range(len(leaf.sources)):
            for leaf, own in held:
                if kind and self.part.keeps(leaf, index, target):
                    copy(own.view(out), raw(self.part, leaf, index, self.problems))
                else:
                    numbers = block(self.part, leaf, index, self.problems)
                    copy(own.view(out), quantise(numbers, kind).values if kind else numbers)
            yield out

    def scales(self, leaf: Leaf, target: np.dtype, kind: Weights) -> Iterator[np.ndarray]:
        """The scales of a parameter, in the same pieces."""
        for index in range(len(leaf.sources)):
            if self.part.keeps(leaf, index, target):
                yield scales(self.part, leaf, index, self.problems)
                continue
            numbers = block(self.part, leaf, index, self.problems)
            matrices = numbers.reshape(-1, *numbers.shape[-2:])
            yield np.stack([steps(matrix.astype(np.float32), kind) for matrix in matrices])


def _described(name: str, config: Any) -> dict[str, Any]:
    """A config.json for what came without one."""
    return {"_class_name": component(name, config).class_names[0], **dataclasses.asdict(config)}


def _copy_rest(source: Source, folder: Path) -> None:
    """Tokenizers, the schedule, and the marker with the settings."""
    for name, path in source.tokenizers.items():
        shutil.copytree(path, folder / name)
    (folder / "scheduler").mkdir()
    _write_json(folder / "scheduler" / "scheduler_config.json", dataclasses.asdict(source.config.scheduler))
    kind = {} if source.variant.name == "text" else {"variant": source.variant.name}
    _write_json(folder / MARKER, {"format": "jaxpa", "version": 1, **source.settings, **kind})


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
