"""What the scripts of this course share: where pictures come from and go to, and how arrays become colours."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from jaxpa import Subject
from jaxpa.cli.console import compilation_cache

PICTURES = Path(__file__).parent / "pictures"
GALLERY = Path(__file__).parent / "gallery"
compilation_cache()  # a program that one script compiled is there for the next
LARGEST = 290_000  # bytes of a picture in the gallery

# Dark to light, and blue over white to red: the colours at equal steps, mixed in between.
RAMP = np.array([(24, 18, 62), (62, 50, 132), (38, 120, 142), (70, 190, 120), (250, 228, 60)], float)
SIGNED = np.array([(30, 70, 160), (140, 180, 225), (250, 250, 250), (235, 160, 130), (165, 25, 40)], float)


def subject(name: str, **how: object) -> Subject:
    """A reference of examples/pictures with its mask."""
    return Subject(PICTURES / f"{name}.png", PICTURES / f"{name}-mask.png", **how)  # type: ignore[arg-type]


def heat(values: np.ndarray, low: float | None = None, high: float | None = None) -> Image.Image:
    """A matrix as colours, one pixel an entry; with low = -high, white is zero."""
    low = float(values.min()) if low is None else low
    high = float(values.max()) if high is None else high
    ramp = SIGNED if low == -high else RAMP
    place = np.clip((values - low) / max(high - low, 1e-9), 0, 1) * (len(ramp) - 1)
    colours = [np.interp(place, np.arange(len(ramp)), ramp[:, c]) for c in range(3)]
    return Image.fromarray(np.stack(colours, -1).astype(np.uint8))


def principal(cells: np.ndarray) -> Image.Image:
    """Cells (h, w, C) of many channels as one picture: their three main directions become red, green and blue."""
    flat = cells.reshape(-1, cells.shape[-1]) - cells.mean((0, 1))
    main = flat @ np.linalg.svd(flat, full_matrices=False)[2][:3].T
    colour = np.clip(0.5 + main / (4 * main.std(0)), 0, 1).reshape(*cells.shape[:2], 3)
    return Image.fromarray((255 * colour).astype(np.uint8))


def larger(picture: Image.Image, side: int = 288) -> Image.Image:
    """A map of cells enlarged to `side` pixels, with sharp edges."""
    scale = max(1, round(side / max(picture.size)))
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def stack(*pictures: Image.Image) -> Image.Image:
    """Pictures one under the other, on white."""
    canvas = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), "white")
    for k, picture in enumerate(pictures):
        canvas.paste(picture, (0, sum(p.height for p in pictures[:k])))
    return canvas


def save(picture: Image.Image, name: str) -> None:
    """Save into examples/gallery, or into the folder given to the script; a large picture gets fewer colours."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else GALLERY
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.png"
    picture.save(file, optimize=True)
    if file.stat().st_size > LARGEST:
        picture.quantize(256, Image.Quantize.MEDIANCUT).save(file, optimize=True)
    print(f"wrote {file}")
