"""Safetensors -> modules, tensor by tensor, and modules' own layout -> safetensors (`convert`).

A parameter is assembled in one host buffer (several blocks, several tensors, transposed), put onto the device, and
cast there if it widens: beyond the model itself, one parameter is held at a time. A converted checkpoint has the
parameters ready: they are used where the file is mapped. `info` is in `jaxpa.checkpoint.report`.
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from jax.typing import DTypeLike

from jaxpa.checkpoint.files import DTYPES, finite, write
from jaxpa.checkpoint.keys import COMPONENTS, Leaf, abstract
from jaxpa.checkpoint.parts import PARTS, Part
from jaxpa.checkpoint.source import MARKER, Source, find_mini, locate, resolve
from jaxpa.config import FluxConfig, Settings
from jaxpa.errors import CheckpointError

__all__ = ["Parts", "convert", "default_dtype", "find_mini", "load_component", "load_parts", "locate", "resolve"]

# One for all, or a function of component, parameter path ("double_blocks.img.qkv.kernel") and shape.
Shardings = Sharding | Callable[[str, str, tuple[int, ...]], Sharding]

FORMAT = {"format": "jaxpa", "version": "1"}


@dataclass
class Parts:
    """A loaded checkpoint. A part that was not asked for is None."""

    config: FluxConfig
    settings: Settings
    transformer: Any = None  # Flux
    vae: Any = None  # Autoencoder
    text_encoder: Any = None  # CLIPTextEncoder
    text_encoder_2: Any = None  # T5Encoder
    tokenizers: dict[str, Path] = field(default_factory=dict)  # "tokenizer", "tokenizer_2" -> folder


def default_dtype() -> np.dtype:
    """float32 on CPU, bfloat16 on GPU and TPU."""
    return np.dtype(jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)


def load_component(path: str | Path, dtype: DTypeLike | None = None, sharding: Shardings | None = None) -> Any:
    """One network from its folder or single file. Raises CheckpointError with everything that is wrong."""
    source = resolve(path)
    if len(source.parts) != 1:
        raise CheckpointError(f"{path} holds {', '.join(source.parts) or 'nothing'}; name one component's folder")
    (part,) = source.parts.values()
    _demand(source, part.faults)
    return _load(part, dtype, sharding)


def load_parts(
    source: str | Path,
    components: str | Path | None = None,
    dtype: DTypeLike | None = None,
    sharding: Shardings | None = None,
    parts: Iterable[str] = PARTS,
) -> Parts:
    """The networks of a checkpoint and what belongs to them.

    source: `mini`, a diffusers or converted folder, a single file of the original release, a hub id; components:
    another source, for what the first does not hold; dtype: of all networks (None: `default_dtype`).
    Raises CheckpointError with everything that is wrong, before any tensor is read as far as headers tell.
    """
    found = resolve(source, components)
    wanted = [name for name in PARTS if name in tuple(parts)]
    _demand(found, found.faults(wanted), found.absent(wanted))
    networks = {name: _load(found.parts[name], dtype, sharding) for name in wanted}
    return Parts(found.config, settings_of(found), tokenizers=found.tokenizers, **networks)


def settings_of(source: Source) -> Settings:
    """What suits this checkpoint: its folder's own settings over FLUX.1's. Raises CheckpointError for a wrong type."""
    usual = Settings() if source.config.transformer.guidance_embeds else Settings(steps=4, guidance=0.0, max_length=256)
    own = {key: value for key, value in source.settings.items() if hasattr(usual, key)}
    for key, value in own.items():
        kind = type(getattr(usual, key))
        if not isinstance(value, (int, float) if kind is float else kind) or isinstance(value, bool):
            raise CheckpointError(f"{source.path / MARKER}: {key} must be a {kind.__name__}, not {value!r}")
    return dataclasses.replace(usual, **own)


def _demand(source: Source, faults: list[str], absent: list[str] | None = None) -> None:
    """Raise if there are faults; say where absent parts can come from."""
    if not faults:
        return
    summary = f"{source.name} does not load: {len(faults)} problem{'s' if len(faults) > 1 else ''}"
    if absent and not source.whole:
        summary = (
            f"{source.name} holds the {' and the '.join(source.parts)} only; name a source of the rest, for instance\n"
            f"  --model {source.name} --components black-forest-labs/FLUX.1-dev   (a hub id, or a diffusers folder)"
        )
    raise CheckpointError(summary, faults)


def _load(part: Part, dtype: DTypeLike | None, sharding: Shardings | None) -> Any:
    """The module of a part whose headers are faultless."""
    assert part.config is not None
    dtype = default_dtype() if dtype is None else np.dtype(dtype)
    problems: list[str] = []
    arrays = []
    for leaf in part.leaves:
        host = _assemble(part, leaf, _host_dtype(part, leaf, dtype), problems)
        where = sharding(part.name, leaf.path, leaf.shape) if callable(sharding) else sharding
        if not problems:
            arrays.append(jax.block_until_ready(_place(host, where).astype(dtype)))
    if problems:
        raise CheckpointError(f"{part.path} does not load: numbers that are not finite", problems)
    structure = jax.tree_util.tree_structure(abstract(part.name, part.config, dtype))
    return jax.tree_util.tree_unflatten(structure, arrays)


def _place(host: np.ndarray, sharding: Sharding | None) -> jax.Array:
    if sharding is None:
        return jax.device_put(host)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def _host_dtype(part: Part, leaf: Leaf, dtype: np.dtype) -> np.dtype:
    """The narrower of the stored and the wanted type, so that what is widened is widened on the device.

    On a CPU the device is the host, and numpy's conversion needs no compiling.
    """
    if jax.default_backend() == "cpu":
        return dtype
    stored = _stored_dtype(part, leaf)
    return stored if stored.itemsize < dtype.itemsize else dtype


def _stored_dtype(part: Part, leaf: Leaf) -> np.dtype:
    types = {DTYPES[part.tensors[name].dtype] for names in leaf.sources for name in names}
    return types.pop() if len(types) == 1 else np.dtype(np.float32)


def _assemble(part: Part, leaf: Leaf, dtype: np.dtype, problems: list[str]) -> np.ndarray:
    """A parameter on the host: the mapped file itself where it lies there as it is wanted, else one buffer."""
    if part.layout == "jaxpa":
        stored = _read(part, leaf.path, problems)
        return stored if stored.dtype == dtype else stored.astype(dtype)
    out = np.empty(leaf.shape, dtype)
    for index in range(len(leaf.sources)):
        _fill(out[index] if leaf.stacked else out, part, leaf, index, problems)
    return out


def _fill(out: np.ndarray, part: Part, leaf: Leaf, index: int, problems: list[str]) -> None:
    """One block of a parameter: its sources side by side."""
    start = 0
    for name, width in zip(leaf.sources[index], leaf.widths, strict=True):
        tensor = leaf.oriented(_read(part, name, problems), width)
        _copy(out[..., start : start + width], tensor)
        start += width


def _read(part: Part, name: str, problems: list[str]) -> np.ndarray:
    """A tensor as it is stored; notes it if a number is not finite."""
    tensor = part.tensors[name]
    array = tensor.read()
    if not finite(array):
        problems.append(f"{tensor.file}: tensor '{tensor.key}' has numbers that are not finite")
    return array


def _copy(out: np.ndarray, x: np.ndarray) -> None:
    """out[...] = x. A transposed matrix goes in bands that stay in cache (5 times faster)."""
    if out.dtype == x.dtype and x.dtype.itemsize == 2:  # bytes are bytes; numpy is slower on bfloat16
        out, x = out.view(np.uint16), x.view(np.uint16)
    band = 32 if x.ndim == 2 else max(out.shape[-1], 1)
    for i in range(0, out.shape[-1], band):
        out[..., i : i + band] = x[..., i : i + band]


Progress = Callable[[str, int, int], None]


def convert(
    source: str | Path,
    folder: str | Path,
    components: str | Path | None = None,
    dtype: DTypeLike | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write a checkpoint in the layout that the networks use, with its configs and tokenizers; returns the folder.

    dtype: of all tensors (None: as stored). progress: hears (component, bytes written, bytes in all). The folder
    appears when it is complete. Raises CheckpointError where the source does not load or the folder is not free.
    """
    folder = Path(folder).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists and is not empty: name a new folder")
    if not folder.absolute().parent.is_dir():
        raise CheckpointError(f"{folder.parent} does not exist: create it first")
    found = resolve(source, components)
    _demand(found, found.faults(), found.absent())
    partial = folder.absolute().parent / f".{folder.name}.{os.getpid()}.partial"
    try:
        partial.mkdir()
        for name in PARTS:
            _convert_part(found.parts[name], partial / name, None if dtype is None else np.dtype(dtype), progress)
        _copy_rest(found, partial)
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    except OSError as error:
        raise CheckpointError(f"{folder}: {error.strerror or error}; nothing was written") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _convert_part(part: Part, folder: Path, dtype: np.dtype | None, progress: Progress | None) -> None:
    problems: list[str] = []

    def pieces(leaf: Leaf, target: np.dtype) -> Iterator[np.ndarray]:
        if not leaf.stacked:
            yield _assemble(part, leaf, target, problems)
            return
        out = np.empty(leaf.block_shape, target)
        for index in range(len(leaf.sources)):
            _fill(out, part, leaf, index, problems)
            yield out

    targets = [dtype or _stored_dtype(part, leaf) for leaf in part.leaves]
    total = sum(leaf.size * target.itemsize for leaf, target in zip(part.leaves, targets, strict=True))
    done = 0

    def wrote(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(part.name, done, total)

    entries = [
        (leaf.path, target, leaf.shape, lambda leaf=leaf, target=target: pieces(leaf, target))
        for leaf, target in zip(part.leaves, targets, strict=True)
    ]
    folder.mkdir()
    write(folder / "model.safetensors", entries, FORMAT, wrote)
    if problems:
        raise CheckpointError(f"{part.path} does not load: numbers that are not finite", problems)
    content = part.json or {"_class_name": COMPONENTS[part.name].class_names[0], **dataclasses.asdict(part.config)}  # type: ignore[arg-type]
    _write_json(folder / "config.json", content)


def _copy_rest(source: Source, folder: Path) -> None:
    """Tokenizers, the schedule, and the marker with the settings."""
    for name, path in source.tokenizers.items():
        shutil.copytree(path, folder / name)
    (folder / "scheduler").mkdir()
    _write_json(folder / "scheduler" / "scheduler_config.json", dataclasses.asdict(source.config.scheduler))
    _write_json(folder / MARKER, {"format": "jaxpa", "version": 1, **source.settings})


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
