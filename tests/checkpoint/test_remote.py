"""A checkpoint at a URL: fetched once, again after it has changed, and never outside of its folder."""

from pathlib import Path
from unittest.mock import Mock

import fsspec
import pytest
from small_checkpoint import make

from jaxpa.checkpoint.remote import fetch_url
from jaxpa.checkpoint.source import find_mini, resolve
from jaxpa.errors import CheckpointError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "jaxpa" / "models"


def test_a_model_at_a_url(tmp_path, cache):
    system, local = fsspec.filesystem("memory"), make(tmp_path / "small")
    system.put(str(local), "/models/small", recursive=True)
    with pytest.raises(CheckpointError, match="has not been fetched yet"):
        resolve("memory://models/small", download=False)
    found = resolve("memory://models/small")
    assert found.config == resolve(local).config
    assert found.faults() == []
    (kept,) = cache.iterdir()
    first = fetch_url("memory://models/small")
    assert first.parent == kept
    assert fetch_url("memory://models/small", download=False) == first
    for file in local.rglob("*.*"):
        assert (first / file.relative_to(local)).read_bytes() == file.read_bytes()
    system.pipe_file("/models/small/note.json", b"{}")
    assert (fetch_url("memory://models/small") / "note.json").exists()
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("name", ["ETag", "etag", "sha", "LastModified", "mtime", "modificationTime"])
def test_a_changed_file_of_the_same_size(cache, monkeypatch, name):
    """By whatever its file system tells it."""
    system = fsspec.filesystem("memory")
    system.pipe_file("/changed/note.json", b"{}")
    said = {"name": "/changed/note.json", "size": 2, "type": "file"}
    for mark, content in ((1, b"{}"), (2, b"[]")):
        system.pipe_file("/changed/note.json", content)
        listed = {said["name"]: said | {name: mark}}
        monkeypatch.setattr(type(system), "find", lambda self, path, detail, listed=listed: listed)
        assert (fetch_url("memory://changed") / "note.json").read_bytes() == content
    assert len(list(cache.iterdir())) == 2


def test_nowhere_to_keep_it(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", Mock(side_effect=RuntimeError("Could not determine home directory.")))
    for download in (True, False):
        with pytest.raises(CheckpointError, match="set XDG_CACHE_HOME"):
            fetch_url("memory://models/small", download=download)


def test_what_cannot_be_fetched(cache):
    for url, said in (("memory://models/none", "no such"), ("nothing://a", "cannot be")):
        with pytest.raises(CheckpointError, match=said):
            fetch_url(url)
    assert not cache.exists() or not list(cache.iterdir())


def test_files_of_this_machine_need_no_copy(tmp_path, monkeypatch):
    """A URL of them is the path in it; nothing below a folder is walked through."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    mini = find_mini()
    assert resolve(f"file://{mini}").path == mini
    with pytest.raises(CheckpointError, match="no checkpoint"):
        resolve("file:///")
    assert not (tmp_path / "cache").exists()
