"""The paper's evaluation: subjects x prompts x settings x seeds as tables, and a plot of identity against freedom.

    python examples/evaluate.py --table tau                 # the paper's Table 3: the sweep of tau, perturbed and not
    python examples/evaluate.py --table readings            # which reading of the method is best here
    python examples/evaluate.py --table sweeps              # what a more exact inversion changes
    python examples/evaluate.py --table times               # what reading the reference ahead of time changes
    python examples/evaluate.py --data FOLDER --model MODEL --judge none --out evaluation
    python examples/evaluate.py --settings settings.json    # {"label": {"tau": [0.9, 0.5], "level": "token"}, ...}

Without `--data`, the subjects come from the drawn world, in combinations that training never showed, and the judge of
that world looks at the pictures. Every subject has prompts that put it before another background, and one that gives it
another colour. How often the pictures follow the colour tells what freedom the prompt keeps *inside* the mask; how
often they follow the background, *outside*. `--data` takes a folder as `jaxpa.evaluation.evaluate.read_cases` describes
it: a folder for each subject, with pictures and masks, and `prompts.txt`. The script writes scores.csv (a line for each
picture), table.md, table.json, plot.png, and sheet.png with the first subject's pictures.
"""

import itertools
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from matplotlib.figure import Figure
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))  # the recipe's world is not installed

import jaxpa
from jaxpa.evaluation import scores
from jaxpa.evaluation.evaluate import Case, Judge, evaluate, read_cases
from jaxpa.evaluation.metrics import CLIP, DINO, DREAMSIM, METRICS, fid
from jaxpa.evaluation.scores import Interval, Score
from jaxpa.media.figures import sheet
from jaxpa.media.images import read_image, save_image, to_array, to_image
from weights.recipe.judge import FILE, load
from weights.recipe.world import BACKGROUNDS, COLOURS, Background, caption, instances, is_held_out, render, sample_scene

TAUS = [1.0, 0.95, 0.9, 0.8, 0.7, 0.5, 0.3, 0.1]  # the paper's five; a small grid needs lower ones


def readings() -> dict[str, dict[str, Any]]:
    """Level x path x start noise; attention after tau; guidance inside as outside; the presets of the sources."""
    paths: dict[str, dict[str, Any]] = {
        "line": {"path": "line"},
        "ODE": {"path": "ode"},
        "RF 0.5": {"path": "rf", "gamma": 0.5},
    }
    both = {"tau": [0.8, 0.5]}
    table: dict[str, dict[str, Any]] = {"noise only": {"tau": 1.0}}
    for level, (path, how), start in itertools.product(("layer", "token"), paths.items(), ("independent", "moved")):
        table[f"{level}, {path}, {start}"] = both | how | {"level": level, "start": start}
    for (path, how), concat in itertools.product((("ODE", {}), ("line", paths["line"])), ("zero", "target")):
        start = "independent" if how else "moved"
        table[f"layer, {path}, {start}, concat {concat}"] = both | how | {"start": start, "concat": concat}
    for path, how in (("ODE", {"start": "moved"}), ("line", paths["line"] | {"start": "independent"})):
        table[f"layer, {path}, {how['start']}, guidance inside as outside"] = both | how | {"guidance_inside": None}
    return table | {"preset official": {"preset": "official"}, "preset paper": {"preset": "paper"}}


TABLES: dict[str, dict[str, dict[str, Any]]] = {
    "tau": {"replaced": {"tau": TAUS}, "perturbed": {"tau": TAUS, "shuffle": 1.0, "outline": 3}},
    "readings": readings(),
    "sweeps": {f"{count} sweeps": {"tau": [0.8, 0.5], "sweeps": count} for count in range(3)},
    "times": {
        f"read at {time or 'the same time'}": {"tau": [0.8, 0.5], "reference_time": time} for time in (None, 0.62, 0.45)
    },
}


@dataclass(frozen=True)
class Options:
    out: Path = Path("evaluation")
    data: Path | None = None
    """A benchmark on disk; none: drawn subjects."""
    model: str = "mini"
    table: Literal["tau", "readings", "sweeps", "times"] = "tau"
    """Which settings to compare."""
    settings: Path | None = None
    """Settings of your own: a JSON file of labels and keywords of `Pipeline.personalize`."""
    subjects: int = 24
    """Drawn subjects."""
    prompts: int = 2
    """Prompts for each drawn subject, one of them with another colour."""
    seeds: int = 2
    judge: str = str(FILE)
    """The classifiers of the drawn world, or `none`."""
    metrics: tuple[Literal["clip", "dino", "dreamsim"], ...] = ()
    """The paper's networks that look too: clip_t, clip_i, seg_clip_i, dino, dreamsim (`pip install 'jaxpa[eval]'`)."""
    clip: str = CLIP
    """A hub id or a folder."""
    dino: str = DINO
    """A hub id or a folder."""
    dreamsim: str = DREAMSIM
    fid_pictures: Path | None = None
    """Real pictures, which those of each setting are compared with: fid.json."""
    steps: int | None = None


