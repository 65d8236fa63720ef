"""`regionclip detect --engine ray`: detection on a cluster, with a row for each image in Parquet files."""

from __future__ import annotations

import logging
import math
import os
import re
import shutil
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regionclip.cli import options as shared

if TYPE_CHECKING:
    from regionclip import RegionCLIP
    from regionclip.batch.detect import DetectOptions
    from regionclip.clip.vocabulary import Vocabulary
    from regionclip.data.image_contents import Content
    from regionclip.data.image_listing import LeftOut
    from regionclip.data.image_sources import ImageFile
    from regionclip.integrations.parquet_parts import PartsSummary

logger = logging.getLogger(__name__)

PROCESS_ONLY = ("boxes", "top_words", "every", "track", "seconds", "batch", "drawings", "report", "formats", "crops")
"""Options that need a single process, which has all results."""

RAY_ONLY = ("actors", "cpus_per_actor", "gpus_per_actor", "rows_per_block")

RUN_FILE = "_run.json"
"""File in the output that tells whose rows it has; readers of Parquet folders leave out what begins with `_`."""

SHOWN_FAILURES = 20

MOST_ROWS = 4096
"""Maximum number of images of a block, however fast the detector."""


def require_engine_options(args: Namespace) -> None:
    """Raise a `UserError` for options that were given and that the engine does not have."""
    from regionclip.errors import user_error

    refused = PROCESS_ONLY if args.engine == "ray" else RAY_ONLY
    # By its name: Typer may bring a Click of its own.
    given = [name for name in refused if getattr(args.context.get_parameter_source(name), "name", "") == "COMMANDLINE"]
    if given:
        names = ", ".join("--format" if name == "formats" else f"--{name.replace('_', '-')}" for name in given)
        raise user_error(names, f"options of --engine {args.engine}", "those of the other engine", "leave them out")
    if args.engine == "ray" and re.match(r"\w{2,}:/", args.output.as_posix()):  # a path has one of two slashes
        fix = "call regionclip.integrations.ray.detect_to_parquet, which takes addresses"
        raise user_error(f"--output {args.output}", "a folder that all machines share", "an address", fix)


def run_on_ray(
    args: Namespace,
    detector: RegionCLIP,
    model: str,
    files: Sequence[ImageFile],
    options: DetectOptions,
    left_out: LeftOut,
) -> int:
    """Detect in all images, print a summary, and return the exit code.

    Args:
        args: options of the command.
        detector: with its vocabulary, on the CPU of this machine.
        model: its name, by which the actors load it.
        files: from `find_images`.
        options: what to detect.
        left_out: gets the videos.

    Raises:
        UserError: Ray is not installed, or a folder with other results.
    """
    from regionclip.batch.detect import run_fingerprint
    from regionclip.engine.command import DONE, SOME_FAILED
    from regionclip.engine.ownership import own_folder
    from regionclip.integrations.parquet_parts import drop_repeated, summarize
    from regionclip.integrations.ray import require_ray

    require_ray()
    own = options.shard.files(files) if options.shard else files
    chosen = [file for file in own if not file.is_video]
    left_out.update(["videos, which need --engine process"] * (len(own) - len(chosen)))
    place = Path(os.path.abspath(args.output))  # noqa: PTH100 - Path.absolute keeps `..`
    run = RayRun(place, run_fingerprint(detector, chosen, options, None))
    with own_folder(place, f"output {args.output}"):
        rows = run.unfinished({shown(file): file for file in chosen})
        if rows:
            detect_rows(args, detector, model, rows, options, place)
        drop_repeated(str(place))
        run.finish()
        found = summarize(str(place))
    show(found, left_out, args.output, model, as_json=args.as_json)
    return SOME_FAILED if found.failures else DONE


@dataclass(frozen=True)
class RayRun:
    """The state of an output folder: new rows never mix with those of another run."""

    output: Path
    fingerprint: str

    @property
    def checkpoint(self) -> Path:
        """Folder in which Ray notes finished images."""
        from regionclip.integrations.parquet_parts import checkpoint_of

        return Path(checkpoint_of(str(self.output)))

    def unfinished(self, files: dict[str, ImageFile]) -> dict[str, ImageFile]:
        """Return the images, by path, without those whose rows were written by a run that was killed.

        The rows of a finished run are removed.

        Raises:
            UserError: rows of an unfinished run with other words, model, images or options, or of something else.
        """
        from regionclip.errors import user_error
        from regionclip.files import read_json_file, write_json
        from regionclip.integrations.parquet_parts import PATH, part_files, read_column, recover

        known = read_json_file(self.output / RUN_FILE)
        filesystem, parts = part_files(str(self.output))
        what, fix = f"output {self.output}", "name another folder, or remove these files"
        if known is None and parts:
            raise user_error(what, "no Parquet files, or those of this command", f"{len(parts)} of others", fix)
        if known and not known.get("finished"):
            if known.get("fingerprint") != self.fingerprint:
                actual = "those of a run with other words, model, images or options"
                fix = f"finish that run with its own command, {fix}"
                raise user_error(what, "no unfinished results, or those of this run", actual, fix)
            if self.checkpoint.is_dir():
                written = set(recover(str(self.output)))
            else:  # Ray removes its notes when all is written
                written = {path for part in parts for path in read_column(filesystem, part, PATH)}
            return {path: file for path, file in files.items() if path not in written}
        for part in parts:
            Path(part).unlink()
        shutil.rmtree(self.checkpoint, ignore_errors=True)
        write_json(self.output / RUN_FILE, {"fingerprint": self.fingerprint, "finished": False})
        return files

    def finish(self) -> None:
        """Note that all rows are written, once each."""
        from regionclip.files import write_json

        write_json(self.output / RUN_FILE, {"fingerprint": self.fingerprint, "finished": True})


