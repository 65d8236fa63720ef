"""Training-time records, mapper and loader."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, cast

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, DatasetMapper
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.data.build import load_proposals_into_dataset
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset

from regionclip.config.resolve import learns_from_pairs
from regionclip.config.training_checks import class_problems, mixed_class_problems
from regionclip.data.caption_loader import build_caption_mapper, read_pairs, shuffled_groups
from regionclip.data.datasets.annotation_file import report_left_out
from regionclip.data.datasets.cleaning import clean_records
from regionclip.data.datasets.declared_size import size_problem
from regionclip.data.datasets.masks import as_run_lengths
from regionclip.data.datasets.registered import annotations_of, read_records
from regionclip.data.images import UnreadableImageError, read_image
from regionclip.data.region_features.index import StoredRows
from regionclip.data.sampling import Draw, TrainingBatches, endless_order
from regionclip.data.stacking import StackedBatch
from regionclip.data.workers import arriving, wait_limit
from regionclip.errors import UserError, user_error
from regionclip.method import methods_of
from regionclip.randomness import derived_seed, seeded_on_cpu
from regionclip.records import MappedImage, Record

logger = logging.getLogger(__name__)

Batch = list[MappedImage]

MAX_UNREADABLE = 100
"""Number of consecutive unreadable images after which training stops."""


class TrainingMapper(DatasetMapper):
    """Detectron2's mapper with this package's image reader and optional large-scale jitter."""

    recompute_boxes: bool

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        arguments = super().from_config(cfg, is_train)
        if cfg.INPUT.SCALE_JITTER:
            side = cfg.INPUT.SCALE_JITTER_SIZE
            resize = T.ResizeScale(*cfg.INPUT.SCALE_JITTER, side, side)
            crop = T.FixedSizeCrop((side, side), pad=False)
            flips = [step for step in arguments["augmentations"] if isinstance(step, T.RandomFlip)]
            arguments["augmentations"] = [resize, crop, *flips]
            arguments["recompute_boxes"] = cfg.MODEL.MASK_ON
        if cfg.INPUT.CROP_FIRST:
            arguments["augmentations"].insert(0, T.RandomApply(_crop_first(), cfg.INPUT.CROP_FIRST))
            arguments["recompute_boxes"] = cfg.MODEL.MASK_ON
        if arguments["recompute_boxes"]:
            arguments["instance_mask_format"] = "bitmask"  # cropping polygons would need another library
        return arguments

    def __call__(self, record: Record) -> MappedImage:
        """Return `record` with `image` uint8 [3, H, W] and `instances` in pixels of that image.

        Raises:
            UnreadableImageError: the file cannot be decoded, or its size differs from its record.
        """
        pixels = read_image(record["file_name"], self.image_format)
        height, width = pixels.shape[:2]
        if problem := size_problem((record["height"], record["width"]), (height, width)):
            raise UnreadableImageError(f"{record['file_name']}: {problem}")
        augmented = T.AugInput(pixels)
        transforms = self.augmentations(augmented)
        left_out = ("annotations", "stored_regions")
        result = cast(MappedImage, {key: value for key, value in record.items() if key not in left_out})
        result["image"] = torch.from_numpy(np.ascontiguousarray(augmented.image.transpose(2, 0, 1)))
        if self.proposal_topk is not None:
            utils.transform_proposals(result, augmented.image.shape[:2], transforms, proposal_topk=self.proposal_topk)
        if "stored_regions" in record:
            result["regions"] = _regions(record["stored_regions"], transforms, result["image"].shape[1:])
        for annotation in record["annotations"]:
            if self.recompute_boxes or isinstance(annotation.get("segmentation"), dict):
                annotation["segmentation"] = as_run_lengths(annotation["segmentation"], height, width)
        result["annotations"] = record["annotations"]
        self._transform(result, transforms, augmented.image.shape[:2])
        return result

    def _transform(self, result: MappedImage, transforms: T.Transform, size: tuple[int, ...]) -> None:
        """Make the instances of an image; Detectron2 recomputes boxes from masks, of which an empty image has none."""
        recomputes = self.recompute_boxes
        has_objects = any(not annotation.get("iscrowd") for annotation in result["annotations"])
        self.recompute_boxes = recomputes and has_objects
        try:
            self._transform_annotations(result, transforms, size)
        finally:
            self.recompute_boxes = recomputes


def _regions(rows: StoredRows, transforms: T.Transform, size: Sequence[int]) -> Instances:
    """Return the stored regions of an image, transformed as it is: those that are left, with their `embeddings`."""
    features = rows.read()
    boxes = Boxes(torch.from_numpy(transforms.apply_box(features["boxes"].numpy())).float())
    height, width = size
    boxes.clip((height, width))
    kept = boxes.nonempty()
    return Instances((height, width), proposal_boxes=boxes[kept], embeddings=features["feats"][kept])


def _crop_first() -> T.AugmentationList:
    """Return the crop of DETR: of an image with a shorter side of 400, 500 or 600, 384 to 600 pixels high and wide."""
    return T.AugmentationList(
        [T.ResizeShortestEdge([400, 500, 600], sample_style="choice"), T.RandomCrop("absolute_range", (384, 600))]
    )


class Records(Protocol):
    """Records of a dataset by index."""

    def __len__(self) -> int:
        """Return the number of records."""
        ...

    def __getitem__(self, number: int) -> Record:
        """Return one record, which the caller may modify."""
        ...


@dataclass(frozen=True)
class TrainingData:
    """Training data: records, their mapper, and their order."""

    records: Records
    mapper: Callable[[Record], MappedImage]
    order: Callable[[int], Iterable[int]]
    """Returns the endless order of record indices for a seed."""
    landscape: Sequence[bool] | None = None
    """For each record whether the image is landscape (wider than high); None mixes both in a batch."""


def read_training_data(cfg: CfgNode) -> TrainingData:
    """Return the training data of a config.

    Raises:
        UserError: it cannot be read, or no valid image is left.
    """
    if learns_from_pairs(cfg):
        pairs = read_pairs(cfg)
        logger.info("%d image-text pairs in %d files", len(pairs), len(pairs.group_sizes))
        return TrainingData(pairs, build_caption_mapper(cfg, pairs), partial(shuffled_groups, pairs.group_sizes))
    records = read_training_records(cfg)
    landscape = None
    if cfg.DATALOADER.ASPECT_RATIO_GROUPING:
        landscape = [record["width"] > record["height"] for record in records]
    return TrainingData(DatasetFromList(records), TrainingMapper(cfg), partial(endless_order, cfg, records), landscape)


class TrainingImages(Dataset[MappedImage]):
    """Mapped images by sample index: the same `Draw` gives the same pixels in any process, at any time."""

    def __init__(self, data: TrainingData, seed: int) -> None:
        """Create a dataset that depends only on data and seed."""
        self.records, self.mapper, self.seed = data.records, data.mapper, seed

    def __getitem__(self, draw: Draw) -> MappedImage:
        """Return the mapped image, with the `seed` of its sample.

        Unreadable images are replaced by the next in the dataset; `unreadable` has one line for each.
        After too many of them the result has nothing else.
        """
        seed = derived_seed(self.seed, draw.position)
        unreadable: list[str] = []
        while len(unreadable) < min(MAX_UNREADABLE, len(self.records)):
            record = self.records[(draw.image + len(unreadable)) % len(self.records)]
            try:
                with seeded_on_cpu(seed):
                    mapped = self.mapper(record)
            except UnreadableImageError as error:
                unreadable.append(str(error))
            else:
                mapped |= {"seed": seed, "unreadable": unreadable}
                return mapped
        return {"unreadable": unreadable}


def read_training_records(cfg: CfgNode) -> list[Record]:
    """Return the valid records of DATASETS.TRAIN; what is dropped is logged once.

    Raises:
        UserError: a dataset cannot be read, or no valid image is left.
    """
    mask_format = None
    if cfg.MODEL.MASK_ON:
        cropped = cfg.INPUT.SCALE_JITTER or cfg.INPUT.CROP.ENABLED
        mask_format = "bitmask" if cropped else cfg.INPUT.MASK_FORMAT
    records = []
    for number, name in enumerate(cfg.DATASETS.TRAIN):
        dataset = read_records(name)
        if cfg.MODEL.LOAD_PROPOSALS:
            dataset = load_proposals_into_dataset(dataset, cfg.DATASETS.PROPOSAL_FILES_TRAIN[number])
        # The classes of a user's dataset are known to Detectron2 only now.
        problems = [*class_problems(cfg, name), *mixed_class_problems(cfg)]
        if problems:
            raise UserError(problems)
        keep_empty = not cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
        num_classes = None if cfg.MODEL.META_ARCHITECTURE == "ProposalNetwork" else cfg.MODEL.ROI_HEADS.NUM_CLASSES
        usable, counts = clean_records(dataset, num_classes, mask_format=mask_format, keep_empty=keep_empty)
        report_left_out(annotations_of(name), counts)
        if not usable:
            fix = "check its annotation file (datasets/README.md)"
            raise user_error(f"DATASETS.TRAIN {name}", "images with boxes", f"none of {len(dataset)}", fix)
        logger.info("%s: %d of %d images to learn from", name, len(usable), len(dataset))
        records += usable
    for method in methods_of(cfg):
        records = method.extend_records(cfg, records)
    return records


def training_batches(cfg: CfgNode, data: TrainingData, seed: int, first_batch: int = 0) -> Iterator[Batch]:
    """Return the batches of this process endlessly, starting with that of an iteration.

    Args:
        cfg: SOLVER.IMS_PER_BATCH images per batch over all processes, a multiple of their number.
        data: from `read_training_data`.
        seed: determines order and augmentation, for any number of processes and workers.
        first_batch: iteration to start with.
    """
    batches = TrainingBatches(
        data.order(seed),
        cfg.SOLVER.IMS_PER_BATCH,
        landscape=data.landscape,
        rank=comm.get_rank(),
        world_size=comm.get_world_size(),
        first_batch=first_batch,
    )
    images = TrainingImages(data, seed)
    workers = min(cfg.DATALOADER.NUM_WORKERS, os.cpu_count() or 1)
    # A separate generator keeps the loader from consuming the model's random numbers.
    loader = DataLoader(
        images,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=StackedBatch.of,
        worker_init_fn=_leave_signals_to_main_process,
        generator=torch.Generator(),
        timeout=wait_limit(workers),
    )
    return _checked(arriving(loader))


def _checked(batches: Iterable[StackedBatch]) -> Iterator[Batch]:
    for stacked in batches:
        batch = stacked.records()
        for image in batch:
            if "image" not in image:
                fix = "see datasets/README.md for the place of the images"
                raise user_error("training images", "files that can be read", image["unreadable"][0], fix)
        yield batch


def _leave_signals_to_main_process(worker: int) -> None:
    # A cluster sends SIGTERM to all processes; the training process ends the workers.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def unreadable_images(batch: Batch) -> list[str]:
    """Return one line for each image that was replaced in a batch."""
    return [line for image in batch for line in image["unreadable"]]
