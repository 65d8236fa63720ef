"""Contradictions of a config of LP-OVOD, reported before anything is built."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from detectron2.config import CfgNode

from regionclip.clip.class_embeddings import load_class_embeddings
from regionclip.clip.prompts import same_to_clip
from regionclip.config.resolve import clip_architecture
from regionclip.data.class_lists import names_of_embeddings
from regionclip.errors import Problem, UserError
from regionclip.methods.lp_ovod.classes import TEACH, TaughtNames

META_ARCHITECTURES = ("LPOVOD", "CropCLIP")

SOURCES = {"LPOVOD": ("", "RPN", "FILE", "GRID", "NONE"), "CropCLIP": ("RPN", "GT", "FILE", "GRID", "NONE")}
"""Values of CROP_REGION_TYPE by meta-architecture; '' are the proposals of LP-OVOD's own RPN."""


def config_problems(cfg: CfgNode) -> Iterator[Problem]:
    """Yield the contradictions in a config."""
    name, clip = cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.CLIP
    if name not in META_ARCHITECTURES:
        return
    key = "MODEL.CLIP.CROP_REGION_TYPE"
    if clip.CROP_REGION_TYPE not in SOURCES[name]:
        allowed = " or ".join(source or "''" for source in SOURCES[name])
        yield Problem(key, allowed, repr(clip.CROP_REGION_TYPE), f"add {key} RPN")
    elif clip.CROP_REGION_TYPE == "RPN" and not clip.OFFLINE_RPN_CONFIG:
        fix = "name configs/oln/coco48.yaml or another RPN's"
        yield Problem("MODEL.CLIP.OFFLINE_RPN_CONFIG", "the YAML of the proposal network", "nothing", fix)
    if (
        cfg.DATASETS.TEST
        and not cfg.TEST.EVALUATE_PROPOSALS
        and not (clip.TEXT_EMB_PATH or clip.OPENSET_TEST_TEXT_EMB_PATH)
    ):
        fix = "write them with regionclip concepts, and name the file; or add DATASETS.TEST ()"
        yield Problem("MODEL.CLIP.TEXT_EMB_PATH", "embeddings of the classes of DATASETS.TEST", "none", fix)
    yield from _embedding_problems(cfg)
    if name == "LPOVOD":
        yield from _name_problems(cfg)


def training_problems(cfg: CfgNode) -> Iterator[Problem]:
    """Yield what prevents training."""
    if cfg.MODEL.META_ARCHITECTURE == "CropCLIP":
        fix = "train it with an ImageTextCLIP config, or take a published CLIP"
        yield Problem("MODEL.META_ARCHITECTURE", "a detector that can be trained", "CropCLIP, which is frozen", fix)
    if cfg.MODEL.META_ARCHITECTURE != "LPOVOD":
        return
    method = cfg.MODEL.LP_OVOD
    if method.STAGE == "base" and method.DISTILL_WEIGHT and not method.REGIONS:
        fix = "write it with regionclip features (docs/methods/lp_ovod.md), or add MODEL.LP_OVOD.DISTILL_WEIGHT 0.0"
        yield Problem("MODEL.LP_OVOD.REGIONS", "a folder of CLIP's embeddings of proposals", "none", fix)


def _embedding_problems(cfg: CfgNode) -> Iterator[Problem]:
    clip = cfg.MODEL.CLIP
    try:
        architecture = clip_architecture(cfg)
    except UserError as error:
        yield from error.problems
        return
    if architecture.embedding_dim != clip.TEXT_EMB_DIM:
        expected = f"{architecture.embedding_dim}, the embedding width of {architecture.name}"
        fix = f"add MODEL.CLIP.TEXT_EMB_DIM {architecture.embedding_dim}"
        yield Problem("MODEL.CLIP.TEXT_EMB_DIM", expected, str(clip.TEXT_EMB_DIM), fix)
    for name in ("TEXT_EMB_PATH", "OPENSET_TEST_TEXT_EMB_PATH"):
        if clip[name]:
            try:
                load_class_embeddings(clip[name], dim=clip.TEXT_EMB_DIM, key=f"MODEL.CLIP.{name}")
            except UserError as error:
                yield from error.problems
                continue
            if cfg.MODEL.META_ARCHITECTURE == "LPOVOD":
                yield from _unknown_names(cfg, name)


def _unknown_names(cfg: CfgNode, name: str) -> Iterator[Problem]:
    """Yield which names of an embedding file have no prototype."""
    key, path = f"MODEL.CLIP.{name}", cfg.MODEL.CLIP[name]
    names = names_of_embeddings(path)
    if not names:
        fix = "write the file with regionclip concepts --output classes.safetensors"
        yield Problem(f"{key} {path}", "class names in the file", "none", fix)
    elif unknown := TaughtNames.from_config(cfg).unknown(names):
        fix = f"add them to MODEL.LP_OVOD.NOVEL_CLASSES, or {TEACH}"
        yield Problem(f"{key} {path}", "names of BASE_CLASSES and NOVEL_CLASSES", ", ".join(unknown[:5]), fix)


def _name_problems(cfg: CfgNode) -> Iterator[Problem]:
    try:
        names = TaughtNames.from_config(cfg)
    except UserError as error:
        yield from error.problems
        return
    key = "MODEL.LP_OVOD.BASE_CLASSES, NOVEL_CLASSES"
    twice = [name for name, count in Counter(map(same_to_clip, names.all)).items() if count > 1]
    if twice:
        yield Problem(key, "each name once", f"more than once: {', '.join(twice[:5])}", "remove the others")
    if not names.base:
        yield Problem("MODEL.LP_OVOD.BASE_CLASSES", "the names of the trained classes", "none", "name them")
    if cfg.MODEL.LP_OVOD.STAGE == "probe" and not names.novel:
        yield Problem("MODEL.LP_OVOD.NOVEL_CLASSES", "the classes to learn", "none", "name them")
