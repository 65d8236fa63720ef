"""OLN: hand-computed values of coding, targets, losses, samplers and scores; and the whole as a proposal generator."""

import math

import pytest
import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from detectron2.utils.events import EventStorage
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from regionclip.config.checks import check_config
from regionclip.config.loading import load_config
from regionclip.errors import UserError
from regionclip.modeling.build import build_model
from regionclip.modeling.fixed_statistics import fix_statistics
from regionclip.modeling.proposals.oln.anchors import (
    AnchorMatcher,
    AnchorSampler,
    aligned_iou,
    centerness_of,
    decode_distances,
    encode_distances,
)
from regionclip.modeling.proposals.oln.localizer import apply_deltas, quality_score
from regionclip.modeling.proposals.oln.rpn import RPNTraining, SampledAnchors, rpn_losses, sample_anchors
from regionclip.modeling.proposals.sources import build_offline_rpn
from regionclip.testing.deterministic import fill_deterministic
from tests.helpers.detectors import LVIS_CUSTOM, flat
from tests.helpers.detectors import TINY as DETECTOR

PUBLISHED = RPNTraining(
    AnchorMatcher(0.3, 0.7), AnchorSampler(256, 0.5), AnchorMatcher(0.1, 0.3), AnchorSampler(256, 1.0)
)
CONFIG = "configs/oln/coco48.yaml"
TINY = {
    "MODEL.DEVICE": "cpu",
    "MODEL.RESNETS.DEPTH": "18",
    "MODEL.RESNETS.RES2_OUT_CHANNELS": "64",
    "MODEL.FPN.OUT_CHANNELS": "16",
    "MODEL.ROI_BOX_HEAD.FC_DIM": "32",
    "INPUT.MIN_SIZE_TEST": "128",
}


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("anchor", "box", "distances", "centerness", "iou"),
    [
        ([88, 64, 152, 128], [90, 70, 170, 130], [0.46875, 0.40625, 0.78125, 0.53125], 0.677365137433507, 0.6784905660),
        ([128, 48, 192, 112], [100, 60, 220, 140], [0.9375, 0.3125, 0.9375, 0.9375], 0.577350269189010, 0.3209876543),
        ([16, 32, 144, 160], [90, 40, 150, 150], [-0.078125, 0.4375, 0.546875, 0.421875], 0.0, 0.3485097397),
    ],
)
def test_distances_centerness_and_iou(anchor, box, distances, centerness, iou):
    anchor, box = rows(anchor), rows(box)
    torch.testing.assert_close(encode_distances(anchor, box), rows(distances), atol=1e-12, rtol=0)
    torch.testing.assert_close(decode_distances(anchor, rows(distances)), box, atol=1e-9, rtol=0)
    assert float(centerness_of(anchor, box)) == pytest.approx(centerness, abs=1e-12)
    assert float(aligned_iou(anchor, box)) == pytest.approx(iou, abs=1e-9)


@pytest.mark.parametrize(
    ("distances", "decoded", "loss"),
    [
        ([0.75, 0.25, 0.5, 0.5], [72, 80, 152, 128], 0.018538135593220),
        ([0.3, 0.1, 0.4, -0.2], [100.8, 89.6, 145.6, 83.2], 10 * 0.999999 / 256),
    ],
)
def test_the_box_loss_is_linear_in_the_iou_and_bounded_where_sides_are_negative(distances, decoded, loss):
    anchor, box = rows([88, 64, 152, 128]), rows([90, 70, 170, 130])
    torch.testing.assert_close(decode_distances(anchor, rows(distances)), rows(decoded))
    sample = SampledAnchors(torch.tensor([0]), box, torch.tensor([], dtype=torch.int64), rows()[:0], 256)
    losses = rpn_losses(anchor, torch.zeros(1, 1), rows(distances)[None], [sample], PUBLISHED)
    assert float(losses["loss_oln_rpn_box"]) == pytest.approx(loss, rel=1e-9)


