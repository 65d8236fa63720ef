"""Drawing of boxes and class names on an image: labels that do not overlap, and one color per class name."""

from __future__ import annotations

import colorsys
import hashlib
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from regionclip.detections import NO_TRACK, Detections

Rectangle = tuple[int, int, int, int]
"""x1 y1 x2 y2 in pixels."""

LETTERS_IN_SIDE = 45
"""Letter height: this number of lines would fill the shorter side of an image."""


def draw_detections(image: NDArray[np.uint8], detections: Detections) -> Image.Image:
    """Return the image with boxes and labels; a label also has the requested further class names.

    Labels do not overlap: by descending score, a label without free space is omitted.

    Args:
        image: uint8 [H, W, 3] in RGB.
        detections: boxes in pixels of this image.
    """
    scene = Image.fromarray(np.ascontiguousarray(image[:, :, :3]))
    labels = [label_of(detections, row) for row in range(len(detections))]
    size = int(np.clip(min(scene.size) / LETTERS_IN_SIDE, 10, 40))
    font = ImageFont.truetype(font_for("".join(labels)), size)
    pen = ImageDraw.Draw(scene)
    boxes = detections.boxes.round().astype(int).tolist()
    for box, name in zip(boxes, detections.names, strict=True):
        pen.rectangle(box, outline=color_of(name), width=max(size // 6, 1))
    order = detections.scores.argsort(kind="stable")[::-1].tolist()
    extents = [_extent(font, labels[row], size) for row in order]
    places = place_labels([boxes[row] for row in order], extents, scene.size)
    for row, place in zip(order, places, strict=True):
        if place is not None:
            color = color_of(detections.names[row])
            pen.rectangle(place, fill=color)
            middle = (place[0] + size // 4, (place[1] + place[3]) // 2)
            pen.text(middle, labels[row], font=font, fill=readable_on(color), anchor="lm")
    return scene


def place_labels(
    boxes: Sequence[Sequence[int]], extents: Sequence[tuple[int, int]], size: tuple[int, int]
) -> list[Rectangle | None]:
    """Return label positions: in the image, near their boxes, without overlap; None if there is no free space.

    Args:
        boxes: xyxy in pixels, by descending priority.
        extents: (width, height) of each label.
        size: (width, height) of the image.
    """
    taken = np.zeros((0, 4), dtype=int)
    places: list[Rectangle | None] = []
    for box, extent in zip(boxes, extents, strict=True):
        place = next((p for p in _candidates(box, extent, size) if _is_free(p, taken, size)), None)
        places.append(place)
        if place is not None:
            taken = np.concatenate([taken, [place]])
    return places


def _candidates(box: Sequence[int], extent: tuple[int, int], size: tuple[int, int]) -> Iterator[Rectangle]:
    """Yield positions from best to worst: at the corners of the box, then down its left edge, then anywhere."""
    width, height = extent
    left, top, right, bottom = box
    lefts = [min(max(x, 0), max(size[0] - width - 1, 0)) for x in (left, right - width)]
    for y in (top - height, top, bottom - height, bottom):
        for x in lefts:
            yield x, y, x + width, y + height
    rows = sorted(range(0, size[1] - height, max(height // 2, 1)), key=lambda y: abs(y - top))
    columns = [lefts[0], *sorted(range(0, size[0] - width, max(width // 2, 1)), key=lambda x: abs(x - left))]
    for x in columns:
        for y in rows:
            yield x, y, x + width, y + height


def _is_free(place: Rectangle, taken: NDArray[np.int_], size: tuple[int, int]) -> bool:
    left, top, right, bottom = place
    if left < 0 or top < 0 or right >= size[0] or bottom >= size[1]:
        return False
    apart = (taken[:, 0] > right) | (taken[:, 2] < left) | (taken[:, 1] > bottom) | (taken[:, 3] < top)
    return bool(apart.all())


def _extent(font: ImageFont.FreeTypeFont, label: str, size: int) -> tuple[int, int]:
    left, _, right, _ = font.getbbox(label)
    return int(right - left) + size // 2, size + size // 3


def label_of(detections: Detections, row: int) -> str:
    """Return the label of a box: its class name, track and score, and the requested further class names."""
    track = NO_TRACK if detections.track_ids is None else int(detections.track_ids[row])
    number = "" if track == NO_TRACK else f" #{track}"
    best = f"{detections.vocabulary[detections.class_ids[row]]}{number} {detections.scores[row]:.2f}"
    others = [pair for pair in detections.top_words(row) if pair[0] != detections.names[row]]
    label = ", ".join([best, *(f"{name} {score:.2f}" for name, score in others)])
    # Names from files may contain characters that cannot be drawn on one line.
    return " ".join(label.encode(errors="replace").decode().split())


def color_of(word: str) -> str:
    """Return the color of a class name as `#rrggbb`: the same in every image and vocabulary."""
    number = int.from_bytes(hashlib.sha256(word.lower().encode()).digest()[:4])
    hue, level = number % 360 / 360, 0.42 + 0.08 * (number // 360 % 3)
    red, green, blue = colorsys.hls_to_rgb(hue, level, 0.85)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"


def readable_on(color: str) -> str:
    """Return black or white, whichever has more contrast to a color `#rrggbb`."""
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return "#000000" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "#ffffff"


@lru_cache(maxsize=64)
def font_for(text: str) -> str:
    """Return an installed font that has all letters of a text, or the one that lacks the fewest."""
    from matplotlib import font_manager

    wanted = {ord(letter) for letter in text if not letter.isspace()}
    default = str(font_manager.findfont("DejaVu Sans"))
    best, lacking = str(default), len(wanted - _letters(default))
    for font in font_manager.fontManager.ttflist:
        if not lacking:
            break
        if (count := len(wanted - _letters(str(font.fname)))) < lacking:
            best, lacking = str(font.fname), count
    return best


@lru_cache(maxsize=512)
def _letters(path: str) -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()
