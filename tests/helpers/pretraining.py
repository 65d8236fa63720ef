"""Data to pretrain on: four captioned photos, tar shards, a tiny student and teacher."""

import json
import multiprocessing
import os
from pathlib import Path

import torch
from detectron2.utils.env import seed_all_rng

from regionclip.config.loading import load_config
from regionclip.data.image_text.pairs import Pair
from regionclip.data.image_text.writing import write_shards
from regionclip.engine.training.trainer import DetectorTrainer
from regionclip.modeling.build import build_model
from regionclip.testing.deterministic import deterministic_text_embeddings, fill_deterministic
from tests.helpers.detectors import TINY, flat
from tests.helpers.paths import DATA

CONFIG = "configs/pretrain/RegionCLIP_RN50.yaml"
PHOTOS = sorted((DATA / "four_photos" / "images").iterdir())
CAPTIONS = {
    "000000165518.jpg": ["A man rides a motorcycle.", "A person on a motor bike in the street."],
    "000000196393.jpg": ["Two bowls and a bird on a table.", "A small bird next to a bowl of food."],
    "000000234748.jpg": ["A person stands beside a red car.", "A car and a man."],
    "000000408805.jpg": ["A kitchen with an oven and a microwave.", "A microwave above the oven."],
}


def pairs(count=24):
    """Return pairs with names of their own, of four photos in turn."""
    return [
        Pair(f"{i}", PHOTOS[i % 4].read_bytes(), json.dumps({"captions": CAPTIONS[PHOTOS[i % 4].name]}))
        for i in range(count)
    ]


def write_world(folder, count=24, size=7):
    """Write shards, concept embeddings, and weights of student, teacher, text encoder and RPN."""
    write_shards(pairs(count), folder / "shards", size)
    torch.save(deterministic_text_embeddings("concepts", 20, 32), folder / "concepts.pth")
    cfg = pretraining_config(folder, folder / "none")
    model = build_model(cfg)
    fill_deterministic(model)
    torch.save({"model": model.state_dict()}, folder / "weights.pth")


def pretraining_config(folder, output, **overrides):
    """Return the config of a short pretraining on the shards of a folder."""
    architecture = TINY["MODEL.CLIP.ARCHITECTURE"]
    options = {
        "MODEL.DEVICE": "cpu",
        "MODEL.CLIP.ARCHITECTURE": architecture,
        "MODEL.CLIP.TEACHER_ARCHITECTURE": architecture,
        "MODEL.CLIP.TEACHER_POOLER_RESOLUTION": "4",
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": "4",
        "MODEL.CLIP.OFFLINE_RPN_CONFIG": TINY["MODEL.CLIP.OFFLINE_RPN_CONFIG"],
        "MODEL.CLIP.PRETRAIN_RPN_REGIONS": "12",
        "MODEL.CLIP.PRETRAIN_SAMPLE_REGIONS": "6",
        "MODEL.CLIP.CONCEPT_POOL_EMB": str(Path(folder) / "concepts.pth"),
        "DATASETS.FACTORY_TRAIN": "('ImageTextShards',)",
        "DATASETS.PATH_TRAIN": f"('{folder}/shards',)",
        "AUG.TRAIN.IMAGE_SIZE": "[64]",
        "AUG.TRAIN.MAX_SIZE": "96",
        "DATALOADER.NUM_WORKERS": "0",
        "SOLVER.IMS_PER_BATCH": "4",
        "SOLVER.MAX_ITER": "20",
        "SOLVER.STEPS": "(15,)",
        "SOLVER.WARMUP_ITERS": "2",
        "SOLVER.CHECKPOINT_PERIOD": "4",
        "SEED": "5",
        "OUTPUT_DIR": str(output),
    }
    if (Path(folder) / "weights.pth").exists():
        options["MODEL.WEIGHTS"] = str(Path(folder) / "weights.pth")
    cfg = load_config(CONFIG, flat(options | {key.replace("__", "."): str(value) for key, value in overrides.items()}))
    cfg.freeze()
    return cfg


def pretrain(folder, output, resume=True, **overrides):
    """Pretrain in this process and return the trainer and its report."""
    cfg = pretraining_config(folder, output, **overrides)
    seed_all_rng(cfg.SEED)
    trainer = DetectorTrainer(cfg)
    trainer.resume_or_load(resume)
    return trainer, trainer.train()


def _pretrain_and_exit(*arguments, **overrides):
    torch.set_num_threads(1)
    pretrain(*arguments, **overrides)
    os._exit(0)


def start_pretraining(folder, output, **overrides):
    """Start a process that pretrains, or goes on."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.helpers.pretraining"])
    process = context.Process(target=_pretrain_and_exit, args=(str(folder), str(output)), kwargs=overrides)
    process.start()
    return process
