"""Personalize Anything (Feng et al. 2025): a reference's tokens take the places where its subject is wanted.

While t > tau the target cells are fed by reference tokens (Eq. 2 of the paper), which keep the rotary position of the
place where they are put; after tau the image is free, and may still attend to the reference (Section 3.4). Where the
subject comes from, where it goes, and until when, is data: index arrays and a number.

    level "layer"  the features that feed q, k and v in every block; R reference rows ride along while t > tau
    level "token"  the sampler's own tokens between steps; no reference row at all
"""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpa.errors import JaxpaError
from jaxpa.inversion import reference_step
from jaxpa.sampling import Velocity, euler_step, step
from jaxpa.schedule import Steps, steps_above
from jaxpa.tokens import (
    Placement,
    Routing,
    compose,
    dilate,
    gather,
    grid_positions,
    identity_source,
    perturb_mask,
    restrict,
    shuffle_windows,
)

Level = Literal["layer", "token"]
Positions = Literal["zero", "target", "original", "shifted"]


EDIT = Steps(0.1)  # Section 3.4: what is kept is held for 90% of the steps


@dataclass(frozen=True)
class Preset:
    """The method's switches. Each is independent of the others; `PRESETS` names the settings of the sources."""

    tau: float | Steps
    level: Level = "layer"
    path: Literal["line", "ode", "rf"] = "line"
    """The reference's way: a straight line to noise, the model's own flow backwards, or RF inversion by `gamma`."""
    start: Literal["independent", "moved"] = "independent"
    """Noise of the target region: the image's own, or the reference's inverted noise, moved with its tokens."""
    concat: Positions | None = None
    """Positions of the reference tokens that are attended to after tau; None: they are not."""
    guidance_inside: float | None = None
    """Guidance of replaced tokens while t > tau; None: as outside. Where the checkpoint embeds its guidance, this is
    what the reference's features are made with."""
    gamma: float = 1.0
    """Of RF inversion, from 0 (the model's own flow) to 1 (straight to the noise)."""
    eta: float = 1.0
    """How firmly the reference is held on its path, from 0 (the model's own flow) to 1."""
    shuffle: float = 0.0
    """Share of the subject's tokens that change places within windows of 3 x 3 (Section 3.4)."""
    outline: int = 0
    """Side in tokens, odd, of the square that dilates or erodes the subject's mask at random (Section 3.4); 0: none."""
    coverage: float = 0.5
    """A token belongs to a subject if its mask covers at least this share of the token."""
    margin: int = 0
    """Cells by which the region of moved start noise reaches beyond the subject."""
    inpaint_tau: float | Steps = EDIT
    outpaint_tau: float | Steps = EDIT

    def __post_init__(self) -> None:
        if self.outline < 0 or self.outline % 2 == 0 < self.outline:
            raise JaxpaError(f"outline must be an odd number of tokens, or 0, not {self.outline}")
        for name in ("gamma", "eta", "shuffle"):
            if not 0 <= getattr(self, name) <= 1:
                raise JaxpaError(f"{name} must lie in [0, 1], not {getattr(self, name)}")


PRESETS = {
    # The notebooks of the official repository: 28 steps, gamma 1, eta 1, no concatenation.
    "official": Preset(tau=0.6, path="rf", inpaint_tau=0.45, outpaint_tau=0.7),
    # Sections 3.4 and 4.1: tau at 80% of the steps, perturbation, then the reference at position zero.
    "paper": Preset(tau=Steps(0.8), concat="zero", shuffle=1.0, outline=5),
    # A small grid needs more: the true flow of the reference, and its noise under the subject.
    "mini": Preset(tau=0.5, path="ode", start="moved", guidance_inside=1.0, coverage=0.1, margin=1),
}


def replacement_source(placement: Placement, images: int) -> jax.Array:
    """Where each token of [R references; G images] takes its features from: (R + G, N) int32.

    placement.source and .target are (R, N), the same for all images, or (G, R, N). Where targets overlap the later
    reference wins. Reference rows are never touched.
    """
    references, n = placement.source.shape[-2:]
    source, target = (jnp.broadcast_to(a, (images, references, n)) for a in placement)
    index = identity_source(references + images, n)
    rows = index[references:]
    for j in range(references):
        rows = jnp.where(target[:, j], j * n + source[:, j], rows)
    return jnp.concatenate([index[:references], rows]).astype(jnp.int32)


class Context(NamedTuple):
    """Reference tokens that every row may attend to: the last three fields of a `tokens.Routing`."""

    context: jax.Array
    positions: jax.Array
    valid: jax.Array


