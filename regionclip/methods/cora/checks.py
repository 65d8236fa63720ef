"""Contradictions of a config of CORA, reported before anything is built."""

from __future__ import annotations

from collections.abc import Iterator

from detectron2.config import CfgNode

from regionclip.clip.class_embeddings import load_class_embeddings
from regionclip.errors import Problem, UserError
from regionclip.methods.cora.checkpoints import META_ARCHITECTURES
from regionclip.methods.cora.matching import INADMISSIBLE, MatchingWeights

SOURCES = ("GT", "FILE", "GRID", "NONE", "RPN")
"""Values of CROP_REGION_TYPE with RegionPromptCLIP."""


def config_problems(cfg: CfgNode) -> Iterator[Problem]:
    """Yield the contradictions in a config."""
    if cfg.MODEL.META_ARCHITECTURE not in META_ARCHITECTURES:
        return
    yield from _embedding_problems(cfg)
    yield from _pseudo_box_problems(cfg)
    if cfg.MODEL.META_ARCHITECTURE == "CORA":
        yield from _localizer_problems(cfg)
        return
    key = "MODEL.CLIP.CROP_REGION_TYPE"
    if cfg.MODEL.CLIP.CROP_REGION_TYPE not in SOURCES:
        yield Problem(key, " or ".join(SOURCES), repr(cfg.MODEL.CLIP.CROP_REGION_TYPE), f"add {key} GT")
    elif cfg.MODEL.CLIP.CROP_REGION_TYPE == "RPN" and not cfg.MODEL.CLIP.OFFLINE_RPN_CONFIG:
        fix = "name one of configs/*/mask_rcnn_R_50_*.yaml, or use ground-truth boxes (GT)"
        yield Problem("MODEL.CLIP.OFFLINE_RPN_CONFIG", "the YAML of the detector that proposes boxes", "nothing", fix)


def training_problems(cfg: CfgNode) -> Iterator[Problem]:
    """Yield what prevents training."""
    if cfg.MODEL.META_ARCHITECTURE in META_ARCHITECTURES and not cfg.MODEL.CLIP.TEXT_EMB_PATH:
        fix = "write them with `regionclip concepts --templates cora`, and name the file"
        yield Problem("MODEL.CLIP.TEXT_EMB_PATH", "embeddings of the trained classes", "none", fix)


def _pseudo_box_problems(cfg: CfgNode) -> Iterator[Problem]:
    """Yield what is wrong with the files of pseudo boxes (CORA+)."""
    cora, key = cfg.MODEL.CORA, "MODEL.CORA.PSEUDO_EMBEDDINGS"
    if bool(cora.PSEUDO_BOXES) != bool(cora.PSEUDO_EMBEDDINGS):
        fix = "write embeddings with `regionclip concepts --templates cora`, and set both keys"
        yield Problem("MODEL.CORA.PSEUDO_BOXES, PSEUDO_EMBEDDINGS", "both or neither", "one of them", fix)
    elif cora.PSEUDO_BOXES and cfg.MODEL.META_ARCHITECTURE != "CORA":
        fix = f"add {key} '' MODEL.CORA.PSEUDO_BOXES ''"
        yield Problem("MODEL.CORA.PSEUDO_BOXES", "the localizer, CORA", cfg.MODEL.META_ARCHITECTURE, fix)
    elif cora.PSEUDO_BOXES:
        try:
            load_class_embeddings(cora.PSEUDO_EMBEDDINGS, dim=cfg.MODEL.CLIP.TEXT_EMB_DIM, key=key)
        except UserError as error:
            yield from error.problems


def _embedding_problems(cfg: CfgNode) -> Iterator[Problem]:
    clip = cfg.MODEL.CLIP
    for name, rows in (("TEXT_EMB_PATH", cfg.MODEL.ROI_HEADS.NUM_CLASSES), ("OPENSET_TEST_TEXT_EMB_PATH", None)):
        if clip[name]:
            try:
                load_class_embeddings(clip[name], rows=rows, dim=clip.TEXT_EMB_DIM, key=f"MODEL.CLIP.{name}")
            except UserError as error:
                yield from error.problems


def _localizer_problems(cfg: CfgNode) -> Iterator[Problem]:
    cora = cfg.MODEL.CORA
    if cora.NHEADS >= 1 and 256 % cora.NHEADS:
        yield Problem("MODEL.CORA.NHEADS", "a divisor of 256", str(cora.NHEADS), "add MODEL.CORA.NHEADS 8")
    if cora.NOVEL_FACTOR != 1 and not cora.NOVEL_CLASSES:
        fix = "name them (coco17, a file, or names with commas), or add MODEL.CORA.NOVEL_FACTOR 1"
        yield Problem("MODEL.CORA.NOVEL_CLASSES", "the novel class names of NOVEL_FACTOR", "none", fix)
    largest = MatchingWeights(*(cora.COST[term] for term in ("OBJECTNESS", "L1", "GIOU"))).largest_cost()
    if largest >= INADMISSIBLE:
        expected, fix = f"weights whose costs stay below {INADMISSIBLE:g}", "divide all three by the same factor"
        yield Problem("MODEL.CORA.COST", expected, f"costs of up to {largest:.0f}", fix)
