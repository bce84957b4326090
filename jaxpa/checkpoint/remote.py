"""Files at URLs of fsspec (gs://, s3://, memory://): named, opened, and checkpoints fetched from there."""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any

from jaxpa.errors import CheckpointError, JaxpaError

LOCAL = ("file://", "local://")  # URLs of this machine's own files, of which a checkpoint needs no copy


def is_url(place: str) -> bool:
    """Whether a place is named as fsspec does it; `hf://` names a repository of the hub, which has a client of its
    own."""
    return "://" in place and not place.startswith("hf://")


def open_url(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, and the path in it. Raises JaxpaError where its package is not installed."""
    import fsspec

    try:
        return fsspec.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise JaxpaError(f"{url} cannot be used: {error}") from None


STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "oci"}  # of objects: they have no folders


def make_folder(system: Any, path: str) -> None:
    """A folder and its parents, where the file system has folders: a store of objects would make a bucket of a name
    that was mistyped."""
    protocols = {system.protocol} if isinstance(system.protocol, str) else set(system.protocol)
    if not STORES & protocols:
        system.makedirs(path, exist_ok=True)


def _cache_folder() -> Path:
    """Where fetched checkpoints are kept."""
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a user without an entry, as in some containers
        raise CheckpointError("no home folder to keep fetched checkpoints in: set XDG_CACHE_HOME to a folder") from None
    return base.absolute() / "jaxpa" / "models"


# What file systems tell the contents of a file by, the surest first.
MARKS = ("ETag", "etag", "sha", "Last-Modified", "LastModified", "mtime", "modificationTime", "created")


def fetch_url(url: str, download: bool = True) -> Path:
    """The folder or file in the cache with what lies at a URL; fetched if it is not there, or has changed since.

    `download=False` looks into the cache only. Raises CheckpointError.
    """
    name = PurePosixPath(url.partition("://")[2]).name or "model"
    if not download:
        kept = sorted(_cache_folder().glob(f"{_digest(url)}-*/{name}"), key=os.path.getmtime)
        if not kept:
            raise CheckpointError(f"{url} has not been fetched yet: run a command that loads it")
        return kept[-1]
    try:
        system, path = open_url(url)
        files = system.find(path, detail=True)
    except JaxpaError as error:
        raise CheckpointError(str(error)) from None
    except Exception as error:  # each file system has errors of its own
        raise CheckpointError(f"{url} cannot be read: {error}") from error
    if not files:
        raise CheckpointError(f"{url}: no such file or folder")
    state = sorted((file, info.get("size"), _mark(info)) for file, info in files.items())
    home = _cache_folder() / f"{_digest(url)}-{_digest(repr(state))}"
    if not (home / name).exists():
        _fetch(system, path, list(files), (home, name), url)
    return home / name


def _mark(info: dict[str, Any]) -> str:
    """What changes with a file's contents, as far as its file system says."""
    return str(next((info[name] for name in MARKS if info.get(name)), None))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _fetch(system: Any, path: str, files: list[str], place: tuple[Path, str], url: str) -> None:
    """Into a folder beside, which is renamed once all of it is there."""
    home, name = place
    home.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=".fetch-", dir=home.parent))
    try:
        for file in files:
            inside = PurePosixPath(file.removeprefix(path.rstrip("/"))).parts
            target = (part / name).joinpath(*(each for each in inside if each != "/"))
            if ".." in inside:
                raise CheckpointError(f"{url} has a file whose name leaves its folder: {file}")
            target.parent.mkdir(parents=True, exist_ok=True)
            system.get_file(file, str(target))
        try:
            os.rename(part, home)
        except OSError:  # another process was faster
            if not (home / name).exists():
                raise
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{url} cannot be fetched: {error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
