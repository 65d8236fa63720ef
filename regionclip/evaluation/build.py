"""Evaluator of a registered dataset, selected by its metadata."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from regionclip.data.datasets.registered import read_clean_records
from regionclip.errors import user_error
from regionclip.evaluation.coco import COCODetectionEvaluator
from regionclip.evaluation.ground_truth import read_coco_truth, read_lvis_truth
from regionclip.evaluation.lvis import LVISDetectionEvaluator
from regionclip.evaluation.predictions import PredictionWriter
from regionclip.evaluation.proposals import ProposalEvaluator


def build_evaluator(cfg: CfgNode, dataset_name: str, output_dir: str | Path, class_count: int) -> PredictionWriter:
    """Return the evaluator of a registered dataset.

    Args:
        cfg: selects the implementation of the metrics.
        dataset_name: registered dataset.
        output_dir: for the files.
        class_count: number of the detector's classes; arbitrary for images without annotations.

    Raises:
        UserError: no evaluator supports the dataset's kind of ground truth.
    """
    metadata = MetadataCatalog.get(dataset_name)
    kind, backend = metadata.get("evaluator_type"), cfg.TEST.EVALUATION_BACKEND
    file, root = metadata.get("json_file"), metadata.get("image_root")
    of_function = partial(read_clean_records, dataset_name)
    if cfg.TEST.EVALUATE_PROPOSALS and kind != "coco":
        fix = "evaluate on a COCO dataset, or add TEST.EVALUATE_PROPOSALS False"
        raise user_error(f"DATASETS.TEST {dataset_name}", "a COCO dataset, for recall", f"{kind!r}", fix)
    if kind == "coco":
        if not hasattr(metadata, "thing_dataset_id_to_contiguous_id") and dataset_name in DatasetCatalog:
            of_function()  # the classes of a user's COCO dataset are known after loading it
        class_ids = _class_ids(dataset_name)
        ids, groups = list(class_ids.values()), metadata.get("class_groups")
        read = partial(read_coco_truth, file, ids, root) if file else of_function
        if cfg.MODEL.META_ARCHITECTURE == "ProposalNetwork" or cfg.TEST.EVALUATE_PROPOSALS:
            unseen = cfg.TEST.RECALL_PROTOCOL == "oln"
            return ProposalEvaluator(
                read, output_dir, class_ids=class_ids, class_groups=groups, backend=backend, unseen_budget=unseen
            )
        return COCODetectionEvaluator(
            read, output_dir, class_names=list(class_ids), category_ids=ids, class_groups=groups, backend=backend
        )
    if kind == "lvis":
        numbers = metadata.get("thing_dataset_id_to_contiguous_id")
        ids = sorted(numbers, key=numbers.get) if numbers else list(range(1, len(_class_names(dataset_name)) + 1))
        read = partial(read_lvis_truth, file, ids, root) if file else of_function
        return LVISDetectionEvaluator(read, output_dir, category_ids=ids, backend=backend)
    if kind == "custom_img":
        return PredictionWriter(output_dir, "lvis_instances_results.json", range(1, class_count + 1))
    fix = "evaluate on a COCO or LVIS dataset, or on *_custom_img for predictions alone"
    raise user_error(f"DATASETS.TEST {dataset_name}", "a COCO or LVIS dataset", f"evaluator type {kind!r}", fix)


def _class_ids(dataset_name: str) -> dict[str, Any]:
    """Return the category id of each class by name, in class order; duplicate names get the id appended."""
    names = _class_names(dataset_name)
    # As in Detectron2: without given ids, classes are numbered from 0.
    numbers = MetadataCatalog.get(dataset_name).get(
        "thing_dataset_id_to_contiguous_id", {i: i for i in range(len(names))}
    )
    ids = sorted(numbers, key=numbers.get)
    counts = Counter(names)
    return {
        name if counts[name] == 1 else f"{name} ({number})": number for name, number in zip(names, ids, strict=True)
    }


def _class_names(dataset_name: str) -> Sequence[str]:
    """Return the class names; raises `UserError` for a user's dataset function without class names."""
    names = MetadataCatalog.get(dataset_name).get("thing_classes")
    if names is None:
        fix = "set thing_classes in MetadataCatalog"
        raise user_error(f"DATASETS.TEST {dataset_name}", "the names of its classes", "none", fix)
    return names
