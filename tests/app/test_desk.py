"""What lies on the page, without a page: masks, files, requests, jobs, and numbers of attention."""

import base64
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from jaxpa.app import desk, laying, looks, picks
from jaxpa.app.desk import Piece, Said
from jaxpa.app.jobs import PREVIEWS, Seen, Stopped, Studio
from jaxpa.attention.observe import Attention
from jaxpa.box import Box
from jaxpa.checkpoint.source import resolve
from jaxpa.cli.command import spec_of
from jaxpa.errors import JaxpaError
from jaxpa.media.figures import overlay
from jaxpa.media.images import read_image, read_mask
from jaxpa.media.subjects import load_subject, read_subject
from jaxpa.request.groups import Checkpoint
from jaxpa.request.prepare import prepare
from jaxpa.runs import Step
from jaxpa.schedule import Steps


@pytest.fixture(scope="module")
def spec():
    return spec_of(resolve("mini"))


@pytest.fixture
def car(pictures):
    return Piece(read_image(pictures / "car.png"), read_mask(pictures / "car-mask.png") > 0.5)


# Masks ----------------------------------------------------------------------------------------------------------


def strokes(size, *boxes):
    """A layer on which boxes are painted, one after the other: (colour, left, top, right, bottom)."""
    layer = Image.new("RGBA", size)
    for colour, *box in boxes:
        ImageDraw.Draw(layer).rectangle(tuple(box), colour)
    return layer


def test_paint_adds_and_takes_from_what_was_picked():
    picture, another = Image.new("RGB", (30, 20), "white"), Image.new("RGB", (30, 20), "grey")
    pick = np.zeros((20, 30), bool)
    pick[5:15, 5:15] = True
    chosen = picks.Pick(picks.name_of(picture), pick)
    layer = strokes((30, 20), (picks.ADDS, 10, 5, 24, 9), (picks.TAKES, 5, 5, 11, 6))
    expected = pick.copy()
    expected[5:10, 10:25] = True
    expected[5:7, 5:12] = False
    assert (picks.mask_of(picture, [layer], chosen) == expected).all()
    assert not (picks.mask_of(another, [layer], chosen)[10:]).any()  # what was picked on another picture
    over = strokes((30, 20), (picks.ADDS, 5, 5, 5, 5))  # the last layer lies on top
    assert picks.mask_of(picture, [layer, over], chosen)[5, 5]
    assert not picks.mask_of(picture, []).any()


@pytest.mark.parametrize("tolerance", [0, 12, 40])
def test_a_region_grows_as_pillow_fills_it(tolerance):
    """Where only one colour channel differs, Pillow's distance (their sum) and ours (each) are the same."""
    noise = np.random.default_rng(0).integers(0, 80, (24, 32)).astype(np.uint8)
    picture = Image.fromarray(np.stack([noise, np.full_like(noise, 9), np.full_like(noise, 200)], -1))
    for at in ((0.02, 0.02), (0.5, 0.6), (0.99, 0.4)):
        spot = int(at[0] * 32), int(at[1] * 24)
        filled = picture.copy()
        ImageDraw.floodfill(filled, spot, (0, 255, 0), thresh=tolerance)
        straight = (np.asarray(filled) == [0, 255, 0]).all(-1)  # over edges alone; ours goes over corners too
        grown = picks.grown(picture, at, tolerance)
        near = np.abs(noise.astype(int) - int(noise[spot[1], spot[0]])) <= tolerance
        assert grown[spot[1], spot[0]]
        assert (grown | near == near).all()
        assert (grown | straight == grown).all()


def test_a_region_ends_where_its_colour_does(car):
    flat = Image.new("RGB", (40, 30), "white")
    ImageDraw.Draw(flat).ellipse((8, 5, 25, 22), "red")
    ImageDraw.Draw(flat).rectangle((30, 5, 36, 22), "red")
    expected = (np.asarray(flat) == [255, 0, 0]).all(-1)
    expected[:, 28:] = False
    assert (picks.grown(flat, (0.4, 0.45), 10) == expected).all()


# Requests -------------------------------------------------------------------------------------------------------


