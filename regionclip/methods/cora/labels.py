"""CLIP-aligned labeling: each annotated box gets the class that the region classifier sees in it (CORA)."""

from __future__ import annotations

import json
import logging
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes
from detectron2.utils import comm

from regionclip.data.class_lists import names_of_embeddings
from regionclip.data.datasets.annotation_file import Entry, by_id, id_key, read_annotation_file
from regionclip.engine.class_names import are_same_labels
from regionclip.errors import user_error
from regionclip.files import atomic_write
from regionclip.fingerprints import config_parts, file_state, fingerprint
from regionclip.journal import Journal
from regionclip.methods.cora.image_pass import each_image
from regionclip.methods.cora.prompting import RegionPromptCLIP
from regionclip.records import MappedImage

FORMAT, FIX = "COCO's JSON format", "name the annotation file of the base classes"

logger = logging.getLogger(__name__)


@dataclass
class RelabelReport:
    """Outcome of a run, over all processes."""

    boxes: int = 0
    """Boxes that were classified."""
    unchanged: int = 0
    """Those whose class stayed."""
    failures: list[str] = field(default_factory=list)
    """One line for each unreadable image, whose classes stay."""


def relabel(
    cfg: CfgNode, model: RegionPromptCLIP, annotations: str | Path, image_root: str | Path, output: Path
) -> RelabelReport:
    """Write a copy of an annotation file in which only `category_id` of boxes differs.

    Crowds and boxes without area keep their class. Images are divided among the processes; an interrupted run goes on
    where it stopped.

    Args:
        cfg: config of the model.
        model: trained region prompt, with the classes of the file in ascending order of their ids.
        annotations: COCO or LVIS file.
        image_root: folder of its images.
        output: file to write.

    Raises:
        UserError: unreadable file, or classes other than those of the model.
    """
    content = read_annotation_file(annotations, what=FORMAT, fix=FIX)
    categories = [category["id"] for category in by_id(content["categories"])]
    _require_classes(model, content, str(annotations), names_of_embeddings(cfg.MODEL.CLIP.TEXT_EMB_PATH))
    of_image: dict[str | None, list[int]] = defaultdict(list)
    for place, annotation in enumerate(content.get("annotations") or ()):
        of_image[id_key(annotation.get("image_id"))].append(place)
    run = fingerprint([*config_parts(cfg), file_state(Path(annotations)), os.path.realpath(image_root)])
    model.eval()

    def label(image: Entry, mapped: MappedImage) -> dict[str, Any]:
        return {"labels": _labels_of(model, mapped, content, of_image[id_key(image["id"])])}

    journal = Journal(output.parent, run, output.stem)
    finished = each_image(cfg, content["images"], image_root, annotations, journal, label)
    report = RelabelReport()
    if comm.is_main_process():
        _write(content, categories, finished, output, report)
    comm.synchronize()
    journal.remove()
    return report


def _require_classes(model: RegionPromptCLIP, content: dict[str, Any], source: str, names: Sequence[str]) -> None:
    """Raise a `UserError` unless the categories, by id, are the classes of the model; `names` may be unknown."""
    classes, categories = model.train_classes, by_id(content["categories"])
    known = 0 if classes is None else classes.classes
    if classes is None or known != len(categories):
        fix = "name the embeddings of exactly these classes in MODEL.CLIP.TEXT_EMB_PATH"
        raise user_error(f"{source}: categories", f"the {known} classes of the model", f"{len(categories)}", fix)
    listed = [str(category["name"]) for category in categories]
    if names and not are_same_labels(names, listed):
        expected, fix = f"{', '.join(names[:5])}, as the embeddings", "embed these names in the order of their ids"
        raise user_error(f"{source}: categories", expected, ", ".join(listed[:5]), fix)


@torch.no_grad()
def _labels_of(
    model: RegionPromptCLIP, image: MappedImage, content: dict[str, Any], places: Sequence[int]
) -> dict[str, int]:
    """Return the most similar class index of each classified annotation, by its place in the file."""
    boxes = {place: box for place in places if (box := _corners(content["annotations"][place])) is not None}
    if not boxes:
        return {}
    height, width = image["image"].shape[1:]
    scaled = Boxes(torch.tensor(list(boxes.values()), device=model.device))
    scaled.scale(width / image["width"], height / image["height"])
    (encoding,) = model.encode_images([image], proposals=False)
    probabilities = model.probabilities(model.embed_regions(encoding, scaled), model.train_classes)
    best = probabilities[:, :-1].argmax(dim=1).tolist()
    return {str(place): number for place, number in zip(boxes, best, strict=True)}


def _corners(annotation: dict[str, Any]) -> list[float] | None:
    """Return the box of an annotation, xyxy; None for a crowd or a box without area."""
    x, y, width, height = map(float, annotation["bbox"])
    if annotation.get("iscrowd") or not (width > 0 and height > 0):
        return None
    return [x, y, x + width, y + height]


def _write(
    content: dict[str, Any], categories: Sequence[Any], finished: Sequence[Any], output: Path, report: RelabelReport
) -> None:
    for entry in finished:
        if "error" in entry:
            report.failures.append(entry["error"])
        for place, number in entry.get("labels", {}).items():
            annotation = content["annotations"][int(place)]
            report.boxes += 1
            report.unchanged += id_key(annotation["category_id"]) == id_key(categories[number])
            annotation["category_id"] = categories[number]
    with atomic_write(output) as file:
        file.write(json.dumps(content).encode())
