"""`regionclip cora`: prompts and labels of CORA's two stages."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from functools import partial
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

        state = read_checkpoint(checkpoint, trust_pickle=trust_pickle).state
        (tensor,) = rename_prompt(checkpoint, state, {}).values()
        with atomic_write(output) as file:
            torch.save({PROMPT: tensor.float().clone()}, file)
        print(f"Done: prompt {list(tensor.shape)} in {output}")
        return DONE

    run_command(run)


@app.command("relabel", context_settings=FORWARDED)
def relabel(context: typer.Context) -> None:
    """Write an annotation file whose boxes have the classes that CLIP, with the region prompt, sees in them."""
    parser = _image_pass_parser(str(relabel.__doc__), "relabel")
    _start(parser.parse_args(context.args), run_relabel)


@app.command("pseudo-boxes", context_settings=FORWARDED)
def pseudo_boxes(context: typer.Context) -> None:
    """Write what a detector finds of the names of each image, for MODEL.CORA.PSEUDO_BOXES (CORA+)."""
    parser = _image_pass_parser(str(pseudo_boxes.__doc__), "pseudo-boxes")
    names = parser.add_mutually_exclusive_group(required=True)
    names.add_argument("--tags", type=Path, help="JSON object: image id to a list of names")
    names.add_argument("--captions", type=Path, help="COCO's caption file, whose nouns are the names")
    parser.add_argument("--vocabulary", required=True, help="embeddings of the names, from regionclip concepts")
    parser.add_argument("--threshold", type=float, default=0.2, help="minimum score")
    _start(parser.parse_args(context.args), run_pseudo_boxes)


def _image_pass_parser(description: str, name: str) -> argparse.ArgumentParser:
    """Return the parser of a command that goes through the images of an annotation file with a detector."""
    from regionclip.engine.command import detector_argument_parser

    parser = detector_argument_parser(description)
    parser.prog = f"regionclip cora {name}"
    parser.add_argument("--annotations", required=True, type=Path, help="COCO or LVIS file with the images")
    parser.add_argument("--images", required=True, type=Path, help="folder of its images")
    parser.add_argument("--output", required=True, type=Path, help="file to write")
    return parser


def _start(args: argparse.Namespace, run: Callable[[argparse.Namespace], int]) -> None:
    """Start one process for each GPU, or on each machine."""
    from regionclip.engine.command import plan_processes, report_user_errors
    from regionclip.engine.distributed import launch

    processes, on_gpu = report_user_errors(lambda: plan_processes(args))
    work = partial(_work, run)
    report_user_errors(lambda: launch(work, args, processes=processes, on_gpu=on_gpu))


def _work(run: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> None:
    """Do the work of one process and exit with its code."""
    from regionclip.engine.command import log_to_console, run_command

    log_to_console()
    run_command(lambda: run(args))


def run_relabel(args: argparse.Namespace) -> int:
    """Relabel, and return the exit code."""
    from regionclip.engine.command import load_checked_config
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
    share = 100 * report.unchanged / max(report.boxes, 1)
    return _finish(f"{report.boxes} boxes, {share:.1f} % of the classes unchanged", report.failures, args.output)


def run_pseudo_boxes(args: argparse.Namespace) -> int:
    """Export pseudo boxes, and return the exit code."""
    from regionclip.clip.vocabulary import Vocabulary
    from regionclip.engine.command import load_checked_config
    from regionclip.engine.detector import load_detector
    from regionclip.engine.ownership import own_folder
    from regionclip.methods.cora.export import PseudoBoxJob, export_pseudo_boxes, read_captions, read_tags
    from regionclip.modeling.detector import require_detector

    cfg = load_checked_config(args)
    names = read_tags(args.tags) if args.tags else read_captions(args.captions)
    vocabulary = Vocabulary.from_file(args.vocabulary)
    job = PseudoBoxJob(args.annotations, args.images, names, vocabulary, args.output, args.threshold)
    options = {"trust_pickle": args.trust_pickle, "allow_missing": args.allow_missing}
    model = load_detector(cfg, **options, sets_class_names=True)
    with own_folder(args.output.parent, f"folder {args.output.parent}"):
        report = export_pseudo_boxes(cfg, require_detector(model), job)
    return _finish(f"{report.boxes} pseudo boxes in {report.images} images", report.failures, args.output)


def _finish(result: str, failures: Sequence[str], output: Path) -> int:
    """Report a pass over images, in the main process, and return the exit code."""
    from detectron2.utils import comm

    from regionclip.engine.command import DONE, SOME_FAILED

    if comm.is_main_process():
        logger = logging.getLogger(__name__)
        for failure in failures:
            logger.error("Left out image %s", failure)
        logger.info("Done: %s, %d images failed; in %s", result, len(failures), output)
    return SOME_FAILED if failures else DONE
