"""Types of the dictionaries that Detectron2, COCO and our files exchange."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

if TYPE_CHECKING:
    from detectron2.structures import Instances
    from torch import Tensor


class Annotation(TypedDict, total=False):
    """An object in a dataset record, as Detectron2 defines it."""

    bbox: Any
    """Four numbers in `bbox_mode`."""
    bbox_mode: Any
    """Detectron2's `BoxMode`."""
    category_id: int
    """Contiguous class index."""
    iscrowd: int
    keypoints: list[float]
    segmentation: Any
    """Polygons, or COCO's run lengths."""
    area: Any
    """In square pixels, as the file says."""
    frequency: Any
    """LVIS: of the class, `r`, `c` or `f`."""


class Record(TypedDict, total=False):
    """What a registered dataset says of one image, as Detectron2 defines it."""

    file_name: str
    image_id: Any
    height: Any
    width: Any
    """In pixels; None where neither file nor annotations say."""
    annotations: list[Annotation]
    user_boxes: Any
    """`ImageBoxes`, if boxes come from a file."""
    stored_regions: Any
    """`StoredRows`: regions of the image with a teacher's embeddings."""
    name: str
    """Unique name of the image in a run."""
    neg_category_ids: list[Any]
    """LVIS: classes that are verified to be absent."""
    not_exhaustive_category_ids: list[Any]
    """LVIS: classes of which not all objects are annotated."""
    pair: Any
    """An image-text `Pair`, instead of a file."""
    error: str
    """Why there is no pair, or why the image could not be read."""


class MappedImage(Record, total=False):
    """What a dataset mapper makes of a record."""

    image: Tensor
    """uint8 [3, H, W] in INPUT.FORMAT; without it there is an `error`."""
    instances: Instances
    """`gt_boxes` and `gt_classes`, in pixels of `image`."""
    proposals: Instances
    """`proposal_boxes` of user boxes, in pixels of `image`."""
    regions: Instances
    """`proposal_boxes` in pixels of `image`, and CLIP's `embeddings` of them, for distillation."""
    tokens: Tensor
    """int64 [77], of the caption."""
    subject: Tensor
    """int64 scalar, equal for captions about the same (NEGATIVE_CAPTIONS)."""
    negative_tokens: Tensor
    """int64 [K, 77], of captions of other pairs."""
    negative_subjects: Tensor
    """int64 [K]."""
    seed: int
    """Of everything random about the image."""
    unreadable: list[str]
    """Why images before this one could not be read, which it replaces in training."""


class Result(TypedDict):
    """One detection in COCO's result format."""

    image_id: Any
    category_id: Any
    bbox: list[float]
    """x, y, width, height in pixels of the original image."""
    score: float
    segmentation: NotRequired[Any]


class Prediction(TypedDict):
    """The detections of one image, with contiguous class indices as `category_id`."""

    image_id: Any
    instances: list[Result]


class ShardHeader(TypedDict):
    """Metadata of a shard of region features."""

    images: list[str]
    """Names of its N images."""
    counts: list[int]
    """[N], regions of each image."""
    failures: dict[str, str]
    """Why images could not be read, by name."""
