"""Config of a training or an evaluation on a user's dataset, from any detector."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from regionclip.clip.vocabulary import Vocabulary
from regionclip.config.keys import all_keys, get_value
from regionclip.config.loading import load_config, merge_overrides
from regionclip.config.resolve import find_weights
from regionclip.data.own_datasets.prepared import OWN_TEST, OWN_TRAIN, Prepared
from regionclip.engine.detector import load_model
from regionclip.errors import user_error
from regionclip.files import atomic_write, existing_file
from regionclip.hub.packing import PackedFile, pack_detector
from regionclip.hub.pretrained import CONFIG_FILE, FoundDetector, Pretrained
from regionclip.inference.vocabularies import VocabularyOptions, make_vocabulary
from regionclip.method import method_of

CLASSES_FILE, BASE_CLASSES_FILE = "classes.safetensors", "base_classes.safetensors"
"""Class embeddings in the folder of the data."""

TRAINABLE = "regionclip"
"""The method whose heads `train --data` trains."""

EPOCHS = 12
"""Of the training images, as in the published schedule."""

MIN_ITERATIONS, MAX_ITERATIONS = 100, 90_000
"""Limits of the schedule; the second is the published one."""

EVALUATIONS = 5
"""Of the held-out images, during a training."""

PUBLISHED_BATCH = 16
"""Images of a batch that the learning rates are for; they scale with the batch."""

_PUBLISHED: dict[str, Any] = {
    "MODEL.CLIP.BG_CLS_LOSS_WEIGHT": 0.2,
    "MODEL.CLIP.FOCAL_SCALED_LOSS": 0.5,
    "SOLVER.OPTIMIZER": "SGD",
    "SOLVER.BASE_LR": 0.002,
    "SOLVER.WEIGHT_DECAY": 0.0001,
}
"""Transfer learning as published, for the published CLIP sizes."""

_SMALL: dict[str, Any] = {
    "MODEL.CLIP.ONLY_SAMPLE_FG_PROPOSALS": True,
    "MODEL.CLIP.BG_CLS_LOSS_WEIGHT": 0.2,
    "MODEL.CLIP.FOCAL_SCALED_LOSS": 0.5,
    "SOLVER.OPTIMIZER": "ADAMW",
    "SOLVER.BASE_LR": 0.0001,
    "SOLVER.WEIGHT_DECAY": 0.01,
}
"""For CLIP sizes of a file, such as the embedded detector's: as configs/EmojiOVD/transfer.yaml."""


@dataclass(frozen=True)
class Schedule:
    """Length of a training; 0 takes the default."""

    epochs: float = 0
    batch: int = 0
    """Images."""

    def iterations(self, images: int, batch: int) -> int:
        """Return the number of steps for a number of training images."""
        wanted = math.ceil((self.epochs or EPOCHS) * images / batch)
        return wanted if self.epochs else min(max(wanted, MIN_ITERATIONS), MAX_ITERATIONS)


def write_evaluation_config(
    found: FoundDetector, prepared: Prepared, folder: Path, overrides: Sequence[str], templates: str
) -> Path:
    """Write the data, the class embeddings and the config of an evaluation to `folder`, and return the config.

    Detections have no minimum score, so that the whole precision-recall curve counts. Everything else is as the
    detector is configured.

    Raises:
        UserError: class names that are the same to CLIP, or no text encoder.
    """
    _require_mergeable(found.cfg, overrides)
    options = VocabularyOptions(templates, "mean")
    made = make_vocabulary(list(prepared.dataset.names), found.embedder, options)
    prepared.write(folder)
    made.save(folder / CLASSES_FILE)
    values = _common(found, prepared, folder) | {
        "MODEL.CLIP.TEXT_EMB_PATH": str(folder / CLASSES_FILE),
        "MODEL.ROI_HEADS.NUM_CLASSES": len(prepared.dataset.names),
    }
    return _write(found.cfg, values, overrides, folder)


def write_training_config(
    found: FoundDetector,
    prepared: Prepared,
    folder: Path,
    overrides: Sequence[str],
    templates: str,
    schedule: Schedule,
    *,
    is_resumed: bool = False,
) -> Path:
    """Write the data, the class embeddings and the config of a training to `folder`, and return the config.

    Only base classes are trained; evaluation is of all.

    Raises:
        UserError: another method than RegionCLIP, other data than the resumed training had, or see
            `write_evaluation_config`.
    """
    method = method_of(found.cfg)
    if method is None or method.name != TRAINABLE:
        actual = f"one of {method.title if method else found.cfg.MODEL.META_ARCHITECTURE}"
        fix = "name another --model, or train it with its own configs (docs/methods)"
        raise user_error("--model", "a detector of RegionCLIP, to train it on --data", actual, fix)
    _require_mergeable(found.cfg, overrides)
    options = VocabularyOptions(templates, "mean")
    files = {CLASSES_FILE: prepared.dataset.names, BASE_CLASSES_FILE: prepared.base_names}
    made = {file: make_vocabulary(list(names), found.embedder, options) for file, names in files.items()}
    prepared.write(folder, is_resumed=is_resumed)
    for file, vocabulary in made.items():
        vocabulary.save(folder / file)
    values = _common(found, prepared, folder) | {
        "MODEL.CLIP.TEXT_EMB_PATH": str(folder / BASE_CLASSES_FILE),
        "MODEL.CLIP.OPENSET_TEST_TEXT_EMB_PATH": str(folder / CLASSES_FILE),
        "MODEL.CLIP.NO_BOX_DELTA": False,
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True,
        "MODEL.ROI_HEADS.NUM_CLASSES": len(prepared.base_names),
        "DATASETS.TRAIN": (OWN_TRAIN,),
        "INPUT.DOMAIN": "",
    }
    return _write(found.cfg, values | _solver(found.cfg, len(prepared.train), schedule), overrides, folder)


