"""Lines in batches, on the embedded model: what is beside a picture, and what happens to others, changes nothing."""

from threading import Event

import numpy as np
import pytest
from PIL import Image

import jaxpa
from jaxpa.batch import worker as worker_module
from jaxpa.batch.groups import sizes
from jaxpa.batch.worker import Remembering, Worker
from jaxpa.batching import Size, gate_of
from jaxpa.checkpoint.stages import Staged
from jaxpa.cli.command import headers_read_once
from jaxpa.cli.lines import in_order, read_jobs
from jaxpa.errors import JaxpaError
from jaxpa.media.images import read_metadata

CANVAS = "--height 64 --width 64 --steps 2 --no-figure"


@pytest.fixture(scope="module")
def jobs(tmp_path_factory, pictures):
    """Lines of two kinds and of three references, in a file of their own."""
    folder, car = tmp_path_factory.mktemp("jobs"), f"--subject {pictures}/car.png --mask {pictures}/car-mask.png"
    cat = f"--subject {pictures}/chelsea.jpg --mask {pictures}/chelsea-mask.png"
    edit = f"--image {pictures}/car.png --mask {pictures}/car-mask.png"
    lines = [
        "generate --prompt 'a red star' --seed 1 --num-images 2 --height 64 --width 64 --steps 2 --out star.png",
        f"personalize {car} --at 0.4,0.6 --prompt 'a car' {CANVAS} --seed 1 2 --out car.png",
        f"personalize {cat} --prompt 'a cat' {CANVAS} --out cat.png",
        f"personalize {car} --prompt 'a red car' {CANVAS} --place 0.3,0.5 --place 0.6,0.5 --out layout.png",
        f"inpaint {edit} --prompt 'a boat' {CANVAS} --tau 0.99 --out boat.png",
        "generate --prompt 'a cat' --guidance 2 --height 64 --width 64 --steps 2 --out two.png",
    ]
    return jobs_of(folder / "jobs.txt", lines)


def jobs_of(file, lines):
    file.write_text("\n".join(lines))
    with headers_read_once():
        return read_jobs(str(file))


def run(jobs, size, order=None, stop=None):
    """Every line's pictures as arrays by their names, made in batches of a size; errors by their lines."""
    made, failed = {}, {}
    for group in in_order(jobs if order is None else [jobs[k] for k in order]):

        def done(outcome):
            job, _, error = outcome
            if error is not None:
                failed[job.number] = error
                return
            pictures = zip(job.names, job.files, strict=True)
            made.update({name: np.asarray(Image.open(file), int) for name, file in pictures})

        Worker(group[0].command.load(), size, done, stop).run((job, job.command) for job in group)
    return made, failed


@pytest.fixture(scope="module")
def together(jobs):
    made, failed = run(jobs, Size(4, 2))
    assert failed == {}
    return made


def same(a, b, levels=0):
    assert a.keys() == b.keys()
    for name in a:
        assert np.abs(a[name] - b[name]).max() <= levels, name


def test_order_and_company_change_no_byte(jobs, together):
    """The same program: other neighbours, other rows, more of it filled up."""
    made, _ = run(jobs, Size(4, 2), order=[5, 3, 4, 2, 1, 0])
    same(made, together)
    for k in (1, 2):
        alone, _ = run(jobs, Size(4, 2), order=[k])
        same(alone, {name: together[name] for name in alone})


def test_pictures_are_those_of_the_commands(jobs, together):
    """Of other programs, one picture after the other: within a grey level."""
    for job in (jobs[1], jobs[5]):
        pipe = job.command.load()
        images = pipe.make(job.command.request())
        own = {name: np.asarray(image, int) for name, image in zip(job.names, images, strict=True)}
        same(own, {name: together[name] for name in own}, levels=1)
        assert read_metadata(job.files[0])["request"]["prompt"] == job.command.request().prompt


AROUND = "--surroundings 'a beach' --surroundings-time 0.95", "--surroundings 'a room' --surroundings-time 0.2"
GUIDED = "--concat zero --tau 0.8 --guidance 1", "--concat zero --tau 0.8 --guidance 5"


@pytest.mark.parametrize(
    ("each", "size"), [(AROUND, Size(2, 1)), (GUIDED, Size(2, 2))], ids=["surroundings", "guidance"]
)
def test_each_line_has_its_own(each, size, tmp_path, pictures):
    """In one batch: what stands for the prompt first, and until when; and what references are read with after tau."""
    car = f"personalize --subject {pictures}/car.png --mask {pictures}/car-mask.png --at 0.4,0.6 {CANVAS}"
    lines = [f"{car} --prompt 'a car' {flags} --out {k}.png" for k, flags in enumerate(each)]
    jobs = jobs_of(tmp_path / "jobs.txt", lines)
    assert len({job.share.kind for job in jobs}) == 1
    made, failed = run(jobs, size)
    assert failed == {}
    for job in jobs:
        own = dict(zip(job.names, job.command.load().make(job.command.request()), strict=True))
        same({name: np.asarray(image, int) for name, image in own.items()}, {n: made[n] for n in own}, levels=1)
    assert np.abs(made[jobs[0].names[0]] - made[jobs[1].names[0]]).max() > 20


