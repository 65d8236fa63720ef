"""`regionclip detect`: detect objects by class names."""

from __future__ import annotations

import logging
import os
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from regionclip.cli import options as shared

if TYPE_CHECKING:
    from regionclip import RegionCLIP
    from regionclip.batch.detect import DetectOptions, DetectReport
    from regionclip.data.image_listing import LeftOut
    from regionclip.data.image_sources import ImageFile
    from regionclip.data.live import LiveReader, LiveSource
    from regionclip.inference.examples import Examples

logger = logging.getLogger(__name__)

OUTPUT = Path("output/detect")

INPUTS = (
    "Images, folders, patterns in quotes, videos, tar and Parquet files, addresses; - reads names; "
    "or one live source: 0 (a camera), rtsp://..."
)
RAY = "Ray Data (--engine ray)"

SHOWN_IMAGES, SHOWN_ROWS = 10, 10
"""Number of images whose detections are printed, and of rows for each."""


def detect(
    context: typer.Context,
    inputs: Annotated[list[str], typer.Argument(help=INPUTS)],
    words: Annotated[str | None, typer.Option(help='Words to look for: "cat | kitten, traffic cone".')] = None,
    vocabulary: Annotated[
        str, typer.Option(help="coco, coco65, coco48, coco17, lvis, lvis866, emoji, or a file of words or embeddings.")
    ] = "",
    example: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=IMAGE[:X,Y,W,H]", help="An object shown in place of a word, or a folder of crops; repeatable."
        ),
    ] = [],  # noqa: B006 - typer copies it
    save_vocabulary: Annotated[
        Path | None, typer.Option(help="Also write the words and examples, .safetensors, for --vocabulary.")
    ] = None,
    background: Annotated[
        str, typer.Option(help="Words that share the score and are not reported: own, none, as --vocabulary, or words.")
    ] = "own",
    templates: shared.Templates = "regionclip",
    synonyms: shared.Synonyms = "max",
    boxes: Annotated[str, typer.Option(help="JSON or npz with boxes to name instead of detecting.")] = "",
    threshold: Annotated[
        float | None,
        typer.Option(help="Minimum score: 0.05, or the detector's own if higher. User boxes are all named."),
    ] = None,
    topk: Annotated[int, typer.Option(min=1, help="Most detections in an image; user boxes are all named.")] = 25,
    top_words: Annotated[int, typer.Option(min=0, help="Also give the k most probable words of each box.")] = 0,
    per_class: Annotated[
        bool, typer.Option("--per-class", help="Let a box come with several words, as published.")
    ] = False,
    slices: Annotated[
        str, typer.Option(metavar="SIDE:OVERLAP", help="Also detect in tiles, for small objects: 640:0.2.")
    ] = "",
    shard: Annotated[
        str, typer.Option(metavar="INDEX/COUNT", help="Only every COUNT-th image, for jobs that share the work: 0/3.")
    ] = "",
    every: Annotated[int, typer.Option(min=1, help="Use every N-th frame of a video.")] = 1,
    track: Annotated[bool, typer.Option("--track", help="Give objects in videos track ids, class by class.")] = False,
    seconds: Annotated[
        float | None, typer.Option(min=0, help="Duration of a live source; else until it ends, or Ctrl-C.")
    ] = None,
    batch: Annotated[
        int, typer.Option(min=1, help="Images encoded at once; more than 1 is for GPUs, and changes the last digits.")
    ] = 1,
    matte: Annotated[str, typer.Option(help="Color behind transparent pixels, such as black or #808080.")] = "white",
    output: Annotated[Path, typer.Option(help="Folder of the results.")] = OUTPUT,
    drawings: Annotated[bool, typer.Option(help="Draw the detections.")] = True,
    report: Annotated[bool, typer.Option(help="Write report.html.")] = True,
    formats: Annotated[
        str, typer.Option("--format", help="Also write yolo, voc, label-studio, csv; coco is always written.")
    ] = "coco",
    crops: Annotated[bool, typer.Option("--crops", help="Write an image of each detection.")] = False,
    engine: Annotated[
        Literal["process", "ray"], typer.Option(help="ray: on a cluster, with a folder of Parquet files as output.")
    ] = "process",
    actors: Annotated[int, typer.Option(min=1, help="Detectors at work.", rich_help_panel=RAY)] = 1,
    cpus_per_actor: Annotated[float, typer.Option(min=0.0, help="CPUs of each.", rich_help_panel=RAY)] = 1.0,
    gpus_per_actor: Annotated[float, typer.Option(min=0.0, help="GPUs of each.", rich_help_panel=RAY)] = 0.0,
    rows_per_block: Annotated[
        int, typer.Option(min=0, help="Images that are noted together; 0: a minute's work.", rich_help_panel=RAY)
    ] = 0,
    model: shared.Model = "",
    yes: shared.Yes = False,
    verbose: shared.Verbose = False,
    config: shared.Config = "",
    text_weights: shared.TextWeights = "",
    device: shared.Device = "",
    overrides: shared.Set = [],  # noqa: B006 - typer copies it
    trust_pickle: shared.TrustPickle = False,
    as_json: shared.AsJson = False,
) -> None:
    """Find objects in images by words.

    Writes detections.json (COCO), drawn images and report.html. Given again after an interruption, the
    command goes on where it stopped. Examples:

    regionclip detect photo.jpg --words "cat, dog, traffic cone"

    regionclip detect photos/ "more/*.png" --vocabulary lvis --threshold 0.2 --output found

    regionclip detect street.mp4 --words "car, bus" --every 5

    regionclip detect photos/ --words "person" --example pallet=photo.jpg:40,30,60,50

    find . -name "*.jpg" | regionclip detect - --words "cat" --json

    regionclip detect "shards/*.tar" --words "cat, dog"
    """
    arguments = Namespace(**locals())
    from regionclip.engine.command import log_to_console, run_command

    log_to_console(weight_tables=verbose)
    run_command(lambda: run(arguments))


