"""Datasets of users in the formats of other tools: the same content is the same dataset."""

import json
import shutil

import numpy as np
import pytest
from detectron2.data import MetadataCatalog

from regionclip.config.keys import get_cfg
from regionclip.data.datasets.registered import read_records
from regionclip.data.own_datasets.dataset import ALL, TRAIN, VAL
from regionclip.data.own_datasets.prepared import (
    OWN_TEST,
    OWN_TRAIN,
    prepare_evaluation,
    prepare_training,
    register_folder,
)
from regionclip.data.own_datasets.reading import read_own_dataset
from regionclip.data.own_datasets.splits import split_records
from regionclip.errors import UserError
from regionclip.evaluation.build import build_evaluator
from tests.helpers.own_datasets import (
    LABELS,
    NAMES,
    SIZES,
    coco_content,
    objects_of,
    write_coco,
    write_dataset,
    write_images,
    write_yolo,
)


def boxes_of(records):
    """Return the objects of each image by its file name."""
    return {
        record["file_name"].rpartition("/")[2]: [(a["category_id"], *a["bbox"]) for a in record["annotations"]]
        for record in records
    }


@pytest.mark.parametrize("label", LABELS)
def test_every_format_gives_the_same_boxes_and_names(tmp_path, label):
    dataset = read_own_dataset(write_dataset(tmp_path, label))
    assert dataset.format == label and list(dataset.names) == NAMES
    records = [record for split in dataset.splits.values() for record in split]
    assert boxes_of(records) == {f"{i}.png": objects_of(i) for i in range(len(SIZES))}
    known = {r["file_name"].rpartition("/")[2]: (r["width"], r["height"]) for r in records}
    assert known == {f"{i}.png": size for i, size in enumerate(SIZES)}


def detections():
    """Return random detections (file, class, xyxy, score) near the objects and elsewhere."""
    rng = np.random.default_rng(0)
    for number in range(len(SIZES)):
        for c, x, y, w, h in objects_of(number) * 3:
            box = np.array([x, y, x + w, y + h]) + rng.normal(0, 3, 4)
            yield number, (c if rng.random() < 0.7 else int(rng.integers(0, 3))), box, float(rng.random())


def ap_of(tmp_path, label):
    folder = tmp_path / label.replace(" ", "_")
    folder.mkdir()
    prepare_evaluation(read_own_dataset(write_dataset(folder, label)), ["wood"], ALL).write(folder / "data")
    register_folder(folder / "data")
    evaluator = build_evaluator(get_cfg(), OWN_TEST, folder, len(NAMES))
    ids = {record["file_name"].rpartition("/")[2]: record["image_id"] for record in read_records(OWN_TEST)}
    results = [
        {
            "image_id": ids[f"{number}.png"],
            "category_id": evaluator.category_ids[c],
            "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
            "score": score,
        }
        for number, c, box, score in detections()
    ]
    return evaluator.metrics(results)["bbox"]


def test_every_format_gives_the_same_ap(tmp_path):
    expected = ap_of(tmp_path, "COCO")
    assert 5 < expected["AP50-novel"] < 95 and 5 < expected["AP50-base"] < 95 and 1 < expected["AP"] < 60
    for label in LABELS[1:]:
        measured = ap_of(tmp_path, label)
        assert measured["AP"] == pytest.approx(expected["AP"], abs=1e-9), label
        assert measured["AP50"] == pytest.approx(expected["AP50"], abs=1e-9), label
        if label != "LVIS":  # whose groups are by frequency
            assert measured == pytest.approx(expected, abs=1e-9, nan_ok=True), label


