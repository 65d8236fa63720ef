"""Live sources: cameras and network streams, of which only the newest frame is kept."""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol, Self
from urllib.parse import urlsplit

import cv2
import numpy as np
from numpy.typing import NDArray

from regionclip.addresses import masked
from regionclip.data.image_sources import VIDEO_ENDINGS, Frame, ImageFile
from regionclip.data.images import IMAGE_ENDINGS
from regionclip.errors import UserError, user_error

logger = logging.getLogger(__name__)

STREAM_SCHEMES = frozenset({"rtsp", "rtsps", "rtmp", "rtmps", "rtp", "udp", "tcp", "srt"})
"""Schemes of addresses that are always live."""

WEB_SCHEMES = frozenset({"http", "https"})
"""Schemes whose addresses are live unless they end as files do."""

FILE_ENDINGS = IMAGE_ENDINGS | VIDEO_ENDINGS | {".tar", ".parquet", ".json", ".txt", ".csv"}
"""Extensions of web addresses that are files."""

RETRY_SECONDS = (0.5, 1.0, 2.0, 4.0)
"""Waiting times before the tries to open a source again that gives no more frames."""

TIMEOUT_SECONDS = 10.0
"""Longest time that OpenCV waits for a stream to open, and for its next frame."""

LEFT_SECONDS = 2.0
"""Longest time that the end waits for a source that does not answer."""

LIVE_RATE = 25.0
"""Frames per second of drawn videos where the video format has a constant rate."""

FFMPEG_MESSAGES = "OPENCV_FFMPEG_LOGLEVEL"
"""Environment variable of OpenCV: which messages FFmpeg prints, in its numbers."""

_NO_MESSAGES, _ERRORS = "-8", "16"

LISTED_SECONDS = 1.0
"""Shortest time between two frames that the report shows."""

_POLL_SECONDS = 0.1
"""Time between two looks at whether the reader was stopped."""


@dataclass(frozen=True)
class LiveSource(ImageFile):
    """A camera or stream; `path` is the name that results and files have, without user and password."""

    address: str = field(default="", repr=False)
    """Number of a camera, device, or address of a stream, with user and password."""

    @property
    def is_video(self) -> bool:
        """Whether it has frames, which is so."""
        return True

    @property
    def place(self) -> str:
        """What results show as their file: the camera or address, without user and password."""
        return f"camera {self.address}" if self.address.isdecimal() else masked(self.address)

    def drawn_rate(self, every: int) -> float:
        """Return the frames per second of a drawn video with a constant rate."""
        return LIVE_RATE


def live_source(inputs: Sequence[str]) -> LiveSource | None:
    """Return the live source of a command's inputs; None if they are files.

    Raises:
        UserError: a live source together with other inputs.
    """
    live = [name for name in inputs if is_live(name)]
    if not live:
        return None
    if len(inputs) > 1:
        actual = f"{masked(live[0])} among {len(inputs)} inputs"
        raise user_error("inputs", "files, or one live source alone", actual, "give it a command of its own")
    address = live[0]
    about = f"camera_{address}" if address.isdecimal() else masked(address).replace("***", "")
    name = re.sub(r"[^\w.-]+", "_", about).strip("._-")
    return LiveSource(Path(name), name, address=address)


def is_live(name: str) -> bool:
    """Return whether an input is the number of a camera, a video device, or the address of a stream."""
    if name.isdecimal() and name.isascii():
        return len(name) < 4 and not os.path.exists(name)  # noqa: PTH110 - Path.exists raises for impossible names
    if name.startswith("/dev/video"):
        return True
    scheme, mark, _ = name.partition("://")
    if not mark or scheme.lower() not in WEB_SCHEMES:
        return bool(mark) and scheme.lower() in STREAM_SCHEMES
    try:
        path = urlsplit(name).path
    except ValueError as error:  # without the rest, which can hold a password
        raise user_error(f"{scheme}://...", "an address", str(error), "correct the address") from None
    return Path(path).suffix.lower() not in FILE_ENDINGS


class Capture(Protocol):
    """What is used of OpenCV's `VideoCapture`."""

    def read(self) -> tuple[bool, Any]:
        """Wait for the next frame, and return whether there is one, and its pixels in BGR."""

    def get(self, property_id: int) -> float:
        """Return a property."""

    def release(self) -> None:
        """Close the source."""


def open_capture(address: str) -> Capture:
    """Open the number of a camera, a video device or the address of a stream, with OpenCV."""
    # Messages of OpenCV and FFmpeg have parts of the address, if only what they take for a host name in a password.
    os.environ.setdefault(FFMPEG_MESSAGES, _NO_MESSAGES)
    before = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        if address.isdecimal():
            return cv2.VideoCapture(int(address))
        if address.startswith("/dev/"):
            return cv2.VideoCapture(address, cv2.CAP_V4L2)
        limit = int(1000 * TIMEOUT_SECONDS)
        limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, limit, cv2.CAP_PROP_READ_TIMEOUT_MSEC, limit]
        return cv2.VideoCapture(address, cv2.CAP_FFMPEG, limits)
    finally:
        cv2.utils.logging.setLogLevel(before)


@dataclass(frozen=True)
class _Newest:
    """A frame that nobody has taken yet."""

    pixels: NDArray[np.uint8]
    """[H, W, 3] in BGR."""
    number: int
    time: float
    """Of the clock."""
    captured: datetime