def test_sizes_depend_on_the_whole_file(jobs):
    shares = [job.share for job in jobs]
    kinds = {share.kind for share in shares}
    assert len(kinds) == 2  # edits ride with personalisations of their size
    found = sizes(shares, None)
    assert sizes(reversed(shares), None) == found
    assert found[shares[0].kind] == {None: Size(3, 0)}
    (usual,), (first,) = shares[1].gates, shares[4].gates  # how many of the two steps are above tau
    assert (usual, first, shares[3].gates) == (2, 1, (2,))
    # Two casts: a layout's places move the same reference. The edit alone has another gate.
    assert found[shares[1].kind] == {usual: Size(5, 2), first: Size(1, 1)}
    assert sizes(shares, 2)[shares[1].kind][usual].images == 2


def test_each_gate_has_batches_of_its_own(jobs, together, monkeypatch):
    """No row is sampled in vain, and the pictures are those of one fixed size."""
    real, asked = worker_module.merge, []

    def merge(parts, size):
        asked.append((len(parts), size.images))
        return real(parts, size)

    monkeypatch.setattr(worker_module, "merge", merge)
    personal = [jobs[k] for k in (2, 4)]
    made, failed = run(personal, sizes([job.share for job in personal], None)[personal[0].share.kind])
    assert failed == {}
    assert asked == [(1, 1), (1, 1)]
    same(made, {name: together[name] for name in made}, levels=1)


@pytest.mark.parametrize(("taus", "counts"), [((0.95, 0.8, 0.5, 0.2), 1), ((0.9,), 9), ((0.9, 0.5), 17)])
def test_sizes_waste_little(jobs, taus, counts):
    """Against the definition: of the fewest batches that the limit allows, the smallest; by gate, from whole steps."""
    share, limit = jobs[1].share, 8
    times = np.linspace(1, 0, 9, dtype=np.float32)
    gates = tuple(gate_of(np.float32(tau), times) for tau in taus)
    assert gates == tuple(sum(float(time) > tau for time in times[:-1]) for tau in taus)
    lines = [share._replace(gates=gates, images=len(taus)) for _ in range(counts)]
    fewest = -(-counts // limit)
    smallest = next(size for size in range(1, limit + 1) if -(-counts // size) == fewest)
    found = sizes(lines, None)[share.kind]
    assert {gate: size.images for gate, size in found.items()} == dict.fromkeys(gates, smallest)


def test_a_full_memory_halves_the_batch(jobs, together, monkeypatch, caplog):
    real, asked = worker_module.merge, []

    def merge(parts, size):
        asked.append(size.images)
        if size.images > 2:
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 34 bytes")
        return real(parts, size)

    monkeypatch.setattr(worker_module, "merge", merge)
    made, failed = run(jobs, Size(4, 2), order=[0, 5])
    assert failed == {}
    same(made, {name: together[name] for name in made}, levels=1)
    assert asked[0] == 4 > max(asked[1:])
    assert "2 pictures at a time from here on" in caplog.text


def test_a_failing_line_fails_alone(jobs, together, monkeypatch):
    """While it is prepared, sampled and written."""

    def raises(error):
        def called(*_):
            raise error

        return called

    monkeypatch.setattr(jobs[1].command, "prepare", raises(JaxpaError("no such file")), raising=False)
    monkeypatch.setattr(jobs[2].command, "finish", raises(OSError(28, "No space left")), raising=False)
    made, failed = run(jobs, Size(4, 2))
    assert {number: type(error) for number, error in failed.items()} == {2: JaxpaError, 3: OSError}
    same(made, {name: together[name] for name in made})
    assert len(made) == 6


def test_what_cannot_be_kept_ends_it(jobs):
    """A journal that is full: nothing more is made."""
    heard = []

    def done(outcome):
        heard.append(outcome)
        raise JaxpaError("the journal cannot be written")

    with pytest.raises(JaxpaError, match="the journal"):
        Worker(jobs[0].command.load(), Size(1), done).run([(jobs[k], jobs[k].command) for k in (5, 0)])
    assert len(heard) == 1


def test_an_end_that_is_asked_for(jobs):
    """The batch in flight is written, and no other begun."""
    stop, heard = Event(), []
    lines = ((stop.set() if k else None, (jobs[5], jobs[5].command))[1] for k in range(3))
    Worker(jobs[0].command.load(), Size(1), heard.append, stop).run(lines)
    assert [outcome.error for outcome in heard] == [None]


def test_texts_are_forgotten_longest_unused_first(jobs, monkeypatch):
    """A text that is asked for is there, however many have come since it was encoded."""
    pipe = Remembering.of(jobs[0].command.load())
    one = pipe.encode_text("a cat")
    monkeypatch.setattr(worker_module, "TEXT_BYTES", 2 * (one.txt.nbytes + one.vec.nbytes))
    texts = ["a cat", "a car", "a house", "a cat", "a boat"]
    for known in (texts[:1], texts[:2], texts * 2, ["a cat", "a mug"]):
        np.testing.assert_array_equal(pipe.encode_text(known).txt, jobs[0].command.load().encode_text(known).txt)
    assert list(pipe.known) == ["a cat", "a mug"]


def test_networks_that_take_turns_keep_no_texts(jobs):
    """They are remembered once, in the host's memory."""
    pipe = Remembering.of(jaxpa.load(resident=False))
    for prompt in ("a cat", "a car"):
        np.testing.assert_array_equal(pipe.encode_text(prompt).txt, jobs[0].command.load().encode_text(prompt).txt)
    assert isinstance(pipe.parts, Staged)
    assert not pipe.parts.texts
    assert all(isinstance(each.txt, np.ndarray) for each in pipe.known.values())
