"""Where a subject goes on the canvas: by whole tokens to a centre, or by pixels into a box.

A place counts in fractions of the canvas' width and height, from its top left corner.
"""

import math
from collections.abc import Sequence
from typing import TypeAlias

import jax
import numpy as np

from jaxpa import tokens
from jaxpa.box import Box
from jaxpa.errors import JaxpaError, quoted
from jaxpa.media.masks import bounds
from jaxpa.tokens import Placement

bounding_box = jax.jit(tokens.bounding_box, static_argnums=(1, 2))
shift = jax.jit(tokens.shift, static_argnums=(1, 2))
restrict = jax.jit(tokens.restrict)

Centre: TypeAlias = tuple[float, float]
Place: TypeAlias = Centre | Box

FAR = 16  # canvases: what lies farther off is a slip of the pen, and so is a picture that is shown that small


def to_place(at: Sequence[float] | None, name: str = "the subject") -> Place | None:
    """Two numbers -> a centre (x, y), four -> a Box, both in fractions of the canvas; None stays None.

    JaxpaError, which names the subject: anything else, a number that is not finite or far off, an empty box.
    """
    if at is None:
        return None
    try:
        numbers = () if isinstance(at, str) else tuple(float(number) for number in at)
    except (TypeError, ValueError, OverflowError):
        numbers = ()
    if len(numbers) not in (2, 4):
        raise JaxpaError(
            f"{name} at {quoted(at)}: give a centre (x, y) or a box (left, top, right, bottom), "
            "in fractions of the canvas"
        )
    if not all(abs(number) <= FAR for number in numbers):  # NaN is not
        raise _off_canvas(name, numbers)
    if len(numbers) == 2:
        return numbers
    box = Box(*numbers)
    if box.empty:
        raise JaxpaError(f"{name} at {numbers}: the box is empty, give left < right and top < bottom")
    return box


def parse_place(text: str) -> Place:
    """`X,Y` or `LEFT,TOP,RIGHT,BOTTOM`, in fractions of the canvas. Raises JaxpaError."""
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) not in (2, 4) or not all(map(math.isfinite, numbers)):
        raise JaxpaError(f"{text!r}: give X,Y (the centre) or LEFT,TOP,RIGHT,BOTTOM, as fractions of the canvas")
    place = to_place(numbers)
    assert place is not None
    return place


def show_place(place: Place) -> str:
    """The shortest words that `parse_place` reads as the same place."""
    return ",".join(map(shortest, place))


def shortest(number: float) -> str:
    """The shortest words that are read as the same number."""
    return repr(float(number)).removesuffix(".0")


def _off_canvas(name: str, at: Sequence[float] | None) -> JaxpaError:
    place = "where it is" if at is None else f"at {tuple(at)}"
    return JaxpaError(f"{name} {place} lies off the canvas: places are fractions, 0 to 1, of its width and height")


def window(mask: np.ndarray, size: tuple[int, int], canvas: tuple[int, int], at: Box, stretch: bool, name: str) -> Box:
    """What a canvas of (height, width) shows of a picture of `size` (W, H) once its subject fills the box `at`.

    mask: of the subject, at any resolution. The subject is scaled to fit inside the box, around the same centre, or
    stretched to its aspect. -> a box in pixels of the picture, which may leave it. JaxpaError: nothing of the box is on
    the canvas, or it is too small.
    """
    height, width = canvas
    subject = bounds(mask).scaled(size[0] / mask.shape[1], size[1] / mask.shape[0])
    target = at.scaled(width, height)
    if not stretch:
        target = target.fitted(subject.width / subject.height)
    if target.within(Box(0, 0, width, height)).empty:
        raise _off_canvas(name, at)
    x, y = subject.width / target.width, subject.height / target.height  # pixels of the picture in one of the canvas
    if width * x > FAR * size[0] or height * y > FAR * size[1]:
        raise JaxpaError(f"{name} at {tuple(at)}: the box is too small, make it larger")
    return Box(0, 0, width * x, height * y).moved(subject.left - target.left * x, subject.top - target.top * y)


def put(mask: np.ndarray, grid: tuple[int, int], at: Place | None, name: str) -> tuple[Placement, float]:
    """Bring the middle of the masked tokens (N,) to a centre, by whole cells.

    -> the way of the whole canvas' tokens, and the share of the masked ones that leaves it. A box needs nothing here:
    `window` has seen to it. JaxpaError: no masked token lands on the canvas.
    """
    h, w = grid
    x, y = Box(*map(float, bounding_box(mask, h, w))).centre
    rows, cols = np.zeros(2, np.int32)
    if at is not None and not isinstance(at, Box):
        rows, cols = np.round(np.array([at[1] * h - y, at[0] * w - x])).astype(np.int32)
    where = shift(np.ones(h * w, bool), h, w, rows, cols)
    landed = int(np.asarray(restrict(where, mask).target).sum())
    if not landed:
        raise _off_canvas(name, at)
    return where, 1 - landed / int(mask.sum())
