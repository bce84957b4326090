"""How often every application succeeds on the embedded model: `python examples/measure_applications.py`.

The references are drawings that training never showed, in combinations it never showed. The judge
(`weights/judge.safetensors`, trained on true drawings) looks at the results. A picture succeeds if it has *everything*:

    layout              the subject's family and colour, the prompt's background, and one subject, not two
    two subjects        family and colour of both, each from its own reference, and the background
    subject and scene   family and colour of both, the scene's and the one put into it, and the background
    inpainting          family and colour of what the prompt puts there, the background, and one subject
    outpainting         family and colour of what was kept, the background, and one subject
    corners             as layout, in a box of half the width in a corner; and nothing of the subject elsewhere, by its
                        colours, since the judge does not count broken copies
    half-width boxes    as layout, in such a box anywhere
    ... surroundings    the same two, where the request also says what is around the subject (`--surroundings`)
    aspects             as layout, on canvases of 3:4, 9:16 and 1:2, upright or lying
    one side            as outpainting, by half a picture on one side, so that the canvas is 2:3
    removal             with a prompt of the background alone, the place of the subject is at most half as far from the
                        true background as the subject was

Edits say how their seams look, too: the change across the border of what is new over that beside it, of neighbours (an
edge) and of pixels four to either side (a step); true drawings have 1.

The table also has the judge's own rate on true drawings of the same scenes. Every application leaves a contact sheet of
its first cases in --out: input, tokens, result.
"""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from measure_mini import both_present, right
from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))  # the recipe's world is not installed

import jaxpa
from jaxpa.evaluation.evaluate import seam
from jaxpa.evaluation.scores import interval
from jaxpa.media import images, masks
from jaxpa.media.figures import overlay, sheet
from weights.recipe.compositions import PLACES
from weights.recipe.judge import FILE, Judge, load
from weights.recipe.world import SIZE, Scene, Subject, caption, render, sample_scene, sample_subject

SEED = 997
SPOTS = ((0.36, 0.62), (0.64, 0.62), (0.5, 0.66), (0.12, 0.32, 0.88, 0.92))
HALVES = ((0.02, 0.42, 0.48, 0.9), (0.52, 0.42, 0.98, 0.9))
CORNERS = tuple((x, y, x + 0.48, y + 0.48) for x in (0.02, 0.5) for y in (0.02, 0.5))
ASPECTS = ((96, 128), (128, 96), (72, 128), (128, 72), (96, 192), (192, 96))
STRIP = SIZE // 4  # what outpainting adds on the left and on the right
BLENDED = 4  # pixels, half a token
CLEAR, SOME = 20, 0.03  # levels by which a colour must be nearer, and the share of a picture that is a copy
HEADS = ("family", "colour", "background", "count")


@dataclass(frozen=True)
class Options:
    out: Path = Path("applications")
    """Folder for the report and the contact sheets."""
    model: str = "mini"
    count: int = 40
    """Cases of each application."""
    judge: Path = FILE
    only: tuple[str, ...] = ()
    """These applications alone."""
    surroundings_time: float = 0.8
    """Flow time down to which surroundings stand for the prompt, where they are said."""


@dataclass(frozen=True)
class Made:
    """A case and what came of it: the scene that was asked for, the picture that was made, panels for the sheet."""

    asked: Scene
    picture: Image.Image
    panels: list[tuple[str, Image.Image]]
    truth: np.ndarray | None = None
    """The true drawing (H, W, 3), where it is not the usual one."""
    new: np.ndarray | None = None
    """What an edit has drawn (H, W)."""
    stray: float | None = None
    """The share of the picture outside of the subject's box that has its colours, and not the background's."""
    gone: float | None = None
    """How far the place of what was removed is from its background, in units of how far it was."""


def layout(pipe: jaxpa.Pipeline, scene: Scene, rng: np.random.Generator) -> Made:
    """The subject of a drawing at a place of its own, before another background."""
    asked = replace(scene, background=sample_scene(rng, 0.0, held_out=None).background)
    place = SPOTS[int(rng.integers(len(SPOTS)))]
    return _personalised(pipe, asked, [_reference(scene, at=place)])


