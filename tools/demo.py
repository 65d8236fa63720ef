#!/usr/bin/env python3
"""Zero-shot detection on the shipped pictures: prints detections, writes annotated pictures and JSON."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import torch
from detectron2.data import MetadataCatalog
from tabulate import tabulate

from regionclip.config import load_config
from regionclip.data import list_images
from regionclip.engine import VisualizationOptions, visualize_results
from regionclip.engine.command import detector_argument_parser, log_to_console, run_command
from regionclip.engine.workflows import evaluate_only
from regionclip.files import REPOSITORY, atomic_write
from regionclip.modeling import build_model
from regionclip.testing import deterministic_text_embeddings, fill_deterministic

CONFIG = "configs/LVISv1-InstanceSegmentation/CLIP_fast_rcnn_R_50_C4_custom_img.yaml"
RPN_CONFIG = "configs/LVISv1-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"
DATASET = "lvis_v1_val_custom_img"
PICTURES = REPOSITORY / "datasets" / "demo_images"
OUTPUT = REPOSITORY / "output" / "demo"
OFFICIAL = {
    "MODEL.WEIGHTS": "pretrained_ckpt/regionclip/regionclip_pretrained-cc_rn50.pth",
    "MODEL.CLIP.TEXT_EMB_PATH": "pretrained_ckpt/concept_emb/lvis_1203_cls_emb.pth",
    "MODEL.CLIP.BB_RPN_WEIGHTS": "pretrained_ckpt/rpn/rpn_lvis_866.pth",
}
SHOWN = 5

WARNING = """
The official weights are not in pretrained_ckpt/ (docs/MODEL_ZOO.md says where to get them), so the
detector ran with weights generated from names. Everything below went the real way, from pixels to
boxes, but the words are MEANINGLESS."""


def generate_files(folder: Path) -> dict[str, str]:
    """Write weights and embeddings that need no download, and return the config keys that name them."""
    files = {"MODEL.WEIGHTS": folder / "weights.pth", "MODEL.CLIP.TEXT_EMB_PATH": folder / "lvis_1203_cls_emb.pth"}
    with atomic_write(files["MODEL.CLIP.TEXT_EMB_PATH"]) as file:
        torch.save(deterministic_text_embeddings("lvis_1203", 1203, 1024), file)
    cfg = load_config(CONFIG, ["MODEL.DEVICE", "cpu", "MODEL.CLIP.OFFLINE_RPN_CONFIG", RPN_CONFIG])
    model = build_model(cfg)
    fill_deterministic(model)
    with atomic_write(files["MODEL.WEIGHTS"]) as file:
        torch.save({"model": model.state_dict()}, file)
    return {key: str(path) for key, path in files.items()}


def demo_overrides(files: dict[str, str]) -> list[str]:
    """Return the overrides of the run: half the published resolution and a tenth of the proposals, for speed."""
    settings = {
        **files,
        "MODEL.CLIP.OFFLINE_RPN_CONFIG": RPN_CONFIG,
        "MODEL.CLIP.OFFLINE_RPN_POST_NMS_TOPK_TEST": "100",
        "INPUT.MIN_SIZE_TEST": "400",
        "INPUT_DIR": str(PICTURES),
        "OUTPUT_DIR": str(OUTPUT),
    }
    return [part for pair in settings.items() for part in pair]


def detections_table(results_file: Path) -> str:
    """Return the best detections of each picture as a text table."""
    names, pictures = MetadataCatalog.get(DATASET).thing_classes, list_images(PICTURES)
    by_image = defaultdict(list)
    for result in json.loads(results_file.read_text()):
        by_image[result["image_id"]].append(result)
    rows = [
        [pictures[image].name, names[result["category_id"] - 1], f"{result['score']:.2f}", *map(round, result["bbox"])]
        for image, results in sorted(by_image.items())
        for result in sorted(results, key=lambda r: -r["score"])[:SHOWN]
    ]
    return tabulate(rows, headers=["picture", "word", "score", "x", "y", "width", "height"])


def main() -> int:
    """Run the demonstration and return the exit code."""
    log_to_console()
    official = all((REPOSITORY / path).is_file() for path in OFFICIAL.values())
    files = OFFICIAL if official else generate_files(OUTPUT / "generated")
    arguments = ["--eval-only", "--config-file", CONFIG, *demo_overrides(files)]
    code = evaluate_only(detector_argument_parser(str(__doc__)).parse_args(arguments))
    results_file = OUTPUT / "inference" / "lvis_instances_results.json"
    options = VisualizationOptions(score_threshold=0.05, unique_boxes=True, max_boxes=25, min_area=2000)
    visualize_results(str(results_file), str(OUTPUT / "regions"), DATASET, options)
    print("" if official else WARNING)
    print(f"\n{detections_table(results_file)}\n")
    print(f"annotated pictures: {OUTPUT / 'regions'}\nall detections:     {results_file}")
    return code


if __name__ == "__main__":
    run_command(main)
