"""Variations of drawings in training scenes: hue, perspective, shading, outlines, shadows and cluttered backgrounds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from regionclip.data.emoji_scenes.backgrounds import Pixels
from regionclip.data.emoji_scenes.drawings import Drawing


@dataclass(frozen=True)
class Variations:
    """How much more training scenes vary than test scenes."""

    hue: float = 10.0
    """Standard deviation of the rotation of hues, in degrees; small, since some names tell a color."""
    perspective: float = 0.12
    """Largest displacement of a corner, as a share of the side."""
    shaded: float = 0.5
    """Share of drawings with a gradient of light across them."""
    glossy: float = 0.2
    """Share of drawings with a highlight."""
    outlined: float = 0.12
    """Share of drawings with an outline."""
    shadowed: float = 0.35
    """Share of drawings that cast a shadow."""
    cluttered: float = 0.4
    """Share of backgrounds that consist of many overlapping shapes, as photos do."""


def vary(random: Generator, drawing: Drawing, amounts: Variations) -> Drawing:
    """Return a drawing in other hues and perspective, and perhaps shaded, glossy or outlined."""
    varied = _with_hue(drawing, random.normal(0, amounts.hue))
    varied = _in_perspective(random, varied, amounts.perspective)
    if random.random() < amounts.shaded:
        varied = _shaded(random, varied)
    if random.random() < amounts.glossy:
        varied = _glossy(random, varied)
    if random.random() < amounts.outlined:
        varied = _outlined(random, varied)
    return varied


def _with_hue(drawing: Drawing, degrees: float) -> Drawing:
    """Rotate the hues: a rotation of RGB about the gray axis."""
    radians = math.radians(degrees)
    cosine, sine = math.cos(radians), math.sin(radians) / math.sqrt(3)
    gray = (1 - cosine) / 3
    matrix = np.zeros((4, 4), np.float32)
    matrix[:3, :3] = cosine * np.eye(3) + gray + sine * np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])
    matrix[3, 3] = 1
    return np.asarray(cv2.transform(drawing, matrix), np.uint8)


def _in_perspective(random: Generator, drawing: Drawing, amount: float) -> Drawing:
    """Move each corner inward by up to `amount` of the side."""
    height, width = drawing.shape[:2]
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    inward = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]], np.float32)
    moved = corners + inward * random.uniform(0, amount, (4, 2)) * (width, height)
    matrix = cv2.getPerspectiveTransform(corners, moved.astype(np.float32))
    return np.asarray(cv2.warpPerspective(drawing, matrix, (width, height)), np.uint8)


def _shaded(random: Generator, drawing: Drawing) -> Drawing:
    """Multiply the colors by a gradient of light in a random direction."""
    height, width = drawing.shape[:2]
    strength, angle = random.uniform(0.1, 0.45), random.uniform(0, 2 * math.pi)
    across = math.cos(angle) * np.linspace(-1, 1, width, dtype=np.float32)
    down = math.sin(angle) * np.linspace(-1, 1, height, dtype=np.float32)
    light = 1 + strength * (across[None] + down[:, None])  # [H, W]
    shaded = drawing.copy()
    shaded[:, :, :3] = (drawing[:, :, :3] * light[:, :, None]).clip(0, 255)
    return shaded


def _glossy(random: Generator, drawing: Drawing) -> Drawing:
    """Mix white into a soft round spot in the upper half."""
    height, width = drawing.shape[:2]
    x, y = random.uniform(0.2, 0.8) * width, random.uniform(0.1, 0.5) * height
    radius = random.uniform(0.15, 0.45) * max(height, width)
    columns, rows = np.arange(width, dtype=np.float32) - x, np.arange(height, dtype=np.float32) - y
    share = random.uniform(0.2, 0.6) * np.exp(-(columns[None] ** 2 + rows[:, None] ** 2) / radius**2)  # [H, W]
    glossy = drawing.copy()
    colors = drawing[:, :, :3]
    glossy[:, :, :3] = colors + (255 - colors.astype(np.float32)) * share[:, :, None]
    return glossy


def _outlined(random: Generator, drawing: Drawing) -> Drawing:
    """Surround a drawing with an outline, white, dark or in any color."""
    thickness = max(round(random.uniform(0.015, 0.05) * max(drawing.shape[:2])), 1)
    padded = np.pad(drawing, ((thickness, thickness), (thickness, thickness), (0, 0)))
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * thickness + 1, 2 * thickness + 1))
    outline = cv2.dilate(np.ascontiguousarray(padded[:, :, 3]), disk)  # [H, W]
    color = np.array([(255, 255, 255), (25, 25, 25), random.integers(0, 256, 3)][int(random.integers(3))])
    opacity = padded[:, :, 3:].astype(np.float32) / 255
    result = np.empty_like(padded)
    result[:, :, :3] = padded[:, :, :3] * opacity + color * (1 - opacity)
    result[:, :, 3] = np.maximum(outline, padded[:, :, 3])
    result[result[:, :, 3] == 0] = 0
    return result


def shadow_of(random: Generator, drawing: Drawing) -> tuple[Drawing, tuple[int, int]]:
    """Return the soft shadow of a drawing, and its offset (x, y) in pixels from the drawing's corner."""
    side = max(drawing.shape[:2])
    blur = max(random.uniform(0.02, 0.08) * side, 0.5)
    margin = math.ceil(2 * blur)
    opacity = np.pad(drawing[:, :, 3], margin).astype(np.float32) * random.uniform(0.2, 0.6)
    shadow = np.zeros((*opacity.shape, 4), np.uint8)
    shadow[:, :, 3] = cv2.GaussianBlur(opacity, (0, 0), blur)
    offset = random.uniform(-0.1, 0.1) * side, random.uniform(0.02, 0.15) * side
    return shadow, (round(offset[0]) - margin, round(offset[1]) - margin)


