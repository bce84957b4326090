"""Attention: equal to an explicit softmax, taken apart, seen without being changed, and masks that come of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

import jaxpa
from jaxpa.attention import maps as attention
from jaxpa.attention.observe import FoundMask, _traces, soft_masks
from jaxpa.config import TransformerConfig
from jaxpa.tokens import Routing, grid_positions
from jaxpa.transformer import BlockTrace, Flux
from weights.recipe.world import FAMILIES, render_many

B, M, H, W, K = 2, 5, 3, 4, 6
N = H * W
CONFIG = TransformerConfig(in_channels=8, num_layers=2, num_single_layers=3, num_attention_heads=2,
                           attention_head_dim=8, joint_attention_dim=12, pooled_projection_dim=8,
                           axes_dims_rope=(4, 2, 2), guidance_embeds=False)  # fmt: skip


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.fixture(scope="module")
def flux():
    from flax import nnx

    return jax.jit(lambda: Flux(CONFIG, rngs=nnx.Rngs(0)))()


@pytest.fixture(scope="module")
def routing():
    """The other row's tokens as context, the last two of them padding."""
    context = jnp.stack([N + jnp.arange(K), jnp.arange(K)])
    return Routing(context=context, positions=jnp.zeros((B, K, 3)), length=jnp.full(B, N + K - 2))


@pytest.fixture(scope="module")
def traces(flux, routing):
    """Per case: the velocity, all traces and what the observers make of them, in one forward each."""
    args = normal(1, B, N, 8), normal(2, B, M, 12), normal(3, B, 8), jnp.array([0.3, 0.8]), None, grid_positions(H, W)

    def see(trace: BlockTrace):
        observers = (attention.probabilities, attention.mean_attention, attention.image_to_text,
                     attention.image_to_image, attention.image_to_context)  # fmt: skip
        return trace, [observer(trace) for observer in observers]

    def both(model, routing):
        return model(*args, routing), model(*args, routing, observe=see)

    return {name: jax.jit(both)(flux, ways) for name, ways in (("plain", None), ("context", routing))}


def blocks(seen):
    """Double and single blocks in one row."""
    return jax.tree.map(lambda a, b: np.concatenate([a, b]), *seen)


@pytest.mark.parametrize("case", ["plain", "context"])
def test_looking_changes_nothing(traces, case):
    alone, (observed, _) = traces[case]
    assert np.array_equal(alone, observed)


@pytest.mark.parametrize("case", ["plain", "context"])
def test_probabilities_are_the_softmax(traces, case):
    trace, (p, mean, *parts) = blocks(traces[case][1][1])
    logits = np.einsum("lbhqd,lbhkd->lbhqk", trace.q.astype(np.float64), trace.k.astype(np.float64)) / np.sqrt(8)
    if case == "context":
        logits[..., -2:] = -np.inf
    truth = softmax(logits, -1)  # (L, B, H, M + N, M + N + K)
    keys = M + N + (K if case == "context" else 0)
    assert p.shape == (5, B, 2, M + N, keys)
    # float32 logits of order one: a few units in the last place.
    np.testing.assert_allclose(p, truth, atol=1e-6)
    np.testing.assert_allclose(p.sum(-1), 1, atol=1e-6)
    np.testing.assert_allclose(mean, truth.mean(2), atol=1e-6)
    apart = attention.quadrants(jnp.asarray(mean), M)
    shapes = [(M, M), (M, N), (M, keys - M - N), (N, M), (N, N), (N, keys - M - N)]
    assert [quadrant.shape[-2:] for quadrant in apart] == shapes
    for part, quadrant in zip(parts, apart[3:], strict=True):
        np.testing.assert_allclose(part, quadrant, atol=1e-7)
    rebuilt = np.block([[*map(np.asarray, apart[:3])], [*map(np.asarray, apart[3:])]])
    assert np.array_equal(rebuilt, mean)


