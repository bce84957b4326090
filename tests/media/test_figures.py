"""Overlays and contact sheets: what is drawn where, and that captions fit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxpa.media import figures

quick = settings(max_examples=40, deadline=None)


def test_overlay_tints_the_cells_of_the_mask() -> None:
    chosen = np.zeros((6, 4), bool)
    chosen[2:5, 1:3] = True
    for factor in (1, 16):
        picture = Image.new("RGB", (40 * factor, 60 * factor), (90, 160, 90))
        drawn = figures.overlay(picture, chosen.ravel(), 6, 4, (250, 0, 0))
        assert drawn.width * 60 == drawn.height * 40
        assert max(drawn.size) >= max(picture.size)
        middles = np.asarray(drawn.resize((4 * 9, 6 * 9), Image.Resampling.BOX), int)[4::9, 4::9]
        np.testing.assert_array_equal(middles[..., 0] > middles[..., 1], chosen)
        outlined = (np.asarray(drawn) == (250, 0, 0)).all(-1)
        cell = drawn.width / 4
        ys, xs = np.nonzero(outlined)
        thick = round(max(drawn.size) / 110)
        assert outlined.sum() == cell * cell * 2 * 3 - (2 * cell - 2 * thick) * (3 * cell - 2 * thick)
        assert (np.asarray(drawn)[0, 0] < 255).all()  # no frame around the picture
        assert (xs.min() / cell, (xs.max() + 1) / cell) == (1, 3)
        assert (ys.min() / cell, (ys.max() + 1) / cell) == (2, 5)
    full = figures.overlay(Image.new("L", (501, 333)), np.ones(35, bool), 7, 5)
    assert full.size == (1002, 666)
    assert {full.getpixel(at) for at in ((0, 0), (1001, 0), (0, 665), (500, 665))} == {figures.MAGENTA}


def test_large_pictures_give_figures_of_bounded_size() -> None:
    chosen = np.arange(16) % 3 == 0
    large = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)).resize((3200, 2400))
    drawn = figures.overlay(large, chosen, 4, 4)
    assert drawn.size == (figures.MOST, figures.MOST * 3 // 4)
    # What is drawn is the picture reduced first.
    small = figures.overlay(large.resize(drawn.size, Image.Resampling.LANCZOS), chosen, 4, 4)
    np.testing.assert_array_equal(np.asarray(drawn), np.asarray(small))
    grey = large.convert("L")
    assert figures.sheet([[("", grey)]]).size == figures.sheet([[("", grey.convert("RGB"))]]).size
    np.testing.assert_array_equal(
        np.asarray(figures.sheet([[("", grey)]])), np.asarray(figures.sheet([[("", grey.convert("RGB"))]]))
    )


def test_sheet() -> None:
    red, wide = Image.new("RGB", (96, 96), (255, 0, 0)), Image.new("RGBA", (300, 100), (0, 0, 255, 255))
    drawn = figures.sheet([[("reference", red), ("", red)], [], [("x " * 500, wide)]])
    pixels = np.asarray(drawn)
    assert (pixels[0] == 255).all()
    assert (pixels[:, 0] == 255).all()
    reds = (pixels == (255, 0, 0)).all(-1).sum()
    assert abs(reds - 2 * 286**2) < 10  # two of 288 x 288 without their frames
    assert (pixels == (0, 0, 255)).all(-1).sum() > 3 * 280**2
    plain = figures.sheet([[("", red)]])
    assert plain.width == plain.height
    assert figures.sheet([[("caption", red)]]).height > plain.height
    with pytest.raises(ValueError, match="needs a picture"):
        figures.sheet([[]])


@quick
@given(st.text(max_size=300), st.integers(40, 400))
def test_captions_fit(text: str, width: int) -> None:
    font = figures.Style.of(288).font
    lines = figures._caption(text, font, width)
    assert len(lines) <= figures.MAX_LINES
    assert all(line.isascii() and font.getlength(line) <= width for line, _ in lines)


def test_caption_lines() -> None:
    font = figures.Style.of(288).font
    assert figures._caption("result\ntau ≥ 0.6, été", font, 300) == [
        ("result", figures.INK), ("tau >= 0.6, ete", figures.GREY)
    ]  # fmt: skip
    assert figures._caption("word " * 99, font, 100)[-1][0].endswith("word...")
    assert figures._caption("unbreakable" * 9, font, 100)[0][0].endswith("...")
    assert figures._caption(" \n ", font, 100) == []
