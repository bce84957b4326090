"""Files that appear whole: written beside their place, synced, and renamed."""

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # not on Windows, where the rename fails while somebody else writes
    fcntl = None


def _part_of(path: Path) -> Path:
    """The name under which a file is written: always the same one, so that whoever makes the file again after a crash
    also takes away what the crash left."""
    return path.with_name(f".jaxpa-{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}.tmp")


@contextmanager
def replacing(path: Path, fresh: bool = False) -> Iterator[IO[bytes]]:
    """A file to write into, which takes its place at the end of the block; where that fails, nothing is left.

    A reader sees the old file or the whole new one, after a crash of the machine too. Raises OSError. fresh: where
    there is a file of this name by then, that is a FileExistsError: of several processes one is the first.
    """
    part = _part_of(path)
    file = _claimed(part)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if fcntl is None:
                file.close()
            if fresh and os.path.lexists(path):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
            os.replace(part, path)  # while the lock is held: nobody else is writing into it
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _claimed(part: Path) -> IO[bytes]:
    """The temporary file, empty; waits for another process that writes under the same name."""
    while True:
        # Not a private file: the umask alone decides who may read it.
        file = os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666), "wb")
        if fcntl is None:
            file.truncate(0)
            return file
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(file.fileno()), os.stat(part)):
                file.truncate(0)
                return file
        except FileNotFoundError:  # renamed by the process that was waited for
            pass
        except OSError:  # a file system without locks
            file.truncate(0)
            return file
        file.close()


def _sync_folder(folder: Path) -> None:
    """Make a new name in a folder survive a crash of the machine, where the system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
