"""Inputs: images and videos of files, folders, patterns, archives, addresses, standard input, in a fixed order."""

from __future__ import annotations

import glob
import itertools
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from regionclip.data.frame_times import FrameClock, drawn_rate
from regionclip.data.image_archives import ARCHIVE_ENDINGS, read_archive
from regionclip.data.image_contents import Content, FileImage
from regionclip.data.image_listing import (
    ENDING,
    LeftOut,
    files_in_folder,
    is_among_results,
    names_below_common_folder,
    once,
)
from regionclip.data.images import IMAGE_ENDINGS, WHITE, UnreadableImageError, decode_image
from regionclip.data.locations import Location, is_address
from regionclip.data.remote_files import ending_of, find_remote
from regionclip.errors import user_error
from regionclip.files import expand_home
from regionclip.fingerprints import file_state

VIDEO_ENDINGS = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v"})
"""Extensions of video files, lower case."""

COUNT_IS_RIGHT = 0.95
"""Minimum fraction of the frame count in a video's header; with fewer frames it is damaged."""

STANDARD_INPUT = "-"
"""In place of a file: file names are read from standard input, one per line."""


@dataclass(frozen=True)
class ImageFile:
    """An image or video, and its unique name in the output."""

    path: Path
    name: str
    matte: str = WHITE
    """Color behind transparent pixels."""
    content: Content | None = None
    """The image, if it is no file of its own: `path` then only tells where its name comes from."""

    @property
    def is_video(self) -> bool:
        """Whether the file is a video."""
        return self.content is None and self.path.suffix.lower() in VIDEO_ENDINGS

    @property
    def place(self) -> str:
        """The path, or the address or archive and name within it, for messages and results."""
        return str(self.path) if self.content is None else self.content.place

    @property
    def version(self) -> tuple[Any, ...]:
        """Size and time of the file, of the archive, or of the address as far as known."""
        return file_state(self.path) if self.content is None else self.content.version

    def drawn_rate(self, every: int) -> float:
        """Return the frames per second at which every `every`-th frame of the video can be shown at its timestamp."""
        return drawn_rate(self.path, every)


@dataclass(frozen=True)
class Frame:
    """A decoded image or video frame."""

    pixels: NDArray[np.uint8]
    """[H, W, 3] in RGB."""
    number: int = 0
    """Index of the frame in its video."""
    seconds: float = 0.0
    """Timestamp of the frame in its video, from the container."""
    notes: tuple[str, ...] = ()
    """What the pixels omit from the image file; see `DecodedImage`."""
    captured: str = ""
    """Date and time of a frame of a live source."""
    is_listed: bool = True
    """Whether the report shows it: of a live source not all frames."""


def find_images(
    inputs: Sequence[str], lines: Iterable[str] = (), output: Path | None = None, left_out: LeftOut | None = None
) -> list[ImageFile]:
    """Return the images and videos of the inputs, each once, in input order.

    Args:
        inputs: files; folders, searched recursively; glob patterns such as `photos/*.jpg`; tar shards and Parquet
            files, or patterns of them; addresses of fsspec for each of these; `-` for the names in `lines`.
        lines: file names from standard input, which are opened later.
        output: output folder, whose images folders and patterns do not find.
        left_out: gets the skipped entries of folders, patterns and lists.

    Raises:
        UserError: nothing found, a file whose extension is neither image nor video, or only results found.
    """
    left_out = LeftOut() if left_out is None else left_out
    collected = _Collected()
    for name in inputs:
        for image in _expand(name, lines, output, left_out):
            collected.add(image)
    if not collected.images:
        raise user_error("images", "at least one", "none", "name files, folders or patterns")
    return collected.named()


def read_frames(file: ImageFile, every: int = 1) -> Iterator[Frame]:
    """Yield the image, or of a video its first frame and every `every`-th after.

    Raises:
        UnreadableImageError: the file cannot be decoded; for a damaged video, after its readable frames.
    """
    if not file.is_video:
        image = decode_image(file.path if file.content is None else file.content.open(), file.matte)
        yield Frame(image.pixels, notes=image.notes)
        return
    video = cv2.VideoCapture(str(file.path.absolute()))
    try:
        clock, number, broken = FrameClock(file.path), 0, 0
        while video.grab():
            seconds = clock.tick(video.get(cv2.CAP_PROP_POS_MSEC))
            if number % every == 0:
                decoded, pixels = video.retrieve()
                if decoded:
                    yield Frame(np.ascontiguousarray(pixels[:, :, ::-1]), number, seconds)
                broken += not decoded
            number += 1
        promised = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
        # Some containers only estimate their frame count.
        if not number or broken or number < COUNT_IS_RIGHT * promised:
            raise UnreadableImageError(f"{file.path}: {number - broken} of {promised} frames could be decoded")
    finally:
        video.release()


