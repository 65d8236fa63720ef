"""Detection on many images and videos, with resumption after an interruption and all output formats."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from regionclip.batch.crops import CROPS, write_crops
from regionclip.batch.encode_ahead import EncodeAhead, Prepared
from regionclip.batch.file_names import forget_files, note_files, short
from regionclip.batch.formats import FORMATS
from regionclip.batch.live import LiveFrames, live_status, require_new_folder
from regionclip.batch.report import write_report
from regionclip.batch.results import as_coco, as_detections, as_result
from regionclip.batch.shards import Shard
from regionclip.batch.tracks import Tracks
from regionclip.batch.video import VideoWriter
from regionclip.batch.write_behind import WriteBehind
from regionclip.clip.vocabulary import content_hash
from regionclip.data.image_listing import RESULTS_MARK
from regionclip.data.image_sources import Frame, ImageFile, count_frames
from regionclip.data.images import WHITE, UnreadableImageError
from regionclip.data.live import LiveReader
from regionclip.data.read_ahead import ReadAhead
from regionclip.data.user_boxes import ImageBoxes, boxes_by_image
from regionclip.detections import Detections
from regionclip.engine.ownership import own_folder
from regionclip.errors import UserError, user_error
from regionclip.files import atomic_write, write_json
from regionclip.fingerprints import fingerprint
from regionclip.inference.encoded_image import EncodedImage
from regionclip.inference.slices import Slices
from regionclip.journal import Journal
from regionclip.predictor import RegionCLIP
from regionclip.progress import progress_bar

logger = logging.getLogger(__name__)

RESULTS_FILE, DRAWINGS, VIDEOS, REPORT_FILE = "detections.json", "drawings", "videos", "report.html"
"""Output files and folders of a run."""

DRAWN_AS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG"}
"""Formats that drawn images keep; others become PNG with .png appended to the name."""


@dataclass(frozen=True)
class DetectOptions:
    """What to detect, and what to write."""

    threshold: float | None = 0.05
    topk: int | None = 25
    """Maximum number of detections per image; user boxes are all classified."""
    words_per_box: int = 0
    per_class: bool = False
    every: int = 1
    """Process every `every`-th frame of a video."""
    drawings: bool = True
    """Write images with drawn detections."""
    report: bool = True
    """Write an HTML report."""
    formats: tuple[str, ...] = ()
    """Further ones, keys of `batch.formats.FORMATS`."""
    crops: bool = False
    """Write an image of each detection."""
    batch: int = 1
    """Images encoded at once. Several are padded to the largest, which slightly changes their detections."""
    matte: str = WHITE
    """Color behind transparent pixels."""
    slices: Slices | None = None
    """Also detect in tiles."""
    shard: Shard | None = None
    """The part of the images that this run is for."""
    track: bool = False
    """Give the detections in videos track ids."""


@dataclass
class DetectReport:
    """Outcome of a run by image."""

    results: list[dict[str, Any]] = field(default_factory=list)
    """For each image or video frame: file, frame, size, and detections."""
    failures: list[str] = field(default_factory=list)
    resumed: int = 0
    """Number of images finished by an interrupted run."""
    unnamed: int = 0
    """Number of user boxes for frames that were not processed."""
    dropped: int = 0
    """Number of frames of a live source that were not processed because newer ones came."""


def detect(
    detector: RegionCLIP,
    files: Sequence[ImageFile],
    output: Path,
    options: DetectOptions,
    given_boxes: dict[str, ImageBoxes] | None = None,
    live: LiveReader | None = None,
) -> DetectReport:
    """Detect on images and videos, or on a live source, and write `detections.json` (COCO), drawn images and a report.

    Args:
        detector: with a vocabulary.
        files: from `find_images`.
        output: folder to write to.
        options: thresholds, and what to write.
        given_boxes: user boxes to classify instead of detecting, by file name.
        live: reader of the live source that is the only one of `files`, for an output folder without results.

    Raises:
        UserError: boxes of unknown images, or a folder that another process uses, that has unfinished
            results of another run, or that cannot be written to.
    """
    files = [replace(file, matte=options.matte) for file in files]
    boxes = boxes_by_image(given_boxes, _places(files, given_boxes)) if given_boxes is not None else None
    if options.shard is not None:
        files = options.shard.files(files)
        boxes = None if boxes is None else options.shard.boxes(boxes, files)
    _require_apart(files, output)
    with own_folder(output, f"output {output}"):
        journal = Journal(output, run_fingerprint(detector, files, options, boxes), "detections")
        if live:
            require_new_folder(output, RESULTS_FILE)
        journal.require_own()
        (output / RESULTS_MARK).touch()  # other runs do not look for images here
        if options.crops and not journal.finished():
            forget_files(output / CROPS)
        report = _detect(detector, files, output, options, boxes, journal, live)
        _write_all(report.results, detector.vocabulary.names, output, options)
        journal.remove()
    return report


def _write_all(results: Sequence[dict[str, Any]], words: Sequence[str], output: Path, options: DetectOptions) -> None:
    """Write what all results are together in."""
    write_json(output / RESULTS_FILE, as_coco(results, words))
    if options.crops:
        crops = [found["crop"] for result in results for found in result["detections"] if "crop" in found]
        note_files(output / CROPS, [Path(crop).relative_to(CROPS).as_posix() for crop in crops])
    for name in options.formats:
        FORMATS[name](results, words, output)
    if options.report:
        write_report(output / REPORT_FILE, results, words)


def _detect(
    detector: RegionCLIP,
    files: Sequence[ImageFile],
    output: Path,
    options: DetectOptions,
    boxes: dict[str, ImageBoxes] | None,
    journal: Journal,
    live: LiveReader | None,
) -> DetectReport:
    finished = {result["image_id"]: result for result in journal.finished()}
    drawn = drawn_names(files)
    report = DetectReport(resumed=len(finished))
    total = None if live else sum(count_frames(file, options.every) for file in files)
    unread = [file for file in files if not live and (file.is_video or _image_id(file) not in finished)]

    def prepare(frame: Frame) -> Prepared:
        return frame, detector.prepare_image(frame.pixels)

    with (
        progress_bar(total=total, unit="image") as progress,
        WriteBehind() as writer,
        ReadAhead(unread, prepare, options.every) as reader,
    ):
        ahead = _encode_ahead(detector, reader, unread, finished, options.batch, proposals=boxes is None)
        run = _Run(detector, output, options, finished, journal, LiveFrames(live, prepare) if live else ahead, writer)
        for file in files:
            try:
                for result in _FileRun(run, file, drawn[file.name], boxes, Tracks() if options.track else None):
                    report.results.append(result)
                    progress.set_postfix_str(live_status(live, result) if live else "", refresh=False)
                    progress.update()
            except (UnreadableImageError, UserError) as error:
                report.failures.append(str(error))
                progress.update()
        writer.wait()
    report.dropped = live.dropped if live else 0
    seen = {result["image_id"] for result in report.results} | {file.name for file in files}
    report.unnamed = sum(len(rows) for name, rows in (boxes or {}).items() if name not in seen)
    return report


def _encode_ahead(
    detector: RegionCLIP,
    reader: ReadAhead[Prepared],
    files: Sequence[ImageFile],
    finished: Collection[str],
    count: int,
    *,
    proposals: bool,
) -> ReadAhead[Prepared] | EncodeAhead:
    """Return a source of frames that encodes `count` of them at once, without those of an interrupted run."""
    if count == 1:
        return reader

    def encode(prepared: Sequence[tuple[ImageFile, Prepared]]) -> None:
        wanted = [image for file, (frame, image) in prepared if _image_id(file, frame.number) not in finished]
        EncodedImage.encode_together(wanted, proposals=proposals)

    return EncodeAhead(reader, files, encode, count)


@dataclass(frozen=True)
class _Run:
    """State shared by all files."""

    detector: RegionCLIP
    output: Path
    options: DetectOptions
    finished: dict[Any, dict[str, Any]]
    """Results of an interrupted run, by `_image_id`."""
    journal: Journal
    source: ReadAhead[Prepared] | EncodeAhead | LiveFrames
    writer: WriteBehind


@dataclass(frozen=True)
class _FileRun:
    """Results of one image or video, taken from an interrupted run if available.

    Images and thumbnails that results refer to are written shortly after.
    """

    run: _Run
    file: ImageFile
    drawn: str
    boxes: dict[str, ImageBoxes] | None
    """By `_image_id` of a frame, or by file name."""
    tracks: Tracks | None
    """Track ids of a video."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        options = self.run.options
        if not self.file.is_video and (finished := self.run.finished.get(_image_id(self.file))):
            yield finished
            return
        frames = self.run.source.frames(self.file)
        if not (self.file.is_video and options.drawings):
            yield from (self._result(*prepared, draw=options.drawings) for prepared in frames)
            return
        damage: UnreadableImageError | None = None
        with VideoWriter(self.run.output / self.drawn, self.file.drawn_rate(options.every)) as video:
            try:
                for frame, image in frames:
                    result = self._result(frame, image, draw=False)
                    drawn = as_detections(result, self.run.detector.vocabulary.names, frame).draw()
                    video.write(np.array(drawn), frame.seconds)
                    yield result
            except UnreadableImageError as error:
                damage = error  # the frames decoded so far are kept
        if damage is not None:
            raise damage

    def _result(self, frame: Frame, image: EncodedImage, *, draw: bool) -> dict[str, Any]:
        image_id = _image_id(self.file, frame.number)
        result, found = self.run.finished.get(image_id), None
        if result is None:
            found = self._detect(image, image_id)
            result = as_result(image_id, self.file, frame, found)
        if self.file.is_video and self.run.options.drawings:
            result["drawn"] = self.drawn
        if self.file.is_video and self.tracks is not None:
            # Also of what an interrupted run finished, so that its tracks go on.
            self.tracks.update(result["detections"], frame.seconds)
        if found is not None:
            self.run.writer.submit(self._finish, result, frame, found if draw else None)
        return result

    def _detect(self, image: EncodedImage, image_id: str) -> Detections:
        options, detector = self.run.options, self.run.detector
        detector.set_image(image)
        try:
            if self.boxes is not None:
                boxes = self.boxes[self.file.name].joined(self.boxes.get(image_id, ImageBoxes()))
                return detector.predict(boxes, words_per_box=options.words_per_box)
            return detector.predict(
                threshold=options.threshold,
                topk=options.topk,
                words_per_box=options.words_per_box,
                per_class=options.per_class,
                slices=options.slices,
            )
        except UserError as error:
            raise UserError([replace(p, what=f"{self.file.place}: {p.what}") for p in error.problems]) from error

    def _finish(self, result: dict[str, Any], frame: Frame, drawn: Detections | None) -> None:
        """Write the files of a result, and only then the result itself."""
        if drawn is not None:
            result["drawn"] = self._draw(drawn)
        result["thumbnail"] = self._thumbnail(frame) if self.run.options.report and frame.is_listed else ""
        if self.run.options.crops:
            write_crops(result, frame.pixels, self.run.output)
        self.run.journal.append([result])

    def _draw(self, found: Detections) -> str:
        with atomic_write(self.run.output / self.drawn) as file:
            found.draw().save(file, format=DRAWN_AS[Path(self.drawn).suffix.lower()])
        return self.drawn

    def _thumbnail(self, frame: Frame) -> str:
        name = _thumbnail_name(self.file, frame.number)
        small = Image.fromarray(frame.pixels)
        small.thumbnail((480, 480))
        with atomic_write(self.run.output / name) as file:
            small.save(file, format="JPEG", quality=80)
        return name


