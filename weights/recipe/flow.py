"""Stage 3: text encoders and MM-DiT together, by conditional flow matching.

With x_t = (1 - t) x0 + t e, the network predicts e - x0. Times are logit-normal, later on larger canvases, stratified
over the batch; a tenth of the captions is dropped, for guidance. Hidden matrices learn by Muon, the rest by Adam; the
exponential average of the weights is kept.

A second loss asks the image tokens that leave the double blocks where in the subject they lie, if anywhere
(`compositions.whereabouts`), through a linear layer that is not exported. As in Yu et al. 2024 (REPA), what the early
blocks should know is given to them, so that the others can draw; here it need not come from another network. Its weight
falls with the rate.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxpa.checkpoint.load import load_parts
from jaxpa.checkpoint.residence import arrange
from jaxpa.config import AutoencoderConfig, CLIPConfig, FluxConfig, T5Config, TransformerConfig
from jaxpa.encoders.autoencoder import Autoencoder
from jaxpa.encoders.clip import CLIPTextEncoder
from jaxpa.encoders.t5 import T5Encoder
from jaxpa.layers import Linear
from jaxpa.transformer import Flux, FluxConditions, FluxVelocity
from weights.recipe.compositions import WHERE
from weights.recipe.latents import Batch
from weights.recipe.training import PIECES, Log, advance, falls_at, gradient, load_state, optimiser, trapezoid

OWN_TOKENS = 144  # of the checkpoint's own canvas
OWN_SHARE, RARER = 0.7, 0.5  # once batches settle: updates on canvases of that size, and odds of unusual pictures


class TextToImage(NamedTuple):
    """The three networks that learn together."""

    transformer: Flux
    t5: T5Encoder
    clip: CLIPTextEncoder


class Learner(NamedTuple):
    """All that learns: the networks, and the layer that reads whereabouts from the image stream."""

    networks: TextToImage
    where: Linear


def initial(config: FluxConfig, seed: int) -> TextToImage:
    """Random weights, except that gates and the last layer are zero, so every block starts as the identity.

    T5's heads start by looking at the words around; those of its last block stay that way (`without_queries`).
    """
    rngs = nnx.Rngs(seed)
    model = TextToImage(
        Flux(config.transformer, rngs=rngs),
        T5Encoder(config.text_encoder_2, rngs=rngs),
        CLIPTextEncoder(config.text_encoder, rngs=rngs),
    )

    def start(path: Any, leaf: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if "relative_bias" in name:
            return reading_neighbours(leaf)
        return jnp.zeros_like(leaf) if ".mod." in name or ("final_" in name and "transformer" in name) else leaf

    return without_queries(jax.tree_util.tree_map_with_path(start, model))


def without_queries(model: Any) -> Any:
    """The networks, or changes to them, with the queries of T5's last block at zero, so it attends by position alone.

    T5 does not scale its logits, and Muon moves a matrix by the same step whatever its scale, so content outgrows the
    biases of `reading_neighbours`. Earlier blocks may read content: when no block of a trained model could, it lost the
    number of subjects (one "and" in the caption), and did not learn it again in 750 updates.
    """

    def still(path: Any, leaf: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        return leaf.at[-1].set(0.0) if name.startswith("t5.") and ".attention.q." in name else leaf

    return jax.tree_util.tree_map_with_path(still, model)


def reading_neighbours(table: jax.Array) -> jax.Array:
    """T5's biases (buckets, H), with heads that look one word back, two back, one ahead, and three or four back.

    If the biases start small and random, the words' content takes over. After 5000 updates its logits deviated by 150,
    the biases by 0.1; every word looked at the same other words wherever they stood, and T5 could not tell "a red cat
    and a blue mug" from "a blue cat and a red mug".
    """
    later = len(table) // 2  # the first bucket of keys after the query
    return table.at[jnp.array([1, 2, later + 1, 3, 4]), jnp.array([0, 1, 2, 3, 3])].add(5.0)


def start_from(folder: Path, config: FluxConfig) -> tuple[TextToImage, Autoencoder]:
    """An exported checkpoint, to train further: a student is the plain flow again. ValueError: its sizes differ."""
    parts = load_parts(folder, dtype=jnp.float32)
    plain = replace(parts.config, transformer=replace(parts.config.transformer, guidance_embeds=False))
    if plain != config:
        raise ValueError(f"{folder} has other sizes than the run: give the flags that it was trained with")
    transformer = unguided(parts.transformer, config.transformer)
    return TextToImage(transformer, parts.text_encoder_2, parts.text_encoder), parts.vae


def unguided(student: Flux, config: TransformerConfig) -> Flux:
    """The network without an embedding of guidance, as it is at guidance 1: a bias takes in what that says."""
    plain = reconfigured(student, config)
    if not student.config.guidance_embeds:
        return plain
    nothing, one = jnp.zeros((1, config.pooled_projection_dim)), jnp.ones(1)
    said = student.condition(nothing, one, one)[0] - plain.condition(nothing, one, None)[0]

    def hear(path: Any, leaf: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        return leaf + said if name.startswith("vector_in.out_layer.bias") else leaf

    return jax.tree_util.tree_map_with_path(hear, plain)


def reconfigured(network: Flux, config: TransformerConfig, seed: int = 0) -> Flux:
    """The network under another configuration: shared weights are kept, the others are random."""
    fresh = jax.jit(lambda: Flux(config, rngs=nnx.Rngs(seed), dtype=network.dtype))()
    known = dict(jax.tree_util.tree_flatten_with_path(network)[0])
    return jax.tree_util.tree_map_with_path(known.get, fresh)


def bind(model: TextToImage, t5_ids: jax.Array, clip_ids: jax.Array, positions: jax.Array) -> FluxVelocity:
    """The velocity of captions: ids (B, M) and (B, 77), positions (N, 3)."""
    guidance = jnp.ones(len(t5_ids)) if model.transformer.config.guidance_embeds else None
    return FluxConditions(model.t5(t5_ids), model.clip(clip_ids).pooled, guidance, positions).bind(model.transformer)


def apart(model: TextToImage) -> TextToImage:
    """The networks with one block of the transformer after the other in place of stacks.

    A scan over stacks copies every block's weights, and what every block leaves behind for the gradient.
    """
    return model._replace(transformer=arrange(model.transformer, "gpu"))


def flow_times(key: jax.Array, size: int, tokens: int) -> jax.Array:
    """Times (B,), one from each of B equal slices of the distribution, so that the batch's loss varies less.

    A larger picture needs more noise to lose what one token shows of it (Esser et al. 2024), so the odds grow with its
    side.
    """
    u = (jnp.arange(size) + jax.random.uniform(key, (size,))) / size
    middle = 0.5 + 0.5 * np.log(tokens / OWN_TOKENS)
    return jax.nn.sigmoid(middle + 1.1 * jax.scipy.stats.norm.ppf(jnp.clip(u, 1e-4, 1 - 1e-4)))


class Mixed(NamedTuple):
    """What the flow loss compares, row by row: a picture on its way to noise, and which velocity takes it there."""

    x: jax.Array  # (B, N, C)
    t: jax.Array  # (B,)
    velocity: jax.Array  # (B, N, C)
    t5_ids: jax.Array  # (B, M)
    clip_ids: jax.Array
    where: jax.Array  # (B, N, len(WHERE))


def mix(batch: Batch, empty: tuple[np.ndarray, np.ndarray], key: jax.Array) -> Mixed:
    """Draw noise and times for a batch, and drop a tenth of its captions."""
    size = len(batch.tokens)
    k_time, k_noise, k_drop = jax.random.split(key, 3)
    x0 = jnp.asarray(batch.tokens, jnp.float32)  # (B, N, C)
    noise = jax.random.normal(k_noise, x0.shape)
    # In any order: rows come in that of the pictures, of which each must be seen at every time.
    t = jax.random.permutation(jax.random.fold_in(k_time, 1), flow_times(k_time, size, x0.shape[1]))  # (B,)
    drop = jax.random.uniform(k_drop, (size, 1)) < 0.1
    ids = jnp.where(drop, empty[0], batch.t5_ids), jnp.where(drop, empty[1], batch.clip_ids)
    return Mixed(x0 + t[:, None, None] * (noise - x0), t, noise - x0, *ids, jnp.asarray(batch.where))


def flow_loss(
    learner: Learner, mixed: Mixed, positions: jax.Array | np.ndarray, share: Any
) -> tuple[jax.Array, jax.Array]:
    """-> the mean squared error of the velocity plus `share` times that of the whereabouts, and the first alone."""
    velocity = bind(apart(learner.networks), mixed.t5_ids, mixed.clip_ids, jnp.asarray(positions))
    predicted, (double, _) = velocity(mixed.x, mixed.t, observe=lambda trace: trace.img)  # (B, N, C), (L, B, N, D)
    error = jnp.mean((predicted - mixed.velocity) ** 2)
    where = jnp.mean((learner.where(double[-1]) - mixed.where) ** 2)
    return error + share * where, error


def rows_of(tokens: int, text: int, batch: int) -> int:
    """How many pictures of so many tokens cost about as much as `batch` of the checkpoint's own canvas.

    A multiple of the pieces that a batch goes through in.
    """
    pieces = min(batch, PIECES)
    return pieces * max(1, round(batch * (OWN_TOKENS + text) / (tokens + text) / pieces))


class Settling(NamedTuple):
    """From batch `first` on, most batches show what the checkpoint is mostly asked for.

    A run that has seen the whole world settles on it while its rate falls. usual: which pictures of each canvas do.
    """

    first: int
    usual: Sequence[np.ndarray]

    def shares(self, before: np.ndarray, own: np.ndarray) -> np.ndarray:
        """Of each canvas, from those before; own: which have the checkpoint's own number of tokens."""
        if own.all() or not own.any():
            return before
        return before * np.where(own, OWN_SHARE / before[own].sum(), (1 - OWN_SHARE) / before[~own].sum())

    def odds(self, canvas: int) -> np.ndarray:
        """Of each picture of a canvas."""
        odds = np.where(self.usual[canvas], 1.0, RARER)
        return odds / odds.sum()


