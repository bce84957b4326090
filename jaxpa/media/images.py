"""Pictures and their files: reading, arrays, writing with metadata.

A picture is an RGB `Image`; a mask is as in `masks`, whose functions are to be had here too, as are those of `figures`.
Whatever can be wrong with a user's file ends in a JaxpaError of one line.
"""

import json
import os
import secrets
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import ExifTags, Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from jaxpa.box import Box
from jaxpa.errors import JaxpaError
from jaxpa.media.figures import over_white, overlay, sheet
from jaxpa.media.masks import (
    box_mask,
    crop_box,
    feather,
    grow,
    polygon_mask,
    resize_mask,
    shrink,
    token_mask,
    unit,
)

__all__ = [
    "alpha_mask", "box_mask", "check_output", "crop_box", "feather", "grow", "overlay", "polygon_mask", "read_image",
    "read_mask", "read_metadata", "resize_mask", "save_image", "sheet", "shrink", "to_array", "to_image", "token_mask",
]  # fmt: skip

Picture: TypeAlias = str | os.PathLike[str] | Image.Image | np.ndarray

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
COLOUR_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")
KEY = "jaxpa"  # names the metadata inside a file
ASCII = b"ASCII\0\0\0"  # EXIF's mark for the character set of a user comment
ASPECT_TOLERANCE = 0.02


# Reading --------------------------------------------------------------------------------------------------


def _name(source: Picture, what: str) -> str:
    named = os.fspath(source) if isinstance(source, str | os.PathLike) else getattr(source, "filename", "")
    return str(named or f"the {what}")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _upright(image: Image.Image) -> Image.Image:
    """Decode the first frame and turn it as its EXIF says; modes that nothing here knows become RGB."""
    image = ImageOps.exif_transpose(image)
    return image if image.mode in COLOUR_MODES or image.mode[0] in "IF" else image.convert("RGB")


def _open(source: Picture, what: str) -> Image.Image:
    """The picture in its own mode, upright and decoded in full."""
    name = _name(source, what)
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] not in (3, 4) or not source.size:
            raise JaxpaError(f"{name} is an array {source.shape} of {source.dtype}: give (H, W, 3) or (H, W, 4) uint8")
        return Image.fromarray(source)
    try:
        if isinstance(source, Image.Image):
            return _upright(source)
        with Image.open(source) as image:
            return _upright(image)
    except FileNotFoundError:
        problem = f"no such file: check the path of the {what}"
    except IsADirectoryError:
        problem = f"a folder: name the file of the {what}"
    except UnidentifiedImageError:
        problem = "not a picture of a known format: save it as PNG, JPEG or WebP"
    except Image.DecompressionBombError:
        problem = f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels: scale it down"
    except Exception as error:  # Pillow's decoders raise whatever they stumble over
        problem = f"cut short or damaged ({_line(error)}): save or download it again"
        if isinstance(error, OSError) and error.strerror:
            problem = f"cannot be read ({error.strerror}): check its path and permissions"
    raise JaxpaError(f"{name}: {problem}")


def _alpha(image: Image.Image) -> np.ndarray | None:
    """(H, W) float32 of a transparency that is not the same everywhere; else None."""
    if image.mode[0] in "IF" or not image.has_transparency_data:
        return None
    alpha = np.asarray(image.convert("RGBA").getchannel("A"))
    return None if alpha.min() == alpha.max() else unit(alpha)


def read_image(source: Picture) -> Image.Image:
    """A file, a Pillow image, or a (H, W, 3 | 4) uint8 array -> RGB, upright, what is transparent over white.

    JaxpaError: a file that is missing, not a picture, or damaged; an array of another kind.
    """
    image = _open(source, "picture")
    if image.mode[0] in "IF":  # 16 and 32 bits, which Pillow's own conversion would clip
        grey = unit(np.asarray(image), _name(source, "picture"))
        image = Image.fromarray(np.rint(grey * 255).astype(np.uint8))
    return over_white(image)


def read_mask(source: Picture, size: tuple[int, int] | None = None) -> np.ndarray:
    """A mask picture of any mode, or an array, -> (H, W) float32 in [0, 1] at its own resolution.

    An alpha channel counts where it is not the same everywhere, else brightness. Arrays are (H, W) of bool, integers
    or floats, or pictures as for `read_image`. `size`: (width, height) of the picture that the mask belongs to.

    JaxpaError: as `read_image`; an aspect more than 2% off that of `size`; nothing above 0.5.
    """
    name = _name(source, "mask")
    if isinstance(source, np.ndarray) and (source.ndim == 2 or source.shape[2:] == (1,)):
        mask = unit(source.reshape(source.shape[:2]), name)
    else:
        image = _open(source, "mask")
        alpha = _alpha(image)
        if alpha is None:
            plain = image.mode in ("1", "L") or image.mode[0] in "IF"
            alpha = unit(np.asarray(image if plain else image.convert("RGB").convert("L")), name)
        mask = alpha
    height, width = mask.shape
    if size and abs(width * size[1] / (height * size[0]) - 1) > ASPECT_TOLERANCE:
        raise JaxpaError(
            f"{name} is {width} x {height} pixels, its picture {size[0]} x {size[1]}: "
            "draw the mask over the whole picture, at any resolution of the same aspect"
        )
    if not mask.max() > 0.5:
        raise JaxpaError(
            f"{name} is empty, its brightest spot is {mask.max():.2g} of 1: make the subject white on black"
        )
    return mask


