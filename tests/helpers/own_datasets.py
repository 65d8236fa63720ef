"""The same images and objects in the formats of other tools, written by hand."""

import json

import numpy as np
from PIL import Image

NAMES = ["carrot", "dog | puppy", "wood"]

LABELS = ("COCO", "LVIS", "YOLO", "Pascal VOC", "Label Studio")

SIZES = [(96, 64), (61, 83), (120, 47), (33, 50), (64, 64), (77, 91), (200, 101), (59, 40)]
"""(width, height) of the images."""


def objects_of(number):
    """Return (class, x, y, width, height) of the objects of an image, whole pixels within it."""
    rng = np.random.default_rng(number)
    width, height = SIZES[number]
    corners = [(int(rng.integers(0, width - 12)), int(rng.integers(0, height - 12))) for _ in range(1 + number % 3)]
    return [
        (int(rng.integers(0, 3)), x, y, int(rng.integers(10, width - x + 1)), int(rng.integers(10, height - y + 1)))
        for x, y in corners
    ]


def write_images(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for number, size in enumerate(SIZES):
        pixels = np.random.default_rng(number).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")


def write_dataset(folder, label):
    """Write the dataset in a format, and return the path for --data."""
    return {
        "COCO": write_coco,
        "LVIS": write_lvis,
        "YOLO": write_yolo,
        "Pascal VOC": write_voc,
        "Label Studio": write_label_studio,
    }[label](folder)


def coco_content():
    images = [{"id": i + 1, "file_name": f"{i}.png", "width": w, "height": h} for i, (w, h) in enumerate(SIZES)]
    objects = [(i, entry) for i in range(len(SIZES)) for entry in objects_of(i)]
    annotations = [
        {"id": n, "image_id": i + 1, "category_id": 10 * (c + 1), "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for n, (i, (c, *box)) in enumerate(objects, start=1)
    ]
    categories = [{"id": 10 * (i + 1), "name": name} for i, name in enumerate(NAMES)]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_coco(folder):
    write_images(folder / "images")
    (folder / "annotations.json").write_text(json.dumps(coco_content()))
    return folder / "annotations.json"


def write_lvis(folder):
    write_images(folder / "val2017")
    content = coco_content()
    for image in content["images"]:
        image["coco_url"] = f"http://images.cocodataset.org/val2017/{image.pop('file_name')}"
        # Every class is annotated everywhere, so that LVIS's rules are COCO's.
        image |= {"neg_category_ids": [10, 20, 30], "not_exhaustive_category_ids": []}
    for category in content["categories"]:
        category |= {"frequency": "f", "image_count": 200}
    (folder / "lvis.json").write_text(json.dumps(content))
    return folder / "lvis.json"


def write_yolo(folder):
    write_images(folder / "images" / "val")
    (folder / "labels" / "val").mkdir(parents=True)
    for number, (width, height) in enumerate(SIZES):
        lines = [
            f"{c} {(x + w / 2) / width} {(y + h / 2) / height} {w / width} {h / height}\n"
            for c, x, y, w, h in objects_of(number)
        ]
        (folder / "labels" / "val" / f"{number}.txt").write_text("".join(lines))
    (folder / "data.yaml").write_text(f"path: .\nval: images/val\nnames: {json.dumps(dict(enumerate(NAMES)))}\n")
    return folder / "data.yaml"


def write_voc(folder):
    write_images(folder / "JPEGImages")
    (folder / "Annotations").mkdir()
    for number in range(len(SIZES)):
        objects = "".join(
            f"<object><name>{NAMES[c]}</name><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin>"
            f"<xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>"
            for c, x, y, w, h in objects_of(number)
        )
        text = f"<annotation><filename>{number}.png</filename>{objects}</annotation>"
        (folder / "Annotations" / f"{number}.xml").write_text(text)
    return folder


def write_label_studio(folder):
    write_images(folder / "media")
    tasks = []
    for number, (width, height) in enumerate(SIZES):
        size = {"original_width": width, "original_height": height, "image_rotation": 0}
        regions = [
            {
                **{"type": "rectanglelabels", "from_name": "label", "to_name": "image", **size},
                "value": {
                    **{"x": 100 * x / width, "y": 100 * y / height, "rotation": 0, "rectanglelabels": [NAMES[c]]},
                    **{"width": 100 * w / width, "height": 100 * h / height},
                },
            }
            for c, x, y, w, h in objects_of(number)
        ]
        data = {"image": f"/data/local-files/?d=media/{number}.png"}
        tasks.append({"id": number + 1, "data": data, "annotations": [{"result": regions, "was_cancelled": False}]})
    (folder / "export.json").write_text(json.dumps(tasks))
    return folder / "export.json"