def test_the_quality_loss_is_l1_on_the_sigmoid():
    targets = torch.tensor([0.677365137433507, 0.577350269189010, 0.0], dtype=torch.float64)
    sample = SampledAnchors(torch.tensor([], dtype=torch.int64), torch.zeros(0, 4), torch.arange(3), targets, 256)
    logits = torch.tensor([[0.0, 1.0, -2.0]], dtype=torch.float64)
    losses = rpn_losses(torch.rand(3, 4), logits, torch.zeros(1, 3, 4), [sample], PUBLISHED)
    assert float(losses["loss_oln_rpn_quality"]) == pytest.approx(0.001758892066002, abs=1e-13)


def pyramid():
    """Anchors of 800 x 1333 pixels, padded to 800 x 1344."""
    levels = []
    for stride in (4, 8, 16, 32, 64):
        height, width = math.ceil(800 / stride), math.ceil(1344 / stride)
        y, x = torch.meshgrid(torch.arange(height) * stride, torch.arange(width) * stride, indexing="ij")
        centers = torch.stack([x, y], dim=-1).reshape(-1, 2).double()
        levels.append(torch.cat([centers - 4 * stride, centers + 4 * stride], dim=1))
    return levels


@pytest.mark.parametrize(
    ("objects", "counts"),
    [
        # Positive and negative anchors of the box sampler, anchors with a box loss; those of the quality sampler.
        ([[500, 300, 628, 428]], (3, 253, 3, 47, 209)),
        ([[400, 300, 410, 310]], (0, 256, 0, 0, 256)),
        ([[0, 300, 128, 428]], (4, 252, 0, 28, 228)),
        ([[100 + 150 * i, 200 + 10 * i, 228 + 150 * i, 328 + 10 * i] for i in range(7)], (28, 228, 28, 256, 0)),
    ],
)
def test_both_samplers(objects, counts):
    levels = pyramid()
    assert [len(level) for level in levels] == [67200, 16800, 4200, 1050, 273]
    torch.manual_seed(0)
    boxes = Boxes(torch.tensor(objects, dtype=torch.float64))
    sample = sample_anchors(torch.cat(levels), boxes, (800, 1333), PUBLISHED)
    positive, negative, with_loss, quality_positive, quality_negative = counts
    assert sample.normalizer == max(positive, 1) + max(negative, 1)
    assert len(sample.box_rows) == len(sample.boxes) == with_loss
    assert len(sample.quality_rows) == quality_positive + quality_negative
    iou = pairwise_iou(boxes, Boxes(torch.cat(levels)[sample.quality_rows])).max(dim=0).values
    assert int((iou >= 0.3).sum()) == quality_positive and not bool((sample.qualities[iou < 0.1] != 0).any())
    assert int((iou < 0.1).sum()) == quality_negative


def test_only_anchors_inside_the_image_take_part():
    counts = []
    for level in pyramid():
        sample = sample_anchors(level, Boxes(torch.zeros(0, 4)), (800, 1333), PUBLISHED)
        assert bool((level[sample.quality_rows] >= 0).all())
        counts.append(int(((level[:, :2] >= 0).all(1) & (level[:, 2] < 1333) & (level[:, 3] < 800)).sum()))
    assert counts == [62592, 14628, 3192, 578, 65]


def test_two_positives_of_a_border_object_have_quality_zero():
    torch.manual_seed(0)
    sample = sample_anchors(
        torch.cat(pyramid()), Boxes(torch.tensor([[0.0, 300, 128, 428]]).double()), (800, 1333), PUBLISHED
    )
    assert int((sample.qualities[:28] == 0).sum()) == 2


