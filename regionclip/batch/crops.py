"""An image of each detection, in a folder for each class name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from regionclip.batch.file_names import folder_of_class, short
from regionclip.files import atomic_write

CROPS = "crops"
"""Folder of the crops."""


def write_crops(result: dict[str, Any], pixels: NDArray[np.uint8], output: Path) -> None:
    """Write the detections of a result as `crops/WORD/IMAGE_NUMBER.jpg`, in the sub-folders of the images.

    Args:
        result: of `batch.results.as_result`; each detection gets `crop`, its file relative to the output.
        pixels: of the image, uint8 [H, W, 3] in RGB.
        output: folder.
    """
    height, width = pixels.shape[:2]
    name = result["image_id"].removesuffix("#0")
    for number, found in enumerate(result["detections"]):
        x1, y1, x2, y2 = found["box"]
        left, top = min(max(int(x1), 0), width - 1), min(max(int(y1), 0), height - 1)
        right, bottom = min(max(int(np.ceil(x2)), left + 1), width), min(max(int(np.ceil(y2)), top + 1), height)
        place = short(f"{CROPS}/{folder_of_class(found['word'], found['class_id'])}/{name}_{number}", ".jpg")
        with atomic_write(output / place) as file:
            Image.fromarray(pixels[top:bottom, left:right]).save(file, format="JPEG", quality=95)
        found["crop"] = place
