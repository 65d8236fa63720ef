"""`regionclip pack`: write a detector to one folder."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Annotated

import typer

from regionclip.cli import options as shared


def pack(
    model: Annotated[str, typer.Argument(help=shared.MODEL_HELP)],
    output: Annotated[Path, typer.Option(help="Folder to write.")],
    vocabulary: Annotated[
        str, typer.Option(help="Words that it knows from the start: a word list or a file, as detect --vocabulary.")
    ] = "",
    card: Annotated[
        list[Path],
        typer.Option(metavar="METRICS", help="Write README.md from the metrics.json of an evaluation; repeatable."),
    ] = [],  # noqa: B006 - typer copies it
    license_name: Annotated[str, typer.Option("--license", help="License of the weights, for the card (SPDX).")] = "",
    half: Annotated[bool, typer.Option("--half", help="Store float16, half as large.")] = False,
    yes: shared.Yes = False,
    config: shared.Config = "",
    text_weights: shared.TextWeights = "",
    overrides: shared.Set = [],  # noqa: B006 - typer copies it
    trust_pickle: shared.TrustPickle = False,
    as_json: shared.AsJson = False,
) -> None:
    """Put a detector into a folder that can be passed on.

    The folder holds config, weights with the RPN, text encoder and words, and nothing else is needed:
    `detect --model FOLDER` and `RegionCLIP.from_pretrained("FOLDER")` read it. Example:

    regionclip pack output/transfer --vocabulary coco --half --output my_detector

    regionclip pack output/transfer --card output/eval/inference/metrics.json --license MIT --output my_detector
    """
    arguments = Namespace(**locals())
    from regionclip.engine.command import log_to_console, run_command

    log_to_console()
    run_command(lambda: run(arguments))


def run(args: Namespace) -> int:
    """Run the command, and return the exit code."""
    from regionclip.clip.vocabulary import Vocabulary
    from regionclip.engine.command import DONE
    from regionclip.engine.ownership import own_folder
    from regionclip.errors import user_error
    from regionclip.files import atomic_write
    from regionclip.hub.card import CARD_FILE, model_card, read_evaluation
    from regionclip.hub.packing import pack_detector
    from regionclip.hub.pretrained import VOCABULARY_FILE, load_pretrained

    if Path(args.model).is_dir() and args.output.is_dir() and args.output.samefile(args.model):
        fix = "name another folder"
        raise user_error(f"--output {args.output}", "another folder than that of the detector", "the same", fix)
    shared.fetch_files(args.model, agreed=args.yes)
    evaluations = [read_evaluation(path) for path in args.card]
    with own_folder(args.output, f"--output {args.output}"):
        detector = load_pretrained(
            args.model,
            args.config,
            shared.override_pairs(args.overrides),
            args.text_weights,
            "cpu",
            trust_pickle=args.trust_pickle,
        )
        files = pack_detector(detector, args.output, args.vocabulary or None, half=args.half)
        if evaluations:
            name = args.output.resolve().name
            packed = args.output / VOCABULARY_FILE
            words = Vocabulary.from_file(packed) if packed.is_file() else None
            text = model_card(name, detector.cfg, evaluations, words, args.license_name)
            with atomic_write(args.output / CARD_FILE) as file:
                file.write(text.encode())
    total = sum(file.size for file in files)
    print(f"Done: {len(files)} files, {total / 1e6:.1f} MB in {args.output}")
    if args.as_json:
        shared.print_json({"output": args.output, "bytes": {file.path.name: file.size for file in files}})
    return DONE
