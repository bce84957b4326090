"""The command that makes a mask: found by a word, drawn as a box or a polygon, or the picture's own transparency."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import numpy as np

from jaxpa.cli import console
from jaxpa.cli.command import Made, Making, Recorded, report_of, spec_of
from jaxpa.cli.files import Outputs
from jaxpa.errors import JaxpaError, real, whole
from jaxpa.request.provenance import Masking, MaskProvenance, with_inputs
from jaxpa.request.request import Request
from jaxpa.request.spec import MAX_STEPS

if TYPE_CHECKING:
    from PIL import Image


class Sketch(NamedTuple):
    """A picture, its mask if no network is needed for it, the token grid and the coverage of the sheet, the files."""

    picture: "Image.Image"
    mask: np.ndarray | None
    grid: tuple[int, int]
    coverage: float
    outputs: Outputs


@dataclass(kw_only=True)
class MaskCommand(Masking, Making):
    """Make a subject's mask: white on what a word names (--word), or inside a box or a polygon; else the picture's
    own transparency. A sheet beside it shows the picture, the map and the tokens."""

    DEFAULT: ClassVar[Path] = Path("mask.png")

    out: Path = DEFAULT
    """The file to write, of the picture's size. The default name counts on where it is taken. A picture that jaxpa has
    made is replaced, and the command says so; any other file needs --force."""

    figure: bool = True  # type: ignore[misc]
    """Also write OUT-figure.png: the picture, the map, the mask, its tokens."""

    def prepare(self) -> Sketch:
        from jaxpa.attention.observe import Search
        from jaxpa.media.images import read_image
        from jaxpa.presets import PRESETS

        ways = [name for name in ("word", "box", "polygon") if getattr(self, name) is not None]
        if len(ways) > 1:
            raise JaxpaError(f"--{' and --'.join(ways)} are different masks: give one of them")
        if self.word is None:
            for name in ("caption", "threshold", "steps", "mesh"):
                if getattr(self, name) is not None:
                    raise JaxpaError(f"--{name} would have no effect: it needs the --word that is looked for")
        else:
            Search(self.word, self.caption, self.cut)
            whole("steps", 1 if self.steps is None else self.steps, 1, MAX_STEPS)
        picture, spec = read_image(self.image), spec_of(self.source(download=self.word is not None))
        if self.word is not None:
            spec.check_text_alone("a mask by a word")
        self.check_changes(max(picture.size))
        height, width = spec.canvas(picture.size)
        coverage = PRESETS[spec.settings.preset].coverage if self.coverage is None else self.coverage
        if not 0 < real("--coverage", coverage) <= 1:
            raise JaxpaError(f"--coverage must be above 0 and at most 1, not {coverage}")
        if self.word is None:
            mask = self.changed(self.drawn(picture.size))
        else:
            mask = None
            maps = 4 * spec.blocks * (height * width // spec.cell**2) ** 2  # every block's attention, image to image
            self.require_memory(Request(prompt=self.caption or self.word), (height, width), maps)
        outputs = self.settle([{}])
        return Sketch(picture, mask, (height // spec.cell, width // spec.cell), coverage, outputs)

    def inputs(self) -> list[Path]:
        return [self.image]

    def record(self) -> MaskProvenance:
        """How the mask comes to be."""
        mask = Masking(**{each.name: getattr(self, each.name) for each in fields(Masking)})
        return with_inputs(MaskProvenance(**self.made_by(), mask=mask), self.keep_paths)

    def make(self, prepared: Sketch) -> Made:
        from jaxpa.media.masks import to_grey, token_mask

        picture, mask, grid, coverage, outputs = prepared
        soft = None
        if mask is None:
            mask, soft = self.found(picture, self.word or "")
            mask = self.changed(mask)
        tokens = token_mask(mask, *grid, coverage)
        share = float(mask.mean())
        found = {
            "covered": round(share, 4),
            "tokens": int(tokens.sum()),
            "grid": grid,
            "coverage": coverage,
        }
        record = replace(self.record(), found=found).as_record()

        def sheet() -> Recorded:
            return self.sheet(picture, soft, mask, tokens, grid), {"figure": ["mask"]}

        outputs = self.save(outputs, [{}], [(to_grey(mask), record)], sheet)
        content, line = report_of(outputs, {"image": str(self.image), "word": self.word, **found})
        line += f": {share:.0%} of the picture, {tokens.sum()} of {grid[0]} x {grid[1]} tokens"
        return Made(content, line)

    @property
    def cut(self) -> float:
        """The threshold, or the usual one."""
        from jaxpa.attention.observe import THRESHOLD

        return THRESHOLD if self.threshold is None else self.threshold

    def check_changes(self, side: int) -> None:
        """Raise JaxpaError for --grow, --shrink or --feather below 0 or beyond a picture's longer side."""
        for name in ("grow", "shrink", "feather"):
            if (pixels := real(f"--{name}", getattr(self, name), 0)) > side:
                raise JaxpaError(f"--{name} {pixels:g} is beyond the picture, whose longer side has {side} pixels")

    def changed(self, mask: np.ndarray) -> np.ndarray:
        """A mask grown, shrunk and feathered. Raises JaxpaError if there is nothing of it, or nothing is left."""
        from jaxpa.media.masks import feather, grow, shrink

        if not mask.max() > 0.5:
            way = next((name for name in ("box", "polygon") if getattr(self, name) is not None), "")
            drawn = f"the {way} covers no pixel by more than half: make it larger"
            raise JaxpaError(drawn if way else "the mask is empty: lower the threshold, or look for another word")
        for pixels, change in ((self.grow, grow), (self.shrink, shrink), (self.feather, feather)):
            mask = change(mask, pixels) if pixels else mask
        if not mask.max() > 0.5:
            raise JaxpaError("the mask is empty: shrink it less")
        return mask

    def found(self, picture: "Image.Image", word: str) -> "tuple[np.ndarray, Image.Image]":
        """The mask at the picture's size (H, W), and the map it was cut from (its pixels are tokens)."""
        from jaxpa.media.masks import to_grey

        with console.clock():
            console.LOG.info("looking for %r", word)
            found = self.load().find_mask(picture, word, self.caption, threshold=self.cut, steps=self.steps)
        return found.pixels(picture.size).astype(np.float32), to_grey(found.soft)

    def drawn(self, size: tuple[int, int]) -> np.ndarray:
        """A box, a polygon, or the picture's own transparency: (H, W)."""
        from jaxpa.media.images import alpha_mask
        from jaxpa.media.masks import box_mask, polygon_mask

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
        self,
        picture: "Image.Image",
        soft: "Image.Image | None",
        mask: np.ndarray,
        tokens: np.ndarray,
        grid: tuple[int, int],
    ) -> "Image.Image":
        from jaxpa.media.figures import overlay, sheet
        from jaxpa.media.masks import to_grey

        row = [("picture", picture)]
        if soft is not None:
            row.append((f"attention\n{self.word}", soft))
        return sheet([[*row, ("mask", to_grey(mask)), ("its tokens", overlay(picture, tokens, *grid))]])


def _numbers(flag: Literal["box", "polygon"], text: str, multiple: int) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or len(numbers) % multiple or (flag == "box" and len(numbers) != 4):
        form = "LEFT,TOP,RIGHT,BOTTOM" if flag == "box" else "X,Y,X,Y,X,Y or more"
        raise JaxpaError(f"--{flag} {text!r}: give {form}, as fractions of the picture")
    return numbers
