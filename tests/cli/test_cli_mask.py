"""`jaxpa mask`, and a subject whose mask is found by its word."""

import json

import numpy as np
import pytest
from PIL import Image

from jaxpa.media.masks import box_mask


def test_by_word(run, tmp_path, pictures):
    out = tmp_path / "mask.png"
    status, line, err = run(
        "mask", "--image", pictures / "car.png", "--word", "car", "--caption", "a car", "--out", out, "--json"
    )
    assert status == 0, err
    content = json.loads(line)
    assert (content["files"], content["figure"]) == ([str(out)], str(tmp_path / "mask-figure.png"))
    found, true = (np.asarray(Image.open(p).convert("L")) > 128 for p in (out, pictures / "car-mask.png"))
    assert found.shape == (384, 384)
    assert (found & true).sum() > 0.5 * (found | true).sum()
    assert content["covered"] == pytest.approx(found.mean(), abs=1e-3)
    assert Image.open(content["figure"]).width > 1000  # picture, map, mask, tokens


def test_drawn(run, tmp_path, pictures):
    """A box and a polygon around the same place, without loading networks; of the photograph's own size."""
    photo = ["mask", "--image", pictures / "chelsea.jpg", "--no-figure"]
    box, polygon = tmp_path / "box.png", tmp_path / "polygon.png"
    assert run(*photo, "--box", "0.25,0.2,0.75,0.8", "--out", box)[0] == 0
    corners = "0.25,0.2,0.75,0.2,0.75,0.8,0.25,0.8"
    assert run(*photo, "--polygon", corners, "--out", polygon)[0] == 0
    truth = box_mask((0.25, 0.2, 0.75, 0.8), (451, 300))
    for file in (box, polygon):
        np.testing.assert_allclose(np.asarray(Image.open(file)) / 255, truth, atol=0.07)  # a polygon's edge is sampled
    assert sorted(tmp_path.iterdir()) == [box, polygon]
    grown = tmp_path / "grown.png"
    flags = ["--grow", 8, "--shrink", 4, "--feather", 3]
    assert run(*photo, "--box", "0.25,0.2,0.75,0.8", *flags, "--out", grown)[0] == 0
    after = np.asarray(Image.open(grown))
    assert after.sum() > np.asarray(Image.open(box)).sum()
    assert len(np.unique(after)) > 3


def test_transparency(run, tmp_path, pictures):
    cut = tmp_path / "cut.png"
    mask = Image.open(pictures / "car-mask.png").convert("L")
    picture = Image.open(pictures / "car.png").convert("RGB")
    picture.putalpha(mask)
    picture.save(cut)
    assert run("mask", "--image", cut, "--out", tmp_path / "mask.png")[0] == 0
    assert np.array_equal(np.asarray(Image.open(tmp_path / "mask.png")), np.asarray(mask))


def test_personalize_by_word(run, tmp_path, pictures):
    status, _, err = run(
        "personalize", "--subject", pictures / "car.png", "--word", "car", "--prompt", "a car in a room",
        "--steps", 2, "--out", tmp_path / "car.png",
    )  # fmt: skip
    assert status == 0, err
    assert (tmp_path / "car-figure.png").exists()


BAD = {
    "a word that is not in the caption": (["--word", "mug", "--caption", "a yellow car"], "'mug' is not in '"),
    "an empty word": (["--word", ""], "word is empty"),
    "a threshold without effect": (["--box", "0,0,1,1", "--threshold", "0.3"], "--threshold would have no effect"),
    "a mesh without effect": (["--box", "0,0,1,1", "--mesh", "data=1"], "--mesh would have no effect"),
    "two ways": (["--word", "car", "--box", "0,0,1,1"], "--word and --box"),
    "a caption alone": (["--caption", "a car"], "--word"),
    "nothing": ([], "has no transparency"),
    "a box of words": (["--box", "left"], "--box 'left'"),
    "an empty box": (["--box", "0.5,0.5,0.5,0.9"], "empty"),
    "a box off the picture": (["--box", "0,0,2,1"], "leaves the picture"),
    "half a point": (["--polygon", "0,0,1,1,1"], "--polygon '0,0,1,1,1'"),
    "two points": (["--polygon", "0,0,1,1"], "three points"),
    "a threshold": (["--word", "car", "--threshold", "1.5"], "threshold"),
    "a coverage": (["--box", "0,0,1,1", "--coverage", "0"], "--coverage"),
    "growth": (["--box", "0,0,1,1", "--grow", "-3"], "--grow must be a finite number, 0 or more"),
    "a blur after a search": (["--word", "car", "--feather", "1e9"], "--feather 1e+09 is beyond the picture"),
    "growth after a search": (["--word", "car", "--grow", "-3"], "--grow must be a finite number, 0 or more, not -3"),
    "a polygon that is a line": (["--polygon", "0,0,1,1,0.5,0.5"], "the polygon covers no pixel"),
    "a box within a pixel": (["--box", "0.5,0.5,0.5001,0.5001"], "the box covers no pixel"),
    "a blur beyond the picture": (["--box", "0,0,1,0.5", "--feather", "1e9"], "--feather 1e+09 is beyond the picture"),
    "nothing left": (["--box", "0.4,0.4,0.5,0.5", "--shrink", "100"], "mask is empty"),
    "steps": (["--word", "car", "--steps", "0"], "steps must be"),
    "an output folder": (["--box", "0,0,1,1", "--out", "{t}/none/x.png"], "does not exist"),
    "a picture": (["--box", "0,0,1,1", "--image", "{t}/none.png"], "none.png"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(name, run, tmp_path, pictures, monkeypatch):
    monkeypatch.setattr("jaxpa.cli.command._load", lambda *_, **__: pytest.fail("it loads"))
    words, said = BAD[name]
    argv = [word.format(t=tmp_path) for word in words]
    argv += [] if "--out" in argv else ["--out", tmp_path / "x.png"]
    argv += [] if "--image" in argv else ["--image", pictures / "car.png"]
    status, line, err = run("mask", *argv)
    assert status == 2
    assert said in err
    assert err.count("\n") == 1, err
    assert line == ""
    assert not list(tmp_path.iterdir())


def test_a_subject_with_neither_mask_nor_word(run, tmp_path, pictures):
    out = tmp_path / "x.png"
    status, _, err = run("personalize", "--subject", pictures / "car.png", "--prompt", "a car", "--out", out)
    assert status == 2
    assert "--mask" in err
    assert "--word" in err
    assert err.count("\n") == 1
