"""DetPro: losses and scores against the published functions (goldens `o`), published files, masks, training."""

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage
from torch.nn import functional as F

from regionclip.config.checks import check_config
from regionclip.config.training_checks import training_problems
from regionclip.engine.checkpoint.loading import load_weights
from regionclip.errors import UserError
from regionclip.methods.ralf.checkpoints import published_state
from regionclip.methods.ralf.published_store import read_published_store
from regionclip.methods.ralf.text_head import CosineOutputLayers, EnsembleScores, fuse_heads
from regionclip.modeling.build import build_model
from regionclip.modeling.configured_classes import ConfiguredClasses
from regionclip.modeling.losses.pretraining import embedding_distillation
from regionclip.modeling.retrieval_augmentation.loss import HingeSettings, hinge_losses
from regionclip.modeling.retrieval_augmentation.negatives import NegativeStore
from regionclip.testing.deterministic import (
    deterministic_state_dict,
    deterministic_text_embeddings,
    fill_deterministic,
    uniform,
)
from tests.helpers.mmdetection import backbone_shapes, detpro_shapes
from tests.methods.ralf.goldens import NAMES, STORE_KEYS, UNITS, assert_close, drawn, golden
from tests.methods.ralf.stores import write_store
from tests.methods.ralf.tiny import CONFIG, config, image_input

NOVEL = torch.zeros(40, dtype=torch.bool)
NOVEL[golden("detpro_head/novel_index")] = True
SHAPES = {"projection": (512, 1024), "projection_for_image": (512, 1024), "bg_embedding": (512, 1)}
TEXT = deterministic_text_embeddings("detpro_text", 40, 512)


def features(name, rows):
    numbers = uniform(f"detpro/{name}", (rows * 1024,)).astype(np.float64) * 2
    return torch.from_numpy(np.maximum(numbers, 0).astype(np.float32).reshape(rows, 1024))


@pytest.fixture
def weights():
    shapes = {f"roi_head.{name}.weight": shape for name, shape in SHAPES.items()}
    shapes |= {f"roi_head.{name}.bias": (512,) for name in SHAPES}
    return {key: value.requires_grad_() for key, value in deterministic_state_dict(shapes).items()}


@pytest.fixture
def predictor(weights):
    layers = CosineOutputLayers(1024, 512, (10.0, 10.0, 5.0, 5.0), 0.01)
    for name in ("projection", "bg_embedding"):
        for part in ("weight", "bias"):
            getattr(layers, name).__dict__["_parameters"][part] = weights[f"roi_head.{name}.{part}"]
    return layers


def project(weights, rows):
    """The second head's embeddings, not normalized."""
    name = "roi_head.projection_for_image"
    return F.linear(rows, weights[f"{name}.weight"], weights[f"{name}.bias"])


def test_the_losses_and_their_gradients(predictor, weights, tmp_path):
    base = ConfiguredClasses(TEXT[~NOVEL])
    rank = torch.cat([(~NOVEL).long().cumsum(0) - 1, torch.tensor([base.classes])])
    labels = rank[golden("detpro_head/labels")]
    boxes = torch.tensor([[0.0, 0, 10, 10]]).repeat(40, 1)
    of_class = predictor.losses(features("sampled", 40), labels, boxes, boxes, base)["loss_cls"]
    targets = F.normalize(deterministic_text_embeddings("detpro_targets", 50, 512), dim=1)
    distilled = 256 * embedding_distillation(project(weights, features("distilled", 50)), targets)
    torch.save({key: UNITS[f"store/{key}"] for key in STORE_KEYS}, tmp_path / "store.pkl")
    negatives = NegativeStore(read_published_store(tmp_path / "store.pkl", NAMES), range(6))
    own = golden("ral/labels")
    regions = F.normalize(predictor.projection(features("ground_truth", 24)), dim=1)
    hinges = [part.mean() for part in hinge_losses(regions, negatives.negatives(own, drawn()), HingeSettings())]
    losses = torch.stack([of_class, distilled, *hinges])
    torch.testing.assert_close(losses.double(), golden("detpro_head/losses"), rtol=2e-6, atol=5e-6)
    losses.sum().backward()
    for key, value in weights.items():
        expected = float(UNITS[f"detpro_head/grad_norm/{key}"])
        assert float(value.grad.norm()) == pytest.approx(expected, rel=5e-6), key


