"""Detections in the formats of other tools, read back by these tools' own readers or by literal ones."""

import csv
import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import supervision
import yaml
from PIL import Image

from regionclip.batch.crops import write_crops
from regionclip.batch.formats import FORMATS, label_names, parse_formats
from regionclip.data.own_datasets.reading import read_own_dataset
from regionclip.errors import UserError
from tests.helpers.paths import DATA

PHOTOS = sorted((DATA / "four_photos" / "images").iterdir())
WORDS = ["traffic light", "köttbulle, fried", "cat"]


def results_of(names, seed=0):
    """Return results with random boxes, as a run has them."""
    dice = np.random.default_rng(seed)
    results = []
    for number, name in enumerate(names):
        width, height = 160 + 7 * number, 120
        corners = dice.uniform(0, [width - 20, height - 20], (3, 2))
        boxes = np.concatenate([corners, corners + dice.uniform(2, 18, (3, 2))], axis=1)
        found = [
            {"word": WORDS[i], "class_id": i, "score": float(dice.uniform()), "box": box.tolist()}
            for i, box in enumerate(boxes)
        ]
        about = {"image_id": f"{name}#0", "file": f"/images/{name}", "width": width, "height": height}
        results.append({**about, "detections": found if number else []})
    return results


def test_yolo_labels_have_the_boxes_and_names(tmp_path):
    results = results_of(["a.jpg", "b.jpg", "c.png"])
    folder = FORMATS["yolo"](results, WORDS, tmp_path)
    assert yaml.safe_load((folder / "data.yaml").read_text())["names"] == dict(enumerate(WORDS))
    assert (folder / "labels" / "a.txt").read_text() == ""
    for result in results[1:]:
        name = result["image_id"].split(".")[0]
        rows = [list(map(float, line.split())) for line in (folder / "labels" / f"{name}.txt").read_text().splitlines()]
        for (number, cx, cy, w, h), found in zip(rows, result["detections"], strict=True):
            size = np.array([result["width"], result["height"]] * 2)
            box = np.array([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]) * size
            assert number == found["class_id"]
            np.testing.assert_allclose(box, found["box"], atol=1e-3)


def test_voc_files_have_whole_pixels_from_one(tmp_path):
    results = results_of(["a.jpg", "b.jpg"])
    folder = FORMATS["voc"](results, WORDS, tmp_path)
    root = ElementTree.parse(folder / "b.xml").getroot()
    assert root.findtext("filename") == "b.jpg" and root.findtext("size/width") == str(results[1]["width"])
    for entry, found in zip(root.findall("object"), results[1]["detections"], strict=True):
        x1, y1, x2, y2 = (int(entry.findtext(f"bndbox/{tag}")) for tag in ("xmin", "ymin", "xmax", "ymax"))
        assert entry.findtext("name") == found["word"]
        np.testing.assert_allclose([x1 - 1, y1 - 1, x2, y2], found["box"], atol=0.51)
    assert ElementTree.parse(folder / "a.xml").getroot().findall("object") == []


def test_label_studio_has_percent_of_the_image(tmp_path):
    results = results_of(["a.jpg", "b.jpg"])
    tasks = json.loads(FORMATS["label-studio"](results, WORDS, tmp_path).read_text())
    assert [task["data"]["image"] for task in tasks] == ["/images/a.jpg", "/images/b.jpg"]
    (prediction,) = tasks[1]["predictions"]
    for region, found in zip(prediction["result"], results[1]["detections"], strict=True):
        value, width, height = region["value"], region["original_width"], region["original_height"]
        first = np.array([value["x"] * width, value["y"] * height]) / 100
        size = np.array([value["width"] * width, value["height"] * height]) / 100
        np.testing.assert_allclose([*first, *(first + size)], found["box"], atol=1e-3)
        assert value["rectanglelabels"] == [found["word"]] and region["type"] == "rectanglelabels"
        assert (region["from_name"], region["to_name"], region["score"]) == ("label", "image", found["score"])


