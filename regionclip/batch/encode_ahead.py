"""Batched encoding of images ahead of detection."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

from regionclip.data.image_sources import Frame, ImageFile
from regionclip.data.images import UnreadableImageError
from regionclip.data.read_ahead import ReadAhead
from regionclip.errors import UserError
from regionclip.inference.encoded_image import EncodedImage

Prepared = tuple[Frame, EncodedImage]
"""A frame, and the image prepared for the detector."""


class EncodeAhead:
    """Yields the frames of files like `ReadAhead`, encoded in batches with frames of the following files."""

    def __init__(
        self,
        reader: ReadAhead[Prepared],
        files: Sequence[ImageFile],
        encode: Callable[[Sequence[tuple[ImageFile, Prepared]]], None],
        count: int,
    ) -> None:
        """Read images from a reader.

        Args:
            reader: of the files.
            files: files in the order of use.
            encode: encodes a batch of images before they are yielded.
            count: batch size.
        """
        self._items = _read(reader, files)
        self._encode, self._count = encode, count
        self._waiting: deque[tuple[ImageFile, Prepared | Exception]] = deque()

    def frames(self, file: ImageFile) -> Iterator[Prepared]:
        """Yield the frames of the next file, or a later one; raises as `ReadAhead.frames`, at the same frame."""
        while self._fill() and self._waiting[0][0] != file:
            self._waiting.popleft()
        while self._fill() and self._waiting[0][0] == file:
            _, item = self._waiting.popleft()
            if isinstance(item, Exception):
                raise item
            yield item

    def _fill(self) -> bool:
        """Encode the next batch when none is left, and return whether there is any image."""
        if not self._waiting:
            prepared_images: list[tuple[ImageFile, Prepared]] = []
            for file, item in self._items:
                self._waiting.append((file, item))
                if not isinstance(item, Exception):
                    prepared_images.append((file, item))
                if len(prepared_images) == self._count:
                    break
            if prepared_images:
                self._encode(prepared_images)
        return bool(self._waiting)


def _read(reader: ReadAhead[Prepared], files: Sequence[ImageFile]) -> Iterator[tuple[ImageFile, Prepared | Exception]]:
    """Yield the frames of files one after the other; an error that ends a file is yielded in its place."""
    for file in files:
        try:
            for prepared in reader.frames(file):
                yield file, prepared
        except (UnreadableImageError, UserError) as error:
            yield file, error
