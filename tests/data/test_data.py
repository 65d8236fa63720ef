import copy
import json
import os
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES
from detectron2.structures import BoxMode
from PIL import Image

from regionclip.config.keys import get_cfg
from regionclip.data.datasets.coco_ovd import prepare_coco_ovd
from regionclip.data.datasets.coco_split import ALL_CATEGORIES, BASE_CATEGORIES, NOVEL_CATEGORIES
from regionclip.data.datasets.custom_images import (
    DEFAULT_FOLDER,
    list_images,
    load_custom_images,
    use_custom_image_folder,
)
from regionclip.data.datasets.lvis import drop_empty_images_as_upstream, load_lvis
from regionclip.data.test_loader import TestMapper, build_test_loader, read_test_records
from regionclip.errors import UserError

COCO_NAMES = {category["id"]: category["name"] for category in COCO_CATEGORIES if category["isthing"]}

# From the split of Bansal et al. (2018): 17 novel classes, and 15 of the 80 that are in neither set.
NOVEL_IDS = [5, 6, 17, 18, 21, 22, 28, 32, 36, 41, 47, 49, 61, 63, 76, 81, 87]
UNUSED_IDS = [10, 11, 13, 14, 37, 39, 40, 43, 46, 58, 64, 67, 77, 88, 89]
ALL_IDS = [i for i in sorted(COCO_NAMES) if i not in UNUSED_IDS]
SPLIT_IDS = {"all": ALL_IDS, "b": [i for i in ALL_IDS if i not in NOVEL_IDS], "t": NOVEL_IDS}

LVIS_SPLITS = ("train", "val", "test_dev", "test_challenge")


def datasets_root():
    return Path(os.getenv("DETECTRON2_DATASETS", "datasets")).expanduser()


def file_names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_split_has_48_base_and_17_novel_classes():
    assert (len(BASE_CATEGORIES), len(NOVEL_CATEGORIES), len(ALL_CATEGORIES)) == (48, 17, 65)
    assert not set(BASE_CATEGORIES) & set(NOVEL_CATEGORIES)
    assert not set(BASE_CATEGORIES.values()) & set(NOVEL_CATEGORIES.values())


@pytest.mark.parametrize(
    ("categories", "split"), [(ALL_CATEGORIES, "all"), (BASE_CATEGORIES, "b"), (NOVEL_CATEGORIES, "t")]
)
def test_ids_ascend_and_names_are_those_of_coco(categories, split):
    assert list(categories.items()) == [(i, COCO_NAMES[i]) for i in SPLIT_IDS[split]]


@pytest.mark.parametrize("split", SPLIT_IDS)
@pytest.mark.parametrize(("ending", "year"), [("train", "train2017"), ("test", "val2017")])
def test_coco_names_are_registered_with_their_classes(split, ending, year):
    name = f"coco_2017_ovd_{split}_{ending}"
    assert name in DatasetCatalog.list()
    metadata, ids = MetadataCatalog.get(name), SPLIT_IDS[split]
    assert metadata.thing_classes == [COCO_NAMES[i] for i in ids]
    assert metadata.thing_dataset_id_to_contiguous_id == {i: position for position, i in enumerate(ids)}
    assert Path(metadata.json_file) == datasets_root() / f"coco/annotations/ovd_ins_{year}_{split}.json"
    assert Path(metadata.image_root) == datasets_root() / f"coco/{year}"
    assert metadata.evaluator_type == "coco"
    groups = {
        "novel": [COCO_NAMES[i] for i in ids if i in NOVEL_IDS],
        "base": [COCO_NAMES[i] for i in ids if i not in NOVEL_IDS],
    }
    assert metadata.class_groups == {group: names for group, names in groups.items() if names}


# Classes of the annotations by image id: base, novel, unused, none, and one of each kind.
IMAGES = {"train2017": {1: [1], 2: [17], 3: [10], 4: [], 5: [90, 87, 13]}, "val2017": {7: [5, 10], 9: [2, 2]}}


