"""How a picture was made, as it stands in the picture: enough to make it again, and nothing about the user's folders.

A record is JSON with a version (`format`). It names the files that were read by their base names and hashes, so that
`found` recognises them wherever they lie. What it says is checked by its types: a picture may come from anybody.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from jaxpa.checkpoint.documents import check_regular
from jaxpa.checkpoint.fingerprint import fingerprint
from jaxpa.checkpoint.hub import hub_id
from jaxpa.checkpoint.remote import is_url
from jaxpa.checkpoint.source import Source
from jaxpa.errors import JaxpaError, printable, whole
from jaxpa.media.images import name_of, read_metadata
from jaxpa.request.groups import MAX_SEED, Checkpoint, Tau
from jaxpa.request.record import CONFIG, from_json, to_json
from jaxpa.request.request import Request

FORMAT = 1
ROOM = 1_000_000  # characters of a request that a picture may hold
ROOM_IN_JPEG = 48_000  # there, EXIF takes 64 KB in all
MAX_ROWS = 4096  # images or references of a program
FILES = {"image", "mask", "picture", "control", "embedding", "image_prompt", "file"}  # keys whose values are files


@dataclass(frozen=True, kw_only=True)
class Input:
    """A file that was read: its base name (or path, if the user asked for it), SHA-256 and size."""

    name: str
    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Networks(Checkpoint):
    """The checkpoint as it was loaded, its folders and files by their base names; sha256: its `fingerprint`."""

    model: str = field()  # always said
    sha256: str

    def as_checkpoint(self, usual: str) -> Checkpoint:
        """What a command calls it; usual: the type of weights on this device, which need not be said."""
        said: dict[str, Any] = {each.name: getattr(self, each.name) for each in fields(Checkpoint)}
        said["dtype"] = "auto" if self.dtype == usual else self.dtype
        return Checkpoint(**said)


@dataclass(frozen=True, kw_only=True)
class Program:
    """The compiled program that a picture came from: pictures of equal ones have equal bytes.

    images, references: rows that were sampled together; merged: lines of a batch shared them; mesh: the devices.
    """

    images: int = 1
    references: int = 0
    merged: bool = False
    mesh: str | None = None

    def __post_init__(self) -> None:
        whole("images", self.images, 1, MAX_ROWS)
        whole("references", self.references, 0, MAX_ROWS)


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """How a picture was made: by what, out of what, and which one of a request's pictures it is.

    inputs: the files by their places in the record, such as request.subjects.0.image. resolved: what the request left
    to the checkpoint, for whoever reads it.
    """

    format: Literal[1] = FORMAT
    jaxpa: str
    jax: str
    device: str
    checkpoint: Networks
    request: Request
    seed: int
    tau: Tau | None = None
    place: int | None = None
    inputs: dict[str, Input] = field(default_factory=dict)
    program: Program = field(default_factory=Program)
    resolved: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        whole("seed", self.seed, 0, MAX_SEED)
        if self.place is not None:
            whole("place", self.place, 1, max(1, len(self.request.places)))

    def single(self, seeds: Sequence[int] | None = None) -> Request:
        """The request for this picture alone; seeds: for pictures that differ from it in their seeds."""
        request, own = self.request, (self.seed,) if seeds is None else tuple(seeds)
        seed = own[0] if len(own) == 1 else own
        sampling = replace(request.sampling, seed=seed, num_images=1, batch_size=None)
        method = request.method if self.tau is None else replace(request.method, tau=(self.tau,))
        places = request.places if self.place is None else request.places[self.place - 1 : self.place]
        return replace(request, sampling=sampling, method=method, places=places)

    def as_record(self) -> dict[str, Any]:
        """As JSON takes it, for a picture's metadata."""
        return {"format": FORMAT, **to_json(self)}


for kind in (Networks, Provenance):  # inherited by what they consist of
    kind.__pydantic_config__ = CONFIG  # type: ignore[attr-defined]