def slow_matching(iou, negative, positive, min_best):
    """The rule, anchor by anchor."""
    objects, labels = [], []
    for column in iou.T.tolist():
        best = max(column)
        objects.append(column.index(best))
        labels.append(1 if best >= positive else 0 if best < negative else -1)
    for number, row in enumerate(iou.tolist()):
        if max(row) >= min_best:
            for anchor, value in enumerate(row):
                if value == max(row):
                    objects[anchor], labels[anchor] = number, 1
    return objects, labels


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(1, 9), st.integers(0, 10_000))
def test_matching_is_the_rule_anchor_by_anchor(count, anchors, seed):
    generator = torch.Generator().manual_seed(seed)
    iou = torch.randint(0, 11, (count, anchors), generator=generator).double() / 10  # with many ties
    objects, labels = AnchorMatcher(0.3, 0.7, 0.3)(iou)
    assert (objects.tolist(), labels.tolist()) == slow_matching(iou, 0.3, 0.7, 0.3)


def test_an_image_without_an_anchor_inside_is_no_error():
    sample = sample_anchors(torch.cat(pyramid()), Boxes(torch.tensor([[0.0, 0, 9, 9]]).double()), (10, 1333), PUBLISHED)
    assert len(sample.box_rows) == len(sample.quality_rows) == 0 and sample.normalizer == 2


def test_without_objects_every_anchor_is_negative():
    _, labels = AnchorMatcher(0.3, 0.7)(torch.zeros(0, 5))
    assert labels.tolist() == [0] * 5


def test_targets_of_the_box_head():
    region, target = rows([100, 100, 180, 160]), rows([110, 95, 200, 165])
    assert float(aligned_iou(region, target)) == pytest.approx(0.608695652173913, abs=1e-12)
    deltas = Box2BoxTransform((10.0, 10.0, 5.0, 5.0)).get_deltas(region, target)
    torch.testing.assert_close(deltas, rows([1.875, 0, 0.588915178281917, 0.770753399136292]), atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("rpn", "box", "score"),
    [(math.log(4), 0, 0.632455532033676), (0, 2, 0.66362530014229), (1.2, -0.4, 0.555354372565448)],
)
def test_the_score_is_the_geometric_mean_of_both_qualities(rpn, box, score):
    found = quality_score(*rows([rpn], [box]))
    assert float(found) == pytest.approx(score, abs=1e-12)


def test_deltas_are_bounded_in_both_directions():
    transform, box = Box2BoxTransform((10.0, 10.0, 5.0, 5.0)), torch.tensor([[0.0, 0, 100, 100]])
    for sign in (-1, 1):
        refined = apply_deltas(transform, torch.tensor([[0.0, 0, 100 * sign, 100 * sign]]), box)
        assert float(refined[0, 2] - refined[0, 0]) == pytest.approx(100 * (1000 / 16) ** sign, rel=1e-4)


def tiny(**overrides):
    changes = {key.replace("__", "."): str(value) for key, value in overrides.items()}
    model = build_model(load_config(CONFIG, flat(TINY | changes)))
    fill_deterministic(model)
    return model


def image_input(seed=0, height=96, width=128):
    pixels = torch.randint(0, 255, (3, height, width), generator=torch.Generator().manual_seed(seed)).byte()
    return {"image": pixels, "height": height, "width": width}


@pytest.mark.parametrize("box_on", [True, False])
def test_detectron2_trains_and_tests_it_as_a_proposal_network(box_on):
    model = tiny(MODEL__OLN__BOX_ON=box_on, MODEL__OLN__REG_BIAS_INIT=0.5)
    target = Instances((96, 128), gt_boxes=Boxes(torch.tensor([[8.0, 8, 90, 80]])), gt_classes=torch.tensor([0]))
    with EventStorage():
        losses = model.train()([{**image_input(), "instances": target}])
    names = {"loss_oln_rpn_box", "loss_oln_rpn_quality"} | ({"loss_oln_box", "loss_oln_quality"} if box_on else set())
    assert losses.keys() == names and all(bool(torch.isfinite(loss)) for loss in losses.values())
    sum(losses.values()).backward()
    with torch.no_grad():
        (output,) = model.eval()([image_input()])
    found = output["proposals"]
    scores = found.objectness_logits.sigmoid()
    assert 0 < len(found) <= 1500 and scores.tolist() == sorted(scores.tolist(), reverse=True)
    boxes = found.proposal_boxes.tensor
    assert float(boxes.min()) >= 0 and float(boxes[:, 2].max()) <= 128 and float(boxes[:, 3].max()) <= 96
    overlaps = pairwise_iou(found.proposal_boxes, found.proposal_boxes).fill_diagonal_(0)
    assert float(overlaps.max()) <= 0.7 + 1e-4


