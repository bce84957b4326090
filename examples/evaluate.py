"""The paper's evaluation: subjects x prompts x settings x seeds, a table, and a plot of identity against the prompt.

python examples/evaluate.py --out evaluation                    # drawn subjects, the sweep of tau
python examples/evaluate.py --data FOLDER --model MODEL --judge none --out evaluation
python examples/evaluate.py --settings settings.json            # {"label": {"tau": [0.9, 0.5], "level": "token"}, ...}

Without `--data` the subjects come from the drawn world, in combinations that training never showed, and the judge that
was trained on it looks at the pictures. A folder is laid out as `jaxpa.evaluate.read_cases` says: a folder for each
subject with pictures and masks, and `prompts.txt`. What comes out: scores.csv (a line for each picture), table.md,
table.json, plot.png, and sheet.png with the first subject's pictures.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from PIL import Image, ImageDraw, ImageFont

import jaxpa
from jaxpa import scores
from jaxpa.evaluate import FLOOR, Case, Judge, evaluate, read_cases
from jaxpa.figures import sheet
from jaxpa.images import read_image, to_array, to_image
from weights.recipe.classifiers import FILE, load
from weights.recipe.world import BACKGROUNDS, Background, caption, instances, is_held_out, render, sample_scene

SETTINGS: dict[str, dict[str, Any]] = {
    "preset": {"tau": [1.0, 0.95, 0.9, 0.8, 0.7, 0.5, 0.3]},
    "preset, perturbed": {"tau": [0.9, 0.7, 0.5], "shuffle": 1.0, "outline": 3},
    "noise only": {"tau": 1.0},
}


@dataclass(frozen=True)
class Options:
    out: Path = Path("evaluation")
    data: Path | None = None
    """A benchmark on disk; none: drawn subjects."""
    model: str = "mini"
    subjects: int = 8
    """Drawn subjects."""
    prompts: int = 2
    """Prompts for each drawn subject."""
    seeds: int = 2
    settings: Path | None = None
    """A JSON file of labels and keywords of `Pipeline.personalize`; none: the sweep of tau."""
    judge: str = str(FILE)
    """The classifiers of the drawn world, or `none`."""
    steps: int | None = None


def drawn_case(number: int, count: int, size: int) -> Case:
    """A held-out subject, `count` prompts for other backgrounds, and another instance of its caption in its place."""
    rng = np.random.default_rng([996, number])
    scene = sample_scene(rng, two=0.0, held_out=True)
    subject, kind = scene.subjects[0], scene.background.kind
    picture, mask = render(scene, size)
    twin = next(instances(subject.family, subject.colour, subject.pattern, kind, rng)).subjects[0]
    twin = replace(twin, x=subject.x, bottom=subject.bottom, span=subject.span)
    another, _ = render(replace(scene, subjects=(twin,)), size)
    kinds = [str(each) for each in rng.permutation([each for each in BACKGROUNDS if each != kind])[:count]]
    texts = tuple(caption(replace(scene, background=Background(each, 0))) for each in kinds)
    reference = jaxpa.Subject(picture, mask, caption=caption(scene))
    assert is_held_out(scene)
    return Case(f"{number}: {caption(scene)}", reference, texts, another)


def plot(table: scores.Table, across: str, up: str, size: int = 640) -> Image.Image:
    """Two metrics against each other, a dot for each setting with its intervals."""
    rows = {label: row for label, row in table.items() if row[across].n and row[up].n}
    ends = np.array([[[row[m].low, row[m].high] for m in (across, up)] for row in rows.values()])  # (rows, 2, 2)
    low, high = ends[..., 0].min(0), ends[..., 1].max(0)
    room = np.maximum(high - low, 0.02) * 0.12
    low, high = low - room, high + room
    image = Image.new("RGB", (size, size), "white")
    pen, font, margin = ImageDraw.Draw(image), ImageFont.load_default(size // 46), size // 10

    def at(x: float, y: float) -> tuple[float, float]:
        share = (np.array([x, y]) - low) / (high - low)
        return margin + share[0] * (size - 1.5 * margin), size - margin - share[1] * (size - 1.5 * margin)

    (left, bottom), (right, top) = at(*low), at(*high)
    pen.rectangle((left, top, right, bottom), outline=(160, 160, 166))
    for share in np.linspace(0.1, 0.9, 5):
        x, y = low + share * (high - low)
        pen.text((at(x, low[1])[0], bottom + 6), f"{x:.2f}", (105, 105, 112), font, anchor="ma")
        pen.text((left - 6, at(low[0], y)[1]), f"{y:.2f}", (105, 105, 112), font, anchor="rm")
    pen.text((size / 2, size - margin / 2), across, (28, 28, 30), font, anchor="ma")
    pen.text((left, top - 8), up, (28, 28, 30), font, anchor="ls")
    for k, (label, row) in enumerate(rows.items()):
        ink = ((28, 28, 30), (28, 96, 176), (200, 70, 20), (20, 130, 90), (130, 60, 160))[k % 5]
        a, b = row[across], row[up]
        pen.line((*at(a.low, b.mean), *at(a.high, b.mean)), ink)
        pen.line((*at(a.mean, b.low), *at(a.mean, b.high)), ink)
        x, y = at(a.mean, b.mean)
        pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill=ink)
        pen.text((x + 7, y - 4), label, ink, font, anchor="ls")
    return image


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    options.out.mkdir(parents=True, exist_ok=True)
    pipe = jaxpa.load(options.model)
    judge: Judge | None = None if options.judge == "none" else load(Path(options.judge))
    size = pipe.settings.size
    if options.data is None:
        cases = [drawn_case(k, options.prompts, size) for k in range(options.subjects)]
    else:
        cases = read_cases(options.data)
    settings = SETTINGS if options.settings is None else json.loads(options.settings.read_text())
    panels: list[tuple[str, Image.Image]] = [("reference", read_image(cases[0].subject.image))]

    def look(label: str, case: Case, prompt: str, pictures: list[Image.Image]) -> None:
        print(f"{case.name} | {prompt} | {label}", flush=True)
        if case is cases[0] and prompt == case.prompts[0]:
            panels.append((label, to_image(to_array(pictures[0], size, size))))

    common = {} if options.steps is None else {"steps": options.steps}
    scored = evaluate(pipe, cases, settings, range(options.seeds), judge, look, **common)
    table = scores.summarise(scored)
    (options.out / "scores.csv").write_text(scores.csv_text(scored), encoding="utf-8")
    (options.out / "table.md").write_text(scores.markdown(table), encoding="utf-8")
    (options.out / "table.json").write_text(scores.json_text(table), encoding="utf-8")
    sheet([panels[i : i + 6] for i in range(0, len(panels), 6)], height=192).save(options.out / "sheet.png")
    up = "prompt" if "prompt" in table[FLOOR] else "diversity"
    plot(table, "identity", up).save(options.out / "plot.png")
    print(scores.markdown(table))


if __name__ == "__main__":
    main()
