"""Detectors as wholes, at tiny size: every meta-architecture and head runs, in evaluation and in training."""

import pytest
import torch
from detectron2.layers import ROIAlignRotated, ShapeSpec
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from regionclip.config.loading import load_config
from regionclip.engine.checkpoint.loading import load_weights
from regionclip.errors import UserError
from regionclip.methods.regionclip.detector import CLIPFastRCNN
from regionclip.methods.regionclip.heads import CLIPRes5ROIHeads
from regionclip.modeling.build import build_model
from regionclip.modeling.poolers import use_own_roi_align
from regionclip.modeling.preprocessing import ImagePreprocessor
from regionclip.modeling.proposals.rpn import ExactRPN
from regionclip.ops import RoIAlign
from regionclip.testing.deterministic import fill_deterministic
from tests.helpers.detectors import TINY, flat
from tests.helpers.paths import DATA

COCO = "configs/COCO-InstanceSegmentation"
LVIS = "configs/LVISv1-InstanceSegmentation"
TINY_CLIP = {"MODEL.DEVICE": "cpu", "MODEL.CLIP.ARCHITECTURE": str(DATA / "tiny_clip.json")}


def image(height=64, width=96, boxes=((8.0, 8.0, 40.0, 48.0), (30.0, 10.0, 90.0, 60.0)), seed=0):
    generator = torch.Generator().manual_seed(seed)
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    instances.gt_classes = torch.arange(len(boxes))
    instances.gt_masks = BitMasks(torch.ones(len(boxes), height, width, dtype=torch.bool))
    pixels = torch.randint(0, 255, (3, height, width), generator=generator, dtype=torch.uint8)
    return {"image": pixels, "height": 2 * height, "width": 2 * width, "instances": instances}


@pytest.fixture
def detector(embedding_file):
    def build(config=f"{COCO}/CLIP_fast_rcnn_R_50_C4_ovd.yaml", classes=48, **overrides):
        embeddings = {"MODEL.CLIP.TEXT_EMB_PATH": embedding_file("any", classes, 32)}
        model = build_model(load_config(config, flat(TINY | embeddings | overrides)))
        fill_deterministic(model, skip=["cls_score.weight", "cls_bg_score.weight"])
        return model

    return build


@torch.no_grad()
@pytest.mark.parametrize("boxes", ["GT", "RPN"])
def test_detections_lie_in_the_original_image(detector, boxes):
    model = detector(**{"MODEL.CLIP.CROP_REGION_TYPE": boxes}).eval()
    for output in model([image(), image(80, 50, seed=1)]):
        instances = output["instances"]
        height, width = instances.image_size
        assert len(instances)
        assert (instances.pred_boxes.tensor >= 0).all()
        assert (instances.pred_boxes.tensor <= torch.tensor([width, height] * 2)).all()
        assert instances.pred_classes.max() < 48


@torch.no_grad()
def test_open_set_embeddings_serve_at_test_time_only(detector, embedding_file):
    open_set = {"MODEL.CLIP.OPENSET_TEST_TEXT_EMB_PATH": embedding_file("open", 7, 32)}
    predictor = detector(**open_set).roi_heads.box_predictor
    regions = torch.rand(5, 32)
    assert predictor.eval()(regions)[0].shape == (5, 8)
    assert predictor.train()(regions)[0].shape == (5, 49)


@torch.no_grad()
def test_classifier_is_the_cosine_over_the_temperature(detector):
    predictor = detector().roi_heads.box_predictor.eval()
    regions = torch.randn(6, 32, dtype=torch.float32)
    logits, deltas = predictor(regions)
    for r, region in enumerate(regions.double()):
        for k, row in enumerate(predictor.cls_score.weight.double()):
            cosine = region @ row / (region.norm() * row.norm())
            assert logits[r, k].item() == pytest.approx(cosine.item() / 0.01, abs=1e-3)
    assert (logits[:, -1] == 0).all()  # the background row is zero
    torch.testing.assert_close(deltas, predictor.bbox_pred(regions))


@torch.no_grad()
def test_ground_truth_without_boxes_gives_no_detections(detector):
    model = detector(**{"MODEL.CLIP.CROP_REGION_TYPE": "GT"}).eval()
    (output,) = model([image(boxes=())])
    assert len(output["instances"]) == 0


def test_ground_truth_needs_annotations(detector):
    model = detector(**{"MODEL.CLIP.CROP_REGION_TYPE": "GT"}).eval()
    without = {key: value for key, value in image().items() if key != "instances"}
    with pytest.raises(UserError, match="CROP_REGION_TYPE"):
        model([without])


