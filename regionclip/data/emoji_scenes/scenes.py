"""Scenes: drawings on a background, with the boxes and masks of what can be seen of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import cv2
import numpy as np
from numpy.random import PCG64, Generator, SeedSequence
from numpy.typing import NDArray

from regionclip.data.emoji_scenes.backgrounds import Pixels, make_background
from regionclip.data.emoji_scenes.concepts import Concept
from regionclip.data.emoji_scenes.drawings import SIDE, Drawing, Drawings
from regionclip.data.emoji_scenes.variations import Variations, make_clutter, shadow_of, vary

_STRENGTHS = np.array([NormalDist().inv_cdf((rank + 0.5) / 256) for rank in range(256)])


@dataclass(frozen=True)
class SceneSettings:
    """How hard the world is."""

    sides: tuple[int, ...] = (256, 288, 320, 352, 384)
    """Pixels of width and height, drawn apart."""
    objects: tuple[int, int] = (1, 12)
    """Fewest and most; few are more frequent than many."""
    object_side: tuple[int, int] = (20, 160)
    """Pixels of the longer side of an object; small ones are as frequent as large ones on a scale of ratios."""
    rotation: float = 12.0
    """Standard deviation in degrees; at most twice as much."""
    color_jitter: float = 0.15
    """Standard deviation of the factors of brightness, contrast and saturation."""
    blurred: float = 0.25
    """Share of objects out of focus."""
    tail: float = 20.0
    """How often the most frequent concept comes for one time of the rarest; 1 is all equally often."""
    strokes: int = 8
    """Distracting strokes at most."""
    least_visible: float = 0.4
    """Share of an object that has to be seen; what shows less is not annotated."""
    pixel_noise: float = 3.0
    """Standard deviation of the noise on all pixels, in gray levels."""
    variations: Variations | None = None
    """What else varies: in training scenes only, so that test scenes stay as they are."""


@dataclass(frozen=True)
class SceneObject:
    """An object in a scene."""

    concept: Concept
    box: tuple[int, int, int, int]
    """x, y, width, height in pixels, of the visible part."""
    mask: NDArray[np.bool_]
    """[height, width] of the box: the visible part."""

    @property
    def area(self) -> int:
        """Visible pixels."""
        return int(self.mask.sum())


@dataclass(frozen=True)
class Scene:
    """An image and what is in it."""

    pixels: Pixels
    objects: tuple[SceneObject, ...]
    """Those of which enough can be seen, the lowest first."""


class SceneMaker:
    """Makes the scene of a number, the same whenever and wherever it is asked for."""

    def __init__(
        self,
        drawings: Sequence[Drawings],
        concepts: Sequence[Concept],
        seed: int,
        settings: SceneSettings | None = None,
    ) -> None:
        """Make a maker.

        Args:
            drawings: styles, of which each object takes one.
            concepts: what may come; frequent ones more often.
            seed: of all scenes; another gives other scenes.
            settings: how hard the world is.
        """
        self.drawings = drawings
        self.concepts = concepts
        self.seed = seed
        self.settings = settings or SceneSettings()
        weights = self.settings.tail ** -np.array([concept.rarity for concept in concepts])
        self._shares = weights / weights.sum()

    def make(self, number: int) -> Scene:
        """Return the scene of a number."""
        random = Generator(PCG64(SeedSequence([self.seed, number])))
        settings = self.settings
        height, width = (int(side) for side in random.choice(settings.sides, 2))
        pixels = self._background(random, height, width)
        owners = np.full((height, width), -1, np.int16)
        placed: list[tuple[Concept, int]] = []  # and the pixels that each has, covered ones included
        for place in random.choice(len(self.concepts), self._count(random), p=self._shares):
            concept = self.concepts[int(place)]
            drawing = self._varied(random, concept)
            position = _position(random, drawing, height, width)
            if settings.variations and random.random() < settings.variations.shadowed:
                shadow, offset = shadow_of(random, drawing)
                _paste(pixels, shadow, (position[0] + offset[0], position[1] + offset[1]))
            opaque = _paste(pixels, drawing, position)
            owners[opaque.rows, opaque.columns][opaque.mask] = len(placed)
            placed.append((concept, int((drawing[:, :, 3] > 127).sum())))
        pixels = _with_noise(random, pixels, settings.pixel_noise)
        return Scene(pixels, tuple(self._visible(owners, placed)))

    def _background(self, random: Generator, height: int, width: int) -> Pixels:
        variations = self.settings.variations
        if variations and random.random() < variations.cluttered:
            return make_clutter(random, height, width)
        return make_background(random, height, width, self.settings.strokes)

    def _count(self, random: Generator) -> int:
        fewest, most = self.settings.objects
        return fewest + int((most - fewest + 1) * random.random() ** 1.5)

    def _varied(self, random: Generator, concept: Concept) -> Drawing:
        """Return a drawing of the concept: in some style, size, turn and light."""
        settings = self.settings
        styles = [drawings for drawings in self.drawings if concept in drawings]
        drawing = styles[int(random.integers(len(styles)))][concept]
        if settings.variations:
            drawing = vary(random, drawing, settings.variations)
        smallest, largest = settings.object_side
        side = smallest * (largest / smallest) ** random.random()
        limit = 2 * settings.rotation
        angle = float(np.clip(random.normal(0, settings.rotation), -limit, limit))
        mirrored = concept.mirrored and random.random() < 0.5
        drawing = _transformed(drawing, side / SIDE, angle, mirrored=mirrored)
        light = random.normal(1, settings.color_jitter, 3).clip(0.5, 1.5)
        drawing = _relit(drawing, *light)
        if random.random() < settings.blurred:
            width = float(random.uniform(0.4, 1 + side / 80))
            drawing = np.asarray(cv2.GaussianBlur(drawing, (0, 0), width), np.uint8)
        return drawing

    def _visible(self, owners: NDArray[np.int16], placed: Sequence[tuple[Concept, int]]) -> list[SceneObject]:
        objects = []
        for number, (concept, area) in enumerate(placed):
            mask = owners == number
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            if not len(rows) or mask.sum() < self.settings.least_visible * area:
                continue
            top, left = int(rows[0]), int(columns[0])
            part = mask[top : rows[-1] + 1, left : columns[-1] + 1]
            objects.append(SceneObject(concept, (left, top, part.shape[1], part.shape[0]), part.copy()))
        return objects


def _transformed(drawing: Drawing, scale: float, angle: float, *, mirrored: bool) -> Drawing:
    """Return a drawing turned by degrees and scaled, cut to what is left."""
    height, width = drawing.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), angle, scale)
    if mirrored:
        matrix[:, 2] += matrix[:, 0] * (width - 1)
        matrix[:, 0] *= -1
    radians = math.radians(angle)
    cosine, sine = abs(math.cos(radians)), abs(math.sin(radians))
    new_width = math.ceil(scale * (width * cosine + height * sine))
    new_height = math.ceil(scale * (width * sine + height * cosine))
    matrix[:, 2] += (new_width - width) / 2, (new_height - height) / 2
    size = (max(new_width, 1), max(new_height, 1))
    if scale < 0.5:  # averaged first, else thin lines would come and go
        half = (max(width // 2, 1), max(height // 2, 1))
        matrix[:, 0] *= width / half[0]
        matrix[:, 1] *= height / half[1]
        averaged = cv2.resize(drawing, half, interpolation=cv2.INTER_AREA)
        return np.asarray(cv2.warpAffine(averaged, matrix, size, flags=cv2.INTER_LINEAR), np.uint8)
    return np.asarray(cv2.warpAffine(drawing, matrix, size, flags=cv2.INTER_LINEAR), np.uint8)


def _relit(drawing: Drawing, brightness: float, contrast: float, saturation: float) -> Drawing:
    colors = np.full((3, 3), (1 - saturation) / 3) + saturation * np.eye(3)  # towards gray, or away from it
    matrix = np.zeros((4, 5), np.float32)
    matrix[:3, :3] = brightness * contrast * colors
    matrix[:3, 4] = brightness * 128 * (1 - contrast)
    matrix[3, 3] = 1
    return np.asarray(cv2.transform(drawing, matrix), np.uint8)


def _with_noise(random: Generator, pixels: Pixels, deviation: float) -> Pixels:
    """Return an image with normal noise, of 256 equally likely strengths."""
    ranks = np.frombuffer(random.bytes(pixels.size), np.uint8).reshape(pixels.shape)
    noise = cv2.LUT(ranks, (deviation * _STRENGTHS).round().astype(np.int16))
    return np.asarray(cv2.add(pixels, noise, dtype=cv2.CV_8U), np.uint8)


@dataclass(frozen=True)
class _Part:
    """Where a drawing is in an image."""

    rows: slice
    columns: slice
    mask: NDArray[np.bool_]
    """[rows, columns]: where it is opaque."""


def _position(random: Generator, drawing: Drawing, height: int, width: int) -> tuple[int, int]:
    """Return x and y of a drawing's corner, so that at least half of it is inside an image of this size."""
    rows, columns = drawing.shape[:2]
    left = int(random.integers(-columns // 4, max(width - columns * 3 // 4, 1 - columns // 4)))
    top = int(random.integers(-rows // 4, max(height - rows * 3 // 4, 1 - rows // 4)))
    return left, top


def _paste(pixels: Pixels, drawing: Drawing, position: tuple[int, int]) -> _Part:
    """Draw over an image at x and y, which may be outside, and return where."""
    left, top = position
    first_row, first_column = max(-top, 0), max(-left, 0)
    part = drawing[first_row : max(pixels.shape[0] - top, 0), first_column : max(pixels.shape[1] - left, 0)]
    rows = slice(top + first_row, top + first_row + part.shape[0])
    columns = slice(left + first_column, left + first_column + part.shape[1])
    opacity = part[:, :, 3:].astype(np.uint16)
    under = pixels[rows, columns]
    pixels[rows, columns] = ((under * (255 - opacity) + part[:, :, :3] * opacity + 127) // 255).astype(np.uint8)
    return _Part(rows, columns, part[:, :, 3] > 127)
