"""Personalize Anything (Feng et al. 2025): a reference's tokens take the places where its subject is wanted.

While t > tau the target cells are fed by reference tokens (Eq. 2 of the paper), which keep the rotary position of the
place where they are put; after tau the image is free, and may still attend to the reference (Section 3.4). Where the
subject comes from, where it goes, and until when, is data: index arrays and a number.

    level "layer"  the features that feed q, k and v in every block; R reference rows ride along while t > tau
    level "token"  the sampler's own tokens between steps; no reference row at all
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxpa import checks
from jaxpa.errors import check_choice
from jaxpa.inversion import reference_step
from jaxpa.loops import Loop, Run, fused
from jaxpa.presets import PRESETS as PRESETS
from jaxpa.presets import Level, Positions
from jaxpa.presets import Preset as Preset
from jaxpa.sampling import at, bound, euler_step, prepare
from jaxpa.schedule import steps_above
from jaxpa.solvers import Flow, solver_of
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


def replacement_source(placement: Placement, images: int) -> jax.Array:
    """Where each token of [R references; G images] takes its features from: (R + G, N) int32.

    placement.source and .target are (R, N), the same for all images, or (G, R, N). Where targets overlap the later
    reference wins. Reference rows are never touched.
    """
    _check_placement(placement)
    references, n = placement.source.shape[-2:]
    source, target = (jnp.broadcast_to(a, (images, references, n)) for a in placement)
    index = identity_source(references + images, n)
    rows = index[references:]
    for j in range(references):
        rows = jnp.where(target[:, j], j * n + source[:, j], rows)
    return jnp.concatenate([index[:references], rows]).astype(jnp.int32)


def _check_placement(placement: Placement) -> None:
    checks.array("placement.source", placement.source, ("...", "R", "N"), int)
    checks.array("placement.target", placement.target, placement.source.shape, bool)
    checks.within("placement.source", placement.source, 0, placement.source.shape[-1] - 1)


class Context(NamedTuple):
    """Reference tokens that every row may attend to: the last three fields of a `tokens.Routing`."""

    context: jax.Array
    positions: jax.Array
    length: jax.Array


def reference_context(
    masks: jax.Array, placement: Placement, images: int, grid: tuple[int, int], where: Positions, size: int
) -> Context:
    """The masked tokens of all references as context, in order, padded to `size` (static; R N at most).

    masks (R, N) bool; `where` gives their rotary positions: (0, 0) as in the paper, those of the cells that they are
    put on, their own, or their own moved by the grid's width (Section 3.2 compares the last three).
    """
    check_choice("where", where, get_args(Positions))
    checks.array("masks", masks, ("R", grid[0] * grid[1]), bool)
    _check_placement(placement)
    references, n = masks.shape
    batch = references + images
    picked = jnp.nonzero(masks.reshape(-1), size=size, fill_value=0)[0]  # (K,) into R * N
    length = jnp.full(batch, n + masks.sum(), jnp.int32)
    cells = grid_positions(*grid)  # (N, 3)
    if where == "zero":
        positions = jnp.zeros((batch, size, 3))
    elif where == "target":
        positions = _target_positions(placement, images, cells)[:, picked]
    else:
        offset = jnp.array([0.0, 0.0, grid[1]]) if where == "shifted" else jnp.zeros(3)
        positions = jnp.broadcast_to((cells + offset)[picked % n], (batch, size, 3))
    rows = jnp.broadcast_to(picked.astype(jnp.int32), (batch, size))
    return Context(rows, positions, length)


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
    positions = cells[landed].reshape(images, references * n, 3)
    return jnp.concatenate([jnp.broadcast_to(positions[:1], (references, *positions.shape[1:])), positions])


class Phase(NamedTuple):
    """One of the two stretches of a sampling: before tau, after tau.

    conditions  what `bind(model)` makes the velocity of, or a velocity itself; for the R + G rows
                [references; images] where the references ride along, else for the G images
    routing     of those R + G rows; None: the images go alone, unchanged
    """

    conditions: Any
    routing: Routing | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Task:
    """All that a personalised sampling needs, as one pytree: pass it through `jax.jit`.

    path     (S + 1, R, N, C), the references at every flow time (`inversion`)
    eta      (S,), how firmly they are held on it
    times    (S + 1,), the schedule; tau () the flow time of the gate
    early    while t > tau: replacement, and context if it is not gated. At level "token" its conditions have G rows.
    late     after tau: context, or nothing
    model    the network, once for both phases; None where their conditions are velocities
    solver   a name of `solvers.SOLVERS`
    """

    path: jax.Array
    eta: jax.Array
    times: jax.Array
    tau: jax.Array
    early: Phase
    late: Phase
    model: Any = None
    level: Level = field(default="layer", metadata={"static": True})
    solver: str = field(default="euler", metadata={"static": True})


class State(NamedTuple):
    """What a sampling carries: reference rows (R, N, C), images (G, N, C), and the solver's memory."""

    references: jax.Array
    images: jax.Array
    memory: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class _Stretch:
    """What the steps on one side of tau read.

    together: "rows", references and images are one batch; "tokens", the images read their tokens through the
    replacement (level "token"); "apart", the images go alone.
    """

    velocity: Any
    routing: Routing | None
    path: jax.Array
    eta: jax.Array
    times: jax.Array
    together: Literal["rows", "tokens", "apart"] = field(metadata={"static": True})
    solver: str = field(metadata={"static": True})

    def rows(self, state: State) -> jax.Array:
        """What the solver steps: the images, after the references where they ride along."""
        return jnp.concatenate([state.references, state.images]) if self.together == "rows" else state.images

    def replaced(self, x: jax.Array, i: jax.Array) -> jax.Array:
        """Images (G, N, C) at times[i], with the references' tokens at level "token"."""
        if self.together != "tokens":
            return x
        assert self.routing is not None
        references = self.path.shape[1]
        return gather(jnp.concatenate([self.path[i], x]), self.routing.source)[references:]

    def ask(self, x: jax.Array, i: jax.Array) -> jax.Array:
        """The velocity of rows at times[i]."""
        routing = self.routing if self.together == "rows" else None
        return at(self.velocity, i)(self.replaced(x, i), jnp.broadcast_to(self.times[i], x.shape[:1]), routing)

    def move(self, x: jax.Array, v: jax.Array, i: jax.Array) -> jax.Array:
        """Rows from times[i] to times[i + 1]."""
        if self.together != "rows":
            return euler_step(self.replaced(x, i), v, self.times[i], self.times[i + 1])
        r = self.path.shape[1]
        held = reference_step(x[:r], v[:r], self.path, self.times, self.eta, i)
        return jnp.concatenate([held, euler_step(x[r:], v[r:], self.times[i], self.times[i + 1])])

    def step(self, i: jax.Array, state: State) -> State:
        """All rows from times[i] to times[i + 1]."""
        flow = Flow(self.ask, self.move, self.times)
        x, memory = solver_of(self.solver).step(flow, self.rows(state), state.memory, i)
        if self.together == "rows":
            r = self.path.shape[1]
            return State(x[:r], x[r:], memory)
        # References that take no part stand on their path as long as they are needed.
        return State(self.path[i + 1] if self.together == "tokens" else state.references, x, memory)


