"""How far positions collide: attention on a reference, measured over many pairs (Section 3.2 of Personalize Anything).

    python examples/measure_collision.py                 # examples/evaluation/collision.png; needs the extra `examples`

Lesson 11 (11_collision.py) explains the three places that a reference's tokens may have: their own ("original"), (0, 0)
("zero"), and beside the picture ("shifted"). This script measures the attention that image tokens pay to the
reference's token in the same cell: the mean over image tokens, heads and blocks, for pairs of drawings that share a
caption. One is the reference, the other the picture being made; both are noised to the same flow time. With the
reference there are M + 2 N keys, so uniform attention would give each 1 / (M + 2 N).
"""

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))  # the recipe's world is not installed

import jaxpa
from jaxpa.attention.maps import image_to_context
from jaxpa.attention.observe import ask
from jaxpa.encoders.text import TextEmbedding
from jaxpa.routing import reference_context
from jaxpa.tokens import Placement, Routing
from jaxpa.transformer import FluxConditions, FluxVelocity
from weights.recipe.world import instances, numbered_scene, render

SEED, BATCH = 601, 13
TIMES = (0.95, 0.8, 0.6, 0.4, 0.2)
MODES = ("original", "zero", "shifted")
PAPER = {"FLUX.1 (DiT)": 0.4294, "U-Net": 0.0522}  # Feng et al. 2025, supplement: 100 samples
PICTURE = Path(__file__).parent / "evaluation" / "collision.png"
SENTENCE = f"""The paper has {PAPER["FLUX.1 (DiT)"]} for FLUX.1 at the original positions, {PAPER["U-Net"]} in a U-Net.
The embedded model can show the order of the three, not FLUX.1's size: it has 144 coarse tokens, heads of 32 channels,
and the means here run over all blocks, heads and flow times, which the paper does not spell out for its own."""


def pair(number: int) -> tuple[np.ndarray, str]:
    """A reference and another drawing of its caption: (2, H, W, 3) in [-1, 1], and the caption."""
    scene, caption = numbered_scene(SEED, number, two=0.0, held_out=True)
    one = scene.subjects[0]
    again = instances(one.family, one.colour, one.pattern, scene.background.kind, np.random.default_rng([SEED, number]))
    drawn = [render(each)[0] for each in (scene, next(again))]
    return np.stack(drawn).astype(np.float32) / 127.5 - 1, caption


def routing(mode: Any, grid: tuple[int, int]) -> Routing:
    """Rows [reference; image], which both attend to all the reference's tokens at the positions of `mode`."""
    n = grid[0] * grid[1]
    everywhere = jnp.ones((1, n), bool)
    stay = Placement(jnp.arange(n)[None], everywhere)
    return Routing(**reference_context(everywhere, stay, 1, grid, mode, n)._asdict())


@partial(jax.jit, static_argnames=("mode", "grid"))
def look(velocity: FluxVelocity, path: jax.Array, text: TextEmbedding, t: jax.Array, mode: str, grid: Any) -> jax.Array:
    """Pairs at flow time t, path (P, 2, N, C), text rows (P, 2, ...) -> attention on the reference, (P, L, N, N)."""
    ways = routing(mode, grid)

    def one(x: jax.Array, text: TextEmbedding) -> jax.Array:
        own = velocity.conditions
        guidance = None if own.guidance is None else jnp.broadcast_to(own.guidance[0], 2)
        bound = FluxConditions(text.txt, text.vec, guidance, own.positions).bind(velocity.model)
        _, double, single = ask(bound, x, jnp.broadcast_to(t, 2), image_to_context, ways)
        return jnp.concatenate([double, single])[:, 1]  # the image's row

    return jax.vmap(one)(path, text)


def measure(pipe: jaxpa.Pipeline, pairs: int) -> dict[str, np.ndarray]:
    """For every mode the attention on the reference, (T, L, P, 2): on the same cell, and on all of it; and maps."""
    grid = pipe.grid()
    seen = {mode: [[] for _ in TIMES] for mode in MODES}
    maps = dict.fromkeys(MODES, 0.0)
    for first in range(0, pairs, BATCH):
        drawn = [pair(k) for k in range(first, min(first + BATCH, pairs))]
        x0 = jnp.stack([pipe.encode_image(pictures) for pictures, _ in drawn])  # (P, 2, N, C)
        texts = [pipe.encode_text([caption] * 2) for _, caption in drawn]
        text = jax.tree.map(lambda *rows: jnp.stack(rows), *texts)
        seeds = np.arange(2 * first, 2 * (first + len(drawn)), dtype=np.uint32)
        noise = pipe.noise(seeds, grid).reshape(x0.shape)
        velocity: Any = pipe.guided(texts[0], grid, 1.0, None)
        for k, t in enumerate(TIMES):
            path = (1 - t) * x0 + t * noise
            for mode in MODES:
                p = np.asarray(look(velocity, path, text, jnp.float32(t), mode, grid))  # (P, L, N, N)
                same = np.diagonal(p, axis1=2, axis2=3).mean(-1)
                seen[mode][k].append(np.stack([same, p.sum(-1).mean(-1)], -1))  # (P, L, 2)
                maps[mode] = maps[mode] + p.mean((0, 1)) * len(p) / (pairs * len(TIMES))
        print(f"{first + len(drawn)} of {pairs} pairs", file=sys.stderr)
    stacked = {mode: np.stack([np.concatenate(each) for each in seen[mode]]).swapaxes(1, 2) for mode in MODES}
    return stacked | {f"{mode} map": np.asarray(maps[mode]) for mode in MODES}


