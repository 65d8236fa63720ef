"""Adapters to other tools: transformers' pipeline, CVAT, autodistill, FiftyOne."""

import sys
from importlib import import_module
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from regionclip import RegionCLIP
from regionclip.errors import UserError
from regionclip.integrations import cvat
from regionclip.integrations.transformers import pipeline
from tests.helpers.paths import DATA

PHOTOS = sorted((DATA / "four_photos" / "images").iterdir())
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


def test_autodistill_labels_a_folder_in_the_order_of_its_ontology(detector, tmp_path):
    detection = pytest.importorskip("autodistill.detection")
    from regionclip.integrations.autodistill import RegionCLIPBaseModel

    ontology = detection.CaptionOntology({"traffic cone | pylon": "cone", "cat": "pet"})
    base_model = RegionCLIPBaseModel(ontology, detector, threshold=0.3)
    assert isinstance(base_model, detection.DetectionBaseModel)
    found = base_model.predict(str(PHOTOS[0]))
    detector.set_image(PHOTOS[0])
    expected = detector.predict(threshold=0.3)
    np.testing.assert_array_equal(found.xyxy, expected.boxes)
    np.testing.assert_array_equal(found.class_id, expected.class_ids)
    # An array is in BGR there, as OpenCV reads it.
    array = np.asarray(Image.open(PHOTOS[0]).convert("RGB"))[:, :, ::-1]
    np.testing.assert_array_equal(base_model.predict(array).xyxy, expected.boxes)
    for number, photo in enumerate(PHOTOS[:4]):
        Image.open(photo).save(tmp_path / f"{number}.jpg")
    dataset = base_model.label(str(tmp_path), ".jpg", str(tmp_path / "labeled"))
    assert dataset.classes == ["cone", "pet"] and len(dataset) == 4
    assert list((tmp_path / "labeled").rglob("*.txt"))


class Labels(SimpleNamespace):
    """A stand-in for the labels of FiftyOne, whose library brings a database."""


@pytest.fixture
def fiftyone(monkeypatch):
    """Return the adapter, on FiftyOne where it is installed, else on its protocol."""
    if find_spec("fiftyone") is None:
        labels = SimpleNamespace(Detection=Labels, Detections=Labels)
        modules = {"": SimpleNamespace(), ".core": SimpleNamespace(), ".core.labels": labels}
        for name, module in (modules | {".core.models": SimpleNamespace(Model=object)}).items():
            monkeypatch.setitem(sys.modules, f"fiftyone{name}", module)
    yield import_module("regionclip.integrations.fiftyone")
    sys.modules.pop("regionclip.integrations.fiftyone")


def test_fiftyone_gets_boxes_as_fractions(fiftyone, detector):
    detector.set_vocabulary(NAMES)
    model = fiftyone.DetectorModel(detector, threshold=0.3)
    pixels = np.asarray(Image.open(PHOTOS[0]).convert("RGB"))
    found = model.predict(pixels).detections
    detector.set_image(pixels)
    expected = detector.predict(threshold=0.3)
    height, width = pixels.shape[:2]
    assert len(found) == len(expected) > 0
    for entry, name, score, box in zip(found, expected.names, expected.scores, expected.boxes, strict=True):
        assert entry.label == name and entry.confidence == pytest.approx(score)
        x, y, w, h = entry.bounding_box
        assert [x * width, y * height, (x + w) * width, (y + h) * height] == pytest.approx(box.tolist(), abs=1e-3)
    assert (model.media_type, model.ragged_batches, model.transforms) == ("image", True, None)


@pytest.mark.parametrize(("name", "library"), [("fiftyone", "FiftyOne"), ("autodistill", "autodistill")])
def test_a_missing_library_is_one_error(monkeypatch, name, library):
    monkeypatch.delitem(sys.modules, f"regionclip.integrations.{name}", raising=False)
    for module in [name, *(loaded for loaded in sys.modules if loaded.startswith(f"{name}."))]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=f"{library}: expected the library {name}, got .*pip install {name}"):
        import_module(f"regionclip.integrations.{name}")
