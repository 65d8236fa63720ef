"""Random detections and annotations, and the comparison of two evaluations."""

import json

import numpy as np
import pycocotools.mask
import pytest

import regionclip.data.datasets.builtin  # noqa: F401 - registers the datasets

SIDE = 200


def write(path, content):
    path.write_text(json.dumps(content))
    return str(path)


def mask_of(box):
    """Return an ellipse in a box [x, y, w, h] as compressed RLE."""
    x, y, w, h = box
    columns, rows = np.meshgrid(np.arange(SIDE) + 0.5, np.arange(SIDE) + 0.5)
    inside = ((columns - x - w / 2) / (w / 2)) ** 2 + ((rows - y - h / 2) / (h / 2)) ** 2 <= 1
    rle = pycocotools.mask.encode(np.asfortranarray(inside, dtype=np.uint8))
    return {**rle, "counts": rle["counts"].decode()}


def uncompressed(rle):
    """Return a mask as the list of run lengths that COCO stores for crowds."""
    pixels = pycocotools.mask.decode(rle).flatten(order="F")
    ends = np.flatnonzero(np.diff(pixels)) + 1
    runs = np.diff([0, *ends, pixels.size]).tolist()
    return {"size": [SIDE, SIDE], "counts": [0, *runs] if pixels[0] else runs}


def polygon(box):
    x, y, w, h = box
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def random_box(rng, largest):
    w, h = (int(side) for side in rng.integers(5, largest, 2))
    return [int(rng.integers(0, SIDE - w)), int(rng.integers(0, SIDE - h)), w, h]


def result(image, category, box, score):
    return {"image_id": image, "category_id": category, "bbox": [float(v) for v in box], "score": float(score)}


def random_case(seed, *, lvis):
    """Return ground truth of 24 images and 7 classes with detections, many of them wrong or of equal score.

    The last class has no objects, every sixth image no objects, every fifth more than 300 detections.
    """
    rng = np.random.default_rng(seed)
    categories = [{"id": 3 * i + 2, "name": f"class{i}", "frequency": "rcf"[i % 3]} for i in range(7)]
    ids = [category["id"] for category in categories]
    images, annotations, results = [], [], []
    for image_id in range(11, 35):
        empty = image_id % 6 == 0
        absent = [int(i) for i in rng.choice(ids[:6], 2, replace=False)]
        image = {"id": image_id, "height": SIDE, "width": SIDE, "file_name": f"{image_id}.jpg"}
        if lvis:
            image["neg_category_ids"] = ids if empty else absent
            image["not_exhaustive_category_ids"] = [int(rng.choice([i for i in ids if i not in absent]))]
        images.append(image)
        for _ in range(0 if empty else rng.integers(1, 8)):
            box, category = random_box(rng, 150), int(rng.choice([i for i in ids[:6] if i not in absent]))
            crowd = not lvis and rng.random() < 0.15
            annotation = {"id": len(annotations) + 1, "image_id": image_id, "category_id": category, "bbox": box}
            annotation |= {"area": box[2] * box[3], "segmentation": polygon(box)}
            if not lvis:  # LVIS files have no such key
                annotation["iscrowd"] = int(crowd)
            if crowd:
                annotation["segmentation"] = uncompressed(mask_of(box))
            annotations.append(annotation)
            for _ in range(rng.integers(0, 4)):
                near = (np.array(box) + rng.integers(-6, 7, 4)).clip([0, 0, 2, 2]).tolist()
                wrong = rng.random() < 0.2
                score = round(rng.random(), 1)
                results.append(result(image_id, int(rng.choice(ids)) if wrong else category, near, score))
        for _ in range(320 if image_id % 5 == 0 else 4):
            score = round(rng.random(), 2)
            results.append(result(image_id, int(rng.choice(ids)), random_box(rng, 60), score))
    results = [{**results[i], "segmentation": mask_of(results[i]["bbox"])} for i in rng.permutation(len(results))]
    truth = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
    return truth, results


def assert_same_metrics(first, second):
    assert first.keys() == second.keys() == {"bbox", "segm"}
    for task in first:
        assert first[task].keys() == second[task].keys()
        for name, value in first[task].items():
            assert value == pytest.approx(second[task][name], rel=0, abs=1e-12, nan_ok=True), (task, name)
