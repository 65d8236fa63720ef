#!/usr/bin/env python3
"""Save the embeddings of regions of the images in INPUT_DIR, a file for each image in OUTPUT_DIR.

With MODEL.CLIP.TEXT_EMB_PATH the regions are detections (boxes, classes, probs, feats), without it proposals
(boxes, feats). Given again, the command goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import logging
from typing import cast

import torch
from detectron2.utils import comm

from regionclip.config import load_config
from regionclip.engine.checkpoint import load_weights
from regionclip.engine.command import (
    DONE,
    SOME_FAILED,
    choose_device,
    detector_argument_parser,
    log_to_console,
    plan_processes,
    report_user_errors,
    run_command,
)
from regionclip.engine.distributed import launch
from regionclip.engine.region_features import check_extraction, extract_region_features
from regionclip.modeling import CLIPFastRCNN, build_model

logger = logging.getLogger("regionclip.features")


def extract(args: argparse.Namespace) -> int:
    """Do the share of one process."""
    cfg = load_config(args.config_file, args.opts)
    cfg.MODEL.DEVICE = choose_device(cfg.MODEL.DEVICE, args.num_gpus)
    check_extraction(cfg)
    cfg.freeze()
    model = cast(CLIPFastRCNN, build_model(cfg))
    clip = cfg.MODEL.CLIP
    # Without class embeddings nothing is classified, and proposals are kept as they are.
    unused = [] if clip.TEXT_EMB_PATH else ["roi_heads.box_predictor"]
    allowed = [*args.allow_missing, *unused]
    load_weights(model, cfg.MODEL.WEIGHTS, clip.BB_RPN_WEIGHTS, trust_pickle=args.trust_pickle, allow_missing=allowed)
    report = extract_region_features(cfg, model)
    if comm.is_main_process():
        for failure in report.failures:
            logger.error("Skipped unreadable image %s", failure)
        counts = f"{report.written} images written, {report.present} there before, {len(report.failures)} failed"
        logger.info("Done: %s; features in %s", counts, cfg.OUTPUT_DIR)
    comm.synchronize()
    return SOME_FAILED if report.failures else DONE


def work(args: argparse.Namespace) -> None:
    """Do the work of one process and exit with its code."""
    torch.multiprocessing.set_sharing_strategy("file_system")
    log_to_console()
    run_command(lambda: extract(args))


if __name__ == "__main__":
    arguments = detector_argument_parser(str(__doc__)).parse_args()
    processes, on_gpu = report_user_errors(lambda: plan_processes(arguments))
    report_user_errors(lambda: launch(work, arguments, processes=processes, on_gpu=on_gpu))