@torch.no_grad()
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (15, 17), (200, 3)])
@pytest.mark.parametrize("boxes", ["GT", "RPN"])
def test_very_small_images_run(detector, boxes, size):
    model = detector(**{"MODEL.CLIP.CROP_REGION_TYPE": boxes}).eval()
    (output,) = model([image(*size, boxes=((0.0, 0.0, 1.0, 1.0),))])
    assert torch.isfinite(output["instances"].scores).all()


@torch.no_grad()
def test_masks_are_predicted_for_the_detections(detector):
    model = detector(
        f"{LVIS}/CLIP_fast_rcnn_R_50_C4.yaml", 866, **{"MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": "4"}
    ).eval()
    (output,) = model([image()])
    instances = output["instances"]
    assert instances.pred_masks.shape == (len(instances), 128, 192)
    known = Instances((64, 96), pred_boxes=Boxes(torch.tensor([[0.0, 0, 50, 50]])), pred_classes=torch.tensor([3]))
    (masked,) = model.inference([image()], detected_instances=[known], do_postprocess=False)
    assert masked.pred_masks.shape[0] == 1


def test_proposals_and_inputs_are_left_alone(detector):
    model = detector(**{"MODEL.CLIP.CROP_REGION_TYPE": "GT"}).eval()
    item = image(boxes=((-20.0, -20.0, 400.0, 400.0),))
    before = item["instances"].gt_boxes.tensor.clone()
    with torch.no_grad():
        model([item])
    assert torch.equal(item["instances"].gt_boxes.tensor, before)


def losses_of(model, *items):
    with EventStorage():
        return model.train()(list(items))


@pytest.mark.parametrize("boxes", ["GT", "RPN"])
def test_training_gives_finite_losses_and_gradients_where_the_spec_says(detector, boxes):
    model = detector(**{"MODEL.CLIP.CROP_REGION_TYPE": boxes})
    losses = losses_of(model, image(), image(boxes=(), seed=2))
    assert set(losses) == {"loss_cls", "loss_box_reg"}
    sum(losses.values()).backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None}
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert moved == trainable
    assert all(
        name.startswith(("backbone.layer", "backbone.attnpool", "roi_heads.box_predictor.bbox")) for name in moved
    )
    assert not any(name.startswith("backbone.layer1") for name in moved)
    assert not model.offline_backbone.training if boxes == "RPN" else model.offline_backbone is None


def test_mask_loss_is_computed_in_training(detector):
    model = detector(f"{LVIS}/CLIP_fast_rcnn_R_50_C4.yaml", 866, **{"MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": "4"})
    losses = losses_of(model, image())
    assert set(losses) == {"loss_cls", "loss_box_reg", "loss_mask"}
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_foreground_sampling_keeps_only_foreground(detector):
    heads = detector(**{"MODEL.CLIP.ONLY_SAMPLE_FG_PROPOSALS": "True"}).roi_heads
    matched, labels = torch.arange(6) % 3, torch.tensor([1, 0, 1, -1, 0, 1])
    chosen, classes = heads._sample_proposals(matched, labels, torch.tensor([5, 6, 7]))
    assert sorted(chosen.tolist()) == [0, 2, 5]
    assert {int(i): int(c) for i, c in zip(chosen, classes, strict=True)} == {0: 5, 2: 7, 5: 7}
    chosen, classes = heads._sample_proposals(matched, labels, torch.tensor([], dtype=torch.long))
    assert (chosen.tolist(), classes.tolist()) == ([0], [48])


GENERALIZED = {
    f"{COCO}/mask_rcnn_CLIP_R_50_C4_1x.yaml": {"MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": "4"},
    f"{LVIS}/mask_rcnn_CLIP_R_50_FPN_1x.yaml": {"MODEL.FPN.OUT_CHANNELS": "32"},
}


@pytest.mark.parametrize(
    "config", [name if "C4" in name else pytest.param(name, marks=pytest.mark.slow) for name in GENERALIZED]
)
def test_generalized_rcnn_on_clip_runs_and_trains(config):
    overrides = TINY_CLIP | GENERALIZED[config] | {"MODEL.ROI_HEADS.SCORE_THRESH_TEST": "0.0"}
    model = build_model(load_config(config, flat(overrides)))
    fill_deterministic(model)
    with torch.no_grad():
        (output,) = model.eval()([image()])
        (small,) = model([image(1, 1, boxes=())])
    assert output["instances"].pred_masks.shape[1:] == (128, 192)
    assert small["instances"].image_size == (2, 2)
    losses = losses_of(model, image())
    assert {"loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc"} == set(losses)


