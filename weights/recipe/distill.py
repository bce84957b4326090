"""Guidance distillation (stage 3b): one forward does the work of several, as in FLUX.1-dev.

The student is the teacher with a guidance embedding that has no effect yet. It learns the guided teacher,

    v(caption) + (g - 1) [(v(caption) - v(nothing)) (t <= ONSET) + CONTRAST (v(caption) - v(another pattern))
                          + WEAK (v(caption) - w(caption))]

for g from 1 to 5. The first difference is classifier-free guidance. It pulls towards the colour that a caption names,
and so away from stripes and dots of a second colour, most of all while the picture is still noise. Therefore it starts
at ONSET (Kynkaanniemi et al. 2024 see harm above it too), and the second difference, between a caption and the same
caption with another pattern, pulls back. The third is autoguidance (Karras et al. 2024): w, a smaller network that has
learned less, makes the teacher's mistakes, but larger ones, so away from it drawings are whole.

A fifth of the batch has g = 1 exactly, and a tenth has no caption, since inversions run there. The text encoders stay
the teacher's. The exponential average is kept.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxpa.config import FluxConfig
from jaxpa.sampling import Velocity
from jaxpa.transformer import Flux
from weights.recipe.flow import Settling, TextToImage, apart, batches, bind, hidden_matrix, reconfigured
from weights.recipe.latents import Batch
from weights.recipe.training import Log, advance, gradient, load_state, optimiser, trapezoid

LEAST, MOST = 1.0, 5.0  # of the guidance
ONSET = 0.8  # flow time
CONTRAST = 1.25
WEAK = 0.75

Ids = tuple[jax.Array, jax.Array]  # of T5 and of CLIP, (B, M) each


class Teachers(NamedTuple):
    """Whom the student learns from: the trained networks, and weak ones to be led away from."""

    strong: TextToImage
    weak: TextToImage


class Student(NamedTuple):
    """What learns; a tuple, because optax takes a callable for a function of parameters."""

    transformer: Flux


def guided_config(config: FluxConfig) -> FluxConfig:
    """The same checkpoint with a guidance embedding."""
    return replace(config, transformer=replace(config.transformer, guidance_embeds=True))


def initial(teacher: TextToImage, seed: int) -> TextToImage:
    """The teacher with a guidance embedding whose last layer is zero: its velocity does not depend on guidance."""
    student = reconfigured(teacher.transformer, replace(teacher.transformer.config, guidance_embeds=True), seed)

    def silent(key: Any, leaf: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(key, simple=True, separator=".")
        return jnp.zeros_like(leaf) if name.startswith("guidance_in.out_layer") else leaf

    return teacher._replace(transformer=jax.tree_util.tree_map_with_path(silent, student))


def reworded(ids: jax.Array, words: np.ndarray, shift: jax.Array) -> jax.Array:
    """ids (B, M) in which word k of `words` (K,) has become word k + shift (mod K), shift (B, 1); the last stays."""
    found = ids[..., None] == words  # (B, M, K)
    return jnp.where(found[..., :-1].any(-1), jnp.asarray(words)[(found.argmax(-1) + shift) % len(words)], ids)


def guided_velocity(
    teachers: Teachers, caption: Ids, empty: Ids, other: Ids, guidance: jax.Array, positions: jax.Array
) -> Velocity:
    """The guided teacher: ids of captions, of none and of those with another pattern, guidance (B,)."""
    t5_ids, clip_ids = (jnp.concatenate(ids) for ids in zip(caption, empty, other, strict=True))
    velocity, weak = bind(teachers.strong, t5_ids, clip_ids, positions), bind(teachers.weak, *caption, positions)

    def guided(x: jax.Array, t: jax.Array, routing: Any = None) -> jax.Array:
        told, untold, else_told = jnp.split(velocity(jnp.tile(x, (3, 1, 1)), jnp.tile(t, 3)), 3)
        pull = jnp.where(t <= ONSET, 1.0, 0.0)[:, None, None] * (told - untold) + CONTRAST * (told - else_told)
        return told + (guidance[:, None, None] - 1) * (pull + WEAK * (told - weak(x, t)))

    return guided


def draw_guidance(key: jax.Array, size: int) -> jax.Array:
    """Guidances (B,): uniform, a fifth of them exactly 1."""
    k_value, k_one = jax.random.split(key)
    value = jax.random.uniform(k_value, (size,), minval=LEAST, maxval=MOST)
    return jnp.where(jax.random.uniform(k_one, (size,)) < 0.2, 1.0, value)


class Asked(NamedTuple):
    """What student and teacher are asked, row by row: ids of T5 and of CLIP, (B, M) each."""

    x: jax.Array  # (B, N, C)
    t: jax.Array  # (B,)
    guidance: jax.Array  # (B,)
    caption: Ids
    nothing: Ids
    other: Ids


def ask(
    batch: Batch, empty: tuple[np.ndarray, np.ndarray], patterns: tuple[np.ndarray, np.ndarray], key: jax.Array
) -> Asked:
    """Draw noise, times and guidance for a batch, and drop a tenth of its captions.

    patterns: ids of the patterns' words (K,) in both encoders. Captions with the last pattern are their own contrast:
    pushed away from stripes and plain colour, dots ran together into stripes.
    """
    size = len(batch.tokens)
    k_time, k_noise, k_drop, k_guidance = jax.random.split(key, 4)
    x0 = jnp.asarray(batch.tokens, jnp.float32)  # (B, N, C)
    noise = jax.random.normal(k_noise, x0.shape)
    # Times are uniform: a sampler visits every part of the flow, not only those with most to learn.
    t = (jax.random.permutation(k_time, size) + jax.random.uniform(k_drop, (size,))) / size  # (B,)
    drop = jax.random.uniform(jax.random.fold_in(k_drop, 1), (size, 1)) < 0.1
    shift = jax.random.randint(jax.random.fold_in(k_drop, 2), (size, 1), 1, len(patterns[0]))
    nothing = jnp.tile(empty[0], (size, 1)), jnp.tile(empty[1], (size, 1))
    caption = jnp.where(drop, nothing[0], batch.t5_ids), jnp.where(drop, nothing[1], batch.clip_ids)
    other = reworded(caption[0], patterns[0], shift), reworded(caption[1], patterns[1], shift)
    return Asked(x0 + t[:, None, None] * (noise - x0), t, draw_guidance(k_guidance, size), caption, nothing, other)


def distillation_loss(
    student: Student, teachers: Teachers, asked: Asked, positions: jax.Array | np.ndarray
) -> jax.Array:
    """Mean squared distance of the student's velocity from the guided teacher's."""
    positions, both = jnp.asarray(positions), Teachers(*map(apart, teachers))
    guided = guided_velocity(both, asked.caption, asked.nothing, asked.other, asked.guidance, positions)
    target = jax.lax.stop_gradient(guided(asked.x, asked.t))
    own = bind(apart(teachers.strong._replace(transformer=student.transformer)), *asked.caption, positions)
    own = replace(own.conditions, guidance=asked.guidance).bind(own.model)
    return jnp.mean((own(asked.x, asked.t) - target) ** 2)


def train(
    out: Path,
    teachers: Teachers,
    data: Sequence[Batch],
    held_out: Batch,
    empty: tuple[np.ndarray, np.ndarray],
    patterns: tuple[np.ndarray, np.ndarray],
    *,
    steps: int,
    batch: int,
    seed: int,
    usual: Sequence[np.ndarray] | None = None,
    muon_rate: float = 0.005,
    adam_rate: float = 6e-4,
    ema: float = 0.99,
) -> TextToImage:
    """Distil, or resume `out/distill.state`; returns the averaged student with the teacher's text encoders."""
    start: Any = Student(initial(teachers.strong, seed).transformer)
    rate = trapezoid(1.0, steps, warmup=50, decay=0.5)
    tx = optimiser(start, lambda s: muon_rate * rate(s), lambda s: adam_rate * rate(s), hidden_matrix)
    state: Any = (start, start, jax.jit(tx.init)(start), jnp.zeros((), jnp.int32))
    file = out / "distill.state"
    if file.exists():
        state = load_state(file, state)

    @jax.jit
    def step(state: Any, teachers: Teachers, batch: Batch) -> tuple[Any, jax.Array]:
        student, average, opt, i = state
        key = jax.random.fold_in(jax.random.key(seed), i)

        def loss(student: Student, asked: Asked) -> tuple[jax.Array, jax.Array]:
            value = distillation_loss(student, teachers, asked, batch.positions)
            return value, value

        grads, value = gradient(loss, student, ask(batch, empty, patterns, key))
        changes, opt = tx.update(grads, opt, student)
        student = optax.apply_updates(student, changes)
        keep = jnp.minimum(ema, (1 + i) / (10 + i))
        average = jax.tree.map(lambda a, m: keep * a + (1 - keep) * m, average, student)
        return (student, average, opt, i + 1), value

    compared = ask(held_out, empty, patterns, jax.random.key(0))
    validate = jax.jit(lambda own, teachers: distillation_loss(own, teachers, compared, held_out.positions))
    done = int(state[-1])
    settling = None if usual is None else Settling(0, usual)
    log, stream = Log(out / "distill.csv", 50, done), batches(data, batch, seed + 1, done, settling)

    def update(state: Any, i: int) -> Any:
        state, value = step(state, teachers, next(stream))
        log(i, value, f"validation {float(validate(state[1], teachers)):.5f}" if i % 250 == 0 else "")
        return state

    return teachers.strong._replace(transformer=advance(file, state, steps, update)[1].transformer)
