"""How a picture was made, as it stands in the picture: enough to make it again, and nothing about the user's folders.

A record is JSON with a version (`format`). It names the files that were read by their base names and hashes, so that
`origin` recognises them wherever they lie.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache, lru_cache
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeVar

from jaxpa.checkpoint.documents import check_regular
from jaxpa.checkpoint.hub import hub_id
from jaxpa.checkpoint.remote import is_url
from jaxpa.checkpoint.source import Source
from jaxpa.errors import JaxpaError, whole
from jaxpa.media.images import name_of
from jaxpa.request.groups import MAX_SEED, Checkpoint
from jaxpa.request.record import CONFIG, from_json, to_json
from jaxpa.request.request import FILES, Request
from jaxpa.request.taus import Tau

FORMAT = 1
ROOM = 1_000_000  # characters of a request that a picture may hold
ROOM_IN_JPEG = 48_000  # there, EXIF takes 64 KB in all
MAX_ROWS = 4096  # images or references of a program
KEYS = {"file", *(name for names in FILES.values() for name in names)}  # whose values are files; file: a LoRA's


@dataclass(frozen=True, kw_only=True)
class Input:
    """A file that was read: its base name (or path, if the user asked for it), SHA-256 and size."""

    name: str
    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Networks(Checkpoint):
    """The checkpoint as it was loaded, its folders and files by their base names; sha256: that of its `Source`."""

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
class Origin:
    """What made a file, and out of what.

    inputs: the files by their places in the record, such as request.subjects.0.image.
    """

    format: Literal[1] = FORMAT
    jaxpa: str
    jax: str
    device: str
    checkpoint: Networks
    inputs: dict[str, Input] = field(default_factory=dict)

    def as_record(self) -> dict[str, Any]:
        """As JSON takes it, for a picture's metadata."""
        return {"format": FORMAT, **to_json(self)}


@dataclass(kw_only=True)
class Masking:
    """What `jaxpa mask` is asked for. Field names are its flags; the texts below them are their help."""

    image: Path
    """The picture."""
    word: str | None = None
    """What the subject is; attention finds it."""
    caption: str | None = None
    """What the picture shows; the word must stand in it. By default "a picture of a WORD"."""
    box: str | None = None
    """LEFT,TOP,RIGHT,BOTTOM, fractions of the picture."""
    polygon: str | None = None
    """X,Y,X,Y,..., fractions of the picture; three points or more."""
    threshold: float | None = None
    """With --word: where the map is cut, as a share of its range; a lower one finds more. Usual: 0.5."""
    grow: float = 0.0
    """Pixels of the picture by which the mask is grown ..."""
    shrink: float = 0.0
    """... or shrunk (after growing: closes holes), in pixels of the picture ..."""
    feather: float = 0.0
    """... and over which its outline is blurred, in pixels of the picture, in this order."""
    coverage: float | None = None
    """For the sheet: the share of a token that the mask must cover for the token to belong to it; by default what
    personalisation takes on this checkpoint."""
    steps: int | None = None
    """With --word: steps of the inversion that is looked at."""


@dataclass(frozen=True, kw_only=True)
class MaskProvenance(Origin):
    """How a mask was made. found: what it covers, for whoever reads it."""

    mask: Masking
    found: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Provenance(Origin):
    """How a picture was made, and which one of a request's pictures it is.

    resolved: what the request left to the checkpoint, for whoever reads it.
    """

    request: Request
    seed: int
    tau: Tau | None = None
    place: int | None = None
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


Record = TypeVar("Record", bound=Origin)

for kind in (Networks, Provenance, MaskProvenance):  # inherited by what they consist of
    kind.__pydantic_config__ = CONFIG  # type: ignore[attr-defined]


# Writing --------------------------------------------------------------------------------------------------------


def versions() -> dict[str, Any]:
    """Of this package, of JAX, and the kind of device that it runs on."""
    import jax

    return {"jaxpa": _version(), "jax": jax.__version__, "device": jax.devices()[0].device_kind}


@cache
def _version() -> str:
    return metadata.version("jaxpa")


def networks_of(said: Checkpoint, source: Source, dtype: str, keep_paths: bool) -> Networks:
    """The checkpoint as a picture names it."""
    shown = (lambda text: text) if keep_paths else model_name
    words = {name: shown(text) for name in ("model", "components", "redux") if (text := getattr(said, name))}
    own = {name: getattr(said, name) for name in ("variant", "weights", "keep_lora", "lora")}
    return Networks(**own | words, dtype=dtype, sha256=source.sha256)  # type: ignore[arg-type]


def model_name(text: str) -> str:
    """A model without the folder that it lies in; a hub id is a name already."""
    if text == "mini" or hub_id(text):
        return text
    if is_url(text):
        return PurePosixPath(text.partition("://")[2].partition("?")[0]).name or "model"
    return Path(text).expanduser().absolute().name


def with_inputs(record: Record, keep_paths: bool) -> Record:
    """The record of what names files by their paths: with their hashes, and by their base names unless asked for."""
    inputs: dict[str, Input] = {}

    def name(place: str, path: str) -> str:
        inputs[place] = input_of(path, keep_paths)
        return inputs[place].name

    return replace(with_files(record, name), inputs=inputs)


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


def with_files(record: Record, name: Callable[[str, str], str]) -> Record:
    """The record with another name for every file: name(its place in the record, file)."""
    groups = {group: getattr(record, group, None) for group in ("request", "mask", "checkpoint")}
    data = {group: to_json(value) for group, value in groups.items() if value is not None}
    changed = set[str]()

    def hear(place: str, file: str) -> str:
        changed.add(place.partition(".")[0])
        return name(place, file)

    named = _renamed(data, "", hear)
    return replace(record, **{group: from_json(named[group], type(groups[group])) for group in changed})


def _renamed(value: Any, place: str, name: Callable[[str, str], str]) -> Any:
    if isinstance(value, dict):
        inside = {key: f"{place}.{key}".lstrip(".") for key in value}
        return {
            key: name(inside[key], each) if key in KEYS and isinstance(each, str) else _renamed(each, inside[key], name)
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
