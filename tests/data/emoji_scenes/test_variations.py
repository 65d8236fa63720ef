"""Variations of drawings in training scenes: what they change, and what they must not."""

import numpy as np
import pytest
from numpy.random import PCG64, Generator

from regionclip.data.emoji_scenes.variations import (
    Variations,
    _glossy,
    _in_perspective,
    _outlined,
    _shaded,
    _with_hue,
    make_clutter,
    shadow_of,
    vary,
)

SEEDS = range(8)


@pytest.fixture
def drawing():
    """Return a colored disk."""
    rows, columns = np.mgrid[:80, :100]
    drawing = np.zeros((80, 100, 4), np.uint8)
    drawing[(rows - 40) ** 2 + (columns - 50) ** 2 < 35**2] = (200, 90, 40, 255)
    return drawing


def numbers(seed):
    return Generator(PCG64(seed))


def test_a_third_of_a_turn_of_hue_permutes_the_colors(drawing):
    inside = drawing[40, 50, :3].tolist()
    red, green, blue = inside
    assert _with_hue(drawing, 120)[40, 50].tolist() == [blue, red, green, 255]
    assert _with_hue(drawing, 240)[40, 50].tolist() == [green, blue, red, 255]
    assert np.array_equal(_with_hue(drawing, 0), drawing)
    gray = np.full((4, 4, 4), 90, np.uint8)
    assert np.array_equal(_with_hue(gray, 77), gray)


@pytest.mark.parametrize("seed", SEEDS)
def test_perspective_stays_in_the_frame_and_is_the_identity_at_zero(drawing, seed):
    assert np.array_equal(_in_perspective(numbers(seed), drawing, 0.0), drawing)
    moved = _in_perspective(numbers(seed), drawing, 0.12)
    assert moved.shape == drawing.shape
    share = (moved[:, :, 3] > 127).sum() / (drawing[:, :, 3] > 127).sum()
    assert 0.5 < share < 1  # each corner moves inward
    assert not np.array_equal(moved, drawing)


@pytest.mark.parametrize("change", [_shaded, _glossy])
@pytest.mark.parametrize("seed", SEEDS)
def test_light_changes_colors_and_no_opacity(drawing, change, seed):
    before = drawing.copy()
    lit = change(numbers(seed), drawing)
    assert np.array_equal(drawing, before)
    assert np.array_equal(lit[:, :, 3], drawing[:, :, 3])
    assert not np.array_equal(lit[:, :, :3], drawing[:, :, :3])


@pytest.mark.parametrize("seed", SEEDS)
def test_an_outline_surrounds_the_drawing_and_keeps_its_inside(drawing, seed):
    outlined = _outlined(numbers(seed), drawing)
    margin = (outlined.shape[0] - drawing.shape[0]) // 2
    assert margin > 0
    assert (outlined[:, :, 3] > 127).sum() > (drawing[:, :, 3] > 127).sum()
    inner = outlined[margin : margin + 80, margin : margin + 100]
    opaque = drawing[:, :, 3] == 255
    assert np.abs(inner[opaque].astype(int) - drawing[opaque]).max() <= 1
    ring = (inner[:, :, 3] > 127) & ~opaque
    assert len(np.unique(inner[ring][:, :3], axis=0)) == 1


@pytest.mark.parametrize("seed", SEEDS)
def test_a_shadow_is_soft_black_and_below(drawing, seed):
    shadow, (_, down) = shadow_of(numbers(seed), drawing)
    assert not shadow[:, :, :3].any()
    assert 0 < shadow[:, :, 3].max() <= 0.6 * 255
    rows = np.flatnonzero(shadow[:, :, 3].any(axis=1))
    center = rows.mean() + down
    assert center > 39.5  # that of the drawing


@pytest.mark.parametrize("seed", SEEDS)
def test_the_same_numbers_give_the_same_variation(drawing, seed):
    first, second = (vary(numbers(seed), drawing, Variations()) for _ in range(2))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, vary(numbers(seed + 100), drawing, Variations()))


def test_clutter_covers_the_image_with_many_colors():
    image = make_clutter(numbers(3), 96, 128)
    assert image.shape == (96, 128, 3)
    assert image.dtype == np.uint8
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 100
