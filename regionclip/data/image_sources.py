"""From what a user names, files, folders, patterns, videos, a list on standard input, to pictures in a fixed order."""

from __future__ import annotations

import glob
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from regionclip.data.frame_times import FrameClock
from regionclip.data.image_listing import ENDING, LeftOut, files_in_folder, once
from regionclip.data.images import IMAGE_ENDINGS, WHITE, UnreadableImageError, decode_image
from regionclip.errors import user_error

VIDEO_ENDINGS = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v"})
"""Endings, in lower case, of the files that count as videos."""

COUNT_IS_RIGHT = 0.95
"""Share of the frames that a video says it has, below which it is damaged."""

STANDARD_INPUT = "-"
"""In the place of a file: names are read from standard input, a line each."""


@dataclass(frozen=True)
class PictureFile:
    """A picture or a video, and its name in the output, which no other has."""

    path: Path
    name: str
    matte: str = WHITE
    """Color behind its transparent pixels."""

    @property
    def is_video(self) -> bool:
        """Whether the file has frames."""
        return self.path.suffix.lower() in VIDEO_ENDINGS


@dataclass(frozen=True)
class Frame:
    """A picture that was read."""

    pixels: NDArray[np.uint8]
    """[H, W, 3] in RGB."""
    number: int = 0
    """Of the frame in its video."""
    seconds: float = 0.0
    """When it comes in its video, as the container says."""
    notes: tuple[str, ...] = ()
    """What the pixels leave out of a picture file; see `DecodedImage`."""


def find_pictures(
    inputs: Sequence[str], lines: Iterable[str] = (), output: Path | None = None, left_out: LeftOut | None = None
) -> list[PictureFile]:
    """Return the pictures and videos that are named, each once, in the order of the inputs.

    Args:
        inputs: files; folders, searched with their sub-folders; patterns such as `photos/*.jpg`; `-`
            for the names in `lines`.
        lines: what standard input holds: files, which are looked for when their turn comes.
        output: folder of results, whose pictures are not found by folder or pattern.
        left_out: gets what folders, patterns and lists hold beside.

    Raises:
        UserError: nothing there, a file that is neither picture nor video by its ending, or nothing but results.
    """
    left_out = LeftOut() if left_out is None else left_out
    paths: dict[Path, Path] = {}
    for name in inputs:
        for path in _expand(name, lines, output, left_out):
            paths.setdefault(_absolute(path), path)
    if not paths:
        raise user_error("pictures", "at least one", "none", "name files, folders or patterns")
    root = Path(os.path.commonpath([place.parent for place in paths]))
    return [PictureFile(path, place.relative_to(root).as_posix()) for place, path in paths.items()]


def read_frames(file: PictureFile, every: int = 1) -> Iterator[Frame]:
    """Yield the picture, or of a video its first frame and each `every`-th after.

    Raises:
        UnreadableImageError: the file cannot be decoded; of a damaged video, after the frames that can.
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
        # Some containers only estimate how many frames they have.
        if not number or broken or number < COUNT_IS_RIGHT * promised:
            raise UnreadableImageError(f"{file.path}: {number - broken} of {promised} frames could be decoded")
    finally:
        video.release()


def count_frames(file: PictureFile, every: int = 1) -> int:
    """Return how many pictures `read_frames` will give, as far as the file says."""
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
    if os.path.isfile(path):  # noqa: PTH113 - of a name that no file can have, Path.is_file raises
        if path.suffix.lower() not in known:
            raise user_error(name, f"a file ending in {', '.join(sorted(known))}", path.suffix or "none", "convert it")
        return [path]
    if os.path.isdir(path):  # noqa: PTH112 - likewise
        if output is not None and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(output)):
            expected, fix = f"another folder than that of the pictures, {name}", f"name another, such as {path}/found"
            actual = "the same" if path.samefile(output) else "a folder around it"
            raise user_error(f"output {output}", expected, actual, fix)
        found = files_in_folder(path, known, left_out, without=output)
    else:
        found = _matches(path, known, output, left_out)
    if not found:
        actual = "a folder without" if os.path.isdir(path) else "no such file"  # noqa: PTH112 - likewise
        actual += f" (left out: {left_out})" if left_out else ""
        raise user_error(name[:200], "pictures or videos", actual, "correct the path; patterns belong in quotes")
    return found


def _listed(lines: Iterable[str], left_out: LeftOut) -> list[Path]:
    listed = [Path(line.removeprefix("\ufeff").rstrip("\r\n")) for line in lines if line.strip("\ufeff \r\n")]
    companions = [path for path in listed if path.name.startswith("._")]  # of macOS, in any list that `find` makes
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
    # Without `..`, and without following links: a name in the output must not lead out of it.
    return Path(os.path.abspath(path))  # noqa: PTH100 - Path.absolute keeps `..`