def test_generalized_rcnn_scales_pixels_like_clip():
    config = f"{COCO}/mask_rcnn_CLIP_R_50_C4_1x.yaml"
    cfg = load_config(config, flat(TINY_CLIP | {"MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": "4"}))
    item = image()
    found = build_model(cfg).preprocess_image([item]).tensor[0]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD))
    torch.testing.assert_close(found, (item["image"] / 255 - mean) / std, atol=1e-5, rtol=0)


def test_c4_head_without_image_encoder_says_what_to_do():
    cfg = load_config(f"{COCO}/mask_rcnn_CLIP_R_50_C4_1x.yaml", flat(TINY_CLIP))
    from detectron2.layers import ShapeSpec

    heads = CLIPRes5ROIHeads(cfg, {"res4": ShapeSpec(channels=256, stride=16)})
    with pytest.raises(RuntimeError, match=r"regionclip\.modeling\.build\.build_model"):
        heads.eval()(None, {}, [])


@torch.no_grad()
def test_standard_head_classifies_with_the_attention_pool(embedding_file):
    overrides = TINY | {
        "MODEL.CLIP.TEXT_EMB_PATH": embedding_file("any", 48, 32),
        "MODEL.BACKBONE.NAME": "build_clip_resnet_fpn_backbone",
        "MODEL.RESNETS.OUT_FEATURES": "['res2', 'res3', 'res4', 'res5']",
        "MODEL.FPN.IN_FEATURES": "['res2', 'res3', 'res4', 'res5']",
        "MODEL.FPN.OUT_CHANNELS": "512",
        "MODEL.ROI_HEADS.NAME": "CLIPStandardROIHeads",
        "MODEL.ROI_HEADS.IN_FEATURES": "['p2', 'p3', 'p4', 'p5']",
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": "2",
    }
    model = build_model(load_config(f"{COCO}/CLIP_fast_rcnn_R_50_C4_ovd.yaml", flat(overrides))).eval()
    fill_deterministic(model, skip=["cls_score.weight", "cls_bg_score.weight"])
    assert not any("box_head" in key for key in model.state_dict())
    (output,) = model([image()])
    assert len(output["instances"])


def test_rpn_settings_follow_the_config(detector):
    settings = {
        "MODEL.CLIP.OFFLINE_RPN_NMS_THRESH": "0.33",
        "MODEL.CLIP.OFFLINE_RPN_POST_NMS_TOPK_TEST": "7",
    }
    model = detector(**settings)
    generator = model.offline_proposal_generator
    assert (generator.nms_thresh, generator.post_nms_topk[False]) == (0.33, 7)
    assert model.offline_preprocessor.flip_channels
    assert not model.offline_preprocessor.unit_range
    assert len(model.proposal_source.propose([image()], model.device)[0]) == 7


def test_preprocessor_normalizes_then_pads_with_zeros():
    preprocessor = ImagePreprocessor(
        [10.0, 20.0, 30.0], [1.0, 2.0, 4.0], unit_range=False, flip_channels=True, size_divisibility=32
    )
    pixels = torch.arange(3 * 20 * 24, dtype=torch.uint8).reshape(3, 20, 24)
    batch = preprocessor([pixels])
    assert batch.tensor.shape == (1, 3, 32, 32)
    assert batch.image_sizes == [(20, 24)]
    for channel, (mean, std) in enumerate([(10, 1), (20, 2), (30, 4)]):
        torch.testing.assert_close(batch.tensor[0, channel, :20, :24], (pixels[2 - channel].float() - mean) / std)
    assert (batch.tensor[0, :, 20:] == 0).all()
    assert (batch.tensor[0, :, :, 24:] == 0).all()


def test_unknown_region_source_is_refused_at_build():
    cfg = load_config(f"{COCO}/CLIP_fast_rcnn_R_50_C4_ovd.yaml", flat(TINY | {"MODEL.CLIP.CROP_REGION_TYPE": "CELLS"}))
    with pytest.raises(UserError, match="CROP_REGION_TYPE"):
        CLIPFastRCNN(cfg)


def test_weights_of_a_detector_survive_a_round_trip(detector, tmp_path):
    model, other = detector(), detector()
    for key, value in other.state_dict().items():
        if "cls_score" not in key:  # comes from the config
            value.zero_()
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    load_weights(other, str(tmp_path / "model.pth"))
    with torch.no_grad():
        (first,), (second,) = model.eval()([image()]), other.eval()([image()])
    assert torch.equal(first["instances"].scores, second["instances"].scores)


