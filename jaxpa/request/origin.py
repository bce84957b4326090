"""From a picture back to how it was made: its record, the files that it means, and what is different now.

A picture may come from anybody: what it says is checked by its types.
"""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxpa.checkpoint.hub import hub_id
from jaxpa.checkpoint.remote import is_url
from jaxpa.checkpoint.source import Source
from jaxpa.errors import JaxpaError, printable
from jaxpa.media.images import name_of, read_metadata
from jaxpa.request.provenance import (
    FORMAT,
    Input,
    MaskProvenance,
    Origin,
    Provenance,
    Record,
    input_of,
    versions,
    with_files,
)
from jaxpa.request.record import from_json, to_json


def read_origin(picture: str | os.PathLike[str]) -> tuple[Provenance | MaskProvenance, dict[str, Any]]:
    """How a picture was made, checked and as it stands there. Raises JaxpaError for one that does not say it."""
    found, name = read_metadata(picture), name_of(picture)
    if found is None:
        raise JaxpaError(f"{name} does not say how it was made: jaxpa did not write it, or it was saved again since")
    version = found.get("format")
    if version is None:
        raise JaxpaError(f"{name} does not say how to make it again: only pictures and masks do, of a recent jaxpa")
    if type(version) is int and version > FORMAT:
        raise JaxpaError(f"{name} was made by a newer jaxpa (record {version}, here {FORMAT}): update this one")
    try:
        record = from_json(found, MaskProvenance if "mask" in found else Provenance)
    except JaxpaError as error:
        raise JaxpaError(f"{name}: its metadata is not what jaxpa writes: {_short(str(error))}") from None
    return (_with_empty_prompt(record) if isinstance(record, Provenance) else record), found


def _with_empty_prompt(record: Provenance) -> Provenance:
    """The record with what the oldest ones leave out: a prompt that is empty."""
    own = record.request
    return record if own.shows_something else replace(record, request=replace(own, prompt=""))


def _short(text: str, most: int = 300) -> str:
    line = printable(" ".join(text.split()))
    return line if len(line) <= most else f"{line[:most]} ..."


def found(
    record: Record,
    folders: Sequence[Path],
    model: str | None = None,
    otherwise: Callable[[Input, JaxpaError], str] | None = None,
) -> Record:
    """The record with the files where they are: in one of the folders, under their names or another one.

    model: in place of the one that it was made with. otherwise: what stands for a file that is missing, or has changed;
    None: JaxpaError names it, as it does a model that is missing.
    """
    said = record.checkpoint
    places = {"model": said.model if model is None else model, "components": said.components, "redux": said.redux}
    here = {name: _model_here(text, folders) for name, text in places.items() if text and text != model}
    record = replace(record, checkpoint=replace(said, **{"model": model or said.model} | here))

    def path(place: str, name: str) -> str:
        wanted = record.inputs.get(place)
        if wanted is None:
            raise JaxpaError(f"the record has no hash of {place} ({_short(name, 100)})")
        try:
            return str(find(wanted, folders))
        except JaxpaError as error:
            if otherwise is None:
                raise
            return otherwise(wanted, error)

    return with_files(record, path)


def _model_here(name: str, folders: Sequence[Path]) -> str:
    """A model of a record: a name of its own, or a file or folder in one of the folders."""
    if is_url(name):
        raise JaxpaError(
            f"the picture was made by a model at {_short(name, 100)}: if you trust it, give it with --model"
        )
    if name == "mini" or hub_id(name):
        return name
    there = next((each for folder in folders if _exists(each := folder / name)), None)
    if there is None:
        raise JaxpaError(f"the model {_short(name, 100)} is not here: give it with --model")
    return str(there.absolute())


def find(wanted: Input, folders: Sequence[Path]) -> Path:
    """The file that a record means. Raises JaxpaError for one that is missing, or has changed."""
    shown, changed = _short(wanted.name, 100), None
    for candidate in _candidates(wanted, folders):
        try:
            if input_of(candidate).sha256 == wanted.sha256:
                return candidate.absolute()
        except JaxpaError:
            continue
        if changed is None and candidate.name == os.path.basename(wanted.name):
            changed = candidate
    if changed is not None:
        raise JaxpaError(
            f"the input {shown} has changed: {name_of(changed)} is not the file that the picture was made of"
        )
    where = ", ".join(dict.fromkeys(str(folder) for folder in folders))
    raise JaxpaError(f"the input {shown} is missing in {where}: name its folder with --inputs")


def _candidates(wanted: Input, folders: Sequence[Path]) -> Iterable[Path]:
    """The file of this name in every folder, then files of the same size."""
    names = [folder / os.path.basename(wanted.name) for folder in folders]
    if os.path.isabs(wanted.name):
        names.insert(0, Path(wanted.name))
    yield from (each for each in names if _exists(each))
    for folder in folders:
        try:
            inside = sorted(each.path for each in os.scandir(folder) if each.is_file())
        except OSError:
            continue
        yield from (Path(each) for each in inside if os.path.getsize(each) == wanted.bytes)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that no file can have
        return False


def differences(record: Origin, source: Source, model: str) -> list[str]:
    """What is not as it was when the picture was made, in a line each; source: of the model that is used now."""
    here = versions()
    lines = [
        f"it was made {how} {was}, and this is {here[key]}"
        for key, how in (("jaxpa", "by jaxpa"), ("jax", "with jax"), ("device", "on"))
        if (was := _short(getattr(record, key), 60)) != here[key]
    ]
    was, now = record.checkpoint, source.sha256
    if was.sha256 != now:
        name, number = _short(was.model, 60), printable(was.sha256[:12])
        lines.append(f"it was made by another model: {name} {number}, and this is {model} {now[:12]}")
    return lines


def in_words(picture: str, record: Provenance | MaskProvenance) -> str:
    """How a picture was made, in lines for a terminal."""
    networks = record.checkpoint
    title, lines = _about_mask(record) if isinstance(record, MaskProvenance) else _about_picture(record)
    lines = [
        f"by jaxpa {record.jaxpa}, jax {record.jax}, on {record.device}",
        f"with {networks.model} (sha256 {networks.sha256[:12]}), in {networks.dtype}",
        *(f"LoRA {lora}" for lora in networks.lora),
        *lines,
        *(
            f"{place.partition('.')[2]}: {each.name} (sha256 {each.sha256[:12]})"
            for place, each in record.inputs.items()
        ),
    ]
    return "\n".join([_short(f"{picture}: {title}", 1000), *(f"  {_short(line, 1000)}" for line in lines if line)])


def _about_picture(record: Provenance) -> tuple[str, list[str]]:
    own, images = record.single(), record.program.images
    request = to_json(replace(own, prompt=None, sampling=replace(own.sampling, seed=0)))
    said = record.resolved | {"switches": None} | request.get("sampling", {}) | request.get("method", {})
    lines = [
        f"seed {record.seed}" + (f", place {record.place}" if record.place else ""),
        _listed(said),
        f"sampled with others, {images} in all" if images > 1 else "",
    ]
    return f"{own.verb}, {own.prompt}" if own.prompt else own.verb, lines


def _about_mask(record: MaskProvenance) -> tuple[str, list[str]]:
    said = {key: value for key, value in to_json(record.mask).items() if key != "image"}
    return "mask", [_listed(said), _listed(record.found)]


def _listed(said: dict[str, Any]) -> str:
    words = {key: value if isinstance(value, str) else json.dumps(value) for key, value in said.items() if value}
    return ", ".join(f"{key} {value}" for key, value in words.items())
