"""Masks of pixels against closed forms, brute force and `jaxpa.tokens`."""

import time

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_images import disc, message

from jaxpa import tokens
from jaxpa.box import Box
from jaxpa.errors import JaxpaError
from jaxpa.media import masks

RNG = np.random.default_rng(0)
quick = settings(max_examples=40, deadline=None)
sizes = st.integers(1, 40)


# --- masks from shapes


@quick
@given(st.lists(st.floats(0, 1), min_size=4, max_size=4, unique=True), sizes, sizes)
def test_box_mask_has_the_box_s_area_and_middle(corners: list[float], width: int, height: int) -> None:
    left, right = sorted(corners[:2])
    top, bottom = sorted(corners[2:])
    mask = masks.box_mask((left, top, right, bottom), (width, height))
    assert mask.shape == (height, width)
    assert mask.sum() == pytest.approx((right - left) * (bottom - top) * width * height, abs=1e-3)
    # A polygon's rows are cut along SCANLINES lines, so that its top and bottom are off by half a line at most.
    polygon = masks.polygon_mask([(left, top), (right, top), (right, bottom), (left, bottom)], (width, height))
    np.testing.assert_allclose(polygon, mask, atol=1.01 / masks.SCANLINES)


def test_polygon_mask() -> None:
    triangle = [(0.1, 0.2), (0.9, 0.35), (0.3, 0.95)]
    mask = masks.polygon_mask(triangle, (200, 100))
    (ax, ay), (bx, by), (cx, cy) = triangle
    area = abs((bx - ax) * (cy - ay) - (cx - ax) * (by - ay)) / 2 * 200 * 100
    assert mask.sum() == pytest.approx(area, rel=1e-4)
    y, x = (np.mgrid[:100, :200] + 0.5) / np.array([100, 200])[:, None, None]
    # A pixel more than its own diagonal inside or outside all edges is 1 or 0.
    edges = [((x - px) * (qy - py) - (y - py) * (qx - px)) / np.hypot(qx - px, qy - py)
             for (px, py), (qx, qy) in zip(triangle, triangle[1:] + triangle[:1], strict=True)]  # fmt: skip
    far = np.max(edges, axis=0)
    assert (mask[far < -0.01] == 1).all()
    assert (mask[far > 0.01] == 0).all()
    star = masks.polygon_mask([(0.5, 0), (0.8, 1), (0, 0.4), (1, 0.4), (0.2, 1)], (101, 101))
    assert star[55, 50] == 0  # even-odd: its heart is outside
    assert star[20, 50] == 1


def even_odd(points: np.ndarray, width: int, height: int) -> np.ndarray:
    """A polygon by casting a ray from 8 x 8 points of every pixel: (H, W)."""
    x, y = (np.arange(8 * width) + 0.5) / 8, (np.arange(8 * height) + 0.5) / 8
    inside = np.zeros((len(y), len(x)), bool)
    for (ax, ay), (bx, by) in zip(points, np.roll(points, -1, 0), strict=True):
        crosses = (ay <= y) != (by <= y)
        at = ax + (y - ay) * (bx - ax) / (by - ay if by != ay else 1)
        inside ^= crosses[:, None] & (at[:, None] < x)
    return inside.reshape(height, 8, width, 8).mean((1, 3))


