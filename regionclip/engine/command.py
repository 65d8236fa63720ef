"""What the command lines share: arguments, exit codes, device, logging, output folder."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from PIL import Image

import regionclip
from regionclip.config.checks import check_config
from regionclip.config.loading import load_config
from regionclip.console import streams_that_may_close
from regionclip.data.datasets.custom_images import use_custom_image_folder
from regionclip.data.images import raise_pixel_limit
from regionclip.errors import Problem, UserError, system_error, system_problem, user_error
from regionclip.files import atomic_write

logger = logging.getLogger(__name__)

DONE, SOME_FAILED, BAD_INPUT, SYSTEM_REFUSED, NO_MEMORY, INTERRUPTED = 0, 1, 2, 3, 4, 130
"""Exit codes; docs/detect.md has their table."""

Result = TypeVar("Result")

_LOGGERS = ("regionclip", "detectron2", "fvcore")


def detector_argument_parser(description: str) -> argparse.ArgumentParser:
    """Return upstream's command line (`--config-file`, `--eval-only`, `--num-gpus`, ..., opts) plus ours."""
    parser = default_argument_parser()
    parser.description = description
    parser.add_argument(
        "--trust-pickle", action="store_true", help="read checkpoints that can run code; only for files you trust"
    )
    parser.add_argument(
        "--allow-missing",
        action="append",
        default=[],
        metavar="PREFIX",
        help="accept that no file has weights for entries that start with PREFIX (repeatable)",
    )
    return parser


def run_command(main: Callable[[], int]) -> NoReturn:
    """Run `main` and exit with its code; errors that users can mend are printed, a line each.

    A reader of the output that goes away, as `head` does, changes nothing.
    """
    with streams_that_may_close():
        try:
            sys.exit(report_user_errors(_with_pixel_limit(main)))
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(INTERRUPTED)


def _with_pixel_limit(main: Callable[[], int]) -> Callable[[], int]:
    def limited() -> int:
        raise_pixel_limit()
        return main()

    return limited


def report_user_errors(action: Callable[[], Result]) -> Result:
    """Return what `action` returns; errors that users can mend are printed, a line each, and exit with their code.

    They are a `UserError` (2), what the operating system refused, such as a full disk (3), and too little memory (4).
    """
    try:
        return action()
    except UserError as error:
        _exit(BAD_INPUT, *(error.problems or (error,)))
    except (MemoryError, OSError, RuntimeError) as error:
        refused = system_error(error)
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            fix = "look at smaller pictures (INPUT.MAX_SIZE_TEST) or fewer at once, or use another device"
            _exit(NO_MEMORY, Problem("memory", "enough", str(error).partition("\n")[0] or "none left", fix))
        if refused is not None:
            _exit(SYSTEM_REFUSED, system_problem(refused))
        raise


def _exit(code: int, *problems: object) -> NoReturn:
    for problem in problems:
        print(f"error: {' '.join(str(problem).split())}", file=sys.stderr)
    sys.exit(code)


def load_checked_config(args: argparse.Namespace) -> CfgNode:
    """Return the frozen config of a command line, checked, with its device, image folder and seed in effect.

    Raises:
        UserError: the config cannot be read or contradicts itself.
    """
    cfg = load_config(args.config_file, args.opts)
    cfg.MODEL.DEVICE = choose_device(cfg.MODEL.DEVICE, args.num_gpus)
    use_custom_image_folder(cfg.INPUT_DIR)
    check_config(cfg)
    cfg.freeze()
    if cfg.SEED >= 0:
        seed_all_rng(cfg.SEED + comm.get_rank())
    return cfg


def choose_device(configured: str, num_gpus: int) -> str:
    """Return the configured device, or `cpu` where it asks for a GPU that is not there or not wanted."""
    return "cpu" if configured.startswith("cuda") and (num_gpus == 0 or not torch.cuda.is_available()) else configured


def plan_processes(args: argparse.Namespace) -> tuple[int, bool]:
    """Return how many processes to start on this machine, and whether each has a GPU.

    With MODEL.DEVICE cpu `--num-gpus` counts processes on the CPU; where GPUs are only missing
    there is one.
    """
    configured = load_config(args.config_file, args.opts).MODEL.DEVICE
    on_gpu = choose_device(configured, args.num_gpus).startswith("cuda")
    return max(args.num_gpus, 1) if on_gpu or configured == "cpu" else 1, on_gpu


class _LogFile(logging.FileHandler):
    """Writes to a file for as long as the disk takes it."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Say once that the file ends here."""
        for name in _LOGGERS:
            logging.getLogger(name).removeHandler(self)
        print(f"warning: {self.baseFilename} cannot be written further", file=sys.stderr)


class _ConsoleHandler(logging.StreamHandler):
    """Writes to whatever standard output is at that moment; the progress bar has standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        self.stream = sys.stdout
        super().emit(record)


def log_to_console() -> None:
    """Show log lines of this package and Detectron2; from other than the main process only warnings."""
    # Detectron2 calls torch in two ways that torch means to change; users can do nothing about it.
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="torch.meshgrid", category=UserWarning)
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # we have a limit of our own
    level = logging.INFO if comm.is_main_process() else logging.WARNING
    for name in _LOGGERS:
        package = logging.getLogger(name)
        package.setLevel(level)
        package.propagate = False  # lvis gives the root logger a handler of its own
        if not any(isinstance(handler, _ConsoleHandler) for handler in package.handlers):
            _add_handler(package, _ConsoleHandler())


def _add_handler(package: logging.Logger, handler: logging.Handler) -> None:
    handler.setFormatter(logging.Formatter("[%(asctime)s %(name)s] %(message)s", datefmt="%m/%d %H:%M:%S"))
    package.addHandler(handler)


def open_output(cfg: CfgNode, args: argparse.Namespace) -> Path:
    """Create OUTPUT_DIR with `config.yaml` and `log.txt`.

    Called when everything that the user gave has been found good, so that a failed start leaves
    nothing behind.

    Raises:
        UserError: the folder cannot be written to.
    """
    output = Path(cfg.OUTPUT_DIR)
    if comm.is_main_process():
        try:
            with atomic_write(output / "config.yaml") as file:
                file.write(cfg.dump().encode())
            log_file = _LogFile(output / "log.txt")
        except OSError as error:
            fix = "choose another OUTPUT_DIR, or make it writable"
            raise user_error(f"OUTPUT_DIR {output}", "a folder to write to", str(error.strerror), fix) from error
        for name in _LOGGERS:
            _add_handler(logging.getLogger(name), log_file)
    logger.info("regionclip %s, torch %s, on %s", regionclip.__version__, torch.__version__, cfg.MODEL.DEVICE)
    logger.info("Command line: %s", args)
    return output
