"""What skipping the network costs, and what it saves: `python examples/measure_cache.py --out cache.json`.

`--cache THRESHOLD` takes the last velocity again until what the network reads has changed by that share. Beside the
full run: thresholds, and, with the same question, fewer steps. Each row says how often the network was asked for a
picture, how long a picture took, how far the velocities of the steps are from those that the network would have given
there, how far the pictures are from those of the full run, and what the judge sees in them. Prompts are of
combinations that training never showed.
"""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from measure_mini import right
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))  # the recipe's world is not installed

import jaxpa
from jaxpa.loops import stepped
from jaxpa.sampling import sampling_run
from weights.recipe.judge import FILE, load
from weights.recipe.world import Scene, caption, sample_scene

SEED = 994
HEADS = ("family", "colour", "pattern", "background")


@dataclass(frozen=True)
class Options:
    out: Path | None = None
    """A JSON file for the figures."""
    model: str = "mini"
    count: int = 60
    """Prompts."""
    thresholds: tuple[float, ...] = (0.05, 0.1, 0.15)
    steps: tuple[int, ...] = (18, 12, 9)
    """Fewer steps, for comparison."""
    judge: Path = FILE


class Row:
    """One way to sample, over all prompts."""

    def __init__(self, pipe: jaxpa.Pipeline, **words: Any):
        self.pipe, self.words = pipe, words
        self.pictures: list[np.ndarray] = []
        self.seconds: list[float] = []

    def draw(self, prompt: str, seed: int) -> None:
        """A picture, in one program, and how long it takes."""
        start = time.perf_counter()
        (image,) = self.pipe.generate(prompt, seed=seed, **self.words)
        self.seconds.append(time.perf_counter() - start)
        self.pictures.append(np.asarray(image))

    def velocities(self, prompt: str, seed: int) -> tuple[list[float], int]:
        """Relative errors of the velocities of the steps, at the tokens that they were taken for; forwards."""
        pipe, cache = self.pipe, self.words.get("cache")
        grid = pipe.grid()
        times, x = pipe.times(self.words.get("steps"), grid), pipe.noise(np.array([seed]), grid)
        velocity, errors, forwards = pipe.velocity(pipe.encode_text([prompt])), [], len(times) - 1
        run = sampling_run(velocity, x, jnp.asarray(times), cache=None if cache is None else jnp.float32(cache))
        for i, progress in enumerate(stepped(run)):
            after = progress.state[0]
            used = (after - x) / (times[i + 1] - times[i])
            own = ASK(velocity, x, jnp.full(1, times[i]))
            errors.append(float(jnp.sqrt(jnp.mean((used - own) ** 2) / jnp.mean(own**2))))
            x = after
            forwards = len(times) - 1 if cache is None else int(progress.result[1])
        return errors, forwards


ASK = jax.jit(lambda velocity, x, t: velocity(x, t))


def report(row: Row, full: Row, scenes: list[Scene], judge: Any, few: int) -> dict[str, Any]:
    """The figures of a row; velocities are looked at for `few` prompts."""
    looked = [row.velocities(caption(scene, 1), k) for k, scene in enumerate(scenes[:few])]
    seen = right(judge, np.stack(row.pictures), scenes)
    apart = [np.abs(a.astype(float) - b).mean() for a, b in zip(row.pictures, full.pictures, strict=True)]
    return {
        "forwards": float(np.mean([forwards for _, forwards in looked])),
        "seconds": float(np.median(row.seconds[1:])),
        "velocity": float(np.mean([np.mean(errors) for errors, _ in looked])),
        "pictures": float(np.mean(apart)),
        "pictures, median": float(np.median(apart)),
        **{head: float(seen[head].mean()) for head in HEADS},
    }


def table(found: dict[str, dict[str, Any]]) -> str:
    """Of the figures, as Markdown."""
    heads = "".join(f" {head} |" for head in HEADS)
    lines = [f"| | forwards | ms | velocity | pictures, mean (median) |{heads}", "|---|---" + "|---" * 7 + "|"]
    for name, row in found.items():
        rates = "".join(f" {row[head]:.0%} |" for head in HEADS)
        lines.append(
            f"| {name} | {row['forwards']:.1f} | {1000 * row['seconds']:.0f} | {row['velocity']:.1%} | "
            f"{row['pictures']:.1f} ({row['pictures, median']:.1f}) |{rates}"
        )
    return "\n".join(lines)


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    pipe, judge = jaxpa.load(options.model), load(options.judge)
    scenes = [sample_scene(np.random.default_rng([SEED, k]), 0.0, held_out=True) for k in range(options.count)]
    rows = {"all steps": Row(pipe)}
    rows |= {f"cache {threshold:g}": Row(pipe, cache=threshold) for threshold in options.thresholds}
    rows |= {f"{steps} steps": Row(pipe, steps=steps) for steps in options.steps}
    for k, scene in enumerate(tqdm(scenes)):  # one after the other, so that a busy minute meets all of them
        for row in rows.values():
            row.draw(caption(scene, 1), k)
    full = rows["all steps"]
    found = {name: report(row, full, scenes, judge, min(12, options.count)) for name, row in rows.items()}
    print(table(found))
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
