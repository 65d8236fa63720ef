"""Contradictions of a config of RALF, reported before anything is built."""

from __future__ import annotations

from collections.abc import Iterator

from detectron2.config import CfgNode
from torch.nn import functional as F

from regionclip.clip.architectures import get_architecture
from regionclip.clip.class_embeddings import load_class_embeddings, load_concepts
from regionclip.clip.prompts import same_to_clip
from regionclip.config.keys import get_value
from regionclip.config.resolve import clip_architecture
from regionclip.data.class_lists import names_of_embeddings, parse_names
from regionclip.engine.class_names import tested_names
from regionclip.errors import Problem, UserError
from regionclip.methods.ralf.classes import build_base_classes, label_names
from regionclip.modeling.retrieval_augmentation.augmenter import HEADS
from regionclip.modeling.retrieval_augmentation.build import augmenter_dim, embeds_names
from regionclip.modeling.retrieval_augmentation.negatives import BUILD, NegativeWords, read_negative_words

WITH_LOSSES = ("CLIPFastRCNN", "DetPro")
"""Meta-architectures that can be trained with RAL."""

WITH_FEATURES = ("CLIPFastRCNN", "DetPro", "ObjectCentricOVD", "LPOVOD")
"""Those whose scores RAF can re-weight."""

OWN_DETECTORS = {"DetPro": ("EnsembleROIHeads",), "ObjectCentricOVD": ("Res5ROIHeads", "StandardROIHeads")}
"""Detectors of the published checkpoints, and their RoI heads."""

ROI_HEADS = ("CLIPRes5ROIHeads", "CLIPStandardROIHeads")
"""RoI heads of RegionCLIP's detector that embed regions for RALF."""

SAME_ENCODER = 0.5
"""Mean cosine of text embeddings of the same names: embeddings of different encoders have about 0."""


def config_problems(cfg: CfgNode) -> Iterator[Problem]:
    """Yield the contradictions in a config."""
    ral, raf = cfg.MODEL.RALF.RAL.ENABLED, cfg.MODEL.RALF.RAF.ENABLED
    try:
        if ral:
            yield from _detector_problems(cfg, "MODEL.RALF.RAL.ENABLED", WITH_LOSSES)
            yield from _loss_problems(cfg)
        if raf:
            yield from _detector_problems(cfg, "MODEL.RALF.RAF.ENABLED", WITH_FEATURES)
            yield from _feature_problems(cfg)
        if cfg.MODEL.META_ARCHITECTURE in OWN_DETECTORS:
            yield from _own_problems(cfg)
    except UserError as error:
        yield from error.problems


def training_problems(cfg: CfgNode) -> Iterator[Problem]:
    """Yield what prevents training."""
    if cfg.MODEL.RALF.RAL.ENABLED and not label_names(cfg):
        key, fix = "MODEL.RALF.RAL.CLASSES", "name the classes in the order of the labels, such as coco48 or a file"
        yield Problem(key, "the names of the trained classes", "none in TEXT_EMB_PATH", fix)
    if cfg.MODEL.META_ARCHITECTURE == "ObjectCentricOVD":
        key, fix = "MODEL.META_ARCHITECTURE", "evaluate with --eval-only, or train RegionCLIP's detector with RAL"
        yield Problem(key, "a detector that can be trained", "ObjectCentricOVD, which is for inference", fix)
    if cfg.MODEL.META_ARCHITECTURE != "DetPro":
        return
    if not cfg.MODEL.CLIP.TEXT_EMB_PATH:
        fix = "write them with regionclip concepts, or take DetPro's iou_neg5_ens.pth"
        yield Problem("MODEL.CLIP.TEXT_EMB_PATH", "embeddings of the classes of DATASETS.TRAIN", "none", fix)
    if cfg.MODEL.RALF.DISTILL_WEIGHT and not cfg.MODEL.RALF.REGIONS:
        fix = "write it with regionclip features (docs/methods/ralf.md), or add MODEL.RALF.DISTILL_WEIGHT 0.0"
        yield Problem("MODEL.RALF.REGIONS", "a folder of CLIP's embeddings of proposals", "none", fix)


