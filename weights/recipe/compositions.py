"""What the embedded checkpoint is trained on: the drawn world on canvases of many shapes, with looser captions.

`world.sample_scene` draws one large subject, or two, on a square: what the judge and the evaluations use. A composition
takes its subjects and composes them anew: on canvases from 64 to 160 pixels a side, small and anywhere, cut by the
border, or leaves them out, so that a place alone can be asked for. A canvas of more than 96 pixels shows more of the
place at the same scale.

`python -m weights.recipe.compositions --out sheet.png` draws the first ones with their captions.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from weights.recipe import world
from weights.recipe.world import BACKGROUNDS, SIZE, Scene, Subject, render_each, sample_scene

CELL = 8  # pixels along a token's side
# Height and width in pixels, and the share of the pictures. Canvases of as many tokens share a compiled program.
CANVASES: tuple[tuple[int, int, float], ...] = (
    (64, 64, 0.14),
    (64, 96, 0.06),
    (96, 64, 0.06),
    (96, 96, 0.40),
    (72, 128, 0.03),
    (128, 72, 0.03),
    (96, 128, 0.06),
    (128, 96, 0.05),
    (128, 128, 0.07),
    (96, 192, 0.05),
    (192, 96, 0.02),
    (160, 160, 0.03),
)
TWO, NONE = 0.30, 0.07  # shares of pictures with two subjects and with none
LEAST = 30  # pixels of the smallest subject's larger side, less on a canvas with no room for two of them
TEMPLATES = (
    *world.TEMPLATES,
    *world.TEMPLATES,  # twice as often as the others
    "an image of {subject} {where}",
    "a photo of {subject} {where}",
    "{subject}",
)
PLACES = {
    "beach": "a beach",
    "forest": "a forest",
    "night": "a night sky",
    "snow": "the snow",
    "desert": "a desert",
    "street": "a city street",
    "meadow": "a meadow",
    "room": "a room",
}
EMPTY = ("{place}", "a picture of {place}", "a drawing of {place}", "{where}", "{where} there is nothing")
WORDS = world.WORDS | {"others": [*world.WORDS["others"], "an", "the", "image", "photo", "nothing"]}

Rng = np.random.Generator


@dataclass(frozen=True)
class Composition:
    scene: Scene
    size: tuple[int, int]  # (H, W) in pixels
    caption: str

    @property
    def unit(self) -> int:
        return unit_of(self.size)


class Picture(NamedTuple):
    """image (H, W, 3) uint8; where (N, len(WHERE)) float16, what `whereabouts` says of each token."""

    image: np.ndarray
    where: np.ndarray


def unit_of(size: tuple[int, int]) -> int:
    """The pixels that lengths are parts of: no more than those of the checkpoint's own canvas."""
    return min(*size, SIZE)


# Placement ------------------------------------------------------------------------------------------------


def between(rng: Rng, low: float, high: float) -> float:
    """Uniform; `low` where there is no room."""
    return float(rng.uniform(low, max(low, high)))


def place_one(subject: Subject, size: tuple[int, int], rng: Rng) -> Subject:
    """Most subjects are as large as in `world` and stand as low. Others are smaller, some of them anywhere, and others
    are cut by the border."""
    unit = unit_of(size)
    ky, kx = unit / size[0], unit / size[1]
    kind = rng.uniform()
    if kind < 0.34:
        span = between(rng, max(0.34, LEAST / unit), 0.56)
        x = between(rng, 0.01 + span * kx / 2, 0.99 - span * kx / 2)
        low = 0.76 if rng.uniform() < 0.6 else 0.0
        return replace(subject, span=span, x=x, bottom=between(rng, max(low, span * ky + 0.03), 0.97))
    span = between(rng, 0.52, 0.84)
    x = between(rng, 0.02 + span * kx / 2, 0.98 - span * kx / 2)
    bottom = between(rng, max(0.80, span * ky + 0.03), 0.94)
    if kind < 0.88:
        return replace(subject, span=span, x=x, bottom=bottom)
    seen = rng.uniform(0.55, 0.9)  # of its length, along the cut
    side = int(rng.integers(4))
    if side < 2:
        inside = span * kx * (seen - 0.5)
        return replace(subject, span=span, x=inside if side == 0 else 1 - inside, bottom=bottom)
    return replace(subject, span=span, x=x, bottom=seen * span * ky if side == 2 else 1 + (1 - seen) * span * ky)


