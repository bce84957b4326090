"""Several samplings of one shape as one: all their images in one batch, and each of their references once.

An image reads its own references alone, so its neighbours change nothing but where its rows stand. Rows are
[references; images] as in `personalize`, and behind them the images' negative rows where guidance is classifier-free.
Both kinds are filled up to a given number, so that batches of any content share a program.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxpa.personalize import Phase, Task
from jaxpa.sampling import Guided
from jaxpa.schedule import count_above
from jaxpa.tokens import Routing


class Part(NamedTuple):
    """One sampling.

    what  a task with R references, without the network; or, for images without references, the conditions of G rows
    x     the images' noise (G, N, C)
    cast  parts of equal ones have the same references under the same conditions, which are computed once; None: its own
    """

    what: Any
    x: jax.Array
    cast: Hashable = None

    @property
    def references(self) -> int:
        return self.what.trajectory.shape[1] if isinstance(self.what, Task) else 0


class Size(NamedTuple):
    """How many images and references a batch has, filling included."""

    images: int
    references: int = 0


def gate_of(tau: Any, times: Any) -> Hashable:
    """What a task's tau decides: how many steps start above it; where the blocks have a tau each, these."""
    taus = np.asarray(tau, np.float32)
    return taus.tobytes() if taus.ndim else count_above(times, taus)


def gate_of_part(part: Part) -> Hashable:
    """That of a part's task; None without references."""
    return gate_of(part.what.tau, part.what.times) if isinstance(part.what, Task) else None


def likeness(part: Part) -> Hashable:
    """Parts of equal ones can be sampled together: the same shapes and kinds, schedule, gate and hold on references."""
    what, shared = part.what, ()
    if isinstance(what, Task):
        same = what.eta, what.times, what.cache, what.reference_time
        shared = (gate_of_part(part), *(None if each is None else np.asarray(each).tobytes() for each in same))
        what = replace(what, tau=0)  # type: ignore[arg-type]
    leaves, structure = jax.tree.flatten((what, part.x))
    return structure, tuple((np.shape(leaf), str(jax.numpy.result_type(leaf))) for leaf in leaves), shared


def merge(parts: Sequence[Part], size: Size) -> tuple[Any, np.ndarray]:
    """Parts that are alike as one: the task or the conditions, and the noise (size.images, N, C); parts in order.

    What fills it up repeats the first reference and the last image. Raises ValueError for parts that are not alike, or
    that do not fit.
    """
    if len({likeness(part) for part in parts}) != 1:
        raise ValueError("parts of several shapes, schedules or gates cannot be merged")
    rows, parts = _rows_of(parts, size), [_on_host(part) for part in parts]
    first, x = parts[0].what, np.concatenate([part.x for part in parts])[rows.index(0)]
    if not isinstance(first, Task):
        return _conditions([part.what for part in parts], rows, 0), x
    tasks, r = [part.what for part in parts], rows.references
    trajectory = np.concatenate([task.trajectory for task in tasks], 1)[:, [i * r + k for i, k in rows.casts]]
    early = _phase([task.early for task in tasks], rows, r if first.level == "layer" else 0, r)
    late_rows = 0 if first.late.routing is None or first.late.joined is not None else r
    late = _phase([task.late for task in tasks], rows, late_rows, late_rows)
    return replace(first, trajectory=trajectory, early=early, late=late), x


def _on_host(part: Part) -> Part:
    """The part with NumPy's arrays: to put them side by side in any number needs no program then."""
    what, x = jax.device_get((part.what, part.x))
    return part._replace(what=what, x=x)


