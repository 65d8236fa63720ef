"""One pass over the images of an annotation file: shared by processes, and resumed after an interruption."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils import comm

from regionclip.data.datasets.annotation_file import Entry, id_key
from regionclip.data.datasets.coco_json import image_file
from regionclip.data.test_loader import TestMapper
from regionclip.journal import Journal
from regionclip.progress import progress_bar
from regionclip.records import MappedImage


def each_image(
    cfg: CfgNode,
    images: Sequence[Entry],
    image_root: str | Path,
    annotations: str | Path,
    journal: Journal,
    compute: Callable[[Entry, MappedImage], dict[str, Any]],
) -> list[dict[str, Any]]:
    """Compute an entry for each image, and return the entries of all processes in the main one; empty in others.

    Images that could not be read are tried again.

    The journal stays until `Journal.remove`, so that an interrupted pass goes on where it stopped.

    Args:
        cfg: INPUT of the detector.
        images: `images` of the annotation file.
        image_root: folder of the images.
        annotations: the file, for messages.
        journal: where finished images are kept.
        compute: returns what is kept of an image, from its entry in the file and its mapped form. An unreadable image
            is not computed: its entry has an `error`.

    Raises:
        UserError: the folder has results of another unfinished run.
    """
    journal.require_own()
    finished = {entry["image_id"] for entry in journal.finished() if "error" not in entry}
    missing = [image for image in images if id_key(image["id"]) not in finished]
    comm.synchronize()  # before any process writes
    mapper = TestMapper(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, cfg.INPUT.FORMAT, keep_annotations=False)
    share = missing[comm.get_rank() :: comm.get_world_size()]
    for image in progress_bar(share, unit="image", hidden=not comm.is_main_process()):
        mapped = mapper({"file_name": image_file(image, str(image_root), str(annotations))})
        content = {"error": mapped["error"]} if "error" in mapped else compute(image, mapped)
        journal.append([{"image_id": id_key(image["id"]), **content}])
    comm.synchronize()
    return journal.finished() if comm.is_main_process() else []