def stock_annotations(images):
    """Return the content of a stock COCO file with one annotation per entry of `images`."""
    pairs = [(image, category) for image, categories in images.items() for category in categories]
    return {
        "info": {"year": 2017},
        "licenses": [{"id": 1}],
        "images": [{"id": i, "file_name": f"{i:012}.jpg", "height": 60, "width": 80} for i in images],
        "annotations": [
            {
                "id": 100 + position,
                "image_id": image,
                "category_id": category,
                "bbox": [position, 2, 10, 20],
                "area": 200,
                "iscrowd": position % 2,
                "segmentation": [[position, 2, position + 10, 2, position + 10, 22, position, 22]],
            }
            for position, (image, category) in enumerate(pairs)
        ],
        "categories": [{"id": i, "name": name, "supercategory": "x"} for i, name in sorted(COCO_NAMES.items())],
    }


@pytest.fixture
def coco_root(tmp_path):
    """Make a COCO folder with tiny stock annotation files."""
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    for year, images in IMAGES.items():
        (root / f"annotations/instances_{year}.json").write_text(json.dumps(stock_annotations(images)))
    return root


STOCK_FILES = ["instances_train2017.json", "instances_val2017.json"]


def test_six_files_are_written(coco_root):
    written = prepare_coco_ovd(coco_root)
    names = [f"ovd_ins_{year}_{split}.json" for year in IMAGES for split in SPLIT_IDS]
    assert sorted(written) == sorted(coco_root / "annotations" / name for name in names)
    assert file_names(coco_root / "annotations") == sorted(STOCK_FILES + names)


@pytest.mark.parametrize("year", IMAGES)
@pytest.mark.parametrize(("split", "ids"), SPLIT_IDS.items())
def test_what_belongs_to_the_split_is_kept(coco_root, year, split, ids):
    prepare_coco_ovd(str(coco_root))
    content = json.loads((coco_root / f"annotations/ovd_ins_{year}_{split}.json").read_text())
    stock = stock_annotations(IMAGES[year])
    annotated = [image for image, categories in IMAGES[year].items() if set(categories) & set(ids)]
    assert content["annotations"] == [a for a in stock["annotations"] if a["category_id"] in ids]
    assert content["images"] == [image for image in stock["images"] if image["id"] in annotated]
    assert content["categories"] == [
        {"id": i, "name": COCO_NAMES[i], "supercategory": "x", "split": "unseen" if i in NOVEL_IDS else "seen"}
        for i in ids
    ]
    assert content["info"] == stock["info"]
    assert content["licenses"] == stock["licenses"]


def test_second_run_changes_nothing(coco_root):
    first = {path: path.read_bytes() for path in prepare_coco_ovd(coco_root)}
    assert {path: path.read_bytes() for path in prepare_coco_ovd(coco_root)} == first
    for year, images in IMAGES.items():
        stock = json.loads((coco_root / f"annotations/instances_{year}.json").read_text())
        assert stock == stock_annotations(images)


@pytest.mark.parametrize("year", IMAGES)
def test_missing_coco_file_is_refused(coco_root, year):
    (coco_root / f"annotations/instances_{year}.json").unlink()
    with pytest.raises(UserError, match=f"instances_{year}.json"):
        prepare_coco_ovd(coco_root)
    assert file_names(coco_root / "annotations") == [name for name in STOCK_FILES if year not in name]


def test_missing_coco_folder_is_refused_and_not_made(tmp_path):
    with pytest.raises(UserError):
        prepare_coco_ovd(tmp_path / "coco")
    assert file_names(tmp_path) == []


