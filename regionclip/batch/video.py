"""Writing drawn frames as a video that is whole or not there, and plays as fast as its source."""

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
"""Bytes that are left on a disk which is not full."""


class VideoWriter:
    """Collects frames under a temporary name; the video appears when the block ends without an exception."""

    def __init__(self, source: Path, target: Path, every: int) -> None:
        """Make a writer of `target`, an MP4, at the pace of `source` of which each `every`-th frame comes."""
        self._rate = drawn_rate(source, every)
        self._target = target
        self._temporary = target.with_name(f".{target.stem}.tmp.mp4")
        self._video: cv2.VideoWriter | None = None
        self._first, self._written = 0.0, 0
        self._last: NDArray[np.uint8] | None = None

    def __enter__(self) -> VideoWriter:
        """Start."""
        self._target.parent.mkdir(parents=True, exist_ok=True)
        return self

    def write(self, pixels: NDArray[np.uint8], seconds: float) -> None:
        """Add a frame, which is seen from `seconds` on; the one before it stays until then.

        Args:
            pixels: uint8 [H, W, 3] in RGB; all have the size of the first.
            seconds: time in the source.

        Raises:
            UserError: frames that no video can have.
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
        """Put the video in its place, or remove what there is of it."""
        try:
            if self._video is not None:
                self._video.release()
            if kind is None and self._video is not None:
                self._require_whole()
                self._temporary.replace(self._target)
        finally:
            self._temporary.unlink(missing_ok=True)

    def _require_whole(self) -> None:
        # OpenCV says nothing of a write that failed.
        written = cv2.VideoCapture(str(self._temporary))
        count = max(int(written.get(cv2.CAP_PROP_FRAME_COUNT)), 0)
        written.release()
        if count < self._written:
            raise self._failure(f"one of {count} frames in the place of {self._written}")

    def _failure(self, actual: str) -> Exception:
        if shutil.disk_usage(self._target.parent).free < SPACE_LEFT:
            return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._target))
        return user_error(str(self._target), "a video that can be written", actual, "leave it out with --no-pictures")
