"""Save the embeddings of regions of the images in INPUT_DIR, a file for each image in OUTPUT_DIR.

With MODEL.CLIP.TEXT_EMB_PATH the regions are detections (boxes, classes, probs, feats), without it proposals
(boxes, feats). Given again, the command goes on where it was interrupted. The published
command line, behind `tools/extract_region_features.py` and `regionclip features`.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence

from detectron2.utils import comm

from regionclip.config.loading import load_config
from regionclip.data.region_features.formats import SHARD_KINDS
from regionclip.engine.arguments import positive
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
from regionclip.engine.detector import load_detector
from regionclip.engine.distributed import launch
from regionclip.engine.features.extraction import (
    PROPOSALS,
    ExtractionJob,
    check_extraction,
    extract_region_features,
    read_extraction_input,
)
from regionclip.modeling.detector import require_detector

logger = logging.getLogger("regionclip.features")


def parse_arguments(arguments: Sequence[str] | None, program: str | None) -> argparse.Namespace:
    """Return a command line, that of the process unless given."""
    parser = detector_argument_parser(str(__doc__))
    parser.prog = program or parser.prog
    parser.add_argument(
        "--regions",
        default=PROPOSALS,
        metavar="RPN|GRID|FILE",
        help="the proposals of the RPN, the cells of a grid, or boxes of a JSON or npz file (docs/features.md)",
    )
    parser.add_argument("--dataset", default="", help="registered dataset, whose annotated boxes are the regions")
    parser.add_argument("--format", default="pth", choices=["pth", *SHARD_KINDS], help="a .pth an image, or shards")
    parser.add_argument("--images-at-once", type=positive, default=1, help="images in a pass of the backbone")
    parser.add_argument("--images-per-shard", type=positive, default=1000)
    parser.add_argument("--half", action="store_true", help="write embeddings as float16")
    parser.add_argument("--objectness", action="store_true", help="keep all proposals, and write their objectness")
    parser.add_argument("--min-objectness", type=float, default=0.0, help="with --objectness: leave out what has less")
    return parser.parse_args(arguments)


def extract(args: argparse.Namespace) -> int:
    """Do the share of one process."""
    job = ExtractionJob(
        args.regions,
        args.dataset,
        args.format,
        args.images_at_once,
        args.images_per_shard,
        half=args.half,
        objectness=args.objectness or args.min_objectness > 0,
        min_objectness=args.min_objectness,
    )
    cfg = load_config(args.config_file, args.opts)
    cfg.MODEL.DEVICE = choose_device(cfg.MODEL.DEVICE, args.num_gpus)
    job.configure(cfg)
    check_extraction(cfg, job)
    cfg.freeze()
    records = read_extraction_input(cfg, job)
    # Without class embeddings nothing is classified; regions that are kept need no box deltas.
    unused = ["roi_heads.box_predictor.bbox_pred"] if job.keeps_regions else []
    unused += [] if cfg.MODEL.CLIP.TEXT_EMB_PATH else ["roi_heads.box_predictor"]
    model = load_detector(cfg, trust_pickle=args.trust_pickle, allow_missing=[*args.allow_missing, *unused])
    report = extract_region_features(cfg, require_detector(model), job, records)
    if comm.is_main_process():
        for failure in report.failures:
            logger.error("Skipped image %s", failure)
        counts = f"{report.written} images written, {report.present} there before, {len(report.failures)} failed"
        logger.info("Done: %s; features in %s", counts, cfg.OUTPUT_DIR)
    comm.synchronize()
    return SOME_FAILED if report.failures else DONE


def work(args: argparse.Namespace) -> None:
    """Do the work of one process and exit with its code."""
    log_to_console()
    run_command(lambda: extract(args))


def main(arguments: Sequence[str] | None = None, program: str | None = None) -> None:
    """Parse a command line, that of the process unless given, and start one process for each GPU."""
    args = parse_arguments(arguments, program)
    processes, on_gpu = report_user_errors(lambda: plan_processes(args))
    report_user_errors(lambda: launch(work, args, processes=processes, on_gpu=on_gpu))