def run(args: Namespace) -> int:
    """Run the command, and return the exit code."""
    from regionclip.cli.detect_ray import require_engine_options
    from regionclip.data.image_listing import LeftOut
    from regionclip.data.image_sources import find_images
    from regionclip.data.images import require_color
    from regionclip.data.live import LiveReader, live_source
    from regionclip.errors import user_error
    from regionclip.inference.examples import parse_examples

    require_color(args.matte)
    if args.shard and args.output == OUTPUT:
        args.output = OUTPUT / args.shard.replace("/", "-of-")  # a shard must not replace the results of another
    read_options(args, 0.0)  # raises what is wrong before anything is loaded
    examples = parse_examples(args.example, args.matte)
    live = live_source(args.inputs)
    require_options(args, live)
    require_engine_options(args)
    left_out = LeftOut()
    if live is not None:
        if args.output == OUTPUT:
            args.output = OUTPUT / f"{live.name}_{datetime.now():%Y%m%d_%H%M%S}"  # results that cannot be had again
        with LiveReader(live, args.every, args.seconds) as reader:
            return run_on(args, [live], examples, left_out, reader)
    # File names need not be UTF-8.
    lines = map(os.fsdecode, sys.stdin.buffer) if "-" in args.inputs else ()
    files = find_images(args.inputs, lines, args.output, left_out)
    if args.track and not any(file.is_video for file in files):
        raise user_error("--track", "a video or a live source", "images only", "leave it out")
    return run_on(args, files, examples, left_out)


def run_on(
    args: Namespace, files: Sequence[ImageFile], examples: Examples, left_out: LeftOut, live: LiveReader | None = None
) -> int:
    """Load the detector, detect on files or the live source that is the only one of them, and return the exit code."""
    from regionclip.batch.detect import detect as detect_all
    from regionclip.batch.live import stopped_by_signals
    from regionclip.cli.detect_ray import run_on_ray
    from regionclip.data.user_boxes import read_boxes
    from regionclip.engine.command import DONE, SOME_FAILED
    from regionclip.hub.default import DefaultModel, default_or_offer
    from regionclip.limits import require_limits

    given = read_boxes(args.boxes) if args.boxes else None
    chosen = DefaultModel(args.model, "") if args.model else default_or_offer(agreed=args.yes)
    detector = shared.load_detector(
        *(chosen.name, args.config, args.overrides, args.text_weights, "cpu" if args.engine == "ray" else args.device),
        trust_pickle=args.trust_pickle,
        agreed=args.yes,
    )
    logger.info("Detector %s%s", chosen.name, f": {chosen.reason}" if chosen.reason else "")
    choose_words(detector, args.words, args.vocabulary, args.background, args.templates, args.synonyms, examples)
    threshold = detector.usual_threshold if args.threshold is None else args.threshold
    options = read_options(args, threshold)
    require_limits(args.threshold, args.topk, args.top_words, len(detector.vocabulary))
    if args.save_vocabulary:
        detector.vocabulary.save(args.save_vocabulary)
    if args.engine == "ray":
        return run_on_ray(args, detector, chosen.name, files, options, left_out)
    with stopped_by_signals(live.stop) if live else nullcontext():
        found = detect_all(detector, files, args.output, options, given, live)
    if found.unnamed:
        left_out["boxes of frames that were not looked at"] = found.unnamed
    if found.dropped:
        left_out["frames that came while an earlier one was processed"] = found.dropped
    show(found, left_out, args.output, chosen.name, with_page=args.report, as_json=args.as_json)
    return SOME_FAILED if found.failures else DONE


def read_options(args: Namespace, threshold: float) -> DetectOptions:
    """Return what to detect and to write; raises `UserError` for an invalid value."""
    from regionclip.batch.detect import DetectOptions
    from regionclip.batch.formats import parse_formats
    from regionclip.batch.shards import Shard
    from regionclip.inference.slices import Slices

    return DetectOptions(
        *(threshold, args.topk, args.top_words, args.per_class, args.every),
        *(args.drawings, args.report),
        formats=parse_formats(args.formats),
        crops=args.crops,
        batch=args.batch,
        matte=args.matte,
        slices=Slices.parse(args.slices),
        shard=Shard.parse(args.shard),
        track=args.track,
    )


