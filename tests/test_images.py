"""Pictures, masks, sheets and their files, against closed forms, brute force and round trips."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, PngImagePlugin

from jaxpa import figures, images, masks, tokens
from jaxpa.errors import JaxpaError

RNG = np.random.default_rng(0)
quick = settings(max_examples=40, deadline=None)
sizes = st.integers(1, 40)


def noise(height: int = 20, width: int = 30, channels: int = 3) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, channels), dtype=np.uint8)


def disc(height: int = 40, width: int = 60) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return (np.hypot(y - 18, x - 20) < 11).astype(np.float32)


def message(error: pytest.ExceptionInfo[JaxpaError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


# --- reading a picture


def test_read_image_from_anything(tmp_path: Path) -> None:
    pixels = noise()
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(pixels), pixels):
        image = images.read_image(source)
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), pixels)


def test_read_image_is_over_white() -> None:
    colour, alpha = noise(), noise(channels=1)
    expected = colour * (alpha / 255) + 255 * (1 - alpha / 255)
    got = np.asarray(images.read_image(np.concatenate([colour, alpha], -1)), np.float64)
    np.testing.assert_allclose(got, expected, atol=1.01)  # Pillow rounds twice
    grey = Image.merge("LA", [Image.new("L", (3, 2), 0), Image.new("L", (3, 2), 0)])
    assert np.asarray(images.read_image(grey)).min() == 255
    paletted = Image.new("P", (3, 2), 0)
    paletted.info["transparency"] = 0
    assert np.asarray(images.read_image(paletted)).min() == 255


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV"])
def test_read_image_of_every_mode(mode: str) -> None:
    image = Image.fromarray(noise()).convert(mode)
    np.testing.assert_array_equal(np.asarray(images.read_image(image)), np.asarray(image.convert("RGB")))


def test_read_image_scales_deep_pictures() -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for deep in (grey.astype(np.uint16) * 257, grey.astype(np.int32) * 257, grey.astype(np.float32) / 255):
        np.testing.assert_array_equal(np.asarray(images.read_image(Image.fromarray(deep)))[..., 1], grey)


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, 1), (8, 3)])
def test_exif_orientation(tmp_path: Path, orientation: int, turns: int) -> None:
    """A camera stores what it saw turned by so many quarters, and says so."""
    pixels = noise()
    light = pixels[..., 0] > 128
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(np.rot90(pixels, turns).copy()).save(tmp_path / "a.png", exif=exif)
    Image.fromarray(np.rot90(light, turns).copy()).convert("L").save(tmp_path / "m.png", exif=exif)
    np.testing.assert_array_equal(np.asarray(images.read_image(tmp_path / "a.png")), pixels)
    np.testing.assert_array_equal(images.read_mask(tmp_path / "m.png", (30, 20)), light)


def test_unreadable_pictures(tmp_path: Path) -> None:
    good = tmp_path / "good.png"
    Image.fromarray(noise(200, 200)).save(good)
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "empty.png").touch()
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:-2000])
    Image.fromarray(noise(200, 200)).save(tmp_path / "good.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "good.jpg").read_bytes()[:-2000])
    for name, reason in {
        "none.png": "no such file",
        ".": "a folder",
        "text.png": "not a picture",
        "empty.png": "not a picture",
        "cut.png": "cut short or damaged",
        "cut.jpg": "cut short or damaged",
        "good.png/a.png": "cannot be read",
    }.items():
        for read in (images.read_image, images.read_mask, images.alpha_mask, images.read_metadata):
            with pytest.raises(JaxpaError) as error:
                read(tmp_path / name)
            assert message(error).startswith(f"{tmp_path / name}: {reason}")
            assert ": " in message(error).removeprefix(f"{tmp_path / name}: ")  # what to do


def test_a_picture_of_too_many_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(noise()).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(JaxpaError, match=r"a\.png: more than 200 pixels: scale it down"):
        images.read_image(tmp_path / "a.png")


@pytest.mark.parametrize("array", [np.zeros((4, 4, 3)), np.zeros((4, 4, 2), np.uint8), np.zeros((0, 4, 3), np.uint8)])
def test_arrays_that_are_no_picture(array: np.ndarray) -> None:
    with pytest.raises(JaxpaError, match="the picture is an array"):
        images.read_image(array)


# --- reading a mask


def test_read_mask_of_every_mode(tmp_path: Path) -> None:
    grey = np.arange(0, 256, dtype=np.uint8).reshape(16, 16)
    pictures = {
        "L": Image.fromarray(grey),
        "RGB": Image.fromarray(grey).convert("RGB"),
        "P": Image.fromarray(grey).convert("P"),
        "I;16": Image.fromarray(grey.astype(np.uint16) * 257),
        "I": Image.fromarray(grey.astype(np.int32) * 257),
        "F": Image.fromarray(grey.astype(np.float32) / 255),
    }
    for mode, picture in pictures.items():
        assert picture.mode == mode
        mask = images.read_mask(picture)
        assert mask.dtype == np.float32
        np.testing.assert_allclose(mask, grey / 255, atol=1e-6, err_msg=mode)
    pictures["I;16"].save(tmp_path / "deep.png")
    np.testing.assert_allclose(images.read_mask(tmp_path / "deep.png"), grey / 255, atol=1e-6)
    one_bit = images.read_mask(Image.fromarray(grey > 99))
    np.testing.assert_array_equal(one_bit, grey > 99)


@pytest.mark.parametrize(
    ("kind", "most"),
    [("bool", 1), ("uint8", 255), (">u2", 65535), ("int64", 1), ("int64", 255), ("float16", 1), ("float64", 1.0001)],
)
def test_read_mask_of_arrays(kind: str, most: float) -> None:
    mask = (disc() * most).astype(kind)
    np.testing.assert_array_equal(images.read_mask(mask), disc())
    np.testing.assert_array_equal(images.read_mask(mask[..., None]), disc())


def test_alpha_counts_where_it_differs(tmp_path: Path) -> None:
    alpha = (disc() * 255).astype(np.uint8)
    white = np.full((40, 60, 3), 255, np.uint8)
    picture = np.concatenate([white, alpha[..., None]], -1)
    np.testing.assert_array_equal(images.read_mask(picture), disc())
    np.testing.assert_array_equal(images.alpha_mask(picture), disc())
    opaque = np.concatenate([np.repeat(alpha[..., None], 3, -1), white[..., :1]], -1)
    np.testing.assert_array_equal(images.read_mask(opaque), disc())
    assert images.alpha_mask(opaque) is None
    assert images.alpha_mask(white) is None
    assert images.alpha_mask(Image.fromarray(disc())) is None
    paletted = Image.fromarray(alpha // 255).convert("P")
    paletted.save(tmp_path / "p.png", transparency=0)
    np.testing.assert_array_equal(images.read_mask(tmp_path / "p.png"), disc())
    Image.fromarray(255 - alpha).save(tmp_path / "l.png", transparency=255)  # one grey level is transparent
    np.testing.assert_array_equal(images.alpha_mask(tmp_path / "l.png"), disc())


def test_bad_masks(tmp_path: Path) -> None:
    images.read_mask(disc(), (600, 400))
    images.read_mask(disc(), (611, 400))  # 1.8% off: a rounded size
    path = tmp_path / "m.png"
    Image.fromarray(disc() > 0).save(path)
    with pytest.raises(JaxpaError) as error:
        images.read_mask(path, (40, 60))
    assert message(error).startswith(f"{path} is 60 x 40 pixels, its picture 40 x 60: draw the mask")
    with pytest.raises(JaxpaError, match="its picture 613 x 400"):
        images.read_mask(disc(), (613, 400))
    Image.new("L", (60, 40), 127).save(path)
    with pytest.raises(JaxpaError, match=r"m\.png is empty, its brightest spot is 0\.5 of 1: make"):
        images.read_mask(path)
    for bad in (np.full((2, 2), np.nan), np.full((2, 2), -1), np.full((2, 2), 1j), np.zeros((0, 2))):
        with pytest.raises(JaxpaError, match=r"the mask has values that are no numbers from 0 up: give"):
            images.read_mask(bad)


# --- masks from shapes


@quick
@given(st.lists(st.floats(0, 1), min_size=4, max_size=4, unique=True), sizes, sizes)
def test_box_mask_has_the_box_s_area_and_middle(corners: list[float], width: int, height: int) -> None:
    left, right = sorted(corners[:2])
    top, bottom = sorted(corners[2:])
    mask = masks.box_mask((left, top, right, bottom), (width, height))
    assert mask.shape == (height, width)
    assert mask.sum() == pytest.approx((right - left) * (bottom - top) * width * height, abs=1e-3)
    # A polygon's rows are cut along SCANLINES lines, so that its top and bottom are off by half a line at most.
    polygon = masks.polygon_mask([(left, top), (right, top), (right, bottom), (left, bottom)], (width, height))
    np.testing.assert_allclose(polygon, mask, atol=1.01 / masks.SCANLINES)


def test_polygon_mask() -> None:
    triangle = [(0.1, 0.2), (0.9, 0.35), (0.3, 0.95)]
    mask = masks.polygon_mask(triangle, (200, 100))
    (ax, ay), (bx, by), (cx, cy) = triangle
    area = abs((bx - ax) * (cy - ay) - (cx - ax) * (by - ay)) / 2 * 200 * 100
    assert mask.sum() == pytest.approx(area, rel=1e-4)
    y, x = (np.mgrid[:100, :200] + 0.5) / np.array([100, 200])[:, None, None]
    # A pixel more than its own diagonal inside or outside all edges is 1 or 0.
    edges = [((x - px) * (qy - py) - (y - py) * (qx - px)) / np.hypot(qx - px, qy - py)
             for (px, py), (qx, qy) in zip(triangle, triangle[1:] + triangle[:1], strict=True)]  # fmt: skip
    far = np.max(edges, axis=0)
    assert (mask[far < -0.01] == 1).all()
    assert (mask[far > 0.01] == 0).all()
    star = masks.polygon_mask([(0.5, 0), (0.8, 1), (0, 0.4), (1, 0.4), (0.2, 1)], (101, 101))
    assert star[55, 50] == 0  # even-odd: its heart is outside
    assert star[20, 50] == 1


def test_bad_shapes() -> None:
    for box, reason in {
        (0, 0, 1): "needs four numbers",
        (0.5, 0, 0.5, 1): r"is empty: .*left < right",
        (0, 0, 300, 200): "leaves the picture: give fractions",
        (0, 0, 1, float("nan")): "leaves the picture",
    }.items():
        with pytest.raises(JaxpaError, match=reason):
            masks.box_mask(box, (4, 4))
    with pytest.raises(JaxpaError, match="give three points"):
        masks.polygon_mask([(0, 0), (1, 1)], (4, 4))
    with pytest.raises(JaxpaError, match="leaves the picture"):
        masks.polygon_mask([(0, 0), (1, 1), (0, -0.1)], (4, 4))


def far_from(region: np.ndarray) -> np.ndarray:
    """The distance to the nearest pixel of a region, pixel by pixel."""
    here, there = np.argwhere(np.ones_like(region)), np.argwhere(region)
    return np.linalg.norm(here[:, None] - there, axis=-1).min(1).reshape(region.shape)


@quick
@given(st.integers(0, 2**31), st.floats(0, 6), sizes, sizes)
def test_grow_shrink_feather(seed: int, pixels: float, height: int, width: int) -> None:
    region = np.random.default_rng(seed).uniform(size=(height // 3 + 1, width // 3 + 1)) < 0.3
    region[0, 0] = True
    mask = region.astype(np.float32)
    np.testing.assert_array_equal(masks.grow(mask, pixels), far_from(region) <= pixels)
    np.testing.assert_array_equal(masks.shrink(mask, pixels), 1 - masks.grow(1 - mask, pixels))
    soft = masks.feather(mask, pixels)
    np.testing.assert_array_equal(soft > 0.5, region)
    assert (soft[far_from(region) >= pixels + 0.5] == 0).all()
    assert (soft[masks.shrink(mask, pixels + 0.5) > 0] == 1).all()
    np.testing.assert_allclose(soft + masks.feather(1 - mask, pixels), 1, atol=1e-6)


def test_masks_of_one_value_and_bad_widths() -> None:
    full, empty = np.ones((3, 4), np.float32), np.zeros((3, 4), np.float32)
    for change in (masks.grow, masks.shrink, masks.feather):
        np.testing.assert_array_equal(change(full, 2), full)
        np.testing.assert_array_equal(change(empty, 2), empty)
        with pytest.raises(JaxpaError, match=f"cannot {change.__name__} a mask by -1 pixels: give 0 or more"):
            change(full, -1)


def test_feather_is_a_ramp() -> None:
    mask = np.repeat([[0, 0, 0, 0, 1, 1, 1, 1]], 3, 0)
    np.testing.assert_allclose(masks.feather(mask, 2)[1], [0, 0, 1 / 8, 3 / 8, 5 / 8, 7 / 8, 1, 1], atol=1e-6)


# --- boxes


@quick
@given(st.tuples(sizes, sizes), sizes, sizes, st.integers(0, 2**31))
def test_crop_box(size: tuple[int, int], height: int, width: int, seed: int) -> None:
    box = masks.crop_box(size, height, width)
    w, h = box[2] - box[0], box[3] - box[1]
    assert 0 <= box[0] < box[2] <= size[0]
    assert 0 <= box[1] < box[3] <= size[1]
    assert w == size[0] or h == size[1]  # none larger fits
    assert abs(w - h * width / height) <= 0.5 or abs(h - w * height / width) <= 0.5 or 1 in (w, h)
    assert abs(box[0] - (size[0] - box[2])) <= 1
    assert abs(box[1] - (size[1] - box[3])) <= 1

    rng = np.random.default_rng(seed)
    focus = np.zeros(size[::-1])
    top, left = rng.integers(size[1]), rng.integers(size[0])
    focus[top : top + rng.integers(1, 9), left : left + rng.integers(1, 9)] = 1
    moved = masks.crop_box(size, height, width, focus)
    assert (moved[2] - moved[0], moved[3] - moved[1]) == (w, h)
    shown = [focus[y : y + h, x : x + w].sum() for y in range(size[1] - h + 1) for x in range(size[0] - w + 1)]
    assert focus[moved[1] : moved[3], moved[0] : moved[2]].sum() == max(shown)


def test_crop_box_is_centred_on_its_focus() -> None:
    focus = np.zeros((50, 100))  # at half the picture's resolution
    focus[20:30, 60:70] = 1
    assert masks.crop_box((200, 100), 64, 64, focus) == (80, 0, 180, 100)
    assert masks.crop_box((200, 100), 64, 64, np.roll(focus, 30, 1)) == (100, 0, 200, 100)
    assert masks.crop_box((200, 100), 64, 64, focus * 0) == masks.crop_box((200, 100), 64, 64) == (50, 0, 150, 100)
    assert masks.crop_box((100, 200), 32, 64) == (0, 75, 100, 125)


# --- arrays


def test_pictures_survive_arrays() -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, -1)
    array = images.to_array(Image.fromarray(pixels), 16, 16)
    assert array.dtype == np.float32
    assert (array.min(), array.max()) == (-1, 1)
    np.testing.assert_array_equal(np.asarray(images.to_image(array)), pixels)
    np.testing.assert_array_equal(np.asarray(images.to_image(jnp.asarray(array, jnp.bfloat16)).size), (16, 16))
    clipped = np.asarray(images.to_image(np.array([[[-3, 0.002, 9]]])))
    assert clipped.tolist() == [[[0, 128, 255]]]
    with pytest.raises(JaxpaError, match="not finite"):
        images.to_image(np.full((1, 1, 3), np.nan))


def test_to_array_crops() -> None:
    pixels = noise()
    array = images.to_array(Image.fromarray(pixels), 10, 12, box=(5, 4, 17, 14))
    np.testing.assert_array_equal(array, pixels[4:14, 5:17].astype(np.float32) / 127.5 - 1)
    assert images.to_array(Image.fromarray(noise(channels=4)), 7, 9).shape == (7, 9, 3)


def cover_by_hand(mask: np.ndarray, h: int, w: int) -> np.ndarray:
    """Area shares by making both grids parts of one finer grid."""
    fine = mask.repeat(h, 0).repeat(w, 1)
    return fine.reshape(h, mask.shape[0], w, mask.shape[1]).mean((1, 3))


@quick
@given(st.integers(0, 2**31), sizes, sizes, st.integers(1, 12), st.integers(1, 12), st.sampled_from([0.25, 0.5, 1.0]))
def test_token_mask(seed: int, height: int, width: int, h: int, w: int, threshold: float) -> None:
    mask = (np.random.default_rng(seed).uniform(size=(height, width)) < 0.6).astype(np.float64)
    cover = cover_by_hand(mask, h, w)
    if height > h or width > w:
        np.testing.assert_allclose(masks.resize_mask(mask, h, w), cover, atol=1e-6)
    if not (cover >= threshold - 1e-9).any():
        with pytest.raises(JaxpaError, match=r"covers no token|is empty in the part"):
            masks.token_mask(mask, h, w, threshold)
        return
    np.testing.assert_array_equal(masks.token_mask(mask, h, w, threshold), (cover >= threshold - 1e-9).ravel())


def test_token_mask_agrees_with_tokens_coverage() -> None:
    mask = RNG.uniform(size=(60, 84)).astype(np.float32)
    ours = masks.resize_mask(mask, 12, 7).ravel()
    np.testing.assert_allclose(ours, tokens.coverage(jnp.asarray(mask), 12, 7), atol=1e-6)
    whole = (mask > 0.5).astype(np.float32)  # every other token is a tie or near one
    for threshold in (0.4, 0.5, 0.6):
        chosen = np.asarray(tokens.coverage(jnp.asarray(whole), 12, 7)) >= np.float32(threshold)
        np.testing.assert_array_equal(masks.token_mask(whole, 12, 7, threshold), chosen)


def test_token_mask_does_not_care_for_resolution_or_type() -> None:
    small = RNG.uniform(size=(9, 12)) < 0.5
    large = small.repeat(35, 0).repeat(35, 1)
    expected = masks.token_mask(small, 6, 4)
    for mask in (large, large.astype(np.uint8) * 255, large.astype(np.float32)):
        np.testing.assert_array_equal(masks.token_mask(mask, 6, 4), expected)


def test_boxes_count_in_pixels_of_the_picture() -> None:
    mask, size, box = disc(40, 60), (120, 80), (30, 0, 110, 80)
    np.testing.assert_array_equal(
        masks.token_mask(mask, 8, 8, box=box, size=size), masks.token_mask(mask[:, 15:55], 8, 8)
    )
    np.testing.assert_allclose(
        masks.resize_mask(mask, 20, 20, box, size), masks.resize_mask(mask[:, 15:55], 20, 20), atol=1e-6
    )
    with pytest.raises(ValueError, match="name the `size`"):
        masks.token_mask(mask, 8, 8, box=box)


def test_resize_mask_up_is_smooth_and_same_is_same() -> None:
    mask = disc()
    np.testing.assert_array_equal(masks.resize_mask(mask, 40, 60), mask)
    large = masks.resize_mask(mask, 160, 240)
    assert large.dtype == np.float32
    assert len(np.unique(large)) > 2
    np.testing.assert_allclose(large.mean(), mask.mean(), atol=1e-3)


def test_token_mask_errors() -> None:
    dot = np.zeros((40, 40))
    dot[0, :5] = 1
    with pytest.raises(JaxpaError) as error:
        masks.token_mask(dot, 4, 4)
    assert message(error) == (
        "the mask covers no token to 0.5 or more (at most 0.05, on 4 x 4 tokens): "
        "lower the threshold or make the mask larger"
    )
    assert masks.token_mask(dot, 4, 4, threshold=0.05).sum() == 1
    with pytest.raises(JaxpaError, match="is empty in the part of the picture"):
        masks.token_mask(dot, 4, 4, box=(0, 20, 40, 40))
    for threshold in (0, 1.1, float("nan")):
        with pytest.raises(JaxpaError, match="not above 0 and at most 1"):
            masks.token_mask(dot, 4, 4, threshold)


# --- files

METADATA = {
    "prompt": 'a "red" car, été, 猫\n',
    "seed": 3,
    "tau": np.float32(0.5),
    "at": np.array([1, 2]),
    "to": Path("x"),
}
AS_READ = {"prompt": 'a "red" car, été, 猫\n', "seed": 3, "tau": 0.5, "at": [1, 2], "to": "x"}


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".JPEG", ".webp"])
def test_metadata_round_trip(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    flat = Image.new("RGB", (64, 48), (200, 30, 90))
    images.save_image(flat, path, METADATA)
    assert images.read_metadata(path) == AS_READ
    np.testing.assert_allclose(np.asarray(images.read_image(path), int), np.asarray(flat, int), atol=3)  # lossy
    images.save_image(flat, str(path))
    assert images.read_metadata(path) is None
    assert os.listdir(tmp_path) == [path.name]
    images.save_image(Image.new("RGBA", (64, 48), (0, 0, 0, 0)), path)
    assert np.asarray(images.read_image(path)).min() == 255


def test_png_is_exact_and_others_comments_are_not_ours(tmp_path: Path) -> None:
    picture = Image.fromarray(noise())
    images.save_image(picture, tmp_path / "a.png", {})
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), np.asarray(picture))
    assert images.read_metadata(tmp_path / "a.png") == {}
    assert json.loads(Image.open(tmp_path / "a.png").info["jaxpa"]) == {}
    info = PngImagePlugin.PngInfo()
    info.add_text("jaxpa", "[1")
    picture.save(tmp_path / "a.png", pnginfo=info)
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0by hand"
    picture.save(tmp_path / "a.jpg", exif=exif)
    assert images.read_metadata(tmp_path / "a.png") is images.read_metadata(tmp_path / "a.jpg") is None


def test_save_replaces_and_a_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    images.save_image(Image.new("RGB", (4, 4), "red"), path)
    before = path.read_bytes()
    umask = os.umask(0o022)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask

    def full(self: Image.Image, file: object, *_: object, **__: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise OSError("disk\nfull")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(JaxpaError) as error:
        images.save_image(Image.new("RGB", (4, 4), "blue"), path)
    assert message(error) == f"{path} could not be written: disk full"
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.png"]


def test_check_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert images.check_output(tmp_path / "a.WebP") == tmp_path / "a.WebP"
    assert images.check_output("a.jpg") == Path("a.jpg")
    (tmp_path / "folder.png").mkdir()
    for name, reason in {
        "folder.png": "is a folder: name a file",
        "none/a.png": r"none does not exist: create it",
        "a.gif": r"pictures are written as \.png, \.jpg, \.jpeg, \.webp, not \.gif",
        "a": "not without a suffix",
    }.items():
        for write in (images.check_output, lambda path: images.save_image(Image.new("RGB", (1, 1)), path)):
            with pytest.raises(JaxpaError, match=reason) as error:
                write(tmp_path / name)
            assert message(error).startswith(str(tmp_path / name))
    monkeypatch.setattr(os, "access", lambda *_: False)  # whoever runs this may be root, who may write anywhere
    with pytest.raises(JaxpaError, match="cannot be written to: name another"):
        images.check_output(tmp_path / "a.png")


# --- figures


def test_overlay_tints_the_cells_of_the_mask() -> None:
    chosen = np.zeros((6, 4), bool)
    chosen[2:5, 1:3] = True
    for factor in (1, 16):
        picture = Image.new("RGB", (40 * factor, 60 * factor), (90, 160, 90))
        drawn = images.overlay(picture, chosen.ravel(), 6, 4, (250, 0, 0))
        assert drawn.width * 60 == drawn.height * 40
        assert max(drawn.size) >= max(picture.size)
        middles = np.asarray(drawn.resize((4 * 9, 6 * 9), Image.Resampling.BOX), int)[4::9, 4::9]
        np.testing.assert_array_equal(middles[..., 0] > middles[..., 1], chosen)
        outlined = (np.asarray(drawn) == (250, 0, 0)).all(-1)
        cell = drawn.width / 4
        ys, xs = np.nonzero(outlined)
        assert (xs.min() / cell, (xs.max() + 1) / cell) == (1, 3)
        assert (ys.min() / cell, (ys.max() + 1) / cell) == (2, 5)
    assert images.overlay(Image.new("L", (501, 333)), np.ones(35, bool), 7, 5).size == (1002, 666)


def test_sheet() -> None:
    red, wide = Image.new("RGB", (96, 96), (255, 0, 0)), Image.new("RGBA", (300, 100), (0, 0, 255, 255))
    drawn = images.sheet([[("reference", red), ("", red)], [], [("x " * 500, wide)]])
    pixels = np.asarray(drawn)
    assert (pixels[0] == 255).all()
    assert (pixels[:, 0] == 255).all()
    reds = (pixels == (255, 0, 0)).all(-1).sum()
    assert abs(reds - 2 * 286**2) < 10  # two of 288 x 288 without their frames
    assert (pixels == (0, 0, 255)).all(-1).sum() > 3 * 280**2
    plain = images.sheet([[("", red)]])
    assert plain.width == plain.height
    assert images.sheet([[("caption", red)]]).height > plain.height
    with pytest.raises(ValueError, match="needs a picture"):
        images.sheet([[]])


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


def test_pictures_need_no_jax() -> None:
    code = "import sys, jaxpa.images; sys.exit('jax' in sys.modules)"  # so that bad input is told at once
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(images.__file__).parents[1])