def batches(
    data: Sequence[Batch], size: int, seed: int, start: int, settling: Settling | None = None
) -> Iterator[Batch]:
    """Endless batches of one canvas each, from batch `start` on; batch k is a function of the seed and k alone.

    Every picture is seen equally often; once they settle, usual ones and canvases of the checkpoint's own size more.
    """
    rows = [min(rows_of(each.tokens.shape[1], each.t5_ids.shape[1], size), len(each.tokens)) for each in data]
    share = np.array([len(each.tokens) / n for each, n in zip(data, rows, strict=True)])
    share /= share.sum()
    own = np.array([each.tokens.shape[1] == OWN_TOKENS for each in data])
    k = start
    while True:
        rng = np.random.default_rng([seed, k])
        late = None if settling is None or k < settling.first else settling
        canvas = int(rng.choice(len(data), p=share if late is None else late.shares(share, own)))
        odds = None if late is None else late.odds(canvas)
        yield data[canvas].rows(np.sort(rng.choice(len(data[canvas].tokens), rows[canvas], replace=False, p=odds)))
        k += 1


def hidden_matrix(path: str, leaf: Any) -> bool:
    """Kernels of stacked blocks, except the modulation's."""
    return "blocks" in path and "kernel" in path and leaf.ndim == 3 and ".mod." not in path


