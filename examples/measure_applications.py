"""How often every application succeeds on the embedded model: `python examples/measure_applications.py`.

The references are drawings that training never showed, in combinations it never showed. The judge
(`weights/judge.safetensors`, trained on true drawings) looks at the results. A picture succeeds if it has *everything*:

    layout              the subject's family and colour, the prompt's background, and one subject, not two
    two subjects        family and colour of both, each from its own reference, and the background
    subject and scene   family and colour of both, the scene's and the one put into it, and the background
    inpainting          family and colour of what the prompt puts there, the background, and one subject
    outpainting         family and colour of what was kept, the background, and one subject

The table also has the judge's own rate on true drawings of the same scenes. Every application leaves a contact sheet of
its first cases in the gallery: input, tokens, result.
"""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tyro
from measure_mini import both_present, right
from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))  # the recipe's world is not installed

import jaxpa
from jaxpa.evaluation.scores import interval
from jaxpa.media import images, masks
from jaxpa.media.figures import overlay, sheet
from weights.recipe.judge import FILE, Judge, load
from weights.recipe.world import SIZE, Scene, Subject, caption, render, sample_scene, sample_subject

SEED = 997
PLACES = ((0.36, 0.62), (0.64, 0.62), (0.5, 0.66), (0.12, 0.32, 0.88, 0.92))
HALVES = ((0.02, 0.42, 0.48, 0.9), (0.52, 0.42, 0.98, 0.9))
STRIP = SIZE // 4  # what outpainting adds on the left and on the right
HEADS = ("family", "colour", "background", "count")


@dataclass(frozen=True)
class Options:
    out: Path = Path("applications")
    """Folder for the report and the contact sheets."""
    model: str = "mini"
    count: int = 40
    """Cases of each application."""
    judge: Path = FILE


@dataclass(frozen=True)
class Made:
    """A case and what came of it: the scene that was asked for, the picture that was made, panels for the sheet."""

    asked: Scene
    picture: Image.Image
    panels: list[tuple[str, Image.Image]]


def layout(pipe: jaxpa.Pipeline, scene: Scene, rng: np.random.Generator) -> Made:
    """The subject of a drawing at a place of its own, before another background."""
    asked = replace(scene, background=sample_scene(rng, 0.0, held_out=None).background)
    place = PLACES[int(rng.integers(len(PLACES)))]
    return _personalised(pipe, asked, [_reference(scene, at=place)])


def two_subjects(pipe: jaxpa.Pipeline, scene: Scene, rng: np.random.Generator) -> Made:
    """The subjects of two drawings side by side."""
    alone = [replace(scene, subjects=(_alone(rng, subject),)) for subject in scene.subjects]
    return _personalised(pipe, scene, [_reference(one, at=box) for one, box in zip(alone, HALVES, strict=True)])


def subject_and_scene(pipe: jaxpa.Pipeline, scene: Scene, rng: np.random.Generator) -> Made:
    """The subject of a drawing in another drawing, which has one already."""
    left, right = scene.subjects
    there = replace(scene, subjects=(left,))
    taken = sample_scene(rng, 0.0, held_out=None).background
    subject = _reference(Scene((_alone(rng, right),), taken), at=HALVES[1])
    return _personalised(pipe, scene, [subject], jaxpa.Subject(render(there)[0], caption=caption(there)))


def inpainting(pipe: jaxpa.Pipeline, scene: Scene, rng: np.random.Generator) -> Made:
    """Another subject in the place of the one that is there."""
    old = sample_scene(rng, 0.0, held_out=None).subjects[0]
    before = replace(scene, subjects=(replace(old, x=0.5),))
    picture, mask = render(before)
    mask = masks.grow(mask, 5) > 0
    made = pipe.inpaint(picture, Image.fromarray(np.uint8(255 * mask)), caption(scene), caption=caption(before))[0]
    if not np.array_equal(np.asarray(made)[~mask], picture[~mask]):
        raise AssertionError("inpainting changed what it was to keep")
    return Made(scene, made, _edit_panels(picture, ~mask, made, caption(scene)))


def outpainting(pipe: jaxpa.Pipeline, scene: Scene, rng: np.random.Generator) -> Made:
    """Half of a drawing, its subject in the middle, back to the full width."""
    asked = replace(scene, subjects=(replace(scene.subjects[0], x=0.5, span=0.42, bottom=0.86),))
    picture, _ = render(asked)
    kept = np.zeros((SIZE, SIZE), bool)
    kept[:, STRIP:-STRIP] = True
    inner, text = picture[:, STRIP:-STRIP], caption(asked)
    made = pipe.outpaint(inner, text, (0, STRIP, 0, STRIP), caption=text)[0]
    if not np.array_equal(np.asarray(made)[kept], picture[kept]):
        raise AssertionError("outpainting changed what it was to keep")
    return Made(asked, made, _edit_panels(np.where(kept[..., None], picture, 255), kept, made, text))


