"""Contradictions of a config of RALF, reported before anything is built."""

from __future__ import annotations

from collections.abc import Iterator

from detectron2.config import CfgNode
from torch.nn import functional as F

from regionclip.clip.architectures import get_architecture
from regionclip.clip.class_embeddings import load_class_embeddings, load_concepts
from regionclip.clip.prompts import same_to_clip
from regionclip.config.resolve import clip_architecture, find_weights
from regionclip.data.class_lists import names_of_embeddings, parse_names
from regionclip.engine.class_names import are_same_labels, label_problems, tested_names, text_weights_of
from regionclip.errors import Problem, UserError
from regionclip.methods.ralf.classes import build_base_classes, label_names, labels_key
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

WITH_SOFTMAX = ("CLIPFastRCNN",)
"""Those whose probabilities, with that of background, sum to 1."""

LARGEST_OFFSET = 0.26
"""Below sigmoid(-1), so that no cosine makes a score negative or larger than 1."""

SAME_ENCODER = 0.5
"""Mean cosine of text embeddings of the same names: embeddings of different encoders have about 0."""


def config_problems(cfg: CfgNode) -> Iterator[Problem]:
    """Yield the contradictions in a config."""
    checks = {
        _own_problems: cfg.MODEL.META_ARCHITECTURE in OWN_DETECTORS,
        _loss_problems: cfg.MODEL.RALF.RAL.ENABLED,
        _feature_problems: cfg.MODEL.RALF.RAF.ENABLED,
    }
    for check, is_needed in checks.items():
        if is_needed:
            try:
                yield from check(cfg)
            except UserError as error:
                yield from error.problems


def training_problems(cfg: CfgNode) -> Iterator[Problem]:
    """Yield what prevents training."""
    ralf, name = cfg.MODEL.RALF, cfg.MODEL.META_ARCHITECTURE
    if name == "ObjectCentricOVD":
        key, fix = "MODEL.META_ARCHITECTURE", "evaluate with --eval-only, or train RegionCLIP's detector with RAL"
        yield Problem(key, "a detector that can be trained", "ObjectCentricOVD, which is for inference", fix)
        return
    if ralf.RAL.ENABLED and not label_names(cfg):
        key, fix = "MODEL.RALF.RAL.CLASSES", "name the classes in the order of the labels, such as coco48 or a file"
        yield Problem(key, "the names of the trained classes", "none in TEXT_EMB_PATH", fix)
    elif ralf.RAL.ENABLED or name == "DetPro":
        yield from label_problems(label_names(cfg), cfg.DATASETS.TRAIN, labels_key(cfg))
    if name == "DetPro" and not cfg.MODEL.CLIP.TEXT_EMB_PATH:
        fix = "write them with regionclip concepts, or take DetPro's iou_neg5_ens.pth"
        yield Problem("MODEL.CLIP.TEXT_EMB_PATH", "embeddings of the classes of DATASETS.TRAIN", "none", fix)
    if name == "DetPro" and ralf.DISTILL_WEIGHT and not ralf.REGIONS:
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
    clip = cfg.MODEL.CLIP
    heads, wanted = cfg.MODEL.ROI_HEADS.NAME, OWN_DETECTORS[cfg.MODEL.META_ARCHITECTURE]
    if heads not in wanted:
        fix = f"add MODEL.ROI_HEADS.NAME {wanted[0]}"
        yield Problem("MODEL.ROI_HEADS.NAME", " or ".join(wanted), repr(heads), fix)
    if clip.CROP_REGION_TYPE == "RPN" and not clip.OFFLINE_RPN_CONFIG:
        expected, fix = "the YAML of the proposal network", "name it, or add MODEL.CLIP.CROP_REGION_TYPE ''"
        yield Problem("MODEL.CLIP.OFFLINE_RPN_CONFIG", expected, "nothing", fix)
    if cfg.MODEL.META_ARCHITECTURE == "DetPro":
        yield from _detpro_problems(cfg)
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


def _detpro_problems(cfg: CfgNode) -> Iterator[Problem]:
    base = parse_names(cfg.MODEL.RALF.BASE_CLASSES, synonyms=False)
    if not base:
        yield Problem("MODEL.RALF.BASE_CLASSES", "the names of the trained classes", "none", "name them")
    elif len(base) != cfg.MODEL.ROI_HEADS.NUM_CLASSES:
        key, actual = "MODEL.ROI_HEADS.NUM_CLASSES", str(cfg.MODEL.ROI_HEADS.NUM_CLASSES)
        yield Problem(key, f"{len(base)}, the number of MODEL.RALF.BASE_CLASSES", actual, f"add {key} {len(base)}")
    if cfg.MODEL.MASK_ON and not cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK:
        key = "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK"
        yield Problem(key, "True: novel classes have no masks of their own", "False", f"add {key} True")