def place_two(subjects: tuple[Subject, ...], size: tuple[int, int], rng: Rng) -> tuple[Subject, ...]:
    """One in each half; most stand on the ground."""
    unit = unit_of(size)
    ky, kx = unit / size[0], unit / size[1]
    out = []
    for slot, subject in enumerate(subjects):
        span = float(rng.uniform(0.8, 1.0)) * min(0.48 / kx, 0.8)
        x = 0.255 + 0.49 * slot + float(rng.uniform(-1, 1)) * max(0.0, 0.24 - span * kx / 2)
        low = 0.80 if rng.uniform() < 0.85 else 0.0
        out.append(replace(subject, span=span, x=x, bottom=between(rng, max(low, span * ky + 0.03), 0.94)))
    return tuple(out)


# Captions -------------------------------------------------------------------------------------------------


def unheard(rng: Rng) -> str:
    """A word that means nothing, so that the networks learn to read past words that they do not know."""
    syllables = rng.integers(1, 4)
    consonants, vowels = rng.integers(20, size=syllables), rng.integers(5, size=syllables)
    return "".join("bcdfghjklmnpqrstvwxz"[c] + "aeiou"[v] for c, v in zip(consonants, vowels, strict=True))


def noun(subject: Subject, rng: Rng) -> list[str]:
    """Its words: the pattern always unless it is plain, the colour nearly always."""
    words = [("a", "the", "")[rng.choice(3, p=(0.75, 0.15, 0.10))]]
    words += [subject.colour] if rng.uniform() < 0.97 else []
    words += [subject.pattern] if subject.pattern != "plain" or rng.uniform() < 0.5 else []
    return [word for word in [*words, subject.family] if word]


def describe(scene: Scene, rng: Rng) -> str:
    where, place = BACKGROUNDS[scene.background.kind], PLACES[scene.background.kind]
    nouns = [noun(subject, rng) for subject in scene.subjects]
    if rng.uniform() < 0.05 and nouns:
        words = nouns[int(rng.integers(len(nouns)))]
        words.insert(int(rng.integers(len(words))), unheard(rng))
    if not nouns:
        return EMPTY[int(rng.integers(len(EMPTY)))].format(place=place, where=where)
    text = TEMPLATES[int(rng.integers(len(TEMPLATES)))]
    return text.format(subject=" and ".join(" ".join(words) for words in nouns), where=where)


# Pictures -------------------------------------------------------------------------------------------------


def compose(rng: Rng, size: tuple[int, int]) -> Composition:
    """A composition for training: no held-out combination."""
    kind = rng.uniform()
    scene = sample_scene(rng, two=float(kind < TWO))
    if kind > 1 - NONE:
        scene = replace(scene, subjects=())
    elif len(scene.subjects) == 1:
        scene = replace(scene, subjects=(place_one(scene.subjects[0], size, rng),))
    else:
        scene = replace(scene, subjects=place_two(scene.subjects, size, rng))
    return Composition(scene, size, describe(scene, rng))


def numbered(seed: int, size: tuple[int, int], number: int) -> Composition:
    """Composition `number` of its size; it does not depend on other ones."""
    return compose(np.random.default_rng([seed, *size, number]), size)


