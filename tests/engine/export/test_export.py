"""Exported detectors find what the detector finds, in other runtimes."""

import json
import re
import runpy

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from regionclip.config.loading import load_config
from regionclip.engine.export.files import export_detector
from regionclip.errors import UserError
from regionclip.hub.pretrained import Pretrained
from regionclip.modeling.build import build_model
from regionclip.testing.deterministic import deterministic_text_embeddings, fill_deterministic
from tests.helpers.detectors import LVIS_CUSTOM, OLN_YAML, TINY, flat
from tests.helpers.paths import DATA, REPOSITORY

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

CLASSES = 40
SPREAD = {"MODEL.CLIP.CLSS_TEMP": "0.2", "MODEL.ROI_HEADS.SCORE_THRESH_TEST": "0.02"}
VARIANTS = {
    "published fusion": {"MODEL.CLIP.MULTIPLY_RPN_SCORE": "True", "MODEL.CLIP.VIS": "False"},
    "sigmoid, boxes moved": {
        "MODEL.CLIP.MULTIPLY_RPN_SCORE": "True",
        "MODEL.CLIP.RPN_SCORE_FUSION": "sigmoid",
        "MODEL.CLIP.NO_BOX_DELTA": "False",
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": "True",
    },
    "probabilities reported": {"MODEL.CLIP.MULTIPLY_RPN_SCORE": "True", "MODEL.CLIP.VIS": "True"},
}

TINY_PYRAMID = """
_BASE_: {configs}/LVISv1-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml
MODEL:
  WEIGHTS: ""
  RESNETS:
    STEM_OUT_CHANNELS: 8
    WIDTH_PER_GROUP: 8
    RES2_OUT_CHANNELS: 32
  FPN:
    OUT_CHANNELS: 16
"""


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory):
    path = tmp_path_factory.mktemp("words") / "words.pth"
    rows = deterministic_text_embeddings("words", CLASSES, 32)
    torch.save(rows, path)
    return path, rows


def export(found, *arguments):
    return export_detector(found.model, found.cfg, *arguments)


def detector(embeddings, **overrides):
    options = TINY | SPREAD | {"MODEL.MASK_ON": "False", "MODEL.ROI_HEADS.NUM_CLASSES": str(CLASSES)}
    options |= {"MODEL.CLIP.TEXT_EMB_PATH": str(embeddings[0]), **overrides}
    cfg = load_config(LVIS_CUSTOM, flat(options))
    model = build_model(cfg).eval()
    fill_deterministic(model, skip=["cls_score.weight", "cls_bg_score.weight"])
    return Pretrained(model, cfg, lambda: None)


def random_images(count):
    """Yield images of any size, with structure at all scales."""
    for seed in range(count):
        numbers = np.random.default_rng(seed)
        height, width = numbers.integers(65, 200, 2)
        coarse = torch.from_numpy(numbers.uniform(0, 255, (1, 3, 6, 7))).float()
        image = torch.nn.functional.interpolate(coarse, (int(height), int(width)), mode="bicubic")[0]
        yield (image + torch.from_numpy(numbers.normal(0, 20, image.shape)).float()).clamp(0, 255).round()


def eager(model, image):
    with torch.no_grad():
        (found,) = model.inference([{"image": image.to(torch.uint8)}], do_postprocess=False)
    return found.pred_boxes.tensor.numpy(), found.scores.numpy(), found.pred_classes.numpy()


def with_onnxruntime(folder):
    parts = {
        path.stem: onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        for path in folder.glob("*.onnx")
    }

    def detect(image, embeddings):
        pixels = {"image": image.numpy()}
        (features,) = parts["backbone"].run(None, pixels)
        boxes, objectness = parts["rpn"].run(None, pixels)
        size = np.array(image.shape[1:], np.float32)
        inputs = {"features": features, "proposals": boxes, "objectness": objectness}
        return parts["head"].run(None, inputs | {"class_embeddings": embeddings.numpy(), "image_size": size})

    return detect


def with_torch(folder):
    parts = {path.stem: torch.export.load(path).module() for path in folder.glob("*.pt2")}

    def detect(image, embeddings):
        with torch.no_grad():
            features = parts["backbone"](image=image)
            boxes, objectness = parts["rpn"](image=image)
            size = torch.tensor(image.shape[1:]).float()
            regions = {"features": features, "proposals": boxes, "objectness": objectness}
            return [part.numpy() for part in parts["head"](**regions, class_embeddings=embeddings, image_size=size)]

    return detect


def assert_same_detections(found, expected, *, box=0.01, score=1e-4):
    """Each detection has a twin; those whose scores are too close to call may come in another order."""
    assert len(found[1]) == len(expected[1])
    np.testing.assert_allclose(found[1], expected[1], atol=score, rtol=0)
    assert (np.diff(found[1]) <= 0).all()
    left = list(range(len(found[1])))
    for boxes, value, category in zip(*expected, strict=True):
        close = [i for i in left if found[2][i] == category and abs(found[1][i] - value) < score]
        twins = [i for i in close if np.abs(found[0][i] - boxes).max() < box]
        assert twins, (boxes, value, category)
        left.remove(twins[0])


def assert_same_on_random_images(detect, model, embeddings, count):
    seen = 0
    for image in random_images(count):
        expected = eager(model, image)
        assert_same_detections(detect(image, embeddings[1]), expected)
        seen += len(expected[1])
    assert seen > 5 * count


