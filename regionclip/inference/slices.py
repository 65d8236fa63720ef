"""Detection of small objects: in overlapping tiles of an image and in the whole image, merged (SAHI, Akyon 2022)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances
from torch import Tensor

from regionclip.errors import user_error
from regionclip.inference.encoded_image import EncodedImage
from regionclip.modeling.detector import Selection
from regionclip.ops import batched_nms

EDGE = 2.0
"""Pixels: a box this close to an edge inside the image is cut by its tile, and found whole in another."""

TILES_AT_ONCE = 8
"""Tiles encoded in one batch; they have the same size."""

MIN_SIDE = 32

Tile = tuple[int, int, int, int]
"""x1 y1 x2 y2 in pixels of the image."""


@dataclass(frozen=True)
class Slices:
    """Square tiles of an image."""

    side: int
    """In pixels."""
    overlap: float = 0.2
    """Fraction of the side that neighbors share."""

    def __post_init__(self) -> None:
        """Raise a `UserError` for tiles that are too small, or that overlap by more than half."""
        are_numbers = isinstance(self.side, int) and isinstance(self.overlap, int | float)
        if not are_numbers or self.side < MIN_SIDE or not 0 <= self.overlap <= 0.5:
            expected = f"a side from {MIN_SIDE} pixels, and an overlap from 0 to 0.5"
            raise user_error("slices", expected, f"{self.side}:{self.overlap}", "such as 640:0.2")

    @classmethod
    def parse(cls, text: str) -> Slices | None:
        """Return the slices of an option `SIDE:OVERLAP` or `SIDE`; None if it is empty."""
        if not text:
            return None
        side, _, overlap = text.partition(":")
        try:
            numbers = int(side), float(overlap) if overlap else cls.overlap
        except ValueError as error:
            raise user_error(f"slices {text}", "SIDE:OVERLAP", repr(text), "such as 640:0.2") from error
        return cls(*numbers)

    def tiles(self, size: tuple[int, int]) -> list[Tile]:
        """Return the tiles of an image of (height, width), row by row; one that covers it if it is not larger."""
        rows, columns = (self._starts(length) for length in size)
        height, width = size
        return [(x, y, min(x + self.side, width), min(y + self.side, height)) for y in rows for x in columns]

    def _starts(self, length: int) -> list[int]:
        if length <= self.side:
            return [0]
        step = self.side * (1 - self.overlap)
        count = int(np.ceil((length - self.side) / step)) + 1
        return [round(i * (length - self.side) / (count - 1)) for i in range(count)]


def detect_in_slices(image: EncodedImage, slices: Slices, detect: Callable[[EncodedImage], Instances]) -> Instances:
    """Return the detections in the whole image and in its tiles, before suppression between them.

    Args:
        image: whole image.
        slices: its tiles.
        detect: returns `pred_boxes` in pixels of the network input of an image, `scores`, `pred_classes`, `embeddings`.

    Returns:
        Instances with `pred_boxes` in pixels of the network input of the whole image.
    """
    found, tiles = [detect(image)], slices.tiles(image.size)
    if len(tiles) > 1:
        for start in range(0, len(tiles), TILES_AT_ONCE):
            part = tiles[start : start + TILES_AT_ONCE]
            prepared = [image.part(*tile) for tile in part]
            EncodedImage.encode_together(prepared)
            found += [_in_whole(detect(each), each, tile, image) for each, tile in zip(prepared, part, strict=True)]
    return Instances.cat(found)


def _in_whole(found: Instances, tile_image: EncodedImage, tile: Tile, image: EncodedImage) -> Instances:
    """Return the detections of a tile that its inner edges do not cut, in pixels of the whole network input."""
    boxes = found.pred_boxes.tensor
    own = boxes / tile_image.scale.to(boxes.device)
    own = own + own.new_tensor(tile[:2] * 2)
    moved = Instances(image.network_size, **found.get_fields())
    moved.pred_boxes = Boxes((own * image.scale.to(own.device)).to(boxes.dtype))
    return moved[~_is_cut(own, tile, image.size)]


def _is_cut(boxes: Tensor, tile: Sequence[int], size: tuple[int, int]) -> Tensor:
    height, width = size
    x1, y1, x2, y2 = tile
    inner = boxes.new_tensor([x1 > 0, y1 > 0, x2 < width, y2 < height]).bool()
    distances = (boxes - boxes.new_tensor([x1, y1, x2, y2])) * boxes.new_tensor([1, 1, -1, -1])
    return ((distances < EDGE) & inner).any(dim=1)


def merge(found: Instances, cfg: CfgNode, selection: Selection) -> Instances:
    """Return the best detections, best first, without those that a better one of any tile overlaps (hard NMS).

    Args:
        found: of all tiles.
        cfg: with the IoU threshold of the suppression, and the default number of detections.
        selection: how many, and whether to suppress within classes or across them.
    """
    limit = cfg.TEST.DETECTIONS_PER_IMAGE if selection.topk is None else selection.topk
    across = cfg.MODEL.ROI_HEADS.NMS_ACROSS_CLASSES if selection.per_class is None else not selection.per_class
    classes = torch.zeros_like(found.pred_classes) if across else found.pred_classes
    iou = cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST
    return found[batched_nms(found.pred_boxes.tensor, found.scores, classes, iou, None if limit < 0 else limit)]
