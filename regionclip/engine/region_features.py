"""Embeddings of regions of a folder of images, a file for each image, as upstream writes them."""

from __future__ import annotations

import hashlib
import itertools
import logging
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes
from detectron2.utils import comm
from torch import Tensor
from tqdm import tqdm

import regionclip
from regionclip.config import check_config, load_config
from regionclip.config.checks import find_weights
from regionclip.data import list_images
from regionclip.data.loaders import TestMapper
from regionclip.errors import Problem, UserError, user_error
from regionclip.files import atomic_write, read_json_file, write_json
from regionclip.modeling import CLIPFastRCNN
from regionclip.modeling.roi_heads import CLIPRes5ROIHeads

logger = logging.getLogger(__name__)

MANIFEST = "features.json"
"""Says which config and weights the files of a folder come from."""

Features = dict[str, Tensor]


@dataclass
class ExtractionReport:
    """What became of the images of a folder."""

    written: int = 0
    """Files of this run, over all processes."""
    present: int = 0
    """Files of an earlier run."""
    failures: list[str] = field(default_factory=list)
    """A line for each image that could not be read."""


def check_extraction(cfg: CfgNode) -> None:
    """Raise one `UserError` with everything that stands in the way of extracting region features."""
    without_data = cfg.clone()
    without_data.defrost()
    without_data.DATASETS.TEST = ()  # the images are those of INPUT_DIR
    check_config(without_data)
    wanted = {
        "MODEL.META_ARCHITECTURE": (cfg.MODEL.META_ARCHITECTURE, CLIPFastRCNN.__name__),
        "MODEL.ROI_HEADS.NAME": (cfg.MODEL.ROI_HEADS.NAME, CLIPRes5ROIHeads.__name__),
        "MODEL.CLIP.CROP_REGION_TYPE": (cfg.MODEL.CLIP.CROP_REGION_TYPE, "RPN"),
        "MODEL.CLIP.USE_TEXT_EMB_CLASSIFIER": (str(cfg.MODEL.CLIP.USE_TEXT_EMB_CLASSIFIER), "True"),
    }
    problems = [
        Problem(key, f"{expected} to extract region features", repr(actual), f"add {key} {expected}")
        for key, (actual, expected) in wanted.items()
        if actual != expected
    ]
    if problems:
        raise UserError(problems)


def extract_region_features(cfg: CfgNode, model: CLIPFastRCNN) -> ExtractionReport:
    """Write OUTPUT_DIR/<name>.pth for each image of INPUT_DIR; files that are there already stay.

    Each process takes its share of the images. See `region_features` for what is in a file.

    Raises:
        UserError: no images, or a folder with features of another config or other weights.
    """
    output = Path(cfg.OUTPUT_DIR)
    files = output_files(list_images(cfg.INPUT_DIR), output)
    _claim(output, _fingerprint(cfg))
    missing = {image: path for image, path in files.items() if not zipfile.is_zipfile(path)}
    comm.synchronize()  # before any process writes
    mapper = TestMapper(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, cfg.INPUT.FORMAT, keep_annotations=False)
    share = list(missing.items())[comm.get_rank() :: comm.get_world_size()]
    failures, written = [], 0
    for image, path in _with_progress(share):
        mapped = mapper({"file_name": str(image)})
        if "error" in mapped:
            failures.append(mapped["error"])
            continue
        features = region_features(model.eval(), mapped, with_classes=bool(cfg.MODEL.CLIP.TEXT_EMB_PATH))
        with atomic_write(path) as file:
            torch.save(features, file)
        written += 1
    return ExtractionReport(
        sum(comm.all_gather(written)), len(files) - len(missing), list(itertools.chain(*comm.all_gather(failures)))
    )


def output_files(images: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """Return the file of each image: its name up to the first dot, as upstream, or whole where two share that."""
    stems = Counter(image.name.split(".")[0] for image in images)
    names = {image: image.name.split(".")[0] for image in images}
    return {image: folder / f"{stem if stem and stems[stem] == 1 else image.name}.pth" for image, stem in names.items()}


@torch.no_grad()
def region_features(model: CLIPFastRCNN, image: dict[str, Any], *, with_classes: bool) -> Features:
    """Return what upstream saves of an image, rows of the same region in all entries.

    Args:
        model: in evaluation mode.
        image: a mapped image, with `height` and `width` of the original.
        with_classes: detections with their classes, else the proposals.

    Returns:
        `boxes` float [N, 4], xyxy in pixels of the original, and `feats` float [N, D], not
        normalised; for detections also `classes` int64 [N], and `probs` float [N, K + 1],
        background last.
    """
    (proposals,) = model.proposal_source.propose([image], model.device)
    embeddings = model.encode_regions([image], [proposals])
    if not with_classes:
        boxes, kept = _to_original(proposals.proposal_boxes, proposals.image_size, image)
        return {"boxes": boxes[kept].cpu(), "feats": embeddings[kept].cpu()}
    predictor = model.roi_heads.box_predictor
    predictions = predictor(embeddings)
    (detections,), (rows,) = predictor.inference(predictions, [proposals])
    boxes, kept = _to_original(detections.pred_boxes, detections.image_size, image)
    rows = rows[kept]
    return {
        "boxes": boxes[kept].cpu(),
        "classes": detections.pred_classes[kept].cpu(),
        "probs": predictions[0][rows].softmax(dim=1).cpu(),
        "feats": embeddings[rows].cpu(),
    }


def _to_original(boxes: Boxes, size: tuple[int, int], image: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Return boxes [N, 4] in pixels of the original, clipped to it, and which of them have an area."""
    scaled = Boxes(boxes.tensor.clone())
    scaled.scale(image["width"] / size[1], image["height"] / size[0])
    scaled.clip((image["height"], image["width"]))
    return scaled.tensor, scaled.nonempty()


def _fingerprint(cfg: CfgNode) -> str:
    """Return a hash of what the features depend on beside the images."""
    relevant = cfg.clone()
    relevant.defrost()
    relevant.OUTPUT_DIR = relevant.INPUT_DIR = relevant.MODEL.DEVICE = ""
    clip = cfg.MODEL.CLIP
    parts = [regionclip.__version__, relevant.dump(), load_config(clip.OFFLINE_RPN_CONFIG).dump()]
    for name in (cfg.MODEL.WEIGHTS, clip.BB_RPN_WEIGHTS, clip.TEXT_EMB_PATH):
        state = find_weights(name).stat() if name else None
        parts.append(f"{name} {state.st_size} {state.st_mtime_ns}" if state else "")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _claim(output: Path, fingerprint: str) -> None:
    found = read_json_file(output / MANIFEST)
    if found is not None and found.get("fingerprint") != fingerprint:
        expected, actual = "no features of another config or other weights", f"those of {found.get('fingerprint')}"
        raise user_error(f"OUTPUT_DIR {output}", expected, actual, "name another folder, or remove this one")
    comm.synchronize()
    if comm.is_main_process():
        write_json(output / MANIFEST, {"fingerprint": fingerprint})


def _with_progress(share: Sequence[tuple[Path, Path]]) -> Iterator[tuple[Path, Path]]:
    interval = 1.0 if sys.stderr.isatty() else 30.0
    hidden = not comm.is_main_process()
    yield from tqdm(share, desc="images", unit="image", disable=hidden, mininterval=interval)
