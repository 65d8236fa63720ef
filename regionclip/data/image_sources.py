"""Input files: images and videos from files, folders, glob patterns or standard input, in a fixed order."""

from __future__ import annotations

import glob
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from regionclip.data.frame_times import FrameClock, drawn_rate
from regionclip.data.image_listing import ENDING, LeftOut, files_in_folder, names_below_common_folder, once
from regionclip.data.images import IMAGE_ENDINGS, WHITE, UnreadableImageError, decode_image
from regionclip.errors import user_error

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

    @property
    def is_video(self) -> bool:
        """Whether the file is a video."""
        return self.path.suffix.lower() in VIDEO_ENDINGS

    @property
    def origin(self) -> str:
        """What results show as their file."""
        return str(self.path)

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
        inputs: files; folders, searched recursively; glob patterns such as `photos/*.jpg`; `-`
            for the names in `lines`.
        lines: file names from standard input, which are opened later.
        output: output folder, whose images folders and patterns do not find.
        left_out: gets the skipped entries of folders, patterns and lists.

    Raises:
        UserError: nothing found, a file whose extension is neither image nor video, or only results found.
    """
    left_out = LeftOut() if left_out is None else left_out
    paths: dict[Path, Path] = {}
    for name in inputs:
        for path in _expand(name, lines, output, left_out):
            paths.setdefault(_absolute(path), path)
    if not paths:
        raise user_error("images", "at least one", "none", "name files, folders or patterns")
    names = names_below_common_folder(list(paths))
    return [ImageFile(path, name) for path, name in zip(paths.values(), names, strict=True)]


def read_frames(file: ImageFile, every: int = 1) -> Iterator[Frame]:
    """Yield the image, or of a video its first frame and every `every`-th after.

    Raises:
        UnreadableImageError: the file cannot be decoded; for a damaged video, after its readable frames.
    """
    if not file.is_video:
        image = decode_image(file.path, file.matte)
        yield Frame(image.pixels, notes=image.notes)
        return
    video = cv2.VideoCapture(str(file.path))
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
    video = cv2.VideoCapture(str(file.path))
    count = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
    video.release()
    return max(-(-count // every), 0)


def _expand(name: str, lines: Iterable[str], output: Path | None, left_out: LeftOut) -> list[Path]:
    if name == STANDARD_INPUT:
        return _listed(lines, left_out)
    path, known = Path(name).expanduser(), IMAGE_ENDINGS | VIDEO_ENDINGS
    if os.path.isfile(path):  # noqa: PTH113 - Path.is_file raises for impossible names
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
        raise user_error(name[:200], "images or videos", actual, "correct the path; patterns belong in quotes")
    return found


def _listed(lines: Iterable[str], left_out: LeftOut) -> list[Path]:
    listed = [Path(line.removeprefix("\ufeff").rstrip("\r\n")) for line in lines if line.strip("\ufeff \r\n")]
    companions = [path for path in listed if path.name.startswith("._")]  # macOS metadata, listed by `find`
    left_out.update({"hidden": len(companions)} if companions else {})
    return [path for path in listed if path not in companions]


def _matches(pattern: Path, known: Collection[str], output: Path | None, left_out: LeftOut) -> list[Path]:
    found = []
    for match in map(Path, glob.glob(str(pattern), recursive=True)):  # noqa: PTH207 - Path.glob takes no absolute pattern
        if match.is_dir():
            left_out.update({} if "**" in pattern.parts else {"folders": 1})
        elif output is not None and _absolute(match).is_relative_to(_absolute(output)):
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
