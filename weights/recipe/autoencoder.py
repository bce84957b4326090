"""Stage 1: the autoencoder, trained on crops of drawn pictures and of natural ones, so that a photograph survives it.

The loss is |x - y| + |x - y|^2 on pixels and on their differences (edges), plus a little KL. The same distance is asked
at half the size, where averaged latents decode to the averaged picture, as in Skorokhodov et al. 2025. At 60% of the
run the latents are normalised, by one scale for all channels: those of detail stay weaker than those of shapes, and a
flow comes to them later. From then on only the decoder learns, so that the latents keep their statistics.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxpa.config import AutoencoderConfig
from jaxpa.encoders.autoencoder import Autoencoder
from weights.recipe import compositions
from weights.recipe.training import Log, advance, load_state, optimiser, trapezoid
from weights.recipe.world import SIZE

CROP = 64
SMALLER = 0.5  # weight of the loss at half the size
NOISE = 0.15  # most of it, in the latents' standard deviations, once only the decoder learns
NATURAL = ("astronaut", "coffee", "rocket", "cat", "retina", "immunohistochemistry", "hubble_deep_field")


def natural_images() -> list[np.ndarray]:
    """The colour pictures that come with scikit-image: (H, W, 3) uint8 each.

    Training never sees the right quarter of a picture, so it can be measured there.
    """
    from skimage import data

    return [getattr(data, name)()[..., :3] for name in NATURAL] + [data.stereo_motorcycle()[0]]


def natural_crop(picture: np.ndarray, rng: np.random.Generator, size: int, held_out: bool = False) -> np.ndarray:
    """A random square of a random extent, resized: (size, size, 3) uint8."""
    from PIL import Image

    edge = picture.shape[1] * 3 // 4
    part = picture[:, edge:] if held_out else picture[:, :edge]
    side = int(rng.integers(min(size, *part.shape[:2]), min(part.shape[:2]) + 1))
    y, x = rng.integers(part.shape[0] - side + 1), rng.integers(part.shape[1] - side + 1)
    crop = Image.fromarray(part[y : y + side, x : x + side]).resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(crop)


def drawings(seed: int, count: int) -> list[np.ndarray]:
    """About `count` pictures of all canvases, (n, H, W, 3) uint8 for each; the first are of the checkpoint's own."""
    own_first = sorted(compositions.CANVASES, key=lambda canvas: canvas[:2] != (SIZE, SIZE))
    sizes = [((height, width), max(1, round(share * count))) for height, width, share in own_first]
    return [np.concatenate([made[0] for made in compositions.dataset(seed, size, 0, n)]) for size, n in sizes]


def batches(
    drawn: list[np.ndarray], natural: list[np.ndarray], batch: int, seed: int, start: int
) -> Iterator[np.ndarray]:
    """Crops in [-1, 1], from batch `start` on: four fifths drawn, one fifth natural, half of them mirrored."""
    share = np.array([len(each) for each in drawn])
    for k in itertools.count(start):
        rng = np.random.default_rng([seed, k])
        out = np.empty((batch, CROP, CROP, 3), np.uint8)
        for i in range(batch):
            if i < batch // 5:
                out[i] = natural_crop(natural[rng.integers(len(natural))], rng, CROP)
            else:
                pictures = drawn[rng.choice(len(drawn), p=share / share.sum())]
                y, x = rng.integers(np.array(pictures.shape[1:3]) - CROP + 1)
                out[i] = pictures[rng.integers(len(pictures)), y : y + CROP, x : x + CROP]
        out[::2] = out[::2, :, ::-1]
        yield out.astype(np.float32) / 127.5 - 1


def distance(x: jax.Array, y: jax.Array) -> jax.Array:
    """Pixel and edge distance of pictures (B, H, W, 3), a scalar."""
    pairs = [(x, y)] + [(jnp.diff(x, axis=a), jnp.diff(y, axis=a)) for a in (1, 2)]
    return sum((jnp.mean(jnp.abs(a - b)) + jnp.mean((a - b) ** 2) for a, b in pairs), jnp.zeros(()))


def loss(model: Autoencoder, images: jax.Array, key: jax.Array) -> jax.Array:
    posterior = model.encode(images)
    kl = 0.5 * jnp.mean(posterior.mean**2 + jnp.exp(posterior.logvar) - posterior.logvar - 1)
    small, z = (nnx.avg_pool(x, (2, 2), strides=(2, 2)) for x in (images, posterior.mean))
    whole = distance(images, model.decode(posterior.sample(key)))
    return whole + SMALLER * distance(small, model.decode(z)) + 1e-5 * kl


def decoder_loss(model: Autoencoder, images: jax.Array, key: jax.Array) -> jax.Array:
    """The loss with a fixed encoder. Noise on the latents, up to NOISE, makes the decoder forgive samplers' errors."""
    z = jax.lax.stop_gradient(model.encode(images).mean)
    k_noise, k_level = jax.random.split(key)
    level = NOISE * jax.random.uniform(k_level, (len(z), 1, 1, 1))
    return distance(images, model.decode(z + level * jax.random.normal(k_noise, z.shape)))


