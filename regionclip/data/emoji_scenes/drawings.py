"""The drawings of a style, read as images with transparency."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from regionclip.data.emoji_scenes.concepts import Concept, read_concepts
from regionclip.data.emoji_scenes.packages import STYLES
from regionclip.errors import user_error
from regionclip.fingerprints import fingerprint

SIDE = 160
"""Pixels of the longer side of a drawing in memory: the largest that is drawn."""

Drawing = NDArray[np.uint8]
"""[H, W, 4], RGB and opacity, cut to what is drawn."""


class Drawings:
    """The drawings of one style, in memory."""

    def __init__(self, folder: Path, style: str) -> None:
        """Read a style; raises `UserError` when drawings are missing."""
        expected, ending = STYLES[style].count, STYLES[style].ending
        paths = {concept.number: folder / style / f"{concept.code}{ending}" for concept in read_concepts()}
        found = {number: path for number, path in paths.items() if path.is_file()}
        if len(found) < expected:
            what, fix = f"drawings of {style}", "run tools/prepare_emoji.py"
            actual = f"{expected - len(found)} missing"
            raise user_error(what, f"{expected} files in {folder / style}", actual, fix)
        self.folder = folder
        self.style = style
        self._drawings = {number: _read(path) for number, path in found.items()}

    def __reduce__(self) -> tuple[type[Drawings], tuple[Path, str]]:
        """Travel to another process as a name: reading again is cheaper than copying."""
        return Drawings, (self.folder, self.style)

    def __contains__(self, concept: Concept) -> bool:
        """Return whether the style draws a concept."""
        return concept.number in self._drawings

    def __getitem__(self, concept: Concept) -> Drawing:
        """Return the drawing of a concept; not to be changed."""
        return self._drawings[concept.number]


def drawings_fingerprint(drawings: Sequence[Drawings]) -> str:
    """Return a hash of the styles, and of when files were added to their folders."""
    return fingerprint([(style.style, (style.folder / style.style).stat().st_mtime_ns) for style in drawings])


def _read(path: Path) -> Drawing:
    with Image.open(path) as image:
        pixels = np.array(image.convert("RGBA"))
    rows, columns = np.nonzero(pixels[:, :, 3] > 127)
    pixels = pixels[np.min(rows) : np.max(rows) + 1, np.min(columns) : np.max(columns) + 1]
    # Color under full transparency would bleed into the edges.
    pixels[pixels[:, :, 3] == 0] = 0
    scale = SIDE / max(pixels.shape[:2])
    size = (max(round(pixels.shape[1] * scale), 1), max(round(pixels.shape[0] * scale), 1))
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(pixels, size, interpolation=way), np.uint8)