def _detector_problems(cfg: CfgNode, key: str, supported: tuple[str, ...]) -> Iterator[Problem]:
    name, heads = cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.ROI_HEADS.NAME
    if name not in supported:
        yield Problem(key, f"False with {name}", "True", f"use it with {' or '.join(supported)}")
    elif name == "CLIPFastRCNN" and not (heads in ROI_HEADS and cfg.MODEL.CLIP.USE_TEXT_EMB_CLASSIFIER):
        fix = f"use MODEL.ROI_HEADS.NAME {ROI_HEADS[0]} and MODEL.CLIP.USE_TEXT_EMB_CLASSIFIER True"
        yield Problem(key, "a classifier of text embeddings", heads, fix)


def _own_problems(cfg: CfgNode) -> Iterator[Problem]:
    clip, ralf = cfg.MODEL.CLIP, cfg.MODEL.RALF
    heads, wanted = cfg.MODEL.ROI_HEADS.NAME, OWN_DETECTORS[cfg.MODEL.META_ARCHITECTURE]
    if heads not in wanted:
        fix = f"add MODEL.ROI_HEADS.NAME {wanted[0]}"
        yield Problem("MODEL.ROI_HEADS.NAME", " or ".join(wanted), repr(heads), fix)
    if clip.CROP_REGION_TYPE == "RPN" and not clip.OFFLINE_RPN_CONFIG:
        expected, fix = "the YAML of the proposal network", "name it, or add MODEL.CLIP.CROP_REGION_TYPE ''"
        yield Problem("MODEL.CLIP.OFFLINE_RPN_CONFIG", expected, "nothing", fix)
    for key in ("MODEL.CLIP.CLSS_TEMP", "MODEL.RALF.TEST_TEMPERATURE"):
        if not get_value(cfg, key) > 0:
            yield Problem(key, "a temperature above 0", str(get_value(cfg, key)), f"add {key} 0.01")
    if not 0 <= ralf.ENSEMBLE_EXPONENT <= 1:
        key = "MODEL.RALF.ENSEMBLE_EXPONENT"
        yield Problem(key, "an exponent in [0, 1]", str(ralf.ENSEMBLE_EXPONENT), f"add {key} 0.3333")
    if not parse_names(ralf.BASE_CLASSES, synonyms=False):
        yield Problem("MODEL.RALF.BASE_CLASSES", "the names of the trained classes", "none", "name them")
    width = clip_architecture(cfg).embedding_dim
    if width != clip.TEXT_EMB_DIM:
        expected = f"{width}, the embedding width of {clip_architecture(cfg).name}"
        yield Problem(
            "MODEL.CLIP.TEXT_EMB_DIM", expected, str(clip.TEXT_EMB_DIM), f"add MODEL.CLIP.TEXT_EMB_DIM {width}"
        )
    for name in ("TEXT_EMB_PATH", "OPENSET_TEST_TEXT_EMB_PATH"):
        if not clip[name]:
            continue
        load_class_embeddings(clip[name], dim=clip.TEXT_EMB_DIM, key=f"MODEL.CLIP.{name}")
        if not names_of_embeddings(clip[name]):
            expected, fix = "class names in the file", "write it with regionclip concepts --output classes.safetensors"
            yield Problem(f"MODEL.CLIP.{name} {clip[name]}", expected, "none", fix)
        elif name == "TEXT_EMB_PATH" and cfg.MODEL.META_ARCHITECTURE == "DetPro":
            build_base_classes(cfg)