def normalise(model: Autoencoder, images: np.ndarray) -> Autoencoder:
    """The same autoencoder with latents of mean 0 in every channel, and of variance 1 over all of them together.

    The scale is folded into the encoder's last and the decoder's first convolution, with the channels' means, for which
    the file format has no place.
    """
    z = jnp.concatenate([model.encode(jnp.asarray(x)).mean for x in np.array_split(images, max(1, len(images) // 16))])
    mean = z.mean((0, 1, 2))
    std = jnp.sqrt(jnp.mean((z - mean) ** 2))
    out, back = model.encoder.conv_out, model.decoder.conv_in
    assert out.bias is not None
    assert back.bias is not None
    scale = jnp.repeat(jnp.stack([1 / std, jnp.ones(())]), len(mean))  # the other half are logarithms of variances
    bias = jnp.concatenate([(out.bias[: len(mean)] - mean) / std, out.bias[len(mean) :] - 2 * jnp.log(std)])
    new = {
        "encoder.conv_out.kernel": out.kernel * scale,
        "encoder.conv_out.bias": bias,
        "decoder.conv_in.kernel": back.kernel * std,
        "decoder.conv_in.bias": back.bias + jnp.einsum("hwio,i->o", back.kernel[...], mean),
    }

    def replace(path: Any, leaf: jax.Array) -> jax.Array:
        return new.get(jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value"), leaf)

    return jax.tree_util.tree_map_with_path(replace, model)


def psnr(x: np.ndarray, y: np.ndarray) -> float:
    """Mean over pictures of the peak signal-to-noise ratio, in decibels; pictures in [-1, 1]."""
    error = np.mean((np.clip(y, -1, 1) - x) ** 2, axis=(1, 2, 3))
    return float(np.mean(10 * np.log10(4 / error)))


def reconstruct(model: Autoencoder, images: np.ndarray) -> np.ndarray:
    run = jax.jit(lambda m, x: m.decode(m.encode(x).mean))
    return np.concatenate([np.asarray(run(model, x)) for x in np.split(images, len(images) // 8)])


def measure(model: Autoencoder) -> dict[str, float]:
    """PSNR on 256 held-out drawings and on 128 natural crops from regions that training never saw."""
    from weights.recipe.world import render_many

    drawn = render_many(seed=990, start=0, count=256, held_out=True).images.astype(np.float32) / 127.5 - 1
    rng, pictures = np.random.default_rng(991), natural_images()
    crops = [natural_crop(pictures[i % len(pictures)], rng, SIZE, held_out=True) for i in range(128)]
    natural = np.stack(crops).astype(np.float32) / 127.5 - 1
    return {
        "drawn_db": psnr(drawn, reconstruct(model, drawn)),
        "natural_db": psnr(natural, reconstruct(model, natural)),
    }


def train(out: Path, config: AutoencoderConfig, *, steps: int, batch: int, pictures: int, seed: int) -> Autoencoder:
    """Train, or resume `out/autoencoder.state`; returns the finished model."""
    model: Any = Autoencoder(config, rngs=nnx.Rngs(seed))
    rate = trapezoid(1.0, steps, decay=0.5)
    tx = optimiser(
        model,
        lambda s: 0.01 * rate(s),
        lambda s: 2e-3 * rate(s),
        lambda path, leaf: "kernel" in path and leaf.ndim == 4 and "conv_in" not in path and "conv_out" not in path,
    )
    state: Any = (model, tx.init(model), jnp.zeros((), jnp.int32))
    file = out / "autoencoder.state"
    if file.exists():
        state = load_state(file, state)
    if (done := int(state[-1])) >= steps:
        return state[0]
    drawn = drawings(seed, pictures)
    stream = batches(drawn, natural_images(), batch, seed, done)

    def step(objective: Any, state: Any, images: Any) -> Any:
        model, opt, i = state
        value, grads = jax.value_and_grad(objective)(model, images, jax.random.fold_in(jax.random.key(seed), i))
        updates, opt = tx.update(grads, opt, model)
        return (optax.apply_updates(model, updates), opt, i + 1), value

    def decoder_step(state: Any, images: Any) -> Any:
        (new, opt, i), value = step(decoder_loss, state, images)
        return (_with_encoder(new, state[0]), opt, i), value

    first, second = jax.jit(lambda s, x: step(loss, s, x)), jax.jit(decoder_step)
    log, fold_at = Log(out / "autoencoder.csv", 100, done), int(0.6 * steps)

    def update(state: Any, i: int) -> Any:
        if i == fold_at + 1:
            state = (normalise(state[0], drawn[0][:1024].astype(np.float32) / 127.5 - 1), *state[1:])
        state, value = (first if i <= fold_at else second)(state, next(stream))
        log(i, value)
        return state

    return advance(file, state, steps, update)[0]


def _with_encoder(model: Autoencoder, source: Autoencoder) -> Autoencoder:
    """`model` with the encoder of `source`."""

    def pick(path: Any, leaf: jax.Array, other: jax.Array) -> jax.Array:
        return other if jax.tree_util.keystr(path, simple=True, separator=".").startswith("encoder") else leaf

    return jax.tree_util.tree_map_with_path(pick, model, source)
