"""Personalize Anything (Feng et al. 2025): a reference's tokens take the places where its subject is wanted.

While t > tau the target cells are fed by reference tokens (Eq. 2 of the paper), which keep the rotary position of the
place where they are put; after tau the image is free, and may still attend to the reference (Section 3.4). Where the
subject comes from, where it goes, and until when, is data: index arrays and a number.

    level "layer"  the features that feed q, k and v in every block; R reference rows ride along while t > tau
    level "token"  the sampler's own tokens between steps; no reference row at all
"""

from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxpa import checks
from jaxpa.arrays import Array, Float, Index, Int
from jaxpa.caching import stepper
from jaxpa.errors import check_choice
from jaxpa.inversion import reference_step
from jaxpa.loops import Loop, Run, fused
from jaxpa.presets import PRESETS as PRESETS
from jaxpa.presets import Level
from jaxpa.presets import Preset as Preset
from jaxpa.sampling import at, bound, euler_step, glance, prepare, rows_of
from jaxpa.schedule import steps_above
from jaxpa.solvers import Flow, Name
from jaxpa.tokens import Routing, gather


class Phase(NamedTuple):
    """One of the two stretches of a sampling: before tau, after tau.

    conditions  what `bind(model)` makes the velocity of, or a velocity itself. Of the R + G rows [references; images]
                where the references ride along, else of the G images
    routing     of those rows; None: the images go alone, unchanged
    joined      indices into R * N, for all images or for each: the reference tokens that are a part of its sequence,
                [image; reference] of N + K tokens in G rows (`routing.join`); None: there are none
    """

    conditions: Any
    routing: Routing | None = None
    joined: Int[Array, "*images K"] | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Task:
    """All that a personalised sampling needs, as one pytree: pass it through `jax.jit`.

    trajectory  the references at every flow time (`inversion`)
    eta         how firmly they are held on it in each of the S steps
    times       the schedule
    tau         the flow time of the gate; or one for each block, double blocks first (level "layer"): the references
                then ride along as long as one of the blocks needs them
    early       while t > tau: replacement, and context if it is not gated. At level "token" its conditions have G rows.
    late        after tau: context, joined tokens, or nothing
    model       the network, once for both phases; None where their conditions are velocities
    solver      a name of `solvers.SOLVERS`
    cache       a threshold below which steps skip the network (`caching`), lossy; None: they do not

    reference_time: the flow time above which the references are not read (`Preset`); None: they are at every time.
    """

    trajectory: Float[Array, "times R N C"]
    eta: Float[Array, " S"]
    times: Float[Array, " times"]
    tau: Float[Array, ""] | Float[Array, " L"]
    early: Phase
    late: Phase
    model: Any = None
    level: Level = field(default="layer", metadata={"static": True})
    solver: Name = field(default="euler", metadata={"static": True})
    cache: Float[Array, ""] | None = None
    reference_time: Float[Array, ""] | None = None


