"""From references and switches to the index arrays of a task: where every token takes its features from, and how far.

Everything is index arithmetic on arrays of the token grid, so that a new mask, place or switch is new data for the same
compiled program. Rows are [R references; G images] throughout.
"""

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxpa import checks
from jaxpa.arrays import Array, Bool, Float, Float32, Int, Int32, Scalar
from jaxpa.errors import check_choice
from jaxpa.presets import BlockTau, Parts, Positions
from jaxpa.schedule import Steps, tau_time
from jaxpa.seeds import random_key, same_everywhere
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


def replacement_source(placement: Placement, images: int) -> Int32[Array, "rows N"]:
    """Where each token of [R references; G images] takes its features from.

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

    context: Int32[Array, "rows K"]
    positions: Float32[Array, "rows K 3"]
    length: Int32[Array, " rows"]


def reference_context(
    masks: Bool[Array, "R N"], placement: Placement, images: int, grid: tuple[int, int], where: Positions, size: int
) -> Context:
    """The masked tokens of all references as context, in order, padded to `size` (static; R N at most).

    `where` gives their rotary positions: (0, 0) as text has, those of the cells that they are put on ("target"), their
    own, or their own moved by the grid's width. Section 3.2 compares all but "target".
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


def _target_positions(placement: Placement, images: int, cells: Float[Array, "N 3"]) -> Float[Array, "rows picked 3"]:
    """For every reference token the position of the cell it is put on (its own where it is not put anywhere).

    Reference rows see the first image's.
    """
    references, n = placement.source.shape[-2:]
    source, target = (jnp.broadcast_to(a, (images, references, n)) for a in placement)
    own = jnp.broadcast_to(jnp.arange(n), (images, references, n))

    def scatter(own: Int[Array, " N"], source: Int[Array, " N"], target: Bool[Array, " N"]) -> Int[Array, " N"]:
        # A token that is put on several cells (an enlarged subject) stands at the first of them.
        first = jnp.full(n, n).at[jnp.where(target, source, n)].min(jnp.arange(n), mode="drop")
        return jnp.where(first < n, first, own)

    landed = jax.vmap(jax.vmap(scatter))(own, source, target)  # (G, R, N)
    positions = cells[landed].reshape(images, references * n, 3)
    return jnp.concatenate([jnp.broadcast_to(positions[:1], (references, *positions.shape[1:])), positions])


class Joined(NamedTuple):
    """Reference tokens as a part of each image's sequence, [image; reference]: the paper's form of concatenation.

    tokens     which tokens, of R * N; padding comes last
    positions  rotary positions of the sequence of N + K: the reference's are all zero, as the text's
    length     how much of the sequence is not padding
    """

    tokens: Int32[Array, " K"]
    positions: Float32[Array, "S 3"]
    length: Int32[Array, ""]


@partial(jax.jit, static_argnames=("grid", "size"))
def join(masks: Bool[Array, "R N"], grid: tuple[int, int], size: int) -> Joined:
    """The masked tokens of all references, in order, padded to `size` (static; R N at most)."""
    n = grid[0] * grid[1]
    checks.array("masks", masks, ("R", n), bool)
    picked = jnp.nonzero(masks.reshape(-1), size=size, fill_value=0)[0].astype(jnp.int32)
    positions = jnp.concatenate([grid_positions(*grid), jnp.zeros((size, 3))])
    return Joined(picked, positions, (n + masks.sum()).astype(jnp.int32))


def replacement_weight(
    parts: Parts = "qkv",
    blocks: tuple[int, int] | None = None,
    depth: int = 1,
    shares: Float[Array, "R N"] | None = None,
    source: Int[Array, "rows N"] | None = None,
) -> Float32[Array, "#{depth} #rows #N #3"] | None:
    """How far features are replaced, the `weight` of a `Routing`.

    parts: of queries, keys and values; blocks: the first and the last, out of `depth`; shares in [0, 1]: how far each
    reference token is the subject's, with the `source` of `replacement_source`. None where all of a token is replaced
    everywhere, which costs nothing. Raises ValueError.
    """
    check_choice("parts", parts, get_args(Parts))
    factors = []
    if parts != "qkv":
        factors.append(jnp.array([part in parts for part in "qkv"], jnp.float32))
    if blocks is not None:
        checks.block_range("blocks", blocks, depth)
        inside = (jnp.arange(depth) >= blocks[0]) & (jnp.arange(depth) <= blocks[1])
        factors.append(inside.astype(jnp.float32)[:, None, None, None])
    if shares is not None:
        if source is None:
            raise ValueError("shares need the source that they are moved by")
        checks.array("shares", shares, ("R", source.shape[1]))
        checks.within("shares", shares, 0, 1)
        references, n = shares.shape
        own = jnp.ones((source.shape[0] - references, n))
        moved = gather(jnp.concatenate([shares, own]), source[references:])
        factors.append(jnp.concatenate([jnp.ones((references, n)), moved])[None, ..., None])
    return prod(factors[1:], start=jnp.broadcast_to(factors[0], _four(factors[0]))) if factors else None