def corners(pipe: jaxpa.Pipeline, scene: Scene, rng: np.random.Generator, around: float | None = None) -> Made:
    """The subject small, in a corner: whatever is elsewhere must not be another one."""
    return _placed(pipe, scene, rng, CORNERS[int(rng.integers(len(CORNERS)))], around=around)


def half_width_boxes(pipe: jaxpa.Pipeline, scene: Scene, rng: np.random.Generator, around: float | None = None) -> Made:
    """The subject small, anywhere."""
    x, y = rng.uniform(0.0, 0.5), rng.uniform(0.1, 0.5)
    return _placed(pipe, scene, rng, (x, y, x + 0.5, y + 0.48), around=around)


def aspects(pipe: jaxpa.Pipeline, scene: Scene, rng: np.random.Generator) -> Made:
    """The subject in the middle of a canvas that is no square."""
    height, width = ASPECTS[int(rng.integers(len(ASPECTS)))]
    return _placed(pipe, scene, rng, (0.5, 0.62), (height, width))


def _placed(
    pipe: jaxpa.Pipeline,
    scene: Scene,
    rng: np.random.Generator,
    at: tuple[float, ...],
    canvas: tuple[int, int] = (SIZE, SIZE),
    around: float | None = None,
) -> Made:
    """The subject of a drawing before another background, its aspect kept; around: until when that is the prompt."""
    asked = replace(scene, background=sample_scene(rng, 0.0, held_out=None).background)
    picture, mask = render(scene)
    subject = jaxpa.Subject(picture, mask, at=at, caption=caption(scene))  # type: ignore[arg-type]
    words: dict[str, Any] = (
        {} if around is None else {"surroundings": empty_caption(asked), "surroundings_time": around}
    )
    made = _personalised(pipe, asked, [subject], canvas=canvas, **words)
    if len(at) == 2:
        return made
    empty, outside = render(replace(asked, subjects=()))[0], np.ones((SIZE, SIZE), bool)
    left, top, right, bottom = (round(SIZE * side) for side in at)
    outside[max(0, top - 8) : bottom + 8, max(0, left - 8) : right + 8] = False
    return replace(made, stray=stray(np.asarray(made.picture)[outside], empty, picture[mask]))


def empty_caption(scene: Scene) -> str:
    """The prompt of a scene's background alone."""
    return f"a picture of {PLACES[scene.background.kind]}"


def stray(pixels: np.ndarray, background: np.ndarray, subject: np.ndarray) -> float:
    """The share of pixels (n, 3) that are nearer to the colours of a subject (m, 3) than to those of a background.

    Below `SOME` in 95% of true drawings, and in none with a copy of 0.3 of the width.
    """

    def far(colours: np.ndarray) -> np.ndarray:
        flat = Image.fromarray(colours.reshape(1, -1, 3)).quantize(16)
        palette = np.array(flat.getpalette()).reshape(-1, 3)[:16].astype(float)
        return np.linalg.norm(pixels[:, None] - palette, axis=-1).min(1)

    return float(np.mean(far(subject) + CLEAR < far(background)))


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
    _check_kept(picture, mask, made)
    return Made(scene, made, _edit_panels(picture, ~mask, made, caption(scene)), new=mask)


def removal(pipe: jaxpa.Pipeline, scene: Scene, rng: np.random.Generator) -> Made:
    """A small subject goes, and its background is all that the prompt says."""
    before = replace(scene, subjects=(replace(scene.subjects[0], span=float(rng.uniform(0.35, 0.5))),))
    picture, mask = render(before)
    mask, empty = masks.grow(mask, 5) > 0, render(replace(scene, subjects=()))[0]
    text = empty_caption(scene)
    made = pipe.inpaint(picture, Image.fromarray(np.uint8(255 * mask)), text, caption=caption(before))[0]
    _check_kept(picture, mask, made)
    was, now = (np.abs(each.astype(float) - empty)[mask].mean() for each in (picture, np.asarray(made)))
    panels = _edit_panels(picture, ~mask, made, text)
    return Made(before, made, panels, truth=empty, new=mask, gone=float(now / was))


