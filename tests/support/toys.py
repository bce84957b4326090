"""Velocities that are no network, and tasks on them: small enough to say what the method must give."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxpa import inversion, personalize, tokens
from jaxpa.config import ScheduleConfig
from jaxpa.loops import stepped
from jaxpa.personalize import Phase, Task
from jaxpa.routing import join, reference_context, replacement_source
from jaxpa.sampling import bound
from jaxpa.schedule import flow_times
from jaxpa.tokens import Placement, Routing

H, W, C = 4, 5, 3
N = H * W


def replaced(x: jax.Array, routing: Routing) -> jax.Array:
    """What one block makes of a routing; queries, keys and values are the same here."""
    if routing.source is None:
        return x
    weight = 1.0 if routing.weight is None else routing.weight[0]
    return (1 - weight) * x + weight * tokens.gather(x, routing.source)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Toy:
    """A one-layer stand-in for the network: attention over routed tokens and context, near positions preferred.

    The residual keeps a row's own features, as the blocks of the real network do. weight (C, C); shift (B, 1, C), a
    condition of each row's own, so that mixed up rows show.
    """

    weight: jax.Array
    shift: jax.Array

    def __call__(self, x: jax.Array, t: jax.Array, routing: Routing | None = None) -> jax.Array:
        b, n = x.shape[:2]
        routing = routing or Routing()
        features = jnp.tanh(x + self.shift)
        query = replaced(features, routing)
        places = jnp.concatenate([tokens.grid_positions(H, W), jnp.zeros((n - N, 3))])  # joined tokens stand at zero
        places = jnp.broadcast_to(places, (b, n, 3))
        keys, key_places = query, places
        if routing.context is not None and routing.positions is not None:
            keys = jnp.concatenate([query, tokens.gather(features, routing.context)], 1)
            key_places = jnp.concatenate([places, routing.positions], 1)
        length = jnp.full(b, keys.shape[1]) if routing.length is None else routing.length
        valid = jnp.arange(keys.shape[1]) < length[:, None]
        distance = jnp.sum((places[:, :, None] - key_places[:, None]) ** 2, -1)
        logits = query @ jnp.swapaxes(keys, 1, 2) - 0.1 * distance
        weights = jax.nn.softmax(jnp.where(valid[:, None], logits, -1e30))
        return (weights @ keys) @ self.weight * (1 + t[:, None, None]) - 0.1 * x


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ToyConditions:
    """What a row of `Toy` is told, without its weights."""

    shift: jax.Array

    def bind(self, model: jax.Array) -> Toy:
        return Toy(model, self.shift)

    def rows(self, index: np.ndarray) -> "ToyConditions":
        return ToyConditions(self.shift[index])

    @staticmethod
    def concatenate(parts: "list[ToyConditions]") -> "ToyConditions":
        return ToyConditions(jnp.concatenate([part.shift for part in parts]))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Linear:
    """v = slope * (source tokens): each token by itself, so that everything has a closed form."""

    slope: jax.Array

    def __call__(self, x: jax.Array, t: jax.Array, routing: Routing | None = None) -> jax.Array:
        return self.slope * (x if routing is None else replaced(x, routing))


def toy(rows: int, seed: int = 0) -> Toy:
    rng = np.random.default_rng(seed)
    return Toy(jnp.float32(0.5 * rng.standard_normal((C, C))), jnp.float32(rng.standard_normal((rows, 1, C))))


def some(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def times_of(steps: int) -> np.ndarray:
    return flow_times(steps, 1024, ScheduleConfig())


MASKS = np.stack([np.all(np.indices((H, W)).reshape(2, N) < np.array(limit)[:, None], 0) for limit in ((2, 2), (3, 1))])


OFFSETS = np.array([[1, 2], [0, 3]])  # where they go; part of the second leaves the grid


@jax.jit
def put(masks: np.ndarray, offsets: np.ndarray) -> Placement:
    """Masks (R, N), offsets (R, 2) -> placements (R, N)."""
    return jax.vmap(lambda mask, by: tokens.shift(mask, H, W, *by))(masks, offsets)


def make_task(
    references: int = 1, images: int = 1, tau: float = 0.6, level="layer", concat=None, size: int = N,
    velocity=toy, eta: float = 1.0, seed: int = 0, steps: int = 6, solver: str = "euler",
) -> Task:  # fmt: skip
    """A task on toy velocities: [references; images], each with a condition of its own. MASKS move by OFFSETS."""
    masks, placement = MASKS[:references], put(MASKS[:references], OFFSETS[:references])
    times, rows, model = times_of(steps), velocity(references + images), None
    if isinstance(rows, Toy):
        rows, model = ToyConditions(rows.shift), rows.weight
    alone = jax.tree.map(lambda a: a[references:] if a.ndim == 3 else a, rows)
    path = inversion.straight_line(some(seed + 1, references, N, C), some(seed + 2, references, N, C), times)
    after = Phase(alone)
    if concat == "joined":
        joined = join(masks, (H, W), size)
        after = Phase(alone, Routing(length=jnp.broadcast_to(joined.length, images)), joined.tokens)
    elif concat is not None:
        after = Phase(rows, Routing(**CONTEXT(masks, placement, images, (H, W), concat, size)._asdict()))
    early = Phase(rows if level == "layer" else alone, Routing(SOURCE(placement, images)))
    held = jnp.asarray(inversion.control(steps, eta))
    return Task(jnp.asarray(path), held, jnp.asarray(times), jnp.float32(tau), early, after, model, level, solver)


def velocity_of(task: Task, phase: Phase):
    """The velocity of one of a task's phases."""
    return bound(phase.conditions, task.model)


