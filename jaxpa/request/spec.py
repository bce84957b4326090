"""What a request has to fit: the sizes, the schedule and the settings of a checkpoint.

All of it stands in a checkpoint's headers and configs, so a request can be checked and planned before anything loads.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxpa.backbones.variants import VARIANTS, Variant
from jaxpa.config import FluxConfig, Settings
from jaxpa.errors import JaxpaError, did_you_mean, whole
from jaxpa.media.masks import canvas_size
from jaxpa.schedule import flow_times, shifted
from jaxpa.tokens import PATCH

MAX_PIXELS = 2048 * 2048
MAX_STEPS = 1000
LESS, MORE = 0.9, 2.0  # times the checkpoint's area: FLUX.1 is made for up to two megapixels


def grid_of(height: int, width: int, cell: int) -> tuple[int, int]:
    """A canvas in tokens (h, w) of `cell` pixels a side. Raises JaxpaError for one that cannot be cut into them."""
    near = [max(1, round(side / cell)) * cell for side in (height, width)]
    if [height, width] != near:
        raise JaxpaError(
            f"{width} x {height} pixels cannot be cut into tokens of {cell} x {cell}: "
            f"the nearest valid size is {near[1]} x {near[0]}"
        )
    if height * width > MAX_PIXELS:
        raise JaxpaError(f"{width} x {height} pixels are out of range: at most {MAX_PIXELS // 2**20} megapixels")
    return height // cell, width // cell


@dataclass(frozen=True)
class Spec:
    """A checkpoint as far as its headers describe it."""

    config: FluxConfig
    settings: Settings

    @property
    def cell(self) -> int:
        """Pixels along a side of a token."""
        return PATCH * self.config.vae.downscale

    @property
    def variant(self) -> Variant:
        """Which of FLUX.1's sister models it is."""
        return VARIANTS[self.settings.variant]

    @property
    def blocks(self) -> int:
        """Blocks of the transformer, of every kind."""
        return self.config.transformer.blocks

    @property
    def embeds_guidance(self) -> bool:
        """Whether guidance is an input of the network (dev), or takes a second forward (schnell and others)."""
        return self.config.transformer.guidance_embeds

    def guidance(self, guidance: float | None, with_references: bool = False) -> float:
        """The guidance that is asked for; the checkpoint's own, which may be another with references, if none is."""
        own, beside = self.settings.guidance, self.settings.guidance_with_references
        usual = beside if with_references and beside is not None else own
        return usual if guidance is None else guidance

    def grid(self, height: int | None = None, width: int | None = None) -> tuple[int, int]:
        """The canvas in tokens (h, w). Raises JaxpaError for a side that is not a multiple of a token's."""
        size = self.settings.size
        height, width = (size if side is None else whole("a side of the canvas", side, 1) for side in (height, width))
        return grid_of(height, width, self.cell)

    def canvas(self, size: tuple[int, int], height: int | None = None, width: int | None = None) -> tuple[int, int]:
        """The canvas (height, width) for a picture of `size` (W, H): its aspect, and the checkpoint's area."""
        if height is None and width is None:
            height, width = canvas_size(size, self.settings.size, self.cell)
        h, w = self.grid(height, width)
        return h * self.cell, w * self.cell

    def edit_canvas(
        self, size: tuple[int, int], own: tuple[int, int], height: int | None = None, width: int | None = None
    ) -> tuple[tuple[int, int], float]:
        """The canvas (height, width) that shows a picture of `size` (W, H), and the pixels of it to one of the picture.

        own: the picture without what is added to it. That has the checkpoint's scale or a smaller one, so what is added
        adds tokens, up to twice the checkpoint's area; a picture between both limits is shown pixel by pixel.
        """
        if height is not None or width is not None:
            canvas = self.canvas(size, height, width)
            return canvas, min(canvas[1] / size[0], canvas[0] / size[1])
        side = self.settings.size
        least, most = (side / math.sqrt(w * h) for w, h in (size, own))
        scale = min(1.0 if least <= 1 / math.sqrt(LESS) else least, most, least * math.sqrt(MORE))
        if scale == 1:
            w, h = (math.ceil(each / self.cell) * self.cell for each in size)
        else:
            w, h = (max(1, round(each * scale / self.cell)) * self.cell for each in size)
            scale = min(w / size[0], h / size[1])
        self.grid(h, w)
        return (h, w), scale

    def read_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """The size (height, width) at which the network reads a picture of `size` (W, H) in its own sequence.

        Of the sizes of its training, at the checkpoint's scale, the one of the nearest aspect.
        """
        if not self.variant.sizes:
            return self.canvas(size)
        w, h = min(self.variant.sizes, key=lambda each: (abs(size[0] / size[1] - each[0] / each[1]), each))
        height, width = (max(1, round(side * self.settings.size / 1024 / self.cell)) * self.cell for side in (h, w))
        return height, width

    def check_text_alone(self, what: str = "this call") -> None:
        """Raise JaxpaError where the network draws nothing without a picture."""
        if self.variant.reads_channels:
            raise JaxpaError(f"{self.variant.title} draws nothing from text alone, as {what} would have it")

    def times(
        self,
        steps: int | None,
        grid: tuple[int, int],
        sigmas: Sequence[float] | None = None,
        shift: float | None = None,
    ) -> np.ndarray:
        """The flow times of a schedule, (S + 1,), on a canvas of h x w tokens.

        sigmas: the times at which its steps start, in place of evenly spaced ones; they are shifted only by a `shift`
        that is given, in place of the checkpoint's. Raises JaxpaError for a number of steps that is out of range, and
        for sigmas that a shift moves onto each other.
        """
        if sigmas is None:
            steps = self.settings.steps if steps is None else whole("steps", steps, 1, MAX_STEPS)
            if shift is None:
                return flow_times(steps, grid[0] * grid[1], self.config.scheduler)
            starts = 1.0 - np.arange(steps) / steps
        else:
            starts = np.array(sigmas, np.float64)
        times = shifted(np.append(starts, 0.0), 1.0 if shift is None else shift)
        if not (np.diff(times) < 0).all():
            raise JaxpaError(
                f"the schedule's times {times.tolist()} do not fall: keep sigmas, or the shift, less close"
            )
        return times

    def unknown_words(self, text: str) -> list[str]:
        """Words of a text that the captions of its training never had, each with the nearest that they had.

        Empty for a checkpoint that does not list its words.
        """
        known = {word for phrases in self.settings.words.values() for phrase in phrases for word in phrase.split()}
        words = dict.fromkeys(re.findall(r"[^\W\d_]+", text.lower()))
        return [f"{word!r}{did_you_mean(word, sorted(known))}" for word in words if known and word not in known]