def reference_context(
    masks: jax.Array, placement: Placement, images: int, grid: tuple[int, int], where: Positions, size: int
) -> Context:
    """The masked tokens of all references as context, in order, padded to `size` (static; R N at most).

    masks (R, N) bool; `where` gives their rotary positions: (0, 0) as in the paper, those of the cells that they are
    put on, their own, or their own moved by the grid's width (Section 3.2 compares the last three).
    """
    references, n = masks.shape
    batch = references + images
    picked = jnp.nonzero(masks.reshape(-1), size=size, fill_value=0)[0]  # (K,) into R * N
    valid = jnp.arange(size) < masks.sum()
    cells = grid_positions(*grid)  # (N, 2)
    if where == "zero":
        positions = jnp.zeros((batch, size, 2))
    elif where == "target":
        positions = _target_positions(placement, images, cells)[:, picked]
    else:
        offset = jnp.array([0.0, grid[1]]) if where == "shifted" else jnp.zeros(2)
        positions = jnp.broadcast_to((cells + offset)[picked % n], (batch, size, 2))
    rows = jnp.broadcast_to(picked.astype(jnp.int32), (batch, size))
    return Context(rows, positions, jnp.broadcast_to(valid, (batch, size)))


def _target_positions(placement: Placement, images: int, cells: jax.Array) -> jax.Array:
    """For every reference token the position of the cell it is put on (its own where it is not put anywhere).

    -> (R + G, R * N, 2). Reference rows see the first image's.
    """
    references, n = placement.source.shape[-2:]
    source, target = (jnp.broadcast_to(a, (images, references, n)) for a in placement)
    own = jnp.broadcast_to(jnp.arange(n), (images, references, n))

    def scatter(own: jax.Array, source: jax.Array, target: jax.Array) -> jax.Array:
        # A token that is put on several cells (an enlarged subject) stands at the first of them.
        first = jnp.full(n, n).at[jnp.where(target, source, n)].min(jnp.arange(n), mode="drop")
        return jnp.where(first < n, first, own)

    landed = jax.vmap(jax.vmap(scatter))(own, source, target)  # (G, R, N)
    positions = cells[landed].reshape(images, references * n, 2)
    return jnp.concatenate([jnp.broadcast_to(positions[:1], (references, *positions.shape[1:])), positions])


class Phase(NamedTuple):
    """One of the two stretches of a sampling: before tau, after tau.

    velocity  of the R + G rows [references; images] where the references ride along, else of the G images
    routing   of those R + G rows; None: the images go alone, unchanged
    """

    velocity: Velocity
    routing: Routing | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Task:
    """All that a personalised sampling needs, as one pytree: pass it through `jax.jit`.

    path     (S + 1, R, N, C), the references at every flow time (`inversion`)
    eta      (S,), how firmly they are held on it
    times    (S + 1,), the schedule; tau () the flow time of the gate
    early    while t > tau: replacement, and context if it is not gated. At level "token" its velocity has G rows.
    late     after tau: context, or nothing
    """

    path: jax.Array
    eta: jax.Array
    times: jax.Array
    tau: jax.Array
    early: Phase
    late: Phase
    level: Level = field(default="layer", metadata={"static": True})

    @property
    def references(self) -> int:
        return self.path.shape[1]


State = tuple[jax.Array, jax.Array]  # reference rows (R, N, C), images (G, N, C)


def start(task: Task, x: jax.Array) -> State:
    """References at the start of their path, images at their noise."""
    return task.path[0], x


def gate(task: Task) -> jax.Array:
    """How many steps start above tau: () int32."""
    return steps_above(task.times, task.tau)


def _ride(task: Task, i: jax.Array, state: State, phase: Phase) -> State:
    """One step of all rows together."""
    references, x = state
    rows = jnp.concatenate([references, x])
    v = phase.velocity(rows, jnp.broadcast_to(task.times[i], rows.shape[:1]), phase.routing)
    r = task.references
    moved = reference_step(references, v[:r], task.path, task.times, task.eta, i)
    return moved, euler_step(x, v[r:], task.times[i], task.times[i + 1])


def early_step(task: Task, i: jax.Array, state: State) -> State:
    """A step with t > tau."""
    if task.level == "layer":
        return _ride(task, i, state, task.early)
    assert task.early.routing is not None
    x = gather(jnp.concatenate([task.path[i], state[1]]), task.early.routing.source)[task.references :]
    return task.path[i + 1], step(task.early.velocity, x, task.times, i)


def late_step(task: Task, i: jax.Array, state: State) -> State:
    """A step with t <= tau."""
    if task.late.routing is not None:
        return _ride(task, i, state, task.late)
    return state[0], step(task.late.velocity, state[1], task.times, i)


