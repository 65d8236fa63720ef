"""What stands in the way of a training: data, classes, schedule, and the pool of concepts."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterator

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from regionclip.clip.class_embeddings import load_concepts, read_names
from regionclip.config.checks import clip_architecture, dataset_problems, teacher_architecture
from regionclip.errors import Problem, UserError

logger = logging.getLogger(__name__)


def training_problems(cfg: CfgNode, processes: int = 1) -> Iterator[Problem]:
    """Yield what stands in the way of training in so many processes with a config that `check_config` found good."""
    if cfg.SOLVER.MAX_ITER in cfg.SOLVER.STEPS:
        expected = "milestones other than SOLVER.MAX_ITER"
        yield Problem("SOLVER.STEPS", expected, str(cfg.SOLVER.MAX_ITER), "leave it out: it has no effect")
    images = cfg.SOLVER.IMS_PER_BATCH
    if images < 1 or images % processes:
        fix = f"use SOLVER.IMS_PER_BATCH {max(images // processes, 1) * processes}"
        yield Problem("SOLVER.IMS_PER_BATCH", f"a multiple of the {processes} processes", str(images), fix)
    if not cfg.DATASETS.TRAIN:
        yield Problem("DATASETS.TRAIN", "at least one dataset", "none", "name one, see datasets/README.md")
    if not 1 <= cfg.SOLVER.GRADIENT_ACCUMULATION <= max(images // processes, 1):
        key, parts = "SOLVER.GRADIENT_ACCUMULATION", cfg.SOLVER.GRADIENT_ACCUMULATION
        expected = f"1 to {images // processes}, the images of a process"
        yield Problem(key, expected, str(parts), "lower it, or raise SOLVER.IMS_PER_BATCH")
    if cfg.MODEL.META_ARCHITECTURE == "PretrainFastRCNN":
        yield from _pretraining_problems(cfg)
        return
    if cfg.MODEL.META_ARCHITECTURE == "ImageTextCLIP":
        yield from _pretraining_data_problems(cfg)
        yield from _square_problems(cfg)
        return
    for name in cfg.DATASETS.TRAIN:
        problems = list(dataset_problems(name, "DATASETS.TRAIN"))
        yield from problems or class_problems(cfg, name)
    if cfg.TEST.PRECISE_BN.ENABLED:
        actual = "True, which no frozen norm needs and no run can resume"
        yield Problem("TEST.PRECISE_BN.ENABLED", "False", actual, "add TEST.PRECISE_BN.ENABLED False")
    if cfg.MODEL.CLIP.OPENSET_TEST_TEXT_EMB_PATH and not cfg.MODEL.CLIP.TEXT_EMB_PATH:
        fix = "name the embeddings of the classes that are trained"
        yield Problem("MODEL.CLIP.TEXT_EMB_PATH", "class embeddings", "none, only those for tests", fix)


def _pretraining_data_problems(cfg: CfgNode) -> Iterator[Problem]:
    data = cfg.DATASETS
    counts = {len(data.TRAIN), len(data.FACTORY_TRAIN), len(data.PATH_TRAIN)}
    if counts != {len(data.TRAIN)} or not data.TRAIN:
        names = "DATASETS.TRAIN, FACTORY_TRAIN and PATH_TRAIN"
        actual = f"{len(data.TRAIN)}, {len(data.FACTORY_TRAIN)} and {len(data.PATH_TRAIN)}"
        yield Problem(names, "an entry in each for every dataset", actual, "see docs/pretraining.md")


def _square_problems(cfg: CfgNode) -> Iterator[Problem]:
    side, sides, key = clip_architecture(cfg).image_resolution, cfg.AUG.TRAIN.IMAGE_SIZE, "AUG.TRAIN.IMAGE_SIZE"
    if list(sides) != [side, side]:
        yield Problem(key, f"[{side}, {side}], the pictures of this CLIP", str(sides), f"add {key} [{side},{side}]")


def _pretraining_problems(cfg: CfgNode) -> Iterator[Problem]:
    yield from _pretraining_data_problems(cfg)
    clip, sides = cfg.MODEL.CLIP, cfg.AUG.TRAIN
    if cfg.MODEL.ROI_HEADS.NAME != "PretrainRes5ROIHeads":
        key = "MODEL.ROI_HEADS.NAME"
        yield Problem(key, "PretrainRes5ROIHeads", repr(cfg.MODEL.ROI_HEADS.NAME), f"add {key} PretrainRes5ROIHeads")
    factors = {key: clip[key] for key in ("DISTILL_LOSS_WEIGHT", "CONTRASTIVE_LOSS_WEIGHT")}
    for key, value in factors.items():
        if not 0 <= value < math.inf:
            yield Problem(f"MODEL.CLIP.{key}", "a factor from 0", str(value), "take 1, or 0 to leave the loss out")
    for key in ("CLSS_TEMP", "TEACHER_CLSS_TEMP"):
        if not clip[key] > 0:
            yield Problem(f"MODEL.CLIP.{key}", "a temperature above 0", str(clip[key]), f"add MODEL.CLIP.{key} 0.01")
    if not (clip.PRETRAIN_IMG_TXT_LEVEL or (clip.CONCEPT_POOL_EMB and any(factors.values()))):
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


def class_problems(cfg: CfgNode, dataset: str) -> Iterator[Problem]:
    """Yield how the classes of a training set contradict the detector's, as far as they are known."""
    classes = MetadataCatalog.get(dataset).get("thing_classes")
    wanted, key = cfg.MODEL.ROI_HEADS.NUM_CLASSES, "MODEL.ROI_HEADS.NUM_CLASSES"
    if classes is None or len(classes) == wanted or cfg.MODEL.META_ARCHITECTURE == "ProposalNetwork":
        return
    if len(classes) > wanted or cfg.MODEL.CLIP.USE_TEXT_EMB_CLASSIFIER:
        fix = f"add {key} {len(classes)}, with embeddings of these classes where there are any"
        yield Problem(key, f"{len(classes)}, the classes of {dataset}", str(wanted), fix)
    else:
        # Upstream's LVIS configs do this, for the sake of the region proposal network.
        logger.warning("%s is %d, %s has %d classes: the others will never be seen", key, wanted, dataset, len(classes))


def mixed_class_problems(cfg: CfgNode) -> Iterator[Problem]:
    """Yield how the classes of several training sets contradict each other, as far as they are known."""
    known = {name: MetadataCatalog.get(name).get("thing_classes") for name in cfg.DATASETS.TRAIN}
    named = {name: list(classes) for name, classes in known.items() if classes is not None}
    if cfg.MODEL.META_ARCHITECTURE == "ProposalNetwork" or not named:
        return
    first, wanted = next(iter(named.items()))
    for name, classes in named.items():
        if classes != wanted:
            pairs = itertools.zip_longest(wanted, classes, fillvalue="none")
            place, (expected, actual) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
            fix = "train on datasets of the same classes in the same order"
            yield Problem(f"DATASETS.TRAIN {name}", f"{expected} as class {place}, as in {first}", actual, fix)
