"""A judge of pictures: one small convolutional network, trained on true drawings, that says what a picture shows.

Heads for family, colour, pattern, background and the number of subjects, and an embedding in which two pictures of
one subject are near and two instances of one caption are not (InfoNCE; the other instance is the hard negative).
Training pictures are blurred and noised a little, and a part went through the checkpoint's autoencoder, so that a
generated picture is judged by what it shows and not by how sharp it is.

A picture of two subjects is judged by halves: the world puts one into each.

`python -m weights.recipe.classifiers --out runs/judge` trains, measures, and writes `weights/judge.safetensors`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx
from jax.typing import DTypeLike
from safetensors.numpy import load_file, save_file

from jaxpa.encoders.autoencoder import Autoencoder, Resnet
from jaxpa.evaluation.evaluate import Verdict
from weights.recipe.judge_data import HEADS, PAIRED, Examples, pairs, triplets
from weights.recipe.training import Log, load_state, optimiser, save_state, trapezoid
from weights.recipe.world import SIZE

EMBEDDING = 64
FILE = Path(__file__).parent.parent / "judge.safetensors"


class Seen(NamedTuple):
    """logits (B, classes) of every head; embedding (B, EMBEDDING) of length 1."""

    logits: dict[str, jax.Array]
    embedding: jax.Array


class Classifier(nnx.Module):
    """Pictures (B, H, W, 3) in [-1, 1], sides of 16 n -> Seen. Pooled at the end, so that a half is a picture too."""

    def __init__(self, widths: Sequence[int] = (32, 48, 96, 128), *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        def conv(inputs: int, outputs: int, size: int) -> nnx.Conv:
            return nnx.Conv(
                inputs, outputs, (size, size), strides=2, padding=size // 2, rngs=rngs, param_dtype=dtype
            )  # fmt: skip

        a, b, c, d = widths
        self.stem, self.down_1, self.down_2, self.down_3 = conv(3, a, 5), conv(a, b, 3), conv(b, c, 3), conv(c, d, 3)
        self.middle = Resnet(c, c, 8, rngs=rngs, dtype=dtype)
        self.last = Resnet(d, d, 8, rngs=rngs, dtype=dtype)
        self.hidden = nnx.Linear(2 * d, d, rngs=rngs, param_dtype=dtype)
        self.heads = nnx.Linear(d, sum(map(len, HEADS.values())), rngs=rngs, param_dtype=dtype)
        self.identity = nnx.Linear(2 * d, EMBEDDING, rngs=rngs, param_dtype=dtype)

    def __call__(self, x: jax.Array) -> Seen:
        x = jax.nn.silu(self.stem(x))  # (B, H / 2, W / 2, a)
        x = jax.nn.silu(self.down_1(x))  # (B, H / 4, W / 4, b)
        x = self.middle(self.down_2(x))  # (B, H / 8, W / 8, c)
        x = jax.nn.silu(self.last(self.down_3(x)))  # (B, H / 16, W / 16, d)
        pooled = jnp.concatenate([x.mean((1, 2)), x.max((1, 2))], -1)  # (B, 2 d)
        logits = self.heads(jax.nn.silu(self.hidden(pooled)))  # (B, classes of all heads)
        parts = jnp.split(logits, np.cumsum([len(names) for names in HEADS.values()])[:-1], -1)
        embedding = self.identity(pooled)  # (B, EMBEDDING)
        embedding = embedding * jax.lax.rsqrt(jnp.sum(embedding**2, -1, keepdims=True) + 1e-8)
        return Seen(dict(zip(HEADS, parts, strict=True)), embedding)


def halves(pictures: Any) -> Any:
    """(B, H, W, 3) -> (2 B, H, W / 2, 3): all left halves, then all right halves."""
    middle = pictures.shape[2] // 2
    return jnp.concatenate([pictures[:, :, :middle], pictures[:, :, middle:]])


# Training -------------------------------------------------------------------------------------------------


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
    out: Path, vae: Autoencoder | None = None, *, steps: int = 550, count: int = 24, drawn: int = 5000,
    two: int = 4000, seed: int = 1, model: Classifier | None = None,
) -> Classifier:  # fmt: skip
    """Train, or take up where `out/judge.state` stopped. vae: what an eighth of the pictures goes through first."""
    out.mkdir(parents=True, exist_ok=True)
    single, double = triplets(seed, drawn, vae), pairs(seed, two, vae)
    start: Any = (Classifier(rngs=nnx.Rngs(seed)) if model is None else model,)  # optax takes a callable for a mask
    rate = trapezoid(1.0, steps, warmup=30, decay=0.5)
    tx = optimiser(
        start, lambda s: 0.01 * rate(s), lambda s: 2e-3 * rate(s),
        lambda path, leaf: "kernel" in path and leaf.ndim == 4 and "stem" not in path,
    )  # fmt: skip
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


# Judging --------------------------------------------------------------------------------------------------


def save(model: Classifier, path: Path) -> None:
    """One safetensors file, float16."""
    flat = jax.tree_util.tree_flatten_with_path(model)[0]
    save_file({_name(key): np.asarray(leaf, np.float16) for key, leaf in flat}, path)


def load(path: Path = FILE, like: Classifier | None = None) -> "Judge":
    """What `save` wrote, as a judge. ValueError: a file of another network."""
    model = jax.eval_shape(lambda: Classifier(rngs=nnx.Rngs(0))) if like is None else like
    stored = load_file(path)

    def pick(key: Any, leaf: Any) -> jax.Array:
        if _name(key) not in stored or stored[_name(key)].shape != leaf.shape:
            raise ValueError(f"{path} is no judge of this recipe: {_name(key)} is missing or of another shape")
        return jnp.asarray(stored[_name(key)], jnp.float32)

    return Judge(jax.tree_util.tree_map_with_path(pick, model))


def _name(key: Any) -> str:
    return jax.tree_util.keystr(key, simple=True, separator=".").removesuffix(".value")


_see = jax.jit(lambda model, x: model(x))


@dataclass(frozen=True)
class Judge:
    """Says what pictures show: what `jaxpa.evaluation.evaluate` calls."""

    model: Classifier

    def __call__(self, pictures: np.ndarray) -> Verdict:
        """Pictures (B, H, W, 3) in [-1, 1] of any size -> a name for every head, and embeddings."""
        seen = self.see(pictures)
        named = {head: [HEADS[head][k] for k in seen.logits[head].argmax(-1)] for head in HEADS}
        return Verdict(named, {head: HEADS[head] for head in HEADS if head != "count"}, np.asarray(seen.embedding))

    def see(self, pictures: np.ndarray, batch: int = 64) -> Seen:
        """Logits and embeddings as numpy arrays, in batches of one size."""
        count, x = len(pictures), np.asarray(pictures, np.float32)
        scale = SIZE / x.shape[1]
        parts = []
        for i in range(0, count, batch):
            rows = x[i : i + batch]
            rows = np.concatenate([rows, np.zeros((min(batch, count) - len(rows), *x.shape[1:]), np.float32)])
            if scale != 1:
                size = (len(rows), SIZE, round(x.shape[2] * scale / 16) * 16, 3)
                rows = jax.image.resize(rows, size, "linear")
            parts.append(jax.tree.map(np.asarray, _see(self.model, rows)))
        return jax.tree.map(lambda *each: np.concatenate(each)[:count], *parts)

    def both(self, pictures: np.ndarray) -> tuple[Any, dict[str, Any]]:
        """Whether there are two subjects, (B,) bool, and the class of each half, (2, B) for family, colour, pattern."""
        two = self.see(pictures).logits["count"].argmax(-1) == 1
        sides = self.see(np.asarray(halves(pictures)))
        return two, {head: sides.logits[head].argmax(-1).reshape(2, -1) for head in PAIRED}


def present(judge: Judge, pictures: np.ndarray, wanted: Mapping[str, np.ndarray]) -> np.ndarray:
    """Whether both captioned subjects are there, (B,) bool: two in all, and family and colour of each, in any order.

    wanted: "family" and "colour", (2, B) indices into the world's names.
    """
    two, found = judge.both(pictures)
    right = np.all([found[head] == wanted[head] for head in ("family", "colour")], axis=0).all(0)
    swapped = np.all([found[head] == wanted[head][::-1] for head in ("family", "colour")], axis=0).all(0)
    return two & (right | swapped)


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
    from jaxpa.checkpoint.load import load_component
    from weights.recipe.judge_data import report

    options = tyro.cli(Options, description=__doc__)
    vae = load_component(options.checkpoint / "vae", jnp.float32)
    model = train(
        options.out, vae, steps=options.steps, drawn=options.drawn, two=options.two, seed=options.seed
    )  # fmt: skip
    save(model, options.file)
    size = sum(leaf.size for leaf in jax.tree.leaves(model)) / 1e6
    made = f"`{options.file.name}`: {size:.2f} M parameters, {options.steps} steps, seed {options.seed}."
    text = report(load(options.file), vae, made)
    options.file.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