def test_the_sdk_of_label_studio_accepts_and_converts_the_tasks(tmp_path):
    """Its own check of predictions, and its converter to COCO once a person has accepted them."""
    interface = pytest.importorskip("label_studio_sdk.label_interface")
    converter = pytest.importorskip("label_studio_sdk.converter")
    results = results_of(["a.jpg", "b.jpg"])
    tasks = json.loads(FORMATS["label-studio"](results, WORDS, tmp_path).read_text())
    labels = "".join(f'<Label value="{word}"/>' for word in WORDS)
    config = (
        '<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image">'
        f"{labels}</RectangleLabels></View>"
    )
    for task in tasks:
        assert interface.LabelInterface(config).validate_prediction(task["predictions"][0], return_errors=True) == []
    accepted = [
        {**task, "id": i, "annotations": [{"id": i, "result": task["predictions"][0]["result"], "completed_by": 1}]}
        for i, task in enumerate(tasks, start=1)
    ]
    (tmp_path / "accepted.json").write_text(json.dumps(accepted))
    converter.Converter(config, str(tmp_path), download_resources=False).convert_to_coco(
        str(tmp_path / "accepted.json"), str(tmp_path / "coco"), is_dir=False
    )
    coco = json.loads((tmp_path / "coco" / "result.json").read_text())
    names = {category["id"]: category["name"] for category in coco["categories"]}
    found = [(names[a["category_id"]], a["bbox"]) for a in coco["annotations"]]
    expected = [found for result in results for found in result["detections"]]
    assert len(found) == len(expected) > 0
    for (name, (x, y, w, h)), entry in zip(found, expected, strict=True):
        assert name == entry["word"] and [x, y, x + w, y + h] == pytest.approx(entry["box"], abs=1e-3)


def test_what_was_written_is_read_as_a_dataset(tmp_path):
    """`detect --format` and `train --data` are one way and back: boxes, names and images."""
    results = results_of(["a.jpg", "b.jpg", "c.png"])
    for result in results:
        path = tmp_path / "images" / result["image_id"].removesuffix("#0")
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (result["width"], result["height"])).save(path)
    yolo, voc = (FORMATS[name](results, WORDS, tmp_path) for name in ("yolo", "voc"))
    (tmp_path / "images").rename(yolo / "images")
    for path, images, tolerance in ((yolo / "data.yaml", None, 1e-3), (voc, yolo / "images", 0.51)):
        dataset = read_own_dataset(path, images)
        records = {Path(record["file_name"]).name: record for record in next(iter(dataset.splits.values()))}
        assert len(records) == 3
        for result in results:
            found = records[result["image_id"].removesuffix("#0")]["annotations"]
            names = [dataset.names[entry["category_id"]] for entry in found]
            assert names == [entry["word"] for entry in result["detections"]]
            for entry, expected in zip(found, result["detections"], strict=True):
                x, y, w, h = entry["bbox"]
                assert [x, y, x + w, y + h] == pytest.approx(expected["box"], abs=tolerance + 1e-3)


def test_csv_has_a_row_for_each_detection(tmp_path):
    results = results_of(["a.jpg", "b.jpg", "c.jpg"])
    with FORMATS["csv"](results, WORDS, tmp_path).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    expected = [(result["file"], found) for result in results for found in result["detections"]]
    for row, (file, found) in zip(rows, expected, strict=True):
        assert (row["file"], row["word"], int(row["class_id"])) == (file, found["word"], found["class_id"])
        assert [float(row[key]) for key in ("x1", "y1", "x2", "y2")] == found["box"]
        assert float(row["score"]) == found["score"]


def test_supervision_reads_yolo_and_voc(tmp_path):
    results = results_of(["a.jpg", "b.jpg", "c.png"])
    images = tmp_path / "images"
    images.mkdir()
    for result in results:
        Image.new("RGB", (result["width"], result["height"])).save(images / result["image_id"].removesuffix("#0"))
    yolo, voc = (FORMATS[name](results, WORDS, tmp_path) for name in ("yolo", "voc"))
    read = {
        "yolo": supervision.DetectionDataset.from_yolo(str(images), str(yolo / "labels"), str(yolo / "data.yaml")),
        "voc": supervision.DetectionDataset.from_pascal_voc(str(images), str(voc)),
    }
    for name, tolerance in (("yolo", 1e-3), ("voc", 0.51)):
        dataset = read[name]
        for path, _, annotations in dataset:
            result = next(part for part in results if path.endswith(part["image_id"].removesuffix("#0")))
            boxes = np.array([found["box"] for found in result["detections"]]).reshape(-1, 4)
            np.testing.assert_allclose(annotations.xyxy, boxes, atol=tolerance)
            names = [dataset.classes[number] for number in annotations.class_id]
            assert names == [found["word"] for found in result["detections"]]


def test_label_files_have_unique_names():
    results = results_of(["a.jpg", "a.png", "deep/b.jpg", "clip.mp4", "clip.mp4"])
    for number in (3, 4):
        results[number] |= {"image_id": f"clip.mp4#{number}", "frame": number}
    assert label_names(results) == ["a.jpg", "a.png", "deep/b", "clip.3", "clip.4"]
    for names in (["a.jpg", "a.png", "a.jpg.png"], ["A.jpg", "a.png", "a.jpg", "a"], ["b/c.jpg", "B/C.jpg"]):
        found = label_names(results_of(names))
        assert len({name.casefold() for name in found}) == len(names), found
    (long,) = label_names(results_of(["x" * 250 + ".jpg"]), ".txt")
    assert len(long) <= 200 and long.endswith(".txt")