def alpha_mask(source: Picture) -> np.ndarray | None:
    """The picture's own transparency as a mask, (H, W) float32; None where it has none or a constant one."""
    if isinstance(source, np.ndarray) and source.ndim == 2:
        return None
    return _alpha(_open(source, "picture"))


# Between pictures and arrays --------------------------------------------------------------------------------


def to_array(image: Image.Image, height: int, width: int, box: Box | None = None) -> np.ndarray:
    """The part of a picture inside `box` (None: all of it), resized -> (height, width, 3) float32 in [-1, 1]."""
    image = image if image.mode == "RGB" else read_image(image)
    return np.asarray(image.resize((width, height), Image.Resampling.LANCZOS, box), np.float32) / 127.5 - 1


def to_image(array: np.ndarray) -> Image.Image:
    """(H, W, 3) in [-1, 1] of any float type -> RGB, rounded and clipped. JaxpaError: numbers that are not finite."""
    values = np.asarray(array, np.float32)
    if not np.isfinite(values).all():
        raise JaxpaError("the picture came out with numbers that are not finite: try another dtype, float32 for one")
    return Image.fromarray(np.clip(np.rint((values + 1) * 127.5), 0, 255).astype(np.uint8))


# Files ------------------------------------------------------------------------------------------------------


def check_output(path: str | os.PathLike[str]) -> Path:
    """Whether a picture can be written there, asked before any long work. JaxpaError says why not."""
    path = Path(path)
    if os.path.isdir(path):  # unlike Path.is_dir, no error for a folder that may not be entered
        raise JaxpaError(f"{path} is a folder: name a file in it, such as {path / 'out.png'}")
    if path.suffix.lower() not in FORMATS:
        raise JaxpaError(
            f"{path}: pictures are written as {', '.join(FORMATS)}, not {path.suffix or 'without a suffix'}"
        )
    if not os.path.isdir(path.parent):
        raise JaxpaError(f"{path}: the folder {path.parent} does not exist: create it or name another")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise JaxpaError(f"{path}: the folder {path.parent} cannot be written to: name another")
    return path


def _options(metadata: dict[str, Any] | None, form: str) -> dict[str, Any]:
    """How a format is written, with the metadata where it keeps such: a PNG chunk, or EXIF's user comment."""
    options: dict[str, Any] = {} if form == "PNG" else {"quality": 95}
    if form == "JPEG":
        options["subsampling"] = 0
    if metadata is not None:
        text = json.dumps(metadata, default=lambda value: value.tolist() if hasattr(value, "tolist") else str(value))
        if form == "PNG":
            options["pnginfo"] = PngImagePlugin.PngInfo()
            options["pnginfo"].add_itxt(KEY, text)
        else:
            exif = Image.Exif()
            exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = ASCII + f'{{"{KEY}": {text}}}'.encode()
            options["exif"] = exif
    return options


def save_image(image: Image.Image, path: str | os.PathLike[str], metadata: dict[str, Any] | None = None) -> None:
    """Write .png, .jpg or .webp with the metadata inside; a reader sees the old file or the whole new one.

    JaxpaError: as `check_output`; a disk that is full.
    """
    path = check_output(path)
    form = FORMATS[path.suffix.lower()]
    if form != "PNG" and image.mode not in ("L", "RGB"):
        image = read_image(image)
    part = path.with_name(f".{KEY}-{secrets.token_hex(8)}.tmp")
    try:
        with part.open("xb") as file:  # not a private temporary file: the umask alone decides who may read it
            image.save(file, form, **_options(metadata, form))
        os.replace(part, path)
    except (OSError, ValueError) as error:
        raise JaxpaError(f"{path} could not be written: {_line(error)}") from error
    finally:
        part.unlink(missing_ok=True)


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """What `save_image` put into a file; None where there is nothing of its making."""
    image = _open(path, "picture")
    comment = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment, b"")
    try:
        if KEY in image.info:
            found = json.loads(image.info[KEY])
        else:
            found = json.loads(bytes(comment).removeprefix(ASCII))[KEY]
    except (ValueError, TypeError, KeyError):  # somebody else's comment
        return None
    return found if isinstance(found, dict) else None


def psnr(a: Image.Image | np.ndarray, b: Image.Image | np.ndarray) -> float:
    """Peak signal-to-noise ratio of two 8-bit pictures, in dB: 20 is alike from afar, 30 hard to tell apart."""
    error = np.mean((np.asarray(a, np.float64) - np.asarray(b, np.float64)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))
