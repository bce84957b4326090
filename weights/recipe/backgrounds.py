"""The places of the drawn world: eight backgrounds, told apart by ground, sky and one or two landmarks.

A place is a function that paints with a pen on a large canvas. Positions are fractions of its width and height, lengths
are parts of a unit, and `kx` and `ky` turn a length into a fraction: a wider canvas has more trees, not wider ones.
Details (the sun's position, the heights of trees and houses, the shape of the hills) come from a Generator. No place
fills a larger area with a colour that a caption can name for a subject: greens are pale or dark, whites are tinted, and
the night is darker than any blue. Every ground reaches above the line on which subjects stand (80% of the height or
lower).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw

from weights.recipe.draw import RGB, SUPERSAMPLE, pts

Rng = np.random.Generator


class Canvas:
    """A picture whose drawing functions take fractions of its sides and parts of its unit, not pixels."""

    def __init__(self, height: int, width: int, unit: int):
        self.height, self.width, self.unit = height, width, unit
        self.kx, self.ky = unit / width, unit / height
        self.image = Image.new("RGB", (width, height))
        self.pen = ImageDraw.Draw(self.image)

    def gradient(self, top: RGB, bottom: RGB, y0: float, y1: float, x0: float = 0.0, x1: float = 1.0) -> None:
        left, right = (round(v * self.width) for v in (x0, x1))
        up, down = (round(v * self.height) for v in (y0, y1))
        ramp = np.linspace(top, bottom, down - up).round().astype(np.uint8)[:, None]
        self.image.paste(Image.fromarray(ramp).resize((right - left, down - up), Image.Resampling.NEAREST), (left, up))

    def shape(self, colour: RGB, *xy: float) -> None:
        self.pen.polygon(self._pixels(*xy), fill=colour)

    def disc(self, colour: RGB, x: float, y: float, rx: float, ry: float | None = None) -> None:
        """An ellipse; its radii are lengths."""
        rx, ry = rx * self.kx, (rx if ry is None else ry) * self.ky
        self.pen.ellipse(self._pixels(x - rx, y - ry, x + rx, y + ry), fill=colour)

    def box(self, colour: RGB, x0: float, y0: float, x1: float, y1: float) -> None:
        self.pen.rectangle(self._pixels(x0, y0, x1, y1), fill=colour)

    def line(self, colour: RGB, width: float, *xy: float) -> None:
        self.pen.line(self._pixels(*xy), fill=colour, width=max(1, round(width * self.unit)))

    def hills(self, colour: RGB, y: float, height: float, phase: float, waves: float = 1.0) -> None:
        """Everything below a rolling line; `waves` to a unit of length."""
        x, waves = np.linspace(0, 1, self.count(25)), waves / self.kx
        roll = np.sin(2 * math.pi * (waves * x + phase)) + 0.35 * np.sin(2 * math.pi * (2.3 * waves * x + 1.7 * phase))
        top = np.stack([x, y - height * self.ky * roll], axis=1).ravel().tolist()
        self.shape(colour, *top, 1, 1, 0, 1)

    def count(self, number: int) -> int:
        """How many things a canvas of this width has, if one of a unit has `number`."""
        return max(1, round(number / self.kx))

    def _pixels(self, *xy: float) -> list[float]:
        return [v * (self.width, self.height)[i % 2] for i, v in enumerate(xy)]


def cloud(c: Canvas, x: float, y: float, r: float, colour: RGB) -> None:
    for dx, dy, k in ((-1.1, 0.25, 0.65), (0, 0, 1), (1.15, 0.2, 0.7)):
        c.disc(colour, x + c.kx * dx * r, y + c.ky * dy * r, k * r, 0.8 * k * r)
    kx, ky = c.kx, c.ky
    c.box(colour, x - 1.5 * kx * r, y + 0.25 * ky * r, x + 1.6 * kx * r, y + 0.76 * ky * r)


def fir(c: Canvas, x: float, foot: float, h: float, green: RGB, snow: RGB | None = None) -> None:
    """A conifer of three tiers, `h` long; with snow, the upper part of every tier is white."""
    w, h = h * c.kx, h * c.ky
    c.box((98, 70, 56), x - 0.07 * w, foot - 0.16 * h, x + 0.07 * w, foot)
    for k in range(3):
        low, wide = foot - h * (0.12 + 0.25 * k), w * (0.34 - 0.07 * k)
        top = low - 0.42 * h
        c.shape(green, x - wide, low, x + wide, low, x, top)
        if snow is not None:
            c.shape(snow, x - wide * 0.55, low - 0.19 * h, x, low - 0.13 * h, x + wide * 0.55, low - 0.19 * h, x, top)


def beach(c: Canvas, rng: Rng) -> None:
    sea, sand = rng.uniform(0.38, 0.46), rng.uniform(0.60, 0.66)
    c.gradient((112, 200, 240), (206, 240, 248), 0, sea)
    c.disc((255, 244, 176), rng.uniform(0.15, 0.85), rng.uniform(0.10, 0.2), 0.085)
    c.gradient((28, 150, 186), (92, 208, 210), sea, sand + 0.04)
    wave = rng.uniform()
    c.hills((250, 252, 244), sand - 0.005, 0.012, wave, 1.5)
    c.hills((244, 220, 168), sand + 0.025, 0.012, wave, 1.5)
    c.hills((236, 206, 148), 0.9, 0.02, rng.uniform(), 1.0)
    side = -1 if rng.uniform() < 0.5 else 1
    x, y = 0.5 + side * rng.uniform(0.36, 0.42), rng.uniform(0.18, 0.26)
    kx, ky, bark = c.kx, c.ky, (150, 104, 66)
    foot, half = x + side * 0.06 * kx, x + side * 0.03 * kx
    c.shape(
        bark,
        foot - 0.026 * kx,
        sand + 0.12,
        half - 0.02 * kx,
        0.45,
        x - 0.014 * kx,
        y,
        x + 0.014 * kx,
        y,
        half + 0.02 * kx,
        0.45,
        foot + 0.026 * kx,
        sand + 0.12,
    )
    for reach, droop, colour in (
        (0.19, 0.1, (34, 104, 84)),
        (0.2, 0.0, (44, 128, 96)),
        (0.12, 0.17, (44, 128, 96)),
    ):
        for s in (-1, 1):
            top = x + s * 0.55 * reach * kx, y + (0.3 * droop - 0.075) * ky
            tip = x + s * reach * kx, y + droop * ky
            c.shape(colour, x, y + 0.012 * ky, x, y - 0.03 * ky, *top, *tip, top[0], top[1] + 0.045 * ky)


def forest(c: Canvas, rng: Rng) -> None:
    c.gradient((196, 220, 200), (150, 190, 168), 0, 0.7)
    for x in np.arange(c.count(5)) / (4.4 / c.kx) + rng.uniform(-0.08, 0.08):
        fir(c, float(x), 0.68, rng.uniform(0.4, 0.5), (122, 164, 146))
    for x in np.arange(c.count(4)) / (3 / c.kx) + rng.uniform(-0.1, 0.1):
        fir(c, float(x), 0.72, rng.uniform(0.5, 0.62), (70, 116, 102))
    c.hills((58, 90, 74), 0.68, 0.015, rng.uniform(), 1.2)
    for x in (rng.uniform(0.03, 0.11), rng.uniform(0.89, 0.97)):
        w = rng.uniform(0.045, 0.06) * c.kx
        c.shape((104, 74, 60), x - w, 0, x + w, 0, x + w, 0.74, x + 1.6 * w, 0.8, x - 1.6 * w, 0.8, x - w, 0.74)
        c.box((82, 58, 50), x + 0.3 * w, 0, x + w, 0.75)
    for k in range(leaves := c.count(6)):  # they hang in from above, lower at the sides
        x = k / max(1, leaves - 1) + rng.uniform(-0.04, 0.04)
        c.disc((46, 88, 72), x, 0.0, 0.13, 0.07 + 0.36 * (x - 0.5) ** 2)
    c.hills((46, 74, 62), 0.86, 0.015, rng.uniform(), 0.9)


def night(c: Canvas, rng: Rng) -> None:
    c.gradient((22, 24, 72), (82, 72, 146), 0, 0.8)
    columns = c.count(4)
    for k in range(4 * columns):  # one star in each cell: clusters would look like noise
        x, y = (k % columns + rng.uniform(0.15, 0.85)) / columns, (k // columns + rng.uniform(0.15, 0.85)) * 0.16
        c.disc((255, 246, 208), x, y, rng.uniform(0.006, 0.013))
    x, y, turn = rng.uniform(0.14, 0.86), rng.uniform(0.13, 0.22), rng.choice([-0.6, 0.6 + math.pi])
    outer, inner = np.linspace(-1.9, 1.9, 20) + turn, np.linspace(1.9, -1.9, 20) * 0.82 + turn
    rim = np.stack([np.cos(outer), np.sin(outer)], 1) * 0.1
    bite = np.stack([np.cos(inner), np.sin(inner)], 1) * 0.094
    bite -= 0.048 * np.array([math.cos(turn), math.sin(turn)])
    moon = np.concatenate([rim, bite]) * (c.kx, c.ky) + np.array([x, y])
    c.shape((255, 240, 184), *moon.ravel().tolist())
    c.hills((56, 56, 108), 0.66, 0.04, rng.uniform(), 1.1)
    c.hills((46, 48, 92), 0.76, 0.025, rng.uniform(), 0.8)


def snow(c: Canvas, rng: Rng) -> None:
    c.gradient((150, 178, 212), (206, 218, 234), 0, 0.7)
    c.hills((184, 202, 226), 0.56, 0.05, rng.uniform(), 1.0)
    for x in (
        rng.uniform(0.04, 0.14),
        rng.uniform(0.26, 0.42),
        rng.uniform(0.58, 0.74),
        rng.uniform(0.86, 0.96),
    ):
        fir(c, x, 0.68, rng.uniform(0.34, 0.5), (72, 108, 120), (238, 244, 250))
    c.hills((222, 231, 243), 0.66, 0.018, rng.uniform(), 0.9)
    c.hills((206, 219, 237), 0.84, 0.018, rng.uniform(), 1.2)
    columns = c.count(4)
    for k in range(4 * columns):
        x, y = (k % columns + rng.uniform(0.1, 0.9)) / columns, (k // columns + rng.uniform(0.1, 0.9)) / 4
        c.disc((250, 252, 255), x, y, rng.uniform(0.009, 0.014))


def desert(c: Canvas, rng: Rng) -> None:
    c.gradient((250, 176, 116), (254, 226, 178), 0, 0.62)
    c.disc((255, 246, 210), rng.uniform(0.2, 0.8), rng.uniform(0.16, 0.3), 0.1)
    c.hills((226, 152, 100), 0.54, 0.05, rng.uniform(), 0.9)
    c.hills((214, 134, 84), 0.64, 0.03, rng.uniform(), 0.8)
    for x, h in (
        (rng.uniform(0.07, 0.15), rng.uniform(0.3, 0.4)),
        (rng.uniform(0.84, 0.93), rng.uniform(0.22, 0.34)),
    ):
        foot, w, green, h = 0.72, 0.05, (74, 112, 84), h * c.ky
        c.line(green, w, x, foot, x, foot - h)
        c.disc(green, x, foot - h, w / 2)
        for s, y in ((-0.075 * c.kx, foot - 0.4 * h), (0.075 * c.kx, foot - 0.55 * h)):
            c.line(green, 0.7 * w, x, y, x + s, y, x + s, y - 0.35 * h)
            c.disc(green, x + s, y - 0.35 * h, 0.35 * w)
    c.hills((202, 118, 72), 0.82, 0.02, rng.uniform(), 1.0)


def street(c: Canvas, rng: Rng) -> None:
    c.gradient((176, 196, 214), (232, 226, 220), 0, 0.64)
    tones: Sequence[RGB] = ((150, 128, 130), (122, 134, 152), (176, 154, 138), (132, 120, 140))
    x, first = -rng.uniform(0, 0.1), int(rng.integers(4))
    for k in range(c.count(5)):
        w, top = rng.uniform(0.2, 0.28) * c.kx, rng.uniform(0.08, 0.32)
        c.box(tones[(first + k) % 4], x, top, x + w, 0.64)
        for row in range(4):
            for column in range(2):
                wx, wy = x + w * (0.16 + 0.4 * column), top + 0.05 + 0.12 * row
                if wy < 0.53:
                    c.box(
                        (250, 226, 160) if rng.uniform() < 0.4 else (92, 100, 122),
                        wx,
                        wy,
                        wx + w * 0.28,
                        wy + 0.065,
                    )
        x += w + 0.012 * c.kx
    c.box((186, 182, 178), 0, 0.62, 1, 0.70)
    c.box((140, 138, 140), 0, 0.69, 1, 0.71)
    c.gradient((92, 92, 102), (74, 74, 84), 0.71, 1)
    for k in range(-1, c.count(4)):
        x, kx = (k * 0.34 + first * 0.085) * c.kx, c.kx
        c.shape((226, 222, 206), x + 0.02 * kx, 0.84, x + 0.2 * kx, 0.84, x + 0.18 * kx, 0.872, x, 0.872)


def meadow(c: Canvas, rng: Rng) -> None:
    c.gradient((132, 196, 244), (220, 240, 250), 0, 0.62)
    for _ in range(2):
        cloud(c, rng.uniform(0.1, 0.9), rng.uniform(0.1, 0.3), rng.uniform(0.07, 0.1), (246, 250, 252))
    c.hills((170, 208, 134), 0.54, 0.05, rng.uniform(), 0.9)
    x = rng.choice([rng.uniform(0.08, 0.16), rng.uniform(0.84, 0.92)])
    c.line((128, 92, 66), 0.035, x, 0.64, x, 0.46)
    for dx, dy, r in ((0, 0, 0.1), (-0.07, 0.05, 0.07), (0.07, 0.05, 0.07)):
        c.disc((112, 166, 104), x + dx * c.kx, 0.40 + dy * c.ky, r)
    c.hills((186, 220, 128), 0.64, 0.025, rng.uniform(), 1.0)
    c.hills((166, 208, 112), 0.84, 0.02, rng.uniform(), 0.8)
    columns = c.count(5)
    for k in range(2 * columns):
        fx, fy = (k % columns + rng.uniform(0.15, 0.85)) / columns, 0.74 + 0.14 * (k // columns) + rng.uniform(0, 0.1)
        petal: RGB = ((255, 255, 250), (250, 170, 196), (255, 236, 130))[int(rng.integers(3))]
        for dx, dy in ((-1, 0), (1, 0), (0, -1), (0, 1)):
            c.disc(petal, fx + 0.011 * c.kx * dx, fy + 0.011 * c.ky * dy, 0.011)
        c.disc((238, 160, 60), fx, fy, 0.008)


def room(c: Canvas, rng: Rng) -> None:
    floor = rng.uniform(0.66, 0.70)
    c.gradient((240, 214, 190), (232, 198, 174), 0, floor)
    left = rng.uniform() < 0.5
    x, y = (rng.uniform(0.06, 0.14) if left else rng.uniform(0.54, 0.62)), rng.uniform(0.07, 0.11)
    kx, ky = c.kx, c.ky
    c.box((250, 246, 238), x, y, x + 0.32 * kx, y + 0.36 * ky)
    c.gradient((158, 208, 238), (214, 236, 244), y + 0.025 * ky, y + 0.335 * ky, x + 0.025 * kx, x + 0.295 * kx)
    c.box((250, 246, 238), x + 0.15 * kx, y, x + 0.17 * kx, y + 0.36 * ky)
    c.box((250, 246, 238), x, y + 0.165 * ky, x + 0.32 * kx, y + 0.185 * ky)
    px = x + 0.5 if left else x - 0.36
    c.box((120, 84, 66), px, y + 0.05 * ky, px + 0.22 * kx, y + 0.25 * ky)
    c.box((226, 232, 222), px + 0.025 * kx, y + 0.075 * ky, px + 0.195 * kx, y + 0.225 * ky)
    peaks = pts(0.025, 0.225, 0.09, 0.12, 0.14, 0.18, 0.165, 0.15, 0.195, 0.225)
    c.shape((150, 168, 176), *(peaks * (kx, ky) + (px, y)).ravel().tolist())
    c.box((252, 244, 234), 0, floor - 0.03, 1, floor)
    c.gradient((182, 128, 92), (158, 106, 74), floor, 1)
    for k in range(-3, 10):
        a = 0.5 + (k - 3 + rng.uniform(-0.1, 0.1)) * 0.11
        c.line((146, 98, 70), 0.007, a, floor, 0.5 + (a - 0.5) * 1.9, 1)


PLACES: dict[str, Callable[[Canvas, Rng], None]] = {
    "beach": beach,
    "forest": forest,
    "night": night,
    "snow": snow,
    "desert": desert,
    "street": street,
    "meadow": meadow,
    "room": room,
}


def draw_background(kind: str, detail: int, size: tuple[int, int], unit: int) -> np.ndarray:
    """-> (H, W, 3) float32 in 0..255; the same `detail` gives the same place on the same canvas.

    size: (H, W) in pixels; unit: the pixels that lengths are parts of.
    """
    canvas = Canvas(*(each * SUPERSAMPLE for each in (*size, unit)))
    PLACES[kind](canvas, np.random.default_rng(detail))
    return np.asarray(canvas.image.reduce(SUPERSAMPLE), dtype=np.float32)
