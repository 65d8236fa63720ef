"""Writing drawn frames as a video that is whole or not there."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import cv2
import numpy as np
from numpy.typing import NDArray

from regionclip.data.picture_sources import frame_rate


class VideoWriter:
    """Collects frames under a temporary name; the video appears when the block ends without an exception."""

    def __init__(self, source: Path, target: Path, every: int) -> None:
        """Make a writer of `target`, an MP4, at the speed of `source` of which each `every`-th frame comes."""
        self._rate = frame_rate(source) / every
        self._target = target
        self._temporary = target.with_name(f".{target.stem}.tmp.mp4")
        self._video: cv2.VideoWriter | None = None

    def __enter__(self) -> VideoWriter:
        """Start."""
        self._target.parent.mkdir(parents=True, exist_ok=True)
        return self

    def write(self, pixels: NDArray[np.uint8]) -> None:
        """Add a frame, uint8 [H, W, 3] in RGB; all have the size of the first."""
        if self._video is None:
            height, width = pixels.shape[:2]
            codec = cv2.VideoWriter.fourcc(*"mp4v")
            self._video = cv2.VideoWriter(str(self._temporary), codec, self._rate, (width, height))
        self._video.write(np.ascontiguousarray(pixels[:, :, ::-1]))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put the video in its place, or remove what there is of it."""
        if self._video is not None:
            self._video.release()
        if kind is None and self._temporary.is_file():
            self._temporary.replace(self._target)
        else:
            self._temporary.unlink(missing_ok=True)
