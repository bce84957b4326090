"""Metrics against closed forms, a benchmark's folder, tables, and a whole evaluation on the embedded checkpoint."""

import csv
import io
import json
import math

import numpy as np
import pytest
from PIL import Image

import jaxpa
from jaxpa.errors import JaxpaError
from jaxpa.evaluation import scores
from jaxpa.evaluation.evaluate import (
    ANOTHER,
    CEILING,
    FLOOR,
    Case,
    Target,
    Verdict,
    correlation,
    distances,
    evaluate,
    follows,
    halo,
    measure,
    moved,
    read_cases,
    seam,
)  # fmt: skip
from jaxpa.evaluation.scores import Interval, Score, interval

SIDE, CELL = 96, 8
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def pipe():
    return jaxpa.load("mini")


def noise(*shape: int) -> np.ndarray:
    return RNG.uniform(-1, 1, shape).astype(np.float32)


def square(size: int, top: int, left: int, side: int) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    mask[top : top + side, left : left + side] = True
    return mask


# Metrics -----------------------------------------------------------------------------------------------------


def test_correlation():
    a, b, mask = noise(12, 12, 3), noise(12, 12, 3), square(12, 2, 3, 6)
    want = np.corrcoef(a[mask].ravel(), b[mask].ravel())[0, 1]
    assert correlation(a, b, mask) == pytest.approx(want, abs=1e-6)
    assert correlation(a, 0.5 * a + 0.2, mask) == pytest.approx(1)
    assert correlation(a, -a, mask) == pytest.approx(-1)
    outside = np.where(mask[..., None], a, b)
    assert correlation(a, outside, mask) == pytest.approx(1)  # what is outside has no say
    assert correlation(a, np.zeros_like(a), mask) == 0
    assert math.isnan(correlation(a, b, np.zeros_like(mask)))


def test_halo():
    cells, subject = square(32, 8, 8, 16), square(32, 12, 12, 8)
    old, new = np.full((32, 32, 3), -0.5, np.float32), np.full((32, 32, 3), 0.5, np.float32)
    target = Target(old, subject, cells)
    assert halo(new, target) == 0
    clinging = np.where(cells[..., None], old, new)
    assert halo(clinging, target) == 1
    half = np.where((cells & (np.arange(32) < 16))[..., None], old, new)
    assert halo(half, target) == pytest.approx(0.5)
    assert math.isnan(halo(new, Target(old, cells, cells)))
    assert math.isnan(halo(new, Target(old, subject, np.ones_like(cells))))


def test_distances():
    x = np.stack([np.full((4, 4, 3), value, np.float32) for value in (-1, 0, 1)])
    everywhere = np.ones((4, 4), bool)
    np.testing.assert_allclose(distances(x, everywhere), [0.75, 0.5, 0.75])
    half = everywhere.copy()
    half[:2] = False
    x[:, :2] = noise(3, 2, 4, 3)  # not looked at
    np.testing.assert_allclose(distances(x, half), [0.75, 0.5, 0.75])
    assert np.isnan(distances(x[:1], everywhere)).all()


def test_follows():
    names = {"colour": ("red", "blue"), "pattern": ("plain", "striped"), "ground": ("snow", "beach")}
    verdict = Verdict(
        {"colour": ["red", "blue"], "pattern": ["plain"] * 2, "ground": ["snow"] * 2}, names, np.eye(2)
    )  # fmt: skip
    got = follows(verdict, "A Red car, in the snow.")
    assert {head: list(each) for head, each in got.items()} == {"colour": [1, 0], "ground": [1, 1]}
    assert set(follows(verdict, "a red and a blue car")) == {"colour"}
    assert list(follows(verdict, "a red and a blue car")["colour"]) == [1, 1]
    assert follows(verdict, "redder snowman") == {}


