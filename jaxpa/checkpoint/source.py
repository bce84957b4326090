"""Where a checkpoint's parts are: a name, a path or a hub id becomes a table of components. Reads headers only.

A source is `mini`, a hub id, a pipeline folder (diffusers or converted), one component's folder, a single file of the
original release, or a folder of such files. What it does not hold comes from a second source, the components.
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np

from jaxpa.backbones.registry import BACKBONES
from jaxpa.backbones.variants import VARIANTS, Variant, misfit, recognise
from jaxpa.checkpoint import fit, hub
from jaxpa.checkpoint.documents import check_regular, read_json
from jaxpa.checkpoint.files import PICKLES, SUFFIXES
from jaxpa.checkpoint.fingerprint import fingerprint
from jaxpa.checkpoint.fit import TOKENIZERS
from jaxpa.checkpoint.keys import Layout
from jaxpa.checkpoint.parts import PARTS, Part, open_folder
from jaxpa.checkpoint.remote import LOCAL, fetch_url, is_url, open_url
from jaxpa.checkpoint.single import open_single
from jaxpa.config import (
    Asked,
    FluxConfig,
    Rounding,
    ScheduleConfig,
    Settings,
    TransformerConfig,
    VariantName,
    Weights,
    flux_dev,
    flux_schnell,
    shown,
)
from jaxpa.errors import CheckpointError, check_choice, did_you_mean, quoted
from jaxpa.quantised import DTYPES

MARKER = "jaxpa.json"  # a folder's own settings; in a converted folder with "format": "jaxpa"

# (number of a block, its parameter as stored) -> the edited one, float32
Edit = Callable[[int, np.ndarray], np.ndarray]


class Adaptation(Protocol):
    """What is laid over a checkpoint's networks as they are loaded: LoRAs, for instance."""

    @property
    def config(self) -> FluxConfig: ...  # the one that results
    @property
    def keep(self) -> bool: ...  # laid over the loaded networks (`attach`); else merged as they are read (`edits`)
    @property
    def kept(self) -> int: ...  # numbers that stay beside the weights; biases and norms change in their place

    def edits(self, component: str) -> Mapping[str, Edit]:
        """Parameter path -> what becomes of it before it is cast, rounded and placed."""
        ...

    def attach(self, component: str, network: Any) -> Any:
        """The loaded network with what is kept beside its weights; its arrays are shared."""
        ...

    def attach_shapes(self, network: Any) -> Any:
        """The same for a transformer of shapes."""
        ...


class Companion(Protocol):
    """Networks that are loaded beside a checkpoint's own: how many numbers they have, and their `fingerprint`."""

    @property
    def parameters(self) -> int: ...
    @property
    def sha256(self) -> str: ...


