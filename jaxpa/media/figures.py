"""Pictures about pictures: a token mask laid over its picture, and contact sheets with captions."""

import itertools
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.Image import Resampling
from scipy import ndimage

Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont

MAGENTA = (230, 15, 130)  # a colour that few subjects have
LEAST, MOST = 768, 1536  # pixels along the longer side of an overlay: room for thin lines, at a bounded cost
CRISP = 64  # up to this side a picture is a map of cells, whose edges stay sharp when it is enlarged
MAX_LINES = 3  # of a caption
INK, GREY, FRAME = (28, 28, 30), (105, 105, 112), (214, 214, 218)
PLAIN = str.maketrans(
    {
        "×": "x",
        "–": "-",
        "—": "-",
        "→": ">",
        "…": "...",
        "τ": "tau",
        "γ": "gamma",
        "η": "eta",
        "≥": ">=",
        "≤": "<=",
        "’": "'",
        "‘": "'",
        "“": '"',
        "”": '"',
        "ß": "ss",
        "ø": "o",
        "æ": "ae",
    }
)


def overlay(
    image: Image.Image, tokens: np.ndarray, h: int, w: int, colour: tuple[int, int, int] = MAGENTA
) -> Image.Image:
    """A token mask (h * w,) bool over its picture -> RGB: its cells tinted and outlined, the grid in faint lines.

    A small picture is enlarged to about `LEAST` pixels first, and a large one is reduced to `MOST`.
    """
    ink = np.asarray(colour, np.float32)
    longer = max(image.size)
    factor = min(max(1, round(LEAST / longer)), MOST / longer)
    width, height = (max(1, round(side * factor)) for side in image.size)
    pixels = np.asarray(_resized(image, (width, height)), np.float32)
    row, col = np.arange(height) * h // height, np.arange(width) * w // width  # the cell of each pixel
    region = np.asarray(tokens, bool).reshape(h, w)[row][:, col]
    pixels = np.where(region[..., None], 0.72 * pixels + 0.28 * ink, 0.7 * pixels + 0.3 * 255)

    side, cell = max(width, height), min(width / w, height / h)
    # Dark lines where it is light all around, and light ones where it is dark, show on any picture.
    around = ndimage.uniform_filter(pixels.mean(-1), round(2 * cell))[..., None]
    thin, strong = max(1, round(side / 500)), 0.2 if cell > 24 else 0.13
    grid = (_lines(row, thin)[:, None] | _lines(col, thin))[..., None]
    pixels = np.where(grid, (1 - strong) * pixels + strong * np.where(around > 128, 0, 255), pixels)

    thick = max(1, min(round(side / 110), int(cell / 3)))
    outline = region & ~_eroded(region, thick, beyond=False)
    halo = ~region & ~_eroded(~region, max(1, thick // 2), beyond=True)  # keeps the outline off its like
    pixels = np.where(halo[..., None], 255, np.where(outline[..., None], ink, pixels))
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def _lines(cells: np.ndarray, thick: int) -> np.ndarray:
    """The first `thick` pixels of each cell but the first one: (n,) cell numbers -> (n,) bool."""
    starts = np.flatnonzero(np.diff(cells)) + 1
    return np.isin(np.arange(len(cells)), (starts[:, None] + np.arange(thick) - thick // 2).ravel())


def _eroded(region: np.ndarray, by: int, beyond: bool) -> np.ndarray:
    """A region without its outermost `by` pixels; `beyond`: whether what is off the picture counts as inside."""
    return ndimage.minimum_filter(region, 2 * by + 1, mode="constant", cval=float(beyond))


def _resized(image: Image.Image, size: tuple[int, int], how: Image.Resampling = Resampling.LANCZOS) -> Image.Image:
    """RGB at another size. Grey is resized as grey: a large mask in RGB would take four times the memory."""
    plain = image.mode == "L" and not image.has_transparency_data
    return (image if plain else over_white(image)).resize(size, how).convert("RGB")


def over_white(image: Image.Image) -> Image.Image:
    """Any mode of eight bits -> RGB, what is transparent over white."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


# Contact sheets ---------------------------------------------------------------------------------------------


class Style(NamedTuple):
    """The measures of a sheet, all from the height of its pictures."""

    font: Font
    leading: int  # from one line of text to the next
    gap: int  # around each panel

    @staticmethod
    def of(height: int) -> "Style":
        size = max(12, round(height / 19))
        return Style(ImageFont.load_default(size), round(1.4 * size), max(10, round(height / 15)))


def sheet(rows: Sequence[Sequence[tuple[str, Image.Image]]], height: int = 288) -> Image.Image:
    """Rows of (caption, picture) -> a contact sheet on white; pictures are `height` pixels tall and stand in columns.

    A caption wraps over `MAX_LINES` lines and ends in dots if it is longer. Where it has a line break, what is before
    it is the title and the rest is grey. ValueError: no picture at all.
    """
    rows = [row for row in rows if row]
    if not rows:
        raise ValueError("a sheet needs a picture")
    style = Style.of(height)
    pictures = [[_fit(image, height) for _, image in row] for row in rows]
    columns = [
        max(picture.width for picture in column if picture is not None) for column in itertools.zip_longest(*pictures)
    ]
    strips = [
        _strip([(caption, picture) for (caption, _), picture in zip(row, fitted, strict=True)], columns, style)
        for row, fitted in zip(rows, pictures, strict=True)
    ]
    width = sum(columns) + style.gap * (len(columns) + 1)
    canvas = Image.new("RGB", (width, sum(strip.height for strip in strips) + style.gap), "white")
    for i, strip in enumerate(strips):
        canvas.paste(strip, (0, style.gap + sum(above.height for above in strips[:i])))
    return canvas


def _fit(image: Image.Image, height: int) -> Image.Image:
    """RGB, scaled to `height`, or less where it would be over three times as wide."""
    scale = min(height / image.height, 3 * height / image.width)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    crisp = max(image.size) <= CRISP
    return _resized(image, size, Resampling.NEAREST if crisp else Resampling.LANCZOS)


def _strip(row: Sequence[tuple[str, Image.Image]], columns: Sequence[int], style: Style) -> Image.Image:
    """One row of panels, with room under it but none above."""
    texts = [_caption(text, style.font, column) for (text, _), column in zip(row, columns, strict=False)]
    tall, lines = max(picture.height for _, picture in row), max(map(len, texts))
    below = lines * style.leading + style.gap // 2 if lines else 0
    strip = Image.new("RGB", (sum(columns) + style.gap * (len(columns) + 1), tall + below + style.gap), "white")
    draw, left = ImageDraw.Draw(strip), style.gap
    for (_, picture), text, column in zip(row, texts, columns, strict=False):
        strip.paste(picture, (left, 0))
        draw.rectangle((left, 0, left + picture.width - 1, picture.height - 1), outline=FRAME)
        for k, (line, ink) in enumerate(text):
            draw.text((left, tall + style.gap // 2 + k * style.leading), line, font=style.font, fill=ink)
        left += column + style.gap
    return strip


def _caption(text: str, font: Font, width: int) -> list[tuple[str, tuple[int, int, int]]]:
    """A caption as lines that fit into `width`, each with its colour."""
    lines = [
        (line, INK if i == 0 else GREY)
        for i, part in enumerate(_plain(text).splitlines())
        for line in _wrap(part, font, width)
    ]
    if len(lines) > MAX_LINES:
        last, ink = lines[MAX_LINES - 1]
        lines = [*lines[: MAX_LINES - 1], (_shorten(last + "...", font, width), ink)]
    return lines


def _plain(text: str) -> str:
    """In letters that Pillow's own font has: accents go, and what has no Latin form becomes a question mark."""
    text = unicodedata.normalize("NFKD", text.translate(PLAIN))
    return "".join(c for c in text if not unicodedata.combining(c)).encode("ascii", "replace").decode()


def _wrap(text: str, font: Font, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(_shorten(word, font, width))
    return [line for line in lines if line]


def _shorten(text: str, font: Font, width: int) -> str:
    """Cut from the end, with dots, until it fits."""
    if font.getlength(text) <= width:
        return text
    text = text.removesuffix("...")
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text.rstrip() + "..."
