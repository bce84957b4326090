"""How long things take: compiling apart from running, stage by stage."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import jax

BACKEND_COMPILE = "/jax/core/compile/backend_compile_duration"
CACHE_HIT = "/jax/compilation_cache/cache_hits"
Item = TypeVar("Item")
_END = object()


class Clock:
    """Seconds of every stage, and how many of them were compiling, while the clock's `with` block lasts.

    seconds: by stage, compiling included; compile_seconds, programs: time and number of XLA's compilations; cached:
    programs that came from the persistent cache.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.compile_seconds, self.programs, self.cached = 0.0, 0, 0

    def __enter__(self) -> "Clock":
        _listen()
        _clocks.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _clocks.remove(self)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of a block to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def coming(self, items: Iterator[Item], name: str) -> Iterator[Item]:
        """The items, with the time that each takes to come added to a stage; what is done with it is not."""
        while True:
            with self.stage(name):
                item = next(items, _END)
            if item is _END:
                return
            yield item  # type: ignore[misc]


_clocks: list[Clock] = []
_listening = False


def _listen() -> None:
    """Register with JAX, once: JAX cannot unregister a listener."""
    global _listening
    if _listening:
        return
    _listening = True

    def duration(event: str, seconds: float, **_: Any) -> None:
        if event == BACKEND_COMPILE:
            for clock in _clocks:
                clock.compile_seconds += seconds
                clock.programs += 1

    def counted(event: str, **_: Any) -> None:
        if event == CACHE_HIT:
            for clock in _clocks:
                clock.cached += 1

    jax.monitoring.register_event_duration_secs_listener(duration)  # type: ignore[arg-type]
    jax.monitoring.register_event_listener(counted)