def test_the_scores_of_both_heads(predictor, weights):
    classes = ConfiguredClasses(TEXT)
    with torch.no_grad():
        text = predictor.cosines(features("test", 30), classes)
        image = classes(F.normalize(project(weights, features("test_image", 30)), dim=1))
        assert_close((text / 0.007).softmax(dim=1), "detpro_head/text_softmax", 5e-6)
        assert_close(F.pad((image / 0.007).softmax(dim=1), (0, 1)), "detpro_head/image_softmax", 5e-6)
        assert_close(fuse_heads(text, image, NOVEL, EnsembleScores()), "detpro_head/scores", 5e-6)


def full_size():
    from regionclip.config.loading import load_config

    given = ["MODEL.DEVICE", "cpu", "MODEL.CLIP.TEXT_EMB_PATH", "", "MODEL.CLIP.OPENSET_TEST_TEXT_EMB_PATH", ""]
    return build_model(load_config(CONFIG, given))


def test_a_published_file_fills_the_detector_and_comes_back(tmp_path):
    state = {key: torch.rand(shape) if shape else torch.tensor(7) for key, shape in detpro_shapes().items()}
    teacher = {"roi_head.clip_model.visual.proj": torch.rand(768, 512)}
    torch.save({"state_dict": state | teacher, "meta": {"epoch": 20}}, tmp_path / "epoch_20.pth")
    model = full_size()
    report = load_weights(model, str(tmp_path / "epoch_20.pth"))
    assert not report.missing and not report.unexpected and not report.reshaped
    assert torch.equal(model.roi_heads.mask_head.mask_fcn3.bias, state["roi_head.mask_head.convs.2.conv.bias"])
    back = published_state(model.state_dict())
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], value) for key, value in state.items())


def test_a_published_backbone_starts_a_training(tmp_path):
    state = {
        key: torch.rand(shape) if shape else torch.tensor(7)
        for key, shape in backbone_shapes(pyramid_norm=True).items()
    }
    torch.save({"state_dict": state}, tmp_path / "soco.pth")
    model = full_size()
    report = load_weights(model, str(tmp_path / "soco.pth"), required=("backbone.bottom_up.",))
    assert not report.unexpected and report.missing
    assert torch.equal(model.backbone.fpn_lateral2.norm.bias, state["neck.lateral_convs.0.bn.bias"])


@pytest.fixture
def tiny(embedding_file):
    """Return what builds a tiny detector of five classes."""
    names = ("cat", "dog", "horse", "boat", "traffic light")
    files = {"MODEL__CLIP__TEXT_EMB_PATH": embedding_file("conformance", 5, 32, names)}

    def build(**overrides):
        model = build_model(config(**files | overrides))
        fill_deterministic(model)
        return model

    return build


def test_detections_have_masks(tiny):
    model = tiny(MODEL__MASK_ON=True).eval()
    with torch.no_grad():
        (found,) = model([image_input()])
    instances = found["instances"]
    assert len(instances) and instances.pred_masks.shape == (len(instances), 192, 256)
    assert {"mask_head", "distill_projection"} <= {key.split(".")[1] for key in model.state_dict() if "." in key}


