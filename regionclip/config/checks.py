"""The check at the door: all contradictions of a finished config, reported together."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, ROI_HEADS_REGISTRY

from regionclip.config.keys import all_keys, get_value
from regionclip.config.resolve import (
    clip_architecture,
    find_weights,
    reads_class_names,
    test_class_count,
    uses_clip_backbone,
)
from regionclip.errors import Problem, UserError
from regionclip.method import methods, methods_of

logger = logging.getLogger(__name__)

ALWAYS_REGISTERED = "coco_2017_ovd_all_test"
"""A dataset that tells whether `regionclip.data.datasets.builtin` was imported."""


def check_config(cfg: CfgNode) -> None:
    """Raise one error that lists every contradiction of `cfg`.

    Each problem names the key, what was expected, what was found, and the fix. Test sets are looked
    at only when `regionclip.data.datasets.builtin` has been imported, which registers them.

    Raises:
        UserError: at least one problem was found.
    """
    problems = [problem for check in _CHECKS for problem in check(cfg)]
    if problems:
        raise UserError(problems)


def _check_choices(cfg: CfgNode) -> Iterator[Problem]:
    for key in all_keys():
        value = get_value(cfg, key.name)
        if key.choices and value not in key.choices:
            yield Problem(key.name, " or ".join(key.choices), repr(value), "choose one of them")


def _check_limits(cfg: CfgNode) -> Iterator[Problem]:
    for key in all_keys():
        value = get_value(cfg, key.name)
        if key.limits is None or (value is None and key.default is None) or key.limits.contain(value):
            continue
        yield Problem(key.name, key.limits.words, repr(value), f"add {key.name} {key.default}")


def _check_paths(cfg: CfgNode) -> Iterator[Problem]:
    keys = ["MODEL.WEIGHTS", "MODEL.CLIP.TEACHER_WEIGHTS"]
    if cfg.MODEL.CLIP.CROP_REGION_TYPE == "RPN":
        keys += ["MODEL.CLIP.OFFLINE_RPN_CONFIG", "MODEL.CLIP.BB_RPN_WEIGHTS"]
    for key in keys:
        value = get_value(cfg, key)
        if value and not isinstance(value, str):
            yield Problem(key, "a path", repr(value), "write a file name")
            continue
        # Addresses such as detectron2://... are resolved, and downloaded, by Detectron2's path manager.
        if value and "://" not in value and not find_weights(value).is_file():
            fix = "correct the path (docs/MODEL_ZOO.md says where each file comes from)"
            yield Problem(key, "a file, relative to the working directory or the repository", value, fix)


def _check_classifier_kind(cfg: CfgNode) -> Iterator[Problem]:
    key = "MODEL.CLIP.USE_TEXT_EMB_CLASSIFIER"
    value, word = get_value(cfg, key), "text-encoder" if reads_class_names(cfg) else "text-embedding"
    if value not in (True, False, word):
        expected = f"True, False or {word} with {cfg.MODEL.ROI_HEADS.NAME}"
        yield Problem(key, expected, repr(value), f"write {word} or True in its place")


def _check_architecture(cfg: CfgNode) -> Iterator[Problem]:
    if not uses_clip_backbone(cfg):
        return
    try:
        architecture = clip_architecture(cfg)
    except UserError as error:
        yield from error.problems
        return
    if architecture.patch_size:
        expected, fix = "a CLIP with a ResNet image encoder as backbone", "use RN50, RN101, RN50x4, RN50x16 or RN50x64"
        yield Problem("MODEL.CLIP.ARCHITECTURE", expected, architecture.name, fix)
    mean, image_format = sum(cfg.MODEL.PIXEL_MEAN), cfg.INPUT.FORMAT
    if mean < 3 and image_format != "RGB":
        yield Problem("INPUT.FORMAT", "RGB for CLIP's pixel mean", repr(image_format), "add INPUT.FORMAT RGB")


def _check_names(cfg: CfgNode) -> Iterator[Problem]:
    registries = {
        "MODEL.META_ARCHITECTURE": META_ARCH_REGISTRY,
        "MODEL.BACKBONE.NAME": BACKBONE_REGISTRY,
        "MODEL.ROI_HEADS.NAME": ROI_HEADS_REGISTRY,
    }
    for key, registry in registries.items():
        name = get_value(cfg, key)
        if name not in registry:
            yield Problem(key, "a registered name", repr(name), "compare it with the files in configs/")


def _check_precision(cfg: CfgNode) -> Iterator[Problem]:
    key, parts = "MODEL.CLIP.INFERENCE_PRECISION", (cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.ROI_HEADS.NAME)
    supported = {detector for method in methods() for detector in method.half_precision}
    if get_value(cfg, key) != "float32" and not {parts, parts[:1]} & supported:
        yield Problem(key, f"float32 with {' and '.join(parts)}", repr(get_value(cfg, key)), "leave it out")


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
    if ALWAYS_REGISTERED not in DatasetCatalog.list():
        return
    for name in cfg.DATASETS.TEST:
        yield from dataset_problems(name, "DATASETS.TEST")
    for name in set(DatasetCatalog.list()).intersection(cfg.DATASETS.TEST):
        yield from class_count_problems(cfg, name)


def class_count_problems(cfg: CfgNode, dataset: str) -> Iterator[Problem]:
    """Yield how the classes of a test set contradict the detector's, as far as they are known."""
    metadata = MetadataCatalog.get(dataset)
    classes = metadata.get("thing_classes")
    if classes is None or metadata.get("evaluator_type") == "custom_img":  # a user's images go with any class names
        return
    try:
        count = test_class_count(cfg, dataset)
    except UserError:
        return  # reported by the check of the embeddings
    open_set = cfg.MODEL.CLIP.OPENSET_TEST_TEXT_EMB_PATH
    key = "MODEL.CLIP.OPENSET_TEST_TEXT_EMB_PATH" if open_set else "MODEL.ROI_HEADS.NUM_CLASSES"
    if count == len(classes) or reads_class_names(cfg):
        return
    if not cfg.MODEL.CLIP.USE_TEXT_EMB_CLASSIFIER and (count < len(classes) or _only_proposes(cfg)):
        # A published RPN config tests so; what it is for is not measured.
        logger.warning(
            "%s has %d classes, the detector %d: its metrics will mean nothing", dataset, len(classes), count
        )
    else:
        fix = f"use class embeddings and NUM_CLASSES of {dataset}, or test on the dataset that they belong to"
        yield Problem(key, f"{len(classes)} classes, as in {dataset}", str(count), fix)


def _only_proposes(cfg: CfgNode) -> bool:
    return cfg.MODEL.META_ARCHITECTURE in ("ProposalNetwork", "CLIPProposalNetwork")


def _check_methods(cfg: CfgNode) -> Iterator[Problem]:
    for method in methods_of(cfg):
        yield from method.config_problems(cfg)


_CHECKS: tuple[Callable[[CfgNode], Iterator[Problem]], ...] = (
    _check_choices,
    _check_limits,
    _check_paths,
    _check_names,
    _check_architecture,
    _check_classifier_kind,
    _check_methods,
    _check_precision,
    _check_tokenizer,
    _check_datasets,
)