def test_base_classes_alone_are_trained_and_all_are_evaluated(tmp_path):
    prepare_training(read_own_dataset(write_coco(tmp_path)), ["dog | puppy"]).write(tmp_path / "data")
    register_folder(tmp_path / "data")
    trained, tested = MetadataCatalog.get(OWN_TRAIN), MetadataCatalog.get(OWN_TEST)
    assert trained.thing_classes == ["carrot", "wood"] and tested.thing_classes == NAMES
    assert tested.class_groups == {"novel": ["dog | puppy"], "base": ["carrot", "wood"]}
    assert list(tested.thing_dataset_id_to_contiguous_id) == [10, 20, 30]
    found = {**boxes_of(read_records(OWN_TRAIN)), **boxes_of(read_records(OWN_TEST))}
    assert len(found) == len(SIZES)
    for record in read_records(OWN_TRAIN):
        number = int(record["file_name"].rpartition("/")[2].removesuffix(".png"))
        kept = [(c // 2, *box) for c, *box in objects_of(number) if c != 1]
        assert [(a["category_id"], *a["bbox"]) for a in record["annotations"]] == kept


def test_a_split_is_the_same_in_every_run_place_and_order(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    write_coco(first)
    write_coco(second)
    content = json.loads((second / "annotations.json").read_text())
    for image in content["images"]:
        image["id"] += 100
    for annotation in content["annotations"]:
        annotation["image_id"] += 100
    content["images"].reverse()
    (second / "annotations.json").write_text(json.dumps(content))
    held_out = []
    for folder in (first, second):
        prepared = prepare_training(read_own_dataset(folder / "annotations.json"), [])
        assert len(prepared.train) + len(prepared.test) == 8 and prepared.test and prepared.train
        held_out.append(sorted(boxes_of(prepared.test)))
    assert held_out[0] == held_out[1]
    again = prepare_evaluation(read_own_dataset(first / "annotations.json"), [], VAL)
    assert sorted(boxes_of(again.test)) == held_out[0]


def test_added_images_move_none_to_the_other_part():
    records = [{"file_name": f"/data/{number}.jpg", "annotations": []} for number in range(300)]
    few, many = split_records(records[:100]), split_records(records)
    assert {r["file_name"] for r in few[VAL]} <= {r["file_name"] for r in many[VAL]}
    assert 0.1 < len(many[VAL]) / 300 < 0.3
    moved = split_records([{**record, "file_name": f"elsewhere{record['file_name']}"} for record in records])
    assert list(boxes_of(moved[VAL])) == list(boxes_of(many[VAL]))
    for names in (["a.jpg", "b.jpg"], ["x/a.jpg", "y/a.jpg"], ["a\udce9.jpg", "b.jpg", "c.jpg"]):
        parts = split_records([{"file_name": name, "annotations": []} for name in names])
        assert parts[TRAIN] and parts[VAL]
    with pytest.raises(UserError, match="--data: expected at least two images"):
        split_records(records[:1])


def test_named_splits_are_kept(tmp_path):
    for folder in ("train", "valid"):
        write_coco(tmp_path / folder).rename(tmp_path / folder / "_annotations.coco.json")
    dataset = read_own_dataset(tmp_path)
    assert sorted(dataset.splits) == [TRAIN, VAL]
    prepared = prepare_training(dataset, [])
    assert "/train/" in prepared.train[0]["file_name"] and "/valid/" in prepared.test[0]["file_name"]
    with pytest.raises(UserError, match="--split: expected one of train, val, all, got test"):
        prepare_evaluation(dataset, [], "test")


def test_all_splits_together_have_ids_of_their_own(tmp_path):
    for folder in ("train", "valid"):
        write_coco(tmp_path / folder).rename(tmp_path / folder / "_annotations.coco.json")
    prepare_evaluation(read_own_dataset(tmp_path), [], ALL).write(tmp_path / "data")
    register_folder(tmp_path / "data")
    records = read_records(OWN_TEST)
    assert len({record["image_id"] for record in records}) == 2 * len(SIZES)
    for record in records:
        number = int(record["file_name"].rpartition("/")[2].removesuffix(".png"))
        assert [(a["category_id"], *a["bbox"]) for a in record["annotations"]] == objects_of(number)


def test_yolo_follows_lists_roboflow_paths_and_polygons(tmp_path):
    file = write_yolo(tmp_path)
    (tmp_path / "list.txt").write_text("images/val/0.png\nimages/val/1.png\n")
    file.write_text(f"train: ../images/val\nval: list.txt\nnames: {json.dumps(NAMES)}\n")
    dataset = read_own_dataset(tmp_path)
    assert len(dataset.splits[TRAIN]) == 8 and len(dataset.splits[VAL]) == 2
    (tmp_path / "labels" / "val" / "0.txt").write_text("1 0.25 0.25 0.75 0.25 0.75 0.5\n\n0 0.5 0.5 0.5 0.5 0.9\n")
    width, height = SIZES[0]
    boxes = boxes_of(read_own_dataset(file).splits[VAL])["0.png"]
    assert boxes == [
        (1, width / 4, height / 4, width / 2, height / 4),
        (0, width / 4, height / 4, width / 2, height / 2),
    ]


def test_keypoints_of_yolo_are_left_out(tmp_path):
    file = write_yolo(tmp_path)
    file.write_text(file.read_text() + "kpt_shape: [2, 3]\n")
    (tmp_path / "labels" / "val" / "0.txt").write_text("0 0.5 0.5 0.25 0.25 0.45 0.45 2 0.55 0.55 2\n")
    width, height = SIZES[0]
    found = boxes_of(read_own_dataset(file).splits[VAL])["0.png"]
    assert found == [(0, width * 0.375, height * 0.375, width / 4, height / 4)]


def test_splits_that_are_not_needed_are_not_opened(tmp_path):
    file = write_yolo(tmp_path)
    file.write_text(file.read_text() + "train: images/val\ntest: images/missing\n")
    assert sorted(read_own_dataset(file, split=TRAIN).splits) == [TRAIN, VAL]
    assert list(read_own_dataset(file, split=VAL).splits) == [VAL]
    with pytest.raises(UserError, match="images/missing: expected a folder of images"):
        read_own_dataset(file)
    prepared = prepare_training(read_own_dataset(file, split=TRAIN), [])
    assert "8 images are in both" in "\n".join(prepared.summary())


def test_instances_are_taken_and_a_dummy_category_is_not(tmp_path):
    content = coco_content()
    content["categories"].insert(0, {"id": 0, "name": "animals", "supercategory": "none"})
    for category in content["categories"][1:]:
        category["supercategory"] = "animals"
    write_images(tmp_path / "images" / "train")
    write_images(tmp_path / "images" / "val")
    (tmp_path / "annotations").mkdir()
    for name in ("instances_train2017", "instances_val2017"):
        (tmp_path / "annotations" / f"{name}.json").write_text(json.dumps(content))
    for name in ("stuff_train2017", "panoptic_val2017", "captions_val2017"):
        (tmp_path / "annotations" / f"{name}.json").write_text("{}")
    dataset = read_own_dataset(tmp_path)
    assert list(dataset.names) == NAMES and sorted(dataset.splits) == [TRAIN, VAL]
    assert all("/images/train/" in record["file_name"] for record in dataset.splits[TRAIN])
    assert boxes_of(dataset.splits[VAL])["2.png"] == objects_of(2)


def test_a_supercategory_may_be_anything(tmp_path):
    file = coco_with(lambda content: content["categories"][0].update(supercategory=["x"]))(tmp_path)
    assert read_own_dataset(file).names == read_own_dataset(write_coco(tmp_path / "plain")).names


def test_lists_of_lvis_follow_the_ids_of_the_training_set(tmp_path):
    first = read_own_dataset(write_dataset(tmp_path / "a", "LVIS"))
    file = write_dataset(tmp_path / "b", "LVIS")
    content = json.loads(file.read_text())
    ids = {10: 30, 20: 20, 30: 10}
    for category in content["categories"]:
        category["id"] = ids[category["id"]]
    for annotation in content["annotations"]:
        annotation["category_id"] = ids[annotation["category_id"]]
    for image in content["images"]:
        image["neg_category_ids"] = [30]  # the first class
    file.write_text(json.dumps(content))
    prepared = prepare_training(first, [], read_own_dataset(file))
    assert boxes_of(prepared.test) == {f"{i}.png": objects_of(i) for i in range(len(SIZES))}
    assert all(record["neg_category_ids"] == [10] for record in prepared.test)
    with pytest.raises(UserError, match=r"--val-data .*expected a LVIS dataset, as --data, got a COCO dataset"):
        prepare_training(first, [], read_own_dataset(write_coco(tmp_path / "c")))


def test_voc_pairs_by_the_name_of_the_file_and_reads_boxes_only(tmp_path):
    write_dataset(tmp_path, "Pascal VOC")
    file = tmp_path / "Annotations" / "3.xml"
    polygon = "<polygon><pt><x>1</x><y>2</y></pt></polygon></bndbox>".replace("</bndbox>", "")
    text = file.read_text().replace("<filename>3.png", "<filename>4.png").replace("</bndbox>", f"</bndbox>{polygon}")
    file.write_text(text.replace("<name>", "<name> "))
    (tmp_path / "Annotations" / "3.xml").rename(tmp_path / "Annotations" / "my 3.xml")
    (tmp_path / "JPEGImages" / "3.png").rename(tmp_path / "JPEGImages" / "my 3.png")
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "trainval.txt").write_text("my 3\n0\n")
    (tmp_path / "ImageSets" / "Main" / "test.txt").write_text("1 -1\n")
    dataset = read_own_dataset(tmp_path)
    assert boxes_of(dataset.splits[TRAIN])["my 3.png"] == objects_of(3)
    prepared = prepare_training(dataset, [])
    assert (len(prepared.train), list(boxes_of(prepared.test))) == (2, ["1.png"])


def test_label_studio_takes_no_image_of_another_name(tmp_path, monkeypatch):
    write_images(tmp_path / "project")
    write_images(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path / "elsewhere")
    region = {"x": 0, "y": 0, "width": 50, "height": 50, "rotation": 0, "rectanglelabels": ["dog"]}
    size = {"original_width": 96, "original_height": 64}

    def read(*tasks):
        (tmp_path / "project" / "export.json").write_text(json.dumps(tasks))
        return read_own_dataset(tmp_path / "project" / "export.json").splits[ALL]

    entry = {"id": 1, "image": "0.png", "label": [{**region, **size}]}
    (record,) = read(entry, {**entry, "label": [{**region, "width": 25, **size}]})
    assert record["file_name"] == str(tmp_path / "project" / "0.png") and record["annotations"][0]["bbox"][2] == 24
    assert read({**entry, "image": r"/data/local-files/?d=project%5C0.png"})[0]["file_name"].endswith("project/0.png")
    for address in ("cam1-0.png", "data:image/png;base64,AAAA" + "A" * 5000):
        with pytest.raises(UserError, match="task 1: expected its image"):
            read({**entry, "image": address})


def test_label_studio_turns_rectangles_and_takes_the_truth(tmp_path):
    write_images(tmp_path)
    size = {"original_width": 96, "original_height": 64}
    value = {"x": 50, "y": 50, "width": 100 * 20 / 96, "height": 100 * 10 / 64, "rotation": 90}
    turned = {**size, "value": {**value, "rectanglelabels": ["dog"]}}
    polygon = {**size, "value": {"points": [[0, 0], [50, 0], [25, 50]], "polygonlabels": ["cat"]}}
    brush = {**size, "value": {"format": "rle", "brushlabels": ["cat"]}}
    tasks = [
        {"id": 7, "data": {"image": "/data/upload/3/0123abcd-0.png"}, "annotations": [
            {"result": [turned, polygon, brush], "ground_truth": True},
            {"result": []},
        ]},
        {"id": 8, "data": {"image": "1.png"}, "annotations": [{"result": [polygon], "was_cancelled": True}]},
        {"id": 9, "data": {"image": "http://host/2.png"}, "annotations": [{"result": []}]},
    ]  # fmt: skip
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    records = read_own_dataset(tmp_path / "export.json").splits[ALL]
    assert [record["image_id"] for record in records] == [7, 9]
    # A rectangle turned by 90 degrees around (48, 32) reaches to the left and down.
    assert boxes_of(records) == {"0.png": [(1, 38.0, 32.0, 10.0, 20.0), (0, 0.0, 0.0, 48.0, 32.0)], "2.png": []}
    small = [{"image": "0.png", "id": 1, "label": [{**value, "rotation": 0, "rectanglelabels": ["dog"], **size}]}]
    (tmp_path / "export.json").write_text(json.dumps(small))
    assert boxes_of(read_own_dataset(tmp_path / "export.json").splits[ALL]) == {"0.png": [(0, 48.0, 32.0, 20.0, 10.0)]}


def test_label_studio_with_odd_tasks(tmp_path):
    write_images(tmp_path)
    size = {"original_width": 96, "original_height": 64}
    region = {**size, "value": {"x": 0, "y": 0, "width": 50, "height": 50, "rectanglelabels": "cat"}}
    odd = [{**size, "value": {**region["value"], "rectanglelabels": label}} for label in (5, {"a": 1}, [None], [])]
    done = [None, {"result": [region, *odd]}]
    tasks = [
        {"id": 1, "data": {"caption": "a dog", "photo": "0.png"}, "annotations": done},
        {"id": None, "data": {"image": "1.png"}, "annotations": done},
        {"data": {"image": "", "photo": "2.png"}, "annotations": done},
        {"data": {"image": "3.png"}, "annotations": 7},
    ]
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    dataset = read_own_dataset(tmp_path / "export.json")
    assert dataset.names == ("cat",)
    assert [record["image_id"] for record in dataset.splits[ALL]] == [1, 2, 3]
    assert list(boxes_of(dataset.splits[ALL])) == ["0.png", "1.png", "2.png"]


def yolo_with(text):
    def write(folder):
        file = write_yolo(folder)
        (folder / "labels" / "val" / "3.txt").write_text(text)
        return file

    return write


def yaml_with(text):
    def write(folder):
        write_yolo(folder).write_text(text)
        return folder / "data.yaml"

    return write


def voc_with(text):
    def write(folder):
        write_dataset(folder, "Pascal VOC")
        (folder / "Annotations" / "3.xml").write_text(text)
        return folder

    return write


def label_studio_with(change):
    def write(folder):
        file = write_dataset(folder, "Label Studio")
        tasks = json.loads(file.read_text())
        change(tasks[3])
        file.write_text(json.dumps(tasks))
        return file

    return write


def coco_with(change):
    def write(folder):
        file = write_coco(folder)
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))
        return file

    return write


