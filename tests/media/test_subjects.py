"""Subjects: read once, placed where they were asked for, and what is lost on the way is said."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_images import message, noise

from jaxpa.box import Box
from jaxpa.errors import JaxpaError
from jaxpa.media import images
from jaxpa.media.places import to_place, window
from jaxpa.media.subjects import References, Subject, load_subject, read_references, read_subject
from jaxpa.tokens import Placement

quick = settings(max_examples=60, deadline=None)
GRID, SIDE = (12, 12), 96


def rectangle(box: Box, size: tuple[int, int] = (SIDE, SIDE)) -> np.ndarray:
    """A mask of a picture of `size` (W, H) that is 1 in a box of whole pixels."""
    mask = np.zeros(size[::-1], np.float32)
    mask[int(box.top) : int(box.bottom), int(box.left) : int(box.right)] = 1
    return mask


def subject(box: Box, size: tuple[int, int] = (SIDE, SIDE), **how: object) -> Subject:
    return Subject(noise(size[1], size[0]), rectangle(box, size), **how)  # type: ignore[arg-type]


def references(*subjects: Subject, scene: Subject | None = None, at: object = None) -> References:
    return read_references(subjects, scene, SIDE, SIDE, GRID, at, 0.5)  # type: ignore[arg-type]


def said(*subjects: Subject, **how: object) -> list[str]:
    """The warnings of reading subjects."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        references(*subjects, **how)  # type: ignore[arg-type]
    return [str(each.message) for each in caught]


# --- places


@pytest.mark.parametrize(("at", "reason"), [
    ((0.5,), "give a centre"), ((), "give a centre"), ((0, 0, 1), "give a centre"), ("0.5", "give a centre"),
    (("a", 1), "give a centre"), (0.5, "give a centre"), ((None, 1), "give a centre"),
    ((float("nan"), 0.5), "lies off the canvas"), ((0.5, float("inf")), "lies off the canvas"),
    ((1e30, 0.5), "lies off the canvas"), ((0.5, -17), "lies off the canvas"),
    ((0, 0, 1, float("nan")), "lies off the canvas"), ((0, 0, float("inf"), 1), "lies off the canvas"),
    ((0.5, 0, 0.5, 1), "the box is empty"), ((0.6, 0, 0.5, 1), "the box is empty"), ((0, 1, 1, 0), "the box is empty"),
])  # fmt: skip
def test_what_is_no_place(tmp_path: Path, at: object, reason: str) -> None:
    for make in (
        lambda: Subject(tmp_path / "car.png", at=at),  # type: ignore[arg-type]
        lambda: to_place(at, str(tmp_path / "car.png")),  # type: ignore[arg-type]
    ):
        with pytest.raises(JaxpaError, match=reason) as error:
            make()
        assert message(error).startswith(f"{tmp_path / 'car.png'} at ")
    with pytest.raises(JaxpaError, match=reason):
        references(subject(Box(30, 30, 60, 60)), at=[at])


def test_places_are_centres_and_boxes() -> None:
    assert to_place(None) is None
    assert to_place([0, 1]) == (0.0, 1.0)
    assert isinstance(to_place(np.array([0, 0.1, 1, 2])), Box)
    assert Subject("a.png", at=(0, 0, 1, 1)).at == Box(0, 0, 1, 1)  # type: ignore[arg-type]


@pytest.mark.parametrize("at", [(3.0, 0.5), (-0.9, 0.5), (1.2, 0, 1.9, 1), (0, -1, 1, -0.1), (0, 0.99, 0.001, 1.6)])
def test_off_the_canvas(at: tuple[float, ...]) -> None:
    with pytest.raises(JaxpaError, match="lies off the canvas: places are fractions"):
        references(subject(Box(30, 30, 60, 60), at=at))
    if len(at) == 2:
        with pytest.raises(JaxpaError, match="lies off the canvas"):
            references(subject(Box(30, 30, 60, 60)), at=[None, at])


fractions = st.tuples(st.floats(-0.5, 0.9), st.floats(0.1, 1)).map(lambda pair: (pair[0], sum(pair)))


