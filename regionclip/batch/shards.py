"""A part of the images, so that several jobs without a common coordinator share the work."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from regionclip.data.image_sources import ImageFile
from regionclip.data.user_boxes import ImageBoxes
from regionclip.errors import user_error


@dataclass(frozen=True)
class Shard:
    """Every `count`-th image, from the one at `index`."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard | None:
        """Return the shard of an option `INDEX/COUNT`, such as 0/3; None if it is empty.

        Raises:
            UserError: no such numbers, or an index that is not below the count.
        """
        if not text:
            return None
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        if found is None or int(found[1]) >= int(found[2]):
            expected, fix = "INDEX/COUNT with an index from 0 to COUNT - 1", "such as --shard 0/3, 1/3 and 2/3"
            raise user_error("--shard", expected, repr(text), fix)
        return cls(int(found[1]), int(found[2]))

    def files(self, files: Sequence[ImageFile]) -> list[ImageFile]:
        """Return the files of this shard, whose names are those among all files."""
        return list(files[self.index :: self.count])

    @staticmethod
    def boxes(boxes: dict[str, ImageBoxes], files: Sequence[ImageFile]) -> dict[str, ImageBoxes]:
        """Return the user boxes of files and of their video frames (`name#frame`)."""
        names = {file.name for file in files}
        return {name: own for name, own in boxes.items() if name in names or name.rpartition("#")[0] in names}