def _enter(phase: Phase, together: Any, task: Task, state: State) -> tuple[_Stretch, State]:
    """A stretch and its first state. The solver starts anew: its memory is of another flow, and of other rows."""
    velocity = prepare(bound(phase.conditions, task.model), task.times)
    stretch = _Stretch(velocity, phase.routing, task.path, task.eta, task.times, together, task.solver)
    return stretch, state._replace(memory=solver_of(task.solver).init(stretch.rows(state)))


def _enter_early(task: Task, state: State) -> tuple[_Stretch, State]:
    return _enter(task.early, "rows" if task.level == "layer" else "tokens", task, state)


def _enter_late(task: Task, state: State) -> tuple[_Stretch, State]:
    return _enter(task.late, "apart" if task.late.routing is None else "rows", task, state)


def _body(stretch: _Stretch, i: jax.Array, state: State) -> State:
    return stretch.step(i, state)


def _images(state: State) -> jax.Array:
    return state.images


def gate(task: Task) -> jax.Array:
    """How many steps start above tau: () int32."""
    return steps_above(task.times, task.tau)


def _check(task: Task, x: jax.Array) -> None:
    """Shapes and, where they are known, values of a task. Raises ValueError."""
    check_choice("level", task.level, get_args(Level))
    solver_of(task.solver)
    checks.flow_times("times", task.times)
    steps = task.times.shape[0] - 1
    checks.array("path", task.path, (steps + 1, "R", "N", "C"))
    references, n, channels = task.path.shape[1:]
    checks.array("x", x, ("G", n, channels))
    checks.array("eta", task.eta, (steps,))
    checks.within("eta", task.eta, 0, 1)
    checks.number("tau", task.tau, 0, 1)
    rows = references + x.shape[0]
    for name, phase in (("early", task.early), ("late", task.late)):
        if phase.routing is not None and phase.routing.source is not None:
            checks.indices(f"{name}.routing.source", phase.routing.source, (rows, n), rows * n)


def task_run(task: Task, x: jax.Array, above: int | None = None) -> Run:
    """The description of `sample`, for `loops.stepped`: its results are the images after each step.

    Raises ValueError for arrays that do not fit each other, times that do not fall, a tau outside [0, 1], indices out
    of range, and words that are none.
    """
    _check(task, x)
    split, steps = gate(task) if above is None else above, task.times.shape[0] - 1
    loops = Loop(_enter_early, _body, 0, split), Loop(_enter_late, _body, split, steps)
    return Run(task, State(task.path[0], jnp.asarray(x), ()), loops, _images)


def sample(task: Task, x: jax.Array, above: int | None = None) -> jax.Array:
    """The whole method in one compiled program: noise x (G, N, C) -> tokens (G, N, C).

    A step is replaced as a whole or not at all: the gate looks at the time at which it starts, and every velocity that
    its solver asks for, the one at its end too, is then one with the references. The flow is so a smooth one on either
    side of tau, where a solver of second order is of second order, and a multistep solver starts anew at tau.

    above: the number of steps above tau, where it is known while tracing; None: taken from the task, so that one
    program serves every tau. `jax.grad` cannot go backwards through a loop of unknown length: it needs `above`.
    """
    return fused(task_run(task, x, above))


def move_noise(noise: jax.Array, inverted: jax.Array, source: jax.Array) -> jax.Array:
    """Start noise whose target region is the reference's inverted noise, moved with its tokens.

    noise (G, N, C), inverted (R, N, C), source (R + G, N) of `replacement_source` -> (G, N, C).
    """
    return gather(jnp.concatenate([inverted, noise]), source)[inverted.shape[0] :]


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
    early = Routing(replacement_source(placement, images))
    if concat is None:
        return early, None
    context = reference_context(masks, placement, images, grid, concat, size)
    return early, Routing(**context._asdict())


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
