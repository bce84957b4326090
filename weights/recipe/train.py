"""Train the embedded checkpoint from nothing: `python -m weights.recipe.train --out runs/mini`.

The stages are tokenizers and autoencoder, latents, flow (the teacher), guidance distillation (the student), and export.
Each resumes from its state in the run's folder.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from weights.recipe import autoencoder, distill, flow, latents
from weights.recipe.export import export
from weights.recipe.tokenizers import make_tokenizers
from weights.recipe.world import PATTERNS, SIZE, WORDS


@dataclass(frozen=True)
class Recipe:
    """What to train, and for how long. The defaults are for two CPU cores."""

    out: Path = Path("runs/mini")
    """Folder of the run: states and logs, for a run that goes on later."""
    checkpoint: Path = Path("weights/mini")
    """Where the finished checkpoint is written."""
    start: Path | None = None
    """An exported checkpoint of the same sizes to go on from (weights/mini), its autoencoder included; none: from
    nothing. A state in the run's folder comes first."""
    width: int = 192
    heads: int = 6
    double: int = 2
    single: int = 4
    channels: int = 8
    """Latent channels of the autoencoder."""
    text_length: int = 32
    """T5 tokens a prompt is padded to."""
    autoencoder_steps: int = 1300
    pictures: int = 96_000
    """Training pictures to draw, one in twenty with two subjects."""
    pairs: int = 48_000
    """Further training pictures, all with two subjects: they take longer to learn."""
    steps: int = 8000
    """Updates of the flow stage."""
    batch: int = 64
    distill_steps: int = 420
    """Updates of the guidance distillation, which makes one forward of two; 0: the teacher itself is exported."""
    seed: int = 1


def run(recipe: Recipe) -> None:
    recipe.out.mkdir(parents=True, exist_ok=True)
    if not (recipe.out / "tokenizer_2").exists():
        make_tokenizers(recipe.out, recipe.text_length)
    tokenizers = latents.Tokenizers(recipe.out)
    vocabularies = len(tokenizers.clip), len(tokenizers.t5)
    config = flow.small_config(recipe.width, recipe.heads, recipe.double, recipe.single, recipe.channels, vocabularies)
    first: flow.TextToImage | None = None
    if recipe.start is None:
        vae = autoencoder.train(
            recipe.out, config.vae, steps=recipe.autoencoder_steps, batch=20, pictures=6000, seed=recipe.seed
        )
    else:
        first, vae = flow.start_from(recipe.start, config)
    print({name: round(value, 2) for name, value in autoencoder.measure(vae).items()}, flush=True)
    data = latents.prepare(recipe.out / "latents.npz", vae, recipe.pictures, recipe.seed)
    if recipe.pairs:
        pairs = latents.prepare(recipe.out / "pairs.npz", vae, recipe.pairs, recipe.seed + 1, two=1.0)
        data = flow.Batch(*(np.concatenate(column) for column in zip(data, pairs, strict=True)))
    empty = tuple(ids[0] for ids in tokenizers([""]))
    trained = flow.train(
        recipe.out, config, data, latents.held_out(recipe.out, vae), (empty[0], empty[1]),
        steps=recipe.steps, batch=recipe.batch, seed=recipe.seed, start=first,
    )  # fmt: skip
    if recipe.distill_steps:
        config = distill.guided_config(config)
        trained = distill.train(
            recipe.out, trained, data, latents.held_out(recipe.out, vae), (empty[0], empty[1]),
            tokenizers.words(PATTERNS), steps=recipe.distill_steps, batch=recipe.batch, seed=recipe.seed,
        )  # fmt: skip
    networks = {
        "transformer": trained.transformer,
        "vae": vae,
        "text_encoder": trained.clip,
        "text_encoder_2": trained.t5,
    }
    settings = {"preset": "mini", "size": SIZE, "steps": 28, "guidance": 4.0, "max_length": recipe.text_length}
    export(recipe.checkpoint, config, networks, recipe.out, settings | {"words": WORDS})


def main() -> None:
    run(tyro.cli(Recipe, description=__doc__))


if __name__ == "__main__":
    main()
