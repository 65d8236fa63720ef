"""What stands in the way of a training: data, classes, schedule, and the pool of concepts."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from regionclip.config.checks import dataset_problems
from regionclip.config.resolve import clip_architecture, learns_from_pairs
from regionclip.errors import Problem
from regionclip.method import methods_of

logger = logging.getLogger(__name__)


def training_problems(cfg: CfgNode, processes: int = 1) -> Iterator[Problem]:
    """Yield what stands in the way of training in so many processes with a config that `check_config` found good."""
    if cfg.SOLVER.MAX_ITER in cfg.SOLVER.STEPS:
        expected = "milestones other than SOLVER.MAX_ITER"
        yield Problem("SOLVER.STEPS", expected, str(cfg.SOLVER.MAX_ITER), "leave it out: it has no effect")
    if cfg.SOLVER.CHECKPOINT_PERIOD < 1:
        key = "SOLVER.CHECKPOINT_PERIOD"
        yield Problem(key, "at least 1", str(cfg.SOLVER.CHECKPOINT_PERIOD), f"add {key} 5000")
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
    for method in methods_of(cfg):
        yield from method.training_problems(cfg)
    norms = (cfg.MODEL.RESNETS.NORM, cfg.MODEL.FPN.NORM, cfg.MODEL.ROI_BOX_HEAD.NORM)
    if processes > 1 and cfg.MODEL.DEVICE == "cpu" and "SyncBN" in norms:
        key, fix = "MODEL.RESNETS.NORM, FPN.NORM, ROI_BOX_HEAD.NORM", "write naiveSyncBN, or train in one process"
        yield Problem(key, "a normalization that several processes on CPUs can share", "SyncBN", fix)
    if learns_from_pairs(cfg):
        yield from _pair_problems(cfg)
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


def _pair_problems(cfg: CfgNode) -> Iterator[Problem]:
    data = cfg.DATASETS
    counts = {len(data.TRAIN), len(data.FACTORY_TRAIN), len(data.PATH_TRAIN)}
    if counts != {len(data.TRAIN)} or not data.TRAIN:
        names = "DATASETS.TRAIN, FACTORY_TRAIN and PATH_TRAIN"
        actual = f"{len(data.TRAIN)}, {len(data.FACTORY_TRAIN)} and {len(data.PATH_TRAIN)}"
        yield Problem(names, "an entry in each for every dataset", actual, "see docs/pretraining.md")
    if cfg.DATASETS.TEST:
        fix = "add DATASETS.TEST '()', and evaluate the weights with a config of a detector"
        yield Problem("DATASETS.TEST", "no dataset in pretraining", ", ".join(cfg.DATASETS.TEST), fix)
    if cfg.MODEL.META_ARCHITECTURE == "ImageTextCLIP":
        yield from _square_problems(cfg)


def _square_problems(cfg: CfgNode) -> Iterator[Problem]:
    side, sides, key = clip_architecture(cfg).image_resolution, cfg.AUG.TRAIN.IMAGE_SIZE, "AUG.TRAIN.IMAGE_SIZE"
    if list(sides) != [side, side]:
        yield Problem(key, f"[{side}, {side}], the images of this CLIP", str(sides), f"add {key} [{side},{side}]")


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
