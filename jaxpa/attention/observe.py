"""A checkpoint at work: attention maps of a generation or an inversion, and masks that are found in them.

A mask needs no segmentation network. While a picture is inverted with a caption, image tokens that show a word attend
to its text tokens, and to each other. The word's share of all attention to text, averaged over the blocks, is a rough
map; walking along the attention among image tokens smooths it over the object (`maps.refine`).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from jaxpa import sampling
from jaxpa.attention import maps as attention
from jaxpa.attention.maps import Quadrants
from jaxpa.encoders.text import word_spans
from jaxpa.errors import JaxpaError, quoted, real, text, whole
from jaxpa.inversion import ForwardTimes, forward_times
from jaxpa.loops import stepped
from jaxpa.media import images
from jaxpa.media.images import Picture
from jaxpa.model import Model
from jaxpa.request.groups import Sampling
from jaxpa.request.record import check_read
from jaxpa.request.request import Request
from jaxpa.sampling import Velocity
from jaxpa.tokens import Routing
from jaxpa.transformer import BlockTrace, FluxVelocity, Observer


def ask(
    velocity: FluxVelocity, x: jax.Array, t: jax.Array, observe: Observer, routing: Routing | None = None
) -> tuple[jax.Array, Any, Any]:
    """x (B, N, C), t (B,) -> the velocity, and what `observe` saw in the double and in the single blocks.

    The last two have a leading axis of blocks.
    """
    v, (double, single) = velocity(x, t, routing, observe)
    return v, double, single


# Attention maps ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attention:
    """Attention of chosen blocks at chosen steps of one picture.

    maps: (S, L, M + N, M + N) float32, queries before keys, text before image, mean over heads; with heads apart
    (S, L, H, M + N, M + N). steps: which step of the schedule each of the S is; times: its flow time; blocks: which
    block each of the L is, doubles first; text: M; grid: the image's (h, w), N = h * w; picture: what was generated
    (None for an inversion).
    """

    maps: np.ndarray
    steps: tuple[int, ...]
    times: tuple[float, ...]
    blocks: tuple[int, ...]
    text: int
    grid: tuple[int, int]
    picture: Image.Image | None = None

    @property
    def quadrants(self) -> Quadrants:
        """The maps taken apart: text and image queries times text and image keys."""
        return attention.quadrants(self.maps, self.text)  # type: ignore[arg-type]


@jax.jit
def _traces(velocity: FluxVelocity, x: jax.Array, t: jax.Array) -> tuple[BlockTrace, BlockTrace]:
    """What attention compared in double and in single blocks: it grows with the tokens, and maps with their square."""
    return ask(velocity, x, t, lambda trace: trace._replace(txt=None, img=None, query=None, v=None))[1:]


@partial(jax.jit, static_argnames="heads")
def _map(trace: BlockTrace, block: jax.Array, heads: bool) -> jax.Array:
    """The map of one of stacked blocks, of the first row."""
    observe = attention.probabilities if heads else attention.mean_attention
    return observe(jax.tree.map(lambda x: x[block], trace))[0]


def _maps(velocity: FluxVelocity, x: jax.Array, t: jax.Array, blocks: Sequence[int], heads: bool) -> np.ndarray:
    double, single = _traces(velocity, x, t)
    first = len(double.block)  # of the single blocks
    pairs = ((double, k) if k < first else (single, k - first) for k in blocks)
    return np.stack([np.asarray(_map(trace, jnp.int32(k), heads)) for trace, k in pairs])


MANY = 1 << 31  # more than there are of anything


def _chosen(numbers: Sequence[int] | None, count: int, what: str) -> tuple[int, ...]:
    if numbers is not None and not isinstance(numbers, Iterable):
        raise JaxpaError(f"{what}s are chosen by a list of numbers, not {quoted(numbers)}")
    chosen = tuple(range(count)) if numbers is None else tuple(whole(f"a {what}", k, -MANY) for k in numbers)
    if bad := [k for k in chosen if not -count <= k < count]:
        raise JaxpaError(f"there is no {what} {bad[0]}: this run has 0 to {count - 1}")
    if not chosen:
        raise JaxpaError(f"no {what} is chosen: name some of 0 to {count - 1}, or leave it out for all")
    return tuple(k % count for k in chosen)


@dataclass(frozen=True)
class Look:
    """Which steps (0 is the noisiest) and blocks (double first) of a run are recorded; None: all of them.

    heads: each on its own, instead of their mean.
    """

    steps: Sequence[int] | None = None
    blocks: Sequence[int] | None = None
    heads: bool = False


SCHEDULE = ("steps", "sigmas", "shift", "height", "width")  # what an inversion by Euler's steps reads of `Sampling`
DRAWN = (*SCHEDULE, "seed", "guidance", "negative_prompt", "solver", "cache")  # and what a generation does


def capture(model: Model, request: Request, image: Picture | None, look: Look) -> Attention:
    """`Pipeline.attention`: of a generation, or of the inversion of `image`."""
    said, spec = request.sampling, model.spec
    check_read(request, DRAWN if image is None else SCHEDULE, "attention" + " of a picture" * (image is not None))
    for what, count in (("seeds", len(said.seeds())), ("prompts", len(request.prompts))):
        if count > 1:
            raise JaxpaError(f"attention is of one picture, and here are {count} {what}: give one")
    picture = None if image is None else images.read_image(image)
    if picture is None:
        canvas = (said.height or spec.settings.size, said.width or spec.settings.size)
    else:
        canvas = spec.canvas(picture.size, said.height, said.width)
    grid, config = spec.grid(*canvas), spec.config.transformer
    times = said.times(spec, grid)
    wanted = _chosen(look.steps, len(times) - 1, "step")
    kept = _chosen(look.blocks, config.blocks, "block")
    text = model.encode_text(request.prompts)
    x = None if picture is None else model.encode_image(images.to_array(picture, *canvas)[None])
    guidance = spec.guidance(said.guidance)
    seen: FluxVelocity = model.guided(text, grid, guidance if image is None else 1.0, None)  # type: ignore[assignment]
    # A forward of its own reads the maps, on the states of an untouched run, so observing cannot change them.
    if x is None:
        noise = model.noise(np.asarray(said.seeds(), np.uint32), grid)
        negative = model.negative(said.negative_prompt, guidance, 1)
        states = _drawn(model.guided(text, grid, guidance, negative), noise, times, said)
    else:
        states = [x] * len(times)
        for i in reversed(range(1, len(times) - 1)):  # step i undoes the sampler's: asked at times[i]
            states[i - 1] = x = _back(seen, x, times, i)
    maps = [_maps(seen, states[i], jnp.full(1, times[i]), kept, look.heads) for i in wanted]
    del seen  # it holds the network, where the decoder takes its turn
    picture = model.decode(states[-1], *canvas)[0] if picture is None else None
    flow = tuple(float(times[i]) for i in wanted)
    return Attention(np.stack(maps), wanted, flow, kept, text.txt.shape[1], grid, picture)


def _drawn(velocity: Velocity, x: jax.Array, times: np.ndarray, said: Sampling) -> list[jax.Array]:
    """The states of a sampling (1, N, C), from noise to tokens: one at each of the S + 1 times."""
    cache = None if said.cache is None else jnp.float32(said.cache)
    run = sampling.sampling_run(velocity, x, jnp.asarray(times), solver=said.solver, cache=cache)
    results = [progress.result for progress in stepped(run)]
    return [x, *(results if cache is None else (tokens for tokens, _ in results))]


@jax.jit
def _back(velocity: FluxVelocity, x: jax.Array, times: jax.Array, i: jax.Array) -> jax.Array:
    """Undo step i of the sampler: x at times[i + 1] -> x at times[i]."""
    return x + (times[i] - times[i + 1]) * velocity(x, jnp.broadcast_to(times[i], x.shape[:1]))


# Masks ------------------------------------------------------------------------------------------------------

# Tuned on other pictures than the measured ones (examples/measure_masks.py --tune).
STEPS = 1 / 3  # share of the inversion's steps that count, from the picture on: noise blurs the map
WALKS = 4
THRESHOLD = 0.5  # of the map's range


@dataclass(frozen=True)
class FoundMask:
    """soft: (h, w) float32 in [0, 1], the map on the picture's token grid; threshold: where it is cut."""

    soft: np.ndarray
    threshold: float

    @property
    def tokens(self) -> np.ndarray:
        """The tokens of the mask, (N,) bool."""
        return (self.soft > self.threshold).reshape(-1)

    def pixels(self, size: tuple[int, int]) -> np.ndarray:
        """The mask at a picture's size (W, H): the map, enlarged smoothly, above its threshold -> (H, W) bool."""
        smooth = Image.fromarray(self.soft).resize(size, Image.Resampling.BICUBIC)
        return np.asarray(smooth) > self.threshold


