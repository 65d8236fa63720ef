"""Weights of every published layout load completely; nothing else changes; bad files are one error."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from regionclip.clip.architectures import get_architecture
from regionclip.clip.resnet import ModifiedResNet
from regionclip.clip.text_encoder import TextEncoder
from regionclip.config.loading import load_config
from regionclip.engine.checkpoint.loading import load_weights
from regionclip.engine.checkpoint.reading import read_checkpoint
from regionclip.errors import UserError
from regionclip.modeling.build import build_model
from regionclip.testing.deterministic import deterministic_state_dict
from tests.helpers.detectors import TINY, flat
from tests.helpers.paths import DATA
from tests.helpers.pickles import Bomb

ZERO_SHOT = "configs/COCO-InstanceSegmentation/CLIP_fast_rcnn_R_50_C4_ovd_zsinf.yaml"
LVIS_RPN = "configs/LVISv1-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"
TINY_CLIP = get_architecture(str(DATA / "tiny_clip.json"))
RPNS = {
    "C4 RPN": {},
    "FPN RPN": {"MODEL.CLIP.OFFLINE_RPN_CONFIG": LVIS_RPN},
    "LSJ RPN": {"MODEL.CLIP.OFFLINE_RPN_CONFIG": LVIS_RPN, "MODEL.CLIP.OFFLINE_RPN_LSJ_PRETRAINED": "True"},
    "ground truth": {"MODEL.CLIP.CROP_REGION_TYPE": "GT", "MODEL.CLIP.MULTIPLY_RPN_SCORE": "False"},
}


@pytest.fixture
def detector(embedding_file):
    """Build a tiny detector; its own random weights show what was not loaded."""

    def build(**overrides):
        embeddings = {
            "MODEL.CLIP.TEXT_EMB_PATH": embedding_file("coco_65", 65, 32),
            "MODEL.CLIP.GET_CONCEPT_EMB": "True",
        }
        return build_model(load_config(ZERO_SHOT, flat(TINY | embeddings | overrides)))

    return build


def clip_weights():
    """Return the weights of a whole tiny CLIP under OpenAI's names, with its scalars."""
    text = TextEncoder(TINY_CLIP).state_dict()
    image_encoder = ModifiedResNet(TINY_CLIP).state_dict()
    names = {f"backbone.{key}": value.shape for key, value in image_encoder.items()}
    names |= {f"lang_encoder.{key}": value.shape for key, value in text.items()}
    values = deterministic_state_dict(names)
    renamed = {key.replace("backbone.", "visual.").replace("lang_encoder.", ""): v for key, v in values.items()}
    counters = {f"visual.{key}": value for key, value in image_encoder.items() if key.endswith("num_batches_tracked")}
    return renamed | counters | {"logit_scale": torch.tensor(4.6)}


def weights_of_rpn(model):
    """Return weights for the RPN of `model` under the names of a detector of its own."""
    entries = {key: value.shape for key, value in model.state_dict().items() if key.startswith("offline_")}
    detector = {key.removeprefix("offline_"): value for key, value in deterministic_state_dict(entries).items()}
    head = {"roi_heads.box_predictor.cls_score.weight": torch.zeros(3, 8)}
    constants = {"proposal_generator.anchor_generator.cell_anchors.0": torch.zeros(3, 4)}
    return detector | head | constants


class Tree(nn.Module):
    """A module with the given entries, for making a TorchScript archive."""

    def __init__(self, state):
        super().__init__()
        children = {}
        for key, value in state.items():
            head, _, rest = key.partition(".")
            if rest:
                children.setdefault(head, {})[rest] = value
            else:
                self.register_buffer(head, value)
        for name, entries in children.items():
            self.add_module(name, Tree(entries))

    def forward(self, x):
        return x


def save_torchscript(state, path):
    half = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    archive = Tree(half | {"input_resolution": torch.tensor(64), "context_length": torch.tensor(77)})
    torch.jit.trace(archive, torch.zeros(1)).save(path)


def teacher_layout(state):
    image_encoders = {key: value for key, value in state.items() if key.startswith("visual.")}
    bare = {key: value for key, value in state.items() if not key.startswith("visual.")}
    return bare | {
        key.replace("visual.", f"{name}."): value
        for name in ("backbone", "teacher_backbone")
        for key, value in image_encoders.items()
    }