@pytest.fixture(scope="module")
def published(embeddings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx")
    paths = export(detector(embeddings, **VARIANTS["published fusion"]), folder)
    assert {path.name for path in paths} == {"backbone.onnx", "rpn.onnx", "head.onnx", "export.json"}
    return folder


def test_onnx_finds_what_the_detector_finds(published, embeddings):
    model = detector(embeddings, **VARIANTS["published fusion"]).model
    assert_same_on_random_images(with_onnxruntime(published), model, embeddings, 100)


@pytest.mark.slow
@pytest.mark.parametrize("variant", list(VARIANTS)[1:])
def test_onnx_follows_the_config(variant, embeddings, tmp_path):
    export(detector(embeddings, **VARIANTS[variant]), tmp_path)
    model = detector(embeddings, **VARIANTS[variant]).model
    assert_same_on_random_images(with_onnxruntime(tmp_path), model, embeddings, 6)


def test_the_example_of_the_documents_runs(published, embeddings, tmp_path, monkeypatch):
    (example,) = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "export.md").read_text(), re.S)
    Image.open(next((DATA / "four_photos" / "images").iterdir())).save(tmp_path / "photo.jpg")
    save_file({"embeddings": embeddings[1]}, tmp_path / "words.safetensors")
    (tmp_path / "exported").symlink_to(published)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "example.py").write_text(example)
    found = runpy.run_path(str(tmp_path / "example.py"))
    assert len(found["scores"]) == len(found["boxes"]) > 0


def test_words_are_chosen_at_run_time(published, embeddings):
    model = detector(embeddings, **VARIANTS["published fusion"]).model
    model.roi_heads.box_predictor.test_cls_score = torch.nn.Linear(32, 7, bias=False)
    model.roi_heads.box_predictor.test_cls_score.weight.data = embeddings[1][9:16]
    image = next(random_images(1))
    found = with_onnxruntime(published)(image, 3 * embeddings[1][9:16])
    assert_same_detections(found, eager(model, image))
    assert found[2].max() < 7


@pytest.mark.slow
def test_torch_programs_find_what_the_detector_finds(embeddings, tmp_path):
    model = detector(embeddings, **VARIANTS["published fusion"]).model
    paths = export(detector(embeddings, **VARIANTS["published fusion"]), tmp_path, "torch")
    assert {path.name for path in paths} == {"backbone.pt2", "rpn.pt2", "head.pt2", "export.json"}
    assert_same_on_random_images(with_torch(tmp_path), model, embeddings, 4)


def test_a_detector_that_is_given_boxes_has_no_rpn(embeddings, tmp_path):
    paths = export(detector(embeddings, **{"MODEL.CLIP.CROP_REGION_TYPE": "GT"}), tmp_path)
    assert {path.name for path in paths} == {"backbone.onnx", "head.onnx", "export.json"}
    about = json.loads((tmp_path / "export.json").read_text())
    assert about["parts"]["head"]["inputs"] == [
        "features", "proposals", "objectness", "class_embeddings", "image_size",
    ]  # fmt: skip
    assert about["channels"] == "RGB" and about["embedding_dim"] == 32


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("MODEL.ROI_HEADS.SOFT_NMS_ENABLED", "True", "SOFT_NMS_ENABLED: expected False"),
        ("MODEL.ROI_HEADS.NMS_ACROSS_CLASSES", "True", "NMS_ACROSS_CLASSES: expected False"),
        ("MODEL.CLIP.NO_BOX_DELTA", "False", "CLS_AGNOSTIC_BBOX_REG: expected True"),
    ],
)
def test_what_onnx_lacks_is_refused(key, value, message, embeddings, tmp_path):
    overrides = {key: value, "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": "False"}
    with pytest.raises(UserError, match=message):
        export(detector(embeddings, **overrides), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_proposals_that_are_no_rpns_are_refused(embeddings, tmp_path):
    text = (DATA / "tiny_rpn.yaml").read_text().replace("  RPN:", OLN_YAML)
    (tmp_path / "oln.yaml").write_text(text)
    options = {"MODEL.CLIP.OFFLINE_RPN_CONFIG": str(tmp_path / "oln.yaml"), "MODEL.CLIP.RPN_SCORE_FUSION": "sigmoid"}
    with pytest.raises(UserError, match="OFFLINE_RPN_CONFIG: expected an RPN, got OLN"):
        export(detector(embeddings, **options), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_pyramid_proposes_for_any_size(embeddings, tmp_path):
    (tmp_path / "pyramid.yaml").write_text(TINY_PYRAMID.format(configs=REPOSITORY / "configs"))
    options = VARIANTS["published fusion"] | {"MODEL.CLIP.OFFLINE_RPN_CONFIG": str(tmp_path / "pyramid.yaml")}
    export(detector(embeddings, **options), tmp_path)
    rpn = onnxruntime.InferenceSession(tmp_path / "rpn.onnx", providers=["CPUExecutionProvider"])
    model = detector(embeddings, **options).model
    for image in random_images(8):
        boxes, logits = rpn.run(None, {"image": image.numpy()})
        (expected,) = model.proposal_source.propose([{"image": image.to(torch.uint8)}], model.device)
        np.testing.assert_allclose(logits, expected.objectness_logits, atol=1e-3, rtol=0)
        apart = torch.cdist(torch.from_numpy(boxes), expected.proposal_boxes.tensor, p=torch.inf)
        # With these weights, rounding moves the detector's own boxes by 0.02 pixels from those in float64.
        assert apart.min(dim=0).values.max() < 0.05


def test_formats_have_names(embeddings, tmp_path):
    with pytest.raises(UserError, match="--format: expected onnx or torch, got 'caffe'"):
        export(detector(embeddings), tmp_path, "caffe")
