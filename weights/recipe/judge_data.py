"""What the judge learns from and is measured on: labelled drawings, some of them sent through an autoencoder."""

from dataclasses import replace
from typing import NamedTuple

import jax
import numpy as np

from jaxpa.encoders.autoencoder import Autoencoder
from weights.recipe.world import (
    BACKGROUNDS,
    COLOURS,
    FAMILIES,
    PATTERNS,
    Scene,
    Subject,
    combination_held_out,
    instances,
    render,
    sample_background,
    sample_scene,
)

HEADS: dict[str, tuple[str, ...]] = {
    "family": FAMILIES,
    "colour": COLOURS,
    "pattern": PATTERNS,
    "background": tuple(BACKGROUNDS),
    "count": ("one", "two"),
}
PAIRED = ("family", "colour", "pattern")  # each of two subjects has its own


class Examples(NamedTuple):
    """pictures (B, H, W, 3) uint8; labels (B,) int32 of every head, and with two subjects `family_2` and so on."""

    pictures: np.ndarray
    labels: dict[str, np.ndarray]

    def rows(self, index: np.ndarray) -> "Examples":
        return Examples(self.pictures[index], {name: values[index] for name, values in self.labels.items()})


def labels_of(scene: Scene) -> dict[str, int]:
    labels = {"background": HEADS["background"].index(scene.background.kind), "count": len(scene.subjects) - 1}
    for suffix, subject in zip(("", "_2"), scene.subjects, strict=False):
        for head in PAIRED:
            labels[head + suffix] = HEADS[head].index(getattr(subject, head))
    return labels


def drawn(scenes: list[Scene]) -> Examples:
    pictures = np.stack([render(scene)[0] for scene in scenes])
    each = [labels_of(scene) for scene in scenes]
    return Examples(pictures, {name: np.array([one[name] for one in each], np.int32) for name in each[0]})


def elsewhere(subject: Subject, rng: np.random.Generator, held_out: bool = False) -> Scene:
    """The same subject at another place, in another size, before another background."""
    span = float(np.clip(subject.span * rng.uniform(0.85, 1.15), 0.5, 0.84))
    x = 0.5 + float(rng.uniform(-1, 1)) * (0.48 - span / 2)
    moved = replace(subject, span=span, x=x, bottom=float(rng.uniform(max(0.80, span + 0.03), 0.94)))
    while True:
        background = sample_background(rng)
        if held_out or not combination_held_out(subject.family, subject.colour, background.kind):
            return Scene((moved,), background)


def triple(rng: np.random.Generator, held_out: bool = False) -> tuple[Scene, Scene, Scene]:
    """A scene of one subject, the same subject elsewhere, and another instance of its description."""
    scene = sample_scene(rng, two=0.0, held_out=held_out)
    subject = scene.subjects[0]
    other = next(instances(subject.family, subject.colour, subject.pattern, scene.background.kind, rng)).subjects[0]
    return scene, elsewhere(subject, rng, held_out), elsewhere(other, rng, held_out)


def triplets(seed: int, count: int, vae: Autoencoder | None = None, held_out: bool = False) -> Examples:
    """3 `count` pictures: all subjects, then all of them elsewhere, then all other instances."""
    scenes = [triple(np.random.default_rng([seed, 1, i]), held_out) for i in range(count)]
    examples = drawn([scene for column in zip(*scenes, strict=True) for scene in column])
    return partly_through(vae, examples) if vae is not None else examples


def pairs(seed: int, count: int, vae: Autoencoder | None = None, held_out: bool = False) -> Examples:
    """`count` pictures of two subjects."""
    scenes = [sample_scene(np.random.default_rng([seed, 2, i]), 1.0, held_out) for i in range(count)]
    return partly_through(vae, drawn(scenes)) if vae is not None else drawn(scenes)


_round_trip = jax.jit(lambda vae, x: vae.decode(vae.encode(x).mode()))


def through(vae: Autoencoder, pictures: np.ndarray, batch: int = 32) -> np.ndarray:
    """uint8 pictures as the autoencoder gives them back, uint8."""
    out = np.empty_like(pictures)
    for i in range(0, len(pictures), batch):
        rows = pictures[i : i + batch]
        padded = np.concatenate([rows, np.zeros((batch - len(rows), *rows.shape[1:]), np.uint8)])
        made = np.asarray(_round_trip(vae, padded.astype(np.float32) / 127.5 - 1))[: len(rows)]
        out[i : i + batch] = np.clip(np.rint((made + 1) * 127.5), 0, 255).astype(np.uint8)
    return out


def partly_through(vae: Autoencoder, examples: Examples, one_in: int = 8) -> Examples:
    """Send every eighth picture through the autoencoder, in place."""
    examples.pictures[::one_in] = through(vae, examples.pictures[::one_in])
    return examples


def unit(pictures: np.ndarray) -> np.ndarray:
    """uint8 -> float32 in [-1, 1]."""
    return pictures.astype(np.float32) / 127.5 - 1