def losses_of(*boxes, **overrides):
    """Return the losses of one image with objects, by the part of their names that tells them apart."""
    model = tiny(**overrides).train()
    nn.init.constant_(model.proposal_generator.rpn.rpn_head.anchor_deltas.bias, 0.5)  # boxes are near the anchors
    target = Instances((96, 128), gt_boxes=Boxes(torch.tensor(boxes)), gt_classes=torch.zeros(len(boxes)).long())
    torch.manual_seed(0)
    with EventStorage(), torch.no_grad():
        losses = model([{**image_input(), "instances": target}])
    return {name.removeprefix("loss_oln_"): float(loss) for name, loss in losses.items()}


@pytest.mark.parametrize(
    ("key", "published", "loss"),
    [("BOX_LOSS_WEIGHT", 10, "rpn_box"), ("OBJ_LOSS_WEIGHT", 1, "rpn_quality"), ("SCORE_LOSS_WEIGHT", 1, "quality")],
)
def test_a_weight_scales_its_loss_alone(key, published, loss):
    usual = losses_of([8.0, 8, 90, 80])
    assert usual[loss] > 0
    expected = usual | {loss: 3 * usual[loss]}
    assert losses_of([8.0, 8, 90, 80], **{f"MODEL__OLN__{key}": 3.0 * published}) == pytest.approx(expected, rel=1e-5)


BORDER, INSIDE = [0.0, 0.0, 60.0, 60.0], [8.0, 8.0, 90.0, 80.0]


@pytest.mark.parametrize(
    ("key", "value", "box", "changed"),
    [
        ("OBJ_TARGET", "'iou'", INSIDE, "rpn_quality"),
        ("OBJ_IOU_THRESHOLDS", "[0.1, 0.5]", INSIDE, "rpn_quality"),
        ("OBJ_BATCH", 16, INSIDE, "rpn_quality"),
        ("OBJ_POSITIVE_FRACTION", 0.01, INSIDE, "rpn_quality"),
        ("OBJ_FILL_NEGATIVES", False, INSIDE, "rpn_quality"),
        ("SCORE_TARGET", "'centerness'", INSIDE, "quality"),
        ("SKIP_BORDER_GT", False, BORDER, "rpn_box"),
        ("MIN_POS_IOU", 0.9, INSIDE, "rpn_box"),
    ],
)
def test_a_choice_of_targets_changes_its_loss(key, value, box, changed):
    usual, other = losses_of(box), losses_of(box, **{f"MODEL__OLN__{key}": value})
    assert other[changed] != pytest.approx(usual[changed], rel=1e-3)
    if changed != "rpn_box":  # which is sampled first
        assert other["rpn_box"] == usual["rpn_box"]


def test_a_bias_of_half_a_side_starts_with_the_anchors():
    model = build_model(load_config(CONFIG, flat(TINY | {"MODEL.OLN.REG_BIAS_INIT": "0.5"})))
    anchor = torch.tensor([[16.0, 8.0, 80.0, 72.0]])
    with torch.no_grad():
        features = list(model.backbone(torch.zeros(1, 3, 128, 128)).values())
        distances = model.proposal_generator.rpn.rpn_head(features)[1][0].flatten()[:4]
    torch.testing.assert_close(decode_distances(anchor, distances[None]), anchor, atol=4.0, rtol=0)


def test_proposals_of_low_scores_are_left_out():
    def scores(**overrides):
        with torch.no_grad():
            (output,) = tiny(**overrides).eval()([image_input()])
        return output["proposals"].objectness_logits.sigmoid()

    usual = scores()
    threshold = float(usual.median())
    kept = scores(MODEL__OLN__SCORE_THRESH=threshold)
    torch.testing.assert_close(kept, usual[usual > threshold])


