#!/usr/bin/env python3
"""Show detections of the embedded detector in synthetic scenes, and of a detector of photos in photos."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from tabulate import tabulate
from torchvision.ops import box_convert, box_iou

from regionclip import Detections, RegionCLIP
from regionclip.data.datasets.custom_images import list_images
from regionclip.data.emoji_scenes.concepts import read_concepts
from regionclip.engine.command import DONE, log_to_console, run_command
from regionclip.files import REPOSITORY
from regionclip.hub.default import default_or_offer
from regionclip.hub.zoo import EMBEDDED, OFFERED

SCENES = REPOSITORY / "datasets" / "demo_scenes"
PHOTOS = REPOSITORY / "datasets" / "demo_images"
OUTPUT = REPOSITORY / "output" / "demo"
ABSENT_NAMES = ["camel", "guitar"]
"""Class names without objects, added to those of the objects."""

PHOTO_THRESHOLD = 0.05

RIGHT = "right"

SAME_OBJECT = 0.5
"""Minimum IoU of a detection with an object that it is assigned to."""


@dataclass(frozen=True)
class AnnotatedObject:
    """A ground-truth object of a scene."""

    name: str
    box: list[float]
    """x1 y1 x2 y2 in pixels."""


def read_objects(path: Path) -> dict[str, list[AnnotatedObject]]:
    """Return the ground-truth objects of each image of a COCO file, by image name."""
    content = json.loads(path.read_bytes())
    names = {category["id"]: category["name"] for category in content["categories"]}
    objects: dict[str, list[AnnotatedObject]] = {image["file_name"]: [] for image in content["images"]}
    files = {image["id"]: image["file_name"] for image in content["images"]}
    for annotation in content["annotations"]:
        box = box_convert(torch.tensor(annotation["bbox"]), "xywh", "xyxy").tolist()
        objects[files[annotation["image_id"]]].append(AnnotatedObject(names[annotation["category_id"]], box))
    return objects


def truth_of(box: Sequence[float], objects: Sequence[AnnotatedObject]) -> str:
    """Return the class name of the object at a box; empty if there is none."""
    if not objects:
        return ""
    overlaps = box_iou(torch.tensor([list(box)]), torch.tensor([item.box for item in objects]))[0]
    best = int(overlaps.argmax())
    return objects[best].name if overlaps[best] >= SAME_OBJECT else ""


def find(detector: RegionCLIP, scene_file: Path, threshold: float | None = None) -> Detections:
    """Detect in an image, by default with the detector's own threshold, and draw it into `OUTPUT`."""
    detector.set_image(scene_file)
    found = detector.predict(threshold=threshold)
    found.draw().save(OUTPUT / f"{scene_file.stem}.png")
    return found


def compare(scene_file: Path, found: Detections, objects: Sequence[AnnotatedObject]) -> list[list[str]]:
    """Return a row for each detection: box, class name, and ground truth."""
    novel = {concept.name for concept in read_concepts() if concept.split == "novel"}
    rows = []
    for box, name, score in zip(found.boxes.tolist(), found.names, found.scores, strict=True):
        truth = truth_of(box, objects)
        verdict = RIGHT if name == truth else f"it is: {truth}" if truth else "nothing is there"
        rows.append([scene_file.name, name, f"{score:.2f}", "novel" if name in novel else "", verdict])
    return rows


def show_word_list(detector: RegionCLIP, scene_file: Path, objects: Sequence[AnnotatedObject]) -> None:
    """Detect all classes of the default vocabulary in one scene."""
    rows = compare(scene_file, find(detector, scene_file), objects)
    headers = [f"{len(detector.vocabulary)} words", "found", "score", "split", "truth"]
    print(f"{tabulate(rows, headers=headers)}\n")


def show_typed_words(detector: RegionCLIP, scenes: dict[str, list[AnnotatedObject]]) -> None:
    """Detect the class names of all objects, and some absent ones, in all scenes."""
    words = sorted({item.name for objects in scenes.values() for item in objects}) + ABSENT_NAMES
    detector.set_vocabulary(words)
    rows, seconds = [], []
    for name, objects in scenes.items():
        began = time.perf_counter()
        found = find(detector, SCENES / name)
        seconds.append(time.perf_counter() - began)
        rows += compare(SCENES / name, found, objects)
    print(tabulate(rows, headers=[f"{len(words)} words typed", "found", "score", "split", "truth"]))
    right, there = sum(row[-1] == RIGHT for row in rows), sum(map(len, scenes.values()))
    print(
        f"{right} of {len(rows)} detections are right; {there} objects are there; "
        f"{median(seconds) * 1000:.0f} ms a scene\n"
    )


def show_photos() -> None:
    """Detect everyday classes in photos, if a detector of photos is on this machine or the user downloads one."""
    chosen = default_or_offer(agreed=False)
    if chosen.name == EMBEDDED:
        print(f"For photos, get a detector that knows them: regionclip download {OFFERED} (regionclip models).")
        return
    detector = RegionCLIP.from_pretrained(chosen.name, overrides=["INPUT.MIN_SIZE_TEST", "400"])
    detector.set_vocabulary("coco", background=None)
    rows = []
    for scene_file in list_images(PHOTOS):
        found = find(detector, scene_file, PHOTO_THRESHOLD)
        rows += [[scene_file.name, name, f"{score:.2f}"] for name, score in zip(found.names, found.scores, strict=True)]
    print(tabulate(rows, headers=["photo", "found", "score"]))


def main() -> int:
    """Run the demo and return the exit code."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    detector = RegionCLIP.from_pretrained("emoji")
    scenes = read_objects(SCENES / "annotations.json")
    first = next(iter(scenes))
    show_word_list(detector, SCENES / first, scenes[first])
    show_typed_words(detector, scenes)
    show_photos()
    print(f"drawn images: {OUTPUT}")
    return DONE


if __name__ == "__main__":
    log_to_console(weight_tables=False)
    run_command(main)
