"""`regionclip cora`: prompts and labels of CORA's two stages."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(name="cora", no_args_is_help=True, help="Region prompts and CLIP-aligned labels of CORA.")

FORWARDED = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
"""Everything after the command goes to its own parser."""


@app.command("prompt", no_args_is_help=True)
def prompt(
    checkpoint: Annotated[str, typer.Argument(help="checkpoint of a RegionPromptCLIP training")],
    output: Annotated[Path, typer.Argument(help="prompt file to write, .pth as published")],
    trust_pickle: Annotated[bool, typer.Option("--trust-pickle", help="Read files that can run code.")] = False,
) -> None:
    """Write the region prompt of a checkpoint to a file of its own, for MODEL.CORA.PROMPT_WEIGHTS.

    Example: regionclip cora prompt output/region_prompt/model_final.pth region_prompt_R50.pth
    """
    from regionclip.engine.command import DONE, run_command

    def run() -> int:
        import torch

        from regionclip.engine.checkpoint.reading import read_checkpoint
        from regionclip.files import atomic_write
        from regionclip.methods.cora.checkpoints import PROMPT, rename_prompt

        (tensor,) = rename_prompt(checkpoint, read_checkpoint(checkpoint, trust_pickle=trust_pickle).state).values()
        with atomic_write(output) as file:
            torch.save({PROMPT: tensor.float().clone()}, file)
        print(f"Done: prompt {list(tensor.shape)} in {output}")
        return DONE

    run_command(run)


@app.command("relabel", context_settings=FORWARDED)
def relabel(context: typer.Context) -> None:
    """Write an annotation file whose boxes have the classes that CLIP, with the region prompt, sees in them."""
    main(context.args, "regionclip cora relabel")


def main(arguments: Sequence[str] | None = None, program: str | None = None) -> None:
    """Parse a command line, that of the process unless given, and start one process for each GPU."""
    from regionclip.engine.command import detector_argument_parser, plan_processes, report_user_errors
    from regionclip.engine.distributed import launch

    parser = detector_argument_parser(str(relabel.__doc__))
    parser.prog = program or parser.prog
    parser.add_argument("--annotations", required=True, help="COCO or LVIS file of the base classes")
    parser.add_argument("--images", required=True, help="folder of its images")
    parser.add_argument("--output", required=True, type=Path, help="annotation file to write")
    args = parser.parse_args(arguments)
    processes, on_gpu = report_user_errors(lambda: plan_processes(args))
    report_user_errors(lambda: launch(work, args, processes=processes, on_gpu=on_gpu))


def work(args: argparse.Namespace) -> None:
    """Do the work of one process and exit with its code."""
    from regionclip.engine.command import log_to_console, run_command

    log_to_console()
    run_command(lambda: run_relabel(args))


def run_relabel(args: argparse.Namespace) -> int:
    """Relabel, and return the exit code."""
    from detectron2.utils import comm

    from regionclip.engine.command import DONE, SOME_FAILED, load_checked_config
    from regionclip.engine.detector import load_detector
    from regionclip.engine.ownership import own_folder
    from regionclip.errors import user_error
    from regionclip.methods.cora.labels import relabel as relabel_file
    from regionclip.methods.cora.prompting import RegionPromptCLIP

    cfg = load_checked_config(args)
    if RegionPromptCLIP.__name__ != cfg.MODEL.META_ARCHITECTURE:
        fix = "name one of configs/cora/region_*.yaml"
        raise user_error("MODEL.META_ARCHITECTURE", "RegionPromptCLIP", cfg.MODEL.META_ARCHITECTURE, fix)
    model = load_detector(cfg, trust_pickle=args.trust_pickle, allow_missing=args.allow_missing)
    assert isinstance(model, RegionPromptCLIP)
    with own_folder(args.output.parent, f"folder {args.output.parent}"):
        report = relabel_file(cfg, model, args.annotations, args.images, args.output)
    if comm.is_main_process():
        logger = logging.getLogger(__name__)
        for failure in report.failures:
            logger.error("Kept the classes of image %s", failure)
        share = 100 * report.unchanged / max(report.boxes, 1)
        logger.info(
            "Done: %d boxes, %.1f %% of the classes unchanged, %d images failed; labels in %s",
            *(report.boxes, share, len(report.failures), args.output),
        )
    return SOME_FAILED if report.failures else DONE
