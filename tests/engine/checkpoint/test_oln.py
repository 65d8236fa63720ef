"""The published OLN: its keys, and the order of its distances."""

import torch

from regionclip.config.loading import load_config
from regionclip.engine.checkpoint.layouts.mmdetection import published_oln
from regionclip.engine.checkpoint.loading import load_weights
from regionclip.modeling.build import build_model
from regionclip.testing.deterministic import fill_deterministic
from tests.helpers.detectors import LVIS_CUSTOM, TINY, flat
from tests.helpers.mmdetection import oln_shapes


def test_a_published_file_fills_the_model_and_comes_back(tmp_path):
    model = build_model(load_config("configs/oln/coco48.yaml", ["MODEL.DEVICE", "cpu"]))
    fill_deterministic(model)
    # Detectron2's frozen normalization has no counter.
    shapes = {key: shape for key, shape in oln_shapes().items() if not key.endswith("num_batches_tracked")}
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
    state = {key: torch.rand(shape) for key, shape in oln_shapes().items()}
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
