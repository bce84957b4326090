"""Compositions: canvases of many shapes, subjects anywhere or none, looser captions, true whereabouts."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxpa.config import T5Config
from jaxpa.encoders.t5 import T5Encoder
from weights.recipe.compositions import (
    CANVASES,
    CELL,
    EMPTY,
    LEAST,
    WORDS,
    Composition,
    compose,
    dataset,
    draw,
    numbered,
    whereabouts,
)
from weights.recipe.export import with_rows
from weights.recipe.latents import Tokenizers
from weights.recipe.tokenizers import capital_ids, make_tokenizers
from weights.recipe.world import BACKGROUNDS, SIZE, Scene, is_held_out, render, render_each

KNOWN = {word for phrases in WORDS.values() for phrase in phrases for word in phrase.split()}


@pytest.fixture(scope="module")
def many() -> list[Composition]:
    rng = np.random.default_rng(3)
    sizes = [canvas[:2] for canvas in CANVASES]
    return [compose(rng, sizes[i % len(sizes)]) for i in range(600)]


def test_the_canvases():
    assert sum(share for _, _, share in CANVASES) == pytest.approx(1)
    assert all(side % (2 * CELL) in (0, CELL) for height, width, _ in CANVASES for side in (height, width))
    assert len({height * width for height, width, _ in CANVASES}) == 7  # so many programs are compiled


def test_what_is_composed(many):
    counts = np.bincount([len(each.scene.subjects) for each in many]) / len(many)
    np.testing.assert_allclose(counts, (0.07, 0.63, 0.30), atol=0.06)
    assert not any(is_held_out(each.scene) for each in many)
    small = cut = high = 0
    for each in many:
        _, masks = render_each(each.scene, each.size, each.unit)
        for mask, subject in zip(masks, each.scene.subjects, strict=True):
            assert mask.any(), each
            assert subject.span * each.unit > (LEAST if len(masks) == 1 else 0.7 * LEAST) - 1
            small += len(masks) == 1 and subject.span < 0.5
            cut += mask[[0, -1]].any() or mask[:, [0, -1]].any()
            high += subject.bottom < 0.6
    assert small > 60
    assert cut > 25
    assert high > 30


def test_two_subjects_keep_to_their_halves(many):
    for each in (one for one in many if len(one.scene.subjects) == 2):
        left, right = render_each(each.scene, each.size, each.unit)[1]
        middle = each.size[1] // 2
        assert left[:, middle:].sum() < 0.08 * left.sum()
        assert right[:, :middle].sum() < 0.08 * right.sum()


def test_a_larger_canvas_shows_more_at_the_same_scale():
    """The subject keeps its pixels, but for those of its rim, where rounding may decide."""
    scene = next(c.scene for i in range(50) if len((c := numbered(0, (96, 96), i)).scene.subjects) == 1)
    subject = replace(scene.subjects[0], x=0.5, bottom=0.75, span=0.5)
    _, own = render(Scene((subject,), scene.background), 96)
    _, large = render(Scene((subject,), scene.background), (128, 192), 96)
    inside = large[96 - 72 :, 96 - 48 : 96 + 48][:96]
    assert 0 < inside.sum() == large.sum()
    assert (own ^ inside).sum() < 0.03 * own.sum()


def test_captions(many):
    strange = 0
    for each in many:
        words = each.caption.split()
        strange += (unknown := len([word for word in words if word not in KNOWN]))
        assert unknown <= 1
        where = BACKGROUNDS[each.scene.background.kind]
        for subject in each.scene.subjects:
            assert subject.family in words
            assert subject.pattern == "plain" or subject.pattern in words
        if not each.scene.subjects:
            nothing = {text.format(place="*", where=where) for text in EMPTY}
            assert each.caption in nothing or where.split()[-1] in words
        assert len(words) < 20
    assert 10 < strange < 60
    said = {word for each in many for word in each.caption.split()}
    assert said >= {"the", "photo", "image", "nothing", "a", "plain"}


def test_whereabouts():
    """Of a subject whose mask is a square: the cover, and coordinates that grow from -1 to 1 over it."""
    scene = next(c.scene for i in range(50) if len((c := numbered(0, (64, 64), i)).scene.subjects) == 2)
    first, second = scene.subjects
    scene = replace(scene, subjects=(
        replace(first, x=0.25, bottom=0.75, span=0.5), replace(second, x=0.75, bottom=1.0, span=0.5)
    ))  # fmt: skip
    masks = np.zeros((2, 64, 64), bool)
    masks[0, 16:48, :32] = masks[1, 32:64, 32:60] = True
    where = whereabouts(scene, masks, 64).reshape(8, 8, 4)
    cover, across, down, order = np.moveaxis(where, -1, 0)
    np.testing.assert_array_equal(cover[2:6, :4], 1)
    np.testing.assert_array_equal(cover[4:, 7], 0.5)
    assert cover.sum() == masks.sum() / CELL**2
    np.testing.assert_allclose(across[2], [-0.75, -0.25, 0.25, 0.75, 0, 0, 0, 0], atol=1e-3)
    np.testing.assert_allclose(down[:, 0], [0, 0, -0.75, -0.25, 0.25, 0.75, 0, 0], atol=1e-3)
    np.testing.assert_allclose(down[4:, 7], np.array([-0.75, -0.25, 0.25, 0.75]) / 2, atol=1e-3)
    assert set(np.unique(order[:, :4])) == {0, 1}
    assert set(np.unique(order[:, 4:])) == {-1, -0.5, 0}


def test_a_composition_does_not_depend_on_the_others():
    images, where, captions = next(dataset(5, (64, 96), 0, 5, workers=1))
    later = list(dataset(5, (64, 96), 3, 5, chunk=1, workers=1))
    np.testing.assert_array_equal(images[3:], np.concatenate([each[0] for each in later]))
    np.testing.assert_array_equal(where[3:], np.concatenate([each[1] for each in later]))
    assert captions[3:] == [text for each in later for text in each[2]]
    assert (images.shape, where.shape) == ((5, 64, 96, 3), (5, 96, 4))
    np.testing.assert_array_equal(draw(numbered(5, (64, 96), 4)).image, images[4])


def test_nothing_is_left_to_draw():
    """As when a run is taken up after its pictures are drawn."""
    assert list(dataset(1, (64, 64), 4, 4)) == []


def test_upper_case_and_unknown_words(tmp_path):
    """Case does not matter; a word that T5 does not know is one token, whatever its length."""
    make_tokenizers(tmp_path, 32, captions=800)
    tokens = Tokenizers(tmp_path)
    (t5, clip), (other_t5, other_clip) = (
        map(jnp.asarray, tokens([text])) for text in ("the red cat in a room", "The Red CAT in A room")
    )
    np.testing.assert_array_equal(clip, other_clip)
    upper, lower = capital_ids(tokens.t5.get_vocab())
    assert (t5 != other_t5).sum() == 4
    same = dict(zip(upper, lower, strict=True))
    assert [same.get(int(i), int(i)) for i in other_t5[0]] == t5[0].tolist()
    encoder = T5Encoder(
        T5Config(vocab_size=len(tokens.t5), d_model=12, d_kv=4, d_ff=20, num_layers=1, num_heads=2), rngs=nnx.Rngs(0)
    )
    assert not np.array_equal(encoder(t5), encoder(other_t5))
    np.testing.assert_array_equal(with_rows(encoder, upper, lower)(other_t5), encoder(t5))

    fluffy, plain = tokens(["a fluffy red cat", "a red cat"])[0]
    assert fluffy[1] == tokens.t5.unk_token_id
    np.testing.assert_array_equal(np.delete(fluffy, 1), plain[:-1])
    assert all(len(ids) == 1 for ids in tokens.t5(sorted(KNOWN), add_special_tokens=False).input_ids)
    assert all(len(ids) == 1 for ids in tokens.clip(sorted(KNOWN), add_special_tokens=False).input_ids)
    assert tokens.t5.model_max_length == 32
    assert SIZE == 96