@partial(jax.jit, static_argnames="walks")
def _soft(velocity: FluxVelocity, x0: jax.Array, forward: ForwardTimes, word: jax.Array, walks: int) -> jax.Array:
    """x0 (B, N, C), the recorded steps of the inversion, word (B, M) bool -> maps (B, N) in [0, 1]."""
    n, m = x0.shape[1], word.shape[1]

    def observe(trace: BlockTrace) -> tuple[jax.Array, jax.Array]:
        to_text, to_image = attention.head_mean(trace, lambda p: (p[..., :m], p[..., m : m + n]), first=m)
        return jnp.where(word[:, None], to_text, 0.0).sum(-1) / to_text.sum(-1), to_image  # (B, N), (B, N, N)

    def body(carry: tuple[jax.Array, ...], i: jax.Array) -> tuple[tuple[jax.Array, ...], None]:
        y, share, to_image = carry
        v, double, single = ask(velocity, y, jnp.broadcast_to(forward.model[i], y.shape[:1]), observe)
        shares = jnp.concatenate([double[0], single[0]]).mean(0)  # (B, N)
        # Single blocks see what a token shows; double blocks mostly where it is.
        return (y + forward.width[i] * v, share + shares, to_image + single[1].mean(0)), None

    nothing = jnp.zeros(x0.shape[:2]), jnp.zeros((x0.shape[0], n, n))
    (_, share, to_image), _ = jax.lax.scan(body, (x0, *nothing), jnp.arange(forward.model.shape[0]))
    return attention.refine(share, to_image, walks)