LAYOUTS = {
    "OpenAI TorchScript archive": (".pt", save_torchscript),
    "OpenAI state dict": (".pth", torch.save),
    "open_clip training checkpoint": (
        ".pt",
        lambda state, path: torch.save(
            {"epoch": 3, "name": "RN50", "state_dict": {f"module.{k}": v for k, v in state.items()}}, path
        ),
    ),
    "open_clip safetensors": (".safetensors", lambda state, path: safetensors.torch.save_file(state, path)),
    "open_clip with a text module": (
        ".pt",
        lambda state, path: torch.save(
            {k if "visual" in k or "logit" in k else f"text.{k}": v for k, v in state.items()}, path
        ),
    ),
    "teacher_student_OAI_CLIP": (".pth", lambda state, path: torch.save(teacher_layout(state), path)),
    "RegionCLIP": (
        ".pth",
        lambda state, path: torch.save(
            {
                "model": {
                    (k.replace("visual.", "backbone.") if "visual" in k else f"lang_encoder.{k}"): v
                    for k, v in state.items()
                    if k != "logit_scale"
                },
                "iteration": 599999,
            },
            path,
        ),
    ),
}


FIRST_LAYOUT, FIRST_RPN = next(iter(LAYOUTS)), next(iter(RPNS))


@pytest.mark.parametrize(
    ("layout", "rpn"),
    [*((layout, FIRST_RPN) for layout in LAYOUTS), *((FIRST_LAYOUT, rpn) for rpn in RPNS if rpn != FIRST_RPN)],
)
def test_every_layout_loads_completely(detector, tmp_path, layout, rpn):
    model = detector(**RPNS[rpn])
    ending, save = LAYOUTS[layout]
    weights, rpn_weights = tmp_path / f"clip{ending}", tmp_path / "rpn.pth"
    state = clip_weights()
    save(state, weights)
    needs_rpn = rpn != "ground truth"
    if needs_rpn:
        torch.save({"model": weights_of_rpn(model), "iteration": 1}, rpn_weights)
    report = load_weights(model, str(weights), {"rpn": str(rpn_weights)} if needs_rpn else None)
    assert not report.uncovered
    assert not report.reshaped
    loaded = model.state_dict()
    rounding = 1e-3 if "TorchScript" in layout else 0
    for key, value in state.items():
        name = key.replace("visual.", "backbone.") if "visual" in key else f"lang_encoder.{key}"
        if name in loaded:
            torch.testing.assert_close(loaded[name], value, rtol=rounding, atol=rounding)
    named = {k.replace("visual.", "backbone.") if "visual" in k else f"lang_encoder.{k}" for k in state}
    ours = {key for key in loaded if key.startswith(("backbone.", "lang_encoder."))}
    assert ours <= named
    if needs_rpn:
        for key, value in weights_of_rpn(model).items():
            if f"offline_{key}" in loaded:
                assert torch.equal(loaded[f"offline_{key}"], value)


def test_whole_regionclip_file_gives_rpn_and_ignores_teacher(detector, tmp_path):
    model = detector()
    names = {key: value.shape for key, value in model.state_dict().items()}
    state = deterministic_state_dict(names)
    teacher = {
        key.replace("backbone.", "teacher_backbone.", 1): v for key, v in state.items() if key[:9] == "backbone."
    }
    path = tmp_path / "regionclip_pretrained.pth"
    torch.save({"model": state | teacher}, path)
    report = load_weights(model, str(path))
    assert not report.uncovered
    assert report.unexpected == set(teacher)
    for key, value in model.state_dict().items():
        if "cls_score" not in key:
            assert torch.equal(value, state[key]), key


def test_whole_regionclip_file_as_rpn_weights(detector, tmp_path):
    model = detector()
    state = deterministic_state_dict({key: value.shape for key, value in model.state_dict().items()})
    path = tmp_path / "regionclip.pth"
    torch.save({"model": state}, path)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    load_weights(model, "", {"rpn": str(path)}, required=())
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key] if key.startswith("offline_") else before[key]), key


