"""The command that makes a mask: found by a word, drawn as a box or a polygon, or the picture's own transparency."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from jaxpa.cli import console
from jaxpa.cli.options import Made, Making
from jaxpa.errors import JaxpaError

if TYPE_CHECKING:
    from PIL import Image


@dataclass(kw_only=True)
class Mask(Making):
    """Make a subject's mask: white on what a word names (--word), or inside a box or a polygon; else the picture's
    own transparency. A sheet beside it shows the picture, the map and the tokens."""

    image: str
    """The picture."""
    word: str | None = None
    """What the subject is; attention finds it."""
    caption: str | None = None
    """What the picture shows; the word must stand in it (default: "a picture of a" word)."""
    box: str | None = None
    """LEFT,TOP,RIGHT,BOTTOM, fractions of the picture."""
    polygon: str | None = None
    """X,Y,X,Y,..., fractions of the picture; three points or more."""
    threshold: float = 0.5
    """With --word: what of the map's range is in the mask; lower finds more."""
    grow: float = 0.0
    """Pixels of the picture by which the mask is grown ..."""
    shrink: float = 0.0
    """... or shrunk (after growing: closes holes) ..."""
    feather: float = 0.0
    """... and over which its outline is blurred, in this order."""
    coverage: float = 0.5
    """For the sheet: a token is in the mask if this share of it is."""
    steps: int | None = None
    """Of the inversion that --word looks at."""
    out: Path = Path("mask.png")
    """The file to write, of the picture's size."""
    figure: bool = True
    """Also write OUT-figure.png."""

    def make(self) -> Made:
        from jaxpa.media.images import feather, grow, read_image, save_image, shrink, token_mask

        picture = read_image(self.image)
        soft, grid = None, self.grid(picture.size)
        if self.word is not None:
            mask, soft = self.found(picture, self.word)
            grid = soft.height, soft.width
        else:
            mask = self.drawn(picture.size)
        for change, pixels in ((grow, self.grow), (shrink, self.shrink), (feather, self.feather)):
            mask = change(mask, pixels) if pixels else mask
        if not mask.max() > 0.5:
            raise JaxpaError("the mask is empty: shrink it less, or lower the threshold")
        tokens = token_mask(mask, *grid, self.coverage)
        files = [self.out]
        save_image(_grey(mask), self.out)
        if self.figure:
            files.append(self.out.with_name(f"{self.out.stem}-figure.png"))
            save_image(self.sheet(picture, soft, mask, tokens, grid), files[1])
        share = float(mask.mean())
        content = {
            "files": [str(file) for file in files], "image": self.image, "word": self.word, "covered": round(share, 4),
            "tokens": int(tokens.sum()), "grid": grid,
        }  # fmt: skip
        line = f"jaxpa: {self.out}: {share:.0%} of the picture, {tokens.sum()} of {grid[0]} x {grid[1]} tokens"
        return Made(content, line)

    def check(self) -> None:
        """Refuse what does not go together."""
        from jaxpa.media.images import read_image

        super().check()
        read_image(self.image)
        ways = [name for name in ("word", "box", "polygon") if getattr(self, name) is not None]
        if len(ways) > 1:
            raise JaxpaError(f"--{' and --'.join(ways)} are different masks: give one of them")
        if self.caption is not None and self.word is None:
            raise JaxpaError("--caption needs the --word in it that is looked for")
        if not 0 < self.coverage <= 1:
            raise JaxpaError(f"--coverage must be above 0 and at most 1, not {self.coverage}")

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """The canvas of the checkpoint for a picture of `size`, in tokens; its headers tell."""
        from jaxpa.checkpoint.load import settings_of
        from jaxpa.checkpoint.source import resolve
        from jaxpa.media.masks import canvas_size
        from jaxpa.tokens import PATCH

        source = resolve(self.model, self.components, download=False)
        cell = PATCH * source.config.vae.downscale
        height, width = canvas_size(size, settings_of(source).size, cell)
        return height // cell, width // cell

    def found(self, picture: "Image.Image", word: str) -> "tuple[np.ndarray, Image.Image]":
        """The mask at the picture's size (H, W), and the map it was cut from (its pixels are tokens)."""
        with console.clock():
            print(f"jaxpa: looking for {word!r}", file=sys.stderr)
            found = self.load().find_mask(
                picture, word, self.caption, threshold=self.threshold, steps=self.steps
            )  # fmt: skip
        return found.pixels(picture.size).astype(np.float32), _grey(found.soft)

    def drawn(self, size: tuple[int, int]) -> np.ndarray:
        """A box, a polygon, or the picture's own transparency: (H, W)."""
        from jaxpa.media.images import alpha_mask, box_mask, polygon_mask

        if self.box is not None:
            return box_mask(_numbers("box", self.box, 4), size)
        if self.polygon is not None:
            numbers = _numbers("polygon", self.polygon, 2)
            return polygon_mask(list(zip(numbers[::2], numbers[1::2], strict=True)), size)
        mask = alpha_mask(self.image)
        if mask is None:
            raise JaxpaError(f"{self.image} has no transparency: give --word, --box or --polygon")
        return mask

    def sheet(
        self, picture: "Image.Image", soft: "Image.Image | None", mask: np.ndarray, tokens: np.ndarray,
        grid: tuple[int, int],
    ) -> "Image.Image":  # fmt: skip
        from jaxpa.media.images import overlay, sheet

        row = [("picture", picture)]
        if soft is not None:
            row.append((f"attention\n{self.word}", soft))
        return sheet([[*row, ("mask", _grey(mask)), ("its tokens", overlay(picture, tokens, *grid))]])


def _grey(values: np.ndarray) -> "Image.Image":
    from PIL import Image

    return Image.fromarray(np.rint(255 * values).astype(np.uint8))


def _numbers(flag: Literal["box", "polygon"], text: str, multiple: int) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or len(numbers) % multiple or (flag == "box" and len(numbers) != 4):
        form = "LEFT,TOP,RIGHT,BOTTOM" if flag == "box" else "X,Y,X,Y,X,Y or more"
        raise JaxpaError(f"--{flag} {text!r}: give {form}, as fractions of the picture")
    return numbers