def test_padding_of_the_context_is_not_seen(traces):
    p = blocks(traces["context"][1][1])[1][0]
    assert p[..., M + N : -2].min() > 0
    assert p[..., -2:].max() == 0


def test_half_precision_is_compared_in_float32():
    streams = normal(0, 1, M, 4), normal(0, 1, N, 4)
    trace = BlockTrace(0, *streams, *(normal(k, 1, 2, M + N, 4) for k in (1, 1, 2, 3)), None)  # type: ignore[arg-type]
    half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), trace)
    p = attention.probabilities(half)
    assert p.dtype == jnp.float32
    np.testing.assert_allclose(p.sum(-1), 1, atol=1e-6)


def test_refine_walks():
    """Tokens that attend to each other share what they have; a constant map stays a number."""
    groups = np.kron(np.eye(2, dtype=np.float32), np.full((3, 3), 2, np.float32))
    soft = attention.refine(jnp.array([1.0, 0, 0, 0.2, 0, 0]), jnp.asarray(groups), 1)
    np.testing.assert_allclose(soft, [1, 1, 1, 0, 0, 0], atol=1e-6)
    assert np.array_equal(attention.refine(jnp.full(6, 3.0), jnp.asarray(groups), 2), np.zeros(6))


# On the embedded checkpoint ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipe():
    return jaxpa.load("mini")


def test_attention_of_a_generation(pipe):
    seen = pipe.attention("a red car on a beach", at=[0, -1], blocks=[0, 5], seed=3, steps=3)
    assert seen.maps.shape == (2, 2, 176, 176)
    assert (seen.steps, seen.blocks, seen.text, seen.grid) == ((0, 2), (0, 5), 32, (12, 12))
    assert seen.times[0] == 1
    np.testing.assert_allclose(seen.maps.sum(-1), 1, atol=1e-5)
    assert seen.quadrants.image_text.shape == (2, 2, 144, 32)
    assert np.array_equal(seen.picture, pipe.generate("a red car on a beach", seed=3, steps=3)[0])


def test_maps_are_made_of_chosen_blocks_alone(pipe):
    """What a forward leaves behind for every block grows with its tokens, not with their square."""
    network, text = pipe.guided(pipe.encode_text(["a cat"]), (24, 24), 1.0, None), 32
    seen = jax.eval_shape(_traces, network, jnp.zeros((1, 576, 32)), jnp.ones(1))
    assert not [leaf.shape for leaf in jax.tree.leaves(seen) if leaf.shape.count(576 + text) > 1]
    run = {"prompt": "a red car on a beach", "at": [1], "seed": 3, "steps": 2}
    every = pipe.attention(**run).maps  # (1, L, S, S)
    assert np.array_equal(pipe.attention(**run, blocks=[4, 0]).maps, every[:, [4, 0]])
    heads = pipe.attention(**run, blocks=[4], heads=True).maps
    np.testing.assert_allclose(heads[:, 0].mean(1), every[:, 4], atol=1e-6)
    assert len({every[0, k].tobytes() for k in range(6)}) == 6


@pytest.mark.parametrize("words", [{"solver": "heun"}, {"cache": 0.8}])
def test_attention_of_another_way_to_sample(pipe, words):
    """The picture is the one that `generate` draws with the same words, and not the one without them."""
    usual = pipe.generate("a red car on a beach", seed=3, steps=3)[0]
    own = pipe.generate("a red car on a beach", seed=3, steps=3, **words)[0]
    assert not np.array_equal(own, usual)
    seen = pipe.attention("a red car on a beach", at=[-1], blocks=[0], seed=3, steps=3, **words)
    assert np.array_equal(seen.picture, own)


