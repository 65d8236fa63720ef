"""Adapters to other tools: the shape of transformers' pipeline, and CVAT's automatic annotation."""

from types import SimpleNamespace

import pytest
from PIL import Image

from regionclip import RegionCLIP
from regionclip.errors import UserError
from regionclip.integrations import cvat
from regionclip.integrations.transformers import pipeline
from tests.helpers.paths import DATA

PHOTOS = sorted((DATA / "four_photos" / "pictures").iterdir())
NAMES = ["cat", "traffic cone"]


@pytest.fixture
def detector(detector_folder):
    return RegionCLIP.from_pretrained(detector_folder, device="cpu")


def test_a_pipeline_returns_scores_labels_and_boxes(detector_folder, detector):
    detect = pipeline(model=str(detector_folder), device="cpu")
    found = detect(str(PHOTOS[0]), candidate_labels=NAMES, threshold=0.0, top_k=5)
    detector.set_image(PHOTOS[0])
    detector.set_vocabulary(NAMES)
    expected = detector.predict(threshold=0.0, topk=5)
    assert [entry["label"] for entry in found] == expected.names and len(found) == 5
    for entry, box, score in zip(found, expected.boxes.tolist(), expected.scores.tolist(), strict=True):
        assert entry["score"] == pytest.approx(score)
        assert list(entry["box"].values()) == [round(edge) for edge in box]
        assert list(entry["box"]) == ["xmin", "ymin", "xmax", "ymax"]


def test_a_pipeline_takes_lists_and_mappings(detector):
    detect = pipeline(model=detector)
    alone = detect(Image.open(PHOTOS[0]), "cat, traffic cone", threshold=0.0)
    mapped = {"image": str(PHOTOS[0]), "candidate_labels": NAMES}
    assert detect([mapped, mapped], threshold=0.0) == [alone, alone]
    with pytest.raises(UserError, match="candidate_labels: expected class names, got none"):
        detect(str(PHOTOS[0]))
    with pytest.raises(UserError, match="task: expected zero-shot-object-detection"):
        pipeline("image-classification", model=detector)


def test_cvat_gets_labels_and_rectangles(detector_folder, detector):
    pytest.importorskip("cvat_sdk")
    function = cvat.create("cat, traffic cone", str(detector_folder))
    assert [(label.name, label.id) for label in function.spec.labels] == [("cat", 0), ("traffic cone", 1)]
    image = Image.open(PHOTOS[0])
    shapes = function.detect(SimpleNamespace(frame_name="photo", conf_threshold=0.3), image)
    detector.set_image(PHOTOS[0])
    detector.set_vocabulary(NAMES)
    expected = detector.predict(threshold=0.3)
    assert len(shapes) == len(expected) > 0
    for shape, box, number in zip(shapes, expected.boxes.tolist(), expected.class_ids.tolist(), strict=True):
        assert shape.label_id == number and shape.type.value == "rectangle"
        assert shape.points == pytest.approx(box, abs=1e-3)


def test_cvat_without_its_library_is_one_error(detector, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cvat_sdk", None)
    with pytest.raises(UserError, match="CVAT: expected the library cvat-sdk, got not installed"):
        cvat.DetectionFunction(detector)