def drawn_case(number: int, count: int, size: int) -> tuple[Case, str]:
    """A held-out subject, `count` prompts for other backgrounds, and another instance of its caption in its place.

    The last prompt, which is returned besides, gives the subject another colour.
    """
    rng = np.random.default_rng([996, number])
    scene = sample_scene(rng, two=0.0, held_out=True)
    subject, kind = scene.subjects[0], scene.background.kind
    picture, mask = render(scene, size)
    twin = next(instances(subject.family, subject.colour, subject.pattern, kind, rng)).subjects[0]
    twin = replace(twin, x=subject.x, bottom=subject.bottom, span=subject.span)
    another, _ = render(replace(scene, subjects=(twin,)), size)
    kinds = [str(each) for each in rng.permutation([each for each in BACKGROUNDS if each != kind])[:count]]
    scenes = [replace(scene, background=Background(each, 0)) for each in kinds]
    colour = str(rng.choice([each for each in COLOURS if each != subject.colour]))
    scenes[-1] = replace(scenes[-1], subjects=(replace(subject, colour=colour),))
    texts = tuple(map(caption, scenes))
    reference = jaxpa.Subject(picture, mask, caption=caption(scene))
    assert is_held_out(scene)
    return Case(f"{number}: {caption(scene)}", reference, texts, another), texts[-1]


def curves(
    table: scores.Table, across: str, up: tuple[scores.Table, str]
) -> dict[str, list[tuple[str, Interval, Interval]]]:
    """Points (tau, value, value) of two metrics, those of one sweep together."""
    found: dict[str, list[tuple[str, Interval, Interval]]] = {}
    for label, row in table.items():
        series, _, tau = label.partition(", tau ")
        other = up[0].get(label, {}).get(up[1])
        if other is not None and other.n and row[across].n:
            found.setdefault(series, []).append((tau, row[across], other))
    return found


def plot(lines: dict[str, list[tuple[str, Interval, Interval]]], across: str, up: str, file: Path) -> None:
    """Two metrics against each other: a line for each sweep, its taus beside the points, 95% intervals as bars."""
    many = len(lines) > 8  # bars would hide each other
    figure = Figure(figsize=(9.6 if many else 7.2, 5.4), layout="constrained")
    axes = figure.subplots()
    for k, (series, points) in enumerate(lines.items()):
        x, y = (np.array([point[i][:3] for point in points]).T for i in (1, 2))
        spread: dict[str, Any] = {} if many else {"xerr": abs(x[1:] - x[0]), "yerr": abs(y[1:] - y[0])}
        style: dict[str, Any] = {
            "color": f"C{k % 10}",
            "marker": "os^Dv"[k // 5 % 5],
            "linestyle": "-" if k % 2 else "--",
        }
        axes.errorbar(x[0], y[0], **spread, **style, label=series, linewidth=1, elinewidth=0.5, markersize=5)
        for tau, a, b in points:
            axes.annotate(tau, (a.mean, b.mean), (4, 4), textcoords="offset points", fontsize=7)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    figure.legend(fontsize=7, loc="outside right upper")
    axes.grid(alpha=0.3)
    figure.savefig(file, dpi=110)


def report(scored: Sequence[Score], recoloured: set[tuple[str, str]], out: Path) -> str:
    """Write scores, tables and plot; returns the tables."""
    described = scores.summarise([score for score in scored if (score.case, score.prompt) not in recoloured])
    free = scores.summarise([score for score in scored if (score.case, score.prompt) in recoloured])
    text, content = scores.markdown(described), {"prompts that describe the subject": described}
    across, up = "identity", (described, "prompt" if "prompt" in next(reversed(described.values())) else "diversity")
    name = up[1]
    if free:
        text += "\nPrompts that give the subject another colour:\n\n" + scores.markdown(free)
        content["prompts with another colour"] = free
        up, name = (free, "colour"), "another colour, where the prompt says so"
    plot(curves(described, across, up), across, name, out / "plot.png")
    (out / "scores.csv").write_text(scores.csv_text(scored), encoding="utf-8")
    (out / "table.md").write_text(text, encoding="utf-8")
    parts = {name: json.loads(scores.json_text(table)) for name, table in content.items()}
    (out / "table.json").write_text(json.dumps(parts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return text


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    options.out.mkdir(parents=True, exist_ok=True)
    pipe = jaxpa.load(options.model)
    judge: Judge | None = None if options.judge == "none" else load(Path(options.judge))
    networks = [METRICS[name](getattr(options, name)) for name in options.metrics]
    distances = options.fid_pictures and fid(options.fid_pictures)
    made = defaultdict[str, list[Path]](list)  # what FID sees: a setting's pictures together
    size, recoloured = pipe.settings.size, set[tuple[str, str]]()
    if options.data is None:
        drawn = [drawn_case(k, options.prompts, size) for k in range(options.subjects)]
        cases, recoloured = [case for case, _ in drawn], {(case.name, prompt) for case, prompt in drawn}
    else:
        cases = read_cases(options.data)
    settings = TABLES[options.table] if options.settings is None else json.loads(options.settings.read_text())
    panels: list[tuple[str, Image.Image]] = [("reference", read_image(cases[0].subject.image))]

    def look(label: str, case: Case, prompt: str, pictures: list[Image.Image]) -> None:
        print(f"{case.name} | {prompt} | {label}", flush=True)
        if case.name == cases[0].name and prompt == case.prompts[0]:
            panels.append((label, to_image(to_array(pictures[0], size, size))))
        for picture in pictures if distances else []:
            made[label].append(options.out / "pictures" / f"{sum(map(len, made.values())):06}.png")
            made[label][-1].parent.mkdir(exist_ok=True)
            save_image(picture, made[label][-1], {"setting": label, "case": case.name, "prompt": prompt})

    common = {} if options.steps is None else {"steps": options.steps}
    scored = evaluate(pipe, cases, settings, range(options.seeds), judge, look, networks, **common)
    sheet([panels[i : i + 6] for i in range(0, len(panels), 6)], height=192).save(options.out / "sheet.png")
    print(report(scored, recoloured, options.out))
    if distances:
        text = json.dumps({"fid": distances(made)}, indent=2)
        (options.out / "fid.json").write_text(text + "\n", encoding="utf-8")
        print(text)


if __name__ == "__main__":
    main()