def by_offset(p: np.ndarray, grid: tuple[int, int], reach: int) -> np.ndarray:
    """Attention (N, N) on the reference's token that is (dy, dx) cells away: (2 reach + 1, 2 reach + 1) means."""
    h, w = grid
    rows, cols = np.divmod(np.arange(h * w), w)
    dy, dx = rows - rows[:, None], cols - cols[:, None]
    steps = range(-reach, reach + 1)
    return np.array([[p[(dy == a) & (dx == b)].mean() for b in steps] for a in steps])


def plot(result: dict[str, np.ndarray], grid: tuple[int, int], uniform: float, pairs: int, out: Path) -> None:
    """Where image tokens look, and the means beside the paper's."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    means = {mode: float(result[mode][..., 0].mean()) for mode in MODES}
    figure, axes = plt.subplots(1, 5, figsize=(15, 3.3), width_ratios=(1, 1, 1, 1.15, 1.5), layout="constrained")
    reach = min(grid) // 2 - 1
    maps = [by_offset(result[f"{mode} map"], grid, reach) / uniform for mode in MODES]
    top = max(float(each.max()) for each in maps)
    image = None
    for axis, mode, each in zip(axes, MODES, maps, strict=False):
        image = axis.imshow(each, extent=(-reach - 0.5, reach + 0.5, reach + 0.5, -reach - 0.5), vmin=0, vmax=top)
        axis.set(title=f"reference at {mode} positions", xlabel="columns away", ylabel="rows away")
        axis.title.set_size(10)
    assert image is not None
    figure.colorbar(image, ax=axes[2], label="attention / uniform")
    for mode in MODES:
        axes[3].plot(TIMES, result[mode][..., 0].mean((1, 2)), marker="o", label=mode)
    axes[3].axhline(uniform, color="grey", linestyle=":", label="uniform")
    axes[3].set(title="same cell, by flow time", xlabel="flow time t (1: noise)", yscale="log")
    axes[3].legend(fontsize=7)
    names = [*means, *PAPER]
    values = [*means.values(), *PAPER.values()]
    bars = axes[4].bar(range(len(names)), values, color=["C0", "C1", "C2", "0.75", "0.75"])
    axes[4].bar_label(bars, [f"{value:.4f}" for value in values], fontsize=8)
    axes[4].axhline(uniform, color="grey", linestyle=":")
    axes[4].set_xticks(range(len(names)), [*means, "paper:\nDiT", "paper:\nU-Net"], fontsize=8)
    axes[4].set(title=f"same cell, mean of {pairs} pairs", yscale="log", ylim=(uniform / 4, 1))
    figure.savefig(out, dpi=80)
    print(f"{out}: {out.stat().st_size // 1024} KB", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="mini")
    parser.add_argument("--pairs", type=int, default=104)
    parser.add_argument("--out", type=Path, default=PICTURE)
    args = parser.parse_args()
    pipe = jaxpa.load(args.model)
    grid = pipe.grid()
    uniform = 1 / (pipe.settings.max_length + 2 * grid[0] * grid[1])
    result = measure(pipe, args.pairs)
    print(f"{args.pairs} pairs; uniform attention: {uniform:.4f}\n")
    print("| positions | same cell (95%) | times uniform | all of the reference | strongest block |")
    print("|---|---|---|---|---|")
    for mode in MODES:
        each = result[mode]  # (T, L, P, 2)
        of_pair = each[..., 0].mean((0, 1))
        error = 1.96 * of_pair.std() / len(of_pair) ** 0.5
        strongest = each[..., 0].mean((0, 2)).max()
        total = each[..., 1].mean()
        print(
            f"| {mode} | {of_pair.mean():.4f} ± {error:.4f} | {of_pair.mean() / uniform:.1f} | {total:.3f} "
            f"| {strongest:.4f} |"
        )
    print(f"\n{SENTENCE}")
    plot(result, grid, uniform, args.pairs, args.out)


if __name__ == "__main__":
    main()
