"""Pictures of every mode and files of every kind of damage: a right result, or an error of one line."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image
from test_images import EPS, noise

from jaxpa.errors import JaxpaError
from jaxpa.media import images


def outcome(read: Callable[[Any], Any], picture: object) -> Any:
    """What a reader gives, or the JaxpaError that it raises; any other error is the test's."""
    try:
        return read(picture)
    except JaxpaError as error:
        return error


modes = st.sampled_from(["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB",
                         "I", "F", "I;16", "I;16L", "I;16B"])  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(modes, st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**31))
def test_pictures_of_every_mode(mode: str, width: int, height: int, seed: int) -> None:
    """Each is read as RGB of its size, and as a mask in [0, 1], or refused in a line."""
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, width * height * 4, dtype=np.uint8).tobytes()
    picture = Image.new(mode, (width, height))
    size = len(picture.tobytes())
    if mode == "F":
        raw = rng.uniform(0, 1, width * height).astype(np.float32).tobytes()
    picture.frombytes((raw * 2)[:size]) if mode != "I" else picture.paste(int(rng.integers(0, 2**31)), (0, 0, 1, 1))
    for read in (images.read_image, images.read_mask, images.read_cutout):
        got = outcome(read, picture)
        if isinstance(got, JaxpaError):
            assert "\n" not in str(got)
            assert mode == "LAB" or read is images.read_mask  # which may be empty
        elif isinstance(got, np.ndarray):
            assert got.dtype == np.float32
            assert got.shape == (height, width)
            assert got.min() >= 0
            assert got.max() <= 1
        else:
            image = got if isinstance(got, Image.Image) else got[0]
            assert (image.mode, image.size) == ("RGB", (width, height))


def seeds_of_files() -> dict[str, bytes]:
    """A good file of each format, one with metadata, one of 16 bits, one that is an EPS."""
    files, picture = {"EPS": EPS, "": b""}, Image.fromarray(noise(16, 16, 4))
    for form in images.READ_FORMATS:
        buffer = io.BytesIO()
        picture.convert("RGB" if form in ("JPEG", "PPM", "BMP") else "RGBA").save(buffer, form)
        files[form] = buffer.getvalue()
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    picture.convert("RGB").save(buffer, "JPEG", exif=exif)
    files["EXIF"] = buffer.getvalue()
    buffer = io.BytesIO()
    Image.fromarray(noise(8, 8, 1)[..., 0].astype(np.uint16) * 257).save(buffer, "PNG")
    files["deep"] = buffer.getvalue()
    return files


FILES = seeds_of_files()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(FILES)), st.data())
@pytest.mark.filterwarnings("ignore")  # Pillow's, about what it found
def test_hostile_files(tmp_path: Path, name: str, data: st.DataObject) -> None:
    """Bytes changed, cut out, added: a picture within the limits comes back, or an error of one line."""
    raw = bytearray(FILES[name])
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(raw)))
        kind = data.draw(st.sampled_from(["change", "cut", "add", "end"]))
        if kind == "change" and at < len(raw):
            raw[at] = data.draw(st.integers(0, 255))
        elif kind == "cut":
            del raw[at : at + data.draw(st.integers(1, 64))]
        elif kind == "add":
            raw[at:at] = data.draw(st.binary(min_size=1, max_size=16))
        elif kind == "end":
            del raw[at:]
    path = tmp_path / "a.png"
    path.write_bytes(bytes(raw))
    for read in (images.read_image, images.read_mask, images.read_cutout, images.read_metadata):
        got = outcome(read, path)
        if isinstance(got, JaxpaError):
            assert str(got).startswith(str(path))
            assert "\n" not in str(got)
        elif read is images.read_image:
            assert got.mode == "RGB"
            assert got.width * got.height <= images.MAX_PIXELS


def test_a_palette_that_is_missing(tmp_path: Path) -> None:
    """A PNG of palette indices without a palette, which Pillow opens."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 3, 0, 0, 0))
    body = header + chunk(b"IDAT", zlib.compress(bytes(20))) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    for read in (images.read_image, images.read_mask):
        with pytest.raises(JaxpaError, match="its palette is missing"):
            read(tmp_path / "a.png")
