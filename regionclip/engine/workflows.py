"""The whole jobs behind the command lines, from parsed arguments to an exit code."""

from __future__ import annotations

import argparse

from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from regionclip.config.checks import dataset_problems
from regionclip.engine.checkpoint import load_weights
from regionclip.engine.command import DONE, SOME_FAILED, load_checked_config, open_output
from regionclip.engine.evaluate import evaluate, prepare_evaluation
from regionclip.engine.trainer import DetectorTrainer
from regionclip.errors import UserError
from regionclip.modeling import build_model


def evaluate_only(args: argparse.Namespace) -> int:
    """Evaluate the weights of the config, or with `--resume` the last checkpoint of OUTPUT_DIR.

    Returns:
        `DONE`, or `SOME_FAILED` when an image could not be read.

    Raises:
        UserError: bad config, weights or data; nothing has been written then.
    """
    cfg = load_checked_config(args)
    weights, rpn_weights = cfg.MODEL.WEIGHTS, None
    if cfg.MODEL.CLIP.CROP_REGION_TYPE == "RPN":
        rpn_weights = cfg.MODEL.CLIP.BB_RPN_WEIGHTS
    checkpoints = DetectionCheckpointer(nn.Identity(), cfg.OUTPUT_DIR)
    if args.resume and checkpoints.has_checkpoint():
        weights, rpn_weights = checkpoints.get_checkpoint_file(), None
    jobs = prepare_evaluation(cfg, [name for name in (weights, rpn_weights) if name], args.allow_missing)
    model = build_model(cfg)
    load_weights(model, weights, rpn_weights, trust_pickle=args.trust_pickle, allow_missing=args.allow_missing)
    open_output(cfg, args)
    reports = evaluate(cfg, model, jobs)
    return SOME_FAILED if any(report.failures for report in reports.values()) else DONE


def train(args: argparse.Namespace) -> int:
    """Train from the weights of the config, or with `--resume` from the last checkpoint of OUTPUT_DIR.

    Raises:
        UserError: bad config, weights or data.
    """
    cfg = load_checked_config(args)
    problems = [problem for name in cfg.DATASETS.TRAIN for problem in dataset_problems(name, "DATASETS.TRAIN")]
    if problems:
        raise UserError(problems)
    trainer = DetectorTrainer(cfg, trust_pickle=args.trust_pickle, allow_missing=args.allow_missing)
    trainer.resume_or_load(resume=args.resume)
    open_output(cfg, args)
    trainer.train()
    return DONE