def usual(made: Composition) -> bool:
    """Whether it shows what the checkpoint is mostly asked for: a large, whole subject; two; or a place alone."""
    if len(made.scene.subjects) != 1:
        return True
    (subject,), (height, width) = made.scene.subjects, made.size
    half, high = subject.span * made.unit / width / 2, subject.span * made.unit / height
    return subject.span >= 0.52 and half <= subject.x <= 1 - half and high <= subject.bottom <= 1


WHERE = ("covered", "across", "down", "first or second")


def whereabouts(scene: Scene, masks: np.ndarray, unit: int) -> np.ndarray:
    """For each token, how much of it a subject covers, and where in the subject it lies: (N, 4).

    Every column is weighted by the cover. Across and down run from -1 to 1 over a span around the subject's middle.
    """
    count, height, width = masks.shape
    rows, columns = height // CELL, width // CELL
    cover = masks.reshape(count, rows, CELL, columns, CELL).mean((2, 4))  # (S, h, w)
    out = np.zeros((rows, columns, 4), np.float16)
    y, x = (np.arange(rows) + 0.5)[:, None] * CELL, (np.arange(columns) + 0.5)[None] * CELL
    for i, subject in enumerate(scene.subjects):
        half = subject.span * unit / 2
        across, down = (x - subject.x * width) / half, (y - subject.bottom * height + half) / half
        each = cover[i, ..., None] * np.stack(np.broadcast_arrays(1.0, across, down, 1.0 - 2 * i), -1)
        out = np.where(cover[i, ..., None] >= cover.max(0)[..., None], each, out)
    return out.reshape(-1, 4).astype(np.float16)


def draw(composition: Composition) -> Picture:
    image, masks = render_each(composition.scene, composition.size, composition.unit)
    return Picture(image, whereabouts(composition.scene, masks, composition.unit))


def _draw_job(job: tuple[int, tuple[int, int], int, int]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    seed, size, start, stop = job
    made = [numbered(seed, size, i) for i in range(start, stop)]
    pictures = [draw(each) for each in made]
    return np.stack([p.image for p in pictures]), np.stack([p.where for p in pictures]), [m.caption for m in made]


def dataset(
    seed: int, size: tuple[int, int], first: int, count: int, chunk: int = 256, workers: int = 2
) -> Iterator[tuple[np.ndarray, np.ndarray, list[str]]]:
    """Compositions `first` to `count` of a size, `chunk` at a time.

    -> images (n, H, W, 3) uint8, where (n, N, 4) float16, captions.
    """
    jobs = [(seed, size, i, min(i + chunk, count)) for i in range(first, count, chunk)]
    if workers <= 1 or len(jobs) <= 1:
        yield from map(_draw_job, jobs)
        return
    # Spawn, do not fork: the caller usually holds a JAX runtime, whose threads do not survive a fork.
    with multiprocessing.get_context("spawn").Pool(min(workers, len(jobs))) as pool:
        yield from pool.imap(_draw_job, jobs)


def sheet(seed: int, rows: int = 4) -> Image.Image:
    """The first compositions of every canvas, with their captions."""
    gap, widths = 14, [max(width, 96) for _, width, _ in CANVASES]
    high = max(height for height, _, _ in CANVASES) + gap
    out = Image.new("RGB", (sum(widths) + 4 * len(widths), rows * high), "white")
    pen, x = ImageDraw.Draw(out), 0
    for (height, width, _), step in zip(CANVASES, widths, strict=True):
        for row in range(rows):
            made = numbered(seed, (height, width), row)
            out.paste(Image.fromarray(draw(made).image), (x, row * high + gap))
            for line in range(0, len(made.caption), 40):
                pen.text((x, row * high), made.caption[line : line + 40][: step // 5], fill="black", font_size=7)
                break
        x += step + 4
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw compositions and their captions.")
    parser.add_argument("--out", default="sheet.png")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, default=6)
    args = parser.parse_args()
    sheet(args.seed, args.rows).save(args.out)


if __name__ == "__main__":
    main()
