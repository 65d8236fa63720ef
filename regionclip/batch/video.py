"""Writing of drawn frames as a video, atomically and at the speed of its source."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from functools import lru_cache
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np
from numpy.typing import NDArray

from regionclip.batch.encoders import EncodingError, H264Encoder, MPEG4Encoder, VideoEncoder, can_write_h264
from regionclip.errors import user_error

logger = logging.getLogger(__name__)

SPACE_LEFT = 2**20
"""Disk space in bytes below which a disk counts as full."""


class VideoWriter:
    """Writes frames to a temporary file, renamed to the target if the block ends without an exception."""

    def __init__(self, target: Path, rate: float) -> None:
        """Create a writer of `target`, an MP4.

        Args:
            target: file to write.
            rate: frames per second, at which each frame can be shown at its timestamp.
        """
        self._target, self._rate = target, rate
        self._temporary = target.with_name(f".{target.stem}.tmp.mp4")
        self._video: VideoEncoder | None = None
        self._size, self._first = (0, 0), 0.0

    def __enter__(self) -> VideoWriter:
        """Create the folder of the target."""
        self._target.parent.mkdir(parents=True, exist_ok=True)
        return self

    def write(self, pixels: NDArray[np.uint8], seconds: float) -> None:
        """Append a frame, shown from `seconds` on; the previous one is shown until then.

        Args:
            pixels: uint8 [H, W, 3] in RGB; resized if it is not of the size of the first.
            seconds: timestamp in the source, after that of the previous frame.

        Raises:
            UserError: a frame size that no video supports.
        """
        height, width = pixels.shape[:2]
        if self._video is None:
            self._size, self._first = (width, height), seconds
            encoder = H264Encoder if can_write_h264() else _without_h264()
            try:
                self._video = encoder(self._temporary, self._size, self._rate)
            except EncodingError as error:
                raise self._failure(f"none with frames of {width} x {height} pixels") from error
        if (width, height) != self._size:  # a stream may change its resolution
            pixels = np.asarray(cv2.resize(pixels, self._size, interpolation=cv2.INTER_AREA), np.uint8)
        try:
            self._video.write(pixels, seconds - self._first)
        except EncodingError as error:
            raise self._failure(str(error)) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Rename the finished video, or remove a partial one."""
        try:
            if self._video is not None:
                self._close(self._video)
                if kind is None:
                    self._require_whole(self._video.written)
                    self._temporary.replace(self._target)
        finally:
            self._temporary.unlink(missing_ok=True)

    def _close(self, video: VideoEncoder) -> None:
        try:
            video.close()
        except EncodingError as error:
            raise self._failure(str(error)) from error

    def _require_whole(self, expected: int) -> None:
        # OpenCV does not report failed writes.
        written = cv2.VideoCapture(str(self._temporary.absolute()))
        count = max(int(written.get(cv2.CAP_PROP_FRAME_COUNT)), 0)
        written.release()
        if count < expected:
            raise self._failure(f"one of {count} frames instead of {expected}")

    def _failure(self, actual: str) -> Exception:
        if shutil.disk_usage(self._target.parent).free < SPACE_LEFT:
            return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._target))
        return user_error(str(self._target), "a video that can be written", actual, "leave it out with --no-drawings")


@lru_cache(maxsize=1)
def _without_h264() -> type[MPEG4Encoder]:
    """Return the encoder that needs no further library; says once what it lacks."""
    how = 'pip install "regionclip[video]" writes H.264'
    logger.info("Videos are written as MPEG-4 Part 2, which browsers do not play: %s", how)
    return MPEG4Encoder
