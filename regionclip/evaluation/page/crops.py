"""A wrong detection as a small image, in the page itself."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image, ImageDraw

from regionclip.data.images import UnreadableImageError, read_image
from regionclip.evaluation.page.mistakes import Mistake
from regionclip.records import Record

SIDE = 240
"""Pixels of the longer side."""

CONTEXT = 0.6
"""Margin around the boxes, as a part of their longer side."""

WRONG, ACTUAL = "#dd2222", "#22aa22"


def crop_of(record: Record, mistake: Mistake) -> str:
    """Return the surroundings of a wrong detection as a `data:` URL; empty if its image cannot be read."""
    try:
        pixels = read_image(record["file_name"], "RGB")
    except (KeyError, UnreadableImageError):
        return ""
    boxes = [(mistake.actual_box, ACTUAL), (mistake.box, WRONG)]
    corners = [(box[0], box[1], box[0] + box[2], box[1] + box[3]) for box, _ in boxes if box is not None]
    left, top = (min(corner[i] for corner in corners) for i in (0, 1))
    right, bottom = (max(corner[i] for corner in corners) for i in (2, 3))
    margin = CONTEXT * max(right - left, bottom - top, 8)
    height, width = pixels.shape[:2]
    x1, y1 = int(max(left - margin, 0)), int(max(top - margin, 0))
    x2, y2 = int(np.ceil(min(right + margin, width))), int(np.ceil(min(bottom + margin, height)))
    scene = Image.fromarray(np.ascontiguousarray(pixels[y1:y2, x1:x2]))
    scale = SIDE / max(scene.size)
    scene = scene.resize((max(round(scene.width * scale), 1), max(round(scene.height * scale), 1)))
    pen = ImageDraw.Draw(scene)
    colors = [color for box, color in boxes if box is not None]
    for corner, color in zip(corners, colors, strict=True):
        edges = [(edge - origin) * scale for edge, origin in zip(corner, (x1, y1, x1, y1), strict=True)]
        pen.rectangle(edges, outline=color, width=2)
    file = io.BytesIO()
    scene.save(file, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