@quick
@given(st.data(), st.integers(20, 200), st.integers(20, 200), fractions, fractions, st.booleans())
def test_a_box_holds_its_subject(
    data: st.DataObject, width: int, height: int, across: tuple[float, float], down: tuple[float, float], stretch: bool
) -> None:
    """The subject fills the box; or it fits inside, with its own aspect, around the same centre."""
    left, top = data.draw(st.integers(0, width - 10)), data.draw(st.integers(0, height - 10))
    inner = Box(left, top, data.draw(st.integers(left + 5, width)), data.draw(st.integers(top + 5, height)))
    at = Box(across[0], down[0], across[1], down[1])
    size, canvas = (width, height), (96, 160)
    try:
        shown = window(rectangle(inner, size), size, canvas, at, stretch, "it")
    except JaxpaError as error:
        assert "off the canvas" in str(error) or "too small" in str(error)  # noqa: PT017
        return
    # From pixels of the picture to pixels of the canvas.
    x, y = canvas[1] / shown.width, canvas[0] / shown.height
    landed = inner.moved(-shown.left, -shown.top).scaled(x, y)
    target = at.scaled(canvas[1], canvas[0])
    assert landed.centre == pytest.approx(target.centre, abs=1e-6)
    assert landed.within(target) == pytest.approx(landed, abs=1e-6)
    if stretch:
        assert landed == pytest.approx(target, abs=1e-6)
    else:
        assert x == pytest.approx(y)
        assert landed.width == pytest.approx(target.width) or landed.height == pytest.approx(target.height)


@quick
@given(st.data(), st.integers(1, 40), st.integers(1, 40), st.integers(1, 24), st.integers(1, 24), st.integers(0, 99))
def test_a_picture_goes_on_beyond_its_edges(
    data: st.DataObject, width: int, height: int, across: int, down: int, seed: int
) -> None:
    """`to_array` of a box that leaves the picture is that of the picture with a wide margin of its edge pixels."""
    # Away from black and white, where Pillow clips between its two passes, whose order depends on the picture's shape.
    pixels = np.random.default_rng(seed).integers(64, 192, (height, width, 3), dtype=np.uint8)
    left, top = data.draw(st.floats(-60, width - 1)), data.draw(st.floats(-60, height - 1))
    right = data.draw(st.floats(max(left + 0.5, 1), width + 60))
    bottom = data.draw(st.floats(max(top + 0.5, 1), height + 60))
    box, margin = Box(left, top, right, bottom), 500
    assume(box != box.within(Box(0, 0, width, height)))  # inside, Pillow weighs what there is at the edge
    padded = Image.fromarray(np.pad(pixels, ((margin, margin), (margin, margin), (0, 0)), mode="edge"))
    expected = padded.resize((across, down), Image.Resampling.LANCZOS, box.moved(margin, margin))
    got = images.to_array(Image.fromarray(pixels), down, across, box)
    assert got.shape == (down, across, 3)
    # Each of the two passes rounds, and amplifies what the other has rounded.
    np.testing.assert_allclose(np.rint((got + 1) * 127.5), np.asarray(expected, np.float32), atol=2)


def test_a_box_that_shows_nothing() -> None:
    with pytest.raises(ValueError, match="shows nothing of a picture of 30 x 20 pixels"):
        images.to_array(Image.fromarray(noise()), 4, 4, Box(40, 0, 50, 10))


def test_the_picture_and_its_tokens_go_the_same_way() -> None:
    """A white subject on black in a box: the tokens that the mask gives are those that are bright."""
    mask = rectangle(Box(10, 40, 40, 90), (60, 120))
    white = np.uint8(255 * mask[..., None]).repeat(3, -1)
    for flip in (False, True):
        for stretch in (False, True):
            at = Box(0.25, 0.25, 0.75, 0.5)
            array, tokens, _, lost = read_subject(
                Subject(white, mask, at=at, flip=flip, stretch=stretch), SIDE, SIDE, GRID, 0.5
            )
            bright = (array.reshape(12, 8, 12, 8, 3).mean((1, 3, 4)) > 0).ravel()
            np.testing.assert_array_equal(tokens, bright)
            wide = 6 if stretch else round(3 * 30 / 50)
            assert tokens.reshape(GRID).any(0).sum() == wide
            assert tokens.reshape(GRID).any(1).sum() == 3
            assert lost == pytest.approx(0, abs=1e-9)


# --- reading