@jax.jit
def _asked(velocity, x: jax.Array, t: jax.Array, routing: Routing | None) -> jax.Array:
    return velocity(x, t, routing)


def by_hand(task: Task, x: jax.Array, opening: tuple[Phase, float] | None = None) -> jax.Array:
    """Euler's steps of a task whose references ride along above tau, or always, read at `reference_time` at most.

    opening: what stands for the early phase above a flow time.
    """
    assert task.reference_time is not None
    times, path, r = np.asarray(task.times), task.trajectory, task.trajectory.shape[1]
    first, references = int(np.sum(times > float(task.reference_time))), path[0]
    for i in range(len(times) - 1):
        early = opening[0] if opening is not None and times[i] > opening[1] else task.early
        phase, j = early if times[i] > float(task.tau) else task.late, max(i, first)
        t = jnp.float32([times[j]] * r + [times[i]] * len(x))
        if phase.routing is None:
            x = x + (times[i + 1] - times[i]) * _asked(velocity_of(task, phase), x, t[r:], None)
            continue
        rows = jnp.concatenate([path[j] if i < first else references, x])
        v = _asked(velocity_of(task, phase), rows, t, phase.routing)
        free = references + (times[i + 1] - times[i]) * v[:r]
        held = path[i + 1] + (references - path[i]) * (times[i + 1] / times[i])
        eta = 1.0 if i < first else task.eta[i]
        references, x = eta * held + (1 - eta) * free, x + (times[i + 1] - times[i]) * v[r:]
    return x


def states(task: Task, x) -> list[personalize.State]:
    """The state after every step, stepped by the host."""
    return [progress.state for progress in stepped(personalize.task_run(task, x))]


SAMPLE = jax.jit(personalize.sample)
ASK = jax.jit(lambda velocity, x, t, routing: velocity(x, jnp.broadcast_to(t, x.shape[:1]), routing))
CONTEXT = jax.jit(reference_context, static_argnums=(2, 3, 4, 5))
SOURCE = jax.jit(replacement_source, static_argnums=1)


def close(got, want, atol):
    np.testing.assert_allclose(np.asarray(got), np.asarray(want), atol=atol, rtol=0)
