"""Train the embedded checkpoint from nothing: `python -m weights.recipe.train --out runs/mini`.

The stages are tokenizers and autoencoder, latents, flow (the teacher), guidance distillation (the student), refinement
of the student, and export. Each resumes from its state in the run's folder, to the same numbers.
SIGTERM stops a run, which saves first; the same command takes it up.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro

from jaxpa.config import FluxConfig
from jaxpa.encoders.autoencoder import Autoencoder
from weights.recipe import autoencoder, distill, flow, latents, refine
from weights.recipe.compositions import WORDS
from weights.recipe.export import export, with_rows
from weights.recipe.tokenizers import capital_ids, make_tokenizers
from weights.recipe.training import stop_politely
from weights.recipe.world import PATTERNS, SIZE


@dataclass(frozen=True)
class Recipe:
    """What to train, and for how long. The defaults are for two CPU cores."""

    out: Path = Path("runs/mini")
    """Folder of the run: states and logs, for a run that goes on later."""
    checkpoint: Path = Path("weights/mini")
    """Where the finished checkpoint is written."""
    start: Path | None = None
    """An exported checkpoint of the same sizes to refine (weights/mini); none: the whole run, from nothing."""
    width: int = 192
    heads: int = 6
    double: int = 2
    single: int = 4
    channels: int = 8
    """Latent channels of the autoencoder."""
    text_length: int = 32
    """T5 tokens a prompt is padded to."""
    autoencoder_steps: int = 2000
    pictures: int = 120_000
    """Training pictures to draw, of all canvases together."""
    steps: int = 8800
    """Updates of the flow stage. Until 70% of them are done, a run that is taken up may be given another number."""
    batch: int = 64
    """Pictures of 96 x 96 in an update; of other sizes, as many as cost the same."""
    distill_steps: int = 300
    """Updates of the guidance distillation, which makes one forward of three; 0: the teacher itself is exported."""
    refine_steps: int = 2400
    """Updates of the refinement; 0: the distilled student is exported."""
    refine_pictures: int = 80_000
    """New pictures for it."""
    seed: int = 1
    peek: bool = False
    """Only export the averaged teacher as far as it is (with `--start` the refined student), while a run goes on or
    after it has stopped."""


PAIRS = 1.5  # how often the refinement sees two subjects, the flow's weak point, for a picture of one


class Lessons(NamedTuple):
    """What a stage learns from: pictures, those to validate with, and the ids of no caption and of patterns' words."""

    data: list[latents.Batch]
    held_out: latents.Batch
    empty: tuple[np.ndarray, np.ndarray]
    patterns: tuple[np.ndarray, np.ndarray]


def prepare(folder: Path, vae: Autoencoder, pictures: int, seed: int) -> Lessons:
    tokenizers = latents.Tokenizers(folder)
    t5, clip = (ids[0] for ids in tokenizers([""]))
    data = latents.prepare(folder, vae, pictures, seed)
    return Lessons(data, latents.held_out(folder, vae), (t5, clip), tokenizers.words(PATTERNS))


def plain_config(recipe: Recipe) -> FluxConfig:
    """The teacher's."""
    tokenizers = latents.Tokenizers(recipe.out)
    vocabularies = len(tokenizers.clip), len(tokenizers.t5)
    return flow.small_config(recipe.width, recipe.heads, recipe.double, recipe.single, recipe.channels, vocabularies)


def run(recipe: Recipe) -> None:
    recipe.out.mkdir(parents=True, exist_ok=True)
    if recipe.start is not None:
        for name in ("tokenizer", "tokenizer_2"):
            shutil.copytree(recipe.start / name, recipe.out / name, dirs_exist_ok=True)
        return refined(recipe, recipe.start)
    if not (recipe.out / "tokenizer_2").exists():
        make_tokenizers(recipe.out, recipe.text_length)
    config = plain_config(recipe)
    common: dict[str, Any] = {"batch": recipe.batch, "seed": recipe.seed}
    vae = autoencoder.train(
        recipe.out, config.vae, steps=recipe.autoencoder_steps, batch=20, pictures=6000, seed=recipe.seed
    )
    print({name: round(value, 2) for name, value in autoencoder.measure(vae).items()}, flush=True)
    if recipe.peek:
        trained, done = flow.average_of(recipe.out / "flow.state", config)
        print(f"the teacher after {done} updates", flush=True)
        return finish(recipe, config, vae, trained, recipe.checkpoint)
    lessons = prepare(recipe.out, vae, recipe.pictures, recipe.seed)
    common["weights"] = latents.weights(recipe.pictures, recipe.seed)
    data, held_out, empty, _ = lessons
    trained = flow.train(recipe.out, config, data, held_out, empty, steps=recipe.steps, **common)
    if recipe.distill_steps:
        config = distill.guided_config(config)
        trained = distill.train(recipe.out, trained, *lessons, steps=recipe.distill_steps, **common)
    if not (recipe.distill_steps and recipe.refine_steps):
        return finish(recipe, config, vae, trained, recipe.checkpoint)
    finish(recipe, config, vae, trained, recipe.out / "distilled")
    refined(recipe, recipe.out / "distilled")


def refined(recipe: Recipe, start: Path) -> None:
    """Refine an exported student, as rounded for its export, and export it."""
    config, seed = distill.guided_config(plain_config(recipe)), recipe.seed + 1
    student, vae = refine.start_from(start, config)
    if recipe.peek:
        trained, done = refine.average_of(recipe.out / "refine.state", student)
        print(f"the student after {done} updates of the refinement", flush=True)
        return finish(recipe, config, vae, trained, recipe.checkpoint)
    lessons = prepare(recipe.out, vae, recipe.refine_pictures, seed)
    trained = refine.train(
        recipe.out,
        student,
        *lessons,
        steps=recipe.refine_steps,
        batch=recipe.batch,
        seed=seed,
        weights=latents.weights(recipe.refine_pictures, seed, PAIRS),
    )
    finish(recipe, config, vae, trained, recipe.checkpoint)


def finish(recipe: Recipe, config: FluxConfig, vae: Autoencoder, trained: flow.TextToImage, folder: Path) -> None:
    """Export the checkpoint. Captions of training have no capitals: a word with them means what it means without."""
    upper, lower = capital_ids(latents.Tokenizers(recipe.out).t5.get_vocab())
    networks = {
        "transformer": trained.transformer,
        "vae": vae,
        "text_encoder": trained.clip,
        "text_encoder_2": with_rows(trained.t5, upper, lower),
    }
    settings = {"preset": "mini", "size": SIZE, "steps": 28, "guidance": 4.0, "max_length": recipe.text_length}
    export(folder, config, networks, recipe.out, settings | {"words": WORDS})


def main() -> None:
    stop_politely()
    run(tyro.cli(Recipe, description=__doc__))


if __name__ == "__main__":
    main()
