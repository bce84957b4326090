"""SIGTERM: what has been begun is cleared away, or finished where that is soon done."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from jaxpa.cli import console

TERMINATED, INTERRUPTED, BROKEN_PIPE = 143, 130, 141  # as a shell counts signals: 128 + SIGTERM, SIGINT, SIGPIPE


class Terminated(BaseException):
    """SIGTERM: what has been begun is cleared away, as after Ctrl-C."""


def _end() -> None:
    raise Terminated


@contextmanager
def at_sigterm(act: Callable[[], None] = _end) -> Iterator[None]:
    """Within this, SIGTERM does that; raises `Terminated`, if nothing is said. Outside of the main thread: nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: act())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def finishing(stop: threading.Event) -> Iterator[None]:
    """Within this, SIGTERM asks for an end after the pictures that are being made."""

    def ask() -> None:
        stop.set()
        console.LOG.info("the pictures in flight are finished, then this ends")

    with at_sigterm(ask):
        yield
