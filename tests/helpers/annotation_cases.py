"""Annotation files as they come from the field: a small base, changed in one way a case, and what has to come of it."""

import copy
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 96, 64
BOXES = [(1, [10, 8, 20, 24]), (1, [50, 20, 30, 30]), (2, [5, 30, 40, 20])]
"""Image id and box xywh."""


ONE_OF_THREE_FOUND = 100 * 34 / 101
"""AP of a perfect detection of one of three objects: 34 of the recalls 0, 0.01 ... 1 are at most a third."""


def polygon(x, y, w, h):
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def base():
    """Return two images and three objects of one class."""
    images = [{"id": i, "file_name": f"{n}.png", "width": WIDTH, "height": HEIGHT} for i, n in ((1, "a"), (2, "b"))]
    annotations = [
        {"id": n, "image_id": image, "category_id": 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        | {"segmentation": [polygon(*box)]}
        for n, (image, box) in enumerate(BOXES, 1)
    ]
    return {"info": {}, "images": images, "annotations": annotations, "categories": [{"id": 1, "name": "lamp"}]}


def write_images(folder):
    """Write the images that cases name, and one whose EXIF tag turns it upright."""
    pixels = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    for name in ("a.png", "b.png", "sub/a.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(folder / "turned.jpg", exif=exif)


@dataclass(frozen=True)
class Case:
    """A change of the base, and what evaluation, training and user boxes make of it."""

    name: str
    change: object
    """Changes the content in place, or returns the text or bytes of the file."""
    said: str = ""
    """What the log says of it once, or the message that refuses the file."""
    refused: bool = False
    objects: int = 3
    """Objects that training learns from."""
    ap: float = 100.0
    failed: str = ""
    """Why evaluation skips an image."""
    boxes: int | str = 3
    """User boxes, or the message that refuses them."""

    def write(self, path, image_root):
        """Write the file of the case."""
        content = copy.deepcopy(base())
        text = self.change(content)
        if text is None or not isinstance(text, str | bytes):
            text = json.dumps(content)
        if isinstance(text, str):
            text = text.replace("@ROOT@", str(image_root)).encode()
        Path(path).write_bytes(text)


def every(kind, **changes):
    """Change all entries of a list; a function gets the old value."""

    def change(content):
        for entry in content[kind]:
            for key, value in changes.items():
                entry[key] = value(entry.get(key)) if callable(value) else value

    return change


def without(kind, *keys):
    def change(content):
        for entry in content[kind]:
            for key in keys:
                del entry[key]

    return change


def added(kind, *entries):
    """Append copies of the first entry with changes, or an entry that is no object."""

    def change(content):
        for entry in entries:
            content[kind].append(content[kind][0] | entry if isinstance(entry, dict) else entry)

    return change


def first(kind, **changes):
    """Change the first entry of a list."""

    def change(content):
        content[kind][0].update(changes)

    return change


def put(**values):
    return lambda content: content.update(values)


def both(*changes):
    def change(content):
        for one in changes:
            one(content)

    return change


def rename_ids(images=lambda i: i, annotations=lambda i: i, categories=lambda i: i):
    """Give images, annotations and categories other ids."""

    def change(content):
        for image in content["images"]:
            image["id"] = images(image["id"])
        for category in content["categories"]:
            category["id"] = categories(category["id"])
        for annotation in content["annotations"]:
            annotation["id"] = annotations(annotation["id"])
            annotation["image_id"] = images(annotation["image_id"])
            annotation["category_id"] = categories(annotation["category_id"])

    return change


def encoded(encoding):
    return lambda content: json.dumps(content).encode(encoding)


FOUR = "1 boxes that are not four numbers, left out"
BOX = "annotations[3] (id 1): expected a box of four numbers"


def bad_box(name, box, said, boxes=4, **more):
    """Return a case with one more object whose box cannot be used; user boxes are checked against their image later."""
    return Case(f"box {name}", added("annotations", {"bbox": box}), said, boxes=boxes, **more)


CASES = [
    Case("clean", lambda content: None),
    # Ids of annotations
    Case("annotation ids from 0", rename_ids(annotations=lambda i: i - 1)),
    Case("annotation ids equal", rename_ids(annotations=lambda i: 7)),
    Case("annotation ids missing", without("annotations", "id")),
    Case("annotation ids null", every("annotations", id=None)),
    Case("annotation ids text", rename_ids(annotations=lambda i: f"object {i}")),
    Case("annotation ids lists", rename_ids(annotations=lambda i: [i])),
    Case("annotation ids huge", rename_ids(annotations=lambda i: 10**30 + i)),
    Case("annotation ids negative", rename_ids(annotations=lambda i: -i)),
    Case("annotation ids fractions", rename_ids(annotations=lambda i: i + 0.5)),
    # Ids of images
    Case("image ids numbers as text", rename_ids(images=str)),
    Case("image ids text here, numbers there", every("annotations", image_id=str)),
    Case("image ids text", rename_ids(images=lambda i: f"img/{i}.png")),
    Case("image ids floats", rename_ids(images=float)),
    Case("image ids from 0", rename_ids(images=lambda i: i - 1)),
    Case("image ids huge", rename_ids(images=lambda i: 2**63 + i)),
    Case("image ids with zeros before", rename_ids(images=lambda i: f"{i:08}")),
    Case("image ids negative", rename_ids(images=lambda i: -i)),
    Case(
        "image ids given twice",
        added("images", {"file_name": "sub/a.png"}),
        "images: expected an id for each, got 1 for a.png and for sub/a.png",
        refused=True,
        boxes="got 1 for a.png and for sub/a.png",
    ),
    Case(
        "image ids given twice, as text and number",
        added("images", {"id": "1", "file_name": "sub/a.png"}),
        "got 1 for a.png and for sub/a.png",
        refused=True,
        boxes="got 1 for a.png and for sub/a.png",
    ),
    Case("image listed twice", added("images", {}), "1 images listed twice, left out"),
    Case(
        "image ids missing",
        lambda content: content["images"][1].pop("id"),
        "images[1]: expected an id, a number or text, got None",
        refused=True,
        boxes="images[1]: expected an id",
    ),
    Case(
        "image ids true",
        first("images", id=True),
        "images[0]: expected an id, a number or text, got True",
        refused=True,
        boxes="images[0]: expected an id",
    ),
    Case(
        "image ids lists",
        first("images", id=[1]),
        "images[0]: expected an id, a number or text, got [1]",
        refused=True,
        boxes="images[0]: expected an id",
    ),
    Case("images null", added("images", None), "images[2]: expected an id", refused=True, boxes="images[2]: expected"),
    # Ids of categories
    Case("category ids text", rename_ids(categories=str)),
    Case("category ids names", rename_ids(categories=lambda i: "lamp")),
    Case("category ids text here, numbers there", every("annotations", category_id=str)),
    Case("category ids 0", rename_ids(categories=lambda i: 0)),
    Case("category ids negative", rename_ids(categories=lambda i: -1)),
    Case("category ids floats", rename_ids(categories=float)),
    Case("category ids huge", rename_ids(categories=lambda i: 10**25)),
    Case(
        "category listed twice",
        added("categories", {}),
        "categories: expected an id for each, got 1 for lamp and for lamp",
        refused=True,
    ),
    Case(
        "category without a name",
        put(categories=[{"id": 1}]),
        "category 1: expected a name, got None",
        refused=True,
    ),
    Case("category with a number for a name", put(categories=[{"id": 1, "name": 7}])),
    Case("categories by number", put(categories={"1": "lamp"}), "a list `categories`, got none", refused=True),
    Case("category null", put(categories=[None]), "categories[0]: expected an id", refused=True),
    Case(
        "categories missing", lambda content: content.pop("categories"), "a list `categories`, got none", refused=True
    ),
    Case("categories empty", put(categories=[]), "a list `categories`, got an empty list", refused=True),
    Case(
        "annotation of an unknown category",
        added("annotations", {"category_id": 5}),
        "1 annotations of unknown categories, left out",
        boxes=4,
    ),
    Case(
        "annotations without a category",
        added("annotations", {"category_id": None}),
        "1 annotations of unknown categories, left out",
        boxes=4,
    ),
    Case(
        "annotation of an unknown image",
        added("annotations", {"image_id": 99}),
        "1 annotations of unknown images, left out",
        boxes="annotations[3] (id 1): expected the image_id of an image in the file, got 99",
    ),
    Case(
        "annotation without an image",
        added("annotations", {"image_id": None}),
        "1 annotations of unknown images, left out",
        boxes="annotations[3] (id 1): expected the image_id of an image in the file, got None",
    ),
    Case(
        "annotation null",
        added("annotations", None),
        "1 annotations that are none, left out",
        boxes="annotations[3]: expected an annotation, got None",
    ),
    Case(
        "annotations by name",
        lambda content: content.update(annotations={"1": content["annotations"][0]}),
        "annotations: expected a list, got dict",
        refused=True,
        boxes="annotations: expected a list, got dict",
    ),
    Case("annotations null", put(annotations=None), "expected annotated boxes, got none", refused=True, boxes=0),
    Case("annotations empty", put(annotations=[]), "expected annotated boxes, got none", refused=True, boxes=0),
    Case("images empty", put(images=[]), "`images`, got an empty list", refused=True, boxes="expected the image_id of"),
    # Crowds
    Case("iscrowd null", every("annotations", iscrowd=None)),
    Case("iscrowd missing", without("annotations", "iscrowd")),
    Case("iscrowd false", every("annotations", iscrowd=False)),
    Case("iscrowd text", every("annotations", iscrowd="0")),
    Case("iscrowd false in words", every("annotations", iscrowd="False")),
    Case("iscrowd NaN", every("annotations", iscrowd=math.nan)),
    Case("iscrowd empty", every("annotations", iscrowd="")),
    Case("a crowd", added("annotations", {"iscrowd": True, "bbox": [0, 40, 90, 20]}), boxes=4),
    Case("a crowd in words", added("annotations", {"iscrowd": "1", "bbox": [0, 40, 90, 20]}), boxes=4),
    Case("an object to ignore", added("annotations", {"ignore": 1, "bbox": [0, 40, 90, 20]}), boxes=4),
    Case("nothing to ignore", every("annotations", ignore=0)),
    # Boxes
    Case("boxes as text", every("annotations", bbox=lambda box: [str(value) for value in box])),
    Case("boxes of floats", every("annotations", bbox=lambda box: [float(value) for value in box])),
    bad_box("missing", None, FOUR, boxes=f"{BOX}, got none"),
    bad_box("of three numbers", [1, 2, 3], FOUR, boxes=BOX),
    bad_box("of five numbers", [1, 2, 3, 4, 5], FOUR, boxes=BOX),
    bad_box("empty", [], FOUR, boxes=BOX),
    bad_box("in one text", "1,2,3,4", FOUR, boxes=BOX),
    bad_box("with null", [1, None, 3, 4], FOUR, boxes=BOX),
    bad_box("with words", [1, "left", 3, 4], FOUR, boxes=BOX),
    bad_box("by name", {"x": 1, "y": 2, "w": 3, "h": 4}, FOUR, boxes=BOX),
    bad_box("in lists", [[1, 2], [3, 4]], FOUR, boxes=BOX),
    bad_box("with NaN", [1, math.nan, 3, 4], "1 boxes with coordinates that are not finite, left out"),
    bad_box("with infinity", [1, 2, math.inf, 4], "1 boxes with coordinates that are not finite, left out"),
    bad_box("of 400 digits", [1, 2, 10**400, 4], FOUR, boxes=BOX),
    bad_box("without width", [10, 10, 0, 5], "1 boxes without area, left out"),
    bad_box("of negative size", [10, 10, -5, -5], "1 boxes without area, left out"),
    bad_box("outside", [500, 10, 5, 5], "1 boxes outside the image, left out"),
    Case("box xyxy", first("annotations", bbox=[60, 40, 90, 60]), "1 boxes cut at the edge of the image"),
    Case("box over the edge by a rounding", first("annotations", bbox=[60, 40, 36.5, 24.5])),
    # Masks that nothing learns from, and areas
    Case("polygons of four numbers", every("annotations", segmentation=[[1, 2, 3, 4]])),
    Case("masks empty", every("annotations", segmentation=[])),
    Case("masks null", every("annotations", segmentation=None)),
    Case("masks missing", without("annotations", "segmentation")),
    Case("masks text", every("annotations", segmentation="[[1, 2, 3, 4, 5, 6]]")),
    Case("masks flat", every("annotations", segmentation=[1, 2, 3, 4, 5, 6])),
    Case("masks of run lengths", every("annotations", segmentation={"size": [64, 96], "counts": [0, 6144]})),
    Case("masks of broken run lengths", every("annotations", segmentation={"size": [1, 1], "counts": None})),
    Case("area missing", without("annotations", "area")),
    Case("area and mask missing", without("annotations", "area", "segmentation")),
    Case("area null", every("annotations", area=None)),
    Case("area text", every("annotations", area="480")),
    Case("area NaN", every("annotations", area=math.nan)),
    Case("area 0", every("annotations", area=0)),
    Case("area infinite", every("annotations", area=math.inf)),
    Case("scores", every("annotations", score=0.5)),
    # Keypoints
    Case("keypoints empty", every("annotations", keypoints=[])),
    Case("keypoints", every("annotations", keypoints=[1, 2, 2] * 17, num_keypoints=17)),
    Case("keypoints odd", every("annotations", keypoints=[1, None])),
    # Images
    Case("size missing", without("images", "width", "height")),
    Case("size null", every("images", width=None)),
    Case("size 0", every("images", width=0, height=0)),
    Case("size negative", every("images", height=-1)),
    Case("size text", every("images", width=str, height=str)),
    Case("size floats", every("images", width=float, height=float)),
    Case(
        "size of another image",
        first("images", width=192, height=128),
        failed="96 x 64 pixels, its annotations say 192 x 128",
        ap=ONE_OF_THREE_FOUND,
    ),
    Case(
        "size before EXIF",
        first("images", file_name="turned.jpg"),
        failed="64 x 96 pixels, its annotations say 96 x 64, perhaps of the photo before its EXIF",
        ap=ONE_OF_THREE_FOUND,
    ),
    Case("size after EXIF", first("images", file_name="turned.jpg", width=64, height=96), "1 boxes cut at the edge"),
    Case("path absolute", first("images", file_name="@ROOT@/a.png")),
    Case("path of Windows", first("images", file_name="sub\\a.png")),
    Case("path in a folder", first("images", file_name="./sub/../a.png")),
    Case(
        "path missing",
        first("images", file_name=None),
        "image 1: expected a file_name, got None",
        refused=True,
        boxes="image 1: expected a file_name, got None",
    ),
    # The file
    Case("UTF-8 with a mark", encoded("utf-8-sig")),
    Case("UTF-16", encoded("utf-16")),
    Case("UTF-32", encoded("utf-32")),
    Case("nothing", lambda content: b"", "JSONDecodeError", refused=True, boxes="JSONDecodeError"),
    Case(
        "cut off", lambda content: json.dumps(content)[:200], "JSONDecodeError", refused=True, boxes="JSONDecodeError"
    ),
    Case("no text", lambda content: b"\xff\xd8\xff\xe0", "Error: ", refused=True, boxes="Error: "),
    Case("a list", lambda content: "[]", "got a JSON list", refused=True, boxes="got a JSON list"),
    Case("deep", lambda content: "[" * 100_000, "RecursionError", refused=True, boxes="RecursionError"),
]
