"""Timestamps and frame rate of a video, from its container."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

FASTEST = 60.0
"""Maximum frames per second of a drawn video whose source has a variable frame rate."""


def frame_rate(path: Path) -> float:
    """Return the average frames per second of a video; 25 if unknown."""
    video = cv2.VideoCapture(str(path.absolute()))  # FFmpeg takes what stands before a colon for a protocol
    rate = video.get(cv2.CAP_PROP_FPS)
    video.release()
    return float(rate) if rate and np.isfinite(rate) else 25.0


def frame_times(path: Path) -> list[float]:
    """Return the timestamps of the frames in seconds, ascending, without decoding; empty if unknown."""
    # Packets come in decoding order, which differs from presentation order with B-frames.
    video = cv2.VideoCapture(str(path.absolute()), cv2.CAP_FFMPEG, [cv2.CAP_PROP_FORMAT, -1])
    times = []
    while video.grab():
        times.append(video.get(cv2.CAP_PROP_POS_MSEC) / 1000)
    video.release()
    return sorted(times) if len(set(times)) == len(times) and np.isfinite(times).all() else []


def drawn_rate(path: Path, every: int) -> float:
    """Return the frames per second at which every `every`-th frame of a video can be shown at its timestamp.

    That of the source, divided, if its frame rate is constant; else that of the shortest interval between
    frames.
    """
    steady = frame_rate(path) / every
    times = frame_times(path)[::every]
    gaps = np.diff(times)
    if not len(gaps) or float(np.abs(gaps * steady - 1).max()) < 0.5:
        return steady
    return min(1 / float(np.min(gaps)), FASTEST)


class FrameClock:
    """Gives the timestamp of each frame: that of the container, if plausible."""

    def __init__(self, path: Path) -> None:
        """Start before the first frame of a video."""
        self._step = 1 / frame_rate(path)
        self._seconds = -self._step

    def tick(self, milliseconds: float) -> float:
        """Return the timestamp of the next frame in seconds, given the container's in milliseconds."""
        after = self._seconds + self._step
        self._seconds = milliseconds / 1000 if self._seconds < milliseconds / 1000 < np.inf else after
        return self._seconds