class State(NamedTuple):
    """What a sampling carries: reference tokens, images, and the solver's memory.

    references: where they are joined to the images' sequences, one copy an image
    """

    references: Float[Array, "R N C"] | Float[Array, "G K C"]
    images: Float[Array, "G N C"]
    memory: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class _Stretch:
    """What the steps on one side of tau read.

    trajectory: of the reference tokens of a `State`. taus: where the blocks' own differ. first: the first step whose
    time the references are read at; row_times: the times at which the rows are read.

    together: "rows", references and images are one batch; "sequence", one sequence; "tokens", the images read their
    tokens through the replacement (level "token"); "apart", the images go alone.
    """

    velocity: Any
    routing: Routing | None
    trajectory: Float[Array, "times R N C"]
    eta: Float[Array, " S"]
    times: Float[Array, " times"]
    taus: Float[Array, " L"] | None
    cache: Float[Array, ""] | None
    first: Int[Array, ""] | None
    row_times: Float[Array, " times *rows"]
    together: Literal["rows", "sequence", "tokens", "apart"] = field(metadata={"static": True})
    solver: Name = field(metadata={"static": True})

    def join(self, references: Float[Array, "R K C"], images: Float[Array, "G N C"]) -> Float[Array, "rows S C"]:
        """What the solver steps."""
        if self.together == "rows":
            return jnp.concatenate([references, images])  # (R + G, N, C)
        return jnp.concatenate([images, references], 1) if self.together == "sequence" else images  # (G, N + K, C)

    def part(self, x: Float[Array, "rows S C"]) -> tuple[Float[Array, "R K C"] | None, Float[Array, "G N C"]]:
        """The references of what is stepped, if they are in it, and the images."""
        if self.together == "rows":
            return x[: self.trajectory.shape[1]], x[self.trajectory.shape[1] :]
        if self.together == "sequence":
            n = x.shape[1] - self.trajectory.shape[2]
            return x[:, n:], x[:, :n]
        return None, x

    def read(self, x: Float[Array, "rows S C"], i: Index) -> Float[Array, "rows S C"]:
        """What the images are at times[i]: at level "token" the references' tokens in their places."""
        if self.together != "tokens":
            return x
        assert self.routing is not None
        assert self.routing.source is not None
        r, source = self.trajectory.shape[1], self.routing.source
        there = gather(jnp.concatenate([self.trajectory[i], x]), source)[r:]
        if self.routing.weight is None:
            return there
        weight = jnp.broadcast_to(self.routing.weight, (1, *source.shape, 1))[0, r:]
        return (1 - weight) * x + weight * there

    def seen(self, x: Float[Array, "rows S C"], i: Index) -> Float[Array, "rows S C"]:
        """What the model sees at row_times[i]."""
        if self.first is None:
            return self.read(x, i)
        r = self.trajectory.shape[1]
        return x.at[:r].set(jnp.where(i < self.first, self.trajectory[self.first], x[:r]))

    def routed(self, i: Index) -> Routing | None:
        """The routing of step i: blocks whose tau is not below its time keep their own features."""
        if self.together in ("tokens", "apart"):
            return None
        if self.taus is None or self.routing is None:
            return self.routing
        above = (self.times[i] > self.taus).astype(jnp.float32)[:, None, None, None]
        return replace(self.routing, weight=above if self.routing.weight is None else above * self.routing.weight)

    def move(self, x: Float[Array, "rows S C"], v: Float[Array, "rows S C"], i: Index) -> Float[Array, "rows S C"]:
        """From times[i] to times[i + 1]."""
        (references, images), (of_references, of_images) = self.part(self.read(x, i)), self.part(v)
        moved = euler_step(images, of_images, self.times[i], self.times[i + 1])
        if references is None or of_references is None:
            return moved
        return self.join(reference_step(references, of_references, self.trajectory, self.times, self.eta, i), moved)

    def step(self, i: Index, state: State) -> State:
        """Everything from times[i] to times[i + 1]."""
        routing = self.routed(i)

        def ask(x: Float[Array, "rows S C"], j: Index) -> Float[Array, "rows S C"]:
            return at(self.velocity, j)(self.seen(x, j), jnp.broadcast_to(self.row_times[j], x.shape[:1]), routing)

        def look(x: Float[Array, "rows S C"], j: Index) -> Array:
            assert looked is not None
            return looked(self.seen(x, j), j)

        looked, x = glance(self.velocity, self.row_times), self.join(state.references, state.images)
        flow = Flow(ask, self.move, self.times, looked and look, rows_of(self.velocity, x.shape[0]))
        x, memory = stepper(self.solver, self.cache).step(flow, x, state.memory, i)
        references, images = self.part(x)
        if references is None:  # they take no part, and stand on their trajectory as long as they are needed
            references = self.trajectory[i + 1] if self.together == "tokens" else state.references
        return State(references, images, memory)


def _enter_early(task: Task, state: State) -> tuple[_Stretch, State]:
    taus = task.tau if jnp.ndim(task.tau) else None
    return _enter(task, task.early, "rows" if task.level == "layer" else "tokens", task.trajectory, state, taus)


def _enter_late(task: Task, state: State) -> tuple[_Stretch, State]:
    phase, trajectory = task.late, task.trajectory
    if phase.joined is None:
        return _enter(task, phase, "apart" if phase.routing is None else "rows", trajectory, state)

    chosen = jnp.atleast_2d(phase.joined)

    def pick(references: Float[Array, "*times R N C"]) -> Float[Array, "*times rows K C"]:
        return references.reshape(*references.shape[:-3], -1, references.shape[-1])[..., chosen, :]

    picked = pick(state.references)
    references = jnp.broadcast_to(picked, (len(state.images), *picked.shape[1:]))
    return _enter(task, phase, "sequence", pick(trajectory), state._replace(references=references))


