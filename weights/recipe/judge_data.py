"""What the judge of `classifiers` learns from and is measured on: labelled drawings, true or through an autoencoder."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np

from jaxpa.encoders.autoencoder import Autoencoder
from weights.recipe.world import (
    BACKGROUNDS,
    COLOURS,
    FAMILIES,
    PATTERNS,
    SIZE,
    Scene,
    Subject,
    combination_held_out,
    instances,
    render,
    sample_background,
    sample_scene,
)  # fmt: skip

if TYPE_CHECKING:
    from weights.recipe.classifiers import Judge

HEADS: dict[str, tuple[str, ...]] = {
    "family": FAMILIES,
    "colour": COLOURS,
    "pattern": PATTERNS,
    "background": tuple(BACKGROUNDS),
    "count": ("one", "two"),
}
PAIRED = ("family", "colour", "pattern")  # what each of two subjects has of its own


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
    """Every eighth picture through the autoencoder."""
    examples.pictures[::one_in] = through(vae, examples.pictures[::one_in])
    return examples


def unit(pictures: np.ndarray) -> np.ndarray:
    """uint8 -> float32 in [-1, 1]."""
    return pictures.astype(np.float32) / 127.5 - 1


# Measuring ------------------------------------------------------------------------------------------------


def accuracy(judge: "Judge", examples: Examples) -> dict[str, float]:
    """The share of right answers of every head on pictures of one subject."""
    seen = judge.see(unit(examples.pictures))
    return {head: float(np.mean(seen.logits[head].argmax(-1) == examples.labels[head])) for head in HEADS}


def wanted(examples: Examples) -> dict[str, np.ndarray]:
    """The captioned families and colours of pictures of two subjects, (2, B)."""
    return {head: np.stack([examples.labels[head], examples.labels[f"{head}_2"]]) for head in ("family", "colour")}


def presence(judge: "Judge", examples: Examples) -> dict[str, float]:
    """Both subjects found where they are; and found where the caption is another picture's."""
    from weights.recipe.classifiers import present

    pictures, want = unit(examples.pictures), wanted(examples)
    shifted = {head: np.roll(values, 1, axis=1) for head, values in want.items()}
    halved = {head: np.stack([values[0], np.roll(values[1], 1)]) for head, values in want.items()}
    cases = {"both": want, "both_wrong_caption": shifted, "both_one_wrong": halved}
    return {name: float(present(judge, pictures, case).mean()) for name, case in cases.items()}


def identity(judge: "Judge", examples: Examples) -> dict[str, float]:
    """Mean similarity of triplets to the same subject and to another instance, and how often the first is larger."""
    anchor, same, other = np.split(judge.see(unit(examples.pictures)).embedding, 3)
    near, far = (anchor * same).sum(-1), (anchor * other).sum(-1)
    return {"same": float(near.mean()), "other": float(far.mean()), "same_is_nearer": float((near > far).mean())}


def measure(judge: "Judge", vae: Autoencoder, count: int = 512) -> dict[str, dict[str, float]]:
    """Everything on combinations that training never showed: true drawings, and through the autoencoder."""
    single, double = triplets(990, count // 2, held_out=True), pairs(990, count // 2, held_out=True)
    out = {}
    for name in ("drawn", "through_autoencoder"):
        if name != "drawn":
            single = Examples(through(vae, single.pictures), single.labels)
            double = Examples(through(vae, double.pictures), double.labels)
        first = single.rows(np.arange(len(single.pictures) // 3))
        out[name] = accuracy(judge, first) | presence(judge, double) | identity(judge, single)
    return out


def chance(double: Examples | None = None) -> dict[str, float]:
    """What guessing gives: one in the number of classes."""
    return {head: 1 / len(names) for head, names in HEADS.items()}


def report(judge: "Judge", vae: Autoencoder, made: str, count: int = 512) -> str:
    """`measure` as a page; `made` says how the judge was."""
    measured, guess = measure(judge, vae, count), chance()
    lines = [
        "# The judge, measured", "", made, "",
        f"On {count // 2} pictures of one subject and {count // 2} of two, {SIZE} pixels, of combinations of family, "
        "colour and background that its training never showed.", "",
        "| | true drawings | through the autoencoder | chance |", "|---|---|---|---|",
    ]  # fmt: skip
    texts: Mapping[str, str] = {
        "both": "two subjects, both found",
        "both_wrong_caption": "both found, with another picture's caption",
        "both_one_wrong": "both found, with one subject's words from another caption",
        "same": "similarity to the same subject elsewhere",
        "other": "similarity to another instance of the caption",
        "same_is_nearer": "the same subject is nearer than the other instance",
    }
    for name, value in measured["drawn"].items():
        known = f"{guess[name]:.3f}" if name in guess else ""
        other = measured["through_autoencoder"][name]
        lines.append(f"| {texts.get(name, name)} | {value:.3f} | {other:.3f} | {known} |")
    return "\n".join(lines) + "\n"
