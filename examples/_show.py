"""What the lessons share: where pictures come from and go to, and how arrays become colours."""

import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from PIL import Image, ImageFilter

from jaxpa import Subject
from jaxpa.cli.console import compilation_cache
from jaxpa.media import images
from jaxpa.sampling import Velocity

PICTURES = Path(__file__).parent / "pictures"
GALLERY = Path(__file__).parent / "gallery"
compilation_cache()  # a program that one script compiled is there for the next
VISIBLE = 6.0  # levels of 255, averaged over 5 x 5 pixels: more than this is seen as a blotch, if it is in many places

# Dark to light, and blue over white to red: the colours at equal steps, mixed in between.
RAMP = np.array([(24, 18, 62), (62, 50, 132), (38, 120, 142), (70, 190, 120), (250, 228, 60)], float)
SIGNED = np.array([(30, 70, 160), (140, 180, 225), (250, 250, 250), (235, 160, 130), (165, 25, 40)], float)


def picture(name: str, side: int = 96) -> Image.Image:
    """A reference of examples/pictures in the size that the embedded model draws."""
    return Image.open(PICTURES / f"{name}.png").convert("RGB").resize((side, side), Image.Resampling.LANCZOS)


def subject(name: str, **how: object) -> Subject:
    """A reference of examples/pictures with its mask."""
    return Subject(PICTURES / f"{name}.png", PICTURES / f"{name}-mask.png", **how)  # type: ignore[arg-type]


_ask = jax.jit(lambda velocity, x, t: velocity(x, t))


def ask(velocity: Velocity, x: Any, t: float) -> np.ndarray:
    """The network's velocity, compiled: x (B, N, C) at flow time t -> (B, N, C)."""
    return np.asarray(_ask(velocity, x, np.full(len(x), t, np.float32)))


_encode = jax.jit(lambda vae, x: vae.encode_latents(x))
_decode = jax.jit(lambda vae, z: vae.decode_latents(z))


def to_latent(vae: Any, picture: Image.Image) -> np.ndarray:
    """A picture -> the latent (H / 4, W / 4, 8) of the embedded autoencoder."""
    return np.asarray(_encode(vae, images.to_array(picture, picture.height, picture.width)[None])[0])


def to_picture(vae: Any, latent: np.ndarray) -> Image.Image:
    """A latent (h, w, C) -> its picture."""
    return images.to_image(np.asarray(_decode(vae, latent[None])[0]))


def block_of(blocks: Any, k: int) -> Any:
    """One of several stacked blocks, whose parameter i is one array with a leading axis of blocks."""
    return jax.tree.map(lambda p: p[k], blocks)


# Arrays as pictures -----------------------------------------------------------------------------------------


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
    for k, each in enumerate(pictures):
        canvas.paste(each, (0, sum(p.height for p in pictures[:k])))
    return canvas


def figure(width: float, height: float, columns: int = 1, **how: Any) -> tuple[Figure, list[Any]]:
    """A figure of `width` x `height` hundred pixels, and its axes from left to right."""
    made = Figure(figsize=(width, height), dpi=100, layout="constrained")
    return made, list(made.subplots(1, columns, squeeze=False, **how)[0])


def drawn(made: Figure) -> Image.Image:
    """A figure as a picture."""
    buffer = io.BytesIO()
    made.savefig(buffer)
    return Image.open(buffer).convert("RGB")


def maps(
    panels: Sequence[tuple[str, np.ndarray]], across: str, down: str, legend: str, height: float = 3.6, **how: Any
) -> Image.Image:
    """Matrices side by side on one scale of colours, with what runs across and down, and a legend of the colours.

    how: low and high, the ends of the scale (-high for low: white is zero); words, the names of rows and columns;
    extent, as Matplotlib has it.
    """
    words = how.pop("words", None)
    values = [each for _, each in panels]
    low, high = how.pop("low", min(v.min() for v in values)), how.pop("high", max(v.max() for v in values))
    colours = LinearSegmentedColormap.from_list("", (SIGNED if low == -high else RAMP) / 255)
    made, axes = figure(height * len(panels) + 0.8, height, len(panels))
    image = None
    for k, (axis, (title, each)) in enumerate(zip(axes, panels, strict=True)):
        image = axis.imshow(each, vmin=low, vmax=high, cmap=colours, interpolation="nearest", aspect="auto", **how)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(across)
        if words:
            axis.set_xticks(range(len(words)), words, rotation=90, fontsize=8)
            axis.set_yticks(range(len(words)), words, fontsize=8)
        if not k:
            axis.set_ylabel(down)
    made.colorbar(image, ax=axes, label=legend, shrink=0.9)  # type: ignore[arg-type]
    return drawn(made)


def save(picture: Image.Image, name: str) -> Image.Image:
    """Save into examples/gallery, or into the folder that is the script's argument; a notebook only shows it.

    A palette of 256 colours is kept where nobody would see it.
    """
    if "ipykernel" in sys.modules:
        return picture
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else GALLERY
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.png"
    few = picture.quantize(256, Image.Quantize.MEDIANCUT)
    blurred = [np.asarray(each.convert("RGB").filter(ImageFilter.BoxBlur(2)), float) for each in (few, picture)]
    off = np.abs(blurred[0] - blurred[1]).max(-1)
    (few if np.percentile(off, 90) < VISIBLE else picture).save(file, optimize=True)
    print(f"wrote {file}")
    return picture