def test_files_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(noise(40, 60)).save(tmp_path / "car.png")
    Image.fromarray(np.uint8(255 * rectangle(Box(20, 10, 40, 30), (60, 40)))).save(tmp_path / "mask.png")
    cut = np.dstack([noise(40, 60), np.uint8(255 * rectangle(Box(20, 10, 40, 30), (60, 40)))])
    Image.fromarray(cut).save(tmp_path / "cut.png")
    opened: list[str] = []
    real = Image.open
    monkeypatch.setattr(Image, "open", lambda path, **how: opened.append(Path(path).name) or real(path, **how))
    one = load_subject(Subject(tmp_path / "car.png", tmp_path / "mask.png", word="car"))
    two = load_subject(Subject(tmp_path / "cut.png"))
    assert opened == ["car.png", "mask.png", "cut.png"]
    assert load_subject(one) is one
    assert one.name == str(tmp_path / "car.png")
    np.testing.assert_array_equal(one.mask, two.mask)
    plain = read_references([Subject(tmp_path / "car.png", tmp_path / "mask.png")], None, SIDE, SIDE, GRID, None, 0.5)
    opened.clear()
    handed = read_references([one], None, SIDE, SIDE, GRID, None, 0.5)
    assert opened == []
    np.testing.assert_array_equal(handed.images, plain.images)
    np.testing.assert_array_equal(handed.masks, plain.masks)


def test_without_a_mask() -> None:
    with pytest.raises(JaxpaError, match="the picture has no mask yet"):
        references(Subject(noise(), word="car"))


@pytest.mark.parametrize(("change", "reason"), [
    ({"masks": np.ones((1, 124), bool)}, r"masks have the shape \(1, 124\): 1 references on .* 12 x 12 .* \(1, 144\)"),
    ({"images": np.zeros((1, 90, 96, 3))}, "images have the shape"),
    ({"images": np.zeros((2, 96, 96, 3))}, "masks have the shape"),
    ({"where": Placement(np.zeros((1, 144), int), np.ones((1, 144), bool))}, "where.source has the shape"),  # type: ignore[arg-type]
    ({"captions": ()}, "captions are 0"),
])  # fmt: skip
def test_references_of_other_shapes(change: dict[str, object], reason: str) -> None:
    good = references(subject(Box(30, 30, 60, 60)))
    with pytest.raises(JaxpaError, match=reason):
        References(**(vars(good) | change))  # type: ignore[arg-type]


# --- what is lost is said


def test_a_warning_points_at_the_line_that_asked() -> None:
    """Python shows that line, and shows a warning once for each."""
    with pytest.warns(UserWarning, match="leaves the canvas") as found:
        references(subject(Box(24, 24, 72, 72), at=(0.75, 0.25, 1.25, 0.75)))
    assert [one.filename for one in found] == [__file__]


def test_a_subject_that_leaves_the_canvas() -> None:
    """40 of 48 pixels: five columns of tokens of six are left when its middle is moved to two tokens from the edge."""
    inside = subject(Box(24, 24, 72, 72))
    assert said(inside) == []
    assert said(inside, at=[(0.5, 0.5), (0.75, 0.25)]) == []
    (line,) = said(inside, at=[None, (2 / 12, 0.5)])
    assert line == f"the picture at {(2 / 12, 0.5)}: 17% of the subject leaves the canvas"
    (line,) = said(subject(Box(24, 24, 72, 72), at=(0.75, 0.25, 1.25, 0.75)))  # half of a box of the same aspect
    assert line == "the picture at (0.75, 0.25, 1.25, 0.75): 50% of the subject leaves the canvas"


def test_a_subject_wider_than_the_canvas() -> None:
    """150 pixels wide in a picture of 200 x 100, of which a square canvas shows 100."""
    wide = subject(Box(25, 40, 175, 60), (200, 100))
    (line,) = said(wide)
    assert line.startswith("the picture: 33% of the subject is cut off")
    assert said(subject(Box(25, 40, 175, 60), (200, 100), at=(0.1, 0.1, 0.9, 0.9))) == []


def test_a_subject_that_covers_another(tmp_path: Path) -> None:
    """The later one lies on top; a scene is there to be covered."""
    Image.fromarray(noise(SIDE, SIDE)).save(tmp_path / "cat.png")
    below = subject(Box(16, 16, 48, 48))  # 4 x 4 tokens
    above = Subject(tmp_path / "cat.png", rectangle(Box(32, 16, 80, 64)))  # two columns of them
    assert said(below, above) == [f"{tmp_path / 'cat.png'} (subject 2) covers 50% of the picture (subject 1)"]
    assert said(below, scene=Subject(noise(SIDE, SIDE))) == []
    assert said(below, subject(Box(48, 16, 80, 64))) == []
    lines = said(below, above, at=[(0.9, 0.5), (0.25, 0.25)])  # in the second image: from (0, 0) to (48, 48)
    assert lines == [
        f"{tmp_path / 'cat.png'} (subject 2) at (0.9, 0.5): 33% of the subject leaves the canvas",
        f"{tmp_path / 'cat.png'} (subject 2) covers 100% of the picture (subject 1)",
    ]