def make_clutter(random: Generator, height: int, width: int) -> Pixels:
    """Return overlapping shapes of all sizes in related colors, a dead-leaves model of natural images, out of focus."""
    palette = random.uniform(20, 235, (int(random.integers(3, 7)), 3))
    image = np.full((height, width, 3), palette[0], np.uint8)
    count = int(random.integers(25, 90))
    sizes = max(height, width) * 0.5 * (1 - random.random(count)) ** 1.5 + 4
    for size in np.sort(sizes)[::-1]:
        _draw_leaf(random, image, float(size), palette)
    blur = float(random.uniform(0.3, 3.0))
    blurred = cv2.GaussianBlur(image, (0, 0), blur)
    return np.asarray(cv2.multiply(blurred, _light(random, height, width), dtype=cv2.CV_8U), np.uint8)


def _draw_leaf(random: Generator, image: Pixels, size: float, palette: NDArray[np.float64]) -> None:
    """Draw an ellipse or polygon of this size in pixels somewhere."""
    height, width = image.shape[:2]
    color = (palette[random.integers(len(palette))] + random.normal(0, 15, 3)).clip(0, 255).tolist()
    center = random.integers(0, width), random.integers(0, height)
    if random.random() < 0.5:
        axes = (max(round(size / 2), 1), max(round(size / 2 * random.uniform(0.3, 1)), 1))
        place = (int(center[0]), int(center[1]))
        cv2.ellipse(image, place, axes, float(random.uniform(0, 180)), 0, 360, color, -1, cv2.LINE_AA)
        return
    angles = np.sort(random.uniform(0, 2 * math.pi, int(random.integers(3, 7))))
    radii = size / 2 * random.uniform(0.5, 1, len(angles))
    corners = np.stack([np.cos(angles) * radii, np.sin(angles) * radii], axis=1) + center
    cv2.fillPoly(image, [corners.round().astype(np.int32)], color, cv2.LINE_AA)


def _light(random: Generator, height: int, width: int) -> NDArray[np.float32]:
    """Return smooth light [H, W, 3] between 0.7 and 1.2."""
    coarse = random.uniform(0.7, 1.2, (3, 3)).astype(np.float32)
    return np.repeat(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)[:, :, None], 3, axis=2)
