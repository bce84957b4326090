"""Pictures and their files: reading, arrays, writing with metadata.

A picture is an RGB `Image`, and a mask is as in `masks`. Whatever can be wrong with a user's file ends in a JaxpaError
of one line.
"""

import errno
import json
import math
import os
import stat
import threading
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps, PngImagePlugin, UnidentifiedImageError

from jaxpa.box import Box
from jaxpa.errors import JaxpaError, OutputError, printable
from jaxpa.media.figures import over_white
from jaxpa.media.masks import unit
from jaxpa.replacing import replacing

Picture: TypeAlias = str | os.PathLike[str] | Image.Image | np.ndarray
"""What a caller may hand over: a file, a Pillow image of any mode, or a (H, W, 3 | 4) uint8 array."""

# Pillow reads more, but some of it through other programs (EPS through Ghostscript).
READ_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "JPEG2000")
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}  # that are written
MAX_RECORD = 4 << 20  # characters of metadata that are read
MAX_PIXELS = 200_000_000  # of a file, unless the environment says otherwise:
LIMIT = "JAXPA_MAX_PIXELS"
COLOUR_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")
PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}
KEY = "jaxpa"  # names the metadata inside a file
ASCII = b"ASCII\0\0\0"  # EXIF's mark for the character set of a user comment
ASPECT_TOLERANCE = 0.02


# Reading --------------------------------------------------------------------------------------------------


def name_of(picture: Picture, what: str = "picture") -> str:
    """What messages call a picture: its file, in characters that a terminal may be sent, or "the picture"."""
    file = os.fsdecode(picture) if isinstance(picture, str | os.PathLike) else getattr(picture, "filename", "")
    return printable(str(file)) or f"the {what}"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def max_pixels() -> int:
    """The pixels that a picture's file may have: `MAX_PIXELS`, or what the environment variable `LIMIT` says."""
    text = os.environ.get(LIMIT, "").replace("_", "")
    if text and not (text.isascii() and text.isdigit() and int(text)):
        raise JaxpaError(f"{LIMIT}={text!r} must be a number of pixels, such as {MAX_PIXELS}")
    return int(text) if text else MAX_PIXELS


_pillow = threading.Lock()


def _identified(path: str | os.PathLike[str]) -> ImageFile.ImageFile:
    """A file's header, read by the formats that are read here. Pillow's own limit of pixels gives way to ours."""
    if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited for, a device read without end
        raise IsADirectoryError if os.path.isdir(path) else OSError(errno.EINVAL, "not a regular file")
    with _pillow:
        Image.MAX_IMAGE_PIXELS, before = None, Image.MAX_IMAGE_PIXELS
        try:
            return Image.open(path, formats=READ_FORMATS)
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _upright(image: Image.Image) -> Image.Image:
    """Decode the first frame and turn it as its EXIF says; modes that nothing here knows become RGB."""
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    image.load()
    if image.mode in ("P", "PA") and image.palette is None:
        raise ValueError("its palette is missing")
    if image.mode in PREMULTIPLIED:
        return image.convert(PREMULTIPLIED[image.mode])
    return image if image.mode in COLOUR_MODES or image.mode[0] in "IF" else image.convert("RGB")


def _check_pixels(image: Image.Image) -> None:
    if image.width * image.height > (limit := max_pixels()):
        raise Image.DecompressionBombError(
            f"{image.width} x {image.height} pixels are more than {limit:,}: scale it down, or raise {LIMIT}"
        )


def _open(picture: Picture, what: str) -> Image.Image:
    """The picture in its own mode, upright and decoded in full."""
    name = name_of(picture, what)
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] not in (3, 4) or not picture.size:
            raise JaxpaError(f"{name} is an array {picture.shape} of {picture.dtype}: give (H, W, 3 or 4) uint8")
        return Image.fromarray(picture)
    if not isinstance(picture, str | os.PathLike | Image.Image):
        raise JaxpaError(f"{name} is of the type {type(picture).__name__}: give a path, a PIL image or a NumPy array")
    try:
        if isinstance(picture, Image.Image):
            return _upright(picture)
        with _identified(picture) as image:
            _check_pixels(image)
            return _upright(image)
    except JaxpaError:
        raise
    except FileNotFoundError:
        problem = f"no such file: check the path of the {what}"
    except IsADirectoryError:
        problem = f"a folder: name the file of the {what}"
    except UnidentifiedImageError:
        problem = f"not a picture of a known format: save it as PNG, JPEG or WebP ({', '.join(READ_FORMATS)} are read)"
    except Image.DecompressionBombError as error:
        problem = _line(error)
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


