"""What a CORA localizer computes of an image before it knows class names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from detectron2.structures import Instances
from torch import Tensor

from regionclip.methods.cora.encodings import ValidCells


@dataclass
class LocalizerEncoding:
    """Maps and encoded cells of N padded images."""

    layer3: Tensor
    """[N, C, H, W]."""
    layer4: Tensor
    """[N, 2 C, H / 2, W / 2]."""
    cells3: ValidCells
    cells4: ValidCells
    memory: Tensor
    """Output of the encoder [N, H * W, 256]."""
    memory_position: Tensor
    """Position encoding of its cells [N, H * W, 256]."""
    image_sizes: list[tuple[int, int]]
    """(height, width) of the network input."""

    def __len__(self) -> int:
        """Return the number of images N."""
        return len(self.image_sizes)

    def __getitem__(self, number: int) -> LocalizerEncoding:
        """Return the encoding of one image, with its padding."""
        return self._of([number])

    def repeated(self, times: int) -> LocalizerEncoding:
        """Return the encoding of the same images several times: first all of them, then all of them again."""
        return self._of(list(range(len(self))) * times)

    def _of(self, rows: list[int]) -> LocalizerEncoding:
        cells3, cells4 = (ValidCells(*(part[rows] for part in cells)) for cells in (self.cells3, self.cells4))
        maps = self.layer3[rows], self.layer4[rows]
        sizes = [self.image_sizes[row] for row in rows]
        return LocalizerEncoding(*maps, cells3, cells4, self.memory[rows], self.memory_position[rows], sizes)


@dataclass
class CORAEncoding:
    """An encoded image: nothing in it depends on class names, which condition the decoder's queries."""

    image: LocalizerEncoding
    """Of one image."""
    embed_anchors: Callable[[LocalizerEncoding], Tensor]
    propose: Callable[[CORAEncoding], Instances]
    encoded_regions: int = 0
    """Number of regions encoded so far."""

    @cached_property
    def anchor_embeddings(self) -> Tensor:
        """Region embeddings of the anchors [1, Q, D], which class names are matched with."""
        return self.embed_anchors(self.image)

    @cached_property
    def proposals(self) -> Instances:
        """Boxes for the classes of the config, with `objectness_logits`."""
        return self.propose(self)
