"""What is behind the drawings: textures, and strokes that belong to no object."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
"""[H, W, 3] in RGB."""


def make_background(random: Generator, height: int, width: int, strokes: int) -> Pixels:
    """Return a texture of two or three colors, with so many strokes on it at most."""
    texture = TEXTURES[random.integers(len(TEXTURES))](random, height, width)  # [H, W] in [0, 1]
    colors = random.uniform(30, 235, (3, 3)).astype(np.float32)
    if random.random() < 0.5:  # quiet: colors near each other
        colors = colors[:1] + random.normal(0, 22, (3, 3)).astype(np.float32)
    table = np.stack([np.interp(np.linspace(0, 1, 256), (0, 0.5, 1), colors[:, c]) for c in range(3)], axis=1)
    levels = np.repeat((texture * 255).astype(np.uint8)[:, :, None], 3, axis=2)
    image = np.asarray(cv2.LUT(levels, table.clip(0, 255).astype(np.uint8)[:, None]), np.uint8)
    for _ in range(random.integers(strokes + 1)):
        _stroke(random, image)
    return image


def _noise(random: Generator, height: int, width: int) -> NDArray[np.float32]:
    """Clouds: coarse random values, enlarged, over finer ones."""
    total = np.zeros((height, width), np.float32)
    for cells, share in ((int(random.integers(2, 6)), 0.65), (int(random.integers(8, 24)), 0.35)):
        coarse = random.random((cells, cells), dtype=np.float32)
        total += share * cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return total.clip(0, 1)


def _gradient(random: Generator, height: int, width: int) -> NDArray[np.float32]:
    angle = random.uniform(0, 2 * np.pi)
    across = np.cos(angle) * np.linspace(-0.5, 0.5, width, dtype=np.float32)
    down = np.sin(angle) * np.linspace(-0.5, 0.5, height, dtype=np.float32)
    return (across[None] + down[:, None] + 0.5).clip(0, 1)


def _waves(random: Generator, height: int, width: int) -> NDArray[np.float32]:
    """Stripes, soft or hard."""
    ramp = _gradient(random, height, width) * random.uniform(20, 90)
    wave = np.sin(ramp) * random.uniform(0.6, 4)
    return (wave.clip(-1, 1) * 0.5 + 0.5).astype(np.float32)


def _tiles(random: Generator, height: int, width: int) -> NDArray[np.float32]:
    """A chequered floor, each tile a little different."""
    side = int(random.integers(12, 60))
    rows, columns = -(-height // side), -(-width // side)
    tiles = (np.indices((rows, columns)).sum(axis=0) % 2).astype(np.float32)
    tiles = (tiles + random.normal(0, 0.15, tiles.shape)).clip(0, 1).astype(np.float32)
    return np.repeat(np.repeat(tiles, side, axis=0), side, axis=1)[:height, :width]


TEXTURES = (_noise, _noise, _gradient, _waves, _tiles)


def _stroke(random: Generator, image: Pixels) -> None:
    """Draw a line, an arc, a polygon's outline or a spot."""
    height, width = image.shape[:2]
    color = tuple(int(value) for value in random.integers(0, 256, 3))
    thickness = int(random.integers(1, 5))
    points = np.stack([random.integers(0, width, 4), random.integers(0, height, 4)], axis=1).astype(np.int32)
    kind = random.integers(4)
    if kind == 0:
        cv2.polylines(image, [points[:2]], False, color, thickness, cv2.LINE_AA)
    elif kind == 1:
        axes = (int(random.integers(6, width // 3)), int(random.integers(6, height // 3)))
        start = int(random.integers(360))
        cv2.ellipse(image, points[0].tolist(), axes, 0, start, start + 200, color, thickness, cv2.LINE_AA)
    elif kind == 2:
        corner = points[0] + random.integers(-40, 40, (4, 2))
        cv2.polylines(image, [corner.astype(np.int32)], True, color, thickness, cv2.LINE_AA)
    else:
        cv2.circle(image, points[0].tolist(), int(random.integers(3, 16)), color, -1, cv2.LINE_AA)