def without_images(folder):
    file = write_coco(folder)
    shutil.rmtree(folder / "images")
    return file


NAMED = f"val: images/val\nnames: {json.dumps(NAMES)}\n"

REFUSED = {
    "no such file": (lambda folder: folder / "none.json", "expected a COCO or LVIS JSON file, a YOLO data.yaml"),
    "empty folder": (lambda folder: folder, "got a folder without"),
    "text file": (lambda folder: (folder / "a.txt", (folder / "a.txt").write_text("x"))[0], "got a file .txt"),
    "yolo: word": (yolo_with("0 0.5 0.5 0.2 0.2\n0 a b c d\n"), "3.txt, line 2: expected a class index and a box"),
    "yolo: three numbers": (yolo_with("0 0.5 0.5\n"), "3.txt, line 1: expected a class index and a box"),
    "yolo: nan": (yolo_with("0 nan 0.5 0.1 0.1\n"), "3.txt, line 1: expected a class index and a box"),
    "yolo: class": (yolo_with("3 0.5 0.5 0.2 0.2\n"), "3.txt, line 1: expected a class index of 0 to 2, got 3"),
    "yolo: names": (yaml_with("val: images/val\n"), "data.yaml: names: expected a list of class names"),
    "yolo: gap in names": (yaml_with("val: images/val\nnames: {0: a, 2: b}\n"), "names: expected a list"),
    "yolo: no split": (
        yaml_with(f"names: {json.dumps(NAMES)}\n"),
        "expected image folders for train or val",
    ),
    "yolo: folder": (yaml_with(NAMED.replace("val:", "val: no/")), "expected a folder of images in"),
    "yolo: no YAML": (yaml_with("a: [1\n"), "data.yaml: expected readable YAML"),
    "yolo: no labels": (
        lambda folder: (write_yolo(folder), shutil.rmtree(folder / "labels"))[0],
        "8 images: expected label files such as",
    ),
    "voc: no XML": (voc_with("<annotation><object>"), "3.xml: expected Pascal VOC's XML"),
    "voc: no box": (
        voc_with("<annotation><object><name>a</name></object></annotation>"),
        "3.xml: object 1: expected",
    ),
    "voc: bomb": (
        voc_with('<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>'),
        "3.xml: expected Pascal VOC's XML",
    ),
    "label studio: no size": (
        label_studio_with(lambda task: task["annotations"][0]["result"][0].pop("original_width")),
        "task 4: expected regions with x, y, width and height in percent",
    ),
    "label studio: no image": (
        label_studio_with(lambda task: task.update(data={})),
        "task 4: expected an image",
    ),
    "label studio: no data": (
        label_studio_with(lambda task: task.update(data=None)),
        "task 4: expected an image",
    ),
    "label studio: lost image": (
        label_studio_with(lambda task: task.update(data={"image": "x.png"})),
        "task 4: expected its image x.png",
    ),
    "coco: no images": (without_images, "annotations.json: image 1: expected 0.png in"),
    "coco: no objects": (
        coco_with(lambda content: content.update(annotations=[])),
        "a COCO dataset with objects",
    ),
    "coco: equal ids": (
        coco_with(lambda content: content["images"][1].update(id=1)),
        "images: expected an id for each, got 1 for 0.png and for 1.png",
    ),
    "coco: text": (
        lambda folder: (folder / "a.json", (folder / "a.json").write_text("{"))[0],
        "a.json: expected a COCO",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_one_error_that_names_file_line_or_id(tmp_path, case):
    write, message = REFUSED[case]
    with pytest.raises(UserError, match="Fix: ") as error:
        read_own_dataset(write(tmp_path))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_wrong_options_are_refused(tmp_path):
    dataset = read_own_dataset(write_coco(tmp_path))
    with pytest.raises(UserError, match=r"--novel: expected class names of the dataset: carrot.*got cat"):
        prepare_training(dataset, ["cat"])
    with pytest.raises(UserError, match="--novel: expected at least one class left to train on"):
        prepare_training(dataset, NAMES)
    with pytest.raises(UserError, match=r"--images .*expected the folder of the images, got no such folder"):
        read_own_dataset(tmp_path / "annotations.json", tmp_path / "none")
    other = tmp_path / "other"
    content = json.loads((tmp_path / "annotations.json").read_text())
    content["categories"][0]["name"] = "cat"
    write_images(other / "images")
    (other / "other.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"--val-data .*expected the classes of --data.*got cat"):
        prepare_training(dataset, [], read_own_dataset(other / "other.json"))


def test_an_image_with_another_size_than_its_annotations_say_is_known_before_training(tmp_path):
    """The records keep the stated size, which training and evaluation compare with the file."""
    content = json.loads(write_coco(tmp_path).read_text())
    content["images"][0] |= {"width": 64, "height": 96}
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    record = read_own_dataset(tmp_path / "annotations.json").splits[ALL][0]
    assert (record["width"], record["height"]) == (64, 96)


def test_voc_keeps_the_size_that_a_file_states_and_follows_lists(tmp_path):
    write_dataset(tmp_path, "Pascal VOC")
    file = tmp_path / "Annotations" / "3.xml"
    size = "<size><width>50</width><height>33</height><depth>3</depth></size>"  # of the photo before it was turned
    file.write_text(file.read_text().replace("</filename>", f"</filename>{size}"))
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    for name, lines in (("train", "0\n1\n"), ("val", "3 1\n"), ("trainval", "0\n1\n3\n"), ("carrot_train", "0 -1\n")):
        (tmp_path / "ImageSets" / "Main" / f"{name}.txt").write_text(lines)
    dataset = read_own_dataset(tmp_path)
    assert {split: len(records) for split, records in dataset.splits.items()} == {TRAIN: 2, VAL: 1}
    (record,) = dataset.splits[VAL]
    assert (record["width"], record["height"]) == (50, 33) and SIZES[3] == (33, 50)
    assert len({entry["image_id"] for records in dataset.splits.values() for entry in records}) == 3


def test_a_folder_that_was_not_prepared_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"DATASETS.FOLDER .*expected a folder that --data wrote"):
        register_folder(tmp_path)