APPLICATIONS: dict[str, tuple[int, Callable[[jaxpa.Pipeline, Scene, np.random.Generator], Made]]] = {
    "layout": (1, layout),
    "two subjects": (2, two_subjects),
    "subject and scene": (2, subject_and_scene),
    "inpainting": (1, inpainting),
    "outpainting": (1, outpainting),
}


def _alone(rng: np.random.Generator, subject: Subject) -> Subject:
    """The same subject at the size and place it has in a drawing of one."""
    placed = sample_subject(rng, subject.family, subject.colour, subject.pattern)
    return replace(subject, x=placed.x, bottom=placed.bottom, span=placed.span)


def _reference(scene: Scene, at: tuple[float, ...]) -> jaxpa.Subject:
    picture, mask = render(scene)
    # Stretched to its box, as when the figures were taken.
    return jaxpa.Subject(picture, mask, at=at, caption=caption(scene), stretch=True)  # type: ignore[arg-type]


def _personalised(
    pipe: jaxpa.Pipeline, asked: Scene, subjects: list[jaxpa.Subject], scene: jaxpa.Subject | None = None
) -> Made:
    references, text = pipe.references(subjects, scene), caption(asked)
    made = pipe.personalize(text, references)[0]
    panels = [
        ("reference", Image.fromarray(np.asarray(each.image))) for each in [*([scene] if scene else []), *subjects]
    ]
    cells = np.asarray(np.any(references.placement.target[0, -len(subjects) :], axis=0))
    return Made(
        asked, made, [*panels, ("tokens that are replaced", overlay(made, cells, *references.grid)), (text, made)]
    )


def _edit_panels(
    picture: np.ndarray, kept: np.ndarray, made: Image.Image, text: str
) -> list[tuple[str, Image.Image]]:  # fmt: skip
    cells, before = masks.token_mask(kept.astype(float), 12, 12, 1 - 1e-6), Image.fromarray(np.uint8(picture))
    return [("the picture", before), ("tokens that are kept", overlay(before, cells, 12, 12)), (text, made)]


def succeeded(judge: Judge, pictures: np.ndarray, scenes: list[Scene]) -> dict[str, np.ndarray]:
    """What was asked, whether each picture has it, and all of it together."""
    seen = right(judge, pictures, scenes)
    parts = {head: seen[head] for head in HEADS}
    if len(scenes[0].subjects) == 2:
        parts = {"both subjects": both_present(judge, pictures, scenes), "background": seen["background"]}
    return {"all": np.all(list(parts.values()), axis=0), **parts}


def cases(count: int, subjects: int) -> Iterator[tuple[Scene, np.random.Generator]]:
    for k in range(count):
        rng = np.random.default_rng([SEED, subjects, k])
        yield sample_scene(rng, float(subjects - 1), held_out=True), rng


def reconstruction(pipe: jaxpa.Pipeline, count: int) -> tuple[list[float], list[float]]:
    """Decibels of pictures walked to their noise and back, and of the autoencoder alone."""
    back, alone = [], []
    for scene, _ in cases(count, 1):
        picture = render(scene)[0]
        back.append(images.psnr(picture, pipe.reconstruct(picture, caption=caption(scene))[0]))
        latents = pipe.encode_image(picture[None] / np.float32(127.5) - 1)
        alone.append(images.psnr(picture, pipe.decode(latents, SIZE, SIZE)[0]))
    return back, alone


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    options.out.mkdir(parents=True, exist_ok=True)
    pipe, judge = jaxpa.load(options.model), load(options.judge)
    lines = ["| application | succeeds | 95% interval | true drawings | of it |", "|---|---|---|---|---|"]
    content: dict[str, object] = {}
    for name, (subjects, run) in APPLICATIONS.items():
        made = [run(pipe, scene, rng) for scene, rng in tqdm(list(cases(options.count, subjects)), desc=name)]
        scenes = [one.asked for one in made]
        found = succeeded(judge, np.stack([np.asarray(one.picture) for one in made]), scenes)
        truth = succeeded(judge, np.stack([render(scene)[0] for scene in scenes]), scenes)
        rate = interval([float(x) for x in found["all"]])
        parts = ", ".join(f"{part} {values.mean():.0%}" for part, values in found.items() if part != "all")
        lines.append(
            f"| {name} | {rate.mean:.0%} | {rate.low:.0%} to {rate.high:.0%} | {truth['all'].mean():.0%} | {parts} |"
        )
        content[name] = {part: values.tolist() for part, values in found.items()}
        sheet([one.panels for one in made[:6]], height=128).save(options.out / f"{name.replace(' ', '-')}.png")
    back, alone = reconstruction(pipe, options.count)
    lines += [
        "",
        f"Reconstruction: {np.mean(back):.1f} dB to the noise and back, {np.mean(alone):.1f} dB the autoencoder alone.",
    ]
    text = "\n".join(lines) + "\n"
    (options.out / "table.md").write_text(text, encoding="utf-8")
    (options.out / "results.json").write_text(json.dumps(content) + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