def _require_mergeable(cfg: CfgNode, overrides: Sequence[str]) -> None:
    """Raise a `UserError` for overrides that are wrong, before anything is written."""
    tried = cfg.clone()
    tried.defrost()
    merge_overrides(tried, overrides)


def _common(found: FoundDetector, prepared: Prepared, folder: Path) -> dict[str, Any]:
    return {
        "MODEL.WEIGHTS": str(find_weights(found.weights).absolute()),
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
        "DATASETS.FOLDER": str(folder),
        "DATASETS.TEST": (OWN_TEST,),
        "TEST.EVAL_PERIOD": 0,
    }


def _solver(cfg: CfgNode, images: int, schedule: Schedule) -> dict[str, Any]:
    on_gpu = cfg.MODEL.DEVICE.startswith("cuda")
    batch = schedule.batch or min(PUBLISHED_BATCH if on_gpu else PUBLISHED_BATCH // 2, images)
    iterations = schedule.iterations(images, batch)
    recipe = _SMALL if cfg.MODEL.CLIP.ARCHITECTURE.endswith(".json") else _PUBLISHED
    period = -(-iterations // EVALUATIONS)
    return recipe | {
        "SOLVER.BASE_LR": recipe["SOLVER.BASE_LR"] * batch / PUBLISHED_BATCH,
        "SOLVER.IMS_PER_BATCH": batch,
        "SOLVER.MAX_ITER": iterations,
        "SOLVER.LR_SCHEDULER_NAME": "WarmupCosineLR",
        "SOLVER.WARMUP_ITERS": min(iterations // 10, 1000),
        "SOLVER.STEPS": (),
        "SOLVER.CHECKPOINT_PERIOD": period,
        "SOLVER.BEST_CHECKPOINT_METRIC": "bbox/AP50",
        "SOLVER.AMP.ENABLED": on_gpu,
        "TEST.EVAL_PERIOD": period,
        "DATALOADER.NUM_WORKERS": min(max((os.cpu_count() or 2) - 1, 1), 4),
        "SEED": cfg.SEED if cfg.SEED >= 0 else 1,
    }


def _write(cfg: CfgNode, values: dict[str, Any], overrides: Sequence[str], folder: Path) -> Path:
    """Write a config with these values and the user's, whose files have absolute paths."""
    made = cfg.clone()
    made.defrost()
    made.merge_from_list([part for key, value in values.items() for part in (key, value)])
    merge_overrides(made, overrides)
    for key in all_keys():
        value = get_value(made, key.name) if key.is_file else None
        file = existing_file(value) if isinstance(value, str) and value else None
        if file is not None:
            made.merge_from_list([key.name, str(file.absolute())])
    path = folder / CONFIG_FILE
    with atomic_write(path) as written:
        written.write(made.dump().encode())
    return path


def pack_trained(found: FoundDetector, config: Path, weights: Path, folder: Path) -> list[PackedFile]:
    """Pack trained weights with the text encoder and the class embeddings that they were evaluated with.

    Args:
        found: the detector that the training began with.
        config: from `write_training_config`.
        weights: trained.
        folder: gets the detector.
    """
    of_training = ("MODEL.CLIP.TEXT_EMB_PATH", "MODEL.CLIP.OPENSET_TEST_TEXT_EMB_PATH", "DATASETS.FOLDER")
    values = {**dict.fromkeys(of_training, ""), "DATASETS.TRAIN": (), "DATASETS.TEST": (), "OUTPUT_DIR": "./output"}
    values["MODEL.ROI_HEADS.SCORE_THRESH_TEST"] = found.cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST
    cfg = load_config(str(config), [part for key, value in values.items() for part in (key, str(value))])
    cfg.freeze()
    model = load_model(cfg, str(weights), {}, sets_class_names=True)
    vocabulary = Vocabulary.from_file(config.parent / CLASSES_FILE)
    return pack_detector(Pretrained(model, cfg, found.embedder), folder, vocabulary)
