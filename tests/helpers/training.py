"""Data to train on: images of colored boxes, a tiny detector, and processes that can be killed."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from PIL import Image

from regionclip.config.loading import load_config
from regionclip.data.datasets.coco_json import load_coco
from regionclip.engine.distributed import Place, free_port, join
from regionclip.engine.training.trainer import DetectorTrainer
from regionclip.fingerprints import hash_tensors
from regionclip.testing.deterministic import deterministic_text_embeddings
from tests.helpers.detectors import TINY, flat

CLASSES = {1: "person", 3: "car", 18: "dog"}
COLORS = {1: (220, 40, 40), 3: (40, 200, 60), 18: (50, 70, 230)}
CONFIG = "configs/COCO-InstanceSegmentation/CLIP_fast_rcnn_R_50_C4_ovd.yaml"
UNSTEADY = ("time", "data_time", "rank_data_time", "images_per_second", "max_memory_gb")
"""Metrics that differ from run to run."""


def write_images(folder, count=8):
    """Write noisy images with a box of each class, landscape and portrait in turn, and their annotations."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    (folder / "images").mkdir(parents=True)
    for i in range(count):
        width, height = (96, 64) if i % 2 else (64, 96)
        pixels = rng.integers(90, 130, (height, width, 3), dtype=np.uint8)
        for category, color in COLORS.items():
            w, h = rng.integers(18, 40, 2).tolist()
            x, y = int(rng.integers(0, width - w)), int(rng.integers(0, height - h))
            pixels[y : y + h, x : x + w] = color
            box = {"id": len(annotations) + 1, "image_id": i, "category_id": category, "bbox": [x, y, w, h]}
            polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
            annotations.append({**box, "area": w * h, "iscrowd": 0, "segmentation": [polygon]})
        Image.fromarray(pixels).save(folder / "images" / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "width": width, "height": height})
    categories = [{"id": i, "name": name} for i, name in CLASSES.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content))
    torch.save(deterministic_text_embeddings("training", len(CLASSES), 32), folder / "embeddings.pth")
    return content


def register(folder):
    """Register the images of a folder under its name and return that."""
    name = f"training_{folder}"
    if name not in DatasetCatalog.list():
        annotations, image_root = folder / "annotations.json", folder / "images"
        classes = {category["id"]: category["name"] for category in json.loads(annotations.read_text())["categories"]}
        names = list(classes.values())
        DatasetCatalog.register(name, lambda: load_coco(str(annotations), str(image_root), names, fix="write it again"))
        MetadataCatalog.get(name).set(
            json_file=str(annotations),
            image_root=str(image_root),
            evaluator_type="coco",
            thing_classes=names,
            thing_dataset_id_to_contiguous_id={category: i for i, category in enumerate(classes)},
        )
    return name


def training_config(folder, output, config=CONFIG, **overrides):
    """Return the config of a short training on the images of a folder."""
    name = register(Path(folder))
    options = TINY | {
        "DATASETS.TRAIN": f"('{name}',)",
        "DATASETS.TEST": f"('{name}',)",
        "MODEL.ROI_HEADS.NUM_CLASSES": "3",
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": "16",
        "MODEL.CLIP.TEXT_EMB_PATH": str(Path(folder) / "embeddings.pth"),
        "INPUT.MIN_SIZE_TRAIN": "(48, 64)",
        "INPUT.MIN_SIZE_TEST": "64",
        "SOLVER.IMS_PER_BATCH": "2",
        "SOLVER.MAX_ITER": "50",
        "SOLVER.STEPS": "(40,)",
        "SOLVER.WARMUP_ITERS": "5",
        "SOLVER.CHECKPOINT_PERIOD": "7",
        "TEST.EVAL_PERIOD": "0",
        "SEED": "3",
        "OUTPUT_DIR": str(output),
    }
    cfg = load_config(config, flat(options | {key.replace("__", "."): str(value) for key, value in overrides.items()}))
    cfg.freeze()
    return cfg


