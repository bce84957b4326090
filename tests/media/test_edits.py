"""Edits: what is kept comes back, and only whole tokens of it replace."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_images import noise

from jaxpa.config import FluxConfig, Settings
from jaxpa.errors import JaxpaError
from jaxpa.media import masks
from jaxpa.media.edits import pad_picture, prepare_edit
from jaxpa.media.images import to_image
from jaxpa.request.prepare import prepare
from jaxpa.request.request import Request
from jaxpa.request.spec import Spec


def test_what_is_kept_comes_back() -> None:
    picture, change = Image.fromarray(noise(96, 96)), np.zeros((96, 96), np.float32)
    change[20:50, 30:66] = 1
    edit = prepare_edit(picture, change, (96, 96), "a caption")
    made = Image.fromarray(noise(96, 96))
    got = np.asarray(edit.paste(made))
    np.testing.assert_array_equal(got, np.where(change[..., None] > 0, np.asarray(made), np.asarray(picture)))
    soft = np.asarray(edit.paste(made, feather=3))
    far = masks.grow(change, 4) == 0
    np.testing.assert_array_equal(soft[far], np.asarray(picture)[far])
    references = edit.references(8)
    touched = change.reshape(12, 8, 12, 8).any((1, 3)).ravel()
    np.testing.assert_array_equal(references.masks[0], ~touched)
    np.testing.assert_array_equal(np.asarray(references.where.source)[0, 0], np.arange(144))
    assert references.captions == ("a caption",)
    for bad, reason in (
        (np.zeros_like(change), "nothing to draw on"),
        (np.ones_like(change), "nothing of the picture"),
    ):
        with pytest.raises(JaxpaError, match=reason):
            prepare_edit(picture, bad, (96, 96))


SPEC = Spec(FluxConfig(), Settings(size=96))


@pytest.mark.parametrize(
    ("size", "own", "canvas", "scale"),
    [
        ((96, 96), (96, 96), (96, 96), 1),  # as it is
        ((96, 96), (48, 96), (96, 96), 1),  # tokens are added to it
        ((144, 96), (96, 96), (96, 144), 1),
        ((480, 384), (384, 384), (96, 120), 0.25),  # reduced to the checkpoint's scale, and then added to
        ((100, 90), (100, 90), (96, 104), 1),  # off the grid of tokens: its edge goes on to the next token
        ((48, 48), (24, 48), (96, 96), 2),  # enlarged
        ((1184, 1184), (384, 384), (136, 136), 136 / 1184),  # at most twice the checkpoint's area
    ],
)
def test_the_canvas_of_an_edit(size, own, canvas, scale) -> None:
    cell = SPEC.cell
    assert cell == 16
    spec = replace(SPEC, settings=Settings(size=96 * cell // 8))
    size, own = (tuple(side * cell // 8 for side in each) for each in (size, own))
    got, factor = spec.edit_canvas(size, own)
    assert [side * 8 / cell for side in got] == list(canvas)
    assert factor == pytest.approx(scale)
    assert got[0] / factor >= size[1]
    assert got[1] / factor >= size[0]


@pytest.mark.parametrize(("size", "canvas"), [((100, 90), (96, 104)), ((384, 384), (96, 96)), ((40, 60), (120, 80))])
def test_an_edit_has_the_pictures_own_pixels(size, canvas) -> None:
    """Whatever the canvas: what is kept is exact, what is new is the made picture, scaled; in between, a ramp."""
    picture, change = Image.fromarray(noise(*size[::-1])), np.zeros(size[::-1], np.float32)
    change[: size[1] // 2, : size[0] // 3] = 1
    scale = min(canvas[1] / size[0], canvas[0] / size[1])
    edit = prepare_edit(picture, change, canvas, "", scale)
    assert edit.canvas == canvas
    assert edit.scale == pytest.approx(scale)
    made = Image.fromarray(np.full((*canvas, 3), 9, np.uint8))
    got = np.asarray(edit.paste(made, 0))
    np.testing.assert_array_equal(got, np.where(change[..., None] > 0, 9, np.asarray(picture)))
    blended = np.asarray(edit.paste(made, None, 8))  # half a token of the canvas, in pixels of the picture
    width = 4 / scale
    near, far = masks.grow(change, 1.01) > change, masks.grow(change, width + 0.5) == 0
    np.testing.assert_array_equal(blended[far], np.asarray(picture)[far])
    np.testing.assert_array_equal(blended[change > 0], 9)
    share = 1 - 0.5 / width
    want = (1 - share) * np.asarray(picture, float) + share * 9
    np.testing.assert_allclose(blended[near], want[near], atol=0.51)
    if scale == 1:  # pixel by pixel
        np.testing.assert_allclose((edit.picture[: size[1], : size[0]] + 1) * 127.5, np.asarray(picture), atol=1e-4)
        np.testing.assert_array_equal(edit.change[: size[1], : size[0]], change)


def test_a_made_picture_is_pasted_where_it_belongs() -> None:
    """The canvas itself comes back: its own reduced picture, enlarged, is near the original."""
    smooth = Image.fromarray(noise(6, 8)).resize((320, 240), Image.Resampling.BICUBIC)
    change = np.zeros((240, 320), np.float32)
    change[60:, 100:] = 1
    edit = prepare_edit(smooth, change, (80, 112), "", 80 / 240)
    got = np.asarray(edit.paste(to_image(edit.picture), 0), float)
    assert np.abs(got - np.asarray(smooth, float))[change > 0].mean() < 1


def test_a_control_picture_lies_over_the_picture() -> None:
    """At any size of its own: what it shows in the middle of the picture is in the middle of that on the canvas."""
    picture, control = Image.fromarray(noise(100, 90)), np.zeros((200, 180, 3), np.uint8)
    control[100:, 90:] = 255
    mask = np.zeros((100, 90), np.uint8)
    mask[:30] = 255
    spec = replace(SPEC, settings=Settings(size=96))
    request = Request.of("x", image=picture, mask=mask, control=control)
    edit: Any = prepare(request, spec)
    x, y = (round(side / 2 * edit.scale) for side in (90, 100))
    assert (edit.control[y + 3 :, x + 3 :] > 0.9).all()
    assert (edit.control[: y - 3] < -0.9).all()
    assert (edit.control[:, : x - 3] < -0.9).all()


def test_pad(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = Image.fromarray(noise(20, 30))
    wider, new = pad_picture(picture, (1, 2, 3, 4))
    assert wider.size == (36, 24)
    np.testing.assert_array_equal(np.asarray(wider)[1:21, 4:34], np.asarray(picture))
    assert new.sum() == 36 * 24 - 30 * 20
    assert not new[1:21, 4:34].any()
    nan = float("nan")
    for bad in ((0, 0, 0, 0), (1, 2, 3), (-1, 0, 0, 2), (1.5, 0, 0, 0), (nan, 1, 1, 1), ("1", 0, 0, 0)):
        with pytest.raises(JaxpaError, match="in whole pixels, 0 or more"):
            pad_picture(picture, bad)  # type: ignore[arg-type]
    with pytest.raises(JaxpaError, match="out of range for a picture of 30 x 20"):
        pad_picture(picture, (241, 0, 0, 0))
    monkeypatch.setenv("JAXPA_MAX_PIXELS", "1000")
    with pytest.raises(JaxpaError, match="1,000 pixels in all"):
        pad_picture(picture, (0, 30, 0, 0))