def default_caption(word: str) -> str:
    return f"a picture of a {word}"


def soft_masks(
    model: Model,
    pictures: np.ndarray,
    words: Sequence[str],
    captions: Sequence[str],
    *,
    steps: int | None = None,
    times: np.ndarray | None = None,
    share: float = STEPS,
    walks: int = WALKS,
) -> np.ndarray:
    """Maps of where each picture shows its word: pictures (B, H, W, 3) in [-1, 1] -> (B, h, w) float32 in [0, 1].

    Each picture is inverted with its caption, which must contain its word (or words). times: of a schedule of one's
    own. Raises JaxpaError.
    """
    grid = model.grid(*pictures.shape[1:3])
    length = model.settings.max_length
    word = np.zeros((len(words), length), bool)
    for row, name, caption in zip(word, words, captions, strict=True):
        row[model.tokenizers.word_tokens(caption, name, length)] = True
    forward = forward_times(model.times(steps, grid) if times is None else times)
    looked = math.ceil(share * len(forward.model))
    x0 = model.encode_image(pictures)  # first: the velocity holds the transformer, where networks take turns
    velocity = model.guided(model.encode_text(captions), grid, 1.0, None)
    soft = _soft(velocity, x0, jax.tree.map(lambda a: a[:looked], forward), word, walks)  # type: ignore[arg-type]
    return np.asarray(soft).reshape(-1, *grid)


@dataclass(frozen=True)
class Search:
    """What to find in a picture: a word of its caption (None: "a picture of a" word).

    threshold: the share of the map's range above which a token belongs to the mask.
    """

    word: str
    caption: str | None = None
    threshold: float = THRESHOLD

    def __post_init__(self) -> None:
        if not 0 < real("the threshold", self.threshold) < 1:
            raise JaxpaError(f"the threshold {self.threshold} must lie between 0 and 1: {THRESHOLD} is usual")
        if not text("the word", self.word).strip():
            raise JaxpaError("the word is empty: say what the picture shows")
        if self.caption is not None:
            word_spans(text("the caption", self.caption), self.word)


def find_mask(model: Model, image: Picture, search: Search, request: Request) -> FoundMask:
    """`Pipeline.find_mask`."""
    check_read(request, SCHEDULE, "find_mask")
    picture, sampling = images.read_image(image), request.sampling
    canvas = model.spec.canvas(picture.size, sampling.height, sampling.width)
    array, times = images.to_array(picture, *canvas), sampling.times(model.spec, model.spec.grid(*canvas))
    caption = default_caption(search.word) if search.caption is None else search.caption
    (soft,) = soft_masks(model, array[None], [search.word], [caption], times=times)
    return FoundMask(soft, search.threshold)
