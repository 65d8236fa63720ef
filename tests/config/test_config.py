"""Configuration: defaults, upstream's files, and the check at the door."""

import logging
import math

import pytest
import torch
import yaml
from detectron2.config import get_cfg as get_detectron2_cfg

from regionclip.config.checks import check_config
from regionclip.config.keys import all_keys, get_cfg, get_value
from regionclip.config.loading import load_config
from regionclip.errors import UserError
from regionclip.method import methods
from tests.helpers.detectors import flat
from tests.helpers.paths import DATA, REPOSITORY

CONFIGS = sorted(str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "configs").rglob("*.yaml"))
ZERO_SHOT = "configs/COCO-InstanceSegmentation/CLIP_fast_rcnn_R_50_C4_ovd_zsinf.yaml"


def test_defaults_are_detectron2s_plus_ours():
    cfg, stock = get_cfg(), get_detectron2_cfg()
    ours = {key.name for key in all_keys()}
    assert {name: get_value(cfg, name) for name in leaves(stock)} == {
        name: get_value(stock, name) for name in leaves(stock)
    }
    assert set(leaves(cfg)) - set(leaves(stock)) == ours
    assert cfg.MODEL.CLIP.CLSS_TEMP == 0.01
    assert cfg.MODEL.CLIP.TEXT_EMB_DIM == 1024
    assert cfg.MODEL.ROI_HEADS.SOFT_NMS_SIGMA == 0.5
    assert cfg.INPUT_DIR == "./datasets/custom_images"
    assert cfg.AUG.TRAIN.IMAGE_SIZE == [224, 224]


def test_configs_do_not_share_lists():
    get_cfg().AUG.TRAIN.IMAGE_SIZE.append(1)
    assert get_cfg().AUG.TRAIN.IMAGE_SIZE == [224, 224]


def leaves(cfg, prefix=""):
    for name, value in cfg.items():
        if (hasattr(value, "items") and not isinstance(value, dict | list)) or type(value) is type(cfg):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


@pytest.mark.parametrize("path", CONFIGS)
def test_shipped_configs_merge(path):
    cfg = load_config(path)
    values = yaml.safe_load((REPOSITORY / path).read_text())
    for name in ("META_ARCHITECTURE", "MASK_ON"):
        if name in values.get("MODEL", {}):
            assert cfg.MODEL[name] == values["MODEL"][name]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (
            ZERO_SHOT,
            {
                "MODEL.ROI_HEADS.NUM_CLASSES": 65,
                "MODEL.CLIP.NO_BOX_DELTA": True,
                "MODEL.CLIP.OFFLINE_RPN_NMS_THRESH": 0.9,
                "MODEL.CLIP.FOCAL_SCALED_LOSS": 0.5,
                "MODEL.RPN.POST_NMS_TOPK_TEST": 1000,
                "DATASETS.TEST": ("coco_2017_ovd_all_test",),
            },
        ),
        (
            "configs/LVISv1-InstanceSegmentation/CLIP_fast_rcnn_R_50_C4_custom_img.yaml",
            {
                "MODEL.CLIP.VIS": True,
                "MODEL.MASK_ON": False,
                "MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.3,
                "TEST.DETECTIONS_PER_IMAGE": 300,
                "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.02,
            },
        ),
        (
            "configs/LVISv1-InstanceSegmentation/mask_rcnn_CLIP_R_50_FPN_1x.yaml",
            {"MODEL.BACKBONE.NAME": "build_clip_resnet_fpn_backbone", "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 2000},
        ),
    ],
)
def test_values_of_published_configs(path, expected):
    cfg = load_config(path)
    assert {name: get_value(cfg, name) for name in expected} == expected


def good(embedding_file, **changes):
    overrides = {
        "MODEL.CLIP.TEXT_EMB_PATH": embedding_file("coco_65", 65, 1024),
        "MODEL.CLIP.CROP_REGION_TYPE": "GT",
        "MODEL.CLIP.MULTIPLY_RPN_SCORE": "False",
        "DATASETS.TEST": "()",
    }
    return load_config(ZERO_SHOT, flat(overrides | changes))


