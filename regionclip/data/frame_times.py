"""When the frames of a video come, as its container says."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

FASTEST = 60.0
"""Frames a second that a drawn video has at most where its source has no steady rate."""


def frame_rate(path: Path) -> float:
    """Return the frames a second of a video, on average; 25 where it does not say."""
    video = cv2.VideoCapture(str(path))
    rate = video.get(cv2.CAP_PROP_FPS)
    video.release()
    return float(rate) if rate and np.isfinite(rate) else 25.0


def frame_times(path: Path) -> list[float]:
    """Return the times of the frames in seconds, ascending, read without decoding; empty where there are none."""
    # Undecoded packets come in the order of decoding, which with B-frames is another than that of time.
    video = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_FORMAT, -1])
    times = []
    while video.grab():
        times.append(video.get(cv2.CAP_PROP_POS_MSEC) / 1000)
    video.release()
    return sorted(times) if len(set(times)) == len(times) and np.isfinite(times).all() else []


def drawn_rate(path: Path, every: int) -> float:
    """Return how many frames a second each `every`-th frame of a video needs, so that each can come at its time.

    That of the source, divided, where its frames come steadily; else that of the two which follow each other
    fastest.
    """
    steady = frame_rate(path) / every
    times = frame_times(path)[::every]
    gaps = np.diff(times)
    if not len(gaps) or float(np.abs(gaps * steady - 1).max()) < 0.5:
        return steady
    return min(1 / float(gaps.min()), FASTEST)


class FrameClock:
    """Tells when a frame comes: what the container says, where it says something that can be."""

    def __init__(self, path: Path) -> None:
        """Start before the first frame of a video."""
        self._step = 1 / frame_rate(path)
        self._seconds = -self._step

    def tick(self, milliseconds: float) -> float:
        """Return the seconds of the next frame, of which the container says milliseconds."""
        after = self._seconds + self._step
        self._seconds = milliseconds / 1000 if self._seconds < milliseconds / 1000 < np.inf else after
        return self._seconds
