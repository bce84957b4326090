"""Train the embedded checkpoint from nothing: `python -m weights.recipe.train --out runs/mini`.

The stages are tokenizers and autoencoder, latents, flow (the teacher), a weaker flow, guidance distillation away from
it (the student), and export.
Each resumes from its state in the run's folder, to the same numbers.
SIGTERM stops a run, which saves first; the same command takes it up.
"""

from dataclasses import dataclass
from pathlib import Path

import tyro

from jaxpa.config import FluxConfig
from jaxpa.encoders.autoencoder import Autoencoder
from weights.recipe import autoencoder, distill, flow, latents
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
    autoencoder_steps: int = 4000
    pictures: int = 120_000
    """Training pictures to draw, of all canvases together."""
    steps: int = 8800
    """Updates of the flow stage. Until 70% of them are done, a run that is taken up may be given another number."""
    batch: int = 64
    """Pictures of 96 x 96 in an update; of other sizes, as many as cost the same."""
    distill_steps: int = 1000
    """Updates of the guidance distillation, which makes one forward of four; 0: the teacher itself is exported."""
    weak_steps: int = 1500
    """Updates, of half the batch, of a flow with two thirds of the heads, which the distillation leads away from."""
    seed: int = 1
    peek: bool = False
    """Only export the averaged teacher as far as it is, while a run goes on or after it has stopped."""


def run(recipe: Recipe) -> None:
    recipe.out.mkdir(parents=True, exist_ok=True)
    if not (recipe.out / "tokenizer_2").exists():
        make_tokenizers(recipe.out, recipe.text_length)
    tokenizers = latents.Tokenizers(recipe.out)
    vocabularies = len(tokenizers.clip), len(tokenizers.t5)

    def with_heads(heads: int) -> FluxConfig:
        width = recipe.width * heads // recipe.heads
        return flow.small_config(width, heads, recipe.double, recipe.single, recipe.channels, vocabularies)

    config = with_heads(recipe.heads)
    first: flow.TextToImage | None = None
    if recipe.start is None:
        vae = autoencoder.train(
            recipe.out, config.vae, steps=recipe.autoencoder_steps, batch=20, pictures=6000, seed=recipe.seed
        )
    else:
        first, vae = flow.start_from(recipe.start, config)
    print({name: round(value, 2) for name, value in autoencoder.measure(vae).items()}, flush=True)
    if recipe.peek:
        trained, done = flow.average_of(recipe.out / "flow.state", config)
        print(f"the teacher after {done} updates", flush=True)
        return finish(recipe, config, vae, trained)
    data = latents.prepare(recipe.out, vae, recipe.pictures, recipe.seed)
    usual = latents.which_are_usual(recipe.pictures, recipe.seed)
    held_out = latents.held_out(recipe.out, vae)
    t5_empty, clip_empty = (ids[0] for ids in tokenizers([""]))
    seen = data, held_out, (t5_empty, clip_empty)
    trained = flow.train(
        recipe.out, config, *seen, steps=recipe.steps, batch=recipe.batch, seed=recipe.seed, start=first, usual=usual
    )
    if recipe.distill_steps:
        folder = recipe.out / "weak"
        folder.mkdir(exist_ok=True)
        weak = flow.train(
            folder,
            with_heads(max(1, 2 * recipe.heads // 3)),
            *seen,
            steps=recipe.weak_steps,
            batch=recipe.batch // 2,
            seed=recipe.seed + 1,
            usual=usual,
        )
        config = distill.guided_config(config)
        trained = distill.train(
            recipe.out,
            distill.Teachers(trained, weak),
            *seen,
            tokenizers.words(PATTERNS),
            steps=recipe.distill_steps,
            batch=recipe.batch,
            seed=recipe.seed,
            usual=usual,
        )
    finish(recipe, config, vae, trained)


def finish(recipe: Recipe, config: FluxConfig, vae: Autoencoder, trained: flow.TextToImage) -> None:
    """Export the checkpoint. Captions of training have no capitals: a word with them means what it means without."""
    upper, lower = capital_ids(latents.Tokenizers(recipe.out).t5.get_vocab())
    networks = {
        "transformer": trained.transformer,
        "vae": vae,
        "text_encoder": trained.clip,
        "text_encoder_2": with_rows(trained.t5, upper, lower),
    }
    settings = {
        "preset": "mini",
        "size": SIZE,
        "steps": 28,
        "guidance": 4.0,
        "guidance_with_references": 2.5,  # guidance deepens colours, and those of a reference are to stay
        "max_length": recipe.text_length,
        "words": WORDS,
    }
    export(recipe.checkpoint, config, networks, recipe.out, settings)


def main() -> None:
    stop_politely()
    run(tyro.cli(Recipe, description=__doc__))


if __name__ == "__main__":
    main()
