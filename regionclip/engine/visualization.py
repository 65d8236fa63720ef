"""Drawing a results file on the pictures it belongs to."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils.visualizer import Visualizer
from PIL import Image
from tqdm import tqdm

from regionclip.config.checks import dataset_problems
from regionclip.data import UnreadableImageError, read_image
from regionclip.errors import UserError, user_error
from regionclip.files import atomic_write

logger = logging.getLogger(__name__)

Result = dict[str, Any]
"""One detection in COCO's results format."""


@dataclass(frozen=True)
class VisualizationOptions:
    """Which detections to draw."""

    score_threshold: float = 0.5
    """Draw detections whose score exceeds this."""
    unique_boxes: bool = False
    """Draw each box once, and apply the two limits below."""
    max_boxes: int = 30
    """Look at so many detections of an image, in the order of the file."""
    min_area: float = 0.0
    """Skip boxes of less area, in square pixels."""


def visualize_results(input_file: str, output_dir: str, dataset_name: str, options: VisualizationOptions) -> list[str]:
    """Draw the detections of a results file on every picture of a dataset.

    Args:
        input_file: JSON list in COCO's results format.
        output_dir: gets a picture for each, under its name; `<stem>_ours.jpg` when the input path
            contains `ourclip`, as upstream does.
        dataset_name: registered dataset that the results belong to.
        options: which detections to draw.

    Returns:
        A line for each picture that could not be read.

    Raises:
        UserError: unreadable results, or a dataset without category names.
    """
    problems = list(dataset_problems(dataset_name, "--dataset"))
    if problems:
        raise UserError(problems)
    by_image = _read_results(input_file)
    records = DatasetCatalog.get(dataset_name)
    categories = _category_positions(dataset_name)
    _require_known_categories(by_image, categories, input_file, dataset_name)
    if Path(output_dir).exists() and not Path(output_dir).is_dir():
        raise user_error(f"--output {output_dir}", "a folder", "a file", "choose another name")
    metadata = MetadataCatalog.get(dataset_name)
    failures = []
    for record in tqdm(records, desc="pictures", unit="picture"):
        try:
            picture = read_image(record["file_name"])
        except UnreadableImageError as error:
            failures.append(str(error))
            continue
        shown = select_results(by_image.get(record["image_id"], ()), options)
        instances = _to_instances(shown, picture.shape[:2], categories)
        drawn = Visualizer(picture, metadata).draw_instance_predictions(instances).get_image()
        name = Path(record["file_name"])
        target = f"{name.stem}_ours.jpg" if "ourclip" in input_file else name.name
        _save(Path(output_dir) / target, drawn)
    logger.info("Done: %d pictures, %d failed; in %s", len(records) - len(failures), len(failures), output_dir)
    return failures


def select_results(results: Sequence[Result], options: VisualizationOptions) -> list[Result]:
    """Return the detections of one image to draw, in the order of the file."""
    if options.unique_boxes:
        results = _unique(results[: options.max_boxes], options.min_area)
    return [result for result in results if result["score"] > options.score_threshold]


def _unique(results: Sequence[Result], min_area: float) -> list[Result]:
    # The first detection of a box stands for it even if its score is too low to be drawn.
    large = [result for result in results if result["bbox"][2] * result["bbox"][3] >= min_area]
    return list({tuple(result["bbox"]): result for result in reversed(large)}.values())[::-1]


def _read_results(input_file: str) -> dict[int, list[Result]]:
    path = Path(input_file)
    if not path.is_file():
        raise user_error(
            f"--input {input_file}", "a results file", "no such file", "run tools/train_net.py --eval-only"
        )
    by_image: dict[int, list[Result]] = defaultdict(list)
    try:
        for result in json.loads(path.read_text()):
            box, score = [float(value) for value in result["bbox"]], float(result["score"])
            x, y, width, height = box
            by_image[result["image_id"]].append({**result, "bbox": [x, y, width, height], "score": score})
    except (ValueError, KeyError, TypeError, IndexError) as error:
        actual = f"{type(error).__name__}: {error}"
        raise user_error(
            f"--input {input_file}", "a list in COCO's results format", actual, "use *_instances_results.json"
        ) from error
    return by_image


def _require_known_categories(
    by_image: dict[int, list[Result]], categories: dict[int, int], input_file: str, dataset_name: str
) -> None:
    # Own words over own pictures are numbered like LVIS's: the summary beside the results tells.
    summary = Path(input_file).with_name("metrics.json")
    counted = json.loads(summary.read_text()).get("classes") if summary.is_file() else None
    unknown = {r["category_id"] for results in by_image.values() for r in results} - categories.keys()
    if unknown or counted not in (None, len(categories)):
        actual = f"category {min(unknown)}" if unknown else f"results of a detector with {counted} classes"
        fix = "name the dataset that the results were made on"
        raise user_error(f"--dataset {dataset_name}", f"results with its {len(categories)} categories", actual, fix)


def _category_positions(dataset_name: str) -> dict[int, int]:
    """Return the contiguous class number by category id."""
    metadata = MetadataCatalog.get(dataset_name)
    if hasattr(metadata, "thing_dataset_id_to_contiguous_id"):
        return dict(metadata.thing_dataset_id_to_contiguous_id)
    if "lvis" in dataset_name:
        return {i + 1: i for i in range(len(metadata.thing_classes))}
    fix = "choose a COCO or LVIS dataset"
    raise user_error(f"--dataset {dataset_name}", "a dataset with category names", "none", fix)


def _to_instances(results: Sequence[Result], size: tuple[int, int], categories: dict[int, int]) -> Instances:
    boxes = np.array([result["bbox"] for result in results], dtype=np.float32).reshape(-1, 4)
    instances = Instances(size)
    instances.pred_boxes = Boxes(BoxMode.convert(boxes, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS))
    instances.scores = np.array([result["score"] for result in results])
    instances.pred_classes = np.array([categories[result["category_id"]] for result in results], dtype=int)
    if results and all("segmentation" in result for result in results):
        instances.pred_masks = [result["segmentation"] for result in results]
    return instances


def _save(path: Path, pixels: np.ndarray) -> None:
    picture = Image.fromarray(pixels)
    # Formats that cannot be written back, or not in colour, become JPEG under the same name.
    kind = Image.registered_extensions().get(path.suffix.lower(), "JPEG")
    with atomic_write(path) as file:
        picture.save(file, format=kind if kind in Image.SAVE else "JPEG")
