#!/usr/bin/env python3
"""Train or evaluate a detector: `--config-file FILE [--eval-only] [--num-gpus N] KEY VALUE ...`."""

from __future__ import annotations

import argparse

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import launch

from regionclip.engine import DetectorTrainer, evaluate
from regionclip.engine.checkpoint import load_weights
from regionclip.engine.command import (
    DONE,
    SOME_FAILED,
    detector_argument_parser,
    load_checked_config,
    log_to_console,
    open_output,
    run_command,
    usable_gpus,
)
from regionclip.modeling import build_model


def evaluate_only(args: argparse.Namespace) -> int:
    """Evaluate the weights of the config, or with `--resume` the last checkpoint of OUTPUT_DIR."""
    cfg = load_checked_config(args)
    model = build_model(cfg)
    weights, rpn_weights = cfg.MODEL.WEIGHTS, None
    if cfg.MODEL.CLIP.CROP_REGION_TYPE == "RPN":
        rpn_weights = cfg.MODEL.CLIP.BB_RPN_WEIGHTS
    checkpoints = DetectionCheckpointer(model, cfg.OUTPUT_DIR)
    if args.resume and checkpoints.has_checkpoint():
        weights, rpn_weights = checkpoints.get_checkpoint_file(), None
    load_weights(model, weights, rpn_weights, trust_pickle=args.trust_pickle, allow_missing=args.allow_missing)
    open_output(cfg, args)
    reports = evaluate(cfg, model)
    return SOME_FAILED if any(report.failures for report in reports.values()) else DONE


def train(args: argparse.Namespace) -> int:
    """Train from the weights of the config, or with `--resume` from the last checkpoint of OUTPUT_DIR."""
    cfg = load_checked_config(args)
    trainer = DetectorTrainer(cfg, trust_pickle=args.trust_pickle, allow_missing=args.allow_missing)
    trainer.resume_or_load(resume=args.resume)
    open_output(cfg, args)
    trainer.train()
    return DONE


def work(args: argparse.Namespace) -> None:
    """Do the work of one process and exit with its code."""
    torch.multiprocessing.set_sharing_strategy("file_system")
    log_to_console()
    run_command(lambda: (evaluate_only if args.eval_only else train)(args))


def main() -> None:
    """Parse the command line and start one process for each GPU."""
    args = detector_argument_parser(str(__doc__)).parse_args()
    launch(work, usable_gpus(args.num_gpus), args.num_machines, args.machine_rank, args.dist_url, args=(args,))


if __name__ == "__main__":
    main()
