"""Decoding and preprocessing of images and frames in background threads."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import Full, Queue
from typing import Generic, Self, TypeVar

from regionclip.data.image_sources import Frame, ImageFile, read_frames

FILES_AHEAD, FRAMES_AHEAD = min(4, max((os.cpu_count() or 1) // 2, 1)), 2
"""Number of files decoded at once, and of frames queued per file: the detector needs processors too."""

Prepared = TypeVar("Prepared")


class ReadAhead(Generic[Prepared]):
    """Prefetches the prepared frames of files, in order."""

    def __init__(self, files: Iterable[ImageFile], prepare: Callable[[Frame], Prepared], every: int = 1) -> None:
        """Start with the first files.

        Args:
            files: files in the order of use.
            prepare: preprocesses a frame, in several threads.
            every: as for `read_frames`.
        """
        self._files = iter(files)
        self._prepare, self._every = prepare, every
        self._started: deque[_Decoding[Prepared]] = deque()
        self._threads = ThreadPoolExecutor(FILES_AHEAD, "decode")
        for _ in range(FILES_AHEAD):
            self._start_next()

    def __enter__(self) -> Self:
        """Return self."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Cancel the remaining work."""
        for decoding in self._started:
            decoding.abandoned.set()
        self._started.clear()  # so that generators closed later start nothing
        self._threads.shutdown(cancel_futures=True)

    def frames(self, file: ImageFile) -> Iterator[Prepared]:
        """Yield the frames of the next file, or a later one; raises what `read_frames` raises, at the same frame."""
        while self._started and self._started[0].file != file:
            self._leave(self._started[0])
        if not self._started:
            raise ValueError(f"{file.place} is none of the files that are left")
        decoding = self._started[0]
        try:
            yield from decoding
        finally:
            self._leave(decoding)

    def _leave(self, decoding: _Decoding[Prepared]) -> None:
        """Release a file and start the next one, once per file."""
        decoding.abandoned.set()
        if self._started and self._started[0] is decoding:
            self._started.popleft()
            self._start_next()

    def _start_next(self) -> None:
        file = next(self._files, None)
        if file is not None:
            self._started.append(_Decoding(file))
            self._threads.submit(self._started[-1].run, self._prepare, self._every)


class _Decoding(Generic[Prepared]):
    """One file, whose decoder waits when its queue is full."""

    def __init__(self, file: ImageFile) -> None:
        self.file = file
        self.abandoned = threading.Event()
        self._frames: Queue[Prepared | Exception | None] = Queue(FRAMES_AHEAD)

    def run(self, prepare: Callable[[Frame], Prepared], every: int) -> None:
        """Decode and preprocess, in another thread, until all frames are consumed or the file is released."""
        try:
            for frame in read_frames(self.file, every):
                self._put(prepare(frame))
                if self.abandoned.is_set():
                    return
            self._put(None)
        except Exception as error:  # raised in the consuming thread
            self._put(error)

    def __iter__(self) -> Iterator[Prepared]:
        while (item := self._frames.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item

    def _put(self, item: Prepared | Exception | None) -> None:
        while not self.abandoned.is_set():
            try:
                self._frames.put(item, timeout=0.1)
                return
            except Full:
                continue
