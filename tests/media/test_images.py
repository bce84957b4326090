"""Pictures, mask pictures and their files: every mode, every fault, round trips."""

import json
import os
import stat
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import ExifTags, Image, ImageFile, PngImagePlugin

from jaxpa.errors import JaxpaError
from jaxpa.media import images

RNG = np.random.default_rng(0)


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
    monkeypatch.setattr(images, "MAX_PIXELS", 599)
    with pytest.raises(JaxpaError, match=r"a\.png: 30 x 20 pixels are more than 599: .* raise JAXPA_MAX_PIXELS"):
        images.read_image(tmp_path / "a.png")
    monkeypatch.setenv("JAXPA_MAX_PIXELS", "600")
    assert images.read_image(tmp_path / "a.png").size == (30, 20)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow's own limit does not count, and stays as it was
    assert images.read_image(tmp_path / "a.png").size == (30, 20)
    assert Image.MAX_IMAGE_PIXELS == 100
    for bad in ("many", "-1", "0", "1e9"):
        monkeypatch.setenv("JAXPA_MAX_PIXELS", bad)
        with pytest.raises(JaxpaError, match=r"JAXPA_MAX_PIXELS='.*' must be a number of pixels"):
            images.read_image(tmp_path / "a.png")


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    """A header of 60,000 x 60,000 pixels in a few bytes: 10 GiB if it were believed."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    header = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    data = b"IDAT" + zlib.compress(b"\0" * 1000)
    (tmp_path / "a.png").write_bytes(
        header + struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
    )
    with pytest.raises(JaxpaError, match="60000 x 60000 pixels are more than 200,000,000"):
        images.read_image(tmp_path / "a.png")


# What Pillow hands to Ghostscript, whatever the file is called.
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"


def test_only_named_formats_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(EPS)
    assert Image.open(tmp_path / "a.png").format == "EPS"
    monkeypatch.setattr(subprocess, "check_call", lambda *_, **__: pytest.fail("another program was started"))
    with pytest.raises(JaxpaError, match=r"not a picture of a known format: .*PNG, JPEG, WEBP.* are read"):
        images.read_image(tmp_path / "a.png")
    picture = Image.fromarray(noise())
    for form in images.READ_FORMATS:
        lossless = {"JPEG2000": {"irreversible": False}, "WEBP": {"lossless": True}}.get(form, {})
        picture.save(tmp_path / "a", form, **lossless)
        got = images.read_image(tmp_path / "a")
        assert got.size == picture.size
        if form not in ("JPEG", "GIF"):
            np.testing.assert_array_equal(np.asarray(got), np.asarray(picture))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes in the file system")
def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")  # opening it would wait for a writer
    for path in (tmp_path / "pipe.png", Path("/dev/zero")):
        for read in (images.read_image, images.read_mask, images.alpha_mask, images.read_cutout, images.read_metadata):
            with pytest.raises(JaxpaError, match="cannot be read"):
                read(path)


def test_names_reach_the_terminal_as_text(tmp_path: Path) -> None:
    for name in (
        "\x1b[31mred.png",
        "new\nline.png",
        "a\u202eb.png",
        os.fsdecode(b"bytes\xff.png"),
        "nul\0.png",
        "x" * 9999,
    ):
        with pytest.raises(JaxpaError) as error:
            images.read_image(tmp_path / name)
        assert message(error).isprintable()
    for wrong in (None, 5, ["a.png"]):
        with pytest.raises(JaxpaError, match="is of the type"):
            images.read_image(wrong)  # type: ignore[arg-type]


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
    assert images.is_recorded(path)
    np.testing.assert_allclose(np.asarray(images.read_image(path), int), np.asarray(flat, int), atol=3)  # lossy
    images.save_image(flat, str(path))
    assert images.read_metadata(path) is None
    assert not images.is_recorded(path)
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
    assert not images.is_recorded(tmp_path / "a.png")
    assert not images.is_recorded(tmp_path / "a.jpg")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_who_made_a_file_is_known_without_its_pixels(tmp_path: Path, suffix: str, monkeypatch) -> None:
    """A run that goes on asks this of every picture that is there."""
    path = tmp_path / f"a{suffix}"
    images.save_image(Image.fromarray(noise()), path, METADATA)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("its pixels were read"))
    assert images.is_recorded(path)
    path.write_bytes(b"\x89PNG")
    assert not images.is_recorded(path)


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


def test_of_many_at_once_one_takes_a_fresh_name(tmp_path: Path) -> None:
    path, taken = tmp_path / "a.png", []

    def write(level: int) -> int | None:
        try:
            images.save_image(Image.new("L", (64, 64), level), path, fresh=True)
        except FileExistsError:
            taken.append(level)
            return None
        return level

    with ThreadPoolExecutor(8) as pool:
        made = [level for level in pool.map(write, range(16)) if level is not None]
    assert (len(made), len(taken)) == (1, 15)
    assert np.asarray(Image.open(path)).min() == np.asarray(Image.open(path)).max() == made[0]
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


def test_pictures_need_no_jax() -> None:
    code = "import sys, jaxpa.media.images; sys.exit('jax' in sys.modules)"  # so that bad input is told at once
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(images.__file__).parents[2])