def test_interval():
    assert interval([2.0, 2.0]) == Interval(2, 2, 2, 2)
    assert interval([]).n == interval([math.nan]).n == 0
    assert interval([1.0, math.nan, 3.0])[::3] == (2, 2)
    values = np.random.default_rng(1).standard_normal(400)
    got = interval(list(values))
    wide = 1.96 * values.std() / 20
    assert got.high - got.mean == pytest.approx(wide, rel=0.15)
    assert got.mean - got.low == pytest.approx(wide, rel=0.15)
    # Ten copies of forty values are forty pieces of evidence.
    few = interval([v for v in values[:40] for _ in range(10)], [k for k in range(40) for _ in range(10)])
    once = interval(list(values[:40]))
    assert few.high - few.low == pytest.approx(once.high - once.low, rel=1e-6)
    assert interval([1.0, 3.0, 2.0], ["a"] * 3).low < 2  # one group: its values are all there is


# Tables ------------------------------------------------------------------------------------------------------

SCORES = [
    Score("plain", "car", "a, b", 0, {"identity": 0.25}),
    Score("tau 0.5", "car", "a, b", 0, {"identity": 0.5, "halo": 0.125}),
    Score("tau 0.5", "cat", "a, b", 0, {"identity": 1.0, "halo": math.nan}),
]


def test_tables():
    table = scores.summarise(SCORES)
    assert list(table) == ["plain", "tau 0.5"]
    assert table["tau 0.5"]["identity"][0] == 0.75
    assert table["tau 0.5"]["halo"] == Interval(0.125, 0.125, 0.125, 1)
    lines = scores.markdown(table).splitlines()
    assert lines[:2] == ["| setting | identity | halo |", "|---|---|---|"]
    assert lines[2] == "| plain | 0.25 ± 0.00 |  |"
    assert [line.count("|") for line in lines] == [4, 4, 4, 4]
    rows = list(csv.DictReader(io.StringIO(scores.csv_text(SCORES))))
    assert rows[0] == {"setting": "plain", "case": "car", "prompt": "a, b", "seed": "0", "identity": "0.25", "halo": ""}
    assert len(rows) == 3
    parsed = json.loads(scores.json_text(table))
    assert parsed["tau 0.5"]["halo"] == {"mean": 0.125, "low": 0.125, "high": 0.125, "n": 1}
    assert "halo" not in parsed["plain"]


# Cases -------------------------------------------------------------------------------------------------------


def picture_of(array: np.ndarray) -> Image.Image:
    return Image.fromarray(np.uint8(np.rint((array + 1) * 127.5)))


def benchmark(root):
    for name in ("car", "red_cat"):
        (root / name).mkdir()
        picture_of(noise(SIDE, SIDE, 3)).save(root / name / "0.png")
        Image.fromarray(square(SIDE, 24, 24, 48)).save(root / name / "0-mask.png")
    picture_of(noise(SIDE, SIDE, 3)).save(root / "car" / "0-another.png")
    (root / "car" / "0.txt").write_text("a car in a room\n")
    (root / "car" / "name.txt").write_text("blue car")
    (root / "prompts.txt").write_text("a {} on a beach\n\na {} in the snow\n")
    (root / "red_cat" / "prompts.txt").write_text("a {} at night\n")
    return root


def test_read_cases(tmp_path):
    car, cat = read_cases(benchmark(tmp_path))
    assert (car.name, cat.name) == ("car", "red_cat")
    assert car.prompts == ("a blue car on a beach", "a blue car in the snow")
    assert cat.prompts == ("a red cat at night",)
    assert (car.subject.caption, cat.subject.caption) == ("a car in a room", "")
    assert (car.another, cat.another) == (tmp_path / "car" / "0-another.png", None)
    picture_of(noise(SIDE, SIDE, 3)).save(tmp_path / "car" / "1.png")
    assert [case.subject.word for case in read_cases(tmp_path)] == ["blue car", "blue car", "red cat"]
    Image.fromarray(square(SIDE, 0, 0, 0)).save(tmp_path / "car" / "1-mask.png")
    with pytest.raises(JaxpaError, match="empty"):
        read_cases(tmp_path)
    Image.fromarray(square(SIDE, 0, 0, 9)).save(tmp_path / "car" / "1-mask.png")
    assert [case.name for case in read_cases(tmp_path)] == ["car/0", "car/1", "red_cat"]
    (tmp_path / "prompts.txt").unlink()
    with pytest.raises(JaxpaError, match="has no prompts"):
        read_cases(tmp_path)
    for folder in (tmp_path / "nowhere", tmp_path / "red_cat"):
        with pytest.raises(JaxpaError):
            read_cases(folder)


