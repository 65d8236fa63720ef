"""The check at the door: all contradictions of a finished config, reported together."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, ROI_HEADS_REGISTRY

from regionclip.clip.architectures import CLIPArchitecture, architecture_from_depth, get_architecture
from regionclip.clip.class_embeddings import load_class_embeddings
from regionclip.config.keys import FIXED_KEYS, get_value
from regionclip.errors import Problem, UserError
from regionclip.files import resolve_path

logger = logging.getLogger(__name__)

DENSE_TOWERS = tuple(f"build_clip_{name}_backbone" for name in ("vit", "swin", "davit", "focal"))
CLIP_HEADS = ("CLIPRes5ROIHeads", "CLIPStandardROIHeads")
DENSE_HEADS = ("CLIPTransformerROIHeads",)
CLIP_BACKBONES = ("build_clip_resnet_backbone", "build_clip_resnet_fpn_backbone")
ALWAYS_REGISTERED = "coco_2017_ovd_all_test"
"""A dataset that tells whether `regionclip.data.datasets.builtin` was imported."""

LEARN_FROM_PAIRS = ("PretrainFastRCNN", "ImageTextCLIP")
"""Meta-architectures whose training data are image-text pairs."""

REGION_SOURCES = {"CLIPFastRCNN": ("GT", "RPN"), "PretrainFastRCNN": ("RPN", "RANDOM", "GRID")}
"""Values of CROP_REGION_TYPE by meta-architecture."""

CHOICES = {
    "MODEL.CLIP.RPN_SCORE_FUSION": ("upstream", "sigmoid"),
    "MODEL.CLIP.VIS_BEHAVIOUR": ("corrected", "upstream"),
    "MODEL.CLIP.GLOBAL_BOX": ("image", "padded"),
    "MODEL.CLIP.TEACHER_REGIONS": ("aligned", "cropped"),
    "MODEL.CLIP.CONTRASTIVE_REGIONS": ("joined", "local"),
    "MODEL.CLIP.INFERENCE_PRECISION": ("float32", "bfloat16", "float16"),
    "MODEL.CLIP.INFERENCE_PRECISION_FROM": ("stem", "res2", "res3", "res4", "res5"),
    "MODEL.CLIP.EMULATED_PRECISION": ("replace", "error", "keep"),
    "MODEL.ROI_HEADS.SOFT_NMS_METHOD": ("gaussian", "linear", "hard"),
    "MODEL.ROI_HEADS.SOFT_NMS_CLASS_SEPARATION": ("exact", "upstream"),
    "TEST.EVALUATION_BACKEND": ("faster", "official"),
    "SOLVER.OPTIMIZER": ("SGD", "ADAMW"),
}
"""Keys that take one of a few words."""


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


def clip_architecture(cfg: CfgNode) -> CLIPArchitecture:
    """Return the CLIP size of `cfg`: `MODEL.CLIP.ARCHITECTURE`, else upstream's `MODEL.RESNETS.DEPTH`.

    Raises:
        UserError: neither key names a known size.
    """
    if cfg.MODEL.CLIP.ARCHITECTURE:
        return get_architecture(cfg.MODEL.CLIP.ARCHITECTURE)
    return architecture_from_depth(cfg.MODEL.RESNETS.DEPTH)


def teacher_architecture(cfg: CfgNode) -> CLIPArchitecture:
    """Return the CLIP size of the teacher: TEACHER_ARCHITECTURE, else TEACHER_RESNETS_DEPTH.

    Raises:
        UserError: neither key names a known size.
    """
    clip = cfg.MODEL.CLIP
    if clip.TEACHER_ARCHITECTURE:
        return get_architecture(clip.TEACHER_ARCHITECTURE)
    return architecture_from_depth(clip.TEACHER_RESNETS_DEPTH)


def reads_class_names(cfg: CfgNode) -> bool:
    """Return whether the detector embeds class names itself, and needs no embedding file."""
    return cfg.MODEL.ROI_HEADS.NAME in DENSE_HEADS


def uses_clip_backbone(cfg: CfgNode) -> bool:
    """Return whether the detector itself (not its proposer) stands on a CLIP image tower."""
    return cfg.MODEL.BACKBONE.NAME in CLIP_BACKBONES


def _check_choices(cfg: CfgNode) -> Iterator[Problem]:
    for key, choices in CHOICES.items():
        value = get_value(cfg, key)
        if value not in choices:
            yield Problem(key, " or ".join(choices), repr(value), "choose one of them")


def _check_fixed_values(cfg: CfgNode) -> Iterator[Problem]:
    if cfg.MODEL.BACKBONE.NAME not in DENSE_TOWERS:
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
    is_pretraining = cfg.MODEL.META_ARCHITECTURE == "PretrainFastRCNN"
    if not cfg.MODEL.CLIP.USE_TEXT_EMB_CLASSIFIER and not is_pretraining:
        return
    wanted = {}
    if not is_pretraining:
        wanted["MODEL.CLIP.TEXT_EMB_DIM"] = (architecture.embedding_dim, "the embedding width")
    pooler = "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION"
    if cfg.MODEL.ROI_HEADS.NAME == "CLIPStandardROIHeads":
        # No layer4 stands between RoIAlign and the attention pool.
        wanted[pooler] = (architecture.attention_grid, "the grid of the attention pool")
        wanted["MODEL.FPN.OUT_CHANNELS"] = (architecture.attention_width, "the width of the attention pool")
    elif architecture.attention_grid != cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION // 2:
        wanted[pooler] = (architecture.pooler_resolution, "which fits the attention pool")
    for key, (value, meaning) in wanted.items():
        actual = get_value(cfg, key)
        if actual != value:
            yield Problem(key, f"{value}, {meaning} of {architecture.name}", str(actual), f"add {key} {value}")


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


def test_class_count(cfg: CfgNode, dataset_name: str) -> int:
    """Return how many classes the detector tells apart on a dataset.

    A detector that reads class names has those of the dataset; open-set embeddings decide, if any.
    """
    clip = cfg.MODEL.CLIP
    if reads_class_names(cfg):
        return len(MetadataCatalog.get(dataset_name).thing_classes)
    if clip.USE_TEXT_EMB_CLASSIFIER and clip.OPENSET_TEST_TEXT_EMB_PATH:
        return len(load_class_embeddings(clip.OPENSET_TEST_TEXT_EMB_PATH))
    return cfg.MODEL.ROI_HEADS.NUM_CLASSES


def _check_classifier_kind(cfg: CfgNode) -> Iterator[Problem]:
    key = "MODEL.CLIP.USE_TEXT_EMB_CLASSIFIER"
    value, word = get_value(cfg, key), "text-encoder" if reads_class_names(cfg) else "text-embedding"
    if value not in (True, False, word):
        expected = f"True, False or {word} with {cfg.MODEL.ROI_HEADS.NAME}"
        yield Problem(key, expected, repr(value), f"write {word} or True in its place")


def _check_classifier(cfg: CfgNode) -> Iterator[Problem]:
    clip, box_head = cfg.MODEL.CLIP, cfg.MODEL.ROI_BOX_HEAD
    if not clip.USE_TEXT_EMB_CLASSIFIER or reads_class_names(cfg):
        return
    if not clip.CLSS_TEMP > 0:
        yield Problem(
            "MODEL.CLIP.CLSS_TEMP", "a temperature above 0", str(clip.CLSS_TEMP), "add MODEL.CLIP.CLSS_TEMP 0.01"
        )
    uses_deltas = not (clip.NO_BOX_DELTA or clip.CROP_REGION_TYPE == "GT")
    if clip.OPENSET_TEST_TEXT_EMB_PATH and uses_deltas and not box_head.CLS_AGNOSTIC_BBOX_REG:
        key = "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG"
        yield Problem(
            key, "True with open-set classes, which have no box deltas of their own", "False", f"add {key} True"
        )


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
    key, parts = "MODEL.CLIP.INFERENCE_PRECISION", (cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.ROI_HEADS.NAME)
    if get_value(cfg, key) != "float32" and parts != ("CLIPFastRCNN", "CLIPRes5ROIHeads"):
        yield Problem(key, f"float32 with {' and '.join(parts)}", repr(get_value(cfg, key)), "leave it out")
    if cfg.MODEL.META_ARCHITECTURE != "CLIPFastRCNN":
        return
    is_dense = cfg.MODEL.BACKBONE.NAME in DENSE_TOWERS
    wanted = {"MODEL.BACKBONE.NAME": CLIP_BACKBONES + DENSE_TOWERS}
    wanted["MODEL.ROI_HEADS.NAME"] = DENSE_HEADS if is_dense else CLIP_HEADS
    for key, names in wanted.items():
        if get_value(cfg, key) not in names:
            fix = f"add {key} {names[0]}"
            yield Problem(key, f"{' or '.join(names)} in this CLIPFastRCNN", repr(get_value(cfg, key)), fix)
    features = cfg.MODEL.ROI_HEADS.IN_FEATURES
    if cfg.MODEL.ROI_HEADS.NAME == "CLIPRes5ROIHeads" and len(features) != 1:
        fix = "add MODEL.ROI_HEADS.IN_FEATURES \"['res4']\""
        yield Problem("MODEL.ROI_HEADS.IN_FEATURES", "one feature map with CLIPRes5ROIHeads", str(features), fix)


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
    if classes is None or metadata.get("evaluator_type") == "custom_img":  # own pictures go with any words
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
        # A published proposer config tests so; what it is for is not measured.
        logger.warning(
            "%s has %d classes, the detector %d: its figures will mean nothing", dataset, len(classes), count
        )
    else:
        fix = f"use class embeddings and NUM_CLASSES of {dataset}, or test on the dataset that they belong to"
        yield Problem(key, f"{len(classes)} classes, as in {dataset}", str(count), fix)


def _only_proposes(cfg: CfgNode) -> bool:
    return cfg.MODEL.META_ARCHITECTURE in ("ProposalNetwork", "CLIPProposalNetwork")


_CHECKS: tuple[Callable[[CfgNode], Iterator[Problem]], ...] = (
    _check_choices,
    _check_fixed_values,
    _check_region_source,
    _check_paths,
    _check_names,
    _check_architecture,
    _check_classifier_kind,
    _check_classifier,
    _check_embeddings,
    _check_tokenizer,
    _check_datasets,
)
