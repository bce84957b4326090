"""How well the judge judges: its accuracy on drawings whose truth is known, and the page that states it."""

from collections.abc import Mapping

import numpy as np

from jaxpa.encoders.autoencoder import Autoencoder
from weights.recipe.judge import Judge, present
from weights.recipe.judge_data import HEADS, Examples, pairs, through, triplets, unit
from weights.recipe.world import SIZE


def accuracy(judge: Judge, examples: Examples) -> dict[str, float]:
    """The share of right answers of every head on pictures of one subject."""
    seen = judge.see(unit(examples.pictures))
    return {head: float(np.mean(seen.logits[head].argmax(-1) == examples.labels[head])) for head in HEADS}


def wanted(examples: Examples) -> dict[str, np.ndarray]:
    """The captioned families and colours of pictures of two subjects, (2, B)."""
    return {head: np.stack([examples.labels[head], examples.labels[f"{head}_2"]]) for head in ("family", "colour")}


def presence(judge: Judge, examples: Examples) -> dict[str, float]:
    """How often both subjects are found: with the true caption, and with wrong ones."""
    pictures, want = unit(examples.pictures), wanted(examples)
    shifted = {head: np.roll(values, 1, axis=1) for head, values in want.items()}
    halved = {head: np.stack([values[0], np.roll(values[1], 1)]) for head, values in want.items()}
    cases = {"both": want, "both_wrong_caption": shifted, "both_one_wrong": halved}
    return {name: float(present(judge, pictures, case).mean()) for name, case in cases.items()}


def identity(judge: Judge, examples: Examples) -> dict[str, float]:
    """Mean similarity of triplets to the same subject and to another instance, and how often the first is larger."""
    anchor, same, other = np.split(judge.see(unit(examples.pictures)).embedding, 3)
    near, far = (anchor * same).sum(-1), (anchor * other).sum(-1)
    return {"same": float(near.mean()), "other": float(far.mean()), "same_is_nearer": float((near > far).mean())}


def measure(judge: Judge, vae: Autoencoder, count: int = 512) -> dict[str, dict[str, float]]:
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


def chance() -> dict[str, float]:
    """The accuracy of guessing: one in the number of classes."""
    return {head: 1 / len(names) for head, names in HEADS.items()}


def report(judge: Judge, vae: Autoencoder, made: str, count: int = 512) -> str:
    """`measure` as a page; `made` says how the judge was made."""
    measured, guess = measure(judge, vae, count), chance()
    lines = [
        "# The judge, measured",
        "",
        made,
        "",
        f"On {count // 2} pictures of one subject and {count // 2} of two, {SIZE} pixels, of combinations of family, "
        "colour and background that its training never showed.",
        "",
        "| | true drawings | through the autoencoder | chance |",
        "|---|---|---|---|",
    ]
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
