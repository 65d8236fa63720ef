"""Writing of drawn frames as a video, atomically and at the speed of its source."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np
from numpy.typing import NDArray

from regionclip.data.frame_times import drawn_rate
from regionclip.errors import user_error

SPACE_LEFT = 2**20
"""Disk space in bytes below which a disk counts as full."""


class VideoWriter:
    """Writes frames to a temporary file, renamed to the target if the block ends without an exception."""

    def __init__(self, source: Path, target: Path, every: int) -> None:
        """Create a writer of `target`, an MP4, with the timing of every `every`-th frame of `source`."""
        self._rate = drawn_rate(source, every)
        self._target = target
        self._temporary = target.with_name(f".{target.stem}.tmp.mp4")
        self._video: cv2.VideoWriter | None = None
        self._first, self._written = 0.0, 0
        self._last: NDArray[np.uint8] | None = None

    def __enter__(self) -> VideoWriter:
        """Create the folder of the target."""
        self._target.parent.mkdir(parents=True, exist_ok=True)
        return self

    def write(self, pixels: NDArray[np.uint8], seconds: float) -> None:
        """Append a frame, shown from `seconds` on; the previous one is shown until then.

        Args:
            pixels: uint8 [H, W, 3] in RGB; all have the size of the first.
            seconds: timestamp in the source.

        Raises:
            UserError: a frame size that no video supports.
        """
        if self._video is None or self._last is None:
            self._video, self._first = self._open(pixels), seconds
        else:
            due = int((seconds - self._first) * self._rate + 0.5)
            for _ in range(due - self._written):
                self._append(self._video, self._last)
        self._last = pixels
        self._append(self._video, pixels)

    def _open(self, pixels: NDArray[np.uint8]) -> cv2.VideoWriter:
        height, width = pixels.shape[:2]
        codec = cv2.VideoWriter.fourcc(*"mp4v")
        video = cv2.VideoWriter(str(self._temporary), codec, self._rate, (width, height))
        if not video.isOpened():
            raise self._failure(f"none with frames of {width} x {height} pixels")
        return video

    def _append(self, video: cv2.VideoWriter, pixels: NDArray[np.uint8]) -> None:
        video.write(np.ascontiguousarray(pixels[:, :, ::-1]))
        self._written += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Rename the finished video, or remove a partial one."""
        try:
            if self._video is not None:
                self._video.release()
            if kind is None and self._video is not None:
                self._require_whole()
                self._temporary.replace(self._target)
        finally:
            self._temporary.unlink(missing_ok=True)

    def _require_whole(self) -> None:
        # OpenCV does not report failed writes.
        written = cv2.VideoCapture(str(self._temporary))
        count = max(int(written.get(cv2.CAP_PROP_FRAME_COUNT)), 0)
        written.release()
        if count < self._written:
            raise self._failure(f"one of {count} frames instead of {self._written}")

    def _failure(self, actual: str) -> Exception:
        if shutil.disk_usage(self._target.parent).free < SPACE_LEFT:
            return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._target))
        return user_error(str(self._target), "a video that can be written", actual, "leave it out with --no-drawings")