def outpainting(pipe: jaxpa.Pipeline, scene: Scene, rng: np.random.Generator) -> Made:
    """Half of a drawing, its subject in the middle, back to the full width."""
    asked = replace(scene, subjects=(replace(scene.subjects[0], x=0.5, span=0.42, bottom=0.86),))
    picture, _ = render(asked)
    kept = np.zeros((SIZE, SIZE), bool)
    kept[:, STRIP:-STRIP] = True
    inner, text = picture[:, STRIP:-STRIP], caption(asked)
    made = pipe.outpaint(inner, text, (0, STRIP, 0, STRIP), caption=text)[0]
    _check_kept(picture, ~kept, made)
    return Made(asked, made, _edit_panels(np.where(kept[..., None], picture, 255), kept, made, text), new=~kept)


def one_side(pipe: jaxpa.Pipeline, scene: Scene, rng: np.random.Generator) -> Made:
    """A whole drawing, longer by a half on one of its sides."""
    side, more, text = int(rng.integers(4)), SIZE // 2, caption(scene)
    pad = [more * (k == side) for k in range(4)]  # top, right, bottom, left
    shape = SIZE + pad[0] + pad[2], SIZE + pad[1] + pad[3]
    picture, kept = render(scene)[0], np.zeros(shape, bool)
    kept[pad[0] : pad[0] + SIZE, pad[3] : pad[3] + SIZE] = True
    whole = np.full((*shape, 3), 255, np.uint8)
    whole[kept] = picture.reshape(-1, 3)
    made = pipe.outpaint(picture, text, pad, caption=text)[0]
    _check_kept(whole, ~kept, made)
    truth = render(scene, shape, SIZE)[0]
    return Made(scene, made, _edit_panels(whole, kept, made, text), truth=truth, new=~kept)


def _check_kept(picture: np.ndarray, new: np.ndarray, made: Image.Image) -> None:
    far = masks.grow(new, BLENDED + 0.5) == 0
    if not np.array_equal(np.asarray(made)[far], picture[far]):
        raise AssertionError("an edit changed what it was to keep")


APPLICATIONS: dict[str, tuple[int, Callable[..., Made]]] = {
    "layout": (1, layout),
    "two subjects": (2, two_subjects),
    "subject and scene": (2, subject_and_scene),
    "inpainting": (1, inpainting),
    "outpainting": (1, outpainting),
    "corners": (1, corners),
    "half-width boxes": (1, half_width_boxes),
    "corners, surroundings": (1, corners),
    "half-width boxes, surroundings": (1, half_width_boxes),
    "aspects": (1, aspects),
    "one side": (1, one_side),
    "removal": (1, removal),
}


def _alone(rng: np.random.Generator, subject: Subject) -> Subject:
    """The same subject at the size and place it has in a drawing of one."""
    placed = sample_subject(rng, subject.family, subject.colour, subject.pattern)
    return replace(subject, x=placed.x, bottom=placed.bottom, span=placed.span)


def _reference(scene: Scene, at: tuple[float, ...]) -> jaxpa.Subject:
    picture, mask = render(scene)
    return jaxpa.Subject(picture, mask, at=at, caption=caption(scene))  # type: ignore[arg-type]


def _personalised(
    pipe: jaxpa.Pipeline,
    asked: Scene,
    subjects: list[jaxpa.Subject],
    scene: jaxpa.Subject | None = None,
    canvas: tuple[int, int] = (SIZE, SIZE),
    **words: Any,
) -> Made:
    references, text = pipe.references(subjects, scene, height=canvas[0], width=canvas[1]), caption(asked)
    made = pipe.personalize(text, references, **words)[0]
    panels = [
        ("reference", Image.fromarray(np.asarray(each.image))) for each in [*([scene] if scene else []), *subjects]
    ]
    cells = np.asarray(np.any(references.placement.target[0, -len(subjects) :], axis=0))
    panels += [("tokens that are replaced", overlay(made, cells, *references.grid)), (text, made)]
    return Made(asked, made, panels, truth=render(asked, canvas)[0])


def _edit_panels(
    picture: np.ndarray, kept: np.ndarray, made: Image.Image, text: str
) -> list[tuple[str, Image.Image]]:  # fmt: skip
    grid = kept.shape[0] // 8, kept.shape[1] // 8
    cells, before = masks.token_mask(kept.astype(float), *grid, 1 - 1e-6), Image.fromarray(np.uint8(picture))
    return [("the picture", before), ("tokens that are kept", overlay(before, cells, *grid)), (text, made)]


