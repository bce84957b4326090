"""How good the embedded model is: `python examples/measure_mini.py --out quality` (500 pictures, some minutes).

The prompts are of combinations that training never showed. The judge (`weights/judge.safetensors`, a classifier trained
on true drawings) says which family, colour, pattern and background it sees. The table also has the judge's own
accuracy, on true drawings after a round trip through the checkpoint's autoencoder, and chance. A forced choice flatters
a blurred picture, so `blind.png` shows 64 pictures without captions: name the subjects, then look into
`blind-answers.txt`. `canvases.png` shows the last 24 prompts on canvases of four shapes: how many are finished?
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))  # the recipe's world is not installed

import jaxpa
from jaxpa.evaluation.scores import interval
from jaxpa.media.figures import sheet
from jaxpa.pipeline import Pipeline
from weights.recipe import autoencoder
from weights.recipe.judge import FILE, Judge, load, present
from weights.recipe.judge_data import HEADS, labels_of, unit
from weights.recipe.judge_report import chance, measure
from weights.recipe.world import Scene, caption, sample_scene

SEED = 995
CANVASES = ((96, 96), (96, 128), (128, 96), (96, 192))


@dataclass(frozen=True)
class Options:
    out: Path = Path("quality")
    """Folder for the report and the pictures."""
    model: str = "mini"
    count: int = 500
    """Prompts of one subject."""
    two: int = 100
    """Prompts of two subjects."""
    batch: int = 20
    steps: int | None = None
    guidance: float | None = None
    judge: Path = FILE
    autoencoder: bool = True
    """Measure the autoencoder too."""


def prompts(count: int, two: float) -> tuple[list[Scene], list[str]]:
    """Scenes that training never showed and their captions, patterns always said."""
    scenes = [sample_scene(np.random.default_rng([SEED, i]), two, held_out=True) for i in range(count)]
    return scenes, [caption(scene, i % 4) for i, scene in enumerate(scenes)]


def draw(pipe: Pipeline, texts: list[str], options: Options) -> np.ndarray:
    """A picture for each prompt, (B, H, W, 3) uint8; image k has the seed k."""
    made = []
    for i in tqdm(range(0, len(texts), options.batch), desc="batches"):
        part = texts[i : i + options.batch]
        part += part[:1] * (options.batch - len(part))  # one size, one program
        seeds = list(range(i, i + options.batch))
        made += pipe.generate(part, seed=seeds, steps=options.steps, guidance=options.guidance)
    return np.stack([np.asarray(each) for each in made[: len(texts)]])


def canvases(pipe: Pipeline, texts: list[str], options: Options) -> None:
    """Write a sheet of prompts, a row of them on each canvas; a row's image k has the seed k."""
    rows = []
    for k, (height, width) in enumerate(CANVASES[: len(texts)]):
        part = texts[k :: len(CANVASES)]
        how = {"height": height, "width": width, "steps": options.steps, "guidance": options.guidance}
        rows.append(list(zip(part, pipe.generate(part, seed=range(len(part)), **how), strict=True)))
    sheet(rows, height=144).save(options.out / "canvases.png")


def right(judge: Judge, pictures: np.ndarray, scenes: list[Scene]) -> dict[str, np.ndarray]:
    """For each head, whether each picture shows what its prompt says."""
    logits = judge.see(unit(pictures)).logits
    labels = [labels_of(scene) for scene in scenes]
    return {head: np.equal(logits[head].argmax(-1), [one[head] for one in labels]) for head in HEADS}


def both_present(judge: Judge, pictures: np.ndarray, scenes: list[Scene]) -> np.ndarray:
    labels = [labels_of(scene) for scene in scenes]
    want = {head: np.array([[one[head], one[f"{head}_2"]] for one in labels]).T for head in ("family", "colour")}
    return present(judge, unit(pictures), want)


def blind(pictures: np.ndarray, texts: list[str], folder: Path, count: int = 64) -> None:
    """Write a sheet of numbered pictures, and a file of what they should show."""
    count = min(count, len(texts))
    panels = [(str(i + 1), Image.fromarray(picture)) for i, picture in enumerate(pictures[:count])]
    sheet([panels[i : i + 8] for i in range(0, count, 8)], height=144).save(folder / "blind.png")
    answers = "".join(f"{i + 1}\t{text}\n" for i, text in enumerate(texts[:count]))
    (folder / "blind-answers.txt").write_text(answers, encoding="utf-8")


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    options.out.mkdir(parents=True, exist_ok=True)
    pipe, judge = jaxpa.load(options.model), load(options.judge)
    scenes, texts = prompts(options.count, 0.0)
    pictures = draw(pipe, texts, options)
    blind(pictures, texts, options.out)
    canvases(pipe, texts[-24:], options)
    found = right(judge, pictures, scenes)
    rows = {head: found[head] for head in ("family", "colour", "pattern", "count", "background")}
    families = np.array([scene.subjects[0].family for scene in scenes])
    rows |= {f"family: {name}": found["family"][families == name] for name in HEADS["family"]}
    if options.two:
        pairs, pair_texts = prompts(options.two, 1.0)
        rows["two subjects, both present"] = both_present(judge, draw(pipe, pair_texts, options), pairs)
    values = {name: interval([float(x) for x in each]) for name, each in rows.items()}
    known = measure(judge, pipe.parts.vae, 256)["through_autoencoder"]
    known["two subjects, both present"] = known["both"]

    lines = ["| | right | 95% interval | the judge itself | chance | n |", "|---|---|---|---|---|---|"]
    for name, each in values.items():
        own, guess = (f"{source[name]:.1%}" if name in source else "" for source in (known, chance()))
        lines.append(f"| {name} | {each.mean:.1%} | {each.low:.1%} to {each.high:.1%} | {own} | {guess} | {each.n} |")
    report = {name: each._asdict() for name, each in values.items()}
    if options.autoencoder:
        decibels = autoencoder.measure(pipe.parts.vae)
        drawn, natural = decibels["drawn_db"], decibels["natural_db"]
        where = "natural crops from regions that no training crop overlaps"
        lines += ["", f"Autoencoder: {drawn:.1f} dB on held-out drawings, {natural:.1f} dB on {where}."]
        report["autoencoder"] = decibels
    text = "\n".join(lines) + "\n"
    (options.out / "quality.md").write_text(text, encoding="utf-8")
    (options.out / "quality.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
