"""The one type of boxes: units, and fitting inside."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxpa.box import Box

coordinate = st.floats(-100, 100)
length = st.floats(1e-3, 100)
boxes = st.builds(lambda x, y, w, h: Box(x, y, x + w, y + h), coordinate, coordinate, length, length)


@given(boxes, length, length)
def test_units_there_and_back(box: Box, x: float, y: float) -> None:
    there = box.scaled(x, y)
    assert there.width == pytest.approx(box.width * x, abs=1e-9)
    assert there.height == pytest.approx(box.height * y, abs=1e-9)
    assert there.scaled(1 / x, 1 / y) == pytest.approx(box, rel=1e-12)


@given(boxes, length)
def test_fitted_keeps_the_aspect_and_lies_inside(box: Box, aspect: float) -> None:
    inner = box.fitted(aspect)
    assert inner.width == pytest.approx(inner.height * aspect, rel=1e-6)
    assert inner.centre == pytest.approx(box.centre, abs=1e-9)
    assert inner.within(box) == pytest.approx(inner, abs=1e-9)
    # None larger fits: it spans the box along one side.
    assert inner.width == pytest.approx(box.width) or inner.height == pytest.approx(box.height)


@given(boxes, coordinate, coordinate)
def test_moved_and_within(box: Box, x: float, y: float) -> None:
    moved = box.moved(x, y)
    assert moved.moved(-x, -y) == pytest.approx(box, abs=1e-9)
    both = box.within(moved)
    assert both == moved.within(box)
    assert both.empty == (abs(x) >= box.width or abs(y) >= box.height) or both.width < 1e-9 or both.height < 1e-9
    if not both.empty:
        assert both.width == pytest.approx(box.width - abs(x), abs=1e-9)


def test_empty() -> None:
    nan = float("nan")
    assert not Box(0, 0, 1, 1).empty
    assert all(box.empty for box in (Box(1, 0, 1, 1), Box(0, 2, 1, 1), Box(nan, 0, 1, 1), Box(0, 0, 1, nan)))
