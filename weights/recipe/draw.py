"""The subjects of the drawn world: eight families, each a list of flat parts, and the brush that paints them.

A family is a function of two hidden proportions (0..1) that returns parts in any units, y pointing down.
The brush then flips, tilts and scales the whole list so that its larger side has exactly the wanted span
and its lowest point stands on the wanted line. It draws at `SUPERSAMPLE` times the picture's size and averages
down, because PIL has no anti-aliased polygons.

The drawings suit an autoencoder that divides the side by four: outlines are 1.7 of 96 pixels wide, the period of
stripes and dots is a quarter of the subject, and no detail needs a larger picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

RGB = tuple[int, int, int]

SUPERSAMPLE = 3
EDGE = 0.0175  # width of the outline, as a part of the picture's side
INK: RGB = (44, 34, 48)

# The six colours a caption may name. None of them is the ground or the sky of any background.
MAIN: dict[str, RGB] = {
    "red": (222, 50, 48),
    "yellow": (255, 211, 46),
    "green": (38, 158, 78),
    "blue": (44, 108, 228),
    "purple": (150, 76, 198),
    "white": (252, 252, 250),
}
# Hidden second colours. No caption names one, so "a red striped mug" is never taken for a white one with red
# stripes.
SECOND: dict[str, RGB] = {
    "cream": (255, 236, 190),
    "navy": (36, 46, 96),
    "orange": (242, 120, 32),
    "pink": (255, 160, 190),
    "turquoise": (60, 200, 196),
    "brown": (122, 74, 46),
}
# Only pairs that differ in lightness: stripes that differ in hue alone do not survive the autoencoder.
PAIRS: dict[str, tuple[str, ...]] = {
    "red": ("cream", "navy", "pink", "turquoise"),
    "yellow": ("navy", "brown", "orange", "turquoise"),
    "green": ("cream", "navy", "pink", "orange"),
    "blue": ("cream", "orange", "pink", "turquoise"),
    "purple": ("cream", "orange", "pink", "turquoise"),
    "white": ("navy", "orange", "pink", "turquoise"),
}
# Paints of parts that do not belong to an identity.
FIXED: dict[str, RGB] = {
    "ink": INK,
    "glass": (196, 230, 246),
    "lamp": (255, 233, 150),
    "wood": (136, 88, 58),
    "stem": (250, 232, 204),
    "coffee": (92, 56, 40),
    "tyre": (58, 54, 64),
    "eye": (255, 255, 255),
    "nose": (226, 112, 122),
}


@dataclass(frozen=True)
class Part:
    """One flat piece: a filled outline, or (`width` > 0, in the family's units) a stroke along its points."""

    points: np.ndarray
    paint: str  # "main", "second" or a name in FIXED
    patterned: bool = False
    width: float = 0.0
    edge: bool = True


@dataclass(frozen=True)
class Look:
    """What the brush needs to know of a subject; `world.Subject` explains the fields."""

    family: str
    colour: str
    pattern: str
    second: str
    shape: tuple[float, float]
    angle: float
    phase: tuple[float, float]
    period: float
    flip: bool
    tilt: float
    x: float
    bottom: float
    span: float


# Geometry -------------------------------------------------------------------------------------------------


def pts(*xy: float) -> np.ndarray:
    return np.array(xy, dtype=float).reshape(-1, 2)


def oval(cx: float, cy: float, rx: float, ry: float, start: float = 0, stop: float = 360, n: int = 26) -> np.ndarray:
    """Points on an ellipse; degrees run clockwise from the right because y points down."""
    t = np.radians(np.linspace(start, stop, n, endpoint=stop - start < 360))
    return np.stack([cx + rx * np.cos(t), cy + ry * np.sin(t)], axis=1)


def box(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    return pts(x0, y0, x1, y0, x1, y1, x0, y1)


def soft(points: np.ndarray, cut: float = 0.16, rounds: int = 2) -> np.ndarray:
    """Corner cutting (Chaikin): a closed outline with rounded corners."""
    for _ in range(rounds):
        after = np.roll(points, -1, axis=0)
        points = np.stack([points + cut * (after - points), after + cut * (points - after)], axis=1).reshape(-1, 2)
        cut = 0.25
    return points


def arc(*args: float) -> np.ndarray:
    return oval(*args, n=18)


# Families -------------------------------------------------------------------------------------------------


def mug(a: float, b: float) -> list[Part]:
    w, h = 0.40 + 0.10 * a, 0.50
    side = np.concatenate([pts(-w, -h), oval(0, h - 0.1, w * 0.9, 0.12, 180, 0, n=16), pts(w, -h)])
    return [
        Part(arc(w - 0.03, -0.02, 0.26 + 0.09 * b, 0.27, -88, 88), "second", width=0.13),
        Part(side, "main", patterned=True),
        Part(oval(0, -h, w, 0.13), "second"),
        Part(oval(0, -h + 0.015, w - 0.075, 0.08), "coffee"),
    ]


def house(a: float, b: float) -> list[Part]:
    peak, door, sill = -0.44 - 0.20 * a, -0.24 + 0.04 * b, 0.36 + 0.05 * b
    doorway = [pts(door - 0.1, 0.56), oval(door, 0.28, 0.1, 0.1, 180, 360, n=10), pts(door + 0.1, 0.56)]
    return [
        Part(box(0.2, peak + 0.02, 0.34, 0.0), "wood"),
        Part(box(-0.47, -0.08, 0.47, 0.56), "main", patterned=True),
        Part(soft(pts(-0.62, -0.05, 0, peak, 0.62, -0.05), 0.07), "second"),
        Part(np.concatenate(doorway), "wood"),
        Part(box(0.1, 0.14, 0.34, sill), "lamp"),
        Part(pts(0.22, 0.14, 0.22, sill), "ink", width=0.025, edge=False),
        Part(pts(0.1, 0.25, 0.34, 0.25), "ink", width=0.025, edge=False),
        Part(oval(0, peak * 0.5, 0.08, 0.08), "lamp"),
    ]


def car(a: float, b: float) -> list[Part]:
    roof, tail, r = -0.36 - 0.08 * a, 0.36 + 0.16 * b, 0.155
    cabin = pts(-0.40, -0.05, -0.22, roof, tail - 0.16, roof, tail + 0.02, -0.05)
    front = pts(-0.30, -0.05, -0.185, roof + 0.075, 0.0, roof + 0.075, 0.0, -0.05)
    rear = pts(0.07, -0.05, 0.07, roof + 0.075, tail - 0.2, roof + 0.075, tail - 0.09, -0.05)
    hull = pts(-0.70, 0.24, -0.70, 0.02, -0.58, -0.05, -0.3, -0.08, 0.62, -0.08, 0.68, 0.0, 0.70, 0.24)
    return [
        Part(soft(cabin, 0.12), "main"),
        Part(soft(front, 0.06, 1), "glass"),
        Part(soft(rear, 0.06, 1), "glass"),
        Part(soft(hull, 0.2), "main", patterned=True),
        Part(pts(-0.68, 0.2, 0.68, 0.2), "second", width=0.07),
        Part(oval(-0.63, 0.06, 0.055, 0.055), "lamp"),
        Part(oval(-0.38, 0.24, r, r), "tyre"),
        Part(oval(0.38, 0.24, r, r), "tyre"),
        Part(oval(-0.38, 0.24, 0.085, 0.085), "second", edge=False),
        Part(oval(0.38, 0.24, 0.085, 0.085), "second", edge=False),
    ]


def fish(a: float, b: float) -> list[Part]:
    h, fork = 0.26 + 0.08 * a, 0.22 + 0.1 * b
    t = np.linspace(0, math.pi, 18)
    # A drop: round at the mouth (left), drawn out to a thin root of the tail.
    x, y = -0.5 + 0.84 * (t / math.pi) ** 1.15, h * np.sin(t) ** 0.8 + 0.05 * t / math.pi
    body = np.concatenate([np.stack([x, -y], 1), np.stack([x, y], 1)[::-1]])
    gill = oval(-0.25, 0, 0.1, h * 0.9, 90, -90, n=10)
    head = np.concatenate([body[body[:, 0] < -0.22], gill])
    head = head[np.argsort(np.arctan2(head[:, 1], head[:, 0] + 0.32))]
    tail = pts(0.26, 0, 0.44, -fork - 0.05, 0.64, -fork - 0.08, 0.52, 0, 0.64, fork + 0.08, 0.44, fork + 0.05)
    return [
        Part(soft(tail, 0.14), "second"),
        Part(soft(pts(-0.26, -h * 0.8, -0.02, -h - 0.19, 0.22, -h - 0.13, 0.16, -h * 0.5), 0.18), "second"),
        Part(soft(pts(-0.12, h * 0.8, 0.04, h + 0.14, 0.16, h + 0.1, 0.12, h * 0.5), 0.18), "second"),
        Part(body, "main", patterned=True),
        Part(head, "main"),
        Part(soft(pts(-0.1, 0.02, 0.08, 0.02, 0.1, 0.15, -0.02, 0.15), 0.2), "second"),
        Part(oval(-0.31, -0.07, 0.075, 0.075), "eye"),
        Part(oval(-0.325, -0.065, 0.038, 0.038, n=14), "ink", edge=False),
        Part(arc(-0.46, 0.06, 0.09, 0.06, 20, 110), "ink", width=0.03, edge=False),
    ]


def mushroom(a: float, b: float) -> list[Part]:
    top, foot = 0.44 + 0.14 * a, 0.16 + 0.07 * b
    stem = pts(-foot * 0.8, -0.05, foot * 0.8, -0.05, foot, 0.3, foot * 1.35, 0.5, -foot * 1.35, 0.5, -foot, 0.3)
    cap = np.concatenate([oval(0, 0, 0.58, top + 0.02, 180, 360), oval(0, 0, 0.58, 0.12, 0, 180, n=16)])
    return [
        Part(soft(stem, 0.16), "stem"),
        Part(
            soft(pts(-foot - 0.07, 0.24, -foot * 0.7, 0.08, foot * 0.7, 0.08, foot + 0.07, 0.24), 0.12),
            "second",
        ),
        Part(cap, "main", patterned=True),
        Part(oval(0, 0.035, 0.46, 0.085), "second"),
    ]


def star(a: float, b: float) -> list[Part]:
    waist, rim = 0.50 + 0.1 * a, 0.91 - 0.05 * b
    turn = np.radians(-90 + 36 * np.arange(10))
    radius = np.where(np.arange(10) % 2, waist, 1.0)[:, None]
    tips = np.stack([np.cos(turn), np.sin(turn)], 1) * radius
    return [
        Part(soft(tips, 0.15), "second"),
        Part(soft(tips * rim, 0.12), "main", patterned=True, edge=False),
        Part(oval(0, 0.02, 0.29, 0.25), "main", edge=False),  # a face is hard to see on stripes
        Part(oval(-0.13, -0.05, 0.065, 0.1, n=16), "ink", edge=False),
        Part(oval(0.13, -0.05, 0.065, 0.1, n=16), "ink", edge=False),
        Part(arc(0, 0.08, 0.13, 0.1, 10, 170), "ink", width=0.055, edge=False),
    ]


def boat(a: float, b: float) -> list[Part]:
    peak, jib = -0.58 - 0.12 * a, 0.34 + 0.12 * b
    sail = np.concatenate([pts(0.05, peak + 0.08), pts(0.28, peak * 0.42), pts(0.53, 0.04), pts(0.05, 0.04)])
    fore = np.concatenate([pts(-0.06, peak + 0.14), pts(-0.06, 0.04), pts(-jib, 0.04)])
    hull = pts(-0.66, 0.14, 0.66, 0.14, 0.56, 0.36, 0.42, 0.5, -0.42, 0.5, -0.56, 0.34)
    return [
        Part(pts(0, 0.16, 0, peak - 0.06), "wood", width=0.05),
        Part(soft(pts(0, peak - 0.08, 0.2, peak - 0.02, 0, peak + 0.04), 0.05, 1), "second"),
        Part(soft(sail, 0.06), "main", patterned=True),
        Part(soft(fore, 0.06), "main"),
        Part(soft(hull, 0.1), "main", patterned=True),
        Part(soft(box(-0.69, 0.11, 0.69, 0.2), 0.1), "second"),
    ]


def cat(a: float, b: float) -> list[Part]:
    wide, ear = 0.29 + 0.07 * a, 0.24 + 0.12 * b
    ears = [soft(pts(s * 0.36, -0.25, s * 0.33, -0.42 - ear, s * 0.05, -0.46), 0.08) for s in (-1, 1)]
    inner = [soft(pts(s * 0.29, -0.38, s * 0.285, -0.35 - ear, s * 0.14, -0.46), 0.08) for s in (-1, 1)]
    tail = np.concatenate([oval(0.34, 0.34, 0.24, 0.2, 90, -20, n=12), oval(0.64, 0.2, 0.08, 0.14, 150, 260, n=6)])
    body = pts(-0.22, -0.15, 0.22, -0.15, wide, 0.2, wide + 0.06, 0.56, -wide - 0.06, 0.56, -wide, 0.2)
    parts = [
        Part(tail, "main", width=0.12),
        Part(tail[-6:], "second", width=0.12, edge=False),
        Part(soft(body), "main", patterned=True),
        Part(oval(-0.14, 0.53, 0.12, 0.075, n=18), "second"),
        Part(oval(0.14, 0.53, 0.12, 0.075, n=18), "second"),
        *[Part(e, "main") for e in ears],
        *[Part(e, "second", edge=False) for e in inner],
        Part(oval(0, -0.24, 0.40, 0.29), "main"),
        Part(oval(0, -0.12, 0.17, 0.11, n=20), "stem", edge=False),
        Part(pts(-0.07, -0.2, 0.07, -0.2, 0, -0.12), "ink", edge=False),
        Part(pts(0, -0.14, 0, -0.07), "ink", width=0.03, edge=False),
    ]
    for s in (-1, 1):
        parts += [
            Part(oval(s * 0.19, -0.27, 0.075, 0.085, n=16), "eye"),
            Part(oval(s * 0.18, -0.265, 0.04, 0.065, n=14), "ink", edge=False),
            Part(pts(s * 0.25, -0.14, s * 0.5, -0.18), "ink", width=0.022, edge=False),
            Part(pts(s * 0.25, -0.08, s * 0.49, -0.05), "ink", width=0.022, edge=False),
        ]
    return parts


FAMILIES: dict[str, Callable[[float, float], list[Part]]] = {
    "mug": mug,
    "house": house,
    "car": car,
    "fish": fish,
    "mushroom": mushroom,
    "star": star,
    "boat": boat,
    "cat": cat,
}


# The brush ------------------------------------------------------------------------------------------------


class Frame:
    """The map from a family's units to a window of the large canvas: flip, tilt, scale and shift.

    canvas: its height and width; unit: the length that spans and line widths are parts of. All in pixels.
    """

    def __init__(self, look: Look, parts: list[Part], canvas: tuple[int, int], unit: int):
        across = np.array(canvas[::-1])
        c, s = math.cos(math.radians(look.tilt)), math.sin(math.radians(look.tilt))
        f = -1.0 if look.flip else 1.0
        self.turn = np.array([[f * c, f * s], [-s, c]])  # row vectors: p @ turn
        # A stroke reaches half its width beyond its points.
        reach = [(p.points @ self.turn, p.width / 2) for p in parts]
        low = np.min([q.min(0) - w for q, w in reach], axis=0)
        high = np.max([q.max(0) + w for q, w in reach], axis=0)
        self.unit = float((high - low).max())
        self.scale = look.span * unit / self.unit
        anchor = np.array([(low[0] + high[0]) / 2, high[1]])
        self.shift = np.array([look.x, look.bottom]) * across - anchor * self.scale
        self.centre = (low + high) / 2 @ self.turn.T  # in family units: where a pattern is anchored
        self.low, self.high = low * self.scale + self.shift, high * self.scale + self.shift
        # Only this window of the canvas is drawn, for speed: whole pixels of the picture, outlines included.
        rim, step = EDGE * unit, SUPERSAMPLE
        self.first = np.clip((self.low - rim) // step, 0, across // step - 1).astype(int)
        self.last = np.clip((self.high + rim) // step + 1, self.first + 1, across // step).astype(int)
        self.size = tuple(((self.last - self.first) * step).tolist())
        self.shift = self.shift - self.first * step

    def __call__(self, points: np.ndarray) -> np.ndarray:
        return points @ self.turn * self.scale + self.shift


def extent(size: int | tuple[int, int]) -> tuple[int, int]:
    """One side of a square, or (height, width) -> (height, width)."""
    return (size, size) if isinstance(size, int) else size


def middles(pixels: int) -> np.ndarray:
    """Where the pixels of a side have their middles, as parts of it."""
    return (np.arange(pixels, dtype=np.float32) + 0.5) / pixels


def flat(points: np.ndarray) -> list[float]:
    return points.ravel().tolist()


def pattern_sheet(look: Look, frame: Frame) -> Image.Image:
    """The main colour with the subject's stripes or dots all over the window, to be pasted through a part."""
    sheet = Image.new("RGBA", frame.size, (*MAIN[look.colour], 255))
    pen, ink = ImageDraw.Draw(sheet), (*SECOND[look.second], 255)
    t = math.radians(look.angle)
    along, across = np.array([math.cos(t), math.sin(t)]), np.array([-math.sin(t), math.cos(t)])
    if look.pattern == "striped":
        for k in range(-4, 5):
            middle = across * (k + look.phase[0]) * look.period
            edge = across * look.period * 0.2
            ends = middle - along, middle + along
            band = np.stack([ends[0] - edge, ends[1] - edge, ends[1] + edge, ends[0] + edge])
            pen.polygon(flat(frame(band * frame.unit + frame.centre)), fill=ink)
    elif look.pattern == "dotted":
        row, column = (g.ravel() for g in np.mgrid[-4:5, -4:5])
        u = column + look.phase[0] + 0.5 * (row % 2)  # every second row is shifted by half a period
        dots = look.period * (u[:, None] * along + 0.87 * (row + look.phase[1])[:, None] * across)
        r = look.period * 0.29 * frame.unit * frame.scale
        for x, y in frame(dots[np.abs(dots).max(1) < 0.62] * frame.unit + frame.centre).tolist():
            pen.ellipse((x - r, y - r, x + r, y + r), fill=ink)
    return sheet


def outline(pen: ImageDraw.ImageDraw, points: np.ndarray, width: float) -> None:
    """The dark line around a closed part."""
    pen.line(flat(np.concatenate([points, points[:1]])), fill=(*INK, 255), width=max(1, round(width)))
    # PIL's joints leave gaps or are slow; a dense outline turns too little at a point to need one.
    for x, y in points.tolist() if len(points) <= 12 else ():
        dot(pen, x, y, width, (*INK, 255))


def stroke(pen: ImageDraw.ImageDraw, points: np.ndarray, width: float, fill: tuple[int, ...]) -> None:
    """A line with round ends, as one ribbon: segments would show as scales on a thick curve."""
    along = np.gradient(points, axis=0)
    across = along[:, ::-1] * (-0.5, 0.5) * width / np.linalg.norm(along, axis=1, keepdims=True)
    pen.polygon(flat(np.concatenate([points + across, (points - across)[::-1]])), fill=fill)
    for x, y in points[[0, -1]].tolist():
        dot(pen, x, y, width, fill)


def dot(pen: ImageDraw.ImageDraw, x: float, y: float, width: float, fill: tuple[int, ...]) -> None:
    r = (width - 1) / 2
    pen.ellipse((x - r, y - r, x + r, y + r), fill=fill)


def draw_subject(
    look: Look, size: int | tuple[int, int], unit: int | None = None
) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float]]:
    """-> colour already multiplied by coverage (H, W, 3) in 0..255, coverage (H, W) in 0..1, and the
    footprint for a shadow: its middle, its half width and the line it stands on, as parts of width and height.

    size: of the picture, (H, W) or one side; unit: the pixels that `span` is a part of, or None: the shorter side."""
    canvas = extent(size)
    side = (min(canvas) if unit is None else unit) * SUPERSAMPLE
    parts = FAMILIES[look.family](*look.shape)
    frame = Frame(look, parts, (canvas[0] * SUPERSAMPLE, canvas[1] * SUPERSAMPLE), side)
    layer = Image.new("RGBA", frame.size, (0, 0, 0, 0))
    pen, edge = ImageDraw.Draw(layer), EDGE * side
    paints = {**FIXED, "main": MAIN[look.colour], "second": SECOND[look.second]}
    sheet = None if look.pattern == "plain" else pattern_sheet(look, frame)
    for part in parts:
        points, fill = frame(part.points), (*paints[part.paint], 255)
        if part.width:
            if part.edge:
                stroke(pen, points, part.width * frame.scale + edge, (*INK, 255))
            width = part.width * frame.scale - (edge if part.edge else 0)
            stroke(pen, points, max(width, 0.012 * side), fill)
            continue
        if part.patterned and sheet is not None:
            stencil = Image.new("L", frame.size)
            ImageDraw.Draw(stencil).polygon(flat(points), fill=255)
            layer.paste(sheet, mask=stencil)
        else:
            pen.polygon(flat(points), fill=fill)
        if part.edge:
            outline(pen, points, edge)
    small = np.zeros((*canvas, 4), np.float32)
    (x0, y0), (x1, y1) = frame.first, frame.last
    small[y0:y1, x0:x1] = np.asarray(layer.convert("RGBa").reduce(SUPERSAMPLE))
    across = np.array(canvas[::-1]) * SUPERSAMPLE
    low, high = frame.low / across, frame.high / across
    foot = ((low[0] + high[0]) / 2, (high[0] - low[0]) / 2, high[1])
    return small[..., :3] * light(canvas, low, high), small[..., 3] / 255, foot


def light(size: tuple[int, int], low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Light from the upper left: a gentle fall of brightness over the subject's box, (H, W, 1)."""
    v, u = (middles(each) for each in size)
    across, down = (u - low[0]) / (high[0] - low[0]), (v - low[1]) / (high[1] - low[1])
    shade = 1.02 - 0.09 * np.clip(across, 0, 1)[None, :] - 0.13 * np.clip(down, 0, 1)[:, None]
    return np.minimum(shade, 1.0)[..., None]
