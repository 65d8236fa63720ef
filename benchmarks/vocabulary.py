#!/usr/bin/env python3
"""Time a new vocabulary on an image that is already encoded, against a whole prediction, in one run.

    python benchmarks/vocabulary.py [--model RN50|RN50x4] [--image FILE] [--repeats 5] [--json]

Weights are generated from key names: times are meaningful, detections are not. The whole prediction encodes
the image (800 pixels, 1000 proposals) and uses 1203 classes.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import cast

import torch
from tabulate import tabulate
from timing import median_seconds

from regionclip import RegionCLIP, Vocabulary
from regionclip.clip.architectures import get_architecture
from regionclip.clip.embedder import NameEmbedder
from regionclip.config.loading import load_config
from regionclip.data.datasets.custom_images import list_images
from regionclip.files import REPOSITORY
from regionclip.hub.zoo import MODELS
from regionclip.inference.text_encoder import TextEncoderModule
from regionclip.memory import keep_freed_memory
from regionclip.methods.regionclip.detector import CLIPFastRCNN
from regionclip.modeling.build import build_model
from regionclip.modeling.inference.prepare import prepare_for_inference
from regionclip.testing.deterministic import fill_deterministic

SIZES = (80, 1203, 20_000)
"""Numbers of classes."""


def make_detector(name: str, *overrides: str) -> RegionCLIP:
    """Return the published detector of a CLIP size with generated weights."""
    published = MODELS[f"regionclip_pretrained-cc_{name.lower()}"]
    cfg = load_config(published.config, [*published.overrides, "MODEL.DEVICE", "cpu", *overrides])
    model = build_model(cfg)
    fill_deterministic(model)
    keep_freed_memory()
    prepare_for_inference(model)
    return RegionCLIP(cast(CLIPFastRCNN, model), cfg, embedder=lambda: make_embedder(name))


def make_embedder(name: str) -> NameEmbedder:
    """Return a text encoder of a CLIP size with generated weights."""
    module = TextEncoderModule(get_architecture(name))
    fill_deterministic(module)
    return NameEmbedder(module.lang_encoder, name, "cpu")


def random_vocabulary(count: int, dim: int) -> Vocabulary:
    """Return a vocabulary of random unit directions: timing does not depend on the values."""
    rows = torch.randn(count, dim, generator=torch.Generator().manual_seed(count))
    return Vocabulary(tuple(f"word {i}" for i in range(count)), rows, torch.arange(count))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="RN50", choices=["RN50", "RN50x4"])
    parser.add_argument("--image", default=str(list_images(REPOSITORY / "datasets" / "demo_images")[0]))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()
    detector = make_detector(args.model)
    dim = get_architecture(args.model).embedding_dim
    vocabularies = {count: random_vocabulary(count, dim) for count in SIZES}
    detector.set_vocabulary(vocabularies[1203])

    def whole() -> None:
        detector.forget_images()
        detector.set_image(args.image)
        detector.predict()

    full = median_seconds(whole, max(args.repeats // 2, 1))
    regions = len(next(iter(detector.encoded_images)).encoding.proposals)
    rows, metrics = [], {"whole_seconds": full, "regions": regions}
    for count, vocabulary in vocabularies.items():
        setting = median_seconds(lambda v=vocabulary: detector.set_vocabulary(v), args.repeats)  # type: ignore[misc]
        asking = median_seconds(detector.predict, args.repeats)
        share = (setting + asking) / full
        rows.append([count, f"{setting * 1e3:.0f}", f"{asking * 1e3:.0f}", f"{share:.2%}"])
        metrics[f"share_{count}"] = share
    print(f"{args.model}, {regions} regions, {torch.get_num_threads()} threads: whole prediction {full:.2f} s")
    print(tabulate(rows, headers=["words", "set_vocabulary ms", "predict ms", "of a whole prediction"]))
    words = [f"object {i}" for i in range(100)]
    embedder = make_embedder(args.model)
    start = time.perf_counter()
    Vocabulary.from_names(words, embedder)
    metrics["words_per_second"] = len(words) / (time.perf_counter() - start)
    print(f"embedding: {metrics['words_per_second']:.1f} words a second with 81 templates")
    if args.json:
        print(json.dumps(metrics))


if __name__ == "__main__":
    main()