def test_good_config_passes(embedding_file):
    check_config(good(embedding_file))


CONTRADICTIONS = {
    "MODEL.CLIP.CROP_REGION_TYPE": ("MODEL.CLIP.CROP_REGION_TYPE", "RANDOM"),
    "MODEL.CLIP.MULTIPLY_RPN_SCORE": ("MODEL.CLIP.MULTIPLY_RPN_SCORE", "True"),
    "MODEL.CLIP.PROPOSAL_FILE": ("MODEL.CLIP.CROP_REGION_TYPE", "FILE"),
    "MODEL.CLIP.OFFLINE_RPN_CONFIG": ("MODEL.CLIP.CROP_REGION_TYPE", "RPN"),
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": ("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", "18"),
    "MODEL.WEIGHTS": ("MODEL.WEIGHTS", "no/such/file.pth"),
    "MODEL.RESNETS.DEPTH": ("MODEL.RESNETS.DEPTH", "152"),
    "MODEL.CLIP.ARCHITECTURE": ("MODEL.CLIP.ARCHITECTURE", "RN51"),
    "MODEL.CLIP.TEXT_EMB_PATH": ("MODEL.CLIP.TEXT_EMB_PATH", "no/such/embeddings.pth"),
    "MODEL.ROI_HEADS.SOFT_NMS_METHOD": ("MODEL.ROI_HEADS.SOFT_NMS_METHOD", "cubic"),
    "MODEL.CLIP.RPN_SCORE_FUSION": ("MODEL.CLIP.RPN_SCORE_FUSION", "product"),
    "INPUT.FORMAT": ("INPUT.FORMAT", "BGR"),
    "INPUT.TEXT_TOKENIZER": ("INPUT.TEXT_TOKENIZER", "words"),
    "DATASETS.TEST": ("DATASETS.TEST", "('coco_2018_val',)"),
    "MODEL.META_ARCHITECTURE": ("MODEL.META_ARCHITECTURE", "NoSuchRCNN"),
    "MODEL.BACKBONE.NAME": ("MODEL.BACKBONE.NAME", "build_resnet_backbone"),
    "MODEL.ROI_HEADS.NAME": ("MODEL.ROI_HEADS.NAME", "Res5ROIHeads"),
    "MODEL.ROI_HEADS.IN_FEATURES": ("MODEL.ROI_HEADS.IN_FEATURES", "['res3', 'res4']"),
    "MODEL.CLIP.CLSS_TEMP": ("MODEL.CLIP.CLSS_TEMP", "0.0"),
}


@pytest.mark.parametrize("key", CONTRADICTIONS)
def test_contradiction_is_reported_with_key_and_fix(embedding_file, key):
    name, value = CONTRADICTIONS[key]
    with pytest.raises(UserError) as caught:
        check_config(good(embedding_file, **{name: value}))
    (problem,) = caught.value.problems
    assert problem.what.startswith(key)
    assert problem.expected
    assert problem.actual
    assert problem.fix


WRONG_NUMBERS = {
    "AUG.TRAIN.FLIP_PROBABILITY": (1.5, "a probability in [0, 1]"),
    "INPUT.CROP_FIRST": (-0.1, "a probability in [0, 1]"),
    "MODEL.CLIP.CLSS_TEMP": (math.nan, "a temperature above 0"),
    "MODEL.CLIP.SCORE_TEMPERATURE": (0.0, "a temperature above 0"),
    "MODEL.CLIP.SCORE_BIAS": (21.0, "log odds in [-20, 20]"),
    "MODEL.CLIP.OFFLINE_RPN_NMS_THRESH": (70.0, "an IoU in [0, 1]"),
    "MODEL.CLIP.OFFLINE_RPN_POST_NMS_TOPK_TEST": (100.5, "a whole number, at least 1"),
    "MODEL.CLIP.FOCAL_SCALED_LOSS": (-2.0, "a factor from 0"),
    "MODEL.CLIP.TEACHER_CLSS_TEMP": (0.0, "a temperature above 0"),
    "MODEL.CLIP.DISTILL_LOSS_WEIGHT": (-1.0, "a factor from 0"),
    "MODEL.ROI_HEADS.SOFT_NMS_SIGMA": (0.0, "a number above 0"),
    "MODEL.CLIP.NEGATIVE_CAPTIONS": (-1, "a number from 0"),
    "MODEL.CORA.NOVEL_FACTOR": (math.inf, "a factor above 0"),
}


