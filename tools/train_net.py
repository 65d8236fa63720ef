#!/usr/bin/env python3
"""Train or evaluate a detector: `--config-file FILE [--eval-only] [--num-gpus N] KEY VALUE ...`."""

from __future__ import annotations

import argparse
import sys

import torch
from detectron2.engine import launch

from regionclip.engine.command import (
    detector_argument_parser,
    load_checked_config,
    log_to_console,
    report_user_errors,
    run_command,
    usable_gpus,
)
from regionclip.engine.workflows import evaluate_only, train


def work(args: argparse.Namespace) -> None:
    """Do the work of one process and exit with its code."""
    torch.multiprocessing.set_sharing_strategy("file_system")
    log_to_console()
    run_command(lambda: (evaluate_only if args.eval_only else train)(args))


def main() -> None:
    """Parse the command line and start one process for each GPU."""
    args = detector_argument_parser(str(__doc__)).parse_args()
    processes = usable_gpus(args.num_gpus)
    if processes > 1:
        # Bad input is reported here, once, instead of by every process.
        report_user_errors(lambda: load_checked_config(args))
    try:
        launch(work, processes, args.num_machines, args.machine_rank, args.dist_url, args=(args,))
    except torch.multiprocessing.ProcessExitedException as error:
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
