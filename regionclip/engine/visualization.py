"""Drawing of a result file on its images."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils.visualizer import Visualizer
from PIL import Image
from pycocotools import mask as mask_tools

from regionclip.config.checks import dataset_problems
from regionclip.data.datasets.annotation_file import id_key, id_order
from regionclip.data.datasets.masks import as_run_lengths, valid_mask
from regionclip.data.datasets.registered import read_records
from regionclip.data.image_listing import names_below_common_folder
from regionclip.data.images import UnreadableImageError, read_image
from regionclip.engine.evaluation.results_file import read_results
from regionclip.errors import UserError, user_error
from regionclip.files import atomic_write, read_json_file
from regionclip.progress import progress_bar
from regionclip.records import Record, Result

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class VisualizationOptions:
    """Which detections to draw."""

    score_threshold: float = 0.5
    """Minimum score, exclusive."""
    unique_boxes: bool = False
    """Draw each box once, and apply the two limits below."""
    max_boxes: int = 30
    """Maximum number of detections per image, in file order."""
    min_area: float = 0.0
    """Minimum box area, in square pixels."""


def visualize_results(input_file: str, output_dir: str, dataset_name: str, options: VisualizationOptions) -> list[str]:
    """Draw the detections of a result file on every image of a dataset.

    Args:
        input_file: JSON list in COCO's results format.
        output_dir: gets an image for each, under its name; `<stem>_ours.jpg` if the input path
            contains `ourclip`, as upstream does.
        dataset_name: registered dataset that the results belong to.
        options: which detections to draw.

    Returns:
        One line for each unreadable image.

    Raises:
        UserError: unreadable results, or a dataset without category names.
    """
    problems = list(dataset_problems(dataset_name, "--dataset"))
    if problems:
        raise UserError(problems)
    by_image = read_results(input_file, "--input")
    records = read_records(dataset_name)
    categories = _category_positions(dataset_name)
    _require_known_categories(by_image, categories, input_file, dataset_name)
    _require_known_images(by_image, records, input_file, dataset_name)
    if Path(output_dir).exists() and not Path(output_dir).is_dir():
        raise user_error(f"--output {output_dir}", "a folder", "a file", "choose another name")
    failures = []
    targets = _targets(records, ending="_ours.jpg" if "ourclip" in input_file else "")
    _require_apart(records, targets, output_dir)
    for record, target in progress_bar(list(zip(records, targets, strict=True)), unit="image"):
        try:
            image = read_image(record["file_name"])
        except UnreadableImageError as error:
            failures.append(str(error))
            continue
        shown = select_results(by_image.get(str(id_key(record["image_id"])), ()), options)
        visualizer = Visualizer(image, MetadataCatalog.get(dataset_name))
        drawn = visualizer.draw_instance_predictions(_to_instances(shown, image.shape[:2], categories))
        _save(Path(output_dir) / target, drawn.get_image())
    logger.info("Done: %d images, %d failed; in %s", len(records) - len(failures), len(failures), output_dir)
    return failures


def _require_apart(records: Sequence[Record], targets: Sequence[str], output_dir: str) -> None:
    """Raise a `UserError` if a drawn image would replace an image of the dataset."""
    written = {os.path.realpath(Path(output_dir) / target) for target in targets}
    replaced = written & {os.path.realpath(record["file_name"]) for record in records}
    if replaced:
        expected, actual = "another folder than that of the images", f"{min(replaced)}, which would be replaced"
        raise user_error(f"--output {output_dir}", expected, actual, "name another folder")


def _targets(records: Sequence[Record], ending: str) -> list[str]:
    """Return the output file of each image: its name, with its folders if names collide."""
    paths = [Path(record["file_name"]) for record in records]
    names = [f"{path.stem}{ending}" if ending else path.name for path in paths]
    shared = {name for name, count in Counter(names).items() if count > 1}
    places = names_below_common_folder(paths)
    return [
        (Path(place).parent / name).as_posix() if name in shared else name
        for place, name in zip(places, names, strict=True)
    ]


def select_results(results: Sequence[Result], options: VisualizationOptions) -> list[Result]:
    """Return the detections of one image to draw, in file order."""
    if options.unique_boxes:
        results = _unique(results[: options.max_boxes], options.min_area)
    return [result for result in results if result["score"] > options.score_threshold]


def _unique(results: Sequence[Result], min_area: float) -> list[Result]:
    # The first detection of a box represents it even if its score is too low to be drawn.
    large = [result for result in results if result["bbox"][2] * result["bbox"][3] >= min_area]
    return list({tuple(result["bbox"]): result for result in reversed(large)}.values())[::-1]


def _require_known_categories(
    by_image: Mapping[str, Sequence[Result]], categories: Mapping[str, int], input_file: str, dataset_name: str
) -> None:
    # Own class names on own images are numbered like LVIS's: the metrics.json next to the results tells them apart.
    counted = (read_json_file(Path(input_file).with_name("metrics.json")) or {}).get("classes")
    unknown = {r["category_id"] for results in by_image.values() for r in results} - categories.keys()
    if unknown or counted not in (None, len(categories)):
        actual = (
            f"category {min(unknown, key=id_order)}" if unknown else f"results of a detector with {counted} classes"
        )
        fix = "name the dataset that the results were made on"
        raise user_error(f"--dataset {dataset_name}", f"results with its {len(categories)} categories", actual, fix)


def _require_known_images(
    by_image: Mapping[str, Sequence[Result]], records: Sequence[Record], input_file: str, dataset_name: str
) -> None:
    unknown = by_image.keys() - {id_key(record["image_id"]) for record in records}
    if unknown and len(unknown) == len(by_image):
        actual = f"none of the {len(unknown)} images, such as {min(unknown, key=id_order)}"
        fix = "name the dataset that the results were made on"
        raise user_error(f"--dataset {dataset_name}", f"images that {input_file} has results of", actual, fix)
    if unknown:
        left_out = sum(len(by_image[key]) for key in unknown)
        logger.warning("%s: %d results of %d unknown images, left out", input_file, left_out, len(unknown))


def _category_positions(dataset_name: str) -> dict[str, int]:
    """Return the contiguous class index by `id_key` of the category id."""
    metadata = MetadataCatalog.get(dataset_name)
    if hasattr(metadata, "thing_dataset_id_to_contiguous_id"):
        return {str(id_key(i)): number for i, number in metadata.thing_dataset_id_to_contiguous_id.items()}
    if "lvis" in dataset_name:
        return {str(i + 1): i for i in range(len(metadata.thing_classes))}
    fix = "choose a COCO or LVIS dataset"
    raise user_error(f"--dataset {dataset_name}", "a dataset with category names", "none", fix)


def _to_instances(results: Sequence[Result], size: tuple[int, int], categories: Mapping[str, int]) -> Instances:
    boxes = np.array([result["bbox"] for result in results], dtype=np.float32).reshape(-1, 4)
    instances = Instances(size)
    instances.pred_boxes = Boxes(BoxMode.convert(boxes, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS))
    instances.scores = np.array([result["score"] for result in results])
    instances.pred_classes = np.array([categories[result["category_id"]] for result in results], dtype=int)
    masks = [valid_mask(result.get("segmentation"), size) for result in results]
    if any(masks):
        empty = mask_tools.encode(np.zeros(size, np.uint8, order="F"))
        instances.pred_masks = [as_run_lengths(mask, *size) if mask else empty for mask in masks]
    return instances


def _save(path: Path, pixels: np.ndarray) -> None:
    image = Image.fromarray(pixels)
    # Formats that Pillow cannot write, or not in color, become JPEG under the same name.
    kind = Image.registered_extensions().get(path.suffix.lower(), "JPEG")
    with atomic_write(path) as file:
        image.save(file, format=kind if kind in Image.SAVE else "JPEG")