def test_odd_characters_and_boxes_beyond_the_image_are_written(tmp_path):
    results = results_of(["d\udce9.jpg", "b.jpg"])
    results[1]["detections"][0] |= {"word": "cat\x01x", "box": [99.8, -3.0, 500.0, 700.0]}
    for write in FORMATS.values():
        write(results, WORDS, tmp_path)
    root = ElementTree.parse(tmp_path / "voc" / "b.xml").getroot()
    corners = [int(root.findtext(f"object/bndbox/{tag}")) for tag in ("xmin", "ymin", "xmax", "ymax")]
    assert corners == [101, 1, results[1]["width"], results[1]["height"]]
    numbers = (tmp_path / "yolo" / "labels" / "b.txt").read_text().split()[1:5]
    assert all(0 <= float(number) <= 1 for number in numbers)


def test_results_of_an_earlier_run_do_not_mix_with_new_ones(tmp_path):
    for names in (["a.jpg", "b.jpg"], ["c.jpg"]):
        for write in FORMATS.values():
            write(results_of(names), WORDS, tmp_path)
    (tmp_path / "yolo" / "labels" / "own.txt").write_text("of the user")
    FORMATS["yolo"](results_of(["d.jpg"]), WORDS, tmp_path)
    assert {path.name for path in (tmp_path / "yolo" / "labels").iterdir()} == {"d.txt", "own.txt"}
    assert [path.name for path in (tmp_path / "voc").glob("*.xml")] == ["c.xml"]


def test_crops_have_files_of_their_own(tmp_path):
    pixels = np.zeros((120, 160, 3), dtype=np.uint8)
    paths = []
    for name in ("a/b.jpg", "a_b.jpg"):
        (result,) = results_of(["first.jpg", name])[1:]
        for number, word in enumerate(("c++", "c::", "\u732b" * 90)):
            result["detections"][number] |= {"word": word, "class_id": number}
        write_crops(result, pixels, tmp_path)
        paths += [found["crop"] for found in result["detections"]]
    assert len(set(paths)) == 6 and all((tmp_path / path).is_file() for path in paths)
    assert len({path.split("/")[1] for path in paths}) == 3


def test_unknown_formats_are_one_error():
    assert parse_formats("coco, yolo,csv,yolo") == ("yolo", "csv")
    with pytest.raises(UserError, match="expected coco, yolo, voc, label-studio, csv, with commas, got tfrecord"):
        parse_formats("coco,tfrecord")


def test_the_command_writes_formats_and_crops(command, detector_folder, tmp_path):
    (tmp_path / "photos").mkdir()
    for photo in PHOTOS[:2]:
        shutil.copy(photo, tmp_path / "photos")
    given = ["photos", "--model", detector_folder, "--device", "cpu", "--words", "cat,traffic cone", "--topk", 3]
    given += ["--threshold", 0, "--background", "none", "--format", "coco,yolo,voc,label-studio,csv", "--crops"]
    code, _, error = command("detect", *given, "--output", "found", "--json")
    assert code == 0, error
    found = json.loads((tmp_path / "found" / "detections.json").read_text())
    with (tmp_path / "found" / "detections.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(found["annotations"]) == 6
    for photo in PHOTOS[:2]:
        assert len((tmp_path / "found" / "yolo" / "labels" / f"{photo.stem}.txt").read_text().splitlines()) == 3
        assert len(ElementTree.parse(tmp_path / "found" / "voc" / f"{photo.stem}.xml").findall("object")) == 3
    crops = sorted((tmp_path / "found" / "crops").rglob("*.jpg"))
    assert len(crops) == 6 and {crop.parent.name for crop in crops} <= {"cat", "traffic cone"}
    width, height = found["annotations"][0]["bbox"][2:]
    photo = next(image for image in found["images"] if image["id"] == found["annotations"][0]["image_id"])
    word = found["categories"][found["annotations"][0]["category_id"] - 1]["name"]
    with Image.open(tmp_path / "found" / "crops" / word / f"{photo['file_name'].rpartition('/')[2]}_0.jpg") as crop:
        assert abs(crop.width - width) <= 2 and abs(crop.height - height) <= 2
    # Crops of an earlier run never stay beside those of a new one, whatever was run in between.
    for options in (given[:-1], [*given[:-1], "--threshold", 2, "--crops"]):
        code, _, error = command("detect", *options, "--output", "found", "--json")
        assert code == 0, error
    assert not list((tmp_path / "found" / "crops").rglob("*.jpg"))
    code, _, error = command("detect", *given[:-3], "--format", "yolov8", "--output", "other")
    assert code == 2 and "--format: expected coco, yolo" in error and not (tmp_path / "other").exists()
