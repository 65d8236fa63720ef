"""The check at the door: all contradictions of a finished config, reported together."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from regionclip.clip import CLIPArchitecture, architecture_from_depth, get_architecture, load_class_embeddings
from regionclip.config.keys import DEAD_KEYS, get_value
from regionclip.errors import Problem, UserError
from regionclip.files import resolve_path

logger = logging.getLogger(__name__)

CLIP_BACKBONES = ("build_clip_resnet_backbone", "build_clip_resnet_fpn_backbone")
REGION_SOURCES = {"CLIPFastRCNN": ("GT", "RPN"), "PretrainFastRCNN": ("RPN", "RANDOM", "GRID")}
"""Values of CROP_REGION_TYPE by meta-architecture."""

CHOICES = {
    "MODEL.CLIP.RPN_SCORE_FUSION": ("upstream", "sigmoid"),
    "MODEL.CLIP.VIS_BEHAVIOUR": ("corrected", "upstream"),
    "MODEL.ROI_HEADS.SOFT_NMS_METHOD": ("gaussian", "linear", "hard"),
    "MODEL.ROI_HEADS.SOFT_NMS_CLASS_SEPARATION": ("exact", "upstream"),
    "TEST.EVALUATION_BACKEND": ("faster", "official"),
}
"""Keys that take one of a few words."""


def check_config(cfg: CfgNode) -> None:
    """Raise one error that lists every contradiction of `cfg`, and warn about keys without effect.

    Each problem names the key, what was expected, what was found, and the fix. Datasets must have
    been registered before (`import regionclip.data`).

    Raises:
        UserError: at least one problem was found.
    """
    for key in DEAD_KEYS:
        if get_value(cfg, key.name) != key.default:
            logger.warning("%s has no effect (%s); remove it", key.name, key.meaning)
    problems = [problem for check in _CHECKS for problem in check(cfg)]
    if problems:
        raise UserError(problems)


def clip_architecture(cfg: CfgNode) -> CLIPArchitecture:
    """Return the CLIP size of `cfg`: `MODEL.CLIP.ARCHITECTURE`, else upstream's `MODEL.RESNETS.DEPTH`.

    Raises:
        UserError: neither key names a known size.
    """
    if cfg.MODEL.CLIP.ARCHITECTURE:
        return get_architecture(cfg.MODEL.CLIP.ARCHITECTURE)
    return architecture_from_depth(cfg.MODEL.RESNETS.DEPTH)


def uses_clip_backbone(cfg: CfgNode) -> bool:
    """Return whether the detector itself (not its proposer) stands on a CLIP image tower."""
    return cfg.MODEL.BACKBONE.NAME in CLIP_BACKBONES


def _check_choices(cfg: CfgNode) -> Iterator[Problem]:
    for key, choices in CHOICES.items():
        value = get_value(cfg, key)
        if value not in choices:
            yield Problem(key, " or ".join(choices), repr(value), "choose one of them")


def _check_region_source(cfg: CfgNode) -> Iterator[Problem]:
    sources = REGION_SOURCES.get(cfg.MODEL.META_ARCHITECTURE)
    if sources is None:
        return
    clip = cfg.MODEL.CLIP
    key = "MODEL.CLIP.CROP_REGION_TYPE"
    if clip.CROP_REGION_TYPE not in sources:
        yield Problem(key, " or ".join(sources), repr(clip.CROP_REGION_TYPE), f"add {key} {sources[-1]}")
    elif clip.CROP_REGION_TYPE == "GT" and clip.MULTIPLY_RPN_SCORE:
        yield Problem(
            "MODEL.CLIP.MULTIPLY_RPN_SCORE",
            "False with ground-truth boxes, which have no objectness",
            "True",
            "add MODEL.CLIP.MULTIPLY_RPN_SCORE False",
        )
    elif clip.CROP_REGION_TYPE == "RPN" and not clip.OFFLINE_RPN_CONFIG:
        yield Problem(
            "MODEL.CLIP.OFFLINE_RPN_CONFIG",
            "the YAML of the detector that proposes boxes",
            "nothing",
            f"name one of configs/*/mask_rcnn_R_50_*.yaml, or use {key} GT",
        )


def _check_paths(cfg: CfgNode) -> Iterator[Problem]:
    keys = ["MODEL.WEIGHTS"]
    if cfg.MODEL.CLIP.CROP_REGION_TYPE == "RPN":
        keys += ["MODEL.CLIP.OFFLINE_RPN_CONFIG", "MODEL.CLIP.BB_RPN_WEIGHTS"]
    for key in keys:
        value = get_value(cfg, key)
        # Addresses such as detectron2://... are resolved, and downloaded, by Detectron2's path manager.
        if value and "://" not in value and not find_weights(value).is_file():
            fix = "correct the path (docs/MODEL_ZOO.md says where each file comes from)"
            yield Problem(key, "a file, relative to the working directory or the repository", value, fix)


def find_weights(path: str) -> Path:
    """Return the file behind `path`; one published script leaves out the ending `.pth`."""
    found = resolve_path(path)
    with_ending = resolve_path(f"{path}.pth")
    return with_ending if not found.is_file() and with_ending.is_file() else found


def _check_architecture(cfg: CfgNode) -> Iterator[Problem]:
    if not uses_clip_backbone(cfg):
        return
    try:
        architecture = clip_architecture(cfg)
    except UserError as error:
        yield from error.problems
        return
    mean, image_format = sum(cfg.MODEL.PIXEL_MEAN), cfg.INPUT.FORMAT
    if mean < 3 and image_format != "RGB":
        yield Problem("INPUT.FORMAT", "RGB for CLIP's pixel mean", repr(image_format), "add INPUT.FORMAT RGB")
    if not cfg.MODEL.CLIP.USE_TEXT_EMB_CLASSIFIER:
        return
    side, name = cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION, architecture.name
    if side // 2 != architecture.attention_grid:
        wanted = architecture.pooler_resolution
        yield Problem(
            "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION",
            f"{wanted}, which fits the attention pool of {name}",
            str(side),
            f"add MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION {wanted}",
        )
    width = cfg.MODEL.CLIP.TEXT_EMB_DIM
    if width != architecture.embedding_dim:
        wanted = architecture.embedding_dim
        fix = f"add MODEL.CLIP.TEXT_EMB_DIM {wanted}"
        yield Problem("MODEL.CLIP.TEXT_EMB_DIM", f"{wanted}, the embedding width of {name}", str(width), fix)


def _check_embeddings(cfg: CfgNode) -> Iterator[Problem]:
    clip = cfg.MODEL.CLIP
    if not clip.USE_TEXT_EMB_CLASSIFIER:
        return
    rows = {"TEXT_EMB_PATH": cfg.MODEL.ROI_HEADS.NUM_CLASSES, "OPENSET_TEST_TEXT_EMB_PATH": None}
    for name, count in rows.items():
        if clip[name]:
            try:
                load_class_embeddings(clip[name], rows=count, dim=clip.TEXT_EMB_DIM, key=f"MODEL.CLIP.{name}")
            except UserError as error:
                yield from error.problems


def _check_tokenizer(cfg: CfgNode) -> Iterator[Problem]:
    if "bpe" not in cfg.INPUT.TEXT_TOKENIZER:
        fix = "add INPUT.TEXT_TOKENIZER openai_bpe"
        yield Problem("INPUT.TEXT_TOKENIZER", "a name that contains 'bpe'", repr(cfg.INPUT.TEXT_TOKENIZER), fix)


def dataset_problems(name: str, key: str) -> Iterator[Problem]:
    """Yield what stands in the way of reading the dataset `name`, which `key` asked for."""
    known = DatasetCatalog.list()
    if name not in known:
        similar = sorted(other for other in known if other.split("_")[:2] == name.split("_")[:2])
        fix = f"use one of {', '.join(similar)}" if similar else "see datasets/README.md for the names"
        yield Problem(key, "a registered dataset", repr(name), fix)
        return
    metadata = MetadataCatalog.get(name)
    annotations = metadata.get("json_file")
    if annotations and not Path(annotations).is_file():
        fix = metadata.get("fix_when_missing", "see datasets/README.md, or set DETECTRON2_DATASETS")
        yield Problem(f"{key} {name}", f"its annotations in {annotations}", "no such file", fix)


def _check_datasets(cfg: CfgNode) -> Iterator[Problem]:
    # Training sets are checked where they are read: evaluation does not need them.
    for name in cfg.DATASETS.TEST:
        yield from dataset_problems(name, "DATASETS.TEST")
    if cfg.MODEL.CLIP.USE_TEXT_EMB_CLASSIFIER:
        for name in set(DatasetCatalog.list()).intersection(cfg.DATASETS.TEST):
            yield from _check_class_count(cfg, name)


def _check_class_count(cfg: CfgNode, dataset: str) -> Iterator[Problem]:
    classes = MetadataCatalog.get(dataset).get("thing_classes")
    if classes is None:
        return
    open_set = cfg.MODEL.CLIP.OPENSET_TEST_TEXT_EMB_PATH
    key, count = "MODEL.ROI_HEADS.NUM_CLASSES", cfg.MODEL.ROI_HEADS.NUM_CLASSES
    if open_set:
        try:
            key, count = "MODEL.CLIP.OPENSET_TEST_TEXT_EMB_PATH", len(load_class_embeddings(open_set))
        except UserError:
            return  # reported by the check of the embeddings
    if count != len(classes):
        fix = f"use class embeddings and NUM_CLASSES of {dataset}, or test on the dataset that they belong to"
        yield Problem(key, f"{len(classes)} classes, as in {dataset}", str(count), fix)


_CHECKS: tuple[Callable[[CfgNode], Iterator[Problem]], ...] = (
    _check_choices,
    _check_region_source,
    _check_paths,
    _check_architecture,
    _check_embeddings,
    _check_tokenizer,
    _check_datasets,
)
