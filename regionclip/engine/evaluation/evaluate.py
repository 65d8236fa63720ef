"""Evaluation of a model on the test sets of a config, with a table that states the protocol."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import print_csv_format
from detectron2.utils import comm
from tabulate import tabulate
from torch import nn

from regionclip.config.checks import class_count_problems, dataset_problems
from regionclip.config.resolve import (
    clip_architecture,
    find_weights,
    reads_class_names,
    test_class_count,
    uses_clip_backbone,
)
from regionclip.data.test_loader import TestLoader, build_test_loader, read_test_records
from regionclip.engine.evaluation.inference_loop import InferenceReport, run_inference
from regionclip.engine.ownership import on_main_process
from regionclip.errors import UserError, user_error
from regionclip.evaluation.build import build_evaluator
from regionclip.evaluation.predictions import PredictionWriter
from regionclip.files import write_json
from regionclip.fingerprints import config_parts, file_state, fingerprint
from regionclip.journal import Journal
from regionclip.modeling.detector import EmbedsClassNames
from regionclip.modeling.proposals.cache import flush_proposals
from regionclip.modeling.proposals.own import OwnProposals
from regionclip.records import Prediction, Record

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationJob:
    """One readable test set with its evaluator."""

    dataset_name: str
    loader: TestLoader
    evaluator: PredictionWriter
    output_dir: Path
    journal: Journal | None = None
    finished: list[Prediction] = field(default_factory=list)
    """Predictions of an interrupted run; on the main process only."""


def prepare_evaluation(
    cfg: CfgNode, weights: Sequence[str] = (), allow_missing: Sequence[str] = ()
) -> list[EvaluationJob]:
    """Read the datasets of DATASETS.TEST; writes nothing.

    Results will go to `OUTPUT_DIR/inference`, with a subfolder per dataset if there are several. If
    weight files are given, a journal is kept: after an interruption the same command runs only the
    images that were not finished.

    Raises:
        UserError: a dataset cannot be read, or the folder has unfinished results of another run.
    """
    names, inference_dir = cfg.DATASETS.TEST, Path(cfg.OUTPUT_DIR) / "inference"
    if not names:
        raise user_error("DATASETS.TEST", "at least one dataset", "none", "name one, see datasets/README.md")
    jobs = []
    for name in names:
        output_dir = inference_dir / name if len(names) > 1 else inference_dir
        records = _records(cfg, name)
        journal = None
        if weights:
            journal = Journal(output_dir, evaluation_fingerprint(cfg, name, records, weights, allow_missing))
        finished, ids = _finished_before(name, journal)
        loader = build_test_loader(cfg, [record for record in records if record["image_id"] not in ids])
        evaluator = build_evaluator(cfg, name, output_dir, test_class_count(cfg, name))
        jobs.append(EvaluationJob(name, loader, evaluator, output_dir, journal, finished))
    return jobs


def check_test_sets(cfg: CfgNode) -> None:
    """Read the datasets of DATASETS.TEST, so that training fails early.

    Raises:
        UserError: a dataset cannot be read, or has other classes than the detector.
    """
    for name in cfg.DATASETS.TEST:
        problems = list(dataset_problems(name, "DATASETS.TEST"))
        if problems:
            raise UserError(problems)
        _records(cfg, name)


def _records(cfg: CfgNode, name: str) -> list[Record]:
    records = read_test_records(cfg, name)
    # The classes of a user's dataset are known only now.
    problems = list(class_count_problems(cfg, name))
    if problems:
        raise UserError(problems)
    return records


def _finished_before(name: str, journal: Journal | None) -> tuple[list[Prediction], set[int]]:
    """Return the finished predictions, on the main process, and their image ids, on every process."""
    # Read only once: another process may start writing while a slower one still reads.
    if journal is not None:
        on_main_process(journal.require_own)
    finished = journal.finished() if journal and comm.is_main_process() else []
    ids = set(itertools.chain(*comm.all_gather([prediction["image_id"] for prediction in finished])))
    if ids:
        logger.info("%s: %d images were finished by an interrupted run", name, len(ids))
    return finished, ids


def evaluate(cfg: CfgNode, model: nn.Module, jobs: Sequence[EvaluationJob]) -> dict[str, InferenceReport]:
    """Run the model on the jobs of `prepare_evaluation`, and write predictions and metrics.

    Files of a job: `coco_instances_results.json` or `lvis_instances_results.json`,
    `instances_predictions.pth`, and `metrics.json`.

    Returns:
        The report of each dataset by name.
    """
    reports = {}
    for job in jobs:
        if reads_class_names(cfg) and isinstance(model, EmbedsClassNames):
            model.set_classes(MetadataCatalog.get(job.dataset_name).thing_classes)
        evaluated = OwnProposals(model) if cfg.TEST.EVALUATE_PROPOSALS else model
        reports[job.dataset_name] = report = run_inference(
            evaluated, job.loader, job.evaluator, job.journal, job.finished
        )
        flush_proposals(model)
        if comm.is_main_process():
            _write_summary(cfg, job.dataset_name, report, job.output_dir)
    comm.synchronize()  # a process that exits early would end the others
    # Kept until now, so that an interruption between two datasets loses neither.
    for job in jobs:
        if job.journal is not None:
            job.journal.remove()
    return reports


def protocol(cfg: CfgNode, dataset_name: str) -> str:
    """Return a description of the protocol that metrics on this dataset with this config follow."""
    groups = MetadataCatalog.get(dataset_name).get("class_groups")
    parts = [dataset_name, f"{test_class_count(cfg, dataset_name)} classes"]
    if groups:
        parts[-1] += f" ({', '.join(f'{len(members)} {group}' for group, members in groups.items())})"
    if uses_clip_backbone(cfg):
        parts.append(f"CLIP {clip_architecture(cfg).name}")
    parts.append(_regions(cfg))
    heads = cfg.MODEL.ROI_HEADS
    nms = f"soft-NMS ({heads.SOFT_NMS_METHOD})" if heads.SOFT_NMS_ENABLED else f"NMS {heads.NMS_THRESH_TEST}"
    parts.append(f"{nms} across classes" if heads.NMS_ACROSS_CLASSES else nms)
    parts.append(f"top {cfg.TEST.DETECTIONS_PER_IMAGE}, score above {heads.SCORE_THRESH_TEST}")
    return "; ".join(parts)


def results_table(metrics: Mapping[str, Mapping[str, float]]) -> str:
    """Return a text table of the metrics, one row per task, without per-class metrics."""
    shown = {task: _headline(scores) for task, scores in metrics.items()}
    columns = list(dict.fromkeys(name for scores in shown.values() for name in scores))
    rows = [[task, *(scores.get(name, float("nan")) for name in columns)] for task, scores in shown.items()]
    return tabulate(rows, headers=["task", *columns], tablefmt="simple", floatfmt=".2f")


def _without_nan(metrics: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float | None]]:
    # JSON has no NaN.
    return {
        task: {name: None if math.isnan(value) else value for name, value in scores.items()}
        for task, scores in metrics.items()
    }


def _headline(scores: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in scores.items() if not name.startswith("AP-")}


def _regions(cfg: CfgNode) -> str:
    clip = cfg.MODEL.CLIP
    names = {"": "own RPN boxes", "GT": "ground-truth boxes", "GRID": "grid cells"}
    names["FILE"] = f"boxes of {Path(clip.PROPOSAL_FILE).name}"
    if clip.CROP_REGION_TYPE in names:
        return names[clip.CROP_REGION_TYPE]
    fusion = f", score times objectness ({clip.RPN_SCORE_FUSION})" if clip.MULTIPLY_RPN_SCORE else ""
    return f"RPN boxes of {Path(clip.OFFLINE_RPN_CONFIG).stem}{fusion}"


def _write_summary(cfg: CfgNode, name: str, report: InferenceReport, output_dir: Path) -> None:
    content: dict[str, Any] = {
        "protocol": protocol(cfg, name),
        "classes": test_class_count(cfg, name),
        "images": report.images,
        "failures": report.failures,
    }
    write_json(output_dir / "metrics.json", {**content, "metrics": _without_nan(report.metrics)})
    if report.metrics:
        logger.info("%s\n%s", content["protocol"], results_table(report.metrics))
        print_csv_format({task: dict(scores) for task, scores in report.metrics.items()})
    else:
        logger.info("%s: predictions only, no ground truth", content["protocol"])
    counts = f"{report.images} images, {len(report.failures)} failed"
    logger.info("Done: %s, in %.0f s; results in %s", counts, report.seconds, output_dir)


def evaluation_fingerprint(
    cfg: CfgNode,
    dataset_name: str,
    records: Sequence[Record],
    weights: Sequence[str],
    allow_missing: Sequence[str] = (),
) -> str:
    """Return a hash of everything that determines the predictions of an evaluation.

    Args:
        cfg: its values, and the state (size and time) of the files that it names.
        dataset_name: registered dataset, with its annotation file.
        records: the images, and the state of their files.
        weights: checkpoint files, as given by the user.
        allow_missing: key prefixes of weights that may keep their initial values.
    """
    annotations = MetadataCatalog.get(dataset_name).get("json_file")
    files = [find_weights(name) for name in weights] + ([Path(annotations)] if annotations else [])
    files += [Path(record["file_name"]) for record in records]
    images = [record["image_id"] for record in records]
    states = [(str(path), file_state(path)) for path in files]
    return fingerprint([dataset_name, *config_parts(cfg), sorted(allow_missing), images, states])
