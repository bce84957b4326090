"""Edits: what is kept comes back, and only whole tokens of it replace."""

import numpy as np
import pytest
from PIL import Image
from test_images import noise

from jaxpa.errors import JaxpaError
from jaxpa.media import masks
from jaxpa.media.edits import pad_picture, prepare_edit


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
