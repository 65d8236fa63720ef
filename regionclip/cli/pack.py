"""`regionclip pack`: write a detector to one folder."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from regionclip.cli import options as shared
from regionclip.files import atomic_write, read_text

if TYPE_CHECKING:
    from detectron2.config import CfgNode

    from regionclip.hub.card import Evaluation


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
    notes: Annotated[
        Path | None, typer.Option(help="Markdown to append to the card: data, limits, attribution.")
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(help="calibration.json of an evaluation: its score temperature, and the threshold of best F1."),
    ] = None,
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

    regionclip pack output/transfer --calibration output/eval/inference/calibration.json --output my_detector
    """
    arguments = Namespace(**locals())
    from regionclip.engine.command import log_to_console, run_command

    log_to_console()
    run_command(lambda: run(arguments))


def run(args: Namespace) -> int:
    """Run the command, and return the exit code."""
    from regionclip.engine.command import DONE
    from regionclip.engine.ownership import own_folder
    from regionclip.errors import user_error
    from regionclip.hub.calibration import with_calibration
    from regionclip.hub.card import read_evaluation
    from regionclip.hub.packing import pack_detector
    from regionclip.hub.pretrained import load_pretrained

    if Path(args.model).is_dir() and args.output.is_dir() and args.output.samefile(args.model):
        fix = "name another folder"
        raise user_error(f"--output {args.output}", "another folder than that of the detector", "the same", fix)
    shared.fetch_files(args.model, agreed=args.yes)
    evaluations = [read_evaluation(path) for path in args.card]
    notes = read_text(args.notes, "notes for the card") if args.notes else ""
    fitted = _fitted(args) if args.calibration else None
    with own_folder(args.output, f"--output {args.output}"):
        detector = load_pretrained(
            args.model,
            args.config,
            shared.override_pairs(args.overrides),
            args.text_weights,
            "cpu",
            trust_pickle=args.trust_pickle,
        )
        if fitted:
            detector = with_calibration(detector, fitted)
        files = pack_detector(detector, args.output, args.vocabulary or None, half=args.half)
        if evaluations or notes:
            _write_card(args, detector.cfg, evaluations, notes)
    total = sum(file.size for file in files)
    print(f"Done: {len(files)} files, {total / 1e6:.1f} MB in {args.output}")
    if args.as_json:
        shared.print_json({"output": args.output, "bytes": {file.path.name: file.size for file in files}})
    return DONE


def _fitted(args: Namespace) -> dict[str, float]:
    """Return the calibration of a command line; raises `UserError` if it is of other weights."""
    from regionclip.engine.checkpoint.reading import backbone_hash
    from regionclip.hub.calibration import read_calibration
    from regionclip.hub.pretrained import find_pretrained

    pairs = shared.override_pairs(args.overrides)
    found = find_pretrained(args.model, args.config, pairs, args.text_weights, "cpu", trust_pickle=args.trust_pickle)
    return read_calibration(args.calibration, backbone_hash(found.weights, trust_pickle=args.trust_pickle))


def _write_card(args: Namespace, cfg: CfgNode, evaluations: Sequence[Evaluation], notes: str) -> None:
    """Write the card of a packed detector, with the words that were packed."""
    from regionclip.clip.vocabulary import Vocabulary
    from regionclip.hub.card import CARD_FILE, model_card
    from regionclip.hub.pretrained import VOCABULARY_FILE

    packed = args.output / VOCABULARY_FILE
    words = Vocabulary.from_file(packed) if packed.is_file() else None
    text = model_card(args.output.resolve().name, cfg, evaluations, words, args.license_name, notes)
    with atomic_write(args.output / CARD_FILE) as file:
        file.write(text.encode())
