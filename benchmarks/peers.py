#!/usr/bin/env python3
"""Time other detectors and this package: one photo, two threads, 80 and 1203 class names, in one run.

    pip install transformers; python benchmarks/peers.py [--detectors NAME ...] [--repeat 2] [--json]

All have random weights of the published sizes, so times are meaningful and detections are not; only `emoji` is
trained. Each has a separate process, and they alternate. `names` are embedded in advance if the architecture allows
it; `new names` are 80 unseen ones for the photo that was just processed, including the text encoder: one prompt
per name. Grounding DINO reads names as one text of at most 256 tokens, so many names need many passes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from e2e import peak_memory, read_inputs
from tabulate import tabulate
from torch import Tensor, nn
from vocabulary import make_detector, make_embedder, random_vocabulary

from regionclip import RegionCLIP, Vocabulary
from regionclip.clip.embedder import NameEmbedder
from regionclip.clip.text_encoder import Tokenizer
from regionclip.data.class_lists import CLASS_LISTS
from regionclip.memory import keep_freed_memory

FEW, MANY = 80, 1203
"""Numbers of classes of COCO and LVIS."""

TOKENS = 256
"""Maximum number of text tokens in a pass of Grounding DINO."""


@dataclass(frozen=True)
class Peer:
    """A detector with a photo."""

    parameters: int
    detect: Callable[[int], Any]
    """Detects in the photo as if it were new, with a number of names, whose embeddings are cached if possible."""
    ask: Callable[[], Any] | None = None
    """Detects new names in the photo just processed; None if names cannot change."""


def count(model: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(values.numel() for values in model.parameters())


def photo(height: int, width: int) -> Tensor:
    """Return a normalized photo [1, 3, height, width]."""
    pixels = read_inputs("RN50", 1)[0]["image"][None].float() / 255
    return (nn.functional.interpolate(pixels, (height, width)) - 0.45) / 0.225


def token_counts(names: int) -> list[int]:
    """Return the number of tokens of each of the first names of LVIS."""
    tokenizer = Tokenizer()
    return [len(tokenizer.encode(name)) for name in CLASS_LISTS["lvis"]()[:names]]


def clip_tokens(names: int, length: int) -> tuple[Tensor, Tensor]:
    """Return ids and attention mask [names, length] of one short prompt per name."""
    ids, mask = torch.zeros(names, length, dtype=torch.long), torch.zeros(names, length, dtype=torch.long)
    for row, tokens in enumerate(token_counts(names)):
        used = min(tokens + 2, length)
        ids[row, :used] = torch.randint(1, 40000, (used,))
        ids[row, 0], ids[row, used - 1], mask[row, :used] = 49406, 49407, 1
    return ids, mask


def regionclip_rn50(proposals: int) -> Peer:
    """Return RegionCLIP with RN50; no proposal is dropped for its objectness alone."""
    options = {
        "MODEL.CLIP.RPN_SCORE_FUSION": "sigmoid",
        "MODEL.CLIP.OFFLINE_RPN_POST_NMS_TOPK_TEST": str(proposals),
    }
    detector = make_detector("RN50", *(part for pair in options.items() for part in pair))
    return ours(detector, "RN50", make_embedder("RN50"))


def emoji() -> Peer:
    """Return the default detector."""
    keep_freed_memory()
    detector = RegionCLIP.from_pretrained("emoji", device="cpu")
    embedder = detector.embedder
    embedder.cache = None
    return ours(detector, "emoji", embedder)


def ours(detector: RegionCLIP, model: str, embedder: NameEmbedder) -> Peer:
    """Return one of this package's detectors, run with `predict`."""
    vocabularies = {names: random_vocabulary(names, embedder.dim) for names in (FEW, MANY)}
    pixels = read_inputs(model, 1)[0]["image"].permute(1, 2, 0).numpy()
    asked = itertools.count()

    def detect(names: int) -> Any:
        detector.set_vocabulary(vocabularies[names], background=None)
        detector.forget_images()
        detector.set_image(pixels)
        return detector.predict()

    def ask() -> Any:
        number = next(asked)
        names = [f"{name} {number}" for name in CLASS_LISTS["lvis"]()[:FEW]]
        detector.set_vocabulary(Vocabulary.from_names(names, embedder, templates="single"), background=None)
        return detector.predict()

    return Peer(count(detector.model), detect, ask)


def grounding_dino() -> Peer:
    """Return Grounding DINO-T."""
    from transformers import GroundingDinoConfig, GroundingDinoForObjectDetection

    model = GroundingDinoForObjectDetection(GroundingDinoConfig()).eval()
    pixels = photo(*read_inputs("RN50", 1)[0]["image"].shape[1:])

    def texts(names: int) -> list[Tensor]:
        parts: list[list[int]] = [[101]]
        for tokens in token_counts(names):
            if len(parts[-1]) + tokens + 2 > TOKENS:
                parts.append([101])
            parts[-1] += [*torch.randint(2000, 28000, (tokens,)).tolist(), 1012]  # each name ends with a period
        return [torch.tensor([[*part, 102]]) for part in parts]

    def detect(names: int) -> Any:
        for ids in texts(names):
            model(pixel_values=pixels, input_ids=ids)

    # Text and image are fused from the first encoder layers on: nothing can be cached.
    return Peer(count(model), detect, lambda: detect(FEW))


