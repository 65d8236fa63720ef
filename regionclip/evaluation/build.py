"""From a dataset's metadata to its evaluator."""

from __future__ import annotations

from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from regionclip.errors import user_error
from regionclip.evaluation.coco import COCODetectionEvaluator
from regionclip.evaluation.lvis import LVISDetectionEvaluator
from regionclip.evaluation.predictions import PredictionWriter
from regionclip.evaluation.proposals import ProposalEvaluator


def build_evaluator(cfg: CfgNode, dataset_name: str, output_dir: str | Path, class_count: int) -> PredictionWriter:
    """Return the evaluator of a registered dataset.

    Args:
        cfg: names the implementation of the metrics.
        dataset_name: registered dataset.
        output_dir: for the files.
        class_count: classes of the detector; pictures without annotations take any number.

    Raises:
        UserError: the dataset has a kind of ground truth that no evaluator here reads.
    """
    metadata = MetadataCatalog.get(dataset_name)
    kind, backend = metadata.get("evaluator_type"), cfg.TEST.EVALUATION_BACKEND
    if kind == "coco":
        if not hasattr(metadata, "thing_dataset_id_to_contiguous_id"):
            DatasetCatalog.get(dataset_name)  # Detectron2 learns the classes of a COCO set on loading it
        if cfg.MODEL.META_ARCHITECTURE == "ProposalNetwork":
            class_ids = dict(zip(metadata.thing_classes, metadata.thing_dataset_id_to_contiguous_id, strict=True))
            groups = metadata.get("class_groups")
            return ProposalEvaluator(
                metadata.json_file, output_dir, class_ids=class_ids, class_groups=groups, backend=backend
            )
        return COCODetectionEvaluator(
            metadata.json_file,
            output_dir,
            class_names=metadata.thing_classes,
            category_ids=list(metadata.thing_dataset_id_to_contiguous_id),
            class_groups=metadata.get("class_groups"),
            backend=backend,
        )
    if kind == "lvis":
        lvis_ids = [i + 1 for i in range(len(metadata.thing_classes))]
        return LVISDetectionEvaluator(metadata.json_file, output_dir, category_ids=lvis_ids, backend=backend)
    if kind == "custom_img":
        return PredictionWriter(output_dir, "lvis_instances_results.json", range(1, class_count + 1))
    fix = "evaluate on a COCO or LVIS dataset, or on *_custom_img for predictions alone"
    raise user_error(f"DATASETS.TEST {dataset_name}", "a COCO or LVIS dataset", f"evaluator type {kind!r}", fix)