def _rgb(image: Image.Image, name: str) -> Image.Image:
    """An opened picture -> RGB, what is transparent over white."""
    if image.mode[0] in "IF":  # 16 and 32 bits, which Pillow's own conversion would clip
        grey = unit(np.asarray(image), name)
        image = Image.fromarray(np.rint(grey * 255).astype(np.uint8))
    return over_white(image)


def read_image(picture: Picture) -> Image.Image:
    """A file, a Pillow image, or a (H, W, 3 | 4) uint8 array -> RGB, upright, what is transparent over white.

    JaxpaError: a file that is missing, damaged, no picture, or larger than `max_pixels`; an array of another kind.
    """
    return _rgb(_open(picture, "picture"), name_of(picture))


def read_cutout(picture: Picture) -> tuple[Image.Image, np.ndarray | None]:
    """`read_image` and `alpha_mask` of a picture that is opened once. JaxpaError: as `read_image`."""
    image = _open(picture, "picture")
    return _rgb(image, name_of(picture)), _alpha(image)


def read_mask(picture: Picture, size: tuple[int, int] | None = None) -> np.ndarray:
    """A mask picture of any mode, or an array, -> (H, W) float32 in [0, 1] at its own resolution.

    An alpha channel counts where it is not the same everywhere, else brightness. Arrays are (H, W) of bool, integers
    or floats, or pictures as for `read_image`. `size`: (width, height) of the picture that the mask belongs to.

    JaxpaError: as `read_image`; an aspect more than 2% off that of `size`; nothing above 0.5.
    """
    name = name_of(picture, "mask")
    if isinstance(picture, np.ndarray) and (picture.ndim == 2 or picture.shape[2:] == (1,)):
        mask = unit(picture.reshape(picture.shape[:2]), name)
    else:
        image = _open(picture, "mask")
        mask = _alpha(image)
        if mask is None:
            plain = image.mode in ("1", "L") or image.mode[0] in "IF"
            mask = unit(np.asarray(image if plain else image.convert("RGB").convert("L")), name)
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


def alpha_mask(picture: Picture) -> np.ndarray | None:
    """The picture's own transparency as a mask, (H, W) float32; None where it has none or a constant one."""
    return _alpha(_open(picture, "picture"))


# Between pictures and arrays --------------------------------------------------------------------------------


def to_array(image: Image.Image, height: int, width: int, box: Box | None = None) -> np.ndarray:
    """The part of a picture inside `box` (None: all of it), resized -> (height, width, 3) float32 in [-1, 1].

    The box counts in the picture's pixels. Where it leaves the picture, the edge pixels go on. ValueError: a box that
    shows nothing of the picture.
    """
    image = image if image.mode == "RGB" else read_image(image)
    whole = Box(0, 0, *image.size)
    if box is None or (box := Box(*box)) == box.within(whole):
        pixels = np.asarray(image.resize((width, height), Image.Resampling.LANCZOS, box))
    elif box.within(whole).empty:
        raise ValueError(f"{box} shows nothing of a picture of {image.width} x {image.height} pixels")
    else:
        pixels = _beyond(image, height, width, box)
    return np.asarray(pixels, np.float32) / 127.5 - 1


def squared(image: Image.Image, side: int) -> np.ndarray:
    """A whole picture, stretched, as vision transformers read it: (side, side, 3) float32 in [-1, 1]."""
    return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC), np.float32) / 127.5 - 1


LANCZOS = 3  # pixels to both sides, of the coarser grid, that a resized pixel depends on


def _beyond(image: Image.Image, height: int, width: int, box: Box) -> np.ndarray:
    """`to_array` of a box that leaves the picture -> (height, width, 3) uint8.

    Only the pixels that depend on the picture are resized, from the picture with a margin of its edge pixels; those
    beyond them are all alike.
    """
    x, part, before_x, after_x = _span(image.width, width, box.left, box.right)
    y, tall, before_y, after_y = _span(image.height, height, box.top, box.bottom)
    pixels = np.asarray(image.crop((part[0], tall[0], part[1], tall[1])))
    pixels = np.pad(pixels, (tall[2:], part[2:], (0, 0)), mode="edge")
    inner = Box(x[0], y[0], x[1], y[1])
    size = width - before_x - after_x, height - before_y - after_y
    resized = Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS, inner)
    return np.pad(np.asarray(resized), ((before_y, after_y), (before_x, after_x), (0, 0)), mode="edge")