def train(
    out: Path,
    config: FluxConfig,
    data: Sequence[Batch],
    held_out: Batch,
    empty: tuple[np.ndarray, np.ndarray],
    *,
    steps: int,
    batch: int,
    seed: int,
    start: TextToImage | None = None,
    usual: Sequence[np.ndarray] | None = None,
    muon_rate: float = 0.014,
    adam_rate: float = 1.7e-3,
    ema: float = 0.999,
    where: float = 0.5,
) -> TextToImage:
    """Train from `start` (None: random weights), or resume `out/flow.state`; returns the averaged weights.

    usual: which pictures of each canvas the batches settle on (None: none).
    """
    rate = trapezoid(1.0, steps)
    state = begin(config, seed, start)
    tx = optimiser(state[0], lambda s: muon_rate * rate(s), lambda s: adam_rate * rate(s), hidden_matrix)
    state = (*state, jax.jit(tx.init)(state[0]), jnp.zeros((), jnp.int32))
    file = out / "flow.state"
    if file.exists():
        state = load_state(file, state)

    @jax.jit
    def step(state: Any, batch: Batch) -> tuple[Any, jax.Array]:
        learner, average, opt, i = state
        key = jax.random.fold_in(jax.random.key(seed), i)
        grads, value = gradient(
            lambda learner, mixed: flow_loss(learner, mixed, batch.positions, where * rate(i)),
            learner,
            mix(batch, empty, key),
        )
        changes: Any
        changes, opt = tx.update(grads, opt, learner)
        learner = optax.apply_updates(learner, changes._replace(networks=without_queries(changes.networks)))
        keep = jnp.minimum(ema, (1 + i) / (10 + i))
        average = jax.tree.map(lambda a, m: keep * a + (1 - keep) * m, average, learner)
        return (learner, average, opt, i + 1), value

    compared = mix(held_out, empty, jax.random.key(0))
    validate = jax.jit(lambda average: flow_loss(average, compared, held_out.positions, 0.0)[1])
    done = int(state[-1])
    settling = None if usual is None else Settling(falls_at(steps), usual)
    log, stream = Log(out / "flow.csv", 50, done), batches(data, batch, seed, done, settling)

    def update(state: Any, i: int) -> Any:
        state, value = step(state, next(stream))
        log(i, value, f"validation {float(validate(state[1])):.4f}" if i % 250 == 0 else "")
        return state

    return advance(file, state, steps, update)[1].networks


