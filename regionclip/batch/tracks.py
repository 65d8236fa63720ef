"""Track ids: one number for an object in all frames of a video, by ByteTrack of the library `trackers`."""

from __future__ import annotations

from collections import deque
from importlib.util import find_spec
from statistics import median
from typing import Any

import numpy as np

from regionclip.errors import user_error

KEPT_SECONDS = 1.0
"""Time for which an object without detections keeps its track."""

KEPT_FRAMES = 3
"""Number of frames for which it does at least, where frames come slowly."""

INTERVALS = 31
"""Number of intervals between frames whose median counts."""


def require_trackers() -> None:
    """Raise a `UserError` if the library is not installed."""
    if find_spec("trackers") is None:
        fix = 'pip install "regionclip[track]"'
        raise user_error("--track", "the library trackers, of version 2.6 or newer", "none", fix)


class Tracks:
    """Gives the detections of one video their track ids: 1, 2, ... in the order in which objects are found again.

    Each class has a tracker of its own, so a track never changes its class. A detection has no track until its object
    is detected in a second frame.
    """

    def __init__(self) -> None:
        """Start before the first frame of a video."""
        self._trackers: dict[int, _ClassTracks] = {}
        self._intervals: deque[float] = deque(maxlen=INTERVALS)
        self._last: float | None = None
        self._count = 0

    def update(self, detections: list[dict[str, Any]], seconds: float) -> None:
        """Set `track_id` of the detections in the next frame.

        Args:
            detections: of a result of `batch.results.as_result`; those without a track have no `track_id` afterwards.
            seconds: timestamp of the frame, after that of the one before.
        """
        if self._last is not None:
            self._intervals.append(seconds - self._last)
        self._last = seconds
        kept = max(KEPT_SECONDS, KEPT_FRAMES * median(self._intervals or [0.0]))
        by_class: dict[int, list[dict[str, Any]]] = {class_id: [] for class_id in self._trackers}
        for entry in detections:
            entry.pop("track_id", None)
            by_class.setdefault(entry["class_id"], []).append(entry)
        for class_id, entries in by_class.items():
            tracker = self._trackers.setdefault(class_id, _ClassTracks())
            self._count = tracker.update(entries, seconds, kept, self._count)
        self._trackers = {class_id: tracker for class_id, tracker in self._trackers.items() if tracker.has_any}


class _ClassTracks:
    """The tracks of one class."""

    def __init__(self) -> None:
        from trackers import ByteTrackTracker

        # All detections were selected by the threshold of the user: each may start a track.
        self._tracker: Any = ByteTrackTracker(track_activation_threshold=0.0, high_conf_det_threshold=0.0)
        self._ids: dict[int, int] = {}

    @property
    def has_any(self) -> bool:
        """Whether any object is tracked."""
        return bool(self._tracker.tracks)

    def update(self, entries: list[dict[str, Any]], seconds: float, kept: float, count: int) -> int:
        """Set `track_id` of detections, and return the number of tracks in the video: `count` and new ones."""
        import supervision

        self._tracker.maximum_time_without_update = kept
        found = supervision.Detections(
            xyxy=np.array([entry["box"] for entry in entries], np.float64).reshape(-1, 4),
            confidence=np.array([entry["score"] for entry in entries], np.float64),
            data={"row": np.arange(len(entries))},
        )
        tracked = self._tracker.update(found, timestamp=seconds)
        if not len(tracked):
            return count
        for row, number in sorted(zip(tracked.data["row"].tolist(), tracked.tracker_id.tolist(), strict=True)):
            if number >= 0:
                count += number not in self._ids
                entries[row]["track_id"] = self._ids.setdefault(number, count)
        return count