@pytest.mark.parametrize("year", IMAGES)
@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[1, 2]",
        lambda text: "null",
        lambda text: json.dumps({**json.loads(text), "images": []}),
        lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != "annotations"}),
        lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != "categories"}),
        lambda text: json.dumps({**json.loads(text), "categories": json.loads(text)["categories"][1:]}),
        lambda text: text.replace('"person"', '"cat"'),
        lambda text: text.replace('"category_id"', '"category"'),
    ],
    ids=[
        "empty",
        "truncated",
        "a list",
        "null",
        "no images",
        "no annotations",
        "no categories",
        "person missing",
        "person renamed",
        "annotations without class",
    ],
)
def test_coco_file_of_another_kind_is_refused(coco_root, year, damage):
    path = coco_root / f"annotations/instances_{year}.json"
    path.write_text(damage(path.read_text()))
    with pytest.raises(UserError, match=f"instances_{year}.json"):
        prepare_coco_ovd(coco_root)
    assert file_names(coco_root / "annotations") == STOCK_FILES


def test_prepared_files_load_under_their_names(coco_root, tmp_path, monkeypatch):
    if datasets_root() != Path("datasets"):
        pytest.skip("DETECTRON2_DATASETS points to real datasets")
    (tmp_path / "datasets").mkdir()
    coco_root.rename(tmp_path / "datasets/coco")
    prepare_coco_ovd(tmp_path / "datasets/coco")
    monkeypatch.chdir(tmp_path)
    records = DatasetCatalog.get("coco_2017_ovd_all_train")
    classes = {record["image_id"]: [a["category_id"] for a in record["annotations"]] for record in records}
    assert classes == {1: [0], 2: [11], 5: [64, 63]}
    novel = DatasetCatalog.get("coco_2017_ovd_t_test")
    assert [record["image_id"] for record in novel] == [7]
    assert Path(novel[0]["file_name"]) == Path("datasets/coco/val2017/000000000007.jpg")


def test_stock_file_under_a_prepared_name_is_refused(coco_root, tmp_path, monkeypatch):
    if datasets_root() != Path("datasets"):
        pytest.skip("DETECTRON2_DATASETS points to real datasets")
    (tmp_path / "datasets").mkdir()
    coco_root.rename(tmp_path / "datasets/coco")
    annotations = tmp_path / "datasets/coco/annotations"
    (annotations / "instances_val2017.json").rename(annotations / "ovd_ins_val2017_all.json")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="ovd_ins_val2017_all"):
        DatasetCatalog.get("coco_2017_ovd_all_test")


# Frequencies by category id: 2, 3 and 5 are base classes.
FREQUENCIES = {1: "r", 2: "c", 3: "f", 4: "r", 5: "f"}


def lvis_annotation(number, image, category):
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": [10.5, 20, 30, 40],
        "area": 1200,
        "segmentation": [[10.5, 20, 40.5, 20, 40.5, 60, 10.5, 60]],
    }


