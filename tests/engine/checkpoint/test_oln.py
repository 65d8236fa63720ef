"""The published OLN: its keys, and the order of its distances."""

import torch

from regionclip.config.loading import load_config
from regionclip.engine.checkpoint.layouts.mmdetection import published_oln
from regionclip.engine.checkpoint.loading import load_weights
from regionclip.modeling.build import build_model
from regionclip.testing.deterministic import fill_deterministic
from tests.helpers.detectors import LVIS_CUSTOM, TINY, flat


def published_shapes():
    """The table of the published file: a ResNet-50 with FPN, both heads."""
    shapes = {"backbone.conv1.weight": (64, 3, 7, 7)}
    norms = {"backbone.bn1": 64}
    inputs = 64
    for stage, (blocks, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), start=1):
        for block in range(blocks):
            name = f"backbone.layer{stage}.{block}"
            sizes = ((1, inputs, width), (3, width, width), (1, width, 4 * width))
            for number, (side, before, after) in enumerate(sizes, start=1):
                shapes[f"{name}.conv{number}.weight"] = (after, before, side, side)
                norms[f"{name}.bn{number}"] = after
            if block == 0:
                shapes[f"{name}.downsample.0.weight"] = (4 * width, inputs, 1, 1)
                norms[f"{name}.downsample.1"] = 4 * width
            inputs = 4 * width
    for name, channels in norms.items():
        shapes |= {f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")}
        shapes[f"{name}.num_batches_tracked"] = ()
    for level in range(4):
        shapes[f"neck.lateral_convs.{level}.conv.weight"] = (256, 256 * 2**level, 1, 1)
        shapes[f"neck.fpn_convs.{level}.conv.weight"] = (256, 256, 3, 3)
        shapes |= {f"neck.{part}.{level}.conv.bias": (256,) for part in ("lateral_convs", "fpn_convs")}
    linear = {"shared_fcs.0": (1024, 12544), "shared_fcs.1": (1024, 1024), "fc_reg": (4, 1024)}
    linear |= {"fc_bbox_score": (1, 1024), "fc_cls": (2, 1024)}
    for name, shape in linear.items():
        shapes |= {f"roi_head.bbox_head.{name}.weight": shape, f"roi_head.bbox_head.{name}.bias": shape[:1]}
    shapes |= {"rpn_head.rpn_conv.weight": (256, 256, 3, 3), "rpn_head.rpn_conv.bias": (256,)}
    for name, outputs in (("rpn_reg", 4), ("rpn_obj", 1), ("rpn_cls", 1)):
        shapes |= {f"rpn_head.{name}.weight": (outputs, 256, 1, 1), f"rpn_head.{name}.bias": (outputs,)}
    return shapes


def test_a_published_file_fills_the_model_and_comes_back(tmp_path):
    model = build_model(load_config("configs/oln/coco48.yaml", ["MODEL.DEVICE", "cpu"]))
    fill_deterministic(model)
    # Detectron2's frozen normalization has no counter.
    shapes = {key: shape for key, shape in published_shapes().items() if not key.endswith("num_batches_tracked")}
    state = {key: torch.rand(shape) for key, shape in shapes.items()}
    torch.save({"state_dict": state, "meta": {"epoch": 8}}, tmp_path / "oln.pth")
    report = load_weights(model, str(tmp_path / "oln.pth"))
    assert not report.unexpected and not report.reshaped and not report.uncovered
    top, bottom, left, right = state["rpn_head.rpn_reg.bias"]
    assert torch.equal(
        model.proposal_generator.rpn.rpn_head.anchor_deltas.bias, torch.stack([left, top, right, bottom])
    )
    unused = ("rpn_head.rpn_cls", "roi_head.bbox_head.fc_cls")
    back = {key: value for key, value in published_oln(model.state_dict()).items() if not key.endswith("tracked")}
    expected = {key: value for key, value in state.items() if not key.startswith(unused)}
    assert back.keys() == expected.keys()
    assert all(torch.equal(back[key], value) for key, value in expected.items())


def test_a_published_file_is_the_rpn_of_a_detector(tmp_path):
    state = {key: torch.rand(shape) for key, shape in published_shapes().items()}
    torch.save({"state_dict": state}, tmp_path / "oln.pth")
    options = TINY | {"MODEL.CLIP.OFFLINE_RPN_CONFIG": "configs/oln/coco48.yaml"}
    options["MODEL.CLIP.OFFLINE_RPN_LSJ_PRETRAINED"] = "False"
    model = build_model(load_config(LVIS_CUSTOM, flat(options)))
    report = load_weights(model, "", {"rpn": str(tmp_path / "oln.pth")}, allow_missing=["backbone", "roi_heads"])
    assert not [key for key in report.missing if key.startswith("offline_") and not key.endswith("tracked")]
    assert torch.equal(
        model.offline_proposal_generator.box.predictor.iou_score.weight,
        state["roi_head.bbox_head.fc_bbox_score.weight"],
    )
