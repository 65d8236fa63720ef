"""Test-time mapper and loader."""

from __future__ import annotations

import os
from typing import Any, cast

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.structures import Boxes, Instances
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from regionclip.data.datasets.annotation_file import report_left_out
from regionclip.data.datasets.cleaning import clean_test_records
from regionclip.data.datasets.declared_size import size_problem
from regionclip.data.datasets.lvis import drop_empty_images_as_upstream
from regionclip.data.datasets.registered import annotations_of, read_clean_records
from regionclip.data.image_listing import names_below_common_folder
from regionclip.data.images import UnreadableImageError, read_image
from regionclip.data.region_features.index import with_given_regions
from regionclip.data.user_boxes import check_boxes
from regionclip.errors import UserError, user_error
from regionclip.records import MappedImage, Record

TestLoader = DataLoader[Any] | list[list[MappedImage]]
"""Batches of mapped images; an empty list if nothing is left to do."""


_NOT_KEPT = ("annotations", "user_boxes", "stored_regions")
"""Parts of a record that become others."""

_MARGIN = 1e-6
"""Distance of an objectness from 0 and 1, whose logits are infinite."""

_BOX_AND_CLASS = ("bbox", "bbox_mode", "category_id")


class TestMapper:
    """Reads and resizes one image; keeps its annotations if ground-truth boxes are the proposals.

    The `user_boxes` (`ImageBoxes`) or `stored_regions` (`StoredRows`) of a record become `proposals`. An unreadable
    image, or one with invalid boxes, is returned with the key `error`, so that a run over many images can report it
    and continue.
    """

    __test__ = False  # not a pytest class, despite the name

    def __init__(self, shortest_side: int, longest_side: int, channels: str, *, keep_annotations: bool) -> None:
        """Create a mapper; sides in pixels, channels "RGB" or "BGR"."""
        self.shortest_side = shortest_side
        self.longest_side = longest_side
        self.channels = channels
        self.keep_annotations = keep_annotations

    def __call__(self, record: Record) -> MappedImage:
        """Return `record` with `image` uint8 [3, H, W], and `instances` and `proposals` in pixels of that image."""
        kept = {key: value for key, value in record.items() if key not in _NOT_KEPT}
        result = cast(MappedImage, kept)
        try:
            pixels = read_image(record["file_name"], self.channels)
        except UnreadableImageError as error:
            return {**result, "error": str(error)}
        if problem := _declared_otherwise(record, pixels):
            return {**result, "error": f"{record['file_name']}: {problem}"}
        result |= self._map(pixels)
        if self.keep_annotations and "annotations" in record:
            transform = self._resize_transform(*pixels.shape[:2])
            height, width = result["image"].shape[1:]
            result["instances"] = self._instances(record, transform, (height, width))
        if "stored_regions" in record:
            result["proposals"] = self._stored_proposals(record, result)
        if "user_boxes" in record:
            try:
                result["proposals"] = self._proposals(record, result)
            except UserError as error:
                return {**result, "error": str(error)}
        return result

    def map_pixels(self, pixels: NDArray[np.uint8]) -> MappedImage:
        """Return `image`, `height` and `width` of decoded pixels, uint8 [H, W, 3] in RGB."""
        return self._map(pixels if self.channels == "RGB" else pixels[:, :, ::-1])

    def _map(self, pixels: NDArray[np.uint8]) -> MappedImage:
        height, width = pixels.shape[:2]
        resized = self._resize_transform(height, width).apply_image(pixels)
        image = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))
        return {"image": image, "height": height, "width": width}

    def _resize_transform(self, height: int, width: int) -> T.Transform:
        if self.shortest_side == 0:  # Detectron2's value for no resizing
            return T.NoOpTransform()
        shape = T.ResizeShortestEdge.get_output_shape(height, width, self.shortest_side, self.longest_side)
        # A very thin image would be resized to zero pixels.
        return T.ResizeTransform(height, width, *(max(side, 1) for side in shape))

    @staticmethod
    def _stored_proposals(record: Record, result: MappedImage) -> Instances:
        """Return stored regions in pixels of the image, with the logit of their objectness if it is stored."""
        features, (height, width) = record["stored_regions"].read(), result["image"].shape[1:]
        boxes = Boxes(features["boxes"].float())
        boxes.scale(width / result["width"], height / result["height"])
        proposals = Instances((height, width), proposal_boxes=boxes)
        if "objectness" in features:
            proposals.objectness_logits = features["objectness"].clamp(_MARGIN, 1 - _MARGIN).logit()
        return proposals

    @staticmethod
    def _proposals(record: Record, result: MappedImage) -> Instances:
        size, (height, width) = (result["height"], result["width"]), result["image"].shape[1:]
        boxes = Boxes(check_boxes(record["user_boxes"], size, f"boxes of {record['file_name']}"))
        boxes.scale(width / size[1], height / size[0])
        return Instances((height, width), proposal_boxes=boxes)

    def _instances(self, record: Record, transform: T.Transform, size: tuple[int, int]) -> Any:
        annotations = [
            # Masks and keypoints are not needed. A copy, since the transform works in place.
            utils.transform_instance_annotations({key: annotation.get(key) for key in _BOX_AND_CLASS}, transform, size)
            for annotation in record["annotations"]
            if not annotation.get("iscrowd", 0)
        ]
        return utils.filter_empty_instances(utils.annotations_to_instances(annotations, size))


