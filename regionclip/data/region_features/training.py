"""Training records with stored embeddings of proposals, for distillation."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from regionclip.data.region_features.index import FeatureFolder, is_feature_folder
from regionclip.errors import user_error
from regionclip.files import resolve_path
from regionclip.records import Record

logger = logging.getLogger(__name__)


def with_stored_embeddings(records: Sequence[Record], path: str, key: str, clip: str, dim: int) -> list[Record]:
    """Return the records with the `stored_regions` of their images; unreadable images are left out.

    Args:
        records: of Detectron2.
        path: folder of region features.
        key: config key of the folder, for messages.
        clip: name of the CLIP size of the embeddings.
        dim: their width.

    Raises:
        UserError: no such folder, embeddings of another CLIP, or an image without regions.
    """
    if not is_feature_folder(path):
        fix = "write it with regionclip features --format safetensors"
        raise user_error(f"{key} {path}", "a folder of region features", "no index.json in it", fix)
    folder = FeatureFolder(resolve_path(path))
    if folder.clip != clip or folder.dim != dim:
        actual = f"{folder.clip} of width {folder.dim}" if folder.clip else "none"
        raise user_error(f"{key} {folder.folder}", f"embeddings of {clip} of width {dim}", actual, "extract them again")
    readable = [record for record in records if not folder.failed(record["file_name"])]
    if len(readable) < len(records):
        count = len(records) - len(readable)
        logger.warning("%d images could not be read when regions were extracted: left out", count)
        records = readable
    names = folder.find_all([record["file_name"] for record in records])
    missing = [record["file_name"] for record, name in zip(records, names, strict=True) if name is None]
    if missing:
        actual, fix = f"none of {len(missing)} images, such as {missing[0]}", "run regionclip features on all images"
        raise user_error(f"{key} {folder.folder}", "the regions of each training image", actual, fix)
    return [
        {**record, "stored_regions": folder.rows(name)}
        for record, name in zip(records, names, strict=True)
        if name is not None
    ]
