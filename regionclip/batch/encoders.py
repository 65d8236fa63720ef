"""Encoders of MP4 videos: H.264 with the timestamps of the frames through PyAV, else OpenCV's with a constant rate."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

TICKS = 90_000
"""Units of timestamps per second: exact for all usual frame rates."""

H264 = "libx264"
"""Name of the encoder in FFmpeg."""

QUALITY = {"preset": "veryfast", "crf": "23"}
"""Options of x264."""

KEYFRAME_SECONDS = 2.0
"""Time between frames to which a player can jump."""

_BT709, _LIMITED_RANGE = 1, 1
"""What players assume of a video, as FFmpeg numbers it."""


class EncodingError(ValueError):
    """A video cannot be encoded: a frame size that the format does not support, or a failed write."""


class VideoEncoder(Protocol):
    """A video that frames are appended to."""

    written: int
    """Number of frames that the file will have."""

    def write(self, pixels: NDArray[np.uint8], seconds: float) -> None:
        """Append a frame, uint8 [H, W, 3] in RGB, shown from `seconds` after the start; the first has 0."""

    def close(self) -> None:
        """Write what is left, and close the file."""


class MPEG4Encoder:
    """MPEG-4 Part 2 at a constant rate by OpenCV; a frame that is shown longer is repeated."""

    def __init__(self, path: Path, size: tuple[int, int], rate: float) -> None:
        """Open a file for frames of (width, height), `rate` per second; raises `EncodingError` for a size."""
        self.written = 0
        self._rate = rate
        self._last: NDArray[np.uint8] | None = None
        self._video = cv2.VideoWriter(str(path.absolute()), cv2.VideoWriter.fourcc(*"mp4v"), rate, size)
        if not self._video.isOpened():
            raise EncodingError(f"OpenCV writes no frames of {size[0]} x {size[1]}")

    def write(self, pixels: NDArray[np.uint8], seconds: float) -> None:
        """Repeat the last frame until `seconds`, and append one."""
        if self._last is not None:
            for _ in range(int(seconds * self._rate + 0.5) - self.written):
                self._append(self._last)
        self._last = pixels
        self._append(pixels)

    def _append(self, pixels: NDArray[np.uint8]) -> None:
        self._video.write(np.ascontiguousarray(pixels[:, :, ::-1]))
        self.written += 1

    def close(self) -> None:
        """Close the file."""
        self._video.release()


class H264Encoder:
    """H.264 as browsers play it, by PyAV: each frame once, with its timestamp."""

    def __init__(self, path: Path, size: tuple[int, int], rate: float) -> None:
        """Open a file for frames of (width, height); the last is shown for 1 / `rate` seconds.

        Raises:
            EncodingError: a size that H.264 does not support.
        """
        import av

        self.written = 0
        self._rate = rate
        self._waiting: Any = None
        with _encoding_errors():
            self._container = av.open(str(path.absolute()), "w", format="mp4", options={"movflags": "+faststart"})
            stream: Any = self._container.add_stream(H264, rate=_fraction(rate), options=QUALITY)
            stream.width, stream.height = (side + side % 2 for side in size)
            stream.pix_fmt = "yuv420p"
            self._stream, context = stream, stream.codec_context
            context.time_base = Fraction(1, TICKS)
            context.gop_size = max(round(KEYFRAME_SECONDS * rate), 1)
            context.max_b_frames = 0  # so that the first timestamp is 0 for players that ignore edit lists
            context.colorspace = context.color_primaries = context.color_trc = _BT709
            context.color_range = _LIMITED_RANGE
            try:
                context.open()
            except BaseException:
                self._container.close()
                raise

    def write(self, pixels: NDArray[np.uint8], seconds: float) -> None:
        """Append a frame; an odd side gets one more pixel, as YUV 4:2:0 needs."""
        import av

        height, width = pixels.shape[:2]
        if height % 2 or width % 2:
            pixels = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        with _encoding_errors():
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709")
            frame.pts, frame.time_base = round(seconds * TICKS), Fraction(1, TICKS)
            if self._waiting is not None:
                frame.pts = max(frame.pts, self._waiting.pts + 1)
                self._append(frame.pts - self._waiting.pts)
            self._waiting = frame

    def _append(self, duration: int) -> None:
        """Encode the frame that waited until it was known how long it is shown."""
        self._waiting.duration = duration
        self._container.mux(self._stream.encode(self._waiting))
        self.written += 1

    def close(self) -> None:
        """Write what is left, and close the file."""
        try:
            with _encoding_errors():
                if self._waiting is not None:
                    self._append(max(round(TICKS / self._rate), 1))
                    self._container.mux(self._stream.encode(None))
        finally:
            with _encoding_errors():
                self._container.close()


@lru_cache(maxsize=1)
def can_write_h264() -> bool:
    """Return whether PyAV is installed, with an encoder for H.264."""
    if find_spec("av") is None:
        return False
    import av

    return H264 in av.codecs_available


@contextmanager
def _encoding_errors() -> Iterator[None]:
    """Turn what FFmpeg refuses into an `EncodingError`; errors of the operating system stay what they are."""
    from av.error import FFmpegError

    try:
        yield
    except OSError:
        raise
    except (FFmpegError, ValueError, OverflowError) as error:
        raise EncodingError(str(error)) from error


def _fraction(rate: float) -> Fraction:
    return max(Fraction(rate).limit_denominator(1001), Fraction(1, 1001))
