"""Published files of LP-OVOD: their keys both ways, what probing trains, and initial weights of other files."""

import pytest
import torch

from regionclip.config.loading import load_config
from regionclip.engine.checkpoint.loading import load_weights, parts_with_weights
from regionclip.errors import UserError
from regionclip.methods.lp_ovod.checkpoints import published_state
from regionclip.modeling.build import build_model
from tests.helpers.detectors import flat
from tests.helpers.mmdetection import backbone_shapes, lp_ovod_shapes

OPTIONS = {"MODEL.DEVICE": "cpu", "MODEL.CLIP.CROP_REGION_TYPE": ""}


def build(stage="probe", **overrides):
    changes = {key.replace("__", "."): str(value) for key, value in overrides.items()}
    return build_model(load_config(f"configs/lp_ovod/coco_{stage}.yaml", flat(OPTIONS | changes)))


def numbers(shapes):
    return {key: torch.rand(shape) if shape else torch.tensor(7) for key, shape in shapes.items()}


def test_a_published_file_fills_the_detector_and_comes_back(tmp_path):
    state = numbers(lp_ovod_shapes())
    torch.save({"state_dict": state, "meta": {"epoch": 12}, "optimizer": {}}, tmp_path / "vild_sigmoid_ft.pth")
    model = build()
    report = load_weights(model, str(tmp_path / "vild_sigmoid_ft.pth"))
    assert not report.missing and not report.unexpected and not report.reshaped
    assert torch.equal(model.predictor.novel_prototypes, state["roi_head.prototype_novel"])
    assert torch.equal(model.roi_heads.distill_box_head.conv3.norm.bias, state[f"{IMAGE}.2.bn.bias"])
    back = published_state(model.state_dict())
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], value) for key, value in state.items())


IMAGE = "roi_head.bbox_head.shared_convs_for_image"


def test_a_file_before_probing_leaves_the_novel_prototypes_as_zeros(tmp_path):
    shapes = {key: shape for key, shape in lp_ovod_shapes().items() if key != "roi_head.prototype_novel"}
    torch.save({"state_dict": numbers(shapes)}, tmp_path / "vild_sigmoid.pth")
    base = build("base")
    assert not load_weights(base, str(tmp_path / "vild_sigmoid.pth")).missing
    model = build()
    cfg = load_config("configs/lp_ovod/coco_probe.yaml", flat(OPTIONS))
    report = load_weights(model, str(tmp_path / "vild_sigmoid.pth"), required=parts_with_weights(cfg, model))
    assert report.missing == ["roi_heads.box_predictor.novel_prototypes"]
    assert not bool(model.predictor.novel_prototypes.any())


def test_probing_trains_the_novel_prototypes_only():
    model = build()
    trained = {key: weight.numel() for key, weight in model.named_parameters() if weight.requires_grad}
    assert trained == {"roi_heads.box_predictor.novel_prototypes": 17_408}
    base = build("base")
    assert all(weight.requires_grad for weight in base.parameters())


@pytest.mark.parametrize("source", ["soco", "imagenet"])
def test_base_training_starts_from_files_of_the_backbone(source, tmp_path):
    model = build("base")
    cfg = load_config("configs/lp_ovod/coco_base.yaml", flat(OPTIONS))
    if source == "soco":
        state = numbers(backbone_shapes(pyramid_norm=True))
        torch.save({"state_dict": state}, tmp_path / "weights.pth")
        stem = state["backbone.conv1.weight"]
    else:
        prefix = "backbone.bottom_up."
        state = {key.removeprefix(prefix): value for key, value in model.state_dict().items() if prefix in key}
        state = {key: torch.rand_like(value.float()) for key, value in state.items()}
        torch.save({"model": state}, tmp_path / "weights.pth")
        stem = state["stem.conv1.weight"]
    required = parts_with_weights(cfg, model)
    report = load_weights(model, str(tmp_path / "weights.pth"), required=required)
    assert required == ("backbone.bottom_up.",)
    assert torch.equal(model.backbone.bottom_up.stem.conv1.weight, stem)
    assert not [key for key in report.uncovered if key.startswith("backbone.bottom_up.")]


def test_without_distillation_its_head_is_not_trained():
    model = build("base", MODEL__LP_OVOD__DISTILL_WEIGHT=0.0)
    frozen = {key.split(".")[1] for key, weight in model.named_parameters() if not weight.requires_grad}
    assert frozen == {"distill_box_head", "distill_projection"}


def test_probing_needs_the_prototypes_and_deltas_of_the_base_detector(tmp_path):
    shapes = lp_ovod_shapes()
    shapes["roi_head.prototype"] = (47, 1024)
    torch.save({"state_dict": numbers(shapes)}, tmp_path / "other.pth")
    model, cfg = build(), load_config("configs/lp_ovod/coco_probe.yaml", flat(OPTIONS))
    with pytest.raises(UserError, match=r"prototypes has shape \[47, 1024\], the model needs \[48, 1024\]"):
        load_weights(model, str(tmp_path / "other.pth"), required=parts_with_weights(cfg, model))