@dataclass(frozen=True)
class Source:
    """A checkpoint's parts, before anything is loaded."""

    name: str
    path: Path
    parts: dict[str, Part]
    whole: bool = False  # a pipeline: what is missing of it is a fault
    tokenizers: dict[str, Path] = field(default_factory=dict)
    scheduler: ScheduleConfig | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    pipeline: str | None = None  # the class that a model_index.json names
    problems: tuple[str, ...] = ()
    described: FluxConfig | None = None  # a model without files: what there is to know of it
    adaptation: Adaptation | None = None
    redux: Companion | None = None  # FLUX.1-Redux, for image prompts

    @property
    def layout(self) -> Layout:
        return next(iter(self.parts.values())).layout

    def absent(self, parts: Iterable[str] = PARTS) -> list[str]:
        """The components, and the tokenizers of the text encoders among them, that are nowhere."""
        return [
            name
            for part in parts
            for name in (part, TOKENIZERS.get(part))
            if name and name not in self.parts and name not in self.tokenizers
        ]

    def faults(self, parts: Iterable[str] = PARTS) -> list[str]:
        """Everything that keeps these parts from loading, as far as headers tell."""
        parts = tuple(parts)
        found = [fault for name, part in self.parts.items() if name in (*parts, "unknown") for fault in part.faults]
        absent = [] if "unknown" in self.parts else self.absent(parts)
        return [*self.problems, *(f"{name} is missing" for name in absent), *found, *self.misfits(parts)]

    def misfits(self, parts: Iterable[str] = PARTS) -> list[str]:
        """What does not fit between these parts, or between a text encoder and its tokenizer."""
        parts = [name for name in parts if name in self.parts]
        found = fit.mismatches({name: self.parts[name].config for name in parts})
        if "transformer" in parts and (wrong := misfit(self.config.transformer, self.settings.get("variant"))):
            found.append(wrong)
        for name in parts:
            if (kind := TOKENIZERS.get(name)) and (folder := self.tokenizers.get(kind)):
                found += fit.tokenizer_faults(folder, kind, self.parts[name].config)
        return found

    @property
    def variant(self) -> Variant:
        """Which of FLUX.1's sister models it is."""
        name = self.name if hub.hub_id(self.name) else self.path.absolute().name
        return recognise(self.config.transformer, self.settings.get("variant"), self.pipeline, name)

    def rounded(self, asked: Asked | None) -> Rounding:
        """Of how many bits the blocks' weights are, if a user asks for these; None: as the files suggest.

        Raises CheckpointError where a converted folder has another kind of eight bits.
        """
        check_choice("weights", asked, [None, *get_args(Asked)], CheckpointError)
        return Rounding(self._rounded("transformer", asked), self._rounded("text_encoder_2", asked))

    def _rounded(self, name: str, asked: Asked | None) -> Weights | None:
        part = self.parts.get(name)
        if asked is None:
            return None if part is None else part.weights
        if asked == "wide":
            return None
        if asked == "w8a8" and name == "text_encoder_2":
            asked = "int8"  # some channels of T5's activations are hundreds of times as large as the rest
        stored = None if part is None or part.layout != "jaxpa" else part.stored
        if stored is not None and DTYPES[stored] != DTYPES[asked]:
            raise CheckpointError(
                f"{self.name} holds weights in {stored}: leave --weights away, or take the checkpoint it was made from"
            )
        return asked

    @property
    def config(self) -> FluxConfig:
        """Configurations of the parts that are here, FLUX.1's for those that are not.

        Flow times without a scheduler's file: the resolution shifts them where guidance is embedded (dev), not else
        (schnell), as in the original release.
        """
        return self.own_config if self.adaptation is None else self.adaptation.config

    @property
    def own_config(self) -> FluxConfig:
        """The configurations without what is laid over the networks."""
        if self.described is not None:
            return self.described
        known = {name: part.config for name, part in self.parts.items() if part.config is not None}
        transformer: Any = known.get("transformer", TransformerConfig())
        scheduler = self.scheduler or ScheduleConfig(use_dynamic_shifting=transformer.guidance_embeds)
        return replace(FluxConfig(scheduler=scheduler), **known)

    @cached_property
    def sha256(self) -> str:
        """Its `fingerprint`: which checkpoint it is, whatever is laid over it; with that of what is beside it."""
        scheduler = None if self.scheduler is None else dataclasses.asdict(self.scheduler)
        configs = [dataclasses.asdict(self.own_config), scheduler, self.settings]
        configs += [] if self.redux is None else [self.redux.sha256]
        return fingerprint(configs, self.parts, self.tokenizers)


def described(name: Literal["dev", "schnell"]) -> Source:
    """FLUX.1 without any file: enough to plan for, nothing to load."""
    return Source(f"FLUX.1-{name}", Path(), {}, described=flux_dev() if name == "dev" else flux_schnell())


