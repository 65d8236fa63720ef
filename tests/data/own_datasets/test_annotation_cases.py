"""Each case of an annotation file through `--data`: the same images and objects as where it is registered directly."""

from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from regionclip.data.datasets.registered import read_clean_records
from regionclip.data.own_datasets.dataset import ALL
from regionclip.data.own_datasets.prepared import OWN_TEST, prepare_evaluation, register_folder
from regionclip.data.own_datasets.reading import read_own_dataset
from regionclip.errors import UserError
from tests.helpers.annotation_cases import CASES, write_images

DIRECT = "own_annotation_case"

IN_OTHER_WORDS = {"annotations null", "annotations empty", "images empty", "a list"}
"""Cases that are refused because nothing is in them; a list is what Label Studio exports."""


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    write_images(folder)
    return folder


@pytest.fixture
def direct(images, tmp_path):
    """Register a file as the recipe of docs/training.md does, and return its records."""

    def read(file):
        register_coco_instances(DIRECT, {}, str(file), str(images))
        return read_clean_records(DIRECT)

    yield read
    for catalog in (DatasetCatalog, MetadataCatalog):
        catalog.pop(DIRECT, None)


def content_of(records):
    kept = ("category_id", "bbox", "bbox_mode", "iscrowd")
    return [
        (
            Path(record["file_name"]).resolve(),
            *(record[key] for key in ("image_id", "height", "width")),
            [tuple(annotation[key] for key in kept) for annotation in record["annotations"]],
        )
        for record in records
    ]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_prepared_dataset_is_the_dataset(case, images, direct, tmp_path):
    case.write(tmp_path / "case.json", images)
    if case.refused or case.name in IN_OTHER_WORDS:
        with pytest.raises(UserError) as error:
            read_own_dataset(tmp_path / "case.json", images)
        assert case.said in str(error.value) or case.name in IN_OTHER_WORDS
        return
    prepare_evaluation(read_own_dataset(tmp_path / "case.json", images), [], ALL).write(tmp_path / "data")
    register_folder(tmp_path / "data")
    assert content_of(read_clean_records(OWN_TEST)) == content_of(direct(tmp_path / "case.json"))
    assert MetadataCatalog.get(OWN_TEST).thing_classes == MetadataCatalog.get(DIRECT).thing_classes
