"""Works through lines whose pictures are sampled together: batch after batch, while the last one is being written.

The calling thread samples. A second one decodes, writes and reports, so that the device need not wait for files; at
most one batch waits for it. Lines fail one by one, and a batch that does not fit the memory is halved.
"""

import logging
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from threading import Event
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from PIL import Image

from jaxpa.batch.groups import cast_of
from jaxpa.batching import Part, Size, gate_of_part, likeness, merge
from jaxpa.checkpoint.load import Parts
from jaxpa.encoders.text import TextEmbedding
from jaxpa.errors import JaxpaError, memory_is_full
from jaxpa.media.edits import MaskedPicture, StartPicture
from jaxpa.media.subjects import References
from jaxpa.pipeline import Pipeline
from jaxpa.request.request import Request
from jaxpa.runs import OnStep, personalized, sampled
from jaxpa.sampling import bound
from jaxpa.tokens import Placement

LOG = logging.getLogger(__name__)
TEXT_BYTES, RECENT = 2**30, 16  # of texts, in the host's memory, and of what pictures gave, that lines to come may need


class Work(Protocol):
    """A line, as its command knows it."""

    def prepare(self) -> Any:
        """What is read before the networks are asked: it has `request` and `pictures` (None: they are still to be)."""

    def finish(self, prepared: Any, pictures: Any, drawn: "Drawn", pipe: Pipeline) -> Any:
        """Write the pictures; what the journal is told."""


class Drawn(NamedTuple):
    """The pictures of a line, the size of the batch that each was sampled in, and the seconds that all took."""

    images: list[Image.Image]
    sizes: list[Size]
    seconds: float


class Stop(Protocol):
    """Whether an end is asked for: a `threading.Event`, or what asks for it elsewhere."""

    def is_set(self) -> bool: ...


class Outcome(NamedTuple):
    """What became of a line: what was made of it, or the error."""

    line: Any
    made: Any = None
    error: Exception | None = None


@dataclass(frozen=True)
class Remembering(Pipeline):
    """A pipeline that encodes every text once; what is known is kept out of the device's memory."""

    known: OrderedDict[str, TextEmbedding] = field(default_factory=OrderedDict)

    @classmethod
    def of(cls, pipe: Pipeline) -> "Remembering":
        return cls(**{each.name: getattr(pipe, each.name) for each in fields(pipe)})

    def encode_text(self, prompts: str | Sequence[str], on_step: OnStep | None = None) -> TextEmbedding:
        each = [prompts] if isinstance(prompts, str) else list(prompts)
        if new := [text for text in dict.fromkeys(each) if text not in self.known]:
            made = jax.tree.map(np.asarray, super().encode_text(new, on_step))
            self.known.update((text, made[k]) for k, text in enumerate(new))
            if not isinstance(self.parts, Parts):
                self.parts.texts.clear()
        for text in each:
            self.known.move_to_end(text)
        rows = [self.known[text] for text in each]
        while sum(each.txt.nbytes + each.vec.nbytes for each in self.known.values()) > TEXT_BYTES:
            self.known.popitem(last=False)
        return TextEmbedding.concatenate(rows)


class Recent:
    """The last `RECENT` arrays that were made, in the host's memory."""

    def __init__(self) -> None:
        self.known: OrderedDict[Hashable, Any] = OrderedDict()

    def of(self, key: Hashable, make: Callable[[], jax.Array]) -> Any:
        """What is known by this name, or is made."""
        if key not in self.known:
            self.known[key] = np.asarray(make())
        self.known.move_to_end(key)
        while len(self.known) > RECENT:
            self.known.popitem(last=False)
        return self.known[key]


@dataclass
class _Lined:
    """A line in work: what it asks for, the pictures that it has so far, and the seconds that they took."""

    line: Any
    work: Work
    prepared: Any
    request: Request
    pictures: Any
    drawn: list[tuple[Image.Image, Size] | None]
    sampling: float = 0.0  # each is counted by one thread
    writing: float = 0.0
    failed: bool = False


class _Unit(NamedTuple):
    """A picture of a line."""

    of: _Lined
    number: int
    part: Part
    grid: tuple[int, int]


class _Ended(BaseException):
    """`done` could not take an outcome: nothing that follows would be kept."""