def _loss_problems(cfg: CfgNode) -> Iterator[Problem]:
    ral, key = cfg.MODEL.RALF.RAL, "MODEL.RALF.RAL.STORE"
    if not ral.STORE:
        yield Problem(key, "a file of negative words", "none", BUILD)
        return
    if ral.NUM_SAMPLES < 1:
        name = "MODEL.RALF.RAL.NUM_SAMPLES"
        yield Problem(name, "at least 1", str(ral.NUM_SAMPLES), f"add {name} 10")
    store = read_negative_words(ral.STORE, key)
    wanted = cfg.MODEL.CLIP.TEXT_EMB_DIM
    if store.dim != wanted:
        expected = f"width {wanted}, of the detector's text embeddings"
        yield Problem(f"{key} {ral.STORE}", expected, f"width {store.dim}", "build it with the same text encoder")
        return
    names = label_names(cfg)
    if names and cfg.MODEL.CLIP.TEXT_EMB_PATH:
        yield from _encoder_problems(cfg, store, names)


def _encoder_problems(cfg: CfgNode, store: NegativeWords, names: list[str]) -> Iterator[Problem]:
    """Yield whether another text encoder made the store than the class embeddings of the detector."""
    path, what = cfg.MODEL.CLIP.TEXT_EMB_PATH, f"MODEL.RALF.RAL.STORE {cfg.MODEL.RALF.RAL.STORE}"
    rows = store.rows_of(names, what)
    own = F.normalize(load_class_embeddings(path, dim=store.dim), dim=1)
    places = {same_to_clip(name): row for row, name in enumerate(names_of_embeddings(path) or names)}
    if len(own) != len(places) or any(same_to_clip(name) not in places for name in names):
        expected, actual = f"{len(own)} names, one for each row of {path}", f"{len(names)} names"
        yield Problem("MODEL.RALF.RAL.CLASSES", expected, actual, "name the classes in the order of the labels")
        return
    own = own[[places[same_to_clip(name)] for name in names]]
    cosine = float((own * F.normalize(store.anchors[rows].float(), dim=1)).sum(dim=1).mean())
    if cosine < SAME_ENCODER:
        expected = f"the text encoder of {path}"
        actual = f"{store.clip or 'another one'}: class embeddings have a mean cosine of {cosine:.2f}"
        yield Problem(what, expected, actual, "build it again with it")


def _feature_problems(cfg: CfgNode) -> Iterator[Problem]:
    raf, key = cfg.MODEL.RALF.RAF, "MODEL.RALF.RAF.CONCEPTS"
    dim = augmenter_dim(cfg)
    if dim % HEADS:
        yield Problem(
            "MODEL.RALF.RAF", f"embeddings whose width is a multiple of {HEADS}", str(dim), "take another CLIP"
        )
    if not raf.CONCEPTS:
        yield Problem(key, "a file of concept embeddings", "none", "build it with regionclip ralf build-concepts")
    elif (count := len(load_concepts(raf.CONCEPTS, dim, key))) < raf.NUM_CONCEPTS:
        fix = "add concepts, and train the augmenter with as many as NUM_CONCEPTS"
        yield Problem(f"{key} {raf.CONCEPTS}", f"at least {raf.NUM_CONCEPTS} concepts", str(count), fix)
    if raf.TOPK < 1:
        yield Problem("MODEL.RALF.RAF.TOPK", "at least 1", str(raf.TOPK), "add MODEL.RALF.RAF.TOPK 20")
    has_classes = cfg.MODEL.CLIP.TEXT_EMB_PATH or cfg.MODEL.CLIP.OPENSET_TEST_TEXT_EMB_PATH
    if embeds_names(cfg) and has_classes and not tested_names(cfg):
        expected = f"class names in the file, for the text encoder of {get_architecture(raf.CLIP).name}"
        fix = "write it with regionclip concepts --output classes.safetensors"
        yield Problem("MODEL.CLIP.TEXT_EMB_PATH", expected, f"none, as for {clip_architecture(cfg).name}", fix)