@pytest.mark.parametrize("objects", [0, 3])
def test_images_without_objects_have_losses_too(objects):
    model = tiny()
    boxes = Boxes(torch.tensor([[8.0, 8, 90, 80]]).repeat(objects, 1))
    target = Instances((96, 128), gt_boxes=boxes, gt_classes=torch.zeros(objects, dtype=torch.int64))
    with EventStorage():
        losses = model.train()([{**image_input(), "instances": target}])
    assert all(bool(torch.isfinite(loss)) for loss in losses.values())


def test_every_method_can_take_its_proposals():
    """As the offline RPN of a detector, with its overrides."""
    options = DETECTOR | {
        "MODEL.CLIP.OFFLINE_RPN_CONFIG": CONFIG,
        "MODEL.CLIP.OFFLINE_RPN_POST_NMS_TOPK_TEST": "7",
        "MODEL.CLIP.OFFLINE_RPN_NMS_THRESH": "0.5",
    }
    source = build_offline_rpn(load_config(LVIS_CUSTOM, flat(options)))
    (found,) = source.propose([image_input()], torch.device("cpu"))
    assert 0 < len(found) <= 7
    overlaps = pairwise_iou(found.proposal_boxes, found.proposal_boxes).fill_diagonal_(0)
    assert float(overlaps.max()) <= 0.5 + 1e-4


def test_an_image_gives_the_same_proposals_alone_and_in_a_batch():
    model = tiny().eval()
    generator, backbone = model.proposal_generator, model.backbone
    images = ImageList.from_tensors([torch.rand(3, 96, 128), torch.rand(3, 96, 128)], 32)
    with torch.no_grad():
        together, _ = generator(images, backbone(images.tensor), None)
        alone = ImageList.from_tensors([images[1]], 32)
        (single,), _ = generator(alone, backbone(alone.tensor), None)
    torch.testing.assert_close(together[1].proposal_boxes.tensor, single.proposal_boxes.tensor, atol=1e-3, rtol=1e-4)


def test_its_logits_are_not_fused_as_upstream_fuses_those_of_an_rpn():
    options = DETECTOR | {"MODEL.CLIP.OFFLINE_RPN_CONFIG": CONFIG, "MODEL.CLIP.MULTIPLY_RPN_SCORE": "True"}
    with pytest.raises(UserError, match="RPN_SCORE_FUSION: expected sigmoid with OLN"):
        check_config(load_config(LVIS_CUSTOM, flat(options)))
    check_config(load_config(LVIS_CUSTOM, flat(options | {"MODEL.CLIP.RPN_SCORE_FUSION": "sigmoid"})))


def test_a_fixed_normalization_trains_its_scale_and_shift_only():
    layer = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    keys, expected = list(layer.state_dict()), layer.eval()(torch.ones(2, 3, 5, 5))
    fix_statistics(layer).train()
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    found = layer(torch.ones(2, 3, 5, 5))
    found.sum().backward()
    torch.testing.assert_close(found, expected)
    assert list(layer.state_dict()) == keys
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())
    assert layer[1].weight.grad is not None and layer[1].bias.grad is not None
    torch.testing.assert_close(layer.eval()(torch.ones(2, 3, 5, 5)), expected)


def test_the_config_fixes_the_statistics_of_its_backbone():
    model = tiny()
    kinds = {type(part).__name__ for part in model.backbone.modules() if "BatchNorm" in type(part).__name__}
    assert kinds == {"FrozenBatchNorm2d", "FixedStatisticsBatchNorm2d"}


def test_feature_maps_in_half_precision_are_taken():
    model = tiny().eval()
    images = ImageList.from_tensors([torch.rand(3, 96, 128)], 32)
    with torch.no_grad():
        maps = {name: part.bfloat16() for name, part in model.backbone(images.tensor).items()}
        (found,), _ = model.proposal_generator(images, maps, None)
    assert len(found) and found.proposal_boxes.tensor.dtype == torch.float32
