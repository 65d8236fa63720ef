#!/usr/bin/env python3
"""AP50 of classes that are named by example images, next to that of their words.

Half of the images of a dataset give the examples, the other half is evaluated. Classes of the `novel` split are named
by their words, by examples, or by both; those of the `base` split always by their words.

python benchmarks/examples.py [--model emoji] [--split style] [--counts 1,3,5,10] [--limit N] [--seeds 3] [--json]
python benchmarks/examples.py --images images/ --annotations annotations.json
"""

from __future__ import annotations

import argparse
import json
import random
from collections import defaultdict
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from tabulate import tabulate

from regionclip import Example, RegionCLIP, Vocabulary
from regionclip.clip.prompts import same_to_clip
from regionclip.data.datasets.coco_ovd import datasets_root
from regionclip.data.emoji_scenes.datasets import FOLDER
from regionclip.evaluation.coco import evaluate_with_faster_coco_eval, mean_ap50
from regionclip.inference.classifier import BackgroundClassifier
from regionclip.inference.examples import embed_examples, join_examples
from regionclip.modeling.detector import Selection
from regionclip.progress import progress_bar

CENTER_IMAGES = 20
"""Images of examples whose proposals tell where region embeddings are."""


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--split", default="style", help="of EmojiOVD (tools/prepare_emoji.py)")
    parser.add_argument("--images", type=Path, help="folder, instead of a split of EmojiOVD")
    parser.add_argument("--annotations", type=Path, help="COCO file whose categories have a split")
    parser.add_argument("--counts", default="1,3,5,10", help="examples of a class")
    parser.add_argument("--limit", type=int, default=0, help="images; 0 takes all")
    parser.add_argument("--seeds", type=int, default=3, help="draws of examples")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()
    emoji = Path(datasets_root(), FOLDER)
    images = args.images or emoji / args.split
    annotations = args.annotations or emoji / "annotations" / f"{args.split}.json"
    study = Study(RegionCLIP.from_pretrained(args.model), images, json.loads(annotations.read_text()), args.limit)
    results = {"words": [study.evaluate(study.words)]}
    for count in map(int, args.counts.split(",")):
        drawn = [study.draw(count, seed) for seed in range(args.seeds)]
        for name, together in ((f"{count} examples", False), (f"words and {count} examples", True)):
            results[name] = [study.evaluate(study.with_examples(part, together=together)) for part in drawn]
    rows = [
        [name, *(_spread([part[split] for part in parts]) for split in ("novel", "base"))]
        for name, parts in results.items()
    ]
    print(f"{len(study.named)} novel classes with examples, {len(study.tested)} images")
    print(tabulate(rows, headers=["classes named by", "AP50 novel", "AP50 base"], tablefmt="github"))
    if args.json:
        print(json.dumps({"classes": len(study.named), "images": len(study.tested), "results": results}))


def _spread(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{mean(values):.1f} ({min(values):.1f} to {max(values):.1f})"


class Study:
    """A dataset of which half gives examples and half is evaluated."""

    def __init__(self, detector: RegionCLIP, folder: Path, content: dict[str, Any], limit: int) -> None:
        """Split the images, and embed the regions of those that are evaluated."""
        self.detector, self.folder, self.content = detector, folder, content
        self.prepare = cache(detector.prepare_image)
        images = content["images"][:limit] if limit else content["images"]
        half = len(images) // 2
        self.tested = images[half:]
        names = {category["id"]: category["name"] for category in content["categories"]}
        novel = {c["id"] for c in content["categories"] if c["split"] == "novel"}
        files = {image["id"]: folder / image["file_name"] for image in images[:half]}
        self.examples: dict[str, list[Example]] = defaultdict(list)
        for annotation in content["annotations"]:
            if annotation["category_id"] in novel and annotation["image_id"] in files:
                x, y, width, height = annotation["bbox"]
                example = Example(files[annotation["image_id"]], (x, y, x + width, y + height))
                self.examples[names[annotation["category_id"]]].append(example)
        self.named = sorted(self.examples)
        self.words = detector.set_vocabulary(list(names.values()), background=None)
        self.center = self._center(list(files.values()))
        self.encodings = [self._encode(image) for image in progress_bar(self.tested, unit="image")]

    def _center(self, files: list[Path]) -> torch.Tensor:
        shown = [Example(file, (0.0, 0.0, 16.0, 16.0)) for file in files[:CENTER_IMAGES]]
        center = embed_examples({"any": shown}, self.prepare).center
        assert center is not None
        return center

    def _encode(self, image: dict[str, Any]) -> Any:
        prepared = self.detector.prepare_image(self.folder / image["file_name"])
        with torch.no_grad():
            for _ in prepared.encoding.regions.chunks():  # type: ignore[attr-defined]
                pass
        prepared.encoding.maps = {}  # type: ignore[attr-defined]
        return prepared

    def draw(self, count: int, seed: int) -> dict[str, list[Example]]:
        """Return that many examples of each novel class, or all if it has fewer."""
        dice = random.Random(seed)
        return {name: dice.sample(group, min(count, len(group))) for name, group in sorted(self.examples.items())}

    def with_examples(self, examples: dict[str, list[Example]], *, together: bool) -> Vocabulary:
        """Return the words with examples; `together` keeps the words of these classes too."""
        found = embed_examples(examples, self.prepare)
        found = type(found)(found.names, found.embeddings, self.center, found.sources)
        text_center = self.words.class_embeddings().mean(dim=0)
        if together:
            return join_examples(self.words, found, text_center)
        others = self.words.without(self.named)
        return join_examples(others, found, text_center)

    def evaluate(self, vocabulary: Vocabulary) -> dict[str, float]:
        """Return AP50 of novel classes that have examples, and of base classes, on the other half."""
        categories = {same_to_clip(c["name"]): c for c in self.content["categories"]}
        ids = [categories[same_to_clip(name)]["id"] for name in vocabulary.names]
        classifier = BackgroundClassifier(vocabulary, None, self.detector.model.device)
        results = []
        for image, prepared in zip(self.tested, self.encodings, strict=True):
            found = self.detector.model.detect(prepared.encoding, classifier, Selection(0.0, 100))
            boxes = (found.pred_boxes.tensor / prepared.scale).tolist()
            for (x1, y1, x2, y2), score, number in zip(
                boxes, found.scores.tolist(), found.pred_classes.tolist(), strict=True
            ):
                box = {"image_id": image["id"], "category_id": ids[number], "bbox": [x1, y1, x2 - x1, y2 - y1]}
                results.append({**box, "score": score})
        kept = {image["id"] for image in self.tested}
        truth = {**self.content, "images": self.tested}
        truth["annotations"] = [a for a in self.content["annotations"] if a["image_id"] in kept]
        _, precisions = evaluate_with_faster_coco_eval(truth, results, "bbox")
        order = sorted(self.content["categories"], key=lambda category: category["id"])
        groups = {
            "novel": [i for i, c in enumerate(order) if c["name"] in self.examples],
            "base": [i for i, c in enumerate(order) if c["split"] == "base"],
        }
        return {name: mean_ap50(precisions, rows) for name, rows in groups.items()}


if __name__ == "__main__":
    main()