@pytest.fixture
def lvis_content():
    """Five classes and four images, neither in ascending order of their ids."""
    return {
        "categories": [
            {"id": i, "name": f"class_{i}", "synonyms": [f"class_{i}"], "frequency": FREQUENCIES[i]}
            for i in (5, 1, 4, 2, 3)
        ],
        "images": [
            {
                "id": i,
                "height": 100 + i,
                "width": 200 + i,
                "coco_url": f"http://images.cocodataset.org/{folder}/{i:012}.jpg",
                "neg_category_ids": [i // 10],
                "not_exhaustive_category_ids": [5],
            }
            for i, folder in ((30, "train2017"), (10, "val2017"), (20, "train2017"), (40, "train2017"))
        ],
        "annotations": [
            lvis_annotation(1, 30, 5),
            lvis_annotation(2, 10, 1),
            lvis_annotation(3, 10, 2),
            lvis_annotation(4, 20, 4),
            lvis_annotation(5, 30, 3),
            lvis_annotation(6, 30, 1),
        ],
    }


@pytest.fixture
def lvis_file(tmp_path, lvis_content):
    path = tmp_path / "lvis.json"
    path.write_text(json.dumps(lvis_content))
    return str(path)


def classes_by_image(records):
    return {record["image_id"]: [a["category_id"] for a in record["annotations"]] for record in records}


def test_all_classes_and_images_are_kept_by_ascending_id(lvis_file):
    records = load_lvis(lvis_file, "images")
    assert list(classes_by_image(records).items()) == [(10, [0, 1]), (20, [3]), (30, [4, 2, 0]), (40, [])]


def test_base_set_drops_rare_classes_and_empty_images(lvis_file):
    records = load_lvis(lvis_file, "images", base_only=True)
    # Base classes 2, 3, 5 are numbered 0, 1, 2; image 20 has rare objects only.
    assert list(classes_by_image(records).items()) == [(10, [0]), (30, [2, 1])]


def test_annotation_keeps_box_mask_and_frequency(lvis_file):
    (annotation, *_) = load_lvis(lvis_file, "images", base_only=True)[0]["annotations"]
    assert annotation == {
        "bbox": [10.5, 20, 30, 40],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": 0,
        "segmentation": [[10.5, 20, 40.5, 20, 40.5, 60, 10.5, 60]],
        "frequency": "c",
        "area": 1200,
    }


def test_frequency_is_that_of_the_class(lvis_file):
    frequencies = {
        record["image_id"]: [a["frequency"] for a in record["annotations"]] for record in load_lvis(lvis_file, "images")
    }
    assert frequencies == {10: ["r", "c"], 20: ["r"], 30: ["f", "f", "r"], 40: []}


def test_class_lists_of_an_image_stay_with_the_full_numbering_only(lvis_file):
    full, base = load_lvis(lvis_file, "images"), load_lvis(lvis_file, "images", base_only=True)
    assert [record["neg_category_ids"] for record in full] == [[1], [2], [3], [4]]
    assert [record["not_exhaustive_category_ids"] for record in full] == [[5]] * 4
    assert not {"neg_category_ids", "not_exhaustive_category_ids"} & {key for record in base for key in record}


def test_file_name_comes_from_the_address(lvis_file):
    records = load_lvis(lvis_file, "images")
    assert [Path(record["file_name"]) for record in records] == [
        Path("images/val2017/000000000010.jpg"),
        Path("images/train2017/000000000020.jpg"),
        Path("images/train2017/000000000030.jpg"),
        Path("images/train2017/000000000040.jpg"),
    ]
    assert (records[0]["height"], records[0]["width"]) == (110, 210)


def test_lvis_file_without_annotations_lists_its_images(tmp_path, lvis_content):
    del lvis_content["annotations"]
    (tmp_path / "info.json").write_text(json.dumps(lvis_content))
    assert classes_by_image(load_lvis(str(tmp_path / "info.json"), "images")) == {10: [], 20: [], 30: [], 40: []}


@pytest.mark.parametrize("content", [None, "", '{"images": [', "[]", '{"images": []}', '{"images": [{"id": 1}]}'])
def test_lvis_file_of_another_kind_is_refused(tmp_path, content):
    path = tmp_path / "lvis.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match="lvis"):
        load_lvis(str(path), "images")


def test_upstream_filter_sorts_by_count_and_cuts_at_500():
    counts = [("a", 1), ("b", 0), ("c", 3), ("d", 600), ("e", 3), ("f", 500)]
    records = [{"image_id": i, "annotations": list(range(count))} for i, count in counts]
    before = copy.deepcopy(records)
    filtered = drop_empty_images_as_upstream(records)
    # Images with equally many annotations keep their order.
    assert [(r["image_id"], len(r["annotations"])) for r in filtered] == [
        ("d", 500),
        ("f", 500),
        ("c", 3),
        ("e", 3),
        ("a", 1),
    ]
    assert filtered[0]["annotations"] == list(range(500))
    assert records == before


@pytest.mark.parametrize("ending", ["", "_fullysup", "_custom_img"])
@pytest.mark.parametrize("split", LVIS_SPLITS)
def test_lvis_names_are_registered_with_their_classes(split, ending):
    name = f"lvis_v1_{split}{ending}"
    assert name in DatasetCatalog.list()
    by_id = sorted(LVIS_CATEGORIES, key=lambda category: category["id"])
    base_only = name == "lvis_v1_train"
    names = [c["synonyms"][0] for c in by_id if not base_only or c["frequency"] in ("c", "f")]
    assert len(names) == (866 if base_only else 1203)
    metadata = MetadataCatalog.get(name)
    assert metadata.thing_classes == names
    assert metadata.evaluator_type == ("custom_img" if ending == "_custom_img" else "lvis")


@pytest.mark.parametrize("ending", ["", "_fullysup"])
@pytest.mark.parametrize("split", LVIS_SPLITS)
def test_lvis_names_read_the_published_files(split, ending):
    metadata = MetadataCatalog.get(f"lvis_v1_{split}{ending}")
    kind = "image_info_" if split.startswith("test") else ""
    assert Path(metadata.json_file) == datasets_root() / f"lvis/lvis_v1_{kind}{split}.json"
    assert Path(metadata.image_root) == datasets_root() / "coco"


def test_only_the_plain_training_set_is_filtered(lvis_content, tmp_path, monkeypatch):
    if datasets_root() != Path("datasets"):
        pytest.skip("DETECTRON2_DATASETS points to real datasets")
    (tmp_path / "datasets/lvis").mkdir(parents=True)
    for split in ("train", "val"):
        (tmp_path / f"datasets/lvis/lvis_v1_{split}.json").write_text(json.dumps(lvis_content))
    monkeypatch.chdir(tmp_path)
    assert set(classes_by_image(DatasetCatalog.get("lvis_v1_train"))) == {10, 30}
    for name in ("lvis_v1_train_fullysup", "lvis_v1_val", "lvis_v1_val_fullysup"):
        assert set(classes_by_image(DatasetCatalog.get(name))) == {10, 20, 30, 40}


def save_image(path, height=6, width=8):
    Image.new("RGB", (width, height), (10, 20, 30)).save(path)
    return path


@pytest.fixture
def image_folder(tmp_path):
    """Make a folder of images, other files, and a sub-folder."""
    folder = tmp_path / "images"
    (folder / "sub.jpg").mkdir(parents=True)
    for name in ("b.png", "a.JPG", "c.webp", "10.jpeg", "9.Bmp"):
        save_image(folder / name)
    save_image(folder / "sub.jpg/inner.png")
    (folder / "notes.txt").write_text("no image")
    (folder / "jpg").write_text("no ending")
    return folder


def test_images_are_listed_by_name(image_folder):
    assert [path.name for path in list_images(image_folder)] == ["10.jpeg", "9.Bmp", "a.JPG", "b.png", "c.webp"]


def test_records_hold_upright_size_and_position(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 6)).save(tmp_path / "turned.jpg", exif=exif)
    save_image(tmp_path / "plain.png", height=3, width=5)
    assert load_custom_images(tmp_path) == [
        {"file_name": str(tmp_path / "plain.png"), "image_id": 0, "height": 3, "width": 5},
        {"file_name": str(tmp_path / "turned.jpg"), "image_id": 1, "height": 8, "width": 6},
    ]