def _loss_problems(cfg: CfgNode) -> Iterator[Problem]:
    yield from _detector_problems(cfg, "MODEL.RALF.RAL.ENABLED", WITH_LOSSES)
    ral, key = cfg.MODEL.RALF.RAL, "MODEL.RALF.RAL.STORE"
    if not ral.STORE:
        yield Problem(key, "a file of negative words", "none", BUILD)
        return
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
    """Yield whether the labels are others than the rows of the class embeddings, or those of another text encoder."""
    path, what = cfg.MODEL.CLIP.TEXT_EMB_PATH, f"MODEL.RALF.RAL.STORE {cfg.MODEL.RALF.RAL.STORE}"
    rows = store.rows_of(names, what)
    own = F.normalize(load_class_embeddings(path, dim=store.dim), dim=1)
    known = names_of_embeddings(path)
    if cfg.MODEL.META_ARCHITECTURE == "DetPro":
        places = {same_to_clip(name): row for row, name in enumerate(known)}
        own = own[[places[same_to_clip(name)] for name in names if same_to_clip(name) in places]]
    elif len(own) != len(names) or (known and not are_same_labels(names, known)):
        expected, actual = f"{len(own)} names, one for each row of {path}, in its order", _first_names(names)
        yield Problem(labels_key(cfg), expected, actual, "leave it out if the file has names, or correct the order")
        return
    made_by = text_weights_of(path)
    if made_by and store.text_weights and made_by != store.text_weights:
        actual = f"text weights {store.text_weights}"
        yield Problem(what, f"text weights {made_by}, those of {path}", actual, "build it again with them")
        return
    if len(own) != len(rows):
        return  # reported by the check of DetPro's classes
    cosine = float((own * F.normalize(store.anchors[rows].float(), dim=1)).sum(dim=1).mean())
    if cosine < SAME_ENCODER:
        expected = f"the text encoder of {path}"
        actual = f"{store.clip or 'another one'}: class embeddings have a mean cosine of {cosine:.2f}"
        yield Problem(what, expected, actual, "build it again with it")


def _first_names(names: list[str]) -> str:
    return f"{len(names)} names: {', '.join(names[:5])}" + (" ..." if len(names) > 5 else "")


def _feature_problems(cfg: CfgNode) -> Iterator[Problem]:
    yield from _detector_problems(cfg, "MODEL.RALF.RAF.ENABLED", WITH_FEATURES)
    yield from _option_problems(cfg)
    raf, key = cfg.MODEL.RALF.RAF, "MODEL.RALF.RAF.CONCEPTS"
    for name in ("WEIGHTS", "CLIP_WEIGHTS"):
        if raf[name] and not find_weights(raf[name]).is_file():
            fix = "correct the path (docs/methods/ralf.md says where it comes from)"
            yield Problem(f"MODEL.RALF.RAF.{name}", "a file of weights", raf[name], fix)
    if cfg.MODEL.META_ARCHITECTURE == "DetPro" and embeds_names(cfg):
        expected = f"{clip_architecture(cfg).name}, in whose space DetPro's learned background is"
        fix = "take this CLIP, or add MODEL.RALF.RAF.EMBEDDING regions"
        yield Problem("MODEL.RALF.RAF.CLIP", expected, raf.CLIP, fix)
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
    has_classes = cfg.MODEL.CLIP.TEXT_EMB_PATH or cfg.MODEL.CLIP.OPENSET_TEST_TEXT_EMB_PATH
    if embeds_names(cfg) and has_classes and not tested_names(cfg):
        expected = f"class names in the file, for the text encoder of {get_architecture(raf.CLIP).name}"
        fix = "write it with regionclip concepts --output classes.safetensors"
        yield Problem("MODEL.CLIP.TEXT_EMB_PATH", expected, f"none, as for {clip_architecture(cfg).name}", fix)


def _option_problems(cfg: CfgNode) -> Iterator[Problem]:
    """Yield options that contradict each other, or the scores of the detector."""
    raf, name = cfg.MODEL.RALF.RAF, cfg.MODEL.META_ARCHITECTURE
    if raf.FUSION == "log_add" and name not in WITH_SOFTMAX:
        expected = f"scale or prob_add with {name}, whose scores are no softmax over classes and background"
        yield Problem("MODEL.RALF.RAF.FUSION", expected, "'log_add'", "add MODEL.RALF.RAF.FUSION scale")
    if raf.FUSION == "scale" and abs(raf.OFFSET) > LARGEST_OFFSET:
        expected = f"a number from -{LARGEST_OFFSET} to {LARGEST_OFFSET}, with which scores stay in [0, 1]"
        yield Problem("MODEL.RALF.RAF.OFFSET", expected, str(raf.OFFSET), "add MODEL.RALF.RAF.OFFSET 0.25")
    for key, default in (("BOX_SOURCE", "proposal"), ("PIXEL_MODE", "clip")):
        if raf.EMBEDDING == "regions" and raf[key] != default:
            expected = f"{default} with EMBEDDING regions, which cuts no crops"
            yield Problem(f"MODEL.RALF.RAF.{key}", expected, repr(raf[key]), f"add MODEL.RALF.RAF.{key} {default}")
