"""Who writes a journal: a lock of the file system, or an object at a URL that its owner renews.

Object stores know no locks. The object says whose it is (machine, process), and is written anew every `BEAT` seconds.
Who finds one waits until it has not changed for `SILENCE` seconds by his own clock, and then takes it over: its owner
was killed. On the owner's machine a process that is gone is known at once.
"""

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout

from jaxpa.checkpoint.remote import open_url
from jaxpa.errors import JaxpaError

LOG = logging.getLogger(__name__)
NAME = "lock"
BEAT, SILENCE = 10.0, 60.0
"""Seconds."""


@contextmanager
def locked_file(place: str) -> Iterator[None]:
    """While this process writes a file. Raises JaxpaError if another one does."""
    folder = Path(place).absolute().parent
    if not folder.is_dir():  # the lock's library would create it
        raise JaxpaError(f"{place}: there is no folder {folder} for the journal: name another with --journal")
    lock = FileLock(f"{place}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise JaxpaError(
            f"another process works on this file and writes {place}: wait for it, or share with --share I/N"
        ) from None
    except OSError as error:
        raise JaxpaError(
            f"{lock.lock_file} cannot be written ({error.strerror}): name a journal elsewhere with --journal"
        ) from None
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)  # while it is held
        lock.release()


@dataclass(frozen=True)
class Owner:
    """A process that holds a lock; id: of this time that it does; at: seconds since 1970, for who reads it."""

    machine: str
    pid: int
    id: str
    at: float

    @classmethod
    def here(cls) -> "Owner":
        # Names of machines may be alike, as `localhost`; addresses of networks are not.
        machine = f"{socket.gethostname()}-{uuid.getnode():012x}"
        return cls(machine, os.getpid(), uuid.uuid4().hex, time.time())

    @classmethod
    def read(cls, text: bytes) -> "Owner | None":
        try:
            found = json.loads(text)
            return cls(str(found["machine"]), int(found["pid"]), str(found["id"]), float(found["at"]))
        except (ValueError, TypeError, KeyError, RecursionError):
            return None

    @property
    def text(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @property
    def gone(self) -> bool:
        """Whether this was a process of this machine that has ended."""
        if self.machine != Owner.here().machine or self.id in _held:
            return False
        if self.pid == os.getpid():
            return True
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            return False
        return False


_held: set[str] = set()  # by this process


@dataclass
class RemoteLock:
    """The object `lock` in a folder at a URL, while its owner lives."""

    url: str

    def __post_init__(self) -> None:
        self.system, path = open_url(self.url)
        self.path, self.owner, self.end = f"{path.rstrip('/')}/{NAME}", Owner.here(), threading.Event()

    def read(self) -> bytes | None:
        """What stands in it; None: there is none."""
        try:
            return self.system.cat_file(self.path)
        except FileNotFoundError:
            return None

    def create(self) -> bool:
        """Write it where there is none: at once, where the file system can do that (S3, GCS)."""
        if self.read() is not None:
            return False
        try:
            self.system.pipe_file(self.path, self.owner.text, mode="create")
        except Exception:  # each file system has errors of its own
            if self.read() is None:
                raise
        return self.kept()

    def kept(self) -> bool:
        """Whether what was just written stays: where nothing is written at once, another one may have, too."""
        time.sleep(BEAT / 10)
        return self.read() == self.owner.text

    def acquire(self) -> None:
        """Raises JaxpaError if another process has it."""
        _held.add(self.owner.id)  # before anyone reads it, who would take an owner of this process for gone
        try:
            while not self.create() and not self.take_over():
                pass
        except BaseException:
            _held.discard(self.owner.id)
            raise

    def take_over(self) -> bool:
        """Write it in place of one whose owner has ended; whether that was done. Raises JaxpaError if it lives."""
        if (found := self.read()) is None:
            return False
        self.outlive(found)
        if self.read() != found:
            return False
        self.system.pipe_file(self.path, self.owner.text)
        if kept := self.kept():
            LOG.warning("%s was left by a process that has ended, and is taken over", f"{self.url}/{NAME}")
        return kept

    def outlive(self, found: bytes) -> None:
        """Wait until its owner is known to have ended. Raises JaxpaError if it lives."""
        owner = Owner.read(found)
        if owner is not None and owner.gone:
            return
        who = "another process" if owner is None else f"process {owner.pid} on {owner.machine}"
        said = f"{who} works on this file, and writes {self.url}"
        LOG.info("%s; unless it is heard of within %.0f s, it is taken for dead", said, SILENCE)
        since = time.monotonic()
        while time.monotonic() - since < SILENCE:
            time.sleep(BEAT / 10)
            if (now := self.read()) is None:
                return
            if now != found:
                raise JaxpaError(f"{said}: wait for it, or share with --share I/N and a --journal of your own")

    def beat(self) -> None:
        """Show that its owner lives, until the end."""
        while not self.end.wait(BEAT):
            try:
                if not self.owned(self.read()):
                    LOG.warning("%s was taken over by another process, which does the same work", self.url)
                    return
                self.system.pipe_file(self.path, replace(self.owner, at=time.time()).text)
            except Exception as error:  # the next time, perhaps
                LOG.warning("%s/%s cannot be renewed: %s", self.url, NAME, error)

    def owned(self, found: bytes | None) -> bool:
        """Whether what stands in it is of this owner, of whatever time; nothing is nobody else's."""
        if found is None:
            return True
        owner = Owner.read(found)
        return owner is not None and owner.id == self.owner.id

    def release(self) -> None:
        _held.discard(self.owner.id)
        if (found := self.read()) is not None and self.owned(found):
            self.system.rm_file(self.path)


@contextmanager
def locked_url(url: str) -> Iterator[None]:
    """While this process writes objects below a URL. Raises JaxpaError if another one does."""
    try:
        lock = RemoteLock(url)
        lock.acquire()
    except JaxpaError:
        raise
    except Exception as error:  # each file system has errors of its own
        raise JaxpaError(f"the journal {url} cannot be written: {error}") from error
    beating = threading.Thread(target=lock.beat, daemon=True)
    beating.start()
    try:
        yield
    finally:
        lock.end.set()
        beating.join()
        with suppress(Exception):  # whoever comes next finds that this process has ended
            lock.release()