def _require_apart(files: Sequence[ImageFile], output: Path) -> None:
    """Raise a `UserError` if an output file would overwrite an input image."""
    written = {*drawn_names(files).values(), *(_thumbnail_name(file) for file in files)}
    replaced = {os.path.realpath(output / name) for name in written} & {os.path.realpath(file.path) for file in files}
    if replaced:
        expected, actual = "a folder whose images are not looked at", f"{min(replaced)}, which would be replaced"
        raise user_error(f"output {output}", expected, actual, "name another folder")


def _places(files: Sequence[ImageFile], given: Collection[str]) -> dict[str, Path]:
    """Return what user boxes can refer to, by name: files, and the video frames that occur in `given`."""
    numbers = {match[1] for key in given if (match := re.search(r"#(\d+)$", key))}
    frames = [(file, int(number)) for file in files if file.is_video for number in sorted(numbers, key=int)]
    return {file.name: file.path for file in files} | {
        _image_id(file, number): Path(f"{file.path}#{number}") for file, number in frames
    }


def _image_id(file: ImageFile, frame: int = 0) -> str:
    return f"{file.name}#{frame}"


def drawn_names(files: Sequence[ImageFile]) -> dict[str, str]:
    """Return the unique output file of each image or video, relative to the output folder."""
    taken = {f"{DRAWINGS}/{file.name}" for file in files}
    names = {}
    for file in files:
        if file.is_video:
            names[file.name] = f"{VIDEOS}/{short(file.name, '.mp4')}"
            continue
        name = f"{DRAWINGS}/{file.name}"
        while Path(name).suffix.lower() not in DRAWN_AS or (name in taken and name != f"{DRAWINGS}/{file.name}"):
            name = f"{DRAWINGS}/{short(name.removeprefix(f'{DRAWINGS}/'), '.png')}"
        taken.add(name)
        names[file.name] = name
    return names


def _address_of(file: ImageFile) -> str:
    """Return a hash of the address of an image of which nothing else is known: its name lacks the query."""
    return "" if file.content is None else fingerprint([file.content.location.address])


def _thumbnail_name(file: ImageFile, frame: int = 0) -> str:
    return f"thumbnails/{short(file.name, f'.{frame}.jpg')}"


def run_fingerprint(
    detector: RegionCLIP,
    files: Sequence[ImageFile],
    options: DetectOptions,
    boxes: dict[str, ImageBoxes] | None,
) -> str:
    """Return a hash of everything that decides the results of a run."""
    # Formats are written from the results of a run, whatever they are.
    parts: list[Any] = [detector.fingerprint, asdict(replace(options, formats=())), boxes]
    parts += [
        (v.names, content_hash(v.embeddings)) for v in (detector.vocabulary, detector.background) if v is not None
    ]
    parts += [(file.name, file.version if any(file.version) else _address_of(file)) for file in files]
    return fingerprint(parts)