def test_subjects_become_files_and_a_request_that_names_them(car, spec, tmp_path):
    pieces = [replace(car, at=Box(0.1, 0.4, 0.6, 0.9), flip=True), Piece(car.picture, word=" car ", caption="a  car")]
    request = desk.personalize(
        tmp_path,
        pieces,
        car.picture,
        Said("a car  and a cat", 3, 2, 28, taus=(0.4, 0.2), surroundings=" a  room"),
        spec,
    )
    assert request.prompt == "a car and a cat"
    assert (request.sampling.seeds(), request.sampling.steps) == ((3, 4), None)  # as the checkpoint has it: unsaid
    assert (request.method.tau, request.method.surroundings) == ((0.4, 0.2), "a room")
    first, second = request.subjects
    assert (first.at, first.flip, second.mask, second.word, second.caption) == (
        pieces[0].at,
        True,
        None,
        "car",
        "a car",
    )
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "scene.png", "subject-1-mask.png", "subject-1.png", "subject-2.png"
    ]  # fmt: skip
    read = load_subject(replace(first, image=tmp_path / str(first.image), mask=tmp_path / str(first.mask)))
    assert (np.asarray(read.image) == np.asarray(car.picture)).all()
    assert read.mask is not None
    assert ((read.mask > 0.5) == car.mask).all()


def test_edits(car, spec, tmp_path):
    said = Said("a car", height=96, width=96, steps=4)
    inside = desk.inpaint(tmp_path, car.picture, car.mask, said, spec, grow=3)
    assert (inside.verb, inside.sampling.steps, inside.editing.grow) == ("inpaint", 4, 3)
    assert inside.guidance(spec) == spec.settings.guidance_with_references
    assert desk.inpaint(tmp_path, car.picture, car.mask, replace(said, guidance=" 3.5"), spec).guidance(spec) == 3.5
    beyond = desk.outpaint(tmp_path, car.picture, (0, 8.0, 0, 4), said, spec)
    assert (beyond.verb, beyond.editing.pad) == ("outpaint", (0, 8, 0, 4))


def test_edits_do_not_write_over_what_they_read(car, spec, tmp_path):
    from jaxpa.app.jobs import OUT

    desk.inpaint(tmp_path, car.picture, car.mask, Said("a car"), spec)
    desk.personalize(tmp_path, [car], car.picture, Said("a car"), spec)
    assert not (tmp_path / OUT).exists()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda folder, spec: desk.personalize(folder, [], None, Said("a"), spec), "at least one subject"),
        (lambda folder, spec: desk.generate(Said("a", seed=0.5), spec), "whole number, not 0.5"),
        (lambda folder, spec: desk.generate(Said("a", guidance="3,5"), spec), "guidance must be a number, not '3,5'"),
        (lambda folder, spec: desk.generate(Said("a", height=None), spec), "the height must be a whole number"),
        (lambda folder, spec: desk.inpaint(folder, None, np.zeros((2, 2)), Said("a"), spec), "no picture yet"),
        (lambda *_: desk.parse_taus("0.5 x"), "give a flow time"),
        (lambda *_: desk.parse_taus(" , "), "1 to 12 values"),
        (lambda *_: desk.parse_at("0.5,b"), "give X,Y "),
        (lambda *_: desk.parse_at("0.5,0.1,0.2,0.9"), "empty"),
    ],
)
def test_what_is_wrong_is_a_sentence(wrong, says, spec, tmp_path):
    with pytest.raises(JaxpaError, match=says):
        wrong(tmp_path, spec)


def test_words_of_fields():
    assert desk.parse_taus("0.9, 20% 0.9") == (0.9, Steps(0.2))
    for text in ("", "0.25,0.5", "0.1,0.2,0.5,0.75", "0,1", "0.123456789012,0.5"):
        assert desk.show_at(desk.parse_at(text)) == text


def test_the_slider_starts_where_the_preset_does(spec):
    assert desk.flow_time(0.5, spec) == 0.5
    times = spec.times(None, spec.grid())
    share = desk.flow_time(Steps(0.8), spec)
    assert (times > share).sum() == round(0.2 * 28)  # as many steps are above it


def test_the_cells_are_those_of_the_preset(car, spec, tmp_path):
    """A preset that asks for more of a token shows fewer cells: as many as its pictures are made with."""
    studio: Any = SimpleNamespace(spec=spec)
    layer = Image.new("RGBA", car.picture.size)
    layer.paste(picks.ADDS, (0, 0), Image.fromarray((255 * car.mask).astype(np.uint8)))
    editor = {"background": car.picture, "layers": [layer]}
    shown = {}
    for preset in ("", "official"):
        laid = laying.Laid(editor, None, "", "", False, [], None, {}, 96, 96, preset)
        request = desk.personalize(tmp_path, laid.pieces(), None, Said("a car", preset=preset, taus=(0.5,)), spec)
        subjects = [replace(each, image=tmp_path / each.image, mask=tmp_path / each.mask) for each in request.subjects]
        references = prepare(replace(request, subjects=tuple(load_subject(each) for each in subjects)), spec)
        shown[preset] = laid.cells(studio)
        expected = overlay(car.picture.convert("RGB"), references.masks[0], 12, 12)
        np.testing.assert_array_equal(np.asarray(shown[preset]), np.asarray(expected))
    assert np.any(np.asarray(shown[""]) != np.asarray(shown["official"]))


