"""Parts shared by the command lines: arguments, exit codes, device, logging, output folder."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TextIO, TypeVar

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from PIL import Image

import regionclip
from regionclip.config.checks import check_config
from regionclip.config.loading import load_config
from regionclip.console import streams_that_may_close
from regionclip.data.datasets.custom_images import use_custom_image_folder
from regionclip.data.images import UnreadableImageError, raise_pixel_limit
from regionclip.data.own_datasets.prepared import register_folder
from regionclip.data.workers import allow_open_files
from regionclip.engine.arguments import DetectorArgumentParser
from regionclip.errors import Problem, UserError, system_error, system_problem, user_error
from regionclip.files import atomic_write
from regionclip.memory import keep_freed_memory

logger = logging.getLogger(__name__)

DONE, SOME_FAILED, BAD_INPUT, SYSTEM_REFUSED, NO_MEMORY, INTERRUPTED = 0, 1, 2, 3, 4, 130
"""Exit codes; docs/detect.md has a table of them."""

Result = TypeVar("Result")

_LOGGERS = ("regionclip", "detectron2", "fvcore")


def detector_argument_parser(description: str) -> argparse.ArgumentParser:
    """Return upstream's command line (`--config-file`, `--eval-only`, `--num-gpus`, ..., opts) plus own options."""
    from detectron2.engine import default_argument_parser  # imports all of Detectron2

    published = default_argument_parser()
    parser = DetectorArgumentParser(
        description=description,
        epilog=published.epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[published],
        add_help=False,
    )
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
    """Run `main` and exit with its code; errors that users can fix are printed, one per line.

    A broken pipe on the output, as from `head`, is ignored.
    """
    with streams_that_may_close():
        try:
            sys.exit(report_user_errors(_with_settings_of_process(main)))
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(INTERRUPTED)


def _with_settings_of_process(main: Callable[[], int]) -> Callable[[], int]:
    def configured() -> int:
        raise_pixel_limit()
        keep_freed_memory()
        allow_open_files()
        return main()

    return configured


def report_user_errors(action: Callable[[], Result]) -> Result:
    """Return what `action` returns; errors that users can fix are printed, one per line, and exit with their code.

    They are `UserError` (2), errors of the operating system such as a full disk (3), and out of memory (4).
    """
    try:
        return action()
    except UserError as error:
        _exit(BAD_INPUT, *(error.problems or (error,)))
    except UnreadableImageError as error:
        _exit(BAD_INPUT, Problem("image", "a readable image", str(error), "name another, or save this one again"))
    except (MemoryError, OSError, RuntimeError) as error:
        refused = system_error(error)
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            fix = "use smaller images (INPUT.MAX_SIZE_TEST) or fewer at once, or use another device"
            _exit(NO_MEMORY, Problem("memory", "enough", str(error).partition("\n")[0] or "none left", fix))
        if refused is not None:
            _exit(SYSTEM_REFUSED, system_problem(refused))
        raise


def _exit(code: int, *problems: object) -> NoReturn:
    for problem in problems:
        print(f"error: {' '.join(str(problem).split())}", file=sys.stderr)
    sys.exit(code)


def load_checked_config(args: argparse.Namespace) -> CfgNode:
    """Return the frozen, checked config of a command line, after applying its device, folders and seed.

    Raises:
        UserError: the config cannot be read or contradicts itself.
    """
    cfg = load_config(args.config_file, args.opts)
    cfg.MODEL.DEVICE = choose_device(cfg.MODEL.DEVICE, args.num_gpus)
    use_custom_image_folder(cfg.INPUT_DIR)
    register_folder(cfg.DATASETS.FOLDER)
    check_config(cfg)
    cfg.freeze()
    if cfg.SEED >= 0:
        seed_all_rng(cfg.SEED + comm.get_rank())
    return cfg


def choose_device(configured: str, num_gpus: int) -> str:
    """Return the configured device, or `cpu` if it asks for a GPU that is unavailable or not wanted."""
    return "cpu" if configured.startswith("cuda") and (num_gpus == 0 or not torch.cuda.is_available()) else configured


def plan_processes(args: argparse.Namespace) -> tuple[int, bool]:
    """Return the number of processes to start on this machine, and whether each has a GPU.

    With MODEL.DEVICE cpu `--num-gpus` is the number of CPU processes; if GPUs are only unavailable
    there is one process.
    """
    configured = load_config(args.config_file, args.opts).MODEL.DEVICE
    on_gpu = choose_device(configured, args.num_gpus).startswith("cuda")
    return max(args.num_gpus, 1) if on_gpu or configured == "cpu" else 1, on_gpu


class _LogFile(logging.FileHandler):
    """Logs to a file until writing fails."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one log record; a file that is opened again may be in a folder that is gone."""
        try:
            super().emit(record)
        except OSError:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Report once that the log file ends here."""
        for name in _LOGGERS:
            logging.getLogger(name).removeHandler(self)
        print(f"warning: {self.baseFilename} cannot be written further", file=sys.stderr)


class _ConsoleHandler(logging.StreamHandler[TextIO]):
    """Logs to the current standard output; the progress bar uses standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one log record."""
        self.stream = sys.stdout
        super().emit(record)


def log_to_console(*, weight_tables: bool = True) -> None:
    """Show log messages of this package and Detectron2; only warnings from other than the main process.

    Args:
        weight_tables: show which weights matched each time some are loaded; else only if something is wrong.
    """
    logging.getLogger("regionclip.engine.checkpoint.loading").setLevel(
        logging.NOTSET if weight_tables else logging.WARNING
    )
    # Detectron2 uses two torch features whose deprecation warnings users cannot act on.
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="torch.meshgrid", category=UserWarning)
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # there is an own pixel limit
    level = logging.INFO if comm.is_main_process() else logging.WARNING
    for name in _LOGGERS:
        package = logging.getLogger(name)
        package.setLevel(level)
        package.propagate = False  # lvis adds a handler to the root logger
        if not any(isinstance(handler, _ConsoleHandler) for handler in package.handlers):
            _add_handler(package, _ConsoleHandler())


def _add_handler(package: logging.Logger, handler: logging.Handler) -> None:
    handler.setFormatter(logging.Formatter("[%(asctime)s %(name)s] %(message)s", datefmt="%m/%d %H:%M:%S"))
    package.addHandler(handler)


def open_output(cfg: CfgNode, args: argparse.Namespace) -> Path:
    """Create OUTPUT_DIR with `config.yaml` and `log.txt`.

    Called after all user input has been checked, so that a failed start leaves no files
    behind.

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
