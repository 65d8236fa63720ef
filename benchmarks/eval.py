#!/usr/bin/env python3
"""Measure time and memory of an LVIS evaluation, from detections to metrics, against LVIS's implementation.

    python benchmarks/eval.py [--images 5000] [--detections 300] [--backends faster official] [--json]

Ground truth and detections are synthetic: 1203 classes with long-tailed frequencies, a dozen annotated objects
per image with masks, most of them detected, plus wrong detections. Each backend has a separate process,
which collects the detections image by image, as an evaluation does, then writes the files and computes the metrics.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from numpy.typing import NDArray
from tabulate import tabulate

from regionclip.evaluation.lvis import BACKENDS, LVISDetectionEvaluator
from regionclip.files import write_json

CLASSES, OBJECTS, SIDE = 1203, 12, 640
Objects = tuple[NDArray[np.int64], NDArray[np.float64]]
"""Category ids [12] and boxes [12, 4], xywh, of an image."""


def make_truth(images: int) -> dict[str, Any]:
    """Return LVIS annotations of `images` images."""
    numbers = np.random.default_rng(0)
    shares = 1 / np.arange(1, CLASSES + 1)
    ids = numbers.choice(CLASSES, (images, OBJECTS), p=shares / shares.sum()) + 1
    corners, sizes = numbers.uniform(0, SIDE / 2, (images, OBJECTS, 2)), numbers.uniform(8, 300, (images, OBJECTS, 2))
    annotations = [
        {
            "id": image * OBJECTS + place + 1,
            "image_id": image + 1,
            "category_id": int(ids[image, place]),
            "bbox": [*corners[image, place].tolist(), *sizes[image, place].tolist()],
            "area": float(sizes[image, place].prod()),
            "segmentation": [numbers.uniform(0, SIDE, 60).tolist()],
        }
        for image in range(images)
        for place in range(OBJECTS)
    ]
    seen = np.bincount(ids.flatten(), minlength=CLASSES + 1)
    return {
        "images": [
            {
                "id": image + 1,
                "height": SIDE,
                "width": SIDE,
                "neg_category_ids": sorted(
                    {*(numbers.integers(CLASSES, size=8) + 1).tolist()} - {*ids[image].tolist()}
                ),
                "not_exhaustive_category_ids": [],
            }
            for image in range(images)
        ],
        "annotations": annotations,
        "categories": [
            {"id": i, "name": f"object {i}", "frequency": "rcf"[int(seen[i] > 10) + int(seen[i] > 100)]}
            for i in range(1, CLASSES + 1)
        ],
    }


def detections_of(objects: Objects, seed: int, count: int) -> Instances:
    """Return the objects of an image, slightly moved, and wrong detections up to `count` in total."""
    numbers = np.random.default_rng(seed)
    boxes = np.concatenate([numbers.uniform(0, SIDE / 2, (count, 2)), numbers.uniform(8, 300, (count, 2))], axis=1)
    classes = numbers.integers(CLASSES, size=count)
    true_classes, true_boxes = objects
    found = min(count, len(true_boxes))
    boxes[:found] = true_boxes[:found] + numbers.normal(0, 4, (found, 4))
    classes[:found] = true_classes[:found] - 1
    boxes[:, 2:] += boxes[:, :2]
    return Instances(
        (SIDE, SIDE),
        pred_boxes=Boxes(torch.from_numpy(boxes).float()),
        scores=torch.from_numpy(numbers.random(count)).float(),
        pred_classes=torch.from_numpy(classes),
    )


def measure(folder: str, backend: str, images: int, count: int) -> dict[str, float]:
    """Return seconds after inference, the process's peak memory in bytes, and AP; Linux only."""
    truth_file = Path(folder) / "truth.json"
    with np.load(Path(folder) / "objects.npz") as objects:
        ids, boxes = objects["ids"], objects["boxes"]
    evaluator = LVISDetectionEvaluator(
        str(truth_file), Path(folder) / backend, category_ids=range(1, CLASSES + 1), backend=backend
    )
    for number in range(1, images + 1):
        found = detections_of((ids[number - 1], boxes[number - 1]), number, count)
        evaluator.process([{"image_id": number}], [{"instances": found}])
    start = time.perf_counter()
    metrics = evaluator.evaluate()
    seconds = time.perf_counter() - start
    status = Path("/proc/self/status").read_text()
    peak = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    return {"seconds": seconds, "memory": int(peak) * 1024, "AP": metrics["bbox"]["AP"]}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--detections", type=int, default=300)
    parser.add_argument("--backends", nargs="+", default=list(BACKENDS), choices=list(BACKENDS))
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    metrics = {}
    with tempfile.TemporaryDirectory() as folder:
        truth = make_truth(arguments.images)
        write_json(Path(folder) / "truth.json", truth)
        ids = np.array([annotation["category_id"] for annotation in truth["annotations"]]).reshape(-1, OBJECTS)
        boxes = np.array([annotation["bbox"] for annotation in truth["annotations"]]).reshape(-1, OBJECTS, 4)
        np.savez(Path(folder) / "objects.npz", ids=ids, boxes=boxes)
        for backend in arguments.backends:
            # A separate process, so that memory of an earlier backend is not counted.
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                task = (folder, backend, arguments.images, arguments.detections)
                metrics[backend] = pool.apply(measure, task)
    print(f"{arguments.images} images, {arguments.detections} detections each, {CLASSES} classes")
    rows = [
        [backend, f"{of['seconds']:.1f}", f"{of['memory'] / 1e9:.2f}", f"{of['AP']:.4f}"]
        for backend, of in metrics.items()
    ]
    print(tabulate(rows, headers=["backend", "s after inference", "GB at most", "AP"]))
    if len(metrics) > 1:
        print(f"faster than LVIS's own: {metrics['official']['seconds'] / metrics['faster']['seconds']:.1f} times")
    if arguments.json:
        print(json.dumps(metrics))


if __name__ == "__main__":
    main()