@torch.no_grad()
@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize("training", [False, True])
def test_exact_rpn_selects_what_detectron2_selects(levels, training):
    """On boxes of an ordinary image, where shifting levels apart loses nothing that counts."""
    generator = torch.Generator().manual_seed(levels)
    overrides = {"MODEL.DEVICE": "cpu", "MODEL.RPN.PRE_NMS_TOPK_TEST": "60", "MODEL.RPN.POST_NMS_TOPK_TEST": "25"}
    overrides |= {"MODEL.RPN.PRE_NMS_TOPK_TRAIN": "50", "MODEL.RPN.POST_NMS_TOPK_TRAIN": "100"}
    cfg = load_config("", flat(overrides))
    shapes = {"res4": ShapeSpec(channels=8, stride=16)}
    ours, theirs = (kind(cfg, shapes).train(training) for kind in (ExactRPN, RPN))
    boxes = [torch.rand(80, 4, generator=generator) * 200 for _ in range(levels)]
    anchors = [Boxes(torch.cat([b[:, :2], b[:, :2] + b[:, 2:]], dim=1)) for b in boxes]
    logits = [torch.randn(2, 80, generator=generator) for _ in range(levels)]
    deltas = [torch.randn(2, 80, 4, generator=generator) * 0.1 for _ in range(levels)]
    if not training:
        logits[0][1, 3] = float("nan")
    sizes = [(150, 190), (200, 100)]
    for own, expected in zip(
        ours.predict_proposals(anchors, logits, deltas, sizes),
        theirs.predict_proposals(anchors, logits, deltas, sizes),
        strict=True,
    ):
        assert own.image_size == expected.image_size
        assert torch.equal(own.proposal_boxes.tensor, expected.proposal_boxes.tensor)
        assert torch.equal(own.objectness_logits, expected.objectness_logits)


def test_exact_rpn_reports_diverged_training():
    rpn = ExactRPN(load_config("", ["MODEL.DEVICE", "cpu"]), {"res4": ShapeSpec(channels=8, stride=16)}).train()
    anchors = [Boxes(torch.tensor([[0.0, 0.0, 9.0, 9.0]]))]
    with pytest.raises(FloatingPointError, match="diverged"):
        rpn.predict_proposals(anchors, [torch.tensor([[float("nan")]])], [torch.zeros(1, 1, 4)], [(20, 20)])


def test_exact_rpn_leaves_out_boxes_that_are_not_finite():
    rpn = ExactRPN(load_config("", ["MODEL.DEVICE", "cpu"]), {"res4": ShapeSpec(channels=8, stride=16)}).eval()
    anchors = [Boxes(torch.tensor([[0.0, 0.0, 9.0, 9.0], [5.0, 5.0, 15.0, 15.0]]))]
    deltas = torch.zeros(1, 2, 4)
    deltas[0, 0, 0] = float("nan")
    (found,) = rpn.predict_proposals(anchors, [torch.tensor([[3.0, 1.0]])], [deltas], [(20, 20)])
    assert found.proposal_boxes.tensor.tolist() == [[5.0, 5.0, 15.0, 15.0]]


def test_heads_pool_with_this_package(detector):
    poolers = [
        detector().roi_heads.pooler,
        detector(f"{LVIS}/CLIP_fast_rcnn_R_50_C4.yaml", classes=866).roi_heads.pooler,
    ]
    assert all(isinstance(layer, RoIAlign) for pooler in poolers for layer in pooler.level_poolers)


def test_other_kinds_of_pooling_stay():
    pooler = use_own_roi_align(ROIPooler(7, [1 / 16], 0, "ROIAlignRotated"))
    assert isinstance(pooler.level_poolers[0], ROIAlignRotated)
    kinds = ("ROIAlign", "ROIAlignV2")
    aligned = [use_own_roi_align(ROIPooler(7, [1 / 16], 0, kind)).level_poolers[0] for kind in kinds]
    assert [layer.aligned for layer in aligned] == [False, True]
    features, rois = torch.randn(1, 3, 9, 9), torch.tensor([[0.0, 5.0, 9.0, 80.0, 70.0]])
    for kind, layer in zip(kinds, aligned, strict=True):
        expected = ROIPooler(7, [1 / 16], 0, kind).level_poolers[0](features, rois)
        torch.testing.assert_close(layer(features, rois), expected, atol=1e-5, rtol=1e-5)
