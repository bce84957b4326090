"""Which tokens attend to which: a block's attention probabilities, split and reduced inside the scan over depth.

    p = softmax(q k^T / sqrt(Dh)),  q (B, H, M + N, Dh), k (B, H, M + N + K, Dh)

The sequence is [text; image; context], so p falls into quadrants (Section 3.1 of Personalize Anything): text and image
queries times text, image and context keys. An observer is a function of a `transformer.BlockTrace`, called in every
block. Its results are stacked over the blocks, so it should return little. The means over heads below take one head at
a time, and never hold more than one head's probabilities.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxpa.kernels import MASKED
from jaxpa.layers import precision
from jaxpa.transformer import BlockTrace


class Quadrants(NamedTuple):
    """Probabilities by query and key: name = query_key; each row of text_* (and of image_*) sums to 1 over all keys.

    M text, N image, K context tokens; K is 0 without context.
    """

    text_text: jax.Array  # (..., M, M)
    text_image: jax.Array  # (..., M, N)
    text_context: jax.Array  # (..., M, K)
    image_text: jax.Array  # (..., N, M)
    image_image: jax.Array  # (..., N, N)
    image_context: jax.Array  # (..., N, K)


def quadrants(p: jax.Array, m: int) -> Quadrants:
    """Split probabilities (..., M + N, M + N + K); m is M."""
    length = p.shape[-2]
    keys = [jnp.split(rows, [m, length], -1) for rows in jnp.split(p, [m], -2)]
    return Quadrants(*keys[0], *keys[1])


def probabilities(trace: BlockTrace) -> jax.Array:
    """All heads of a block: (B, H, M + N, M + N + K) float32, whatever the weights are; each row sums to 1."""
    heads = jax.lax.map(lambda head: _one_head(trace, head), jnp.arange(trace.q.shape[1]))
    return jnp.moveaxis(heads, 0, 1)


def _one_head(trace: BlockTrace, head: jax.Array, first: int = 0) -> jax.Array:
    """One head's probabilities for the queries from `first` on: (B, M + N - first, M + N + K) float32."""
    q, k = (jax.lax.dynamic_index_in_dim(x, head, 1, keepdims=False) for x in (trace.q[:, :, first:], trace.k))
    logits = jnp.einsum("bqd,bkd->bqk", q, k, precision=precision(q.dtype), preferred_element_type=jnp.float32)
    logits = logits * q.shape[-1] ** -0.5
    if trace.length is not None:
        logits = jnp.where(jnp.arange(k.shape[1]) < trace.length[:, None, None], logits, MASKED)
    return jax.nn.softmax(logits)


def head_mean(trace: BlockTrace, pick: Callable[[jax.Array], Any], first: int = 0) -> Any:
    """The mean over heads of pick(p), with p (B, M + N - first, M + N + K) one head's probabilities.

    `first`: leave out the queries before it. `pick` may return any pytree of arrays.
    """
    heads = trace.q.shape[1]
    shapes = jax.eval_shape(lambda: pick(_one_head(trace, jnp.int32(0), first)))
    nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    def add(head: jax.Array, total: Any) -> Any:
        return jax.tree.map(jnp.add, total, pick(_one_head(trace, head, first)))

    return jax.tree.map(lambda x: x / heads, jax.lax.fori_loop(0, heads, add, nothing))


# Observers: pass one as `Flux(..., observe=...)` ------------------------------------------------------------


def mean_attention(trace: BlockTrace) -> jax.Array:
    """The whole map, mean over heads: (B, M + N, M + N + K)."""
    return head_mean(trace, lambda p: p)


def image_to_text(trace: BlockTrace) -> jax.Array:
    """Image queries, text keys, mean over heads: (B, N, M). A column is the picture of a text token."""
    m = trace.txt.shape[1]
    return head_mean(trace, lambda p: p[..., :m], first=m)


def image_to_image(trace: BlockTrace) -> jax.Array:
    """Image queries, image keys, mean over heads: (B, N, N)."""
    m, n = trace.txt.shape[1], trace.img.shape[1]
    return head_mean(trace, lambda p: p[..., m : m + n], first=m)


def image_to_context(trace: BlockTrace) -> jax.Array:
    """Image queries, context keys, mean over heads: (B, N, K)."""
    m, n = trace.txt.shape[1], trace.img.shape[1]
    return head_mean(trace, lambda p: p[..., m + n :], first=m)


# Masks from attention ---------------------------------------------------------------------------------------


def _unit_range(x: jax.Array) -> jax.Array:
    """The last axis stretched to [0, 1]; a constant map becomes 0."""
    low, high = x.min(-1, keepdims=True), x.max(-1, keepdims=True)
    return (x - low) / jnp.maximum(high - low, 1e-12)


def refine(soft: jax.Array, to_image: jax.Array, walks: int) -> jax.Array:
    """Spread a map over similar tokens: soft (..., N), to_image (..., N, N) attention among image tokens -> (..., N).

    Each walk gives every token the mean of the map over the tokens that it attends to.
    """
    soft, to_image = _unit_range(soft), to_image / to_image.sum(-1, keepdims=True)
    for _ in range(walks):
        soft = jnp.einsum("...qk,...k->...q", to_image, soft, precision=precision(soft.dtype))
    return _unit_range(soft)
