"""Pseudo boxes for CORA+: what a detector finds of the names that come with each image."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances
from detectron2.utils import comm
from torchvision.ops import box_convert

from regionclip.clip.prompts import same_to_clip
from regionclip.clip.vocabulary import Vocabulary, content_hash
from regionclip.data.datasets.annotation_file import Entry, id_key, read_annotation_file, read_json
from regionclip.data.image_text.nouns import parse
from regionclip.errors import user_error
from regionclip.files import atomic_write
from regionclip.fingerprints import config_parts, file_state, fingerprint
from regionclip.journal import Journal
from regionclip.methods.cora.image_pass import each_image
from regionclip.modeling.configured_classes import ConfiguredClasses
from regionclip.modeling.detector import OpenVocabularyDetector, Selection
from regionclip.records import MappedImage

TAGS, CAPTIONS = "a JSON object: image id to a list of names", "COCO's caption file"


@dataclass(frozen=True)
class PseudoBoxJob:
    """Images, names and output of an export."""

    annotations: Path
    """COCO or LVIS file whose `images` are looked at; its boxes are not."""
    images: Path
    """Folder of the images."""
    names_of_image: Mapping[str, Sequence[str]]
    """Names by image id, of `read_tags` or `read_captions`."""
    vocabulary: Vocabulary
    """Embeddings of the names; a name that is not in it is left out."""
    output: Path
    threshold: float = 0.2
    """Minimum score, as published."""


@dataclass
class PseudoBoxReport:
    """Outcome of an export, over all processes."""

    images: int = 0
    boxes: int = 0
    failures: list[str] = field(default_factory=list)
    """One line for each unreadable image."""


def read_tags(path: Path) -> dict[str, list[str]]:
    """Return the names of each image id of a JSON object; raises `UserError` for anything else."""
    content = read_json(path, what=TAGS, fix="write it as the documentation says (docs/methods/cora.md)")
    lists = content.values() if isinstance(content, dict) else [None]
    if not all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in lists):
        raise user_error(str(path), TAGS, type(content).__name__, "write a list of names for each image id")
    return {id_key(image) or image: names for image, names in content.items()}


def read_captions(path: Path) -> dict[str, list[str]]:
    """Return the nouns and noun phrases in the captions of each image id of COCO's caption file.

    Raises:
        UserError: another file.
    """
    content = read_annotation_file(path, what=CAPTIONS, fix="name captions_train2017.json", key="annotations")
    names: dict[str, list[str]] = {}
    for number, annotation in enumerate(content["annotations"]):
        image, caption = id_key(annotation.get("image_id")), annotation.get("caption")
        if image is None or not isinstance(caption, str):
            fix = "name captions_train2017.json"
            raise user_error(f"{path}: annotation {number}", "image_id and caption", str(annotation)[:100], fix)
        names.setdefault(image, []).extend(parse(caption))
    return names


def export_pseudo_boxes(cfg: CfgNode, model: OpenVocabularyDetector, job: PseudoBoxJob) -> PseudoBoxReport:
    """Write the detections of each image's own names as a list for MODEL.CORA.PSEUDO_BOXES.

    An entry has `image_id`, `bbox` (x, y, width, height in pixels), `category_name` and `score`. Images are divided
    among the processes; an interrupted run goes on where it stopped.

    Args:
        cfg: config of the detector.
        model: any open-vocabulary detector.
        job: what to look at, for what.

    Raises:
        UserError: unreadable annotations, or a vocabulary of another CLIP.
    """
    content = read_annotation_file(job.annotations, what="COCO's JSON format", fix="name its file", key="images")
    space = model.text_space
    job.vocabulary.require_fit(space.dim, space.clip)
    model.eval()
    words = job.vocabulary.names, content_hash(job.vocabulary.embeddings)
    names = sorted(job.names_of_image.items())
    run = fingerprint(
        [*config_parts(cfg), file_state(job.annotations), os.path.realpath(job.images), names, words, job.threshold]
    )
    journal = Journal(job.output.parent, run, job.output.stem)
    finished = each_image(cfg, content["images"], job.images, job.annotations, journal, _OwnNames(model, job))
    report = PseudoBoxReport()
    if comm.is_main_process():
        entries = [box for entry in finished for box in entry.get("boxes", ())]
        failures = [entry["error"] for entry in finished if "error" in entry]
        report = PseudoBoxReport(len(finished) - len(failures), len(entries), failures)
        with atomic_write(job.output) as file:
            file.write(json.dumps(entries).encode())
    comm.synchronize()
    journal.remove()
    return report


class _OwnNames:
    """Detects the names that come with an image."""

    def __init__(self, model: OpenVocabularyDetector, job: PseudoBoxJob) -> None:
        self.model, self.job = model, job
        self.embeddings = job.vocabulary.class_embeddings()
        self.rows = {same_to_clip(name): row for row, name in enumerate(job.vocabulary.names)}

    @torch.no_grad()
    def __call__(self, image: Entry, mapped: MappedImage) -> dict[str, Any]:
        names = map(same_to_clip, self.job.names_of_image.get(id_key(image["id"]) or "", ()))
        known = [self.rows[name] for name in dict.fromkeys(names) if name in self.rows]
        if not known:
            return {"boxes": []}
        own = tuple(self.job.vocabulary.names[row] for row in known)
        classes = ConfiguredClasses(self.embeddings[known], own).to(self.model.device)
        (encoding,) = self.model.encode_images([mapped])
        found = self.model.detect(encoding, classes, Selection(self.job.threshold))
        return {"boxes": _as_entries(image["id"], own, found, (mapped["height"], mapped["width"]))}


def _as_entries(image_id: Any, names: Sequence[str], found: Instances, size: tuple[int, int]) -> list[dict[str, Any]]:
    """Return detections as entries, their boxes clipped to the original image of `size` (height, width)."""
    found.pred_boxes.scale(size[1] / found.image_size[1], size[0] / found.image_size[0])
    found.pred_boxes.clip(size)
    found = found[found.pred_boxes.nonempty()]
    corners, classes, scores = found.pred_boxes.tensor, found.pred_classes.tolist(), found.scores.tolist()
    boxes = box_convert(corners, "xyxy", "xywh").tolist()
    return [
        {"image_id": image_id, "bbox": box, "category_name": names[number], "score": score}
        for box, number, score in zip(boxes, classes, scores, strict=True)
    ]