def find_mini() -> Path:
    """The embedded checkpoint's folder: inside the installed package, or beside it in a source checkout."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "mini", package.parent / "weights" / "mini"):
        if (folder / "model_index.json").exists():
            return folder
    raise CheckpointError("this installation lacks the embedded checkpoint 'mini': install jaxpa again from its wheel")


def resolve(
    source: str | Path,
    components: str | Path | None = None,
    *,
    download: bool = True,
    variant: VariantName | None = None,
) -> Source:
    """Find a checkpoint and read its headers. Raises CheckpointError where there is none.

    source: `mini`, a path, or a hub id `owner/name`; components: another one, for what the first does not hold.
    download: whether a hub id may be fetched; a local path never goes online. variant: which of FLUX.1's sister models
    it is (None: as its files say).
    """
    check_choice("variant", variant, [None, *VARIANTS], CheckpointError)
    path = locate(source, PARTS, download)
    try:
        found = _resolve(source, path, components, download)
        return found if variant is None else replace(found, settings={**found.settings, "variant": variant})
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise CheckpointError(f"{path}: {reason}") from error


def _resolve(source: str | Path, path: Path, components: str | Path | None, download: bool) -> Source:
    if components is None:
        return _open(str(source), path, (), {})
    held = _open(str(source), path, (), {})
    wanted = [name for name in PARTS if name not in held.parts]
    folder = locate(components, wanted, download)
    main = _open(str(source), path, (), _configs(folder))
    other = _open(str(components), folder, tuple(main.parts), {})
    parts = {**other.parts, **main.parts}
    return replace(
        main,
        parts={name: parts[name] for name in (*PARTS, "unknown") if name in parts},
        whole=True,
        tokenizers={**other.tokenizers, **main.tokenizers},
        scheduler=main.scheduler or other.scheduler,
        settings=main.settings or other.settings,
        problems=(*main.problems, *other.problems),
    )


def locate(source: str | Path, parts: Iterable[str] = PARTS, download: bool = True) -> Path:
    """The file or folder that a source names; a hub id is fetched, with the weights of these parts, and a URL whole."""
    if not isinstance(source, str | os.PathLike) or not os.fspath(source):
        known = "'mini', a hub id, a URL, or the name of a folder or a file"
        raise CheckpointError(f"a model is {known}, not {quoted(source)}")
    if source == "mini":
        return find_mini()
    if isinstance(source, str) and source.startswith(LOCAL):
        source = open_url(source)[1]
    if isinstance(source, str) and (repo := hub.hub_id(source)):
        return hub.fetch(repo, parts, download)
    if isinstance(source, str) and is_url(source):
        return fetch_url(source, download)
    try:
        path = Path(source).expanduser()
        os.stat(path)
    except FileNotFoundError:
        raise CheckpointError(
            f"{source}: no such file or folder\n"
            "  - a model is 'mini', a hub id (owner/name), a URL, a diffusers or converted folder, or a .safetensors "
            "or .gguf file\n"
            f"  - in a folder that exists here a name counts as a path; {hub.PREFIX}owner/name is always a hub id"
        ) from None
    except (OSError, ValueError, RuntimeError) as error:  # a name that is too long, a null in it, no such user's home
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise CheckpointError(f"{source!s:.200}: {reason}") from None
    return path


def _configs(folder: Path) -> dict[str, dict[str, Any]]:
    """The config.json of every component that has one."""
    out = {}
    for name in PARTS:
        # A file that is damaged is reported where the component itself is read.
        with contextlib.suppress(ValueError):
            out[name] = read_json(folder / name / "config.json")
    return out


def _open(name: str, path: Path, skip: tuple[str, ...], hints: dict[str, dict[str, Any]]) -> Source:
    if not path.is_dir():
        check_regular(path)
        return _open_file(name, path, hints)
    if any((path / part / "config.json").exists() for part in PARTS) or (path / "model_index.json").exists():
        return _open_pipeline(name, path, skip)
    if (path / "config.json").exists():
        part = open_folder(path)
        return Source(name, path, {part.name: part})
    return _open_release(name, path, skip, hints)


def _open_file(name: str, path: Path, hints: dict[str, dict[str, Any]]) -> Source:
    if path.name.endswith(PICKLES):
        raise CheckpointError(f"{path} is a pickle, which can run code and is never read; use a .safetensors file")
    if not path.name.endswith(SUFFIXES):
        raise CheckpointError(f"{path}: not a .safetensors or .gguf file, and nothing else is read")
    parts = {part.name: part for part in open_single(path, hints)}
    beside = (path.parent / "config.json").exists()
    if parts and not (beside and all(part.layout == "diffusers" for part in parts.values())):
        return Source(name, path, parts)
    if beside:
        part = open_folder(path.parent)
        if path.name not in {tensor.file.name for tensor in part.tensors.values()}:
            raise CheckpointError(f"{path}: the folder's config.json is about another file; name the folder instead")
        return Source(name, path.parent, {part.name: part})
    known = ", ".join(f"a {backbone.name} transformer" for backbone in BACKBONES.values())
    raise CheckpointError(f"{path}: its tensors do not have the names of {known}, an autoencoder, CLIP or T5")


def _open_pipeline(name: str, path: Path, skip: tuple[str, ...]) -> Source:
    problems: list[str] = []

    def read(config: Any, file: Path) -> Any:
        """The config in a file; None where there is none, or it is faulty."""
        if not os.path.lexists(file):
            return None
        try:
            content = read_json(file)
        except ValueError as error:
            problems.append(str(error))
            return None
        try:
            return config(content)
        except ValueError as error:
            problems.append(f"{file}: {error}")
            return None

    pipeline, scheduled = read(_index, path / "model_index.json") or (None, False)
    schedule = path / "scheduler" / "scheduler_config.json"
    scheduler = read(ScheduleConfig.from_json, schedule)
    if scheduled and not os.path.lexists(schedule):
        problems.append(f"{schedule} is missing, which model_index.json lists")
    settings = read(_settings, path / MARKER) or {}
    return Source(
        name,
        path,
        {part: open_folder(path / part, part) for part in PARTS if part not in skip and (path / part).is_dir()},
        whole=True,
        tokenizers=_tokenizers(path),
        scheduler=scheduler,
        settings=settings,
        pipeline=pipeline,
        problems=tuple(problems),
    )


def _tokenizers(path: Path) -> dict[str, Path]:
    """The folders of tokenizers in a folder that have anything in them."""
    folders = {name: path / name for name in TOKENIZERS.values()}
    return {name: folder for name, folder in folders.items() if folder.is_dir() and any(folder.iterdir())}


def _index(content: dict[str, Any]) -> tuple[str, bool]:
    """The pipeline's class, and whether a scheduler belongs to it. Raises ValueError for a class that is not known."""
    kind = content.get("_class_name", "FluxPipeline")
    if not isinstance(kind, str) or not kind.startswith(tuple(each.pipelines for each in BACKBONES.values())):
        known = " or ".join(f'of {each.name}, such as "{each.pipelines}Pipeline"' for each in BACKBONES.values())
        raise ValueError(f"_class_name is {shown(kind)}; allowed: a pipeline {known}")
    return kind, bool(content.get("scheduler"))