def _span(
    side: int, count: int, start: float, stop: float
) -> tuple[tuple[float, float], tuple[int, int, int, int], int, int]:
    """One axis of `_beyond`: `count` pixels show [start, stop] of `side`.

    -> the interval that is resized, in the part of the picture that it needs; that part as (first, last, margin before,
    margin after); and how many pixels before and after are alike.
    """
    step = (stop - start) / count
    reach = LANCZOS * max(step, 1) + 1
    first = min(max(0, math.floor((-reach - start) / step)), count - 1)
    last = max(min(count, math.ceil((side + reach - start) / step)), first + 1)
    begin, end = start + first * step, start + last * step
    low, high = math.floor(begin - reach), math.ceil(end + reach)
    near, far = min(max(low, 0), side - 1), max(min(high, side), 1)
    return (begin - low, end - low), (near, far, near - low, high - far), first, count - last


def to_image(array: np.ndarray) -> Image.Image:
    """(H, W, 3) in [-1, 1] of any float type -> RGB, rounded and clipped. JaxpaError: numbers that are not finite."""
    values = np.asarray(array, np.float32)
    if not np.isfinite(values).all():
        raise JaxpaError("the picture came out with numbers that are not finite: try another dtype, float32 for one")
    return Image.fromarray(np.clip(np.rint((values + 1) * 127.5), 0, 255).astype(np.uint8))


# Files ------------------------------------------------------------------------------------------------------


def check_output(path: str | os.PathLike[str]) -> Path:
    """Whether a picture can be written there, asked before any long work. OutputError says why not."""
    path = Path(path)
    if "\0" in str(path):
        raise OutputError(f"{printable(str(path))}: no file has such a name")
    if os.path.isdir(path):  # unlike Path.is_dir, no error for a folder that may not be entered
        raise OutputError(f"{path} is a folder: name a file in it, such as {path / 'out.png'}")
    if path.suffix.lower() not in FORMATS:
        raise OutputError(
            f"{path}: pictures are written as {', '.join(FORMATS)}, not {path.suffix or 'without a suffix'}"
        )
    if not os.path.isdir(path.parent):
        raise OutputError(f"{path}: the folder {path.parent} does not exist: create it or name another")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OutputError(f"{path}: the folder {path.parent} cannot be written to: name another")
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


def save_image(
    image: Image.Image, path: str | os.PathLike[str], metadata: dict[str, Any] | None = None, fresh: bool = False
) -> None:
    """Write .png, .jpg or .webp with the metadata inside; a reader sees the old file or the whole new one.

    OutputError: as `check_output`; a disk that is full. fresh: FileExistsError where there is a file of this name.
    """
    path = check_output(path)
    form = FORMATS[path.suffix.lower()]
    if form != "PNG" and image.mode not in ("L", "RGB"):
        image = read_image(image)
    try:
        with replacing(path, fresh) as file:
            image.save(file, form, **_options(metadata, form))
    except FileExistsError:
        raise
    except (OSError, ValueError) as error:
        raise OutputError(f"{path} could not be written: {getattr(error, 'strerror', None) or _line(error)}") from error


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """What `save_image` put into a file; None where there is nothing of its making."""
    return _record_of(_open(path, "picture"))


def is_recorded(path: str | os.PathLike[str]) -> bool:
    """Whether `save_image` says in a file that it made it; the pixels are not read, be there thousands of files."""
    try:
        with _identified(path) as image:
            return _record_of(image) is not None
    except Exception:  # Pillow's decoders raise whatever they stumble over
        return False


def _record_of(image: Image.Image) -> dict[str, Any] | None:
    """What a PNG has in a text of its own, and others among the Exif data, for which Pillow would read a PNG whole."""
    own = KEY in image.info
    comment = b"" if own else image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment, b"")
    try:
        text = image.info[KEY] if own else bytes(comment).removeprefix(ASCII)
        if len(text) > MAX_RECORD:
            return None
        found = json.loads(text) if own else json.loads(text)[KEY]
    except (ValueError, TypeError, KeyError, RecursionError):  # somebody else's comment
        return None
    return found if isinstance(found, dict) else None


def psnr(a: Image.Image | np.ndarray, b: Image.Image | np.ndarray) -> float:
    """Peak signal-to-noise ratio of two 8-bit pictures, in dB: 20 is alike from afar, 30 hard to tell apart."""
    error = np.mean((np.asarray(a, np.float64) - np.asarray(b, np.float64)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))