def block_taus(
    tau: float | Steps, own: Sequence[BlockTau], times: Float[Array | np.ndarray, " times"], depth: int
) -> Float32[np.ndarray, "..."]:
    """The tau of a `Task`, in flow time: one number (), or one for each of `depth` blocks where some have their own.

    Raises ValueError for a tau outside [0, 1], and for blocks that do not exist.
    """
    gate = np.float32(tau_time(tau, times))
    if not own:
        return np.asarray(gate)
    gates = np.full(depth, gate)
    for each in own:
        checks.block_range("tau_blocks", (each.first, each.last), depth)
        gates[each.first : each.last + 1] = tau_time(each.tau, times)
    return gates


def _four(factor: Array) -> tuple[int, ...]:
    """A factor's shape with four axes."""
    return (*(1,) * (4 - factor.ndim), *factor.shape)


def move_noise(
    noise: Float[Array, "G N C"], inverted: Float[Array, "R N C"], source: Int[Array, "R+G N"]
) -> Float[Array, "G N C"]:
    """Start noise whose target region is the reference's inverted noise, moved with its tokens.

    source: of `replacement_source`.
    """
    return gather(jnp.concatenate([inverted, noise]), source)[inverted.shape[0] :]


# From references and switches to the index arrays of a task, each in one compiled function -----------------------


def context_size(masked: int, tokens: int) -> int:
    """The padded length of a context: a quarter, half or all of the references' tokens.

    Few sizes, so that a new mask rarely needs a new program.
    """
    return next(size for size in (-(-tokens // 4), -(-tokens // 2), tokens) if masked <= size)


@jax.jit
def replacement_index(placement: Placement) -> Int32[Array, "rows N"]:
    """`replacement_source` of a placement (G, R, N), compiled."""
    return replacement_source(placement, placement.source.shape[0])


@partial(jax.jit, static_argnames=("images", "grid", "where", "size"))
def context_routing(
    masks: Bool[Array, "R N"], placement: Placement, images: int, grid: tuple[int, int], where: Positions, size: int
) -> Routing:
    """`reference_context` as a routing that replaces nothing, compiled."""
    return Routing(**reference_context(masks, placement, images, grid, where, size)._asdict())


@partial(jax.jit, static_argnames="moved")
def start_noise(
    noise: Float[Array, "G N C"], trajectory: Float[Array, "times R N C"], placement: Placement, moved: bool
) -> Float[Array, "G N C"]:
    """Noise of the images: their own, or the references' under the placed cells."""
    if not moved:
        return noise
    return move_noise(noise, trajectory[0], replacement_source(placement, noise.shape[0]))


def repeat_placement(placement: Placement, seeds: int) -> Placement:
    """P placements (P, R, N) for each of the seeds: (seeds * P, R, N)."""
    return Placement(*(np.tile(np.asarray(a), (seeds, 1, 1)) for a in placement))  # type: ignore[arg-type]


@partial(jax.jit, static_argnames=("grid", "outline", "margin", "scene"))
def perturb(
    where: Placement,
    masks: Bool[Array, "R N"],
    seeds: Int[Array, " G"],
    shuffle: Scalar,
    grid: tuple[int, int],
    outline: int,
    margin: int,
    scene: bool,
) -> tuple[Placement, Placement]:
    """What is replaced in each image, and where its start noise comes from: two placements (G, R, N), as `where` is.

    shuffle, outline and margin as in `Preset`. A seed decides its image's variation of the subjects (Section 3.4); a
    scene, the first reference, is not varied. Start noise moves unshuffled: it carries the subject's shape.
    """

    def one(
        seed: Int[Array, ""],
        reference: Int[Array, ""],
        mask: Bool[Array, " N"],
        source: Int[Array, " N"],
        inside: Bool[Array, " N"],
    ) -> Any:
        order, shape = jax.random.split(jax.random.fold_in(random_key(seed), reference))
        subject, varied = mask, reference >= int(scene)
        if outline:
            subject = jnp.where(varied, perturb_mask(shape, mask, *grid, size=outline), mask)
        strength = jnp.where(varied, shuffle, 0.0)
        replaced = restrict(Placement(source, inside), subject)
        wider = restrict(Placement(source, inside), dilate(subject, *grid, size=2 * margin + 1))
        return compose(replaced, shuffle_windows(order, subject, *grid, strength=strength)), wider

    over_references = jax.vmap(one, (None, 0, 0, 0, 0))
    with same_everywhere():
        return jax.vmap(over_references, (0, None, None, 0, 0))(seeds, jnp.arange(len(masks)), masks, *where)


@jax.jit
def token_guidance(placement: Placement, outside: Scalar, inside: Scalar) -> Float[Array, "G N 1"]:
    """A guidance for each token: `inside` where a reference is put, `outside` elsewhere."""
    return jnp.where(placement.target.any(1), inside, outside)[..., None]