def test_unreadable_image_is_listed_without_size(image_folder):
    (image_folder / "aa.png").touch()
    sizes = [(record["height"], record["width"]) for record in load_custom_images(str(image_folder))]
    assert sizes == [(6, 8), (6, 8), (6, 8), (0, 0), (6, 8), (6, 8)]


def test_folder_without_images_is_refused(tmp_path):
    (tmp_path / "notes.txt").touch()
    (tmp_path / "sub").mkdir()
    save_image(tmp_path / "sub/a.png")
    with pytest.raises(UserError, match="INPUT_DIR"):
        list_images(tmp_path)


def test_missing_image_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        list_images(tmp_path / "missing")
    with pytest.raises(UserError, match="INPUT_DIR"):
        list_images(save_image(tmp_path / "file.png"))


def test_all_four_names_follow_the_folder(image_folder, tmp_path):
    (tmp_path / "other").mkdir()
    other = save_image(tmp_path / "other/z.png")
    try:
        for folder, first in ((image_folder, image_folder / "10.jpeg"), (tmp_path / "other", other)):
            use_custom_image_folder(folder)
            for split in LVIS_SPLITS:
                assert DatasetCatalog.get(f"lvis_v1_{split}_custom_img")[0]["file_name"] == str(first)
    finally:
        use_custom_image_folder(DEFAULT_FOLDER)


