"""A detector that was rewritten for inference gives what it gave before."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from detectron2.structures import Boxes

from regionclip.clip.attention_pool import AttentionPool2d
from regionclip.clip.folding import FoldedAttentionPool
from regionclip.config.checks import check_config
from regionclip.config.loading import load_config
from regionclip.errors import UserError
from regionclip.modeling.build import build_model
from regionclip.modeling.heads.region_encoder import REGIONS_AT_ONCE
from regionclip.modeling.inference import precision
from regionclip.modeling.inference.prepare import prepare_as_configured
from regionclip.ops import WinogradConv2d, native_problem
from regionclip.ops.fused_convolution import add_convolved, convolution_relu
from regionclip.testing.deterministic import fill_deterministic
from tests.helpers.detectors import TINY, flat
from tests.helpers.paths import REPOSITORY

EMULATED = {"MODEL.CLIP.EMULATED_PRECISION": "keep"}
"""Lets half precision be tested on every processor."""

OVD = "configs/COCO-InstanceSegmentation/CLIP_fast_rcnn_R_50_C4_ovd.yaml"


@pytest.fixture
def detector(embedding_file):
    """Return a tiny detector with weights that make every part matter, and a copy prepared for inference."""

    def build(**overrides):
        options = TINY | {"MODEL.CLIP.TEXT_EMB_PATH": embedding_file("coco_48", 48, 32)} | overrides
        cfg = load_config(OVD, flat(options))
        model = build_model(cfg).eval()
        fill_deterministic(model, skip=["cls_score.weight", "cls_bg_score.weight"])
        return model, prepare_as_configured(copy.deepcopy(model), cfg)

    return build


def random_image(height=128, width=160):
    generator = torch.Generator().manual_seed(height)
    return {"image": torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)}


def boxes_in_and_around(count):
    """Boxes of all sizes in an image of 128 x 160, some of which reach beyond it."""
    generator = torch.Generator().manual_seed(count)
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([180.0, 148.0]) - 20
    return Boxes(torch.cat([corner, corner + 2 + torch.rand(count, 2, generator=generator) ** 2 * 120], dim=1))


@pytest.mark.parametrize("count", [0, 1, 3, REGIONS_AT_ONCE, REGIONS_AT_ONCE + 1, 200])
def test_regions_have_the_same_embeddings_few_or_many(detector, count):
    """Few are pooled from the map, many from what the first convolutions make of it."""
    plain, prepared = detector()
    expected, actual = (
        model.encode_boxes(model.image_features([random_image()]), boxes_in_and_around(count))
        for model in (plain, prepared)
    )
    assert actual.shape == (count, 32)
    torch.testing.assert_close(actual, expected, atol=2e-5 * float(expected.abs().max()) if count else 0, rtol=0)


def test_both_ways_to_pool_are_taken(detector, monkeypatch):
    _, prepared = detector()
    maps = prepared.image_features([random_image()])
    inputs, convolve = [], torch.nn.functional.conv2d
    monkeypatch.setattr(
        "torch.nn.functional.conv2d", lambda x, *rest, **more: inputs.append(x) or convolve(x, *rest, **more)
    )
    for count in (1, 200):
        inputs.clear()
        prepared.encode_boxes(maps, boxes_in_and_around(count))
        on_the_map = [x for x in inputs if x is maps["res4"]]
        assert len(on_the_map) == (2 if count == 200 else 0)


@pytest.mark.skipif(bool(native_problem("cpu")), reason=f"native operators: {native_problem('cpu')}")
@pytest.mark.parametrize(
    ("precision", "tolerance"), [("float32", 1e-4), pytest.param("bfloat16", 0.4, marks=pytest.mark.slow)]
)
@torch.no_grad()
def test_pyramids_call_the_convolutions_that_multiply_less(detector, precision, tolerance):
    pyramid = "configs/LVISv1-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"
    options = {"MODEL.CLIP.OFFLINE_RPN_CONFIG": pyramid, "MODEL.CLIP.INFERENCE_PRECISION": precision, **EMULATED}
    plain, prepared = detector(**options)
    images = prepared.offline_preprocessor([random_image(512, 512)["image"]]).tensor
    expected, actual = plain.offline_backbone(images.float()), prepared.offline_backbone(images)
    for name in ("p2", "p5"):
        error = (expected[name] - actual[name]).abs().max() / expected[name].abs().max()
        assert error < tolerance
    assert all(isinstance(layer, WinogradConv2d) for layer in prepared.offline_backbone.output_convs)
    assert isinstance(prepared.offline_proposal_generator.rpn_head.conv, WinogradConv2d)


@pytest.mark.parametrize("fusion", ["upstream", "sigmoid"])
def test_detections_stay_the_same(detector, fusion):
    plain, prepared = detector(**{"MODEL.CLIP.MULTIPLY_RPN_SCORE": "True", "MODEL.CLIP.RPN_SCORE_FUSION": fusion})
    with torch.no_grad():
        expected, actual = (model([random_image()])[0]["instances"] for model in (plain, prepared))
    assert len(expected) == len(actual) > 10
    # Cosines are divided by 0.01.
    torch.testing.assert_close(actual.scores, expected.scores, atol=1e-3, rtol=0)


@pytest.mark.parametrize("threshold", [0.0, 1.5])
@torch.no_grad()
def test_regions_that_can_have_no_score_are_not_encoded(detector, threshold):
    options = {"MODEL.CLIP.MULTIPLY_RPN_SCORE": "True", "MODEL.ROI_HEADS.SCORE_THRESH_TEST": str(threshold)}
    plain, prepared = detector(**options)
    encoded = []
    for model in (plain, prepared):
        model.offline_proposal_generator.rpn_head.objectness_logits.bias -= 5.0
        make = model.roi_heads.encoder_of_image
        model.roi_heads.encoder_of_image = lambda maps, count, make=make: encoded.append(count) or make(maps, count)
        with torch.no_grad():
            model([random_image()])
    (proposals,) = plain.proposal_source.propose([random_image()], plain.device)
    assert encoded == [int((proposals.objectness_logits >= threshold**2).sum())] * 2
    assert 0 < encoded[0] < len(proposals)


@torch.no_grad()
def test_no_map_of_an_encoder_is_overwritten_by_the_next_stage(detector):
    plain, prepared = detector()
    images = torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    kept = images.clone()
    names = ["stem", "res2", "res3", "res4", "res5"]
    expected, actual = (model.backbone.feature_maps(images, names) for model in (plain, prepared))
    assert torch.equal(images, kept)
    for name in names:
        torch.testing.assert_close(actual[name], expected[name], atol=1e-5 * float(expected[name].abs().max()), rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(2, 16, 5, 7), (1, 16, 1, 1), (0, 16, 4, 4)])
def test_fused_convolutions_are_those_in_steps(dtype, memory_format, shape):
    generator = torch.Generator().manual_seed(0)
    x, total = (torch.randn(shape[0], channels, *shape[2:], generator=generator) for channels in (16, 32))
    x, total = (values.to(dtype).contiguous(memory_format=memory_format) for values in (x, total))
    layer = torch.nn.Conv2d(16, 32, 1).to(dtype)
    direct = layer(x)
    tolerance = {"atol": 0.05 if dtype == torch.bfloat16 else 1e-5, "rtol": 0}
    for with_gradients in (True, False):
        with torch.set_grad_enabled(with_gradients):
            torch.testing.assert_close(convolution_relu(layer, x), direct.relu(), **tolerance)
            target = total.clone(memory_format=torch.preserve_format)
            result = add_convolved(target, x, layer.weight, layer.bias)
        torch.testing.assert_close(result, (total + direct).relu(), **tolerance)
        assert result.data_ptr() == target.data_ptr()


@pytest.mark.parametrize("count", [0, 1, 5])
@torch.no_grad()
def test_a_folded_attention_pool_equals_the_published_layer(count):
    pool = AttentionPool2d(grid=3, width=48, heads=4, output_dim=20)
    generator = torch.Generator().manual_seed(count)
    for parameter in pool.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5)
    maps = torch.randn(count, 48, 3, 3, generator=generator)
    folded = FoldedAttentionPool(pool)
    torch.testing.assert_close(folded(maps), pool(maps), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="expects 3x3 cells, got 4x3"):
        folded(torch.zeros(1, 48, 4, 3))


def test_nothing_can_be_trained_any_more_and_normalization_is_gone(detector):
    plain, prepared = detector()
    assert any("running_var" in key for key in plain.state_dict())
    assert not any("running_var" in key for key in prepared.state_dict())
    assert not any(parameter.requires_grad for parameter in prepared.parameters())


def test_half_precision_is_close(detector):
    plain, prepared = detector(**{"MODEL.CLIP.INFERENCE_PRECISION": "bfloat16", **EMULATED})
    maps, boxes = [model.image_features([random_image()]) for model in (plain, prepared)], boxes_in_and_around(200)
    assert next(iter(maps[1].values())).dtype == torch.float32
    first, *others = prepared.roi_heads.encoder.last_stage
    once_an_image, once_a_region = (first.conv1, first.shortcut), (first.conv2, first.conv3, *others)
    assert {values.dtype for layer in once_an_image for values in layer.parameters()} == {torch.float32}
    assert {values.dtype for layer in once_a_region for values in layer.parameters()} == {torch.bfloat16}
    assert prepared.offline_backbone.stem.conv1.weight.dtype == torch.bfloat16
    expected, actual = (model.encode_boxes(m, boxes) for model, m in zip((plain, prepared), maps, strict=True))
    assert actual.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(expected, actual).min() > 0.9998
    with torch.no_grad():
        found = prepared([random_image()])[0]["instances"]
    assert found.scores.dtype == found.pred_boxes.tensor.dtype == torch.float32


@pytest.mark.parametrize("first_stage", ["stem", "res3", "res4"])
def test_half_precision_can_start_at_an_earlier_stage(detector, first_stage):
    options = {"MODEL.CLIP.INFERENCE_PRECISION": "bfloat16", "MODEL.CLIP.INFERENCE_PRECISION_FROM": first_stage}
    plain, prepared = detector(**options, **EMULATED)
    names = ["stem", "res2", "res3", "res4"]
    maps = prepared.backbone.feature_maps(torch.zeros(1, 3, 64, 64), names)
    rounded = [name for name in names if maps[name].dtype == torch.bfloat16]
    assert rounded == names[names.index(first_stage) :]
    for boxes in (boxes_in_and_around(200), boxes_in_and_around(2)):  # what is shared among regions, and few of them
        expected, actual = (
            model.encode_boxes(model.image_features([random_image()]), boxes) for model in (plain, prepared)
        )
        assert actual.dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(expected, actual).min() > 0.999


@pytest.mark.parametrize(
    ("key", "value"),
    [("MODEL.ROI_HEADS.NAME", "CLIPStandardROIHeads"), ("MODEL.META_ARCHITECTURE", "GeneralizedRCNN")],
)
def test_half_precision_is_refused_where_it_would_do_nothing(key, value):
    options = [key, value, "MODEL.CLIP.INFERENCE_PRECISION", "bfloat16"]
    with pytest.raises(UserError, match=f"INFERENCE_PRECISION: expected float32 with .*{value}"):
        check_config(load_config(OVD, [*flat(TINY), *options]))


@pytest.fixture
def emulating(monkeypatch):
    """Let the processor have no half precision."""
    monkeypatch.setattr(precision, "is_native", lambda name, device: name == "float32")


def test_emulated_half_precision_is_replaced_with_a_line_or_refused(detector, emulating, caplog):
    _, prepared = detector(**{"MODEL.CLIP.INFERENCE_PRECISION": "bfloat16"})
    assert {values.dtype for values in prepared.parameters()} == {torch.float32}
    assert "this processor emulates bfloat16, which is slower; float32 is used" in caplog.text
    with pytest.raises(UserError, match="INFERENCE_PRECISION: expected a precision that this processor computes in"):
        detector(**{"MODEL.CLIP.INFERENCE_PRECISION": "float16", "MODEL.CLIP.EMULATED_PRECISION": "error"})


def test_a_lesser_instruction_set_has_no_half_precision():
    code = "from regionclip.modeling.inference import precision; print(precision.is_native('bfloat16', 'cpu'))"
    environment = os.environ | {"REGIONCLIP_ISA": "baseline"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
    assert precision.is_native("float32", "cpu")
    assert precision.is_native("bfloat16", "cuda")