def owlv2() -> Peer:
    """Return OWLv2-B/16 at 960 pixels."""
    from transformers import Owlv2Config, Owlv2ForObjectDetection

    model = Owlv2ForObjectDetection(Owlv2Config(vision_config={"image_size": 960})).eval()
    pixels, kept = photo(960, 960), {}

    def embed(names: int) -> Tensor:
        ids, mask = clip_tokens(names, 16)
        return model.owlv2.get_text_features(input_ids=ids, attention_mask=mask, return_dict=True).pooler_output

    queries = {names: embed(names)[None] for names in (FEW, MANY)}

    def detect(names: int) -> Any:
        maps, *_ = model.image_embedder(pixel_values=pixels)
        features = maps.flatten(1, 2)  # [1, P, D]
        kept["features"] = features
        boxes = model.box_predictor(features, maps)
        return boxes, model.objectness_predictor(features), model.class_predictor(features, queries[names])

    return Peer(count(model), detect, lambda: model.class_predictor(kept["features"], embed(FEW)[None]))


def omdet_turbo() -> Peer:
    """Return OmDet-Turbo-T at 640 pixels, which is designed for speed."""
    from transformers import OmDetTurboConfig, OmDetTurboForObjectDetection

    model = OmDetTurboForObjectDetection(OmDetTurboConfig()).eval()
    pixels, kept = photo(640, 640), {}

    def embed(names: int) -> tuple[Tensor, ...]:
        ids, mask = clip_tokens(names, 77)
        task, task_mask = clip_tokens(1, 77)
        classes = model.language_backbone(ids, mask, encode_type="class")
        tasks, tasks_mask = model.language_backbone(task, task_mask, encode_type="task")
        return classes[:, None], tasks, tasks_mask

    known = {names: embed(names) for names in (FEW, MANY)}

    def detect(names: int) -> Any:
        kept["states"] = model.encoder(model.vision_backbone(pixels), return_dict=True).extracted_states
        return model.decoder(kept["states"], *known[names], return_dict=True)

    return Peer(count(model), detect, lambda: model.decoder(kept["states"], *embed(FEW), return_dict=True))


def faster_rcnn() -> Peer:
    """Return torchvision's Faster R-CNN with 91 fixed classes."""
    from torchvision.models.detection import fasterrcnn_resnet50_fpn_v2

    model = fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None).eval()
    image = read_inputs("RN50", 1)[0]["image"].float() / 255
    return Peer(count(model), lambda names: model([image]))


DETECTORS: dict[str, tuple[str, str, Callable[[], Peer]]] = {
    **{
        f"RegionCLIP RN50, {n} proposals": ("Apache-2.0", "800 pixels", partial(regionclip_rn50, n))
        for n in (100, 300, 1000)
    },
    "RegionCLIP emoji": ("Apache-2.0", "448 pixels", emoji),
    "Grounding DINO-T": ("Apache-2.0", "800 pixels", grounding_dino),
    "OWLv2-B/16": ("Apache-2.0", "960 x 960 pixels", owlv2),
    "OmDet-Turbo-T": ("Apache-2.0", "640 x 640 pixels", omdet_turbo),
    "Faster R-CNN R50-FPN v2": ("BSD-3-Clause", "800 pixels", faster_rcnn),
}
"""License of the code, size of the image, and factory of the detector."""

_loaded: dict[str, Peer] = {}
"""State of a process."""


def load(name: str) -> None:
    """Create the detector of this process, then reset the statistics."""
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    torch.set_num_threads(2)
    _loaded["peer"] = DETECTORS[name][2]()
    Path("/proc/self/clear_refs").write_text("5")


def seconds(names: int | None) -> float | None:
    """Return the seconds for a number of names, or for new ones; None if not supported."""
    peer = _loaded["peer"]
    start = time.perf_counter()
    if names is not None:
        peer.detect(names)
    elif peer.ask is None:
        return None
    else:
        peer.ask()
    return time.perf_counter() - start


def parameters() -> int:
    """Return the number of parameters of this process's detector."""
    return _loaded["peer"].parameters


def measure(names: Sequence[str], repeat: int) -> list[dict[str, Any]]:
    """Return one row per detector, with medians over rounds in which all alternate."""
    spawn = multiprocessing.get_context("spawn")
    pools = {name: spawn.Pool(1, load, (name,)) for name in names}
    columns = {f"seconds_{FEW}": FEW, "seconds_new_names": None, f"seconds_{MANY}": MANY}
    times: dict[tuple[str, str], list[float]] = {}
    for pool in pools.values():
        pool.apply(seconds, (FEW,))
    for _ in range(repeat):
        for column, wanted in columns.items():
            for name, pool in pools.items():
                taken = pool.apply(seconds, (wanted,))
                if taken is not None:
                    times.setdefault((name, column), []).append(taken)
    rows = []
    for name, pool in pools.items():
        license, size, _ = DETECTORS[name]
        row: dict[str, Any] = {"detector": name, "license": license, "image": size}
        row["parameters"] = pool.apply(parameters)
        row |= {column: statistics.median(times[name, column]) for column in columns if (name, column) in times}
        rows.append({**row, "memory": pool.apply(peak_memory)})
        pool.terminate()
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detectors", nargs="+", choices=list(DETECTORS), default=list(DETECTORS))
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    rows = measure(arguments.detectors, arguments.repeat)
    print(tabulate(rows, headers="keys", floatfmt=".2f"))
    if arguments.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
