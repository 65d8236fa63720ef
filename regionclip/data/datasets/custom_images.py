"""The user's image folder as datasets `lvis_v1_*_custom_img`."""

from __future__ import annotations

import logging
from functools import lru_cache
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.lvis import get_lvis_instances_meta

from regionclip.data.datasets.lvis import ANNOTATION_FILES
from regionclip.data.image_listing import LeftOut, files_in_folder
from regionclip.data.images import IMAGE_ENDINGS, UnreadableImageError, image_size
from regionclip.errors import user_error
from regionclip.files import resolve_path

logger = logging.getLogger(__name__)

DEFAULT_FOLDER = "./datasets/custom_images"
"""Default of the config key INPUT_DIR."""

NAMES = tuple(f"lvis_v1_{split}_custom_img" for split in ANNOTATION_FILES)


def register() -> None:
    """Register the four names with the default folder."""
    classes = get_lvis_instances_meta("lvis_v1")["thing_classes"]
    for name in NAMES:
        # For "custom_img" the evaluator writes predictions and computes no metrics.
        MetadataCatalog.get(name).set(evaluator_type="custom_img", thing_classes=classes)
    use_custom_image_folder(DEFAULT_FOLDER)


def use_custom_image_folder(folder: str | Path) -> None:
    """Make the four names list the images of `folder` (config key INPUT_DIR)."""
    for name in NAMES:
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)
        DatasetCatalog.register(name, lambda: load_custom_images(folder))


def list_images(folder: str | Path) -> list[Path]:
    """Return the image files directly in `folder`, sorted by name; skipped files are counted in the log, once.

    Raises:
        UserError: no such folder, or no image in it.
    """
    found = resolve_path(folder)
    if not found.is_dir():
        raise user_error(f"INPUT_DIR {folder}", "a folder of images", "no such folder", "create it or set INPUT_DIR")
    left_out = LeftOut()
    images = files_in_folder(found, IMAGE_ENDINGS, left_out, recursive=False)
    if not images:
        endings, actual = ", ".join(sorted(IMAGE_ENDINGS)), f"none; left out: {left_out}" if left_out else "none"
        raise user_error(f"INPUT_DIR {folder}", f"files ending in {endings}", actual, "put images there")
    if left_out:
        _say_once(f"INPUT_DIR {folder}: left out {left_out}")
    return images


@lru_cache
def _say_once(line: str) -> None:
    logger.info(line)


def load_custom_images(folder: str | Path) -> list[dict[str, Any]]:
    """Return Detectron2's dataset records of `folder`; `image_id` is the index in the sorted listing.

    An image with an unreadable header is listed with size 0 x 0: inference reports it later
    and continues.
    """
    records = []
    for i, path in enumerate(list_images(folder)):
        try:
            height, width = image_size(path)
        except UnreadableImageError:
            height = width = 0
        records.append({"file_name": str(path), "image_id": i, "height": height, "width": width})
    return records