@pytest.mark.parametrize("rpn", ["C4 RPN", "FPN RPN"])
def test_rpn_file_leaves_everything_else_bit_identical(detector, tmp_path, rpn):
    model = detector(**RPNS[rpn])
    weights, rpn_weights = tmp_path / "clip.pth", tmp_path / "rpn.pth"
    torch.save(clip_weights(), weights)
    torch.save({"model": weights_of_rpn(model)}, rpn_weights)
    load_weights(model, str(weights), required=())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    load_weights(model, "", {"rpn": str(rpn_weights)}, required=())
    statistics = [key for key in before if key.startswith("backbone.") and "running_" in key]
    assert len(statistics) > 20
    assert all(torch.equal(model.state_dict()[key], before[key]) for key in before if not key.startswith("offline_"))


def test_rpn_file_wins_over_the_main_file(detector, tmp_path):
    model = detector()
    entries = model.state_dict()
    main = {key: torch.ones_like(value) for key, value in entries.items()}
    main_path, rpn_path = tmp_path / "main.pth", tmp_path / "rpn.pth"
    torch.save({"model": main}, main_path)
    torch.save({"model": weights_of_rpn(model)}, rpn_path)
    load_weights(model, str(main_path), {"rpn": str(rpn_path)})
    expected = weights_of_rpn(model)["proposal_generator.rpn_head.conv.weight"]
    assert torch.equal(model.state_dict()["offline_proposal_generator.rpn_head.conv.weight"], expected)


def test_rpn_file_that_does_not_fit_is_an_error_whatever_the_main_file_holds(detector, tmp_path):
    model = detector(**RPNS["FPN RPN"])
    main_path, rpn_path = tmp_path / "main.pth", tmp_path / "rpn.pth"
    torch.save({"model": model.state_dict()}, main_path)
    torch.save({"model": weights_of_rpn(detector())}, rpn_path)
    with pytest.raises(UserError, match="weights of offline_backbone"):
        load_weights(model, str(main_path), {"rpn": str(rpn_path)})


def test_clip_fills_the_image_encoder_under_a_pyramid(tmp_path):
    overrides = {k: TINY[k] for k in ("MODEL.DEVICE", "MODEL.CLIP.ARCHITECTURE")} | {"MODEL.FPN.OUT_CHANNELS": "16"}
    model = build_model(
        load_config("configs/LVISv1-InstanceSegmentation/mask_rcnn_CLIP_R_50_FPN_1x.yaml", flat(overrides))
    )
    path = tmp_path / "clip.pth"
    torch.save(clip_weights(), path)
    report = load_weights(model, str(path), required=())
    image_encoder = {key for key in model.state_dict() if key.startswith("backbone.bottom_up.")}
    assert image_encoder == report.matched


def test_configured_embeddings_win_over_those_of_a_checkpoint(detector, tmp_path):
    model = detector(**RPNS["ground truth"])
    configured = model.state_dict()["roi_heads.box_predictor.cls_score.weight"].clone()
    path = tmp_path / "finetuned.pth"
    torch.save({"model": {key: torch.ones_like(value) for key, value in model.state_dict().items()}}, path)
    load_weights(model, str(path))
    assert torch.equal(model.state_dict()["roi_heads.box_predictor.cls_score.weight"], configured)


def test_embeddings_of_a_checkpoint_are_used_when_none_are_configured(detector, tmp_path):
    model = detector(**RPNS["ground truth"], **{"MODEL.CLIP.TEXT_EMB_PATH": ""})
    path = tmp_path / "finetuned.pth"
    torch.save({"model": {key: torch.ones_like(value) for key, value in model.state_dict().items()}}, path)
    load_weights(model, str(path))
    assert (model.state_dict()["roi_heads.box_predictor.cls_score.weight"] == 1).all()


def test_uncovered_part_is_an_error_that_allow_missing_accepts(detector, tmp_path):
    model = detector(**RPNS["ground truth"])
    path = tmp_path / "clip.pth"
    without_pool = {key: value for key, value in clip_weights().items() if "attnpool" not in key}
    torch.save(without_pool, path)
    with pytest.raises(UserError) as caught:
        load_weights(model, str(path))
    (problem,) = caught.value.problems
    assert problem.what == "weights of backbone.attnpool"
    assert "--allow-missing backbone.attnpool" in problem.fix
    load_weights(model, str(path), allow_missing=["backbone.attnpool"])


def test_wrong_shape_is_named(detector, tmp_path):
    model = detector(**RPNS["ground truth"])
    state = clip_weights()
    state["visual.attnpool.positional_embedding"] = torch.zeros(82, 512)
    path = tmp_path / "clip.pth"
    torch.save(state, path)
    with pytest.raises(UserError, match=r"positional_embedding has shape \[82, 512\], the model needs \[5, 512\]"):
        load_weights(model, str(path))