class LiveReader:
    """Reads a live source in a thread, and keeps its newest frame only: a slow consumer never lags behind.

    A source that gives no more frames is opened again a few times, unless it has an end. For example:

        with LiveReader(source) as reader:
            for frame in reader.frames():
                ...
    """

    def __init__(
        self,
        source: LiveSource,
        every: int = 1,
        seconds: float | None = None,
        open_source: Callable[[str], Capture] = open_capture,
        retry_seconds: Sequence[float] = RETRY_SECONDS,
    ) -> None:
        """Create a reader; the source is opened when the block starts.

        Args:
            source: camera or stream.
            every: of all frames only every `every`-th counts.
            seconds: time after which the frames end; None reads as long as there are any.
            open_source: opens an address.
            retry_seconds: waiting times before each try to open the source again.
        """
        self.source = source
        self.dropped = 0
        """Number of frames that were replaced by a newer one before they were taken."""
        self.problem = ""
        """Why the frames ended; empty if the source has an end, or the reader was stopped."""
        self._every, self._seconds = every, seconds
        self._open, self._retry_seconds = open_source, tuple(retry_seconds)
        self._changed = threading.Condition()
        self._newest: _Newest | None = None
        self._number = self._tries = 0
        self._begun = self._stopped = self._ended = self._has_end = False
        self._position = self._played_since = 0.0
        self._thread = threading.Thread(target=self._read, name="live", daemon=True)

    def __enter__(self) -> Self:
        """Open the source, and start reading.

        Raises:
            UserError: it cannot be opened, or gives no frame.
        """
        self._connect()
        decoded, pixels = self._capture.read()
        if not decoded:
            self._capture.release()
            raise _unopened(self.source)
        self._keep(pixels)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop reading, and close the source."""
        self.stop()
        self._thread.join(LEFT_SECONDS)

    def stop(self) -> None:
        """End the frames; may be called by a signal handler."""
        self._stopped = True  # no lock: the interrupted code may hold it

    def frames(self) -> Iterator[Frame]:
        """Yield the newest frame, again and again, with the seconds since the first one."""
        begin, start, listed = time.monotonic(), None, -np.inf
        with self._changed:
            if self._newest is not None and self._has_end:  # its first frame, at which reading waits
                self._newest = replace(self._newest, time=begin, captured=datetime.now().astimezone())
            else:  # what came before, such as while a detector was loaded, does not count
                self._newest, self._number, self.dropped = None, 0, 0
            self._played_since, self._begun = begin - self._position, True
        while (newest := self._next(begin)) is not None:
            start = newest.time if start is None else start
            seconds = newest.time - start
            if self._is_over(seconds):
                return
            is_listed = seconds >= listed + LISTED_SECONDS
            listed = seconds if is_listed else listed
            captured = newest.captured.isoformat(" ", "milliseconds")
            pixels = np.ascontiguousarray(newest.pixels[:, :, ::-1])
            yield Frame(pixels, newest.number, seconds, captured=captured, is_listed=is_listed)

    def _is_over(self, seconds: float) -> bool:
        return self._stopped or (self._seconds is not None and seconds > self._seconds)

    def _next(self, begin: float) -> _Newest | None:
        """Wait for a frame and take it; None if there are no more."""
        with self._changed:
            while self._newest is None and not self._ended:
                if self._is_over(time.monotonic() - begin):
                    return None
                self._changed.wait(_POLL_SECONDS)
            newest, self._newest = self._newest, None
            return newest

    def _read(self) -> None:
        """Read frames, in another thread, until the source ends or the reader is stopped."""
        try:
            while not self._stopped:
                if self._has_end and not self._begun:
                    self._wait(_POLL_SECONDS)
                    continue
                decoded, pixels = self._capture.read()
                if decoded:
                    self._tries = 0
                    self._keep(pixels)
                elif self._has_end or not self._open_again():
                    break
        except Exception as error:  # told by the consumer
            self.problem = f"{self.source.place}: {masked(str(error))}"
        finally:
            self._capture.release()
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _keep(self, pixels: NDArray[np.uint8]) -> None:
        if self._has_end:  # a recording, which would come as fast as the network is
            self._position = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            self._wait(self._position - (time.monotonic() - self._played_since) if self._begun else 0)
        with self._changed:
            if self._number % self._every == 0:
                self.dropped += self._newest is not None
                self._newest = _Newest(pixels, self._number, time.monotonic(), datetime.now().astimezone())
                self._changed.notify_all()
            self._number += 1

    def _connect(self) -> None:
        self._capture = self._open(self.source.address)
        self._has_end = self._capture.get(cv2.CAP_PROP_FRAME_COUNT) > 0

    def _open_again(self) -> bool:
        """Wait and open the source again; return False after too many tries without a frame."""
        if self._tries == len(self._retry_seconds):
            self.problem = f"{self.source.place}: no more frames, also after {self._tries} tries to open it again"
            return False
        self._capture.release()
        self._wait(self._retry_seconds[self._tries])
        self._tries += 1
        if not self._stopped:
            logger.warning("%s: no frames; try %d to open it again", self.source.place, self._tries)
            self._connect()
        return True

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self._stopped and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, _POLL_SECONDS))


def _unopened(source: LiveSource) -> UserError:
    fix = (
        "check address, network, user and password, in which @ is %40 and / is %2F;"
        f" {FFMPEG_MESSAGES}={_ERRORS} shows FFmpeg's messages, with parts of the address"
    )
    if source.place.startswith(("camera", "/dev/")):
        fix = "check that it is connected, that no other program uses it, and that you may read /dev/video*"
    return user_error(source.place, "a camera or stream that gives frames", "none", fix)