def begin(config: FluxConfig, seed: int, start: TextToImage | None = None) -> tuple[Any, Any]:
    """What learns, and its average, before the first update."""
    networks = initial(config, seed) if start is None else start
    learner = Learner(networks, Linear(config.transformer.width, len(WHERE), rngs=nnx.Rngs(seed)))
    return learner, learner


def average_of(file: Path, config: FluxConfig) -> tuple[TextToImage, int]:
    """The averaged networks of a run's `flow.state`, finished or not, and its number of updates."""
    learner, average = begin(config, 0)
    tx = optimiser(learner, optax.constant_schedule(0.0), optax.constant_schedule(0.0), hidden_matrix)
    like = jax.eval_shape(lambda: (learner, average, tx.init(learner), jnp.zeros((), jnp.int32)))
    state = load_state(file, like)
    return state[1].networks, int(state[-1])


def small_config(width: int, heads: int, double: int, single: int, channels: int, vocab: tuple[int, int]) -> FluxConfig:
    """FLUX's architecture at a small size; `vocab` is the number of CLIP and of T5 token ids."""
    dh = width // heads
    rest = (dh - dh // 8) // 2 // 2 * 2  # the second and third rotary axes; the first takes what is left
    return FluxConfig(
        transformer=TransformerConfig(
            in_channels=4 * channels,
            num_layers=double,
            num_single_layers=single,
            num_attention_heads=heads,
            attention_head_dim=dh,
            joint_attention_dim=96,
            pooled_projection_dim=96,
            guidance_embeds=False,
            axes_dims_rope=(dh - 2 * rest, rest, rest),
        ),
        vae=AutoencoderConfig(
            latent_channels=channels,
            block_out_channels=(16, 32, 64),
            layers_per_block=1,
            norm_num_groups=8,
            scaling_factor=1.0,
            shift_factor=0.0,
        ),
        text_encoder=CLIPConfig(
            vocab_size=vocab[0], hidden_size=96, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4
        ),
        text_encoder_2=T5Config(vocab_size=vocab[1], d_model=96, d_kv=24, d_ff=192, num_layers=2, num_heads=4),
    )