@quick
@given(st.integers(0, 2**31), st.integers(3, 12), st.integers(1, 20), st.integers(1, 20), st.integers(1, 500))
def test_polygons_that_cross_themselves(seed: int, corners: int, width: int, height: int, chunk: int) -> None:
    points = np.random.default_rng(seed).uniform(size=(corners, 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masks, "CHUNK", chunk)  # also in chunks of a row or a few
        mask = masks.polygon_mask([tuple(point) for point in points], (width, height))
    want = even_odd(points * [width, height], width, height)
    # Each edge is off by less than a sample of the 8 x 8 along the row, and by half a line of either grid at its ends.
    assert np.abs(mask - want).max() < corners * (1 / 8 + 1 / 16)
    assert np.abs(mask - want).mean() < 0.02 * corners


def test_a_polygon_of_many_points_is_quick() -> None:
    turn = np.linspace(0, 2 * np.pi, 20_000, endpoint=False)
    points = 0.5 + 0.4 * np.stack([np.cos(turn), np.sin(turn)], 1)
    start = time.process_time()
    mask = masks.polygon_mask([tuple(point) for point in points], (300, 300))
    assert time.process_time() - start < 2  # where every row looked at every edge: 2.4 s on an idle core, or 47 s
    assert mask.mean() == pytest.approx(np.pi * 0.16, rel=1e-4)


def test_bad_shapes() -> None:
    for box, reason in {
        (0, 0, 1): "needs four numbers",
        (0.5, 0, 0.5, 1): r"is empty: .*left < right",
        (0, 0, 300, 200): "leaves the picture: give fractions",
        (0, 0, 1, float("nan")): "leaves the picture",
    }.items():
        with pytest.raises(JaxpaError, match=reason):
            masks.box_mask(box, (4, 4))
    with pytest.raises(JaxpaError, match="needs three points"):
        masks.polygon_mask([(0, 0), (1, 1)], (4, 4))
    with pytest.raises(JaxpaError, match="leaves the picture"):
        masks.polygon_mask([(0, 0), (1, 1), (0, -0.1)], (4, 4))


def far_from(region: np.ndarray) -> np.ndarray:
    """The distance to the nearest pixel of a region, pixel by pixel."""
    here, there = np.argwhere(np.ones_like(region)), np.argwhere(region)
    return np.linalg.norm(here[:, None] - there, axis=-1).min(1).reshape(region.shape)


@quick
@given(st.integers(0, 2**31), st.floats(0, 6), sizes, sizes)
def test_grow_shrink_feather(seed: int, pixels: float, height: int, width: int) -> None:
    region = np.random.default_rng(seed).uniform(size=(height // 3 + 1, width // 3 + 1)) < 0.3
    region[0, 0] = True
    mask = region.astype(np.float32)
    np.testing.assert_array_equal(masks.grow(mask, pixels), far_from(region) <= pixels)
    np.testing.assert_array_equal(masks.shrink(mask, pixels), 1 - masks.grow(1 - mask, pixels))
    soft = masks.feather(mask, pixels)
    np.testing.assert_array_equal(soft > 0.5, region)
    assert (soft[far_from(region) >= pixels + 0.5] == 0).all()
    assert (soft[masks.shrink(mask, pixels + 0.5) > 0] == 1).all()
    np.testing.assert_allclose(soft + masks.feather(1 - mask, pixels), 1, atol=1e-6)


@quick
@given(st.integers(0, 2**31), st.floats(0, 30), st.integers(1, 60), st.integers(1, 12), st.integers(1, 99))
def test_strips_are_the_whole(seed: int, pixels: float, height: int, width: int, strip: int) -> None:
    """The distances of a picture that is worked on strip by strip are those of the whole one."""
    mask = (np.random.default_rng(seed).uniform(size=(height, width)) < 0.05).astype(np.float32)
    for change in (masks.grow, masks.shrink, masks.feather):
        whole = change(mask, pixels)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(masks, "STRIP", strip)
            np.testing.assert_array_equal(change(mask, pixels), whole)


def test_masks_of_one_value_and_bad_widths() -> None:
    full, empty = np.ones((3, 4), np.float32), np.zeros((3, 4), np.float32)
    for change in (masks.grow, masks.shrink, masks.feather):
        np.testing.assert_array_equal(change(full, 2), full)
        np.testing.assert_array_equal(change(empty, 2), empty)
        with pytest.raises(JaxpaError, match=f"cannot {change.__name__} a mask by -1 pixels: give 0 or more"):
            change(full, -1)


def test_feather_is_a_ramp() -> None:
    mask = np.repeat([[0, 0, 0, 0, 1, 1, 1, 1]], 3, 0)
    np.testing.assert_allclose(masks.feather(mask, 2)[1], [0, 0, 1 / 8, 3 / 8, 5 / 8, 7 / 8, 1, 1], atol=1e-6)


# --- boxes


@quick
@given(st.tuples(sizes, sizes), sizes, sizes, st.integers(0, 2**31))
def test_crop_box(size: tuple[int, int], height: int, width: int, seed: int) -> None:
    box = masks.crop_box(size, height, width)
    w, h = box[2] - box[0], box[3] - box[1]
    assert 0 <= box[0] < box[2] <= size[0]
    assert 0 <= box[1] < box[3] <= size[1]
    assert w == size[0] or h == size[1]  # none larger fits
    assert abs(w - h * width / height) <= 0.5 or abs(h - w * height / width) <= 0.5 or 1 in (w, h)
    assert abs(box[0] - (size[0] - box[2])) <= 1
    assert abs(box[1] - (size[1] - box[3])) <= 1

    rng = np.random.default_rng(seed)
    focus = np.zeros(size[::-1])
    for _ in range(2):  # apart, so that its middle may be where nothing is
        top, left = rng.integers(size[1]), rng.integers(size[0])
        focus[top : top + rng.integers(1, 9), left : left + rng.integers(1, 9)] = 1
    moved = masks.crop_box(size, height, width, focus)
    assert (moved[2] - moved[0], moved[3] - moved[1]) == (w, h)
    shown = [focus[y : y + h, x : x + w].sum() for y in range(size[1] - h + 1) for x in range(size[0] - w + 1)]
    assert focus[moved[1] : moved[3], moved[0] : moved[2]].sum() == max(shown)


def test_crop_box_is_centred_on_its_focus() -> None:
    focus = np.zeros((50, 100))  # at half the picture's resolution
    focus[20:30, 60:70] = 1
    assert masks.crop_box((200, 100), 64, 64, focus) == (80, 0, 180, 100)
    assert masks.crop_box((200, 100), 64, 64, np.roll(focus, 30, 1)) == (100, 0, 200, 100)
    assert masks.crop_box((200, 100), 64, 64, focus * 0) == masks.crop_box((200, 100), 64, 64) == (50, 0, 150, 100)
    assert masks.crop_box((100, 200), 32, 64) == (0, 75, 100, 125)


# --- resolutions and tokens


def cover_by_hand(mask: np.ndarray, h: int, w: int) -> np.ndarray:
    """Area shares by making both grids parts of one finer grid."""
    fine = mask.repeat(h, 0).repeat(w, 1)
    return fine.reshape(h, mask.shape[0], w, mask.shape[1]).mean((1, 3))


@quick
@given(st.integers(0, 2**31), sizes, sizes, st.integers(1, 12), st.integers(1, 12), st.sampled_from([0.25, 0.5, 1.0]))
def test_token_mask(seed: int, height: int, width: int, h: int, w: int, threshold: float) -> None:
    mask = (np.random.default_rng(seed).uniform(size=(height, width)) < 0.6).astype(np.float64)
    cover = cover_by_hand(mask, h, w)
    if height > h or width > w:
        np.testing.assert_allclose(masks.resize_mask(mask, h, w), cover, atol=1e-6)
    if not (cover >= threshold - 1e-9).any():
        with pytest.raises(JaxpaError, match=r"covers at most|is empty in the part"):
            masks.token_mask(mask, h, w, threshold)
        return
    np.testing.assert_array_equal(masks.token_mask(mask, h, w, threshold), (cover >= threshold - 1e-9).ravel())
    np.testing.assert_allclose(masks.token_shares(mask, h, w), cover.ravel(), atol=1e-6)


def test_token_mask_agrees_with_tokens_coverage() -> None:
    mask = RNG.uniform(size=(60, 84)).astype(np.float32)
    ours = masks.resize_mask(mask, 12, 7).ravel()
    np.testing.assert_allclose(ours, tokens.coverage(jnp.asarray(mask), 12, 7), atol=1e-6)
    whole = (mask > 0.5).astype(np.float32)  # every other token is a tie or near one
    for threshold in (0.4, 0.5, 0.6):
        chosen = np.asarray(tokens.coverage(jnp.asarray(whole), 12, 7)) >= np.float32(threshold)
        np.testing.assert_array_equal(masks.token_mask(whole, 12, 7, threshold), chosen)


def test_token_mask_does_not_care_for_resolution_or_type() -> None:
    small = RNG.uniform(size=(9, 12)) < 0.5
    large = small.repeat(35, 0).repeat(35, 1)
    expected = masks.token_mask(small, 6, 4, 0.5)
    for mask in (large, large.astype(np.uint8) * 255, large.astype(np.float32)):
        np.testing.assert_array_equal(masks.token_mask(mask, 6, 4, 0.5), expected)


def test_boxes_count_in_pixels_of_the_picture() -> None:
    mask, size, box = disc(40, 60), (180, 80), (45, 10, 135, 70)  # the mask at a third and a half
    part = mask[5:35, 15:45]
    expected = masks.token_mask(part, 8, 8, 0.5)
    np.testing.assert_array_equal(masks.token_mask(mask, 8, 8, 0.5, box=box, size=size), expected)
    np.testing.assert_allclose(masks.resize_mask(mask, 20, 20, box, size), masks.resize_mask(part, 20, 20), atol=1e-6)
    beyond = (0, 0, np.nextafter(60, 61), np.nextafter(40, 41))  # as scaling a box may leave it
    np.testing.assert_array_equal(masks.token_mask(mask, 8, 8, 0.5, box=beyond), masks.token_mask(mask, 8, 8, 0.5))
    masks.resize_mask(mask, 80, 90, box=beyond)
    with pytest.raises(ValueError, match="name the `size`"):
        masks.token_mask(mask, 8, 8, 0.5, box=box)


@quick
@given(st.integers(0, 2**31), sizes, sizes, st.floats(-30, 30), st.floats(-30, 30), st.floats(1, 60), st.floats(1, 60))
def test_beyond_its_picture_there_is_no_mask(
    seed: int, height: int, width: int, left: float, top: float, wide: float, tall: float
) -> None:
    """A box that leaves the picture sees what it would see in a picture with a margin of zeros."""
    mask = (np.random.default_rng(seed).uniform(size=(height, width)) < 0.6).astype(np.float32)
    box = Box(left, top, left + wide, top + tall)
    margin = 100
    padded = np.pad(mask, margin)
    expected = masks.cover(padded, 5, 7, box.moved(margin, margin))
    np.testing.assert_allclose(masks.cover(mask, 5, 7, box), expected, atol=1e-6)
    if (expected > 0.5).any():
        chosen = masks.token_mask(mask, 5, 7, 0.5, box=box, size=(width, height))
        np.testing.assert_array_equal(chosen[np.abs(expected.ravel() - 0.5) > 1e-5],
                                      (expected >= 0.5).ravel()[np.abs(expected.ravel() - 0.5) > 1e-5])  # fmt: skip


def test_resize_mask_up_is_smooth_and_same_is_same() -> None:
    mask = disc()
    np.testing.assert_array_equal(masks.resize_mask(mask, 40, 60), mask)
    large = masks.resize_mask(mask, 160, 240)
    assert large.dtype == np.float32
    assert len(np.unique(large)) > 2
    np.testing.assert_allclose(large.mean(), mask.mean(), atol=1e-3)


def test_token_mask_errors() -> None:
    dot = np.zeros((40, 40))
    dot[0, :5] = 1
    with pytest.raises(JaxpaError) as error:
        masks.token_mask(dot, 4, 4, 0.5)
    assert message(error) == (
        "the mask covers at most 0.05 of any of the 4 x 4 tokens: lower the coverage, 0.5, or make the mask larger"
    )
    assert masks.token_mask(dot, 4, 4, coverage=0.05).sum() == 1
    with pytest.raises(JaxpaError, match="is empty in the part of the picture"):
        masks.token_mask(dot, 4, 4, 0.5, box=(0, 20, 40, 40))
    for coverage in (0, 1.1, float("nan")):
        with pytest.raises(JaxpaError, match="above 0 and at most 1, not"):
            masks.token_mask(dot, 4, 4, coverage)


@pytest.mark.parametrize("draw", [
    lambda: masks.box_mask(None, (8, 8)), lambda: masks.box_mask(("left", 0, 1, 1), (8, 8)),
    lambda: masks.box_mask((1j, 0, 1, 1), (8, 8)), lambda: masks.polygon_mask(3, (8, 8)),
    lambda: masks.polygon_mask([0, 0, 1, 1], (8, 8)), lambda: masks.polygon_mask([(0, 0), (1, 1), ("x", 0)], (8, 8)),
    lambda: masks.grow(np.ones((8, 8)), "3"), lambda: masks.feather(np.ones((8, 8)), None),
    lambda: masks.shrink(np.ones((8, 8)), 1j),
])  # fmt: skip
def test_what_is_no_number(as_users_call, draw):
    with pytest.raises(JaxpaError):
        draw()