def detect_rows(
    args: Namespace,
    detector: RegionCLIP,
    model: str,
    files: dict[str, ImageFile],
    options: DetectOptions,
    place: Path,
) -> None:
    """Write a row for each image with Ray Data; the arguments are those of `run_on_ray`."""
    from regionclip.data.image_contents import to_text
    from regionclip.integrations.ray import CONTENT, PATH, detect_to_parquet

    background = detector.background
    rows_per_block = args.rows_per_block or minutes_work(detector, list(files.values()), args.actors)
    logger.info("%d images, %d in a block, %d actors", len(files), rows_per_block, args.actors)
    with started_ray() as ray:
        rows = [{PATH: path, CONTENT: to_text(content_of(file))} for path, file in files.items()]
        detect_to_parquet(
            ray.data.from_items(rows),
            _checked(detector.vocabulary),
            str(place),
            str(Path(model).absolute()) if Path(model).exists() else model,
            rows_per_block=rows_per_block,
            concurrency=args.actors,
            num_cpus=reserved_cpus(args.cpus_per_actor, args.actors, ray.cluster_resources().get("CPU", 1.0)),
            num_gpus=args.gpus_per_actor,
            threads=max(int(args.cpus_per_actor), 1),
            background=None if background is None else _checked(background),
            threshold=options.threshold,
            topk=options.topk,
            per_class=options.per_class,
            slices=options.slices,
            matte=options.matte,
            device=args.device,
            loading=_loading(args),
        )


def _checked(vocabulary: Vocabulary) -> Vocabulary:
    """Return a vocabulary for which no actor loads the text encoder: that it fits has been checked."""
    return replace(vocabulary, text_weights="")


def _loading(args: Namespace) -> dict[str, Any]:
    weights = {"text_weights": args.text_weights, "trust_pickle": args.trust_pickle}
    return {"config": args.config, "overrides": shared.override_pairs(args.overrides), **weights}


def shown(file: ImageFile) -> str:
    """Return the place of an image as a text that Parquet can have: a name need not be UTF-8."""
    return file.place.encode(errors="backslashreplace").decode()


def content_of(file: ImageFile) -> Content:
    """Return the content of an image for a process with another working directory."""
    from regionclip.data.image_contents import FileImage
    from regionclip.data.locations import Location

    content = file.content or FileImage(file.place, Location(str(file.path)))
    location = content.location
    if location.root:
        return content
    return replace(content, location=replace(location, path=os.path.abspath(location.path)))  # noqa: PTH100 - Path.absolute keeps `..`


def reserved_cpus(wanted: float, actors: int, total: float) -> float:
    """Return the logical CPUs that each actor reserves: one stays for reading, without which a job waits forever."""
    return min(wanted, math.floor(1000 * max(total - 1, 0) / actors) / 1000)


def minutes_work(detector: RegionCLIP, files: Sequence[ImageFile], actors: int) -> int:
    """Return the number of images that are a minute's work here, so that a killed job loses little.

    A few blocks for each actor share the work of a small job evenly.
    """
    from regionclip.data.image_sources import read_frames
    from regionclip.data.images import UnreadableImageError
    from regionclip.errors import UserError

    seconds = 0.0
    for file in files[:8]:
        try:
            (frame,) = read_frames(file)
        except (UnreadableImageError, UserError):
            continue
        for _ in range(2):  # the first call is slower
            detector.forget_images()
            start = time.perf_counter()
            detector.set_image(frame.pixels)
            detector.predict()
            seconds = time.perf_counter() - start
        break
    most = min(math.ceil(len(files) / (4 * actors)), MOST_ROWS)
    return max(min(int(60 / seconds), most) if seconds else most, 1)


@contextmanager
def started_ray() -> Iterator[Any]:
    """Yield Ray: connected to the cluster of RAY_ADDRESS, else started on this machine and stopped at the end."""
    import ray

    if ray.is_initialized():
        yield ray
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(logging_level=logging.WARNING)
    else:
        # Two logical CPUs at least: one reads.
        cpus = max(os.cpu_count() or 1, 2)
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, logging_level=logging.WARNING)
    try:
        yield ray
    finally:
        ray.shutdown()


def show(found: PartsSummary, left_out: LeftOut, output: Path, detector: str, *, as_json: bool) -> None:
    """Print unreadable images, counts, skipped files, and the output path."""
    for failure in found.failures[:SHOWN_FAILURES]:
        print(f"error: {failure}", file=sys.stderr)
    if len(found.failures) > SHOWN_FAILURES:
        rest = len(found.failures) - SHOWN_FAILURES
        print(f"error: {rest} more images; see the column error", file=sys.stderr)
    if found.words:
        print("detections:", ", ".join(f"{word} {count}" for word, count in found.words.most_common(20)))
    summary = f"{found.images} images, {found.words.total()} detections, {len(found.failures)} failed"
    summary += f"; left out: {left_out}" if left_out else ""
    summary += "".join(f"; {count} with the note: {note}" for note, count in found.notes.items())
    print(f"Done: {summary}; Parquet files in {output}")
    if as_json:
        content = {"detector": detector, "output": output, "failures": found.failures, "left_out": left_out}
        shared.print_json(content | {"images": found.images, "detections": dict(found.words)})