@pytest.mark.parametrize("key", WRONG_NUMBERS)
def test_a_number_outside_its_limits_is_refused(embedding_file, key):
    value, expected = WRONG_NUMBERS[key]
    cfg = good(embedding_file)
    cfg.defrost()
    cfg.merge_from_list([key, value])
    with pytest.raises(UserError) as caught:
        check_config(cfg)
    (problem,) = caught.value.problems
    assert (problem.what, problem.expected, problem.actual) == (key, expected, repr(value))
    assert problem.fix.startswith(f"add {key} ")


@pytest.mark.parametrize(
    "path", ["cora/coco_rn50.yaml", "cora/region_coco_rn50.yaml", "lp_ovod/coco_base.yaml", "ralf/detpro_lvis.yaml"]
)
def test_half_precision_is_refused_where_no_part_computes_in_it(path):
    cfg = load_config(f"configs/{path}", ["MODEL.CLIP.INFERENCE_PRECISION", "bfloat16"])
    with pytest.raises(UserError, match=r"INFERENCE_PRECISION: expected float32 with .*, got 'bfloat16'"):
        check_config(cfg)


def test_defaults_and_ends_are_within_their_limits(embedding_file):
    limited = [key for key in all_keys() if key.limits]
    assert len(limited) > 50
    for key in limited:
        assert key.default is None or key.limits.contain(key.default), key.name
        assert key.limits.contain(key.limits.lowest) != key.limits.excludes_lowest
    check_config(good(embedding_file, **{"AUG.TRAIN.FLIP_PROBABILITY": "1.0", "INPUT.CROP_FIRST": "0.0"}))


def test_all_contradictions_are_reported_together(embedding_file):
    changes = dict(CONTRADICTIONS[key] for key in ("MODEL.WEIGHTS", "INPUT.FORMAT", "INPUT.TEXT_TOKENIZER"))
    with pytest.raises(UserError) as caught:
        check_config(good(embedding_file, **changes))
    assert [p.what for p in caught.value.problems] == ["MODEL.WEIGHTS", "INPUT.FORMAT", "INPUT.TEXT_TOKENIZER"]


@pytest.mark.parametrize(("rows", "dim", "shape"), [(65, 512, "[65, 512]"), (80, 1024, "[80, 1024]"), (65, 1024, None)])
def test_embedding_shape_is_checked(embedding_file, rows, dim, shape):
    cfg = good(embedding_file, **{"MODEL.CLIP.TEXT_EMB_PATH": embedding_file("any", rows, dim)})
    if shape is None:
        check_config(cfg)
        return
    with pytest.raises(UserError, match="TEXT_EMB_PATH") as caught:
        check_config(cfg)
    assert shape in caught.value.problems[0].actual
    assert "[65, 1024]" in caught.value.problems[0].expected


@pytest.mark.parametrize("content", [{"names": ["cat"]}, torch.zeros(65), torch.full((65, 1024), float("nan"))])
def test_embeddings_of_another_kind_are_refused(embedding_file, tmp_path, content):
    path = tmp_path / "embeddings.pth"
    torch.save(content, path)
    with pytest.raises(UserError, match="TEXT_EMB_PATH"):
        check_config(good(embedding_file, **{"MODEL.CLIP.TEXT_EMB_PATH": str(path)}))


