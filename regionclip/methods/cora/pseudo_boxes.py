"""Pseudo boxes of further classes in the training of the localizer (CORA+; `--pseudo_box` of the published code)."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, BoxMode, pairwise_iou
from torch import Tensor

from regionclip.clip.prompts import same_to_clip
from regionclip.clip.vocabulary import Vocabulary
from regionclip.data.class_lists import names_of_embeddings
from regionclip.data.datasets.annotation_file import id_key, read_json
from regionclip.errors import user_error
from regionclip.methods.cora.matching import Targets
from regionclip.records import Annotation, Record

OVERLAP = 0.5
"""IoU with an annotated box from which a pseudo box is dropped, as published."""

WHAT, FIX = "a list of pseudo boxes", "write it with `regionclip cora pseudo-boxes`"

logger = logging.getLogger(__name__)


def extend_records(cfg: CfgNode, records: list[Record]) -> list[Record]:
    """Return records with the pseudo boxes of MODEL.CORA.PSEUDO_BOXES, if the config names a file.

    Raises:
        UserError: an unusable file, or a class name without embedding.
    """
    path = cfg.MODEL.CORA.PSEUDO_BOXES
    return add_pseudo_boxes(records, read_pseudo_boxes(path), class_numbers(cfg)) if path else records


def class_numbers(cfg: CfgNode) -> dict[str, int]:
    """Return the number of each class name, as CLIP reads it: the K trained classes, then those of PSEUDO_EMBEDDINGS.

    Raises:
        UserError: unreadable embeddings, or trained classes without names.
    """
    path = cfg.MODEL.CLIP.TEXT_EMB_PATH
    base = names_of_embeddings(path)
    if not base:
        fix = "write them with `regionclip concepts`, whose files have names"
        raise user_error(f"MODEL.CLIP.TEXT_EMB_PATH {path}", "names, to tell pseudo classes from", "none", fix)
    further = Vocabulary.from_file(cfg.MODEL.CORA.PSEUDO_EMBEDDINGS).names
    numbers = {same_to_clip(name): len(base) + row for row, name in enumerate(further)}
    return numbers | {same_to_clip(name): number for number, name in enumerate(base)}


def read_pseudo_boxes(path: str) -> dict[str, list[dict[str, Any]]]:
    """Return the entries of a JSON list by image id: `image_id`, `bbox` (x, y, width, height), `category_name`.

    Raises:
        UserError: unreadable file, or an entry that lacks one of these, or has no area.
    """
    content = read_json(path, what=WHAT, fix=FIX)
    if not isinstance(content, list):
        raise user_error(path, WHAT, type(content).__name__, FIX)
    by_image: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for number, entry in enumerate(content):
        image = id_key(entry.get("image_id")) if isinstance(entry, dict) else None
        if image is None or not isinstance(entry.get("category_name"), str) or not _is_box(entry.get("bbox")):
            expected = "image_id, category_name, and bbox [x, y, width, height] with an area"
            raise user_error(f"{path}: entry {number}", expected, str(entry)[:100], FIX)
        by_image[image].append(entry)
    return by_image


def _is_box(value: Any) -> bool:
    numbers = isinstance(value, list) and len(value) == 4 and all(isinstance(part, int | float) for part in value)
    return numbers and bool(torch.isfinite(torch.tensor(value)).all()) and value[2] > 0 and value[3] > 0


def add_pseudo_boxes(
    records: Sequence[Record], boxes: dict[str, list[dict[str, Any]]], numbers: dict[str, int]
) -> list[Record]:
    """Return records with the pseudo boxes of each image that overlap none of its annotated boxes.

    Args:
        records: with annotations in xyxy.
        boxes: of `read_pseudo_boxes`.
        numbers: of `class_numbers`.

    Raises:
        UserError: a class name without embedding.
    """
    names = {entry["category_name"] for entries in boxes.values() for entry in entries}
    if unknown := sorted(name for name in names if same_to_clip(name) not in numbers):
        actual = f"none of {', '.join(unknown[:5])}" + (", ..." if len(unknown) > 5 else "")
        fix = "embed all names of the pseudo boxes with `regionclip concepts --templates cora`"
        raise user_error("MODEL.CORA.PSEUDO_EMBEDDINGS", "an embedding for each name in PSEUDO_BOXES", actual, fix)
    extended, added = [], 0
    for record in records:
        further = _further(record, boxes.get(id_key(record["image_id"]) or "", []), numbers)
        added += len(further)
        extended.append(Record({**record, "annotations": [*record["annotations"], *further]}))
    total = sum(map(len, boxes.values()))
    logger.info("%d of %d pseudo boxes added: others overlap an annotated box, or have another image", added, total)
    return extended


def _further(record: Record, entries: Sequence[dict[str, Any]], numbers: dict[str, int]) -> list[Annotation]:
    if not entries:
        return []
    found = Boxes([BoxMode.convert(entry["bbox"], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS) for entry in entries])
    found.clip((record["height"], record["width"]))
    annotated = Boxes([annotation["bbox"] for annotation in record["annotations"]])
    overlaps = pairwise_iou(found, annotated).max(dim=1).values if len(annotated) else torch.zeros(len(found))
    kept = (overlaps < OVERLAP) & found.nonempty()
    return [
        {
            "bbox": found.tensor[row].tolist(),
            "bbox_mode": BoxMode.XYXY_ABS,
            "category_id": numbers[same_to_clip(entries[row]["category_name"])],
            "iscrowd": 0,
        }
        for row in kept.nonzero()[:, 0].tolist()
    ]


def classes_of_batch(base: Tensor, pseudo: Tensor | None, targets: Sequence[Targets]) -> tuple[Tensor, list[Targets]]:
    """Return class embeddings [K + P, D], and targets with labels below K + P: pseudo classes of the batch only.

    Args:
        base: embeddings of the trained classes [K, D].
        pseudo: of all pseudo classes, which have the labels from K on.
        targets: of each image.
    """
    labels = torch.cat([target.labels for target in targets])
    present = labels[labels >= len(base)].unique()  # ascending
    if pseudo is None or not len(present):
        return base, list(targets)
    renumbered = [
        torch.where(target.labels < len(base), target.labels, len(base) + torch.searchsorted(present, target.labels))
        for target in targets
    ]
    kept = [target._replace(labels=labels) for target, labels in zip(targets, renumbered, strict=True)]
    return torch.cat([base, pseudo[present - len(base)]]), kept
