"""The HTML page of each evaluated dataset."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch import nn

from regionclip.data.datasets.annotation_file import by_id
from regionclip.engine.checkpoint.reading import backbone_hash
from regionclip.engine.evaluation.evaluate import EvaluationJob, protocol
from regionclip.engine.training.writers import METRICS_FILE
from regionclip.evaluation.coco import COCODetectionEvaluator
from regionclip.evaluation.ground_truth import coco_truth, lvis_truth
from regionclip.evaluation.lvis import LVISDetectionEvaluator
from regionclip.evaluation.page.calibration import PlattParameters
from regionclip.evaluation.page.matching import Floats
from regionclip.evaluation.page.page import Evaluated, write_page
from regionclip.modeling.detector import OpenVocabularyDetector
from regionclip.modeling.score_scale import SameScores, ScoreScale, calibrated

logger = logging.getLogger(__name__)

PAGE = "report.html"
"""Next to `metrics.json`."""


def write_pages(
    cfg: CfgNode,
    model: nn.Module,
    jobs: Sequence[EvaluationJob],
    metrics: Mapping[str, Mapping[str, Any]],
    weights: str,
    *,
    trust_pickle: bool = False,
) -> list[Path]:
    """Write the page of each dataset with objects and detections; other datasets have none.

    Args:
        cfg: config of the evaluation.
        model: the evaluated detector.
        jobs: finished jobs.
        metrics: of each dataset, by task.
        weights: file of the evaluated weights; the training log next to it, if there is one, is shown too.
        trust_pickle: allow that file to run code.
    """
    scale: ScoreScale = model.score_scale if isinstance(model, OpenVocabularyDetector) else SameScores()
    temperature, bias = cfg.MODEL.CLIP.SCORE_TEMPERATURE, cfg.MODEL.CLIP.SCORE_BIAS
    scale = calibrated(scale, temperature, bias)
    log = Path(weights).parent / METRICS_FILE
    written = []
    identity = backbone_hash(weights, trust_pickle=trust_pickle) if weights else ""
    for job in jobs:
        evaluator, found = job.evaluator, metrics[job.dataset_name].get("bbox")
        if not isinstance(evaluator, COCODetectionEvaluator | LVISDetectionEvaluator):
            continue
        records = by_id(evaluator.read_records(), "image_id")
        if not found or not evaluator.results or not any(record.get("annotations") for record in records):
            continue
        is_federated = isinstance(evaluator, LVISDetectionEvaluator)
        metadata = MetadataCatalog.get(job.dataset_name)
        evaluated = Evaluated(
            dataset=job.dataset_name,
            protocol=protocol(cfg, job.dataset_name),
            metrics=found,
            class_names=list(metadata.thing_classes),
            class_groups=metadata.get("class_groups") or {},
            records=records,
            truth=(lvis_truth if is_federated else coco_truth)(records, evaluator.category_ids),
            results=evaluator.results,
            is_federated=is_federated,
            shown=_Shown(scale),
            platt=PlattParameters(temperature, bias),
            weights=identity,
            training_log=log if log.is_file() else None,
        )
        written.append(write_page(job.output_dir / PAGE, evaluated))
        logger.info("Page to look through: %s", written[-1])
    return written


class _Shown:
    """Scores as users see them, clipped to [0, 1]."""

    def __init__(self, scale: ScoreScale) -> None:
        self.scale = scale

    def __call__(self, scores: Floats) -> Floats:
        return np.clip(self.scale.shown(torch.from_numpy(scores.copy())).numpy(), 0.0, 1.0)
