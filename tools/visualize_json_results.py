#!/usr/bin/env python3
"""Draw the detections of a result file on the images of its dataset."""

from __future__ import annotations

import argparse

from regionclip.data.datasets.custom_images import DEFAULT_FOLDER, use_custom_image_folder
from regionclip.engine.command import DONE, SOME_FAILED, log_to_console, run_command
from regionclip.engine.visualization import VisualizationOptions, visualize_results


def argument_parser() -> argparse.ArgumentParser:
    """Return upstream's command line, plus `--input-dir`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--input", required=True, help="results file in COCO's format")
    parser.add_argument("--output", required=True, help="folder for the images")
    parser.add_argument("--dataset", default="coco_2017_val", help="registered name of the dataset")
    parser.add_argument("--conf-threshold", type=float, default=0.5, help="draw detections with a score above this")
    parser.add_argument("--show-unique-boxes", action="store_true", help="draw each box once; enables the next two")
    parser.add_argument("--max-boxes", type=int, default=30, help="most detections of an image")
    parser.add_argument("--small-region-px", type=float, default=0, help="skip boxes of less area, in square pixels")
    parser.add_argument("--input-dir", default=DEFAULT_FOLDER, help="folder behind the *_custom_img datasets")
    return parser


def main() -> int:
    """Draw, and return the exit code."""
    args = argument_parser().parse_args()
    log_to_console()
    use_custom_image_folder(args.input_dir)
    options = VisualizationOptions(args.conf_threshold, args.show_unique_boxes, args.max_boxes, args.small_region_px)
    failures = visualize_results(args.input, args.output, args.dataset, options)
    for failure in failures:
        print(f"skipped unreadable image {failure}")
    return SOME_FAILED if failures else DONE


if __name__ == "__main__":
    run_command(main)