def require_options(args: Namespace, live: LiveSource | None) -> None:
    """Raise a `UserError` for options that contradict each other or the live source, or whose library is missing."""
    from regionclip.batch.tracks import require_trackers
    from regionclip.errors import user_error

    refused = [name for name in ("shard", "boxes") if getattr(args, name)]
    refused += ["batch"] * (args.batch > 1) + ["engine"] * (args.engine == "ray")
    if live is not None and refused:
        names, fix = ", ".join(f"--{name}" for name in refused), "leave the option out, or record the source to a file"
        raise user_error(names, "images or video files", f"the live source {live.place}", fix)
    if live is None and args.seconds is not None:
        raise user_error("--seconds", "a live source", "files", "leave it out")
    if args.track:
        require_trackers()
    if args.slices and args.boxes:
        raise user_error("--slices and --boxes", "one of them", "both", "user boxes are named, and nothing is detected")
    if args.save_vocabulary and args.save_vocabulary.suffix != ".safetensors":
        actual = args.save_vocabulary.suffix or "none"
        raise user_error(f"--save-vocabulary {args.save_vocabulary}", ".safetensors", actual, "rename it")


def choose_words(
    detector: RegionCLIP,
    words: str | None,
    vocabulary: str,
    background: str,
    templates: str,
    synonyms: str,
    examples: Examples | None = None,
) -> None:
    """Set the vocabulary of the options; raises `UserError` if they contradict each other."""
    from regionclip.errors import user_error
    from regionclip.inference.vocabularies import is_list_or_file, split_words

    if words is not None and vocabulary:
        raise user_error("--words and --vocabulary", "one of them", "both", "leave one out")
    options = shared.vocabulary_options(templates, synonyms)
    if words is None and not vocabulary and not examples:
        _ = detector.vocabulary  # raises the error if there is none
        if (background, templates, synonyms) != ("own", "regionclip", "max"):
            what, expected = "--background, --templates, --synonyms", "--words or --vocabulary with them"
            raise user_error(what, expected, "neither", "name words, or leave them out")
        return
    others: Any = {"own": "own", "none": None}.get(background, background)
    if others is not None and others != "own" and not is_list_or_file(others):
        others = split_words(others)
    chosen = (vocabulary or ()) if words is None else split_words(words)
    detector.set_vocabulary(chosen, background=others, options=options, examples=examples)


def show(
    found: DetectReport, left_out: LeftOut, output: Path, detector: str, *, with_page: bool, as_json: bool
) -> None:
    """Print a table of detections, unreadable images, counts, skipped files, and the output paths."""
    from tabulate import tabulate

    from regionclip.batch.detect import REPORT_FILE, RESULTS_FILE
    from regionclip.hub.default import HOW_TO_CHANGE

    rows = [
        [result["image_id"].removesuffix("#0"), _label(entry), f"{entry['score']:.2f}", *map(round, entry["box"])]
        for result in found.results[:SHOWN_IMAGES]
        for entry in result["detections"][:SHOWN_ROWS]
    ]
    if rows:
        table = tabulate(rows, headers=["image", "word", "score", "x1", "y1", "x2", "y2"])
        print(table.encode(errors="backslashreplace").decode())
    for failure in found.failures:
        print(f"error: {failure}", file=sys.stderr)
    counts = Counter(entry["word"] for result in found.results for entry in result["detections"])
    if len(found.results) > SHOWN_IMAGES:
        print("detections:", ", ".join(f"{word} {count}" for word, count in counts.most_common(20)))
    resumed = f", {found.resumed} of them by an interrupted run" if found.resumed else ""
    summary = f"{len(found.results)} images{resumed}, {counts.total()} detections, {len(found.failures)} failed"
    notes = Counter(note for result in found.results for note in result.get("notes", ()))
    summary += f"; left out: {left_out}" if left_out else ""
    summary += "".join(f"; {count} read with {note}" for note, count in notes.items())
    warnings = Counter(warning for result in found.results for warning in result.get("warnings", ()))
    for warning, count in warnings.items():
        print(f"warning: {count} of {len(found.results)} images: {warning}", file=sys.stderr)
    if warnings:
        print(f"warning: {HOW_TO_CHANGE}", file=sys.stderr)
    page = f", page to look through: {output / REPORT_FILE}" if with_page else ""
    print(f"Done: {summary}; results in {output / RESULTS_FILE}{page}")
    if as_json:
        images = [{k: v for k, v in r.items() if k not in ("image_id", "thumbnail")} for r in found.results]
        content = {
            "detector": detector,
            "output": output,
            "failures": found.failures,
            "left_out": left_out,
            "images": images,
        }
        shared.print_json(content)


def _label(entry: dict[str, Any]) -> str:
    return f"{entry['word']} #{entry['track_id']}" if "track_id" in entry else str(entry["word"])