@pytest.mark.parametrize("flip", [False, True])
def test_the_canvas_shows_a_subject_where_the_method_puts_it(car, spec, flip):
    """The box around the cells of the mask, as the method cuts the picture to a canvas of another aspect."""
    canvas = (96, 64)
    piece = replace(car, flip=flip)
    subject = desk.Subject(piece.picture, piece.mask.astype(np.float32), flip=flip)
    tokens = read_subject(subject, *canvas, (12, 8), 1e-6).tokens.reshape(12, 8)
    rows, cols = np.flatnonzero(tokens.any(1)), np.flatnonzero(tokens.any(0))
    cells = np.array([cols[0] / 8, rows[0] / 12, (cols[-1] + 1) / 8, (rows[-1] + 1) / 12])
    shown = np.array(desk.natural(piece, canvas))
    assert (np.abs(shown - cells) <= np.array([1 / 8, 1 / 12, 1 / 8, 1 / 12])).all()
    assert (shown[:2] >= cells[:2] - 1e-9).all()
    assert (shown[2:] <= cells[2:] + 1e-9).all()


def test_a_cutout_is_the_subject_alone(car):
    small = desk.cutout(car, 64)
    assert max(small.size) == 64
    share = np.asarray(small.getchannel("A")).mean() / 255
    rows, cols = np.flatnonzero(car.mask.any(1)), np.flatnonzero(car.mask.any(0))
    inside = car.mask[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
    assert share == pytest.approx(inside.mean(), abs=0.02)


def test_subjects_stay_where_they_are_when_one_goes(car):
    """Subjects are told apart by their order alone, in the page's list and on its canvas."""
    boxes = [{"at": [0, 0, 0.5, k]} for k in (0.3, 0.4, 0.5)]
    kept, canvas = laying.without_last([car, replace(car, word="cat")], {"width": 96, "boxes": boxes})
    assert kept == [car]
    assert canvas == {"width": 96, "boxes": [boxes[0], boxes[2]]}
    assert laying.without_last([], {"boxes": boxes[:1]}) == ([], {"boxes": boxes[:1]})
    first, second = laying.pieces_of(({"background": car.picture, "layers": []}, None, "", "", False), kept, canvas)
    assert (first.at, second.at) == (Box(0, 0, 0.5, 0.3), Box(0, 0, 0.5, 0.5))


def test_a_picture_with_too_many_pixels_is_refused(car, monkeypatch):
    monkeypatch.setenv("JAXPA_MAX_PIXELS", "100")
    with pytest.raises(JaxpaError, match="384 x 384 pixels are more than 100"):
        laying.pieces_of(({"background": car.picture, "layers": []}, None, "", "", False), [], None)


# Jobs -----------------------------------------------------------------------------------------------------------


def studio(draw, folder: Path) -> Studio:
    def nothing(*_):
        raise AssertionError

    return Studio(Checkpoint(), None, nothing, draw, nothing, folder)  # type: ignore[arg-type]


def test_a_job_is_watched_to_its_end(tmp_path):
    def draw(request, folder, on_step):
        import warnings

        warnings.warn("a word of warning", stacklevel=2)
        on_step(Step("sample", 1, 2))
        return [folder / "picture.png"], [""]

    step, drawn = studio(draw, tmp_path).run("a request", tmp_path)  # type: ignore[arg-type]
    assert step == Seen("sample", 1, 2)
    assert (drawn.files, drawn.warnings) == ([tmp_path / "picture.png"], ["a word of warning"])


def test_steps_are_decoded_now_and_then(tmp_path):
    decoded = []

    def draw(request, folder, on_step):
        for k in range(1, 29):
            on_step(Step("sample", k, 28, None, lambda row, k=k: decoded.append(k) or Image.new("RGB", (k, 1))))
        on_step(Step("forwards", 28, 28))
        return [], []

    *steps, _ = studio(draw, tmp_path).run("a request", tmp_path)  # type: ignore[arg-type]
    assert [step.done for step in steps if isinstance(step, Seen)] == list(range(1, 29))
    assert decoded == [4, 8, 12, 16, 20, 24]
    assert len(decoded) == PREVIEWS - 1
    assert [step.preview.width for step in steps if isinstance(step, Seen) and step.preview] == decoded


def test_a_job_stops_when_nobody_watches_and_the_next_one_begins_after_it(tmp_path):
    log = []

    def draw(request, folder, on_step):
        log.append(f"{request} begins")
        try:
            for k in range(1000):
                on_step(Step(request, k, 1000))
                time.sleep(0.001)
        except Stopped:
            log.append(f"{request} stops")
            raise
        return [], []

    shared = studio(draw, tmp_path)
    first = shared.run("one", tmp_path)  # type: ignore[arg-type]
    next(first)
    second = shared.run("two", tmp_path)  # type: ignore[arg-type]
    waiting = threading.Thread(target=lambda: (next(second), second.close()))
    waiting.start()
    time.sleep(0.05)
    assert log == ["one begins"]  # one job at a time
    first.close()
    waiting.join(20)
    assert log == ["one begins", "one stops", "two begins", "two stops"]
    assert not shared.working.locked()


def test_a_session_stops_its_own_job(tmp_path):
    def draw(request, folder, on_step):
        for k in range(1000):
            on_step(Step("sample", k, 1000))
            time.sleep(0.001)
        return [], []

    shared = studio(draw, tmp_path)
    shared.stop("mine")  # there is none yet
    job = shared.run("one", tmp_path, "mine")  # type: ignore[arg-type]
    next(job)
    shared.stop("another")
    next(job)
    shared.leave("mine")
    with pytest.raises(Stopped):
        list(job)
    assert not shared.working.locked()


def test_an_error_of_a_job_is_its_watchers(tmp_path):
    def draw(request, folder, on_step):
        raise JaxpaError("it cannot be drawn")

    with pytest.raises(JaxpaError, match="cannot be drawn"):
        list(studio(draw, tmp_path).run("one", tmp_path))  # type: ignore[arg-type]


def test_every_session_has_a_room_of_its_own(tmp_path):
    house = studio(None, tmp_path)
    first, other = house.room("ab../c"), house.room("xyz")
    (first / "a.png").write_bytes(b"")
    assert {first.parent, other.parent} == {tmp_path}
    again = house.room("ab../c")
    assert not first.exists()
    assert list(again.iterdir()) == []
    house.leave("ab../c")
    assert list(tmp_path.iterdir()) == [other]


# Attention ------------------------------------------------------------------------------------------------------


def test_tables_are_the_maps(spec):
    rng = np.random.default_rng(1)
    m, h, w = 5, 2, 3
    maps = rng.random((4, 3, m + 6, m + 6), np.float32)
    seen = Attention(maps, (0, 9, 18, 27), (1, 0.8, 0.5, 0.1), (0, 1, 2), m, (h, w))
    found = looks.Looks(seen, Image.new("RGB", (8, 8)), {"red": np.array([1]), "mushroom": np.array([2, 3])})
    table = found.table(1, None)
    mean = maps[1].mean(0)

    def rows(name: str, width: int) -> np.ndarray:
        return np.frombuffer(base64.b64decode(table[name]), np.uint8).reshape(-1, width) / 255

    for name, width, expected in (
        ("from_word", 6, np.stack([mean[1, m:], mean[2:4, m:].mean(0)])),
        ("to_word", 6, np.stack([mean[m:, 1], mean[m:, 2:4].sum(-1)])),
        ("from_cell", 6, mean[m:, m:]),
        ("cell_to_word", 2, np.stack([mean[m:, 1], mean[m:, 2:4].sum(-1)], -1)),
    ):
        expected = expected / expected.max(-1, keepdims=True)
        np.testing.assert_allclose(rows(name, width), expected, atol=0.5 / 255 + 1e-6)
    assert (table["words"], table["grid"]) == (["red", "mushroom"], (h, w))


def test_steps_are_chosen_that_fit():
    assert looks.chosen_steps(28, 6, 176, 144) == list(range(28))
    few = looks.chosen_steps(28, 57, 1024 + 256, 1024)
    assert len(few) * 57 * 4 * 1280**2 <= looks.MAPS
    assert 0 < len(few) < 28
    with pytest.raises(JaxpaError, match="4096 cells are more"):
        looks.chosen_steps(28, 57, 4608, 4096)


def test_a_request_of_the_page_is_read_as_any_other(car, spec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    request = desk.personalize(tmp_path, [car], None, Said("a car", height=64), spec)
    references = prepare(request, spec)
    assert references is not None
    assert references.grid == (8, 12)