def _enter(
    task: Task, phase: Phase, together: Any, trajectory: Array, state: State, taus: Array | None = None
) -> tuple[_Stretch, State]:
    """A stretch and its first state. The solver starts anew: it remembers another flow, and other rows."""
    first, row_times, eta = None, task.times, task.eta
    if together == "rows" and task.reference_time is not None:
        first, row_times, eta = _read_ahead(task, task.reference_time, trajectory.shape[1], len(state.images))
    velocity = prepare(bound(phase.conditions, task.model), row_times)
    stretch = _Stretch(
        velocity,
        phase.routing,
        trajectory,
        eta,
        task.times,
        taus,
        task.cache,
        first,
        row_times,
        together,
        task.solver,
    )
    memory = stepper(task.solver, task.cache).init(stretch.join(state.references, state.images))
    if task.cache is not None:
        memory = memory._replace(forwards=state.memory.forwards)
    return stretch, state._replace(memory=memory)


def _read_ahead(
    task: Task, reference_time: Float[Array, ""], references: int, images: int
) -> tuple[Int[Array, ""], Float[Array, "times rows"], Float[Array, " S"]]:
    """The first step whose time references are read at, the times of all rows, and eta: before it they are held."""
    first = steps_above(task.times, reference_time)
    own = jnp.minimum(task.times, task.times[first])
    row_times = jnp.stack([own] * references + [task.times] * images, 1)
    return first, row_times, jnp.where(jnp.arange(len(task.eta)) < first, 1.0, task.eta)


def _body(stretch: _Stretch, i: Index, state: State) -> State:
    return stretch.step(i, state)


def _images(state: State) -> Float[Array, "G N C"]:
    return state.images


def _counted(state: State) -> tuple[Float[Array, "G N C"], Int[Array, ""]]:
    return state.images, state.memory.forwards


def gate(task: Task) -> Int[Array, ""]:
    """How many steps start above tau."""
    return steps_above(task.times, jnp.min(task.tau))


def _check(task: Task, x: Array) -> None:
    """Shapes and, where they are known, values of a task. Raises ValueError."""
    check_choice("level", task.level, get_args(Level))
    stepper(task.solver, task.cache)
    checks.flow_times("times", task.times)
    steps = task.times.shape[0] - 1
    checks.array("trajectory", task.trajectory, (steps + 1, "R", "N", "C"))
    references, n, channels = task.trajectory.shape[1:]
    checks.array("x", x, ("G", n, channels))
    checks.array("eta", task.eta, (steps,))
    checks.within("eta", task.eta, 0, 1)
    if np.ndim(task.tau):
        checks.array("tau", task.tau, ("L",))
        checks.within("tau", task.tau, 0, 1)
        if task.level == "token":
            raise ValueError('tau must be one number at level "token", which knows no blocks')
    else:
        checks.number("tau", task.tau, 0, 1)
    if task.late.joined is not None:
        checks.indices("late.joined", task.late.joined, ("...", "K"), references * n)
    rows = references + x.shape[0]
    for name, phase in (("early", task.early), ("late", task.late)):
        if phase.routing is not None and phase.routing.source is not None:
            checks.indices(f"{name}.routing.source", phase.routing.source, (rows, n), rows * n)


def task_run(task: Task, x: Float[Array, "G N C"], above: int | None = None) -> Run:
    """The description of `sample`, for `loops.stepped`: its results are the images after each step.

    Raises ValueError for arrays that do not fit each other, times that do not fall, a tau outside [0, 1], indices out
    of range, and words that are none.
    """
    _check(task, x)
    split, steps = gate(task) if above is None else above, task.times.shape[0] - 1
    loops = Loop(_enter_early, _body, 0, split), Loop(_enter_late, _body, split, steps)
    memory = () if task.cache is None else stepper(task.solver, task.cache).init(x)
    state = State(task.trajectory[0], jnp.asarray(x), memory)
    return Run(task, state, loops, _images if task.cache is None else _counted)


def sample(task: Task, x: Float[Array, "G N C"], above: int | None = None) -> Any:
    """The whole method in one compiled program: noise x -> tokens (G, N, C).

    A step is replaced as a whole or not at all: if it starts above tau, every velocity that its solver asks for is one
    with the references, even the one at the step's end. The flow is therefore smooth on either side of tau, where a
    solver of second order keeps its order, and a multistep solver starts anew at tau. What changes above it, at the end
    of an opening or at a block's own tau, makes one step of first order.

    above: the number of steps above tau, where it is known while tracing; None: taken from the task, so that one
    program serves every tau. `jax.grad` cannot go backwards through a loop of unknown length: it needs `above`. Where
    the task has a `cache`, the result is (tokens, how many samples passed the network).
    """
    return fused(task_run(task, x, above))
