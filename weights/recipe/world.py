"""The world that the embedded checkpoint is trained on: drawn pictures with captions and true masks.

A personalisation method can only be judged if identity is more than a caption says. So every subject has *named*
attributes (family, colour, pattern, background), which a caption tells, and *hidden* ones (a second colour, the
angle, period and phase of its stripes or dots, two proportions, flip, tilt), which no caption mentions: only a
reference picture can supply them. Two scenes with one caption show two instances; a subject before another
background is the same instance, and its mask is known exactly.

    scene = sample_scene(np.random.default_rng(0))
    image, mask = render(scene)                       # pure: a scene is all there is to know
    elsewhere = replace(scene, background=Background("snow", 7))
    moved = replace(scene, subjects=(replace(scene.subjects[0], x=0.7),))

`python -m weights.recipe.world --out sheet.png` draws every family in every pattern on every background.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from weights.recipe import draw
from weights.recipe.backgrounds import draw_background

SIZE = 96
FAMILIES = tuple(draw.FAMILIES)
COLOURS = tuple(draw.MAIN)
PATTERNS = ("plain", "striped", "dotted")
BACKGROUNDS: dict[str, str] = {  # the phrase a caption uses for each
    "beach": "on a beach",
    "forest": "in a forest",
    "night": "under a night sky",
    "snow": "in the snow",
    "desert": "in a desert",
    "street": "on a city street",
    "meadow": "in a meadow",
    "room": "in a room",
}
TEMPLATES = (
    "{subject} {where}",
    "a picture of {subject} {where}",
    "a drawing of {subject} {where}",
    "{where} there is {subject}",
)
VARIANTS = 2 * len(TEMPLATES)  # every template with "plain" said, then every template with it left out
WORDS: dict[str, list[str]] = {  # of all captions, by kind: what a prompt can contain
    "subjects": list(FAMILIES),
    "colours": list(COLOURS),
    "patterns": list(PATTERNS),
    "backgrounds": list(BACKGROUNDS.values()),
    "others": ["a", "and", "picture", "drawing", "of", "there", "is"],
}
VOCABULARY: frozenset[str] = frozenset(" ".join(phrase for kind in WORDS.values() for phrase in kind).split())
MAX_WORDS = 16
HELD_OUT_ONE_IN = 20
FLOATING = {"fish": 0.07}  # how far above its shadow a family hangs, as a part of the side


@dataclass(frozen=True)
class Background:
    kind: str  # a key of BACKGROUNDS
    detail: int  # where sun, trees, windows and hills are


@dataclass(frozen=True)
class Subject(draw.Look):
    """Fields, all inherited so that the brush needs no import from here:

    named       family, colour, pattern
    hidden      second (colour), shape (two proportions, 0..1), angle (degrees, 90 is upright), phase (two, in periods),
                period (as a part of the larger side), flip, tilt (degrees)
    placement   x (middle) as a part of the width, bottom (lowest point) of the height, span (larger side) of the unit:
                the shorter side, unless the renderer is told another
    """


@dataclass(frozen=True)
class Scene:
    subjects: tuple[Subject, ...]  # one, or two from left to right
    background: Background


class Batch(NamedTuple):
    images: np.ndarray  # (n, H, W, 3) uint8
    captions: list[str]
    masks: np.ndarray  # (n, H, W) bool: every subject of the picture
    labels: dict[str, np.ndarray]  # (n,) int32 each: indices into the constants above, and n_subjects


# Sampling -------------------------------------------------------------------------------------------------


def pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def sample_subject(
    rng: np.random.Generator, family: str, colour: str, pattern: str, slot: int | None = None
) -> Subject:
    """Hidden attributes and a placement for given named ones; `slot` 0 or 1 is the left or right half."""
    if slot is None:
        span = float(rng.uniform(0.52, 0.84))
        x = 0.5 + float(rng.uniform(-1, 1)) * (0.48 - span / 2)
        bottom = float(rng.uniform(max(0.80, span + 0.03), 0.94))
    else:
        span = float(rng.uniform(0.42, 0.48))
        x = 0.255 + 0.49 * slot + float(rng.uniform(-1, 1)) * (0.24 - span / 2)
        bottom = float(rng.uniform(0.80, 0.92))
    return Subject(
        family=family,
        colour=colour,
        pattern=pattern,
        second=pick(rng, draw.PAIRS[colour]),
        shape=(float(rng.uniform()), float(rng.uniform())),
        # Upright and coarse: at any angle, or finer, a small model draws blotches.
        angle=float(rng.uniform(70, 110)),
        phase=(float(rng.uniform()), float(rng.uniform())),
        period=float(rng.uniform(0.24, 0.29)),
        flip=bool(rng.uniform() < 0.5),
        tilt=float(rng.uniform(-8, 8)),
        x=x,
        bottom=bottom,
        span=span,
    )


def sample_background(rng: np.random.Generator, kind: str | None = None) -> Background:
    return Background(pick(rng, tuple(BACKGROUNDS)) if kind is None else kind, int(rng.integers(2**31)))


def combination_held_out(family: str, colour: str, background: str) -> bool:
    # Not hash(): Python salts it in every process.
    digest = hashlib.sha256(f"{family} {colour} {background}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % HELD_OUT_ONE_IN == 0


def is_held_out(scene: Scene) -> bool:
    """Whether training never sees this (family, colour, background); evaluation prompts come from these."""
    return any(combination_held_out(s.family, s.colour, scene.background.kind) for s in scene.subjects)


def sample_scene(rng: np.random.Generator, two: float = 0.05, held_out: bool | None = False) -> Scene:
    """A scene of one subject, or with probability `two` of two. `held_out`: False draws for training, True
    for evaluation, None from everything."""
    count = 2 if rng.uniform() < two else 1
    while True:
        background = sample_background(rng)
        subjects = tuple(
            sample_subject(
                rng, pick(rng, FAMILIES), pick(rng, COLOURS), pick(rng, PATTERNS), slot if count == 2 else None
            )
            for slot in range(count)
        )
        scene = Scene(subjects, background)
        if held_out is None or is_held_out(scene) == held_out:
            return scene


def instances(family: str, colour: str, pattern: str, background: str, rng: np.random.Generator) -> Iterator[Scene]:
    """Endless scenes that share their caption and nothing else."""
    while True:
        yield Scene((sample_subject(rng, family, colour, pattern),), sample_background(rng, background))


# Captions -------------------------------------------------------------------------------------------------


def caption(scene: Scene, variant: int | np.random.Generator = 0) -> str:
    """The scene's named attributes as text. `variant` is a number below VARIANTS or a Generator that draws
    it; the first `len(TEMPLATES)` say "plain", the others leave it out."""
    if isinstance(variant, np.random.Generator):
        variant = int(variant.integers(VARIANTS))
    silent, template = divmod(variant % VARIANTS, len(TEMPLATES))
    nouns = [
        f"a {s.colour} {s.family}" if silent and s.pattern == "plain" else f"a {s.colour} {s.pattern} {s.family}"
        for s in scene.subjects
    ]
    return TEMPLATES[template].format(subject=" and ".join(nouns), where=BACKGROUNDS[scene.background.kind])


# Pictures -------------------------------------------------------------------------------------------------


def shadow(size: tuple[int, int], unit: int, foot: tuple[float, float, float], drop: float) -> np.ndarray:
    """A soft ellipse on the ground, (H, W, 1): 1 is light. There is none in the sky."""
    middle, half, ground = foot
    v, u = (draw.middles(each) for each in size)
    far = ((u - middle) / (half * 0.92)) ** 2
    deep = ((v - ground) * (size[0] / unit) - drop + 0.008) / 0.042
    dark = 0.42 * min(max((ground - 0.55) / 0.15, 0.0), 1.0)
    return 1 - dark * np.exp(-1.4 * (far[None, :] ** 2 + deep[:, None] ** 2))[..., None]


def render_each(
    scene: Scene, size: int | tuple[int, int] = SIZE, unit: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """-> image (H, W, 3) uint8 and the silhouette of every subject, (len(scene.subjects), H, W) bool.

    size: the picture's (H, W), or its side; unit: the pixels that lengths are parts of, or None: the shorter side. A
    larger canvas of the same unit shows more of the place, not larger things.
    """
    height, width = draw.extent(size)
    unit = min(height, width) if unit is None else unit
    picture = draw_background(scene.background.kind, scene.background.detail, (height, width), unit)
    drawn = [draw.draw_subject(s, (height, width), unit) for s in scene.subjects]
    for subject, (_, _, foot) in zip(scene.subjects, drawn, strict=True):
        picture *= shadow((height, width), unit, foot, FLOATING.get(subject.family, 0.0))
    for colour, cover, _ in drawn:
        picture = picture * (1 - cover[..., None]) + colour
    masks = np.zeros((len(drawn), height, width), bool)
    for mask, (_, cover, _) in zip(masks, drawn, strict=True):
        mask[:] = cover >= 0.5
    return np.clip(picture + 0.5, 0, 255).astype(np.uint8), masks


def render(scene: Scene, size: int | tuple[int, int] = SIZE, unit: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """-> image (H, W, 3) uint8, mask (H, W) bool of all subjects (`render_each` keeps them apart)."""
    image, masks = render_each(scene, size, unit)
    return image, np.any(masks, axis=0)


def labels_of(scene: Scene) -> tuple[int, ...]:
    first = scene.subjects[0]
    return (
        FAMILIES.index(first.family),
        COLOURS.index(first.colour),
        PATTERNS.index(first.pattern),
        tuple(BACKGROUNDS).index(scene.background.kind),
        len(scene.subjects),
    )


def numbered_scene(seed: int, number: int, two: float = 0.05, held_out: bool | None = False) -> tuple[Scene, str]:
    """Picture `number` of the world `seed`, and its caption; they do not depend on other pictures."""
    rng = np.random.default_rng([seed, number])
    scene = sample_scene(rng, two, held_out)
    return scene, caption(scene, rng)


def render_many(
    seed: int, start: int, count: int, size: int = SIZE, two: float = 0.05, held_out: bool | None = False
) -> Batch:
    """Pictures `start` to `start + count` of the world `seed`; labels are those of the first subject."""
    images = np.empty((count, size, size, 3), np.uint8)
    masks = np.empty((count, size, size), bool)
    labels = np.empty((count, 5), np.int32)
    captions = []
    for i in range(count):
        scene, text = numbered_scene(seed, start + i, two, held_out)
        images[i], masks[i] = render(scene, size)
        labels[i] = labels_of(scene)
        captions.append(text)
    names = ("family", "colour", "pattern", "background", "n_subjects")
    return Batch(images, captions, masks, dict(zip(names, labels.T.copy(), strict=True)))


def _render_job(job: tuple[int, int, int, int, float]) -> Batch:
    return render_many(*job)


def dataset(
    seed: int, count: int, size: int = SIZE, workers: int = 1, chunk: int = 512, first: int = 0, two: float = 0.05
) -> Iterator[Batch]:
    """Pictures `first` to `count` in order, in batches of `chunk`; `workers` changes only the speed."""
    jobs = [(seed, start, min(chunk, count - start), size, two) for start in range(first, count, chunk)]
    if workers <= 1:
        yield from map(_render_job, jobs)
        return
    # Spawn, do not fork: the caller usually holds a JAX runtime, whose threads do not survive a fork.
    with multiprocessing.get_context("spawn").Pool(min(workers, len(jobs))) as pool:
        yield from pool.imap(_render_job, jobs)


# Contact sheet --------------------------------------------------------------------------------------------


def contact_sheet(seed: int = 0, size: int = SIZE) -> Image.Image:
    """A row for every family and pattern, a column for every background; colours take turns."""
    rng, gap = np.random.default_rng(seed), max(1, size // 24)
    rows = list(itertools.product(FAMILIES, PATTERNS))
    step = size + gap
    sheet = Image.new("RGB", (len(BACKGROUNDS) * step + gap, len(rows) * step + gap), "white")
    for r, (family, pattern) in enumerate(rows):
        for c, background in enumerate(BACKGROUNDS):
            scene = next(instances(family, COLOURS[(r + c) % len(COLOURS)], pattern, background, rng))
            sheet.paste(Image.fromarray(render(scene, size)[0]), (gap + c * step, gap + r * step))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the world's contact sheet.")
    parser.add_argument("--out", default="sheet.png")
    parser.add_argument("--size", type=int, default=SIZE)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    contact_sheet(args.seed, args.size).save(args.out)


if __name__ == "__main__":
    main()