def sample(task: Task, x: jax.Array, above: int | None = None) -> jax.Array:
    """The whole method in one compiled program: noise x (G, N, C) -> tokens (G, N, C).

    above: the number of steps above tau, where it is known while tracing; None: taken from the task, so that one
    program serves every tau. `jax.grad` cannot go backwards through a loop of unknown length: it needs `above`.
    """
    split, steps = gate(task) if above is None else above, task.times.shape[0] - 1
    state = jax.lax.fori_loop(0, split, lambda i, s: early_step(task, i, s), start(task, x))
    return jax.lax.fori_loop(split, steps, lambda i, s: late_step(task, i, s), state)[1]


def move_noise(noise: jax.Array, inverted: jax.Array, source: jax.Array) -> jax.Array:
    """Start noise whose target region is the reference's inverted noise, moved with its tokens.

    noise (G, N, C), inverted (R, N, C), source (R + G, N) of `replacement_source` -> (G, N, C).
    """
    return gather(jnp.concatenate([inverted, noise]), source)[inverted.shape[0] :]


def with_tau(preset: Preset, tau: float | Steps | None) -> Preset:
    """The preset with another tau."""
    return preset if tau is None else replace(preset, tau=tau)


# From references and switches to the index arrays of a task, each in one compiled function -----------------------


def context_size(masked: int, tokens: int) -> int:
    """The padded length of a context: a quarter, half or all of the references' tokens.

    Few sizes, so that a new mask rarely needs a new program.
    """
    return next(size for size in (-(-tokens // 4), -(-tokens // 2), tokens) if masked <= size)


@partial(jax.jit, static_argnames=("images", "grid", "concat", "size"))
def routings(
    masks: jax.Array, placement: Placement, images: int, grid: tuple[int, int], concat: Positions | None, size: int
) -> tuple[Routing, Routing | None]:
    """Before and after tau: masks (R, N), placement (G, R, N); `concat` and `size` as in `reference_context`."""
    references, n = masks.shape
    early = Routing(replacement_source(placement, images))
    if concat is None:
        return early, None
    context = reference_context(masks, placement, images, grid, concat, size)
    return early, Routing(identity_source(references + images, n), *context)


@partial(jax.jit, static_argnames="moved")
def start_noise(noise: jax.Array, path: jax.Array, placement: Placement, moved: bool) -> jax.Array:
    """Noise of the images (G, N, C): their own, or the references' under the placed cells."""
    if not moved:
        return noise
    return move_noise(noise, path[0], replacement_source(placement, noise.shape[0]))


def repeat_placement(placement: Placement, seeds: int) -> Placement:
    """P placements (P, R, N) for each of the seeds: (seeds * P, R, N)."""
    return Placement(*(np.tile(np.asarray(a), (seeds, 1, 1)) for a in placement))  # type: ignore[arg-type]


@partial(jax.jit, static_argnames=("grid", "outline", "margin", "scene"))
def perturb(
    where: Placement, masks: jax.Array, seeds: jax.Array, shuffle: jax.Array, grid: tuple[int, int], outline: int,
    margin: int, scene: bool,
) -> tuple[Placement, Placement]:  # fmt: skip
    """What is replaced in each image, and where its start noise comes from: two placements (G, R, N).

    where (G, R, N), masks (R, N), seeds (G,); shuffle (), outline and margin as in `Preset`. A seed decides its image's
    variation of the subjects (Section 3.4); a scene, the first reference, is not varied. Start noise moves unshuffled:
    it carries the subject's shape.
    """

    def one(seed: jax.Array, reference: jax.Array, mask: jax.Array, source: jax.Array, inside: jax.Array) -> Any:
        order, shape = jax.random.split(jax.random.fold_in(jax.random.key(seed), reference))
        subject = mask
        if outline:
            subject = jnp.where(reference < scene, mask, perturb_mask(shape, mask, *grid, size=outline))
        strength = jnp.where(reference < scene, 0.0, shuffle)
        replaced = restrict(Placement(source, inside), subject)
        wider = restrict(Placement(source, inside), dilate(subject, *grid, size=2 * margin + 1))
        return compose(replaced, shuffle_windows(order, subject, *grid, strength=strength)), wider

    over_references = jax.vmap(one, (None, 0, 0, 0, 0))
    return jax.vmap(over_references, (0, None, None, 0, 0))(seeds, jnp.arange(len(masks)), masks, *where)


@jax.jit
def token_guidance(placement: Placement, outside: jax.Array, inside: jax.Array) -> jax.Array:
    """A guidance for each token: `inside` where a reference is put (G, R, N), `outside` elsewhere -> (G, N, 1)."""
    return jnp.where(placement.target.any(1), inside, outside)[..., None]
