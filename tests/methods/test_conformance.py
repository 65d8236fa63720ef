"""What every method keeps: the contract of `modeling/detector.py`, and what its declaration promises."""

import importlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from regionclip.clip.vocabulary import Vocabulary
from regionclip.config.keys import all_keys
from regionclip.config.loading import load_config
from regionclip.config.reference import config_page
from regionclip.data.class_lists import parse_names
from regionclip.engine.checkpoint.loading import load_weights
from regionclip.errors import UserError
from regionclip.inference.classifier import BackgroundClassifier
from regionclip.method import METHODS, method_of, methods
from regionclip.modeling.build import build_model
from regionclip.modeling.detector import OpenVocabularyDetector, Selection, require_detector
from regionclip.testing.deterministic import deterministic_text_embeddings, fill_deterministic
from tests.helpers.detectors import flat
from tests.helpers.paths import REPOSITORY

HEIGHT, WIDTH = 96, 128


@pytest.fixture(params=[*(f"{name}.tiny" for name in METHODS), "ralf.added"])
def tiny_method(request, embedding_file, tmp_path):
    """Return a method's declaration, and what builds its tiny detector, also with the add-ons of another method."""
    case = importlib.import_module(f"tests.methods.{request.param}")

    def build(overrides=case.OVERRIDES):
        dim = int(overrides["MODEL.CLIP.TEXT_EMB_DIM"])
        embeddings = embedding_file("conformance", case.CLASSES, dim, parse_names(getattr(case, "NAMES", "")))
        files = case.files(tmp_path, embeddings) if hasattr(case, "files") else {}
        cfg = load_config(case.CONFIG, flat(overrides | files | {case.EMBEDDINGS: embeddings}))
        model = build_model(cfg)
        fill_deterministic(model, skip=["cls_score.weight", "cls_bg_score.weight"])
        return cfg, model

    owner = "regionclip" if request.param == "ralf.added" else request.param.split(".")[0]
    return next(method for method in methods() if method.name == owner), case, build


def image_input(seed=0, height=HEIGHT, width=WIDTH):
    pixels = np.random.default_rng(seed).integers(0, 255, (3, height, width), dtype=np.uint8)
    return {"image": torch.from_numpy(pixels), "height": height, "width": width}


def vocabulary(model, count, seed="names"):
    rows = deterministic_text_embeddings(seed, count, model.text_space.dim)
    known = model.known_names if seed == "names" else (model.known_names or ())[::-1]
    names = tuple(known[:count]) if known else tuple(f"{seed} {i}" for i in range(count))
    return Vocabulary(names, rows, torch.arange(count), model=model.text_space.clip)


def test_the_declaration_is_complete(tiny_method):
    method, _, build = tiny_method
    cfg, model = build()
    assert method_of(cfg) is method
    assert isinstance(model, OpenVocabularyDetector)
    assert method.paper.startswith("https://")
    assert (REPOSITORY / "docs" / "methods" / f"{method.name}.md").is_file()
    assert (REPOSITORY / "regionclip" / "methods" / method.name / "README.md").is_file()
    known = {key.name for key in all_keys()}
    assert {key.name for key in method.keys} <= known
    assert all(f"`{key.name}`" in config_page() for key in method.keys)


def test_detections_are_finite_and_inside_the_image(tiny_method):
    _, _, build = tiny_method
    _, model = build()
    with torch.no_grad():
        (result,) = model.eval()([image_input()])
    found = result["instances"]
    assert len(found)
    boxes = found.pred_boxes.tensor
    assert bool(torch.isfinite(boxes).all()) and bool(torch.isfinite(found.scores).all())
    assert float(boxes.min()) >= 0 and float(boxes[:, 2].max()) <= WIDTH and float(boxes[:, 3].max()) <= HEIGHT
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)


def test_losses_are_finite_and_reach_the_weights(tiny_method):
    _, case, build = tiny_method
    _, model = build(case.TRAINED)
    target = Instances((HEIGHT, WIDTH))
    target.gt_boxes, target.gt_classes = Boxes(torch.tensor([[8.0, 8, 90, 80]])), torch.tensor([1])
    with EventStorage():
        losses = model.train()([{**image_input(), "instances": target, "seed": 1}])
    assert losses and all(bool(torch.isfinite(loss)) for loss in losses.values()), losses
    sum(losses.values()).backward()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    assert any(weight.grad is not None and bool(weight.grad.abs().sum() > 0) for weight in trained)


def test_weights_survive_their_file(tiny_method, tmp_path):
    _, _, build = tiny_method
    _, model = build()
    torch.save({"model": model.state_dict()}, tmp_path / "weights.pth")
    _, other = build()
    configured = {key for key in other.state_dict() if key.endswith(("cls_score.weight", "cls_bg_score.weight"))}
    for key, value in other.state_dict().items():
        if key not in configured and value.is_floating_point():
            value.zero_()
    report = load_weights(other, str(tmp_path / "weights.pth"))
    assert not report.missing and not report.reshaped
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in model.state_dict().items())