@dataclass(frozen=True)
class _Rows:
    """Where the rows of a batch come from.

    casts, images: (part, which of its references or images) of each row; offsets, bases: of each part, the first row of
    its references and of its images; references, count: how many a part has of both; n: tokens of a row
    """

    casts: list[tuple[int, int]]
    images: list[tuple[int, int]]
    offsets: list[int]
    bases: list[int]
    references: int
    count: int
    n: int

    def index(self, references: int, copies: int = 1) -> np.ndarray:
        """Into the rows of all parts, one after the other: of each its references, if it has them, and its images."""
        width = references + copies * self.count
        found = [i * width + k for i, k in self.casts] if references else []
        for copy in range(copies):
            found += [i * width + references + copy * self.count + j for i, j in self.images]
        return np.array(found)

    def tokens(self, local: Sequence[Any]) -> Any:
        """Indices of tokens (R + G, K), from each part's own (r + g, K)."""
        at, r, out = len(self.casts), self.references, []
        local = [np.asarray(each) for each in local]
        for place, (i, k) in enumerate([*self.casts, *((i, r + j) for i, j in self.images)]):
            row, token = np.divmod(local[i][k], self.n)
            moved = np.where(row < r, self.offsets[i] + row, at + self.bases[i] + row - r)
            out.append(np.where(row == k, place, moved) * self.n + token)  # what fills up reads itself
        return np.stack(out).astype(np.int32)

    def joined(self, local: Sequence[Any]) -> Any:
        """The reference tokens that join each image (G, K), from each part's own (K,) or (g, K)."""
        each = [np.broadcast_to(own, (self.count, np.shape(own)[-1])) for own in local]
        return np.stack([self.offsets[i] * self.n + each[i][j] for i, j in self.images]).astype(np.int32)


def _rows_of(parts: Sequence[Part], size: Size) -> _Rows:
    (r, (g, n)), first = (parts[0].references, parts[0].x.shape[:2]), dict[Hashable, int]()
    casts, images, offsets = list[tuple[int, int]](), list[tuple[int, int]](), []
    for i, part in enumerate(parts):
        key = (i,) if part.cast is None else part.cast
        if key not in first:
            first[key] = len(casts)
            casts += [(i, k) for k in range(r)]
        offsets.append(first[key])
        images += [(i, j) for j in range(g)]
    if len(images) > size.images or len(casts) > size.references:
        raise ValueError(f"{len(images)} images and {len(casts)} references do not fit a batch of {tuple(size)}")
    casts += casts[:1] * (size.references - len(casts))
    images += images[-1:] * (size.images - len(images))
    return _Rows(casts, images, offsets, [i * g for i in range(len(parts))], r, g, n)


def _conditions(conditions: Sequence[Any], rows: _Rows, references: int) -> Any:
    """The conditions of a batch, from each part's; references: how many of its own are among their rows."""
    first = conditions[0]
    if not isinstance(first, Guided):
        return type(first).concatenate(conditions).rows(rows.index(references))
    inner: list[Any] = [each.conditions for each in conditions]
    plain = type(inner[0]).concatenate(inner)
    scales = [np.asarray(each.scale) for each in conditions]
    scales = [np.broadcast_to(one, (rows.count, *(one.shape[1:] or (1, 1)))) for one in scales]
    scale: Any = np.concatenate(scales)[rows.index(0)]
    return Guided(plain.rows(rows.index(references, copies=2)), scale, len(rows.casts) if references else 0)


def _phase(phases: Sequence[Phase], rows: _Rows, riding: int, routed: int) -> Phase:
    """riding, routed: how many of a part's references are rows of its conditions, and of its routing."""
    first, conditions = phases[0], _conditions([phase.conditions for phase in phases], rows, riding)
    routing = None if first.routing is None else _routing([phase.routing for phase in phases], rows, routed)
    joined = None if first.joined is None else rows.joined([phase.joined for phase in phases])
    return Phase(conditions, routing, joined)


def _routing(routings: Sequence[Any], rows: _Rows, references: int) -> Routing:
    index = rows.index(references)

    def picked(name: str, axis: int = 0) -> Any:
        if getattr(routings[0], name) is None:
            return None
        return np.take(np.concatenate([getattr(each, name) for each in routings], axis), index, axis)

    def tokens(name: str) -> Any:
        return None if getattr(routings[0], name) is None else rows.tokens([getattr(each, name) for each in routings])

    weight = routings[0].weight
    if weight is not None and weight.shape[1] > 1:  # else it is one for all, a part of the kind
        weight = picked("weight", 1)
    return Routing(tokens("source"), weight, tokens("context"), picked("positions"), picked("length"))