def _declared_otherwise(record: Record, pixels: NDArray[np.uint8]) -> str | None:
    """Return how the size of an image contradicts its annotations, if it does."""
    height, width = record.get("height"), record.get("width")
    if not record.get("annotations") or not height or not width:
        return None
    return size_problem((height, width), (pixels.shape[0], pixels.shape[1]))


def read_test_records(cfg: CfgNode, dataset_name: str) -> list[Record]:
    """Return Detectron2's records of a registered test dataset.

    Invalid annotations are dropped, counted and logged once. Boxes of PROPOSAL_FILE are added as `user_boxes`.

    Raises:
        UserError: the dataset or the file cannot be read, or the dataset has no boxes although they are the proposals.
    """
    records = read_clean_records(dataset_name)
    if cfg.MODEL.MASK_ON:
        report_left_out(annotations_of(dataset_name), clean_test_records(records, masks=True)[1])
    annotated = any(record.get("annotations") for record in records)
    if cfg.MODEL.CLIP.CROP_REGION_TYPE == "FILE":
        names = names_below_common_folder([record["file_name"] for record in records])
        records = with_given_regions(records, names, cfg.MODEL.CLIP.PROPOSAL_FILE)
    if cfg.MODEL.CLIP.CROP_REGION_TYPE == "GT" and not annotated:
        fix = "use MODEL.CLIP.CROP_REGION_TYPE RPN, or an annotated dataset"
        raise user_error("MODEL.CLIP.CROP_REGION_TYPE GT", "annotated boxes", f"none in {dataset_name}", fix)
    if cfg.DATASETS.LVIS_DROP_EMPTY_IMAGES and dataset_name.startswith("lvis") and annotated:
        return drop_empty_images_as_upstream(records)
    return records


def build_test_loader(cfg: CfgNode, records: list[Record]) -> TestLoader:
    """Return Detectron2's test loader, one image per batch, for records of `read_test_records`."""
    if not records:
        return []  # Detectron2's sampler does not accept an empty dataset
    mapper = TestMapper(
        cfg.INPUT.MIN_SIZE_TEST,
        cfg.INPUT.MAX_SIZE_TEST,
        cfg.INPUT.FORMAT,
        keep_annotations=cfg.MODEL.CLIP.CROP_REGION_TYPE == "GT",
    )
    workers = min(cfg.DATALOADER.NUM_WORKERS, os.cpu_count() or 1)
    return build_detection_test_loader(records, mapper=mapper, num_workers=workers)
