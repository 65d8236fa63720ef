"""Training records of LP-OVOD: with stored embeddings of proposals, or with the labels of novel prototypes."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from regionclip.clip.prompts import plain_name
from regionclip.config.resolve import clip_architecture
from regionclip.data.region_features.training import with_stored_embeddings
from regionclip.engine.class_names import are_same_labels
from regionclip.errors import user_error
from regionclip.methods.lp_ovod.classes import TaughtNames
from regionclip.records import Record

logger = logging.getLogger(__name__)


def extend_records(cfg: CfgNode, records: list[Record]) -> list[Record]:
    """Return the records of a stage.

    In stage `base` each gets the `stored_regions` of its image. In stage `probe` the annotations of novel classes get
    the row of their prototype as class, and the others are dropped.

    Raises:
        UserError: other classes than those of the config, embeddings of another CLIP, or an image without regions.
    """
    if cfg.MODEL.META_ARCHITECTURE != "LPOVOD":
        return records
    names = TaughtNames.from_config(cfg)
    classes = list(MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).thing_classes)
    if cfg.MODEL.LP_OVOD.STAGE == "probe":
        return _with_prototypes(records, classes, names)
    if not are_same_labels(names.base, classes):
        expected, fix = "the classes of DATASETS.TRAIN, in their order", "name their class list or file"
        raise user_error("MODEL.LP_OVOD.BASE_CLASSES", expected, cfg.MODEL.LP_OVOD.BASE_CLASSES, fix)
    if not cfg.MODEL.LP_OVOD.DISTILL_WEIGHT:
        return records
    key, path = "MODEL.LP_OVOD.REGIONS", cfg.MODEL.LP_OVOD.REGIONS
    return with_stored_embeddings(records, path, key, clip_architecture(cfg).name, cfg.MODEL.CLIP.TEXT_EMB_DIM)


def _with_prototypes(records: Sequence[Record], classes: Sequence[str], names: TaughtNames) -> list[Record]:
    rows = {plain_name(name): row for row, name in enumerate(names.novel)}
    row_of_class = [rows.get(plain_name(name)) for name in classes]
    found = [row for row in row_of_class if row is not None]
    if len(found) < len(names.novel):
        missing = [name for row, name in enumerate(names.novel) if row not in found]
        expected, fix = "a class of DATASETS.TRAIN for each name", "retrieve boxes for it, or leave it out"
        raise user_error("MODEL.LP_OVOD.NOVEL_CLASSES", expected, f"none for {', '.join(missing[:5])}", fix)
    relabeled: list[Record] = []
    for record in records:
        annotations = [
            {**annotation, "category_id": row}
            for annotation in record["annotations"]
            if (row := row_of_class[annotation["category_id"]]) is not None
        ]
        if annotations:
            relabeled.append({**record, "annotations": annotations})  # type: ignore[typeddict-item]
    logger.info("%d of %d images have boxes of the %d novel classes", len(relabeled), len(records), len(names.novel))
    return relabeled
