"""Train or evaluate a detector: `--config-file FILE [--eval-only] [--resume] [--num-gpus N] KEY VALUE ...`.

The published command line, behind `tools/train_net.py`, `regionclip train` and `regionclip eval`. For your own data in
one command, see `regionclip train --data --help` and `regionclip eval --data --help`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from regionclip.engine.command import (
    detector_argument_parser,
    load_checked_config,
    log_to_console,
    plan_processes,
    report_user_errors,
    run_command,
)
from regionclip.engine.distributed import launch
from regionclip.engine.workflows import evaluate_only, train


def work(args: argparse.Namespace) -> None:
    """Do the work of one process and exit with its code."""
    log_to_console()
    run_command(lambda: (evaluate_only if args.eval_only else train)(args))


def main(arguments: Sequence[str] | None = None, program: str | None = None) -> None:
    """Parse a command line, that of the process unless given, and start one process for each GPU."""
    given = sys.argv[1:] if arguments is None else arguments
    start(given, program.split() if program else [Path(sys.executable).name, sys.argv[0]])


def start(arguments: Sequence[str], program: Sequence[str] = ()) -> None:
    """Start one process for each GPU; ends with `SystemExit`.

    Args:
        arguments: command line.
        program: what the user started with these arguments, to suggest how to continue; empty suggests nothing.
    """
    parser = detector_argument_parser(str(__doc__))
    parser.prog = " ".join(program[-2:]) or parser.prog
    args = parser.parse_args(arguments)
    args.program, args.arguments = list(program), list(arguments)
    processes, on_gpu = report_user_errors(lambda: plan_processes(args))
    if processes > 1:
        # Bad input is reported here, once, instead of by every process.
        report_user_errors(lambda: load_checked_config(args))
    report_user_errors(lambda: launch(work, args, processes=processes, on_gpu=on_gpu))