def succeeded(judge: Judge, pictures: list[np.ndarray], scenes: list[Scene]) -> dict[str, np.ndarray]:
    """What was asked, whether each picture has it, and all of it together."""
    found: dict[str, np.ndarray] = {}
    for shape in {picture.shape for picture in pictures}:
        which = np.array([k for k, picture in enumerate(pictures) if picture.shape == shape])
        stacked, asked = np.stack([pictures[k] for k in which]), [scenes[k] for k in which]
        seen = right(judge, stacked, asked)
        parts = {head: seen[head] for head in HEADS}
        if len(scenes[0].subjects) == 2:
            parts = {"both subjects": both_present(judge, stacked, asked), "background": seen["background"]}
        for name, values in ({"all": np.all(list(parts.values()), axis=0)} | parts).items():
            found.setdefault(name, np.zeros(len(pictures), bool))[which] = values
    return found


def truth_of(one: Made) -> np.ndarray:
    return render(one.asked)[0] if one.truth is None else one.truth


def verdicts(judge: Judge, made: list[Made]) -> tuple[dict[str, np.ndarray], float]:
    """Whether each case succeeded, by its parts; and the judge's own rate on true drawings."""
    if made[0].gone is not None:
        gone = np.array([one.gone is not None and one.gone < 0.5 for one in made])
        return {"all": gone}, np.nan  # a true background succeeds by definition
    scenes = [one.asked for one in made]
    found = succeeded(judge, [np.asarray(one.picture) for one in made], scenes)
    if made[0].stray is not None:
        found["no copy"] = np.array([one.stray is not None and one.stray < SOME for one in made])
        found["all"] &= found["no copy"]
    return found, float(succeeded(judge, [truth_of(one) for one in made], scenes)["all"].mean())


def seams(made: list[Made]) -> dict[str, tuple[float, float]]:
    """The medians over all edits of an edge and of a step: of the pictures, and of true drawings."""
    edits = [(one, one.new) for one in made if one.new is not None]
    return {
        name: (
            float(np.nanmedian([seam(np.asarray(one.picture), new, reach) for one, new in edits])),
            float(np.nanmedian([seam(truth_of(one), new, reach) for one, new in edits])),
        )
        for name, reach in (("edge", 1), ("step", 4))
        if edits
    }


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
    lines = ["| application | succeeds | 95% interval | true drawings | of it | edge | step |", "|---" * 7 + "|"]
    content: dict[str, object] = {}
    for name, (subjects, run) in APPLICATIONS.items():
        if options.only and name not in options.only:
            continue
        said = {"around": options.surroundings_time} if name.endswith("surroundings") else {}
        made = [run(pipe, scene, rng, **said) for scene, rng in tqdm(list(cases(options.count, subjects)), desc=name)]
        found, truth = verdicts(judge, made)
        rate = interval([float(x) for x in found["all"]])
        parts = ", ".join(f"{part} {values.mean():.0%}" for part, values in found.items() if part != "all")
        looks = seams(made)
        shown = "".join(f" {got:.2f} ({true:.2f}) |" for got, true in looks.values()) or " | |"
        true = "" if np.isnan(truth) else f"{truth:.0%}"
        lines.append(f"| {name} | {rate.mean:.0%} | {rate.low:.0%} to {rate.high:.0%} | {true} | {parts} |{shown}")
        print(lines[-1], flush=True)
        content[name] = {part: values.tolist() for part, values in found.items()} | {"seams": looks}
        sheet([one.panels for one in made[:6]], height=128).save(
            options.out / f"{name.replace(',', '').replace(' ', '-')}.png"
        )
    if not options.only:
        back, alone = reconstruction(pipe, options.count)
        round_trip = f"{np.mean(back):.1f} dB to the noise and back, {np.mean(alone):.1f} dB the autoencoder alone"
        lines += ["", f"Reconstruction: {round_trip}."]
    text = "\n".join(lines) + "\n"
    (options.out / "table.md").write_text(text, encoding="utf-8")
    (options.out / "results.json").write_text(json.dumps(content) + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
