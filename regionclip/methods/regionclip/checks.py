"""Config checks of RegionCLIP, its heads and its pretraining."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from detectron2.config import CfgNode

from regionclip.clip.class_embeddings import load_class_embeddings, load_concepts, read_names
from regionclip.config.keys import get_value
from regionclip.config.loading import load_config
from regionclip.config.resolve import (
    CLIP_BACKBONES,
    DENSE_BACKBONES,
    clip_architecture,
    reads_class_names,
    uses_clip_backbone,
)
from regionclip.data.region_features.index import is_feature_folder
from regionclip.errors import Problem, UserError
from regionclip.files import existing_file
from regionclip.methods.regionclip.keys import FIXED_KEYS
from regionclip.methods.regionclip.resolve import teacher_architecture

CLIP_HEADS = ("CLIPRes5ROIHeads", "CLIPStandardROIHeads")
DENSE_HEADS = ("CLIPTransformerROIHeads",)

REGION_SOURCES = {
    "CLIPFastRCNN": ("GT", "GRID", "FILE", "NONE", "RPN"),
    "PretrainFastRCNN": ("RPN", "RANDOM", "GRID"),
}
"""Values of CROP_REGION_TYPE by meta-architecture."""

TRAINING_SOURCES = ("GT", "RPN")
"""Those that a detector can be trained with."""


def config_problems(cfg: CfgNode) -> Iterator[Problem]:
    """Yield the contradictions in a config."""
    for check in _CHECKS:
        yield from check(cfg)


def _check_fixed_values(cfg: CfgNode) -> Iterator[Problem]:
    if cfg.MODEL.BACKBONE.NAME not in DENSE_BACKBONES:
        return
    for key in FIXED_KEYS:
        value = get_value(cfg, key.name)
        if value != key.default:
            yield Problem(key.name, f"{key.default}, the only value that is built", str(value), "leave it out")


def _check_region_source(cfg: CfgNode) -> Iterator[Problem]:
    sources = REGION_SOURCES.get(cfg.MODEL.META_ARCHITECTURE)
    if sources is None:
        return
    clip = cfg.MODEL.CLIP
    key = "MODEL.CLIP.CROP_REGION_TYPE"
    if clip.CROP_REGION_TYPE not in sources:
        yield Problem(key, " or ".join(sources), repr(clip.CROP_REGION_TYPE), f"add {key} {sources[-1]}")
    elif clip.CROP_REGION_TYPE in ("GT", "GRID", "FILE") and clip.MULTIPLY_RPN_SCORE and not _has_objectness(cfg):
        boxes = {"GT": "ground-truth boxes", "GRID": "grid cells", "FILE": "boxes of a file"}[clip.CROP_REGION_TYPE]
        expected, fix = f"False with {boxes}, which have no objectness", "add MODEL.CLIP.MULTIPLY_RPN_SCORE False"
        yield Problem("MODEL.CLIP.MULTIPLY_RPN_SCORE", expected, "True", fix)
    elif clip.CROP_REGION_TYPE == "FILE" and not clip.PROPOSAL_FILE:
        name = "MODEL.CLIP.PROPOSAL_FILE"
        yield Problem(name, "a file of boxes", "nothing", f"name one (docs/features.md), or use {key} RPN")
    elif clip.CROP_REGION_TYPE == "RPN" and not clip.OFFLINE_RPN_CONFIG:
        yield Problem(
            "MODEL.CLIP.OFFLINE_RPN_CONFIG",
            "the YAML of the detector that proposes boxes",
            "nothing",
            f"name one of configs/*/mask_rcnn_R_50_*.yaml, or use {key} GT",
        )


def _has_objectness(cfg: CfgNode) -> bool:
    """Return whether given boxes have an objectness: those of a folder of region features may."""
    return cfg.MODEL.CLIP.CROP_REGION_TYPE == "FILE" and is_feature_folder(cfg.MODEL.CLIP.PROPOSAL_FILE or "")


def _check_fusion(cfg: CfgNode) -> Iterator[Problem]:
    clip, key = cfg.MODEL.CLIP, "MODEL.CLIP.RPN_SCORE_FUSION"
    fuses_logits = clip.MULTIPLY_RPN_SCORE and clip.RPN_SCORE_FUSION == "upstream"
    if not (fuses_logits and clip.CROP_REGION_TYPE == "RPN" and existing_file(clip.OFFLINE_RPN_CONFIG or "")):
        return
    if load_config(clip.OFFLINE_RPN_CONFIG).MODEL.PROPOSAL_GENERATOR.NAME == "OLN":
        expected = "sigmoid with OLN, whose logits are negative for scores below 0.5"
        yield Problem(key, expected, "'upstream'", f"add {key} sigmoid")


def _check_parts(cfg: CfgNode) -> Iterator[Problem]:
    if cfg.MODEL.META_ARCHITECTURE != "CLIPFastRCNN":
        return
    is_dense = cfg.MODEL.BACKBONE.NAME in DENSE_BACKBONES
    wanted = {"MODEL.BACKBONE.NAME": CLIP_BACKBONES + DENSE_BACKBONES}
    wanted["MODEL.ROI_HEADS.NAME"] = DENSE_HEADS if is_dense else CLIP_HEADS
    for key, names in wanted.items():
        if get_value(cfg, key) not in names:
            fix = f"add {key} {names[0]}"
            yield Problem(key, f"{' or '.join(names)} in this CLIPFastRCNN", repr(get_value(cfg, key)), fix)
    features = cfg.MODEL.ROI_HEADS.IN_FEATURES
    if cfg.MODEL.ROI_HEADS.NAME == "CLIPRes5ROIHeads" and len(features) != 1:
        fix = "add MODEL.ROI_HEADS.IN_FEATURES \"['res4']\""
        yield Problem("MODEL.ROI_HEADS.IN_FEATURES", "one feature map with CLIPRes5ROIHeads", str(features), fix)


def _check_architecture(cfg: CfgNode) -> Iterator[Problem]:
    if not uses_clip_backbone(cfg):
        return
    try:
        architecture = clip_architecture(cfg)
    except UserError:
        return  # reported by the checks shared by all configs
    is_pretraining = cfg.MODEL.META_ARCHITECTURE == "PretrainFastRCNN"
    if not cfg.MODEL.CLIP.USE_TEXT_EMB_CLASSIFIER and not is_pretraining:
        return
    wanted = {}
    if not is_pretraining:
        wanted["MODEL.CLIP.TEXT_EMB_DIM"] = (architecture.embedding_dim, "the embedding width")
    pooler = "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION"
    if cfg.MODEL.ROI_HEADS.NAME == "CLIPStandardROIHeads":
        # There is no layer4 between RoIAlign and the attention pool.
        wanted[pooler] = (architecture.attention_grid, "the grid of the attention pool")
        wanted["MODEL.FPN.OUT_CHANNELS"] = (architecture.attention_width, "the width of the attention pool")
    elif architecture.attention_grid != cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION // 2:
        wanted[pooler] = (architecture.pooler_resolution, "which fits the attention pool")
    for key, (value, meaning) in wanted.items():
        actual = get_value(cfg, key)
        if actual != value:
            yield Problem(key, f"{value}, {meaning} of {architecture.name}", str(actual), f"add {key} {value}")


def _check_classifier(cfg: CfgNode) -> Iterator[Problem]:
    clip, box_head = cfg.MODEL.CLIP, cfg.MODEL.ROI_BOX_HEAD
    if not clip.USE_TEXT_EMB_CLASSIFIER or reads_class_names(cfg):
        return
    uses_deltas = not (clip.NO_BOX_DELTA or clip.CROP_REGION_TYPE == "GT")
    if clip.OPENSET_TEST_TEXT_EMB_PATH and uses_deltas and not box_head.CLS_AGNOSTIC_BBOX_REG:
        key = "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG"
        yield Problem(
            key, "True with open-set classes, which have no box deltas of their own", "False", f"add {key} True"
        )


def _check_embeddings(cfg: CfgNode) -> Iterator[Problem]:
    clip = cfg.MODEL.CLIP
    if not clip.USE_TEXT_EMB_CLASSIFIER or reads_class_names(cfg):
        return
    rows = {"TEXT_EMB_PATH": cfg.MODEL.ROI_HEADS.NUM_CLASSES, "OPENSET_TEST_TEXT_EMB_PATH": None}
    for name, count in rows.items():
        if clip[name]:
            try:
                load_class_embeddings(clip[name], rows=count, dim=clip.TEXT_EMB_DIM, key=f"MODEL.CLIP.{name}")
            except UserError as error:
                yield from error.problems


def training_problems(cfg: CfgNode) -> Iterator[Problem]:
    """Yield the problems that prevent pretraining; transfer learning is checked like any other training."""
    clip, sides = cfg.MODEL.CLIP, cfg.AUG.TRAIN
    if cfg.MODEL.META_ARCHITECTURE == "CLIPFastRCNN" and clip.CROP_REGION_TYPE not in TRAINING_SOURCES:
        key, expected = "MODEL.CLIP.CROP_REGION_TYPE", f"{' or '.join(TRAINING_SOURCES)} in training"
        yield Problem(key, expected, repr(clip.CROP_REGION_TYPE), f"add {key} RPN")
    if cfg.MODEL.META_ARCHITECTURE == "CLIPFastRCNN" and clip.GET_CONCEPT_EMB:
        key = "MODEL.CLIP.GET_CONCEPT_EMB"
        yield Problem(key, "False in training, which uses no text encoder", "True", f"add {key} False")
    if cfg.MODEL.META_ARCHITECTURE != "PretrainFastRCNN":
        return
    if cfg.MODEL.ROI_HEADS.NAME != "PretrainRes5ROIHeads":
        key = "MODEL.ROI_HEADS.NAME"
        yield Problem(key, "PretrainRes5ROIHeads", repr(cfg.MODEL.ROI_HEADS.NAME), f"add {key} PretrainRes5ROIHeads")
    learns_concepts = clip.CONCEPT_POOL_EMB and (clip.DISTILL_LOSS_WEIGHT or clip.CONTRASTIVE_LOSS_WEIGHT)
    if not (clip.PRETRAIN_IMG_TXT_LEVEL or learns_concepts):
        fix = "name concept embeddings (tools/build_concept_pool.py), or add MODEL.CLIP.PRETRAIN_IMG_TXT_LEVEL True"
        yield Problem("MODEL.CLIP.CONCEPT_POOL_EMB", "something to learn from", "no loss is enabled", fix)
    if clip.PRETRAIN_IMG_TXT_LEVEL and not clip.PRETRAIN_ONLY_EOT:
        key = "MODEL.CLIP.PRETRAIN_ONLY_EOT"
        yield Problem(key, "True: a caption has one embedding", "False", f"add {key} True")
    if clip.CROP_REGION_TYPE == "RANDOM" and not clip.PRETRAIN_SAMPLE_REGIONS:
        key = "MODEL.CLIP.PRETRAIN_SAMPLE_REGIONS"
        yield Problem(key, "a number of random boxes", "None", f"add {key} 100")
    if len(sides.IMAGE_SIZE) not in (1, 2):
        yield Problem("AUG.TRAIN.IMAGE_SIZE", "one or two numbers", str(sides.IMAGE_SIZE), "write [800]")
    if clip.CONCEPT_POOL_EMB:
        yield from _concept_problems(cfg)


def _concept_problems(cfg: CfgNode) -> Iterator[Problem]:
    clip, key = cfg.MODEL.CLIP, "MODEL.CLIP.CONCEPT_THRES"
    if not isinstance(clip.CONCEPT_THRES, float | int):
        yield Problem(key, "a probability", repr(clip.CONCEPT_THRES), f"add {key} 0.1")
    try:
        teacher = teacher_architecture(cfg)
        table = load_concepts(
            clip.CONCEPT_POOL_EMB, clip_architecture(cfg).embedding_dim, "MODEL.CLIP.CONCEPT_POOL_EMB"
        )
        key = "MODEL.CLIP.TEACHER_CONCEPT_POOL_EMB"
        path = clip.TEACHER_CONCEPT_POOL_EMB or clip.CONCEPT_POOL_EMB
        load_concepts(path, teacher.embedding_dim, key, rows=len(table))
        names, others = read_names(clip.CONCEPT_POOL_EMB), read_names(path)
    except UserError as error:
        yield from error.problems
        return
    if names and others and names != others:
        different = next(f"{a} and {b}" for a, b in zip(names, others, strict=True) if a != b)
        yield Problem(
            key, "the student's concepts in the same order", different, "build both pools from one --names file"
        )
    if clip.PROPOSAL_CACHE and len(cfg.AUG.TRAIN.IMAGE_SIZE) == 2:
        expected = "no cache with random crops, of which no two are the same"
        yield Problem(
            "MODEL.CLIP.PROPOSAL_CACHE", expected, clip.PROPOSAL_CACHE, "leave it out, or one AUG.TRAIN.IMAGE_SIZE"
        )
    if clip.TEACHER_REGIONS == "aligned" and teacher.attention_grid != clip.TEACHER_POOLER_RESOLUTION // 2:
        key, fitting = "MODEL.CLIP.TEACHER_POOLER_RESOLUTION", teacher.pooler_resolution
        actual = str(clip.TEACHER_POOLER_RESOLUTION)
        yield Problem(
            key, f"{fitting}, which fits the attention pool of {teacher.name}", actual, f"add {key} {fitting}"
        )


_CHECKS: tuple[Callable[[CfgNode], Iterator[Problem]], ...] = (
    _check_fixed_values,
    _check_region_source,
    _check_fusion,
    _check_parts,
    _check_architecture,
    _check_classifier,
    _check_embeddings,
)