def train(folder, output, resume=True, **overrides):
    """Train in this process and return the trainer and its report."""
    torch.set_num_threads(1)
    cfg = training_config(folder, output, **overrides)
    seed_all_rng(cfg.SEED + comm.get_rank())  # as the commands do
    trainer = DetectorTrainer(cfg, allow_missing=("offline_",))
    trainer.resume_or_load(resume)
    return trainer, trainer.train()


def _train_and_exit(*arguments, **overrides):
    torch.set_num_threads(1)
    train(*arguments, **overrides)
    os._exit(0)


def train_among(rank, world_size, port, folder, output, overrides):
    """Train as one of several processes, and write down the losses of each step."""
    torch.set_num_threads(1)
    place = Place(rank, world_size, rank, world_size, f"tcp://127.0.0.1:{port}")
    join(place, lambda: note_losses(folder, output, overrides), on_gpu=False)


def note_losses(folder, output, overrides):
    """Train, and write the losses of each step into `losses.json`, and each process's hash of averaged weights."""
    trainer, _ = train(folder, output, **overrides)
    if trainer.average:
        average = hash_tensors([trainer.average.state_dict()])
        (Path(output) / f"average.{comm.get_rank()}").write_text(average)
    if comm.is_main_process():
        losses = {k: [v for v, _ in h.values()] for k, h in trainer.storage.histories().items() if "loss" in k}
        (Path(output) / "losses.json").write_text(json.dumps(losses))


def train_in_processes(count, folder, output, **overrides):
    """Train in so many processes; return the losses of each step by name."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.helpers.training"])
    port = free_port()
    arguments = (count, port, str(folder), str(output), overrides)
    processes = [context.Process(target=train_among, args=(rank, *arguments)) for rank in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * count
    return json.loads((Path(output) / "losses.json").read_text())


def start_training(folder, output, **overrides):
    """Start a process that trains, or goes on; a server that has imported everything makes it quick."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.helpers.training"])
    process = context.Process(target=_train_and_exit, args=(str(folder), str(output)), kwargs=overrides)
    process.start()
    return process


def kill_after_a_checkpoint(world, output, **settings):
    """Start a training, and kill it once its first checkpoint is written."""
    process = start_training(world, output, **settings)
    while process.is_alive() and not (output / "checkpoints.json").exists():
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not (output / "model_final.pth").exists()


def assert_a_killed_training_ends_with_the_same_bits(world, folder, **settings):
    """Train to the end, and kill and resume the same training: weights, optimizer and the last line are the same."""
    train(world, folder / "whole", **settings)
    kill_after_a_checkpoint(world, folder / "killed", **settings)
    trainer, _ = train(world, folder / "killed", **settings)
    assert trainer.start_iter >= 7
    for part in ("model", "trainer"):
        found, expected = (final_state(folder / run)[part] for run in ("killed", "whole"))
        assert differing(found, expected) == []
    assert logged(folder / "killed")[-1] == logged(folder / "whole")[-1]


def logged(output):
    """Return the JSON lines of a run without what differs from run to run."""
    lines = [json.loads(line) for line in (Path(output) / "metrics.json").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in UNSTEADY} for line in lines]


def final_state(output):
    """Return the model, optimizer and average of a finished run."""
    return torch.load(Path(output) / "model_final.pth", weights_only=True)


def differing(state, other, prefix=""):
    """Return the paths at which two nested states are not the same bits."""
    if isinstance(state, dict):
        if state.keys() != other.keys():
            return [f"{prefix} keys {sorted(map(str, state.keys() ^ other.keys()))}"]
        return [found for key in state for found in differing(state[key], other[key], f"{prefix}.{key}")]
    if isinstance(state, (list, tuple)):
        pairs = zip(state, other, strict=True)
        return [found for i, pair in enumerate(pairs) for found in differing(*pair, f"{prefix}[{i}]")]
    same = torch.equal(state, other) if isinstance(state, torch.Tensor) else state == other
    return [] if same else [prefix]