@pytest.mark.parametrize(("call", "words", "said"), [
    ("attention", {"num_images": 2}, "num_images would have no effect: attention does"),
    ("attention", {"seed": [1, 2]}, "here are 2 seeds"),
    ("attention", {"tau": 0.5}, "tau would have no effect"),
    ("attention", {"image": "car.png", "solver": "heun"}, "solver would have no effect: attention of a picture"),
    ("attention", {"image": "car.png", "guidance": 2}, "guidance would have no effect"),
    ("find_mask", {"seed": 3}, "seed would have no effect: find_mask"),
    ("find_mask", {"stepz": 3}, "no setting 'stepz': did you mean 'steps'"),
    ("reconstruct", {"guidance": 3}, "guidance would have no effect: reconstruct"),
    ("reconstruct", {"cache": 0.1}, "cache would have no effect: reconstruct"),
])  # fmt: skip
def test_keywords_that_are_not_read(pipe, call, words, said):
    first = {"attention": ["a car"], "find_mask": ["car.png", "car"], "reconstruct": ["car.png"]}[call]
    with pytest.raises(jaxpa.JaxpaError, match=said):
        getattr(pipe, call)(*first, **words)


def test_attention_of_an_inversion(pipe, pictures):
    heads = pipe.attention("a yellow car", pictures / "car.png", at=[1, 2], blocks=[1], heads=True, steps=3)
    mean = pipe.attention("a yellow car", pictures / "car.png", at=[1, 2], blocks=[1], steps=3)
    assert heads.maps.shape == (2, 1, 6, 176, 176)
    assert heads.picture is None
    np.testing.assert_allclose(heads.maps.mean(2), mean.maps, atol=1e-6)


@pytest.mark.parametrize(("arguments", "said"), [({"at": [4]}, "no step 4"), ({"blocks": [-7]}, "no block -7"),
                                                 ({"at": []}, "no step is chosen")])  # fmt: skip
def test_what_is_not_there(pipe, arguments, said):
    with pytest.raises(jaxpa.JaxpaError, match=said):
        pipe.attention("a car", steps=4, **arguments)


def test_found_masks_beat_everything(pipe):
    """Six drawings that training never showed: far above the all-ones mask, whatever the checkpoint's training."""
    batch = render_many(77, 0, 6, two=0.0, held_out=True)
    words = [FAMILIES[k] for k in batch.labels["family"]]
    soft = soft_masks(pipe, batch.images.astype(np.float32) / 127.5 - 1, words, [f"a picture of a {w}" for w in words])
    assert soft.shape == (6, 12, 12)
    found = np.stack([FoundMask(each, 0.5).pixels((96, 96)) for each in soft])
    overlap = (found & batch.masks).sum((1, 2)) / (found | batch.masks).sum((1, 2))
    assert overlap.mean() > 1.5 * batch.masks.mean()


def test_a_subject_by_its_word(pipe, pictures):
    """A subject without a mask gets the found one; a picture's own transparency, or a mask, comes first."""
    subject = jaxpa.Subject(pictures / "car.png", word="car")
    masked = jaxpa.Subject(pictures / "car.png", pictures / "car-mask.png", word="nonsense")
    found, true = (pipe.references([each]).masks[0] for each in (subject, masked))
    assert (found & true).sum() > 0.5 * (found | true).sum()
    read = pipe.with_mask(masked)
    assert pipe.with_mask(read) is read
    assert read.name.endswith("car.png")
    with pytest.raises(jaxpa.JaxpaError, match=r"--mask.*--word"):
        pipe.references([jaxpa.Subject(pictures / "car.png")])


@pytest.mark.parametrize(("arguments", "said"), [
    ({"word": "mug", "caption": "a yellow car"}, "'mug' is not in '"),
    ({"word": " "}, "word is empty"),
    ({"word": "car", "threshold": 1.0}, "threshold 1.0"),
])  # fmt: skip
def test_what_cannot_be_found(pipe, pictures, arguments, said):
    with pytest.raises(jaxpa.JaxpaError, match=said):
        pipe.find_mask(pictures / "car.png", **arguments)
