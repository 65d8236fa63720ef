#!/usr/bin/env python3
"""Top-1 and top-5 accuracy of the small CLIP on new images of single drawings, among the names of all concepts."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from regionclip.clip.prompts import PROMPT_ENSEMBLES
from regionclip.config.loading import load_config
from regionclip.config.resolve import clip_architecture
from regionclip.data.datasets.coco_ovd import datasets_root
from regionclip.data.emoji_scenes.concepts import read_concepts
from regionclip.data.emoji_scenes.datasets import FOLDER, SPLITS
from regionclip.data.emoji_scenes.drawings import Drawings
from regionclip.data.emoji_scenes.scenes import SceneMaker, SceneSettings
from regionclip.engine.checkpoint.loading import load_weights
from regionclip.engine.command import DONE, run_command
from regionclip.files import write_json
from regionclip.inference.text_encoder import load_embedder
from regionclip.modeling.build import build_model
from regionclip.modeling.image_text_clip import ImageTextCLIP

SETTINGS = SceneSettings(sides=(64, 80, 96), objects=(1, 1), object_side=(40, 92), tail=1, strokes=4)
SEED = 99
BATCH = 200


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", default="output/emoji/clip/model_final.pth")
    parser.add_argument("--config", default="configs/EmojiOVD/clip.yaml")
    parser.add_argument("--architecture", help="open_clip JSON file, instead of that of the config")
    parser.add_argument("--root", default=f"{datasets_root()}/{FOLDER}", help="folder of the drawings")
    parser.add_argument("--images", type=int, default=2000, help="of each of the two sets of styles")
    parser.add_argument("--output", help="JSON file to write")
    args = parser.parse_args()
    overrides = ["MODEL.CLIP.ARCHITECTURE", args.architecture] if args.architecture else []
    config = load_config(args.config, overrides)
    model = build_model(config).eval()
    assert isinstance(model, ImageTextCLIP)
    load_weights(model, args.weights)
    names = [concept.name for concept in read_concepts()]
    embedder = load_embedder(clip_architecture(config), args.weights)
    concepts = F.normalize(embedder.embed(names, PROMPT_ENSEMBLES["regionclip"]), dim=1)
    metrics = {}
    for split in ("val", "style"):
        ranks = ranks_of(model, concepts, Path(args.root), SPLITS[split].styles, args.images)
        metrics[split] = {f"top{k}": round(100 * float((ranks < k).float().mean()), 1) for k in (1, 5)}
        print(f"{'+'.join(SPLITS[split].styles)}: {metrics[split]}")
    if args.output:
        write_json(Path(args.output), {"weights": args.weights, "images": args.images, "percent": metrics})
        print(f"Done: {args.output}")
    return DONE


@torch.no_grad()
def ranks_of(model: ImageTextCLIP, concepts: Tensor, root: Path, styles: tuple[str, ...], count: int) -> Tensor:
    """Return the rank [count] of the right name of each image; 0 is the best.

    Args:
        model: CLIP.
        concepts: unit text embeddings [K, D].
        root: folder of the synthetic dataset.
        styles: of the drawings.
        count: number of images.
    """
    ranks = []
    batches = batched_images(root, styles, count, model.visual.architecture.image_resolution)
    for images, labels in tqdm(batches, total=-(-count // BATCH), desc="+".join(styles)):
        embeddings = model.visual.embed_images(model.preprocessor(list(images)).tensor)
        logits = F.normalize(embeddings, dim=1) @ concepts.T
        ranks.append((logits > logits.gather(1, labels[:, None])).sum(dim=1))
    return torch.cat(ranks)


def batched_images(root: Path, styles: tuple[str, ...], count: int, side: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield uint8 images [N, 3, side, side] and the number of the concept [N] that each shows."""
    maker = SceneMaker([Drawings(root / "drawings", style) for style in styles], read_concepts(), SEED, SETTINGS)
    for start in range(0, count, BATCH):
        scenes = [maker.make(number) for number in range(start, min(start + BATCH, count))]
        shown = [scene for scene in scenes if scene.objects]
        pixels = [
            np.asarray(Image.fromarray(scene.pixels).resize((side, side), Image.Resampling.BICUBIC)) for scene in shown
        ]
        labels = torch.tensor([scene.objects[0].concept.number for scene in shown])
        yield torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2), labels


if __name__ == "__main__":
    run_command(main)