def test_report_counts_by_prefix(detector, tmp_path):
    model = detector(**RPNS["ground truth"])
    path = tmp_path / "clip.pth"
    torch.save(clip_weights() | {"something.else": torch.zeros(1)}, path)
    report = load_weights(model, str(path))
    assert "something.else" in report.unexpected
    rows = {line.split()[0]: line.split()[1:] for line in report.table().splitlines()[2:]}
    expected = sum(key.startswith("lang_encoder.") for key in model.state_dict())
    assert rows["lang_encoder"] == [str(expected)]
    assert rows["something"] == ["1"]


def write_truncated(path):
    torch.save(clip_weights(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BAD_FILES = {
    "truncated": (write_truncated, "readable checkpoint"),
    "empty": (lambda path: path.write_bytes(b""), "readable checkpoint"),
    "text": (lambda path: path.write_text("Not found"), "readable checkpoint"),
    "no weights": (lambda path: torch.save({"model": {"a": 1}}, path), "no tensors"),
    "a list": (lambda path: torch.save([1, 2], path), "state dict"),
    "unsafe": (lambda path: torch.save({"model": {"a": torch.zeros(1)}, "x": Bomb()}, path), "--trust-pickle"),
    "a vision transformer": (
        lambda path: torch.save({"visual.transformer.resblocks.0.ln_1.weight": torch.zeros(8)}, path),
        "ResNet image encoder",
    ),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_file_is_one_clear_error(detector, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    write, expected = BAD_FILES[kind]
    write(tmp_path / "weights.pth")
    with pytest.raises(UserError, match=expected) as caught:
        load_weights(detector(**RPNS["ground truth"]), "weights.pth")
    assert len(caught.value.problems) == 1
    assert not Path("exploded").exists()


def test_address_that_cannot_be_reached_is_one_clear_error():
    with pytest.raises(UserError, match="readable checkpoint"):
        read_checkpoint("http://127.0.0.1:1/weights.pth")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_removed(tmp_path, prefix):
    torch.save({f"{prefix}backbone.weight": torch.ones(1)}, tmp_path / "w.pth")
    assert set(read_checkpoint(str(tmp_path / "w.pth")).state) == {"backbone.weight"}


def test_missing_file_is_one_clear_error():
    with pytest.raises(UserError, match="no such file"):
        read_checkpoint("no/such/file.pth")


def test_ending_may_be_left_out(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "weights.pth")
    assert set(read_checkpoint(str(tmp_path / "weights")).state) == {"a"}


def test_trusted_pickle_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {"a": torch.zeros(1)}, "x": Bomb()}, "weights.pth")
    assert set(read_checkpoint("weights.pth", trust_pickle=True).state) == {"a"}


def test_rpn_file_without_proposals_is_refused(detector, tmp_path):
    path = tmp_path / "clip.pth"
    torch.save(clip_weights(), path)
    with pytest.raises(UserError, match="region proposal network"):
        load_weights(detector(), str(path), {"rpn": str(path)}, required=())


def test_model_zoo_pickle_is_read_without_running_code(tmp_path):
    arrays = {"stem.conv1.weight": np.ones((64, 3, 7, 7), np.float32)}
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "MSRA"}, protocol=2))
    assert torch.equal(read_checkpoint(str(path)).state["stem.conv1.weight"], torch.ones(64, 3, 7, 7))
    path.write_bytes(pickle.dumps({"model": arrays, "x": Bomb()}))
    with pytest.raises(UserError, match="could run code"):
        read_checkpoint(str(path))


def test_imagenet_backbone_starts_a_plain_detector(tmp_path):
    cfg = load_config("configs/COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x_ovd_FSD.yaml", ["MODEL.DEVICE", "cpu"])
    model = build_model(cfg)
    entries = {k.removeprefix("backbone."): v for k, v in model.state_dict().items() if k.startswith("backbone.")}
    arrays = {key: np.full(value.shape, 0.5, np.float32) for key, value in entries.items()}
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "MSRA", "matching_heuristics": True}))
    load_weights(model, str(path), required=())
    assert all((v == 0.5).all() for k, v in model.state_dict().items() if k.startswith("backbone."))