@pytest.mark.parametrize("key", [key.name for method in methods() for key in method.dead_keys])
def test_dead_keys_merge_with_a_warning(tmp_path, caplog, key):
    """Upstream's files set some of them, integers where the defaults are fractions among them."""
    text = "1"
    for name in reversed(key.split(".")):
        text = f"{{{name}: {text}}}"
    (tmp_path / "old.yaml").write_text(text)
    with caplog.at_level(logging.WARNING):
        load_config(str(tmp_path / "old.yaml"))
        load_config("", [key, "1"])
    assert caplog.text.count("Deprecated config key") == 2


def test_class_specific_boxes_do_not_go_with_open_set_classes(embedding_file):
    open_set = {
        "MODEL.CLIP.OPENSET_TEST_TEXT_EMB_PATH": embedding_file("open", 17, 1024),
        "MODEL.CLIP.CROP_REGION_TYPE": "RPN",
        "MODEL.CLIP.OFFLINE_RPN_CONFIG": "configs/COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x_ovd_FSD.yaml",
        "MODEL.CLIP.NO_BOX_DELTA": "False",
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": "False",
    }
    with pytest.raises(UserError, match="CLS_AGNOSTIC_BBOX_REG"):
        check_config(good(embedding_file, **open_set))


def test_standard_head_pools_to_the_grid_of_the_attention_pool(embedding_file):
    head = {"MODEL.ROI_HEADS.NAME": "CLIPStandardROIHeads", "MODEL.FPN.OUT_CHANNELS": "2048"}
    with pytest.raises(UserError, match="expected 7, the grid of the attention pool"):
        check_config(good(embedding_file, **head))
    check_config(good(embedding_file, **head, **{"MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": "7"}))


def test_a_config_file_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text('MODEL:\n  WEIGHTS: !!python/object/apply:os.system ["touch exploded"]\n')
    with pytest.raises(UserError, match="readable YAML"):
        load_config("config.yaml")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    "text",
    [
        '_BASE_: "config.yaml"\n',
        "_BASE_: missing.yaml\n",
        "MODEL: [unclosed",
        "MODEL:\n  NO_SUCH_KEY: 1\n",
        "MODEL:\n  CLIP:\n    CLSS_TEMP: [1]\n",
        "- a\n- list\n",
    ],
)
def test_unreadable_yaml_is_one_error(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"config\.yaml") as caught:
        load_config(str(path))
    assert len(caught.value.problems) == 1


def test_paths_resolve_to_the_repository_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config(ZERO_SHOT).MODEL.ROI_HEADS.NUM_CLASSES == 65


def test_any_architecture_can_be_described(embedding_file):
    tiny = {
        "MODEL.CLIP.ARCHITECTURE": str(DATA / "tiny_clip.json"),
        "MODEL.CLIP.TEXT_EMB_DIM": "32",
        "MODEL.CLIP.TEXT_EMB_PATH": embedding_file("coco_65", 65, 32),
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": "4",
    }
    check_config(good(embedding_file, **tiny))


@pytest.mark.parametrize("name", ["RN50", "RN101", "RN50x4", "RN50x16", "RN50x64"])
def test_named_architectures_agree_with_open_clip(name):
    import open_clip

    from regionclip.clip.architectures import get_architecture

    published = open_clip.get_model_config(name)
    ours = get_architecture(name)
    assert ours.embedding_dim == published["embed_dim"]
    assert list(ours.blocks) == published["vision_cfg"]["layers"]
    assert (ours.width, ours.image_resolution) == (
        published["vision_cfg"]["width"],
        published["vision_cfg"]["image_size"],
    )
    text = published["text_cfg"]
    assert (ours.text_width, ours.text_heads, ours.text_layers) == (text["width"], text["heads"], text["layers"])


def test_whole_numbers_are_taken_for_float_keys():
    cfg = load_config("", ["MODEL.LP_OVOD.DISTILL_WEIGHT", "0", "SOLVER.BASE_LR", "1", "SOLVER.MAX_ITER", "7"])
    assert (cfg.MODEL.LP_OVOD.DISTILL_WEIGHT, cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER) == (0.0, 1.0, 7)
    assert isinstance(cfg.SOLVER.BASE_LR, float) and isinstance(cfg.SOLVER.MAX_ITER, int)
