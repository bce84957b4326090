"""Refinement (stage 4): the exported student learns on, from new pictures and from its own guidance.

Distilling is short, and its student knows the pictures through its teacher alone. Here the student v(x, t, caption, g)
learns

    e - x0 + (g - 1) pull

where e - x0 is the flow's own velocity and the pull, [`distill.told_and_pull`], is the difference of what its average
says at g = 1 with the caption, without it and with another pattern. Half of the rows have g = 1 exactly, where this is
conditional flow matching: they keep the differences true. Tang et al. 2025 train a guided model from nothing in this
way ("Diffusion models without classifier-free guidance"). The text encoders learn again too.

It starts from a checkpoint as it was exported, in bfloat16, so whoever has the checkpoint can refine it:
`python -m weights.recipe.train --start weights/mini`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxpa.checkpoint.load import load_parts
from jaxpa.config import FluxConfig
from jaxpa.encoders.autoencoder import Autoencoder
from weights.recipe.distill import Asked, ask, told_and_pull
from weights.recipe.flow import Settling, TextToImage, apart, batches, bind, hidden_matrix, without_queries
from weights.recipe.latents import Batch
from weights.recipe.training import Log, advance, gradient, load_state, optimiser, trapezoid


def start_from(folder: Path, config: FluxConfig) -> tuple[TextToImage, Autoencoder]:
    """An exported student, to train further, and its autoencoder. ValueError: its sizes differ."""
    parts = load_parts(folder, dtype=jnp.float32)
    if parts.config != config:
        raise ValueError(f"{folder} has other sizes than the run: give the flags that it was trained with")
    return TextToImage(parts.transformer, parts.text_encoder_2, parts.text_encoder), parts.vae


def refinement_loss(
    student: TextToImage, average: TextToImage, asked: Asked, positions: jax.Array | np.ndarray
) -> jax.Array:
    """Mean squared distance of the student's velocity from the flow's, which is pulled in every second row."""
    positions = jnp.asarray(positions)
    pulled: Asked = jax.tree.map(lambda rows: rows[::2], asked)
    guided = told_and_pull(apart(average), pulled.caption, pulled.nothing, pulled.other, positions)
    pull = (pulled.guidance[:, None, None] - 1) * guided(pulled.x, pulled.t)[1]
    target = jax.lax.stop_gradient(asked.velocity.at[::2].add(pull))
    own = bind(apart(student), *asked.caption, positions, asked.guidance.at[1::2].set(1.0))
    return jnp.mean((own(asked.x, asked.t) - target) ** 2)


def train(
    out: Path,
    start: TextToImage,
    data: Sequence[Batch],
    held_out: Batch,
    empty: tuple[np.ndarray, np.ndarray],
    patterns: tuple[np.ndarray, np.ndarray],
    *,
    steps: int,
    batch: int,
    seed: int,
    weights: Sequence[np.ndarray] | None = None,
    muon_rate: float = 0.007,
    adam_rate: float = 8.5e-4,
    ema: float = 0.998,
) -> TextToImage:
    """Refine a student, or resume `out/refine.state`; returns the averaged networks."""
    rate = trapezoid(1.0, steps, warmup=100, decay=0.8)
    tx = optimiser(start, lambda s: muon_rate * rate(s), lambda s: adam_rate * rate(s), hidden_matrix)
    state = begin(tx, start)
    file = out / "refine.state"
    if file.exists():
        state = load_state(file, state)

    @jax.jit
    def step(state: Any, batch: Batch) -> tuple[Any, jax.Array]:
        student, average, opt, i = state
        key = jax.random.fold_in(jax.random.key(seed), i)

        def loss(student: TextToImage, asked: Asked) -> tuple[jax.Array, jax.Array]:
            value = refinement_loss(student, average, asked, batch.positions)
            return value, value

        grads, value = gradient(loss, student, ask(batch, empty, patterns, key))
        changes, opt = tx.update(grads, opt, student)
        student = optax.apply_updates(student, without_queries(changes))
        average = jax.tree.map(lambda a, m: ema * a + (1 - ema) * m, average, student)
        return (student, average, opt, i + 1), value

    compared = ask(held_out, empty, patterns, jax.random.key(0))
    compared = compared._replace(guidance=jnp.ones_like(compared.guidance))  # the flow's own loss
    validate = jax.jit(lambda own: refinement_loss(own, own, compared, held_out.positions))
    done = int(state[-1])
    settling = None if weights is None else Settling(0, weights)
    log, stream = Log(out / "refine.csv", 50, done), batches(data, batch, seed, done, settling)

    def update(state: Any, i: int) -> Any:
        state, value = step(state, next(stream))
        log(i, value, f"validation {float(validate(state[1])):.4f}" if i % 250 == 0 else "")
        return state

    return advance(file, state, steps, update)[1]


def begin(tx: optax.GradientTransformation, start: TextToImage) -> Any:
    """Student, average, optimiser's state and updates done, before the first."""
    return start, start, jax.jit(tx.init)(start), jnp.zeros((), jnp.int32)


def average_of(file: Path, start: TextToImage) -> tuple[TextToImage, int]:
    """The averaged student of a run's `refine.state`, finished or not, and its number of updates."""
    still = optax.constant_schedule(0.0)
    like = jax.eval_shape(lambda: begin(optimiser(start, still, still, hidden_matrix), start))
    state = load_state(file, like)
    return state[1], int(state[-1])
