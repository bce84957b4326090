"""The drawn world: pure pictures, true masks, captions that tell what they may and nothing else."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from weights.recipe import draw
from weights.recipe.world import (
    BACKGROUNDS,
    COLOURS,
    FAMILIES,
    MAX_WORDS,
    PATTERNS,
    SIZE,
    VARIANTS,
    VOCABULARY,
    Background,
    Scene,
    caption,
    combination_held_out,
    dataset,
    instances,
    is_held_out,
    render,
    render_each,
    render_many,
    sample_scene,
)


def scenes(count: int, **options) -> list[Scene]:
    rng = np.random.default_rng(5)
    return [sample_scene(rng, **options) for _ in range(count)]


def one(family: str, colour: str = "red", pattern: str = "plain", background: str = "room", seed: int = 0) -> Scene:
    return next(instances(family, colour, pattern, background, np.random.default_rng(seed)))


def test_a_scene_is_all_there_is_to_know():
    for scene in scenes(4, two=0.5):
        first, second = render(scene), render(replace(scene))
        np.testing.assert_array_equal(first[0], second[0])
        np.testing.assert_array_equal(first[1], second[1])
        assert (first[0].shape, first[0].dtype) == ((SIZE, SIZE, 3), np.uint8)
        assert (first[1].shape, first[1].dtype) == ((SIZE, SIZE), bool)


def test_a_picture_does_not_depend_on_its_batch():
    whole, tail = render_many(3, 0, 12), render_many(3, 8, 4)
    np.testing.assert_array_equal(whole.images[8:], tail.images)
    np.testing.assert_array_equal(whole.masks[8:], tail.masks)
    assert whole.captions[8:] == tail.captions
    for name, values in whole.labels.items():
        np.testing.assert_array_equal(values[8:], tail.labels[name])
    chunked = list(dataset(3, 12, chunk=5))
    assert [len(b.images) for b in chunked] == [5, 5, 2]
    np.testing.assert_array_equal(np.concatenate([b.images for b in chunked]), whole.images)
    assert not np.array_equal(render_many(4, 0, 1).images, whole.images[:1])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_mask_is_the_subject(family):
    rng = np.random.default_rng(1)
    for scene in itertools.islice(instances(family, "yellow", "dotted", "street", rng), 3):
        image, mask = render(scene)
        rows, columns = np.nonzero(mask)
        spans = np.ptp(rows) + 1, np.ptp(columns) + 1
        # The outline reaches beyond the span by its half width on either side.
        assert abs(max(spans) / SIZE - scene.subjects[0].span) < 0.05
        assert 0.05 < mask.mean() < 0.60
        assert mask.sum() == mask[1:-1, 1:-1].sum(), "the subject leaves the canvas"
        # Nothing outside the mask but the shadow and the outline's soft rim changes with the colour.
        other, same = render(replace(scene, subjects=(replace(scene.subjects[0], colour="blue"),)))
        np.testing.assert_array_equal(mask, same)
        changed = np.abs(image.astype(int) - other).max(-1) > 40
        assert changed.any()
        assert not (changed & ~mask).any()


def test_two_subjects_stand_side_by_side():
    for scene in scenes(12, two=1.0):
        _, masks = render_each(scene)
        assert masks.shape == (2, SIZE, SIZE)
        left, right = (np.nonzero(m)[1].mean() for m in masks)
        assert left < right
        assert (masks[0] & masks[1]).sum() < 0.02 * masks.sum()
        np.testing.assert_array_equal(render(scene)[1], masks.any(0))
        text = caption(scene)
        assert " and ".join(f"a {s.colour} {s.pattern} {s.family}" for s in scene.subjects) in text


def test_captions_keep_to_the_grammar_and_the_attributes():
    seen = set()
    for scene, variant in itertools.product(scenes(60, two=0.3, held_out=None), range(VARIANTS)):
        words = caption(scene, variant).split()
        seen |= set(words)
        assert len(words) <= MAX_WORDS
        assert set(words) <= VOCABULARY
        assert [w for w in words if w in FAMILIES] == [s.family for s in scene.subjects]
        assert [w for w in words if w in COLOURS] == [s.colour for s in scene.subjects]
        said = [w for w in words if w in PATTERNS]
        assert [p for p in said if p != "plain"] == [s.pattern for s in scene.subjects if s.pattern != "plain"]
        assert BACKGROUNDS[scene.background.kind] in " ".join(words)
    assert seen == VOCABULARY


def test_a_caption_hides_identity():
    assert not VOCABULARY & set(draw.SECOND)
    rng = np.random.default_rng(2)
    a, b = itertools.islice(instances("mug", "green", "striped", "beach", rng), 2)
    assert caption(a) == caption(b) == "a green striped mug on a beach"
    mine = a.subjects[0]
    changes = {
        "second": "navy" if mine.second != "navy" else "pink",
        "angle": 70 if mine.angle > 90 else 110,
        "phase": (mine.phase[0] + 0.5, mine.phase[1]),
        "period": 0.24 if mine.period > 0.265 else 0.29,
        "shape": (1 - mine.shape[0], 1 - mine.shape[1]),
        "flip": not mine.flip,
        "tilt": mine.tilt + 6,
    }
    image, _ = render(a)
    for name, value in changes.items():
        scene = replace(a, subjects=(replace(mine, **{name: value}),))
        assert caption(scene) == caption(a)
        assert (np.abs(image.astype(int) - render(scene)[0]).max(-1) > 40).sum() > 20, name


def test_the_same_subject_goes_elsewhere():
    scene = one("cat", "purple", "striped", "room")
    away = replace(scene, background=Background("snow", 7))
    image, mask = render(scene)
    other, same = render(away)
    np.testing.assert_array_equal(mask, same)
    covered = draw.draw_subject(scene.subjects[0], SIZE)[1] == 1
    np.testing.assert_array_equal(image[covered], other[covered])
    assert caption(away).endswith("in the snow")


def test_another_size_is_the_same_picture():
    scene = one("boat", "red", "plain", "meadow")
    small, large = render(scene, 48), render(scene, 96)
    halved = large[0].reshape(48, 2, 48, 2, 3).mean((1, 3))
    assert np.abs(small[0] - halved).mean() < 8
    assert abs(small[1].mean() - large[1].mean()) < 0.02


def test_the_held_out_split_is_stable():
    combinations = itertools.product(FAMILIES, COLOURS, BACKGROUNDS)
    held = {c for c in combinations if combination_held_out(*c)}
    assert len(held) == 20
    assert {("mug", "white", "street"), ("cat", "blue", "snow")} < held
    assert not any(is_held_out(s) for s in scenes(200, two=0.3))
    assert all(is_held_out(s) for s in scenes(5, held_out=True))


def test_every_attribute_is_drawn():
    labels = np.array(
        [(s.subjects[0].family, s.subjects[0].colour, s.subjects[0].pattern, s.background.kind) for s in scenes(400)]
    )
    for column, options in enumerate((FAMILIES, COLOURS, PATTERNS, tuple(BACKGROUNDS))):
        names, counts = np.unique(labels[:, column], return_counts=True)
        assert set(names) == set(options)
        assert counts.min() > 0.5 * 400 / len(options)
