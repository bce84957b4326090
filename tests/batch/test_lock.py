"""One process writes a journal at a URL: the others are refused while it lives, and take over once it is dead."""

import json
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace

import fsspec
import pytest

from jaxpa.batch import lock
from jaxpa.batch.journal import Journal
from jaxpa.batch.lock import Owner
from jaxpa.errors import JaxpaError

URL = "memory://locked/journal"
PATH = "/locked/journal/lock"


@pytest.fixture(autouse=True)
def store(monkeypatch):
    """A file system without anything in it, and a time that tests can wait for."""
    monkeypatch.setattr(lock, "BEAT", 0.1)
    monkeypatch.setattr(lock, "SILENCE", 3.0)
    system = fsspec.filesystem("memory")
    yield system
    if system.exists("/locked"):
        system.rm("/locked", recursive=True)


def left(store, **changed):
    """A lock that nobody renews."""
    store.pipe_file(PATH, json.dumps(asdict(replace(Owner.here(), **changed))).encode())


def test_a_living_owner_is_left_alone(store):
    journal = Journal(URL)
    with journal.locked():
        first = store.cat_file(PATH)
        with pytest.raises(JaxpaError, match=r"process \d+ on .* works on this file, and writes memory://locked"):
            journal.locked().__enter__()
        assert Owner.read(store.cat_file(PATH)).id == Owner.read(first).id
        journal.append({"job": ["a"]})
    assert not store.exists(PATH)
    assert list(journal.entries()) == [{"job": ["a"]}]
    with journal.locked():
        pass


def test_a_process_of_this_machine_that_has_ended(store, caplog):
    """It is not waited for."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left(store, pid=ended.pid, id="0")
    start = time.monotonic()
    with Journal(URL).locked():
        assert time.monotonic() - start < lock.SILENCE / 2
    assert "is taken over" in caplog.text
    assert not store.exists(PATH)


@pytest.mark.parametrize("text", [None, b"", b"5", b"\xff{"], ids=["another machine's", "empty", "no object", "junk"])
def test_silence(store, monkeypatch, text):
    """Whoever cannot be asked is taken for dead after a while, by the clock of who waits."""
    monkeypatch.setattr(lock, "SILENCE", 0.5)
    left(store, machine="elsewhere", id="0", at=time.time() + 1e6)
    if text is not None:
        store.pipe_file(PATH, text)
    start = time.monotonic()
    with Journal(URL).locked():
        assert time.monotonic() - start >= 0.5
        assert Owner.read(store.cat_file(PATH)).machine == Owner.here().machine


def test_a_renewal_that_fails(store, monkeypatch, caplog):
    """The next one succeeds; the lock goes on, and is gone at the end."""
    monkeypatch.setattr(lock, "BEAT", 0.05)
    with Journal(URL).locked():
        own = Owner.read(store.cat_file(PATH))
        with monkeypatch.context() as patched:
            patched.setattr(type(store), "pipe_file", lambda *_, **__: 1 / 0)
            wait_for(lambda: "cannot be renewed" in caplog.text)
        wait_for(lambda: Owner.read(store.cat_file(PATH)).at > own.at)
        assert Owner.read(store.cat_file(PATH)).id == own.id
    assert "taken over" not in caplog.text
    assert not store.exists(PATH)


def wait_for(what):
    for _ in range(200):
        if what():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come about in ten seconds")


def test_many_at_once(store):
    """One of eight gets it, whether it is free or was left."""
    for before in (False, True):
        if before:
            left(store, pid=2**22 + 1, id="0")  # no process has such a number
        held, refused, over = [], [], threading.Event()

        def one(held=held, refused=refused, over=over):
            try:
                with Journal(URL).locked():
                    held.append(1)
                    over.wait(20)
            except JaxpaError as error:
                refused.append(error)

        threads = [threading.Thread(target=one) for _ in range(8)]
        for each in threads:
            each.start()
        for _ in range(200):
            if len(refused) == 7:
                break
            time.sleep(0.1)
        over.set()
        for each in threads:
            each.join()
        assert (len(held), len(refused)) == (1, 7)


def test_a_store_that_does_not_answer(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no credentials")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "cat_file", broken)
    with pytest.raises(JaxpaError, match=r"memory://locked/journal cannot be written: no credentials"):
        Journal(URL).locked().__enter__()