@pytest.fixture
def record(tmp_path):
    """Dataset record of an image of 50 x 100 pixels with two objects and a crowd."""
    pixels = np.random.default_rng(0).integers(0, 256, (50, 100, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    annotation = {"bbox_mode": BoxMode.XYWH_ABS, "segmentation": [[1, 1, 9, 1, 9, 9]], "iscrowd": 0}
    return {
        "file_name": str(tmp_path / "a.png"),
        "image_id": 7,
        "height": 50,
        "width": 100,
        "annotations": [
            {**annotation, "bbox": [10, 20, 30, 10], "category_id": 3},
            {**annotation, "bbox": [0, 0, 99, 49], "category_id": 4, "iscrowd": 1},
            {**annotation, "bbox": [50, 5, 50, 40], "category_id": 5},
        ],
    }


# The shortest side becomes 40, unless the longest would then exceed 60; halves are rounded up.
@pytest.mark.parametrize(
    ("height", "width", "new_height", "new_width"),
    [
        (50, 60, 40, 48),
        (50, 100, 30, 60),
        (100, 50, 60, 30),
        (10, 13, 40, 52),
        (40, 40, 40, 40),
        (3, 7, 26, 60),
        (32, 33, 40, 41),
        (1, 1, 40, 40),
    ],
)
def test_sides_are_resized_as_by_detectron2(tmp_path, height, width, new_height, new_width):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    mapper = TestMapper(40, 60, "BGR", keep_annotations=False)
    result = mapper({"file_name": str(tmp_path / "a.png"), "image_id": 1, "height": 0, "width": 0})
    resized = Image.fromarray(pixels).resize((new_width, new_height), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(result["image"].numpy(), np.array(resized)[:, :, ::-1].transpose(2, 0, 1))
    assert (result["height"], result["width"]) == (height, width)


def test_published_sides_fit_a_very_wide_image(tmp_path):
    save_image(tmp_path / "a.png", height=20, width=20000)
    result = TestMapper(800, 1333, "RGB", keep_annotations=False)({"file_name": str(tmp_path / "a.png")})
    # 20 * 1333 / 20000 = 1.333
    assert result["image"].shape == (3, 1, 1333)
    assert (result["height"], result["width"]) == (20, 20000)


@pytest.mark.parametrize(("height", "width", "shape"), [(1, 3000, (3, 1, 1333)), (3000, 1, (3, 1333, 1))])
def test_thinnest_image_keeps_one_pixel(tmp_path, height, width, shape):
    save_image(tmp_path / "a.png", height=height, width=width)
    result = TestMapper(800, 1333, "RGB", keep_annotations=False)({"file_name": str(tmp_path / "a.png")})
    assert result["image"].shape == shape


def test_shortest_side_of_zero_leaves_the_size_alone(tmp_path):
    save_image(tmp_path / "a.png", height=70, width=90)
    result = TestMapper(0, 60, "RGB", keep_annotations=False)({"file_name": str(tmp_path / "a.png")})
    assert result["image"].shape == (3, 70, 90)


def test_channels_are_in_the_order_asked_for(tmp_path):
    save_image(tmp_path / "a.png", height=4, width=4)
    for channels, expected in (("RGB", [10, 20, 30]), ("BGR", [30, 20, 10])):
        result = TestMapper(4, 4, channels, keep_annotations=False)({"file_name": str(tmp_path / "a.png")})
        assert result["image"][:, 0, 0].tolist() == expected


def test_turned_image_has_its_upright_size(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.new("RGB", (60, 30)).save(tmp_path / "a.jpg", exif=exif)
    record = {"file_name": str(tmp_path / "a.jpg"), "height": 30, "width": 60}
    result = TestMapper(15, 100, "BGR", keep_annotations=False)(record)
    assert (result["height"], result["width"]) == (60, 30)
    assert result["image"].shape == (3, 30, 15)


def test_boxes_follow_the_resized_image(record):
    instances = TestMapper(40, 60, "BGR", keep_annotations=True)(record)["instances"]
    assert instances.image_size == (30, 60)
    # Corners (10, 20, 40, 30) and (50, 5, 100, 45), times 0.6; the crowd is left out.
    np.testing.assert_allclose(instances.gt_boxes.tensor, [[6, 12, 24, 18], [30, 3, 60, 27]], atol=1e-5)
    assert instances.gt_classes.tolist() == [3, 5]


def test_boxes_without_area_are_dropped(record):
    record["annotations"][0]["bbox"] = [10, 20, 0, 10]
    instances = TestMapper(40, 60, "BGR", keep_annotations=True)(record)["instances"]
    assert instances.gt_classes.tolist() == [5]


def test_image_with_crowds_alone_has_no_boxes(record):
    record["annotations"] = record["annotations"][1:2]
    instances = TestMapper(40, 60, "BGR", keep_annotations=True)(record)["instances"]
    assert len(instances) == 0
    assert instances.gt_boxes.tensor.shape == (0, 4)


def test_annotations_are_kept_only_when_asked_for(record):
    result = TestMapper(40, 60, "BGR", keep_annotations=False)(record)
    assert set(result) == {"file_name", "image_id", "height", "width", "image"}
    del record["annotations"]
    assert "instances" not in TestMapper(40, 60, "BGR", keep_annotations=True)(record)


def test_unreadable_image_is_passed_on_with_its_error(record):
    Path(record["file_name"]).write_text("no image")
    result = TestMapper(40, 60, "BGR", keep_annotations=True)(record)
    assert set(result) == {"file_name", "image_id", "height", "width", "error"}
    assert record["file_name"] in result["error"]


@pytest.mark.parametrize("readable", [True, False])
def test_record_is_not_modified(record, readable):
    if not readable:
        Path(record["file_name"]).unlink()
    before = copy.deepcopy(record)
    TestMapper(40, 60, "BGR", keep_annotations=True)(record)
    assert record == before


@pytest.fixture
def lvis_images(tmp_path, lvis_content, lvis_file):
    """Register the tiny LVIS file with its images under a name."""
    for image in lvis_content["images"]:
        path = tmp_path.joinpath(*image["coco_url"].split("/")[-2:])
        path.parent.mkdir(exist_ok=True)
        save_image(path, height=100, width=200)
        image |= {"height": 100, "width": 200}
    Path(lvis_file).write_text(json.dumps(lvis_content))
    name = "lvis_tests_tiny"
    DatasetCatalog.register(name, lambda: load_lvis(lvis_file, str(tmp_path)))
    yield name
    DatasetCatalog.remove(name)


@pytest.fixture
def loader_cfg():
    cfg = get_cfg()
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 50, 80
    return cfg


def test_images_without_annotations_are_tested(lvis_images, loader_cfg):
    batches = list(build_test_loader(loader_cfg, read_test_records(loader_cfg, lvis_images)))
    assert [[item["image_id"] for item in batch] for batch in batches] == [[10], [20], [30], [40]]
    assert {tuple(batch[0]["image"].shape) for batch in batches} == {(3, 40, 80)}


def test_upstream_filter_is_applied_by_key(lvis_images, loader_cfg):
    loader_cfg.DATASETS.LVIS_DROP_EMPTY_IMAGES = True
    # Three, two and one annotations.
    assert [
        batch[0]["image_id"] for batch in build_test_loader(loader_cfg, read_test_records(loader_cfg, lvis_images))
    ] == [30, 10, 20]


@pytest.mark.parametrize("region_type", ["GT", "RPN"])
def test_boxes_come_along_when_they_are_the_proposals(lvis_images, loader_cfg, region_type):
    loader_cfg.MODEL.CLIP.CROP_REGION_TYPE = region_type
    items = [batch[0] for batch in build_test_loader(loader_cfg, read_test_records(loader_cfg, lvis_images))]
    assert ["instances" in item for item in items] == [region_type == "GT"] * 4