# Writing --------------------------------------------------------------------------------------------------------


def versions() -> dict[str, str]:
    """Of this package, of JAX, and the kind of device that it runs on."""
    import jax

    return {"jaxpa": metadata.version("jaxpa"), "jax": jax.__version__, "device": jax.devices()[0].device_kind}


def networks_of(said: Checkpoint, source: Source, dtype: str, keep_paths: bool) -> Networks:
    """The checkpoint as a picture names it."""
    shown = (lambda text: text) if keep_paths else _model_name
    words = {name: shown(text) for name in ("model", "components", "redux") if (text := getattr(said, name))}
    own = {name: getattr(said, name) for name in ("variant", "weights", "keep_lora", "lora")}
    return Networks(**own | words, dtype=dtype, sha256=fingerprint(source))  # type: ignore[arg-type]


def _model_name(text: str) -> str:
    """A model without the folder that it lies in; a hub id is a name already."""
    if text == "mini" or hub_id(text):
        return text
    if is_url(text):
        return PurePosixPath(text.partition("://")[2].partition("?")[0]).name or "model"
    return Path(text).expanduser().absolute().name


def with_inputs(provenance: Provenance, keep_paths: bool) -> Provenance:
    """The record of what names files by their paths: with their hashes, and by their base names unless asked for."""
    inputs: dict[str, Input] = {}

    def name(place: str, path: str) -> str:
        inputs[place] = input_of(path, keep_paths)
        return inputs[place].name

    return replace(_with_files(provenance, name), inputs=inputs)


