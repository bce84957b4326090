"""Train the judge of `judge.py` on true drawings.

Every head learns by cross entropy, the embedding by InfoNCE, with another instance of the same caption as the hard
negative. Training pictures are blurred and noised a little, and some have been through the checkpoint's autoencoder,
so that a generated picture is judged by what it shows and not by how sharp it is.

`python -m weights.recipe.classifiers --out runs/judge` trains, measures, and writes `weights/judge.safetensors`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx

from jaxpa.checkpoint.load import load_component
from jaxpa.encoders.autoencoder import Autoencoder
from weights.recipe.judge import FILE, Classifier, Seen, halves, load, save
from weights.recipe.judge_data import HEADS, PAIRED, Examples, pairs, triplets
from weights.recipe.judge_report import report
from weights.recipe.training import Log, load_state, optimiser, save_state, trapezoid


def worn(pictures: jax.Array, key: jax.Array) -> jax.Array:
    """uint8 pictures -> [-1, 1], each blurred and noised by an amount of its own, half of them hardly."""
    k_blur, k_noise, k_amount = jax.random.split(key, 3)
    x = pictures.astype(jnp.float32) / 127.5 - 1
    soft = jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME") / 9
    blur, amount = (jnp.maximum(0.0, jax.random.uniform(k, (len(x), 1, 1, 1), minval=-1.0)) for k in (k_blur, k_amount))
    return x + blur * (soft - x) + 0.08 * amount * jax.random.normal(k_noise, x.shape)


def label_loss(seen: Seen, labels: Mapping[str, jax.Array]) -> jax.Array:
    """Cross entropy summed over the heads; a label of -1 says that the picture has none."""
    total = jnp.zeros(())
    for head, logits in seen.logits.items():
        if head in labels:
            told = labels[head] >= 0
            each = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels[head], 0))
            total += jnp.sum(each * told) / jnp.maximum(1, told.sum())
    return total


def identity_loss(embedding: jax.Array, temperature: float = 0.1) -> jax.Array:
    """InfoNCE over triplets, (3 T, E) = [subjects; the same elsewhere; other instances of their captions]."""
    anchor, same, other = jnp.split(embedding, 3)
    logits = anchor @ jnp.concatenate([same, other]).T / temperature  # (T, 2 T)
    return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.arange(len(anchor))).mean()


def loss(model: Classifier, single: Examples, double: Examples, key: jax.Array) -> jax.Array:
    """single: triplets as `identity_loss` has them; double: pictures of two subjects."""
    k_single, k_double = jax.random.split(key)
    two = worn(jnp.asarray(double.pictures), k_double)
    pictures = jnp.concatenate([worn(jnp.asarray(single.pictures), k_single), two])
    seen, count = model(pictures), len(single.pictures)
    whole = {head: jnp.concatenate([single.labels[head], double.labels[head]]) for head in HEADS}
    whole |= {head: whole[head].at[count:].set(-1) for head in PAIRED}  # two subjects have no one family
    part = {head: jnp.concatenate([double.labels[head], double.labels[f"{head}_2"]]) for head in PAIRED}
    return label_loss(seen, whole) + 0.5 * label_loss(model(halves(two)), part) + identity_loss(seen.embedding[:count])


def batches(single: Examples, double: Examples, count: int, seed: int, start: int) -> Iterator[tuple[Any, Any]]:
    """`count` triplets and half as many pictures of two, at random; batch k is a function of the seed and k."""
    thirds, k = len(single.pictures) // 3, start
    while True:
        rng = np.random.default_rng([seed, k])
        rows = rng.choice(thirds, min(count, thirds), replace=False)
        two = rng.choice(len(double.pictures), min(max(1, count // 2), len(double.pictures)), replace=False)
        yield single.rows(np.concatenate([rows + i * thirds for i in range(3)])), double.rows(two)
        k += 1


def train(
    out: Path,
    vae: Autoencoder | None = None,
    *,
    steps: int = 550,
    count: int = 24,
    drawn: int = 5000,
    two: int = 4000,
    seed: int = 1,
    model: Classifier | None = None,
) -> Classifier:
    """Train, or take up where `out/judge.state` stopped. vae: what an eighth of the pictures goes through first."""
    out.mkdir(parents=True, exist_ok=True)
    single, double = triplets(seed, drawn, vae), pairs(seed, two, vae)
    start: Any = (Classifier(rngs=nnx.Rngs(seed)) if model is None else model,)  # optax takes a callable for a mask
    rate = trapezoid(1.0, steps, warmup=30, decay=0.5)
    tx = optimiser(
        start,
        lambda s: 0.01 * rate(s),
        lambda s: 2e-3 * rate(s),
        lambda path, leaf: "kernel" in path and leaf.ndim == 4 and "stem" not in path,
    )
    state: Any = (start, jax.jit(tx.init)(start), jnp.zeros((), jnp.int32))
    file = out / "judge.state"
    if file.exists():
        state = load_state(file, state)

    @jax.jit
    def update(state: Any, single: Any, double: Any) -> Any:
        model, opt, i = state
        key = jax.random.fold_in(jax.random.key(seed), i)
        value, grads = jax.value_and_grad(lambda m: loss(m[0], single, double, key))(model)
        changes, opt = tx.update(grads, opt, model)
        return (optax.apply_updates(model, changes), opt, i + 1), value

    log, stream = Log(out / "judge.csv", 25), batches(single, double, count, seed, int(state[2]))
    for i in range(int(state[2]) + 1, steps + 1):
        state, value = update(state, *next(stream))
        log(i, value)
        if i % 100 == 0 or i == steps:
            save_state(file, state)
    return state[0][0]


@dataclass(frozen=True)
class Options:
    """How to train the judge. The defaults take about half an hour of one CPU core."""

    out: Path = Path("runs/judge")
    """Folder of the run: its state and log."""
    file: Path = FILE
    """Where the judge is written, with its measured accuracy beside it."""
    checkpoint: Path = Path("weights/mini")
    """Whose autoencoder a part of the pictures goes through."""
    steps: int = 1400
    drawn: int = 5000
    """Triplets to draw."""
    two: int = 4000
    """Pictures of two subjects to draw."""
    seed: int = 1


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    vae = load_component(options.checkpoint / "vae", jnp.float32)
    model = train(options.out, vae, steps=options.steps, drawn=options.drawn, two=options.two, seed=options.seed)
    save(model, options.file)
    size = sum(leaf.size for leaf in jax.tree.leaves(model)) / 1e6
    made = f"`{options.file.name}`: {size:.2f} M parameters, {options.steps} steps, seed {options.seed}."
    text = report(load(options.file), vae, made)
    options.file.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