def test_moved(pipe):
    """By whole tokens: the expected pixels and the mask are the reference's, shifted; what leaves is gone."""
    array, mask = noise(SIDE, SIDE, 3), square(SIDE, 27, 30, 30)
    for at, (down, right) in ((None, (0, 0)), ((0.5, 0.5), (1, 0)), ((1.0, 0.5), (1, 6))):
        subject = jaxpa.Subject(picture_of(array), mask, at=at)
        references = pipe.references([subject], coverage=0.5)
        target = moved(references, subject)
        want = np.zeros_like(references.images[0])
        pixels = np.zeros_like(mask)
        y, x = down * CELL, right * CELL
        want[y:, x:] = references.images[0][: SIDE - y, : SIDE - x]
        pixels[y:, x:] = mask[: SIDE - y, : SIDE - x]
        np.testing.assert_array_equal(target.expected, want)
        np.testing.assert_array_equal(target.subject, pixels)
        assert target.cells[::CELL, ::CELL].sum() == references.targets[0].sum()
        assert measure(want[None], target, None)[0]["identity"] == pytest.approx(1)


def test_evaluation(pipe, pictures):
    """Every row that a table needs, one score for each prompt and seed, and a judge that is asked about each."""
    subject = jaxpa.Subject(pictures / "car.png", pictures / "car-mask.png")
    case = Case("car", subject, ("a car on a beach",), another=pictures / "cat.png")
    seen = []

    def judge(images):
        assert images.shape[1:] == (SIDE, SIDE, 3)
        mean = images.mean((1, 2))
        return Verdict({"ground": ["beach"] * len(images)}, {"ground": ("beach", "snow")}, mean)

    def look(label, case, prompt, made):
        seen.append((label, prompt, len(made)))

    settings = {"sweep": {"tau": [0.9, 0.2], "level": "token"}}
    got = evaluate(pipe, [case], settings, seeds=(3, 5), judge=judge, on_pictures=look, steps=2)
    labels = [FLOOR, "sweep, tau 0.9", "sweep, tau 0.2"]
    assert [each[0] for each in seen] == labels
    assert {each[2] for each in seen} == {2}
    assert [score.setting for score in got[:2]] == [CEILING, ANOTHER]
    assert [(score.setting, score.seed) for score in got[2:]] == [(label, s) for label in labels for s in (3, 5)]
    assert set(got[0].values) == {"identity", "likeness"}
    assert set(got[-1].values) == {"identity", "halo", "diversity", "likeness", "ground", "prompt"}
    assert got[-1].values["prompt"] == 1
    table = scores.summarise(got)
    assert table[CEILING]["identity"].mean > table[ANOTHER]["identity"].mean
    assert table["sweep, tau 0.2"]["identity"].mean > table[FLOOR]["identity"].mean
    with pytest.raises(jaxpa.JaxpaError, match="there has 2 places, and a score is of one"):
        evaluate(pipe, [case], {"there": {"at": [(0.4, 0.6), (0.6, 0.6)]}}, seeds=(3,), judge=judge, steps=2)


def test_seam():
    """1 where nothing happens at the border; the size of the jump against the slope where something does."""
    ramp = np.tile(np.arange(96.0)[None, :, None], (96, 1, 3))
    new = np.zeros((96, 96), bool)
    new[:, 60:] = True
    for picture, mask in ((ramp, new), (ramp.swapaxes(0, 1), new.T)):
        jump = picture + 5 * mask[..., None]
        assert [seam(picture, mask, reach) for reach in (1, 4)] == [1, 1]
        assert seam(jump, mask) == pytest.approx(6)
        assert seam(jump, mask, 4) == pytest.approx((7 + 5) / 7)
    assert np.isnan(seam(ramp, np.ones((96, 96), bool)))
    waves = np.random.default_rng(0).normal(size=(96, 96, 3))
    assert 0.9 < seam(waves, new) < 1.1
