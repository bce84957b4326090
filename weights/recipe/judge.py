"""A judge of pictures: one small convolutional network that says what a picture of the drawn world shows.

It has heads for family, colour, pattern, background and the number of subjects, and an embedding in which two pictures
of one subject are near and two instances of one caption are not. A picture of two subjects is judged by halves, since
the world puts one into each. `classifiers` trains the judge; `weights/judge.safetensors` is the trained one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from safetensors.numpy import load_file, save_file

from jaxpa.encoders.autoencoder import Resnet
from jaxpa.evaluation.evaluate import Verdict
from weights.recipe.judge_data import HEADS, PAIRED
from weights.recipe.world import SIZE

EMBEDDING = 64
FILE = Path(__file__).parent.parent / "judge.safetensors"


class Seen(NamedTuple):
    """logits (B, classes) of every head; embedding (B, EMBEDDING) of length 1."""

    logits: dict[str, jax.Array]
    embedding: jax.Array


class Classifier(nnx.Module):
    """Pictures (B, H, W, 3) in [-1, 1], sides of 16 n -> Seen. Pooling at the end lets it take half a picture too."""

    def __init__(self, widths: Sequence[int] = (32, 48, 96, 128), *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        def conv(inputs: int, outputs: int, size: int) -> nnx.Conv:
            return nnx.Conv(inputs, outputs, (size, size), strides=2, padding=size // 2, rngs=rngs, param_dtype=dtype)

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


def save(model: Classifier, path: Path) -> None:
    """One safetensors file, float16."""
    flat = jax.tree_util.tree_flatten_with_path(model)[0]
    save_file({_name(key): np.asarray(leaf, np.float16) for key, leaf in flat}, path)


def load(path: Path = FILE, like: Classifier | None = None) -> "Judge":
    """The judge that `save` wrote. Raises ValueError for a file of another network."""
    model = jax.eval_shape(lambda: Classifier(rngs=nnx.Rngs(0))) if like is None else like
    stored = load_file(path)

    def pick(key: Any, leaf: Any) -> jax.Array:
        if _name(key) not in stored or stored[_name(key)].shape != leaf.shape:
            raise ValueError(f"{path} is not a judge of this recipe: {_name(key)} is missing or of another shape")
        return jnp.asarray(stored[_name(key)], jnp.float32)

    return Judge(jax.tree_util.tree_map_with_path(pick, model))


def _name(key: Any) -> str:
    return jax.tree_util.keystr(key, simple=True, separator=".").removesuffix(".value")


_see = jax.jit(lambda model, x: model(x))


@dataclass(frozen=True)
class Judge:
    """Says what pictures show; `jaxpa.evaluation.evaluate` calls it."""

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
    """Whether both captioned subjects are there, (B,) bool: two subjects, with both families and colours, in any order.

    wanted: "family" and "colour", (2, B) indices into the world's names.
    """
    two, found = judge.both(pictures)
    right = np.all([found[head] == wanted[head] for head in ("family", "colour")], axis=0).all(0)
    swapped = np.all([found[head] == wanted[head][::-1] for head in ("family", "colour")], axis=0).all(0)
    return two & (right | swapped)
