"""`regionclip train --data` and `regionclip eval --data`: a user's dataset in one command."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from regionclip.cli import options as shared

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from regionclip.data.own_datasets.prepared import Prepared
    from regionclip.hub.pretrained import FoundDetector

DATA_FOLDER, EVALUATION_FOLDER, DETECTOR_FOLDER = "data", "evaluation", "detector"
"""Folders in --output: the prepared dataset, the results of the best weights, and the packed detector."""

Data = Annotated[
    Path, typer.Option(help="COCO, LVIS or Label Studio JSON, YOLO data.yaml, Pascal VOC folder, or a folder of one.")
]
Images = Annotated[Path | None, typer.Option(help="Folder of the images, if they are not near the annotations.")]
Novel = Annotated[str, typer.Option(help='Classes that no training sees: "cat, dog".')]
Gpus = Annotated[int, typer.Option(help="Number of GPUs, or of processes on a CPU.")]

train_app, eval_app = (typer.Typer(add_completion=False, pretty_exceptions_enable=False) for _ in range(2))


def is_asked(arguments: Sequence[str]) -> bool:
    """Return whether a command line of `train` or `eval` names a dataset with --data."""
    return any(argument.partition("=")[0] == "--data" for argument in arguments)


def start(app: typer.Typer, program: str, arguments: Sequence[str]) -> None:
    """Run `train_app` or `eval_app` on a command line; exits with its code."""
    # `--data --help` asks for help, not for a dataset of this name.
    app(args=["--help"] if "--help" in arguments else list(arguments), prog_name=program)


@train_app.command()
def train(
    data: Data,
    images: Images = None,
    val_data: Annotated[
        Path | None,
        typer.Option(help="Dataset to evaluate on; else a split of --data, or about a fifth of the images."),
    ] = None,
    val_images: Annotated[Path | None, typer.Option(help="Folder of the images of --val-data.")] = None,
    model: shared.Model = "",
    novel: Novel = "",
    output: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("output/own"),
    epochs: Annotated[float, typer.Option(min=0, help="Times each image is seen; 12, and at least 100 steps.")] = 0,
    batch: Annotated[int, typer.Option(min=0, help="Images of a step; 16, on a CPU 8.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted training.")] = False,
    templates: shared.Templates = "regionclip",
    num_gpus: Gpus = 1,
    device: shared.Device = "",
    config: shared.Config = "",
    text_weights: shared.TextWeights = "",
    overrides: shared.Set = [],  # noqa: B006 - typer copies it
    yes: shared.Yes = False,
    trust_pickle: shared.TrustPickle = False,
    as_json: shared.AsJson = False,
) -> None:
    """Train a detector on your data, evaluate it, and pack it for `detect --model`.

    Class names are embedded by the text encoder of the detector. Without splits, a fifth of the images is held out, the
    same in every run. Examples:

    regionclip train --data my_dataset/data.yaml --output output/mine

    regionclip train --data annotations.json --images photos --novel "cat, dog"

    The options of tools/train_net.py: regionclip train --help
    """
    _run(_train, Namespace(**locals()))


@eval_app.command()
def evaluate(
    data: Data,
    images: Images = None,
    split: Annotated[
        str, typer.Option(help="Split to evaluate on: val, train, test, or all; without splits, the held-out fifth.")
    ] = "val",
    model: shared.Model = "",
    novel: Novel = "",
    output: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("output/own_eval"),
    templates: shared.Templates = "regionclip",
    num_gpus: Gpus = 1,
    device: shared.Device = "",
    config: shared.Config = "",
    text_weights: shared.TextWeights = "",
    overrides: shared.Set = [],  # noqa: B006 - typer copies it
    yes: shared.Yes = False,
    trust_pickle: shared.TrustPickle = False,
    as_json: shared.AsJson = False,
) -> None:
    """Evaluate a detector on your data, zero-shot or trained.

    Without splits, the images are those that `train --data` holds out. Example:

    regionclip eval --data my_dataset/data.yaml --model output/mine/detector

    The options of tools/train_net.py: regionclip eval --help
    """
    _run(_evaluate, Namespace(**locals()))


def _run(action: Callable[[Namespace], int], args: Namespace) -> None:
    from regionclip.engine.command import log_to_console, run_command

    log_to_console(weight_tables=False)
    run_command(lambda: action(args))


def _train(args: Namespace) -> int:
    from regionclip.engine.checkpoint.run import BEST, FINAL, RunCheckpoints
    from regionclip.engine.command import DONE, INTERRUPTED, SOME_FAILED
    from regionclip.engine.ownership import own_folder
    from regionclip.hub.own_data import Schedule, write_training_config

    run = RunCheckpoints(args.output)
    _require_fresh(args, has_checkpoints=bool(run.newest_name()))
    found = _find_detector(args)
    prepared = _prepare(args)
    with own_folder(args.output, f"--output {args.output}"):
        overrides, schedule = shared.override_pairs(args.overrides), Schedule(args.epochs, args.batch)
        folder = args.output.absolute() / DATA_FOLDER
        config = write_training_config(
            found, prepared, folder, overrides, args.templates, schedule, is_resumed=args.resume
        )
    resume = ["--resume"] if args.resume else []
    code = _launch(args, config, [*resume, "OUTPUT_DIR", str(args.output.absolute())])
    final, best = (args.output / f"{name}.pth" for name in (FINAL, BEST))
    if code not in (DONE, SOME_FAILED) or run.newest_name() != final.name:
        if code in (DONE, INTERRUPTED):
            print("Next: the same command with --resume")
        return code
    weights = best if best.is_file() else final
    results = args.output.absolute() / EVALUATION_FOLDER
    evaluation = ["--eval-only", "MODEL.WEIGHTS", str(weights.absolute()), "OUTPUT_DIR", str(results)]
    code = max(code, _launch(args, config, evaluation))
    if code in (DONE, SOME_FAILED):
        _pack(found, config, weights, args)
    return code


def _evaluate(args: Namespace) -> int:
    from regionclip.engine.checkpoint.run import RunCheckpoints
    from regionclip.engine.ownership import own_folder
    from regionclip.errors import user_error
    from regionclip.hub.own_data import write_evaluation_config

    if RunCheckpoints(args.output).newest_name():
        expected, fix = "a folder without a training, whose data it would replace", "name another --output"
        raise user_error(f"--output {args.output}", expected, "one with checkpoints", fix)
    found = _find_detector(args)
    prepared = _prepare(args, split=args.split)
    with own_folder(args.output, f"--output {args.output}"):
        overrides, folder = shared.override_pairs(args.overrides), args.output.absolute() / DATA_FOLDER
        config = write_evaluation_config(found, prepared, folder, overrides, args.templates)
    code = _launch(args, config, ["--eval-only", "OUTPUT_DIR", str(args.output.absolute())])
    if args.as_json and code <= 1:
        _print_metrics(args.output)
    return code


def _require_fresh(args: Namespace, *, has_checkpoints: bool) -> None:
    """Raise a `UserError` if --output has a training that the command would replace, or in a group of processes."""
    from regionclip.engine.distributed import place_from_environment
    from regionclip.errors import user_error

    if place_from_environment(os.environ) is not None:
        fix = "use --num-gpus, or give the written config to torchrun tools/train_net.py"
        raise user_error("--data", "a command of one process", "one of several of torchrun or srun", fix)
    if has_checkpoints and not args.resume:
        fix = "add --resume to continue it, or name another --output"
        raise user_error(f"--output {args.output}", "a folder without a training", "one with checkpoints", fix)


def _find_detector(args: Namespace) -> FoundDetector:
    from regionclip.hub.default import default_model
    from regionclip.hub.pretrained import find_pretrained

    name = args.model or default_model().name
    shared.fetch_files(name, agreed=args.yes)
    return find_pretrained(
        name, args.config, text_weights=args.text_weights, device=args.device, trust_pickle=args.trust_pickle
    )


def _prepare(args: Namespace, *, split: str = "") -> Prepared:
    """Read the dataset of the options for an evaluation on a split, else for training, and print what it has."""
    from regionclip.data.own_datasets.dataset import TRAIN
    from regionclip.data.own_datasets.prepared import prepare_evaluation, prepare_training
    from regionclip.data.own_datasets.reading import read_own_dataset

    dataset = read_own_dataset(args.data, args.images, split or TRAIN)
    novel = [name.strip() for name in args.novel.split(",") if name.strip()]
    if split:
        prepared = prepare_evaluation(dataset, novel, split)
    else:
        held_out = read_own_dataset(args.val_data, args.val_images) if args.val_data else None
        prepared = prepare_training(dataset, novel, held_out)
    for line in prepared.summary():
        print(line)
    return prepared


def _launch(args: Namespace, config: Path, arguments: Sequence[str]) -> int:
    """Train or evaluate with a config in all processes, and return the exit code."""
    from regionclip.cli.train_net import start

    try:
        trusted = ["--trust-pickle"] if args.trust_pickle else []
        start(["--config-file", str(config), "--num-gpus", str(args.num_gpus), *trusted, *arguments])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def _pack(found: FoundDetector, config: Path, weights: Path, args: Namespace) -> None:
    from regionclip.hub.own_data import pack_trained

    folder = args.output / DETECTOR_FOLDER
    pack_trained(found, config, weights, folder)
    print(f"Done: detector in {folder}, metrics in {args.output / EVALUATION_FOLDER / 'inference'}")
    print(f"Next: regionclip detect photo.jpg --model {folder}")
    if args.as_json:
        _print_metrics(args.output / EVALUATION_FOLDER, detector=folder)


def _print_metrics(folder: Path, **more: Path) -> None:
    content = json.loads((folder / "inference" / "metrics.json").read_text())
    shared.print_json({**more, "protocol": content["protocol"], "metrics": content["metrics"]})
