"""Damaged pictures, and arrays of any kind: a picture of the right kind, or a JaxpaError of one line."""

import io
import json

import numpy as np
import pytest
from fuzzing import altered, damaged, fuzz, values
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from jaxpa.errors import JaxpaError
from jaxpa.media import images
from jaxpa.media.subjects import Subject, load_subject
from jaxpa.request.origin import in_words, read_origin
from jaxpa.request.provenance import Provenance

FORMATS = ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "JPEG2000"]
MODES = {"PNG": ["RGB", "RGBA", "L", "LA", "P", "1", "I;16"], "WEBP": ["RGB", "RGBA"], "GIF": ["P", "L"],
         "TIFF": ["RGB", "RGBA", "L", "1", "F", "CMYK"]}  # fmt: skip


def stored(form, mode, size):
    """A picture's file, of any mode that its format has."""
    pixels = np.arange(size[0] * size[1] * 4, dtype=np.uint8).reshape(size[1], size[0], 4)
    image = Image.fromarray(pixels, "RGBA")
    if mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    else:
        image = image.convert("RGB").convert(mode) if mode in ("P", "1", "F", "CMYK") else image.convert(mode)
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


def one_line(error):
    text = str(error)
    assert text
    assert "\n" not in text
    assert text.isprintable()


@fuzz
@given(data=st.data(), form=st.sampled_from(FORMATS), size=st.tuples(st.integers(1, 40), st.integers(1, 40)))
def test_files(data, form, size, tmp_path):
    mode = data.draw(st.sampled_from(MODES.get(form, ["RGB"])))
    file = tmp_path / "picture.png"
    file.write_bytes(data.draw(damaged(stored(form, mode, size))))
    for read in (images.read_image, images.read_mask, images.alpha_mask, images.read_metadata):
        try:
            found = read(file)
        except JaxpaError as error:
            one_line(error)
            continue
        if read is images.read_image:
            assert found.mode == "RGB"
            assert np.asarray(found).shape == (found.height, found.width, 3)
        elif read is images.read_mask:
            assert found.dtype == np.float32
            assert found.min() >= 0
            assert 0.5 < found.max() <= 1
    try:
        assert load_subject(Subject(file)).image.mode == "RGB"
    except JaxpaError as error:
        one_line(error)


@fuzz
@given(
    arrays.arrays(
        st.one_of(arrays.scalar_dtypes(), arrays.unicode_string_dtypes(max_len=3)),
        arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6),
    )
)
@example(np.zeros((0, 0), bool))
def test_arrays_as_masks(array):
    try:
        mask = images.read_mask(array)
    except JaxpaError as error:
        one_line(error)
        return
    assert mask.dtype == np.float32
    assert mask.shape == array.shape[:2]
    assert mask.min() >= 0
    assert 0.5 < mask.max() <= 1


@fuzz
@given(
    arrays.arrays(
        st.one_of(arrays.scalar_dtypes(), st.just(np.dtype(np.uint8))),
        arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6),
    )
)
def test_arrays_as_pictures(array):
    try:
        picture = images.read_image(array)
    except JaxpaError as error:
        one_line(error)
        return
    assert array.dtype == np.uint8
    assert np.asarray(picture).shape == (*array.shape[:2], 3)


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """How a picture of the command line was made."""
    from jaxpa.cli.main import main

    file = tmp_path_factory.mktemp("made") / "a.png"
    assert main(["generate", "--prompt", "a red cat", "--steps", "1", "--out", str(file)]) == 0
    return images.read_metadata(file)


@fuzz
@given(data=st.data(), suffix=st.sampled_from([".png", ".jpg", ".webp"]))
def test_how_a_picture_was_made(data, suffix, record, tmp_path):
    """Metadata that somebody has changed: read, or refused in a line."""
    said = data.draw(altered(record) | values)
    file = tmp_path / f"altered{suffix}"
    image, text = Image.new("RGB", (8, 8)), json.dumps(said)
    if suffix == ".png":
        from PIL import PngImagePlugin

        info = PngImagePlugin.PngInfo()
        info.add_itxt("jaxpa", text)
        image.save(file, pnginfo=info)
    else:
        exif = Image.Exif()
        exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0" + f'{{"jaxpa": {text}}}'.encode()
        image.save(file, exif=exif)
    try:
        provenance, _ = read_origin(file)
        assert in_words("altered", provenance)
        if isinstance(provenance, Provenance):
            assert provenance.single().sampling.seeds() == (provenance.seed,)
    except JaxpaError as error:
        one_line(error)