def _settings(content: dict[str, Any]) -> dict[str, Any]:
    """A folder's own settings. Raises ValueError for a key that means nothing, or a wrong value."""
    own = {key: value for key, value in content.items() if key not in ("format", "version")}
    known = [field.name for field in dataclasses.fields(Settings)]
    if unknown := [key for key in own if key not in known]:
        near = did_you_mean(unknown[0], known)
        raise ValueError(f"{unknown[0]} is no setting; allowed: {', '.join(known)}{near}")
    Settings.from_json(own)
    return own


def _open_release(name: str, path: Path, skip: tuple[str, ...], hints: dict[str, dict[str, Any]]) -> Source:
    """A folder of single files, as `flux1-dev.safetensors` beside `ae.safetensors`."""
    parts: dict[str, Part] = {}
    for file in sorted(file for file in path.iterdir() if file.name.endswith(SUFFIXES)):
        for part in open_single(file, hints):
            if part.name in parts:
                both = f"{parts[part.name].path.name} and {file.name}"
                raise CheckpointError(f"{path}: {both} both hold the {part.name}; name one of them instead")
            if part.name not in skip:
                parts[part.name] = part
    if parts:
        return Source(name, path, parts, tokenizers=_tokenizers(path))
    pickle = next((file.name for file in sorted(path.iterdir()) if file.name.endswith(PICKLES)), None)
    if pickle:
        raise CheckpointError(f"{path}: {pickle} is a pickle, which can run code and is never read; use .safetensors")
    raise CheckpointError(
        f"{path}: no checkpoint\n  - a pipeline's folder has a model_index.json, a component's folder a config.json, "
        "the original release .safetensors or .gguf files"
    )
