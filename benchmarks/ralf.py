#!/usr/bin/env python3
"""RALF with random weights: time and memory of the augmenter and of crops, and memory of a store of negative words.

The augmenter for 1000 boxes in the stock decoder of torch and in the form for one query; CLIP on their crops; negative
words of 1203 classes, as the published file and as ours.

python benchmarks/ralf.py [--boxes 1000] [--concepts 10000] [--crops 128] [--json]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from peak_memory import in_own_process
from timing import seconds_of
from torch.nn import functional as F

from regionclip.clip.architectures import get_architecture
from regionclip.clip.padded_crops import CLIPPixels
from regionclip.modeling.retrieval_augmentation.augmenter import ConceptAugmenter
from regionclip.modeling.retrieval_augmentation.features import CropEmbeddings
from regionclip.modeling.retrieval_augmentation.negatives import (
    NegativeStore,
    NegativeWords,
    read_negative_words,
    write_negative_words,
)

CLASSES, WORDS, PER_CLASS, DIM = 1203, 12_564, 2000, 512
"""Of the published store of LVIS."""

REGIONS_AT_ONCE = 64
"""Regions of a chunk, as detectors encode them."""


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--boxes", type=int, default=1000)
    parser.add_argument("--concepts", type=int, default=10_000)
    parser.add_argument("--crops", type=int, default=128)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()
    ways = {"decoder": True, "one query": False}
    measured = {name: in_own_process(augment, args.boxes, args.concepts, stock) for name, stock in ways.items()}
    values = [torch.tensor(result.pop("value")) for result in measured.values()]
    difference = float((values[0] - values[1]).abs().max())
    for name, result in measured.items():
        print(f"augmenter, {name}: {result['seconds']:.2f} s and {result['gigabytes']:.2f} GB for {args.boxes} boxes")
    speedup = measured["decoder"]["seconds"] / measured["one query"]["seconds"]
    print(f"{speedup:.1f} times as fast, largest difference {difference:.1e}")
    crops = in_own_process(embed_crops, args.crops)
    rate = args.crops / crops.pop("value")
    memory = crops["gigabytes"]
    print(f"CLIP ViT-B/32 on crops: {rate:.1f} a second, {memory:.2f} GB; {1000 / rate:.0f} s for 1000 boxes")
    with tempfile.TemporaryDirectory() as folder:
        store = in_own_process(load_store, write_store(Path(folder) / "store.safetensors"))
    megabytes = store.pop("value")
    published = 2 * CLASSES * PER_CLASS * DIM * 4 / 1e6
    print(f"negative words of {CLASSES} classes: {megabytes:.0f} MB, published file {published:.0f} MB")
    if args.json:
        result = {"boxes": args.boxes, "augmenter": measured, "speedup": speedup, "difference": difference}
        result |= {"crops_per_second": rate, "crops_gigabytes": memory}
        print(json.dumps({**result, "store_megabytes": megabytes, "published_megabytes": published}))


def augment(boxes: int, concepts: int, stock: bool) -> list[list[float]]:
    """Return the first numbers of augmented embeddings, by the stock decoder of torch or the form for one query."""
    torch.manual_seed(0)
    augmenter = ConceptAugmenter(DIM).eval().requires_grad_(False)
    table = F.normalize(torch.randn(concepts, DIM), dim=1)
    regions = F.normalize(torch.randn(boxes, DIM), dim=1)
    with torch.set_grad_enabled(stock):  # with gradients the stock decoder is used; no weight needs any
        parts = [augmenter(part, table) for part in regions.split(REGIONS_AT_ONCE)]
    return torch.cat(parts)[:, :8].tolist()


def embed_crops(count: int) -> float:
    """Return the seconds of CLIP on crops."""
    crops = CropEmbeddings(get_architecture("ViT-B/32"), CLIPPixels(), None).eval()
    image = torch.randint(0, 255, (3, 800, 1067), dtype=torch.uint8)
    corners = torch.rand(count, 2) * torch.tensor([800.0, 600.0])
    boxes = torch.cat([corners, corners + 20 + torch.rand(count, 2) * 180], dim=1)
    own = torch.zeros(count, 1)
    with torch.no_grad():
        crops(image, boxes[:2], own[:2])
        return seconds_of(lambda: crops(image, boxes, own))


def write_store(path: Path) -> str:
    """Write random negative words of LVIS's size."""
    generator = torch.Generator().manual_seed(0)
    lists = [
        torch.stack([torch.randperm(WORDS, generator=generator)[:PER_CLASS] for _ in range(CLASSES)]).int()
        for _ in range(2)
    ]
    tables = (torch.randn(rows, DIM, generator=generator) for rows in (CLASSES, WORDS))
    write_negative_words(path, NegativeWords(tuple(f"class {i}" for i in range(CLASSES)), *tables, *lists))
    return str(path)


def load_store(path: str) -> float:
    """Return the megabytes of a loaded store."""
    store = NegativeStore(read_negative_words(path), range(CLASSES))
    tensors: list[Any] = [store.anchors, store.words, *store.lists.values(), *store.counts.values()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 1e6


if __name__ == "__main__":
    main()