def test_encoding_and_detecting_is_the_forward_pass(tiny_method):
    _, _, build = tiny_method
    _, model = build()
    item = image_input()
    with torch.no_grad():
        (result,) = model.eval()([item])
        (encoding,) = model.encode_images([item])
        found = model.detect(encoding, None, Selection())
    expected = result["instances"]
    expected = expected[expected.pred_boxes.nonempty()]
    assert torch.equal(expected.pred_classes, found.pred_classes)
    torch.testing.assert_close(expected.scores, found.scores)
    torch.testing.assert_close(expected.pred_boxes.tensor, found.pred_boxes.tensor)
    assert encoding.encoded_regions >= 0


def test_an_evaluation_suppresses_across_classes_when_asked(tiny_method):
    _, case, build = tiny_method
    _, model = build(case.OVERRIDES | {"MODEL.ROI_HEADS.NMS_ACROSS_CLASSES": "True"})
    item = image_input()
    with torch.no_grad():
        (result,) = model.eval()([item])
        (encoding,) = model.encode_images([item])
        expected = model.detect(encoding, None, Selection(per_class=False))
    found = result["instances"]
    found = found[found.pred_boxes.nonempty()]
    assert torch.equal(found.pred_classes, expected.pred_classes)
    torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor)


def test_a_batch_gives_what_its_images_give_alone(tiny_method):
    _, _, build = tiny_method
    _, model = build()
    model.eval()
    inputs = [image_input(1), image_input(2)]  # of one size: padding changes what is next to it
    inputs[1]["image"] = inputs[1]["image"] // 8  # dark
    boxes = Boxes(torch.tensor([[4.0, 4, 40, 44], [20, 10, 70, 60], [30, 30, 80, 84]]))
    with torch.no_grad():
        together = [model.embed_regions(encoding, boxes) for encoding in model.encode_images(inputs)]
        alone = [model.embed_regions(model.encode_images([item])[0], boxes) for item in inputs]
        found = [model.detect(encoding, None, Selection()) for encoding in model.encode_images(inputs)]
        expected = [model.detect(model.encode_images([item])[0], None, Selection()) for item in inputs]
    assert not torch.allclose(alone[0], alone[1], atol=0.01)
    for actual, wanted in zip(together, alone, strict=True):
        torch.testing.assert_close(actual, wanted, atol=1e-4, rtol=1e-3)
    for actual, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(actual.scores, wanted.scores, atol=1e-4, rtol=1e-3)


def test_the_optimized_form_agrees_with_the_plain_one(tiny_method):
    _, _, build = tiny_method
    plain, optimized = (build()[1].eval() for _ in range(2))
    optimized = require_detector(optimized.prepare_for_inference("float32", "res5", "replace"))
    boxes = Boxes(torch.tensor([[0.0, 0, 40, 40], [30, 10, 120, 90], [5, 50, 60, 95]]))
    embeddings = [
        model.embed_regions(model.encode_images([image_input()], proposals=False)[0], boxes)
        for model in (plain, optimized)
    ]
    torch.testing.assert_close(*embeddings, atol=1e-4, rtol=1e-3)


def test_a_detector_is_built_without_classes_of_its_own(tiny_method):
    """As `from_pretrained` does: class names follow."""
    _, case, build = tiny_method
    cfg = build()[0].clone()
    cfg.merge_from_list([case.EMBEDDINGS, ""])
    model = build_model(cfg).eval()
    require_detector(model).require_open_vocabulary()
    (encoding,) = model.encode_images([image_input()])
    classifier = BackgroundClassifier(vocabulary(model, 3), None, "cpu")
    assert len(model.detect(encoding, classifier, Selection(threshold=0.0)))


def test_class_names_can_be_set_and_share_the_score_with_a_background(tiny_method):
    _, _, build = tiny_method
    _, model = build()
    model.eval().require_open_vocabulary()
    (encoding,) = model.encode_images([image_input()])
    for background in (None, vocabulary(model, 3, "background")):
        classifier = BackgroundClassifier(vocabulary(model, 7), background, "cpu")
        found = model.detect(encoding, classifier, Selection(threshold=0.0, topk=5, per_class=False))
        assert 0 < len(found) <= 5
        assert int(found.pred_classes.max()) < 7
        probabilities = model.probabilities(found.embeddings, classifier)
        assert probabilities.shape == (len(found), 8)
        assert bool(((probabilities >= 0) & (probabilities <= 1)).all())


def test_names_that_a_detector_was_not_taught_are_an_error_that_says_how_to_teach_them(tiny_method):
    _, _, build = tiny_method
    _, model = build()
    unknown = vocabulary(model, 3, "never heard of")
    if model.known_names is None:
        model.require_names(unknown.names)
        return
    names = replace(unknown, names=("never heard of", *unknown.names[1:]))
    with pytest.raises(UserError, match=r"class names: expected names that .* taught: .*, got never heard of\. Fix: "):
        model.require_names(names.names)
    (encoding,) = model.eval().encode_images([image_input()])
    with pytest.raises(UserError, match="got never heard of"):
        model.detect(encoding, BackgroundClassifier(names, None, "cpu"), Selection())


def test_a_detector_is_exported_or_says_why_not(tiny_method):
    _, _, build = tiny_method
    _, model = build()
    try:
        parts = list(require_detector(model.eval()).export_parts())
    except UserError as error:
        assert error.problems[0].fix
        return
    for part in parts:
        with torch.no_grad():
            outputs = part.graph.eval()(**part.inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        assert len(outputs) == len(part.outputs)