@pytest.mark.parametrize("objects", [True, False])
def test_all_losses_are_finite_and_train_their_parts(tiny, tmp_path, objects):
    anchors = deterministic_text_embeddings("conformance", 5, 32)
    store = write_store(tmp_path / "store.safetensors", ("cat", "dog", "horse", "boat", "traffic light"), anchors)
    ral = {"MODEL__RALF__RAL__ENABLED": True, "MODEL__RALF__RAL__STORE": str(store)}
    model = tiny(MODEL__MASK_ON=True, **ral).train()
    with EventStorage():
        losses = model([image_input(objects)])
    names = {"loss_cls", "loss_box_reg", "loss_mask", "loss_distill", "loss_hard_negatives", "loss_easy_negatives"}
    assert names | {"loss_rpn_cls", "loss_rpn_loc"} == losses.keys()
    assert all(bool(torch.isfinite(loss)) for loss in losses.values()), losses
    sum(losses.values()).backward()
    without = {key for key, value in model.named_parameters() if value.grad is None}
    assert without == set()
    if objects:
        assert float(model.predictor.bg_embedding.bias.grad.abs().sum()) > 0
        model.zero_grad()
        with EventStorage():
            losses = model([image_input()])
        (losses["loss_hard_negatives"] + losses["loss_easy_negatives"]).backward()
        reached = {key for key, value in model.named_parameters() if value.grad is not None and value.grad.any()}
        assert "roi_heads.box_predictor.projection.weight" in reached
        assert not any("distill" in key or "bg_embedding" in key or "bbox_pred" in key for key in reached)


def test_novel_names_trust_the_distilled_head(tiny):
    model = tiny().eval()
    (encoding,) = model.encode_images([image_input()])
    embeddings = model.embed_regions(encoding, Boxes(torch.tensor([[0.0, 0, 40, 40]])))
    distilled, hidden = model.columns(embeddings)
    known = model.configured_classes()
    text = (model.predictor.cosines(hidden, known) / 0.007).softmax(dim=1)[:, :5]
    image = (known(F.normalize(distilled, dim=1)) / 0.007).softmax(dim=1)
    share = torch.tensor([1 / 3, 1 / 3, 1 / 3, 2 / 3, 2 / 3])
    expected = text ** (1 - share) * image**share
    torch.testing.assert_close(model.probabilities(embeddings, None)[:, :5], expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"MODEL__ROI_HEADS__NUM_CLASSES": 7}, "NUM_CLASSES: expected 3, the number of MODEL.RALF.BASE_CLASSES, got 7"),
        (
            {"MODEL__MASK_ON": True, "MODEL__ROI_MASK_HEAD__CLS_AGNOSTIC_MASK": False},
            "CLS_AGNOSTIC_MASK: expected True",
        ),
        ({"MODEL__RALF__BASE_CLASSES": ""}, "BASE_CLASSES: expected the names of the trained classes, got none"),
        ({"MODEL__RALF__ENSEMBLE_EXPONENT": 2.0}, "ENSEMBLE_EXPONENT: expected an exponent in"),
        ({"MODEL__RALF__TEST_TEMPERATURE": 0.0}, "TEST_TEMPERATURE: expected a temperature above 0"),
        ({"MODEL__CLIP__TEXT_EMB_DIM": 64}, "TEXT_EMB_DIM: expected 32, the embedding width of"),
        ({"MODEL__CLIP__CROP_REGION_TYPE": "RPN"}, "OFFLINE_RPN_CONFIG: expected the YAML of the proposal network"),
    ],
)
def test_contradictions_of_the_config_are_reported(overrides, message):
    with pytest.raises(UserError, match=message):
        check_config(config(**overrides))


def test_embeddings_of_classes_need_names(embedding_file):
    with pytest.raises(UserError, match="expected class names in the file, got none"):
        check_config(config(MODEL__CLIP__TEXT_EMB_PATH=embedding_file("nameless", 5, 32)))


def test_training_needs_class_embeddings_and_regions():
    wanted = [problem.what for problem in training_problems(config(DATASETS__TRAIN="('lvis_v1_train',)"))]
    assert {"MODEL.CLIP.TEXT_EMB_PATH", "MODEL.RALF.REGIONS"} <= set(wanted)


def test_one_file_of_embeddings_serves_training_and_evaluation(tiny):
    model = tiny()
    assert model.train_classes.names == ("cat", "dog", "horse")
    assert model.configured_classes().names == ("cat", "dog", "horse", "boat", "traffic light")
    with pytest.raises(UserError, match=r"expected the names of .*BASE_CLASSES in the file, got none of unicorn"):
        tiny(MODEL__RALF__BASE_CLASSES="cat,unicorn")
