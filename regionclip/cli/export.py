"""`regionclip export`: export a detector for other runtimes."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Annotated

import typer

from regionclip.cli import options as shared


def export(
    model: Annotated[str, typer.Argument(help=shared.MODEL_HELP)],
    output: Annotated[Path, typer.Option(help="Folder to write.")],
    form: Annotated[str, typer.Option("--format", help="onnx, or torch: torch's exported programs.")] = "onnx",
    yes: shared.Yes = False,
    config: shared.Config = "",
    overrides: shared.Set = [],  # noqa: B006 - typer copies it
    trust_pickle: shared.TrustPickle = False,
    as_json: shared.AsJson = False,
) -> None:
    """Write a detector as ONNX files: backbone, rpn and head, for images of any size and any words.

    The words are an input of the head, as `regionclip concepts` embeds them. Example:

    regionclip export emoji --output exported
    """
    arguments = Namespace(**locals())
    from regionclip.engine.command import log_to_console, run_command

    log_to_console()
    run_command(lambda: run(arguments))


def run(args: Namespace) -> int:
    """Run the command, and return the exit code."""
    from regionclip.engine.command import DONE
    from regionclip.engine.export.files import export_detector
    from regionclip.engine.ownership import own_folder
    from regionclip.hub.pretrained import load_pretrained

    pairs = shared.override_pairs(args.overrides)
    shared.fetch_files(args.model, agreed=args.yes)
    with own_folder(args.output, f"--output {args.output}"):
        detector = load_pretrained(args.model, args.config, pairs, "", "cpu", trust_pickle=args.trust_pickle)
        paths = export_detector(detector.model, detector.cfg, args.output, args.form)
    sizes = {path.name: path.stat().st_size for path in paths}
    print(f"Done: {len(paths)} files, {sum(sizes.values()) / 1e6:.1f} MB in {args.output}")
    if args.as_json:
        shared.print_json({"output": args.output, "bytes": sizes})
    return DONE
