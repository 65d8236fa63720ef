"""Jobs behind the command lines, from parsed arguments to an exit code."""

from __future__ import annotations

import argparse
import logging
import shlex
import signal
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer
from detectron2.utils import comm

from regionclip.config.training_checks import training_problems
from regionclip.engine.checkpoint.loading import weight_files
from regionclip.engine.checkpoint.run import RunCheckpoints
from regionclip.engine.command import DONE, INTERRUPTED, SOME_FAILED, load_checked_config, open_output
from regionclip.engine.detector import load_detector
from regionclip.engine.evaluation.evaluate import check_test_sets, evaluate, prepare_evaluation
from regionclip.engine.evaluation.pages import write_pages
from regionclip.engine.ownership import own_folder
from regionclip.engine.training.state import require_agreement
from regionclip.engine.training.trainer import DetectorTrainer, TrainingReport
from regionclip.errors import UserError, user_error

logger = logging.getLogger(__name__)


def evaluate_only(args: argparse.Namespace) -> int:
    """Evaluate the weights of the config, or with `--resume` the last checkpoint of OUTPUT_DIR.

    Returns:
        `DONE`, or `SOME_FAILED` if an image could not be read.

    Raises:
        UserError: invalid config, weights or data; nothing is written then.
    """
    cfg = load_checked_config(args)
    with own_folder(Path(cfg.OUTPUT_DIR), f"OUTPUT_DIR {cfg.OUTPUT_DIR}"):
        return _evaluate_only(cfg, args)


def _evaluate_only(cfg: CfgNode, args: argparse.Namespace) -> int:
    weights, slots = cfg.MODEL.WEIGHTS, weight_files(cfg)
    newest = RunCheckpoints(cfg.OUTPUT_DIR).newest() if args.resume else None
    require_agreement(newest)
    if newest is not None:
        weights, slots = str(newest), {}  # the checkpoint of a run has all parts
    jobs = prepare_evaluation(cfg, [name for name in (weights, *slots.values()) if name], args.allow_missing)
    model = load_detector(cfg, weights, slots, trust_pickle=args.trust_pickle, allow_missing=args.allow_missing)
    open_output(cfg, args)
    reports = evaluate(cfg, model, jobs)
    if cfg.TEST.PAGE and comm.is_main_process():
        metrics = {name: report.metrics for name, report in reports.items()}
        write_pages(cfg, model, jobs, metrics, weights, trust_pickle=args.trust_pickle)
    comm.synchronize()  # a process that exits early would end the others
    return SOME_FAILED if any(report.failures for report in reports.values()) else DONE


def train(args: argparse.Namespace) -> int:
    """Train from the weights of the config, or with `--resume` from the newest checkpoint of OUTPUT_DIR.

    Returns:
        `DONE` at the end and after SIGTERM, `INTERRUPTED` after Ctrl-C, `SOME_FAILED` if an image
        could not be read.

    Raises:
        UserError: invalid config, weights or data, or a loss that is not finite.
    """
    cfg = scale_to_processes(load_checked_config(args))
    problems = list(training_problems(cfg, comm.get_world_size()))
    if problems:
        raise UserError(problems)
    check_test_sets(cfg)
    with own_folder(Path(cfg.OUTPUT_DIR), f"OUTPUT_DIR {cfg.OUTPUT_DIR}"):
        return _train(cfg, args)


def _train(cfg: CfgNode, args: argparse.Namespace) -> int:
    trainer = DetectorTrainer(cfg, trust_pickle=args.trust_pickle, allow_missing=args.allow_missing)
    trainer.resume_or_load(resume=args.resume)
    open_output(cfg, args)
    report = trainer.train()
    if comm.is_main_process():
        _summarise(report, cfg.SOLVER.MAX_ITER, args)
    comm.synchronize()  # a process that fails would end the others while they write
    if report.stopped_by == signal.SIGINT:
        return INTERRUPTED
    return SOME_FAILED if report.unreadable else DONE


def scale_to_processes(cfg: CfgNode) -> CfgNode:
    """Return the config for the current number of processes, scaled from SOLVER.REFERENCE_WORLD_SIZE if that is set.

    Raises:
        UserError: the reference does not divide the images of a batch.
    """
    reference, images = cfg.SOLVER.REFERENCE_WORLD_SIZE, cfg.SOLVER.IMS_PER_BATCH
    if reference and images % reference:
        fix = "name the processes that IMS_PER_BATCH is for"
        raise user_error("SOLVER.REFERENCE_WORLD_SIZE", f"a divisor of {images}, IMS_PER_BATCH", str(reference), fix)
    scaled = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
    scaled.defrost()
    # Periods are rounded to whole steps, and 0 means never.
    scaled.SOLVER.CHECKPOINT_PERIOD = max(scaled.SOLVER.CHECKPOINT_PERIOD, min(cfg.SOLVER.CHECKPOINT_PERIOD, 1))
    scaled.TEST.EVAL_PERIOD = max(scaled.TEST.EVAL_PERIOD, min(cfg.TEST.EVAL_PERIOD, 1))
    scaled.freeze()
    return scaled


def _summarise(report: TrainingReport, max_iterations: int, args: argparse.Namespace) -> None:
    for line in report.unreadable:
        logger.error("Never read: image %s", line)
    counts = f"{report.iterations} of {max_iterations} iterations, {len(report.unreadable)} images unreadable"
    if report.stopped_by is None:
        logger.info("Done: %s; weights in %s", counts, report.weights)
        _suggest(args, "--eval-only", "MODEL.WEIGHTS", str(report.weights))
    else:
        name = signal.Signals(report.stopped_by).name
        logger.info("Stopped by %s: %s; state in %s", name, counts, report.weights)
        _suggest(args, "--resume")


def _suggest(args: argparse.Namespace, flag: str, *overrides: str) -> None:
    """Log the command line of this run plus a flag and overrides, unless another command started the run."""
    if args.program:
        kept = [argument for argument in args.arguments if argument not in ("--resume", "--eval-only")]
        logger.info("Next: %s", shlex.join([*args.program, flag, *kept, *overrides]))
