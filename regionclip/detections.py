"""Detections in an image: one structure shared by all tools."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from regionclip.errors import user_error

if TYPE_CHECKING:
    import supervision
    from detectron2.structures import Instances
    from PIL.Image import Image


@dataclass(frozen=True, eq=False)
class Detections:
    """N boxes with class names and scores, best first; user boxes keep their order."""

    boxes: NDArray[np.float32]
    """[N, 4], x1 y1 x2 y2 in pixels of the original image."""
    scores: NDArray[np.float32]
    """[N]."""
    class_ids: NDArray[np.int64]
    """[N], indices into `vocabulary`."""
    vocabulary: tuple[str, ...]
    """Class names of the vocabulary."""
    image_size: tuple[int, int]
    """(height, width) of the original image."""
    top_class_ids: NDArray[np.int64]
    """[N, k], the k most probable classes of each box; k is 0 unless requested."""
    top_scores: NDArray[np.float32]
    """[N, k], their probabilities."""
    embeddings: NDArray[np.float32] | None = None
    """[N, D], not normalized, if requested."""
    image: NDArray[np.uint8] | None = field(default=None, repr=False)
    """The image [H, W, 3] in RGB, for `draw`."""

    def __len__(self) -> int:
        """Return the number of boxes N."""
        return len(self.boxes)

    @property
    def names(self) -> list[str]:
        """The class name of each box."""
        return [self.vocabulary[i] for i in self.class_ids]

    def top_words(self, row: int) -> list[tuple[str, float]]:
        """Return the most probable class names of a box with their probabilities, as many as requested."""
        pairs = zip(self.top_class_ids[row], self.top_scores[row], strict=True)
        return [(self.vocabulary[i], float(score)) for i, score in pairs]

    def to_coco(self, image_id: int = 0, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """Return results in COCO's format, one dictionary per box.

        Args:
            image_id: id of the image.
            category_ids: ids of the vocabulary's classes; 1, 2, ... by default.
        """
        ids = range(1, len(self.vocabulary) + 1) if category_ids is None else category_ids
        corners = self.boxes.astype(float)
        boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1).tolist()
        return [
            {"image_id": _plain(image_id), "category_id": _plain(ids[class_id]), "bbox": box, "score": score}
            for box, score, class_id in zip(boxes, self.scores.tolist(), self.class_ids.tolist(), strict=True)
        ]

    def to_supervision(self) -> supervision.Detections:
        """Convert to the supervision library, with class names under `class_name`."""
        import supervision

        return supervision.Detections(
            xyxy=self.boxes,
            confidence=self.scores,
            class_id=self.class_ids,
            data={"class_name": np.array(self.names, dtype=object)},
        )

    def to_instances(self) -> Instances:
        """Convert to Detectron2's Instances: `pred_boxes`, `scores`, `pred_classes`."""
        import torch
        from detectron2.structures import Boxes, Instances

        return Instances(
            self.image_size,
            pred_boxes=Boxes(torch.from_numpy(self.boxes.copy())),
            scores=torch.from_numpy(self.scores.copy()),
            pred_classes=torch.from_numpy(self.class_ids.copy()),
        )

    def draw(self, image: NDArray[np.uint8] | Image | None = None) -> Image:
        """Return the image with drawn boxes and class names.

        Args:
            image: the original image, as for `RegionCLIP.set_image`; by default the one used for detection.

        Raises:
            UserError: an image of another size.
        """
        from regionclip.data.images import to_rgb_pixels
        from regionclip.drawing import draw_detections

        pixels = self.image if image is None else to_rgb_pixels(image)
        if pixels is None or pixels.shape[:2] != self.image_size:
            height, width = self.image_size
            actual = "none" if pixels is None else f"{pixels.shape[1]} x {pixels.shape[0]}"
            raise user_error("image to draw on", f"{width} x {height} pixels", actual, "give the original image")
        return draw_detections(pixels, self)


def _plain(number: Any) -> Any:
    """Return a NumPy number as Python's own type, for JSON; anything else unchanged."""
    return number.item() if isinstance(number, np.generic) else number
