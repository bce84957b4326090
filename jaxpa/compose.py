"""From references and switches to the index arrays of a `personalize.Task`, each in one compiled function."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpa.personalize import Positions, move_noise, reference_context, replacement_source
from jaxpa.tokens import Placement, Routing, compose, dilate, identity_source, perturb_mask, restrict, shuffle_windows


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