class Worker:
    """pipe: the networks; size: of every batch, or of those of each gate; done: is told every line's outcome, by the
    thread that writes; stop: no further batch is begun once it is set."""

    def __init__(
        self,
        pipe: Pipeline,
        size: Size | Mapping[Hashable, Size],
        done: Callable[[Outcome], None],
        stop: Stop | None = None,
    ):
        self.pipe, self.size, self.done = Remembering.of(pipe), size, done
        self.most: int | None = None  # images at once, since the memory was full
        self.stop: Stop = Event() if stop is None else stop
        self.buckets: dict[Hashable, list[_Unit]] = {}
        self.recent = Recent()
        self.writing: Future[None] | None = None

    def run(self, lines: Iterable[tuple[Any, Work]]) -> None:
        """Work through (line, its work) in order. What `done` raises ends it."""
        try:
            with ThreadPoolExecutor(1) as self.writer, self.pipe.on_devices():
                for line, work in lines:
                    if self.stop.is_set():
                        break
                    self._work(line, work)
                for bucket in list(self.buckets.values()):
                    if not self.stop.is_set():
                        self._flush(bucket)
                self._written()
        except _Ended as ended:
            raise ended.args[0] from None

    def _work(self, line: Any, work: Work) -> None:
        begun = line
        try:
            begun = self._begin(line, work)
            for unit in self._units(begun):
                self._add(unit)
                if self.stop.is_set():
                    break
        except Exception as error:  # whatever it is, the lines after it are made
            self._fail(begun, error)

    # Lines and their pictures ----------------------------------------------------------------------------------

    def _begin(self, line: Any, work: Work) -> _Lined:
        prepared = work.prepare()
        request, pictures = prepared.request, prepared.pictures
        request.check(self.pipe.spec)
        pictures = self.pipe.prepare(request) if pictures is None else pictures
        return _Lined(line, work, prepared, request, pictures, [])

    def _units(self, begun: _Lined) -> Iterable[_Unit]:
        """The pictures of a line: every tau (slowest), seed and place, as `Pipeline.make` has them."""
        request, pictures = begun.request, begun.pictures
        if pictures is None or isinstance(pictures, StartPicture):
            yield from self._generated(begun, pictures)
            return
        references = pictures.references(self.pipe.cell) if isinstance(pictures, MaskedPicture) else pictures
        taus, places = request.taus(self.pipe.spec), len(references.where.source)
        seeds = np.asarray(request.sampling.seeds(), np.uint32)
        begun.drawn = [None] * (len(taus) * len(seeds) * places)
        cast = cast_of(request, self.pipe.spec)
        trajectory = self._trajectory(cast, request, references)
        for s in range(len(seeds)):
            for p in range(places):
                where = Placement(*(np.asarray(a)[p : p + 1] for a in references.where))  # type: ignore[arg-type]
                one = replace(references, where=where)
                tasks, x = self.pipe.tasks(request, one, (trajectory, None), seeds[s : s + 1])
                for t, task in enumerate(tasks):
                    number = (t * len(seeds) + s) * places + p
                    yield _Unit(begun, number, Part(task, x, cast), references.grid)

    def _generated(self, begun: _Lined, picture: StartPicture | None) -> Iterable[_Unit]:
        pipe, request, said = self.pipe, begun.request, begun.request.sampling
        grid = pipe.grid(*((said.height, said.width) if picture is None else picture.canvas))
        start, times = pipe.encode_start(picture), request.times(pipe.spec, grid)
        embedded = None if request.embedding is None else pipe.read_embedding(request.embedding)
        request = request if embedded is None else replace(request, embedding=embedded)
        count, guidance = request.prompt_count, request.guidance(pipe.spec)
        image = self._image_prompt(request)
        seeds = said.seeds(count)
        begun.drawn = [None] * len(seeds)
        for k, seed in enumerate(seeds):
            text = pipe.prompt_rows(request, embedded, np.array([k % count]), image)
            conditions = pipe.conditions(text, grid, guidance, pipe.negative(said.negative_prompt, guidance, 1))
            x = pipe.started(start, pipe.noise(np.array([seed], np.uint32), grid), times)
            yield _Unit(begun, k, Part(conditions, x), grid)

    def _trajectory(self, cast: Hashable, request: Request, references: References) -> jax.Array:
        """The references' way to noise, which lines of the same cast share."""
        said = request.sampling
        times = request.times(self.pipe.spec, references.grid)
        key = cast, references.grid, times.tobytes(), said.solver
        preset = request.switches(self.pipe.spec)
        return self.recent.of(key, lambda: self.pipe.trajectory(references, preset, times, None, said.solver))

    def _image_prompt(self, request: Request) -> jax.Array | None:
        """The text tokens of a request's image prompt, which its file's lines share."""
        picture = request.image_prompt
        if picture is None or not isinstance(picture, str | os.PathLike):
            return None if picture is None else self.pipe.encode_image_prompt(picture)
        return self.recent.of(os.fspath(picture), lambda: self.pipe.encode_image_prompt(picture))

    # Batches ---------------------------------------------------------------------------------------------------

    def _add(self, unit: _Unit) -> None:
        """Put a picture into its batch, and sample the batch that it does not fit into any more, or that it fills."""
        said, times = unit.of.request.sampling, unit.of.request.times(self.pipe.spec, unit.grid)
        key = likeness(unit.part), unit.grid, times.tobytes(), said.solver, said.cache
        bucket = self.buckets.setdefault(key, [])
        if not self._fits([*bucket, unit]):
            self._flush(bucket)
        bucket.append(unit)
        if len(bucket) == self._size_of(unit.part).images:
            self._flush(bucket)

    def _size_of(self, part: Part) -> Size:
        """The batch of a picture."""
        size = self.size if isinstance(self.size, Size) else self.size[gate_of_part(part)]
        images = size.images if self.most is None else min(size.images, self.most)
        each = part.references
        references = size.references if images == size.images else min(size.references, images * each)
        return Size(images, max(references, each) if each else 0)

    def _fits(self, units: Sequence[_Unit]) -> bool:
        size = self._size_of(units[0].part)
        casts = len({unit.part.cast for unit in units}) * units[0].part.references
        return len(units) <= size.images and casts <= size.references

    def _flush(self, bucket: list[_Unit]) -> None:
        """Sample a batch, and let the other thread write it."""
        units = [unit for unit in bucket if not unit.of.failed]
        bucket.clear()
        if not units:
            return
        start = time.perf_counter()
        size = self._size_of(units[0].part)
        try:
            tokens = self._sampled(units, size)
        except Exception as error:
            self._again(units, size.images, error)
            return
        for unit in units:
            unit.of.sampling += (time.perf_counter() - start) / len(units)
        self._written()
        self.writing = self.writer.submit(self._write, units, tokens, size)
        if not self.pipe.parts.resident:  # the autoencoder and the transformer take turns
            self._written()

    def _sampled(self, units: Sequence[_Unit], size: Size) -> jax.Array:
        what, x = merge([unit.part for unit in units], size)
        request, pipe = units[0].of.request, self.pipe
        if units[0].part.references:
            return jax.block_until_ready(personalized(pipe.with_network(what), pipe.spread(x), None))
        velocity = bound(what, pipe.parts.transformer)
        said, times = request.sampling, request.times(pipe.spec, units[0].grid)
        return jax.block_until_ready(sampled(velocity, pipe.spread(x), times, None, said.solver, said.cache))

    def _again(self, units: list[_Unit], images: int, error: Exception) -> None:
        """After a batch failed: in halves if the memory was full, else each line's pictures apart."""
        full, lines = memory_is_full(error), list({id(unit.of): unit.of for unit in units}.values())
        if full and images > 1:
            self.most = half = -(-images // 2)
            LOG.warning("the memory is full: %d pictures at a time from here on", half)
            pieces = [units[start : start + half] for start in range(0, len(units), half)]
        elif len(lines) > 1 and not full:
            pieces = [[unit for unit in units if unit.of is line] for line in lines]
        else:
            for line in lines:
                self._fail(line, error)
            return
        for piece in pieces:
            for part in self._fitting(piece):
                self._flush(part)

    def _fitting(self, units: list[_Unit]) -> Iterable[list[_Unit]]:
        """The pictures in batches of the present size."""
        batch: list[_Unit] = []
        for unit in units:
            if batch and not self._fits([*batch, unit]):
                yield batch
                batch = []
            batch.append(unit)
        yield batch

    # Writing ---------------------------------------------------------------------------------------------------

    def _written(self) -> None:
        """Wait for the batch that is being written. Raises what `done` raised."""
        if self.writing is not None:
            writing, self.writing = self.writing, None
            try:
                writing.result()
            except Exception as error:
                raise _Ended(error) from None

    def _write(self, units: Sequence[_Unit], tokens: jax.Array, size: Size) -> None:
        with self.pipe.on_devices():  # of this thread
            self._finish(units, tokens, size)

    def _finish(self, units: Sequence[_Unit], tokens: jax.Array, size: Size) -> None:
        for k, unit in enumerate(units):
            begun, start = unit.of, time.perf_counter()
            if begun.failed:
                continue
            try:
                height, width = (side * self.pipe.cell for side in unit.grid)
                (image,) = self.pipe.decode(tokens[k : k + 1], height, width)
                begun.drawn[unit.number] = self.pipe.finished(begun.request, begun.pictures, image), size
                begun.writing += time.perf_counter() - start
                there = [each for each in begun.drawn if each is not None]
                if len(there) < len(begun.drawn):
                    continue
                drawn = Drawn(
                    [image for image, _ in there], [size for _, size in there], begun.sampling + begun.writing
                )
                made = begun.work.finish(begun.prepared, begun.pictures, drawn, self.pipe)
            except Exception as error:
                self._report_failure(begun, error)
                continue
            self.done(Outcome(begun.line, made))
            begun.drawn = []

    def _fail(self, line: Any, error: Exception) -> None:
        """A line failed: said by the thread that writes, in its turn."""
        self._written()
        self.writing = self.writer.submit(self._report_failure, line, error)

    def _report_failure(self, line: Any, error: Exception) -> None:
        if isinstance(line, _Lined):
            if line.failed:
                return
            line.failed, line = True, line.line
        self.done(Outcome(line, None, error))


def said_of(error: Exception) -> str:
    """An error in the words of a report."""
    text = str(error) if isinstance(error, JaxpaError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())