def input_of(path: str | os.PathLike[str], keep_path: bool = False) -> Input:
    """A file as a record names it. Raises JaxpaError if it cannot be read."""
    try:
        check_regular(Path(path))
        state = os.stat(path)
        digest = _sha256(os.path.abspath(path), state.st_size, state.st_mtime_ns)
    except (OSError, ValueError) as error:
        raise JaxpaError(f"{name_of(path)}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    name = os.path.abspath(path) if keep_path else os.path.basename(path)
    return Input(name=os.fsencode(name).decode(errors="replace"), sha256=digest, bytes=state.st_size)


@lru_cache(maxsize=1024)
def _sha256(path: str, *_: int) -> str:
    """Of a file; size and time of change tell whether it is still the one that was hashed before."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _with_files(provenance: Provenance, name: Callable[[str, str], str]) -> Provenance:
    """The record with another name for every file: name(place, file)."""
    data = {"request": to_json(provenance.request), "checkpoint": to_json(provenance.checkpoint)}
    named = _renamed(data, "", name)
    request = from_json(named["request"])
    return replace(provenance, request=request, checkpoint=from_json(named["checkpoint"], Networks))


def _renamed(value: Any, place: str, name: Callable[[str, str], str]) -> Any:
    if isinstance(value, Mapping):
        inside = {key: f"{place}.{key}".lstrip(".") for key in value}
        return {
            key: name(inside[key], each)
            if key in FILES and isinstance(each, str)
            else _renamed(each, inside[key], name)
            for key, each in value.items()
        }
    if isinstance(value, list):
        return [_renamed(each, f"{place}.{k}", name) for k, each in enumerate(value)]
    return value


def check_room(request: Request, files: Iterable[Path]) -> None:
    """Raise JaxpaError for a request that pictures of these names could not hold, before they are made."""
    size = len(json.dumps(to_json(request)))
    for file in files:
        jpeg = file.suffix.lower() in (".jpg", ".jpeg")
        if size > (room := ROOM_IN_JPEG if jpeg else ROOM):
            instead = ": write .png or .webp" if jpeg and size <= ROOM else ""
            raise JaxpaError(f"{file}: its request has {size:,} characters, and there is room for {room:,}{instead}")


# Reading --------------------------------------------------------------------------------------------------------


def read_provenance(picture: str | os.PathLike[str]) -> tuple[Provenance, dict[str, Any]]:
    """How a picture was made, checked and as it stands there. Raises JaxpaError for one that does not say it."""
    found, name = read_metadata(picture), name_of(picture)
    if found is None:
        raise JaxpaError(f"{name} does not say how it was made: jaxpa did not write it, or it was saved again since")
    version = found.get("format")
    if version is None:
        raise JaxpaError(f"{name} does not say how to make it again: it is a sheet, or of an older jaxpa")
    if type(version) is int and version > FORMAT:
        raise JaxpaError(f"{name} was made by a newer jaxpa (record {version}, here {FORMAT}): update this one")
    try:
        return from_json(found, Provenance), found
    except JaxpaError as error:
        raise JaxpaError(f"{name}: its metadata is not what jaxpa writes: {_short(str(error))}") from None


def _short(text: str, most: int = 300) -> str:
    line = printable(" ".join(text.split()))
    return line if len(line) <= most else f"{line[:most]} ..."


def found(provenance: Provenance, folders: Sequence[Path], model: str | None = None) -> Provenance:
    """The record with the files where they are: in one of the folders, under their names or another one.

    model: in place of the one that it was made with. Raises JaxpaError that names a file or a model that is missing,
    or a file that has changed.
    """
    said = provenance.checkpoint
    places = {"model": said.model if model is None else model, "components": said.components, "redux": said.redux}
    here = {name: _model_here(text, folders) for name, text in places.items() if text and text != model}
    provenance = replace(provenance, checkpoint=replace(said, **{"model": model or said.model} | here))

    def path(place: str, name: str) -> str:
        wanted = provenance.inputs.get(place)
        if wanted is None:
            raise JaxpaError(f"the record has no hash of {place} ({_short(name, 100)})")
        return str(find(wanted, folders))

    return _with_files(provenance, path)


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


def differences(provenance: Provenance, source: Source, model: str) -> list[str]:
    """What is not as it was when the picture was made, in a line each; source: of the model that is used now."""
    here = versions()
    lines = [
        f"it was made {how} {was}, and this is {here[key]}"
        for key, how in (("jaxpa", "by jaxpa"), ("jax", "with jax"), ("device", "on"))
        if (was := _short(getattr(provenance, key), 60)) != here[key]
    ]
    was, now = provenance.checkpoint, fingerprint(source)
    if was.sha256 != now:
        name, number = _short(was.model, 60), printable(was.sha256[:12])
        lines.append(f"it was made by another model: {name} {number}, and this is {model} {now[:12]}")
    return lines


def format_provenance(picture: str, provenance: Provenance) -> str:
    """How a picture was made, in lines for a terminal."""
    own, networks, resolved = provenance.single(), provenance.checkpoint, provenance.resolved
    inputs = provenance.inputs
    request = to_json(replace(own, prompt="", sampling=replace(own.sampling, seed=0)))
    settings = {**request.pop("sampling", {}), **request.pop("method", {})}
    shown = [f"{key} {_words(value)}" for key, value in ({**resolved, "switches": None} | settings).items() if value]
    program = provenance.program
    lines = [
        f"by jaxpa {provenance.jaxpa}, jax {provenance.jax}, on {provenance.device}",
        f"with {networks.model} (sha256 {networks.sha256[:12]}), in {networks.dtype}",
        *(f"LoRA {lora}" for lora in networks.lora),
        f"seed {provenance.seed}" + (f", place {provenance.place}" if provenance.place else ""),
        ", ".join(shown),
        *(f"{place.partition('.')[2]}: {each.name} (sha256 {each.sha256[:12]})" for place, each in inputs.items()),
        f"sampled with others, {program.images} in all" if program.images > 1 else "",
    ]
    title = f"{picture}: {own.verb}" + (f", {_words(own.prompt)}" if any(own.prompts) else "")
    return "\n".join([_short(title, 1000), *(f"  {_short(line, 1000)}" for line in lines if line)])


def _words(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
