"""Boxes: one type and one order of sides, whatever the unit."""

from typing import NamedTuple


class Box(NamedTuple):
    """The rectangle [left, right) x [top, bottom); x runs to the right and y down.

    A box carries no unit: a function that takes or returns one says whether it is in fractions, pixels or tokens, and
    `scaled` converts. The sides are numbers, or traced scalars where a function of arrays says so.
    """

    left: float
    top: float
    right: float
    bottom: float

    @property
    def width(self) -> float:
        return self.right - self.left

    @property
    def height(self) -> float:
        return self.bottom - self.top

    @property
    def centre(self) -> tuple[float, float]:
        """(x, y)."""
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2

    def scaled(self, x: float, y: float) -> "Box":
        """In units that are x and y times smaller: fractions of a picture of W x H pixels, scaled(W, H), are pixels."""
        return Box(self.left * x, self.top * y, self.right * x, self.bottom * y)

    def moved(self, x: float, y: float) -> "Box":
        """The box x to the right of this one and y below it."""
        return Box(self.left + x, self.top + y, self.right + x, self.bottom + y)

    def within(self, other: "Box") -> "Box":
        """The part that both boxes cover; `empty` if they do not meet."""
        left, top = max(self.left, other.left), max(self.top, other.top)
        return Box(left, top, min(self.right, other.right), min(self.bottom, other.bottom))

    def fitted(self, aspect: float) -> "Box":
        """The largest box inside this one, around the same centre, whose width is `aspect` times its height."""
        (x, y), width, height = self.centre, self.height * aspect, self.width / aspect
        if width < self.width:
            return Box(x - width / 2, self.top, x + width / 2, self.bottom)
        return Box(self.left, y - height / 2, self.right, y + height / 2)

    @property
    def empty(self) -> bool:
        """Whether it covers nothing; a box with a NaN does not."""
        return not (self.left < self.right and self.top < self.bottom)