def count_frames(file: ImageFile, every: int = 1) -> int:
    """Return the number of frames `read_frames` will yield, as far as known."""
    if not file.is_video:
        return 1
    video = cv2.VideoCapture(str(file.path.absolute()))
    count = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
    video.release()
    return max(-(-count // every), 0)


class _Collected:
    """Images of several inputs, each once."""

    def __init__(self) -> None:
        self.images: dict[Path, ImageFile] = {}
        self._contents: set[Content | None] = set()
        self._numbers: Counter[Path] = Counter()

    def add(self, image: ImageFile) -> None:
        key = _absolute(image.path)
        known = self.images.setdefault(key, image)
        if known.content == image.content or image.content is None or image.content in self._contents:
            return
        # Another of the same name: in an archive, or at an address whose query is not shown.
        self._contents.add(image.content)
        path = key
        while path in self.images:
            self._numbers[key] += 1
            path = key.with_stem(f"{key.stem}_{self._numbers[key]}")
        content = replace(image.content, place=f"{image.content.place}#{self._numbers[key]}")
        self.images[path] = replace(image, path=path, content=content)

    def named(self) -> list[ImageFile]:
        """Return the images with their paths relative to the deepest folder that has all files and archives."""
        folders = [path.parents[len(Path(image.name).parts) - 1] for path, image in self.images.items()]
        names = names_below_common_folder(list(self.images), folders)
        return [replace(image, name=name) for image, name in zip(self.images.values(), names, strict=True)]


def _expand(name: str, lines: Iterable[str], output: Path | None, left_out: LeftOut) -> Iterator[ImageFile]:
    if name == STANDARD_INPUT:
        for line in _listed(lines, left_out):
            yield from _remote(Location("", line), (), left_out) if is_address(line) else _local(Path(line), left_out)
    elif is_address(name):
        known = ARCHIVE_ENDINGS if ending_of(name) in ARCHIVE_ENDINGS else IMAGE_ENDINGS
        for location, version in find_remote(name, known, left_out):
            yield from _remote(location, version, left_out)
    else:
        for path in _find(name, output, left_out):
            yield from _local(path, left_out)


def _local(path: Path, left_out: LeftOut) -> Iterator[ImageFile]:
    if path.suffix.lower() not in ARCHIVE_ENDINGS:
        yield ImageFile(path, path.name)
        return
    location = Location(str(path))
    for entry in read_archive(location, location.version(), left_out):
        yield ImageFile(entry.path, entry.name, content=entry.content)


def _remote(location: Location, version: tuple[Any, ...], left_out: LeftOut) -> Iterator[ImageFile]:
    place = location.place
    if ending_of(place) not in ARCHIVE_ENDINGS:
        yield ImageFile(location.file, location.file.name, content=FileImage(place, location, version))
        return
    for entry in read_archive(location, version or location.version(), left_out):
        yield ImageFile(entry.path, entry.name, content=entry.content)


def _find(name: str, output: Path | None, left_out: LeftOut) -> list[Path]:
    path = expand_home(name)
    known = IMAGE_ENDINGS | VIDEO_ENDINGS
    if path.suffix.lower() in ARCHIVE_ENDINGS and not os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises for impossible names
        known = ARCHIVE_ENDINGS
    if os.path.isfile(path):  # noqa: PTH113 - likewise
        if path.suffix.lower() not in known:
            raise user_error(name, f"a file ending in {', '.join(sorted(known))}", path.suffix or "none", "convert it")
        return [path]
    if os.path.isdir(path):  # noqa: PTH112 - likewise
        if output is not None and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(output)):
            expected, fix = f"another folder than that of the images, {name}", f"name another, such as {path}/found"
            actual = "the same" if path.samefile(output) else "a folder around it"
            raise user_error(f"output {output}", expected, actual, fix)
        found = files_in_folder(path, known, left_out, without=output)
    else:
        found = _matches(path, known, output, left_out)
    if not found:
        actual = "a folder without" if os.path.isdir(path) else "no such file"  # noqa: PTH112 - likewise
        actual += f" (left out: {left_out})" if left_out else ""
        fix = "correct the path; patterns belong in quotes"
        if any(left_out[ENDING + ending] for ending in ARCHIVE_ENDINGS):
            fix += "; name tar and Parquet files themselves, or as '*.tar'"
        raise user_error(name[:200], "images or videos", actual, fix)
    return found


def _listed(lines: Iterable[str], left_out: LeftOut) -> list[str]:
    listed = [line.removeprefix("\ufeff").rstrip("\r\n") for line in lines if line.strip("\ufeff \r\n")]
    companions = [line for line in listed if Path(line).name.startswith("._")]  # macOS metadata, listed by `find`
    left_out.update({"hidden": len(companions)} if companions else {})
    return [line for line in listed if line not in companions]


def _matches(pattern: Path, known: Collection[str], output: Path | None, left_out: LeftOut) -> list[Path]:
    found = []
    root = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), pattern.parts))
    for match in map(Path, glob.glob(str(pattern), recursive=True)):  # noqa: PTH207 - Path.glob takes no absolute pattern
        if match.is_dir():
            left_out.update({} if "**" in pattern.parts else {"folders": 1})
        elif is_among_results(match, root) or (
            output is not None and _absolute(match).is_relative_to(_absolute(output))
        ):
            left_out["in the folder of results"] += 1
        elif match.suffix.lower() not in known:
            left_out[ENDING + (match.suffix.lower() or "none")] += 1
        elif match.is_file():
            found.append(match)
        else:
            left_out["broken links"] += 1
    return once(found)


def _absolute(path: Path) -> Path:
    # Without `..`, and without resolving symlinks: a name in the output must not lead out of it.
    return Path(os.path.abspath(path))  # noqa: PTH100 - Path.absolute keeps `..`
