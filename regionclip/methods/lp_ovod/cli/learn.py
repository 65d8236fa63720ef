"""Teaching a detector new class names from images without labels: embed, retrieve, probe, pack."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.structures import BoxMode

from regionclip.clip.prompts import same_to_clip
from regionclip.clip.vocabulary import Vocabulary
from regionclip.data.class_lists import write_names
from regionclip.data.images import image_size
from regionclip.data.region_features.index import FeatureFolder
from regionclip.data.test_loader import TestMapper
from regionclip.engine.features.extraction import ExtractionJob, extract_region_features, read_extraction_input
from regionclip.errors import user_error
from regionclip.files import atomic_write, read_json_file, write_json
from regionclip.fingerprints import config_parts, file_state, fingerprint, hash_tensors
from regionclip.hub.packing import pack_detector
from regionclip.hub.pretrained import Pretrained
from regionclip.inference.vocabularies import VocabularyOptions, make_vocabulary, split_words
from regionclip.methods.lp_ovod.classes import TaughtNames
from regionclip.methods.lp_ovod.cli.page import retrieval_page
from regionclip.methods.lp_ovod.crop_clip import CropCLIP
from regionclip.methods.lp_ovod.detector import LPOVOD
from regionclip.methods.lp_ovod.probing import ProbeSettings, probe, region_features
from regionclip.methods.lp_ovod.retrieval import Retrieved, retrieve
from regionclip.methods.lp_ovod.retrieved import StoredImage, retrieved_dataset
from regionclip.modeling.build import build_model
from regionclip.progress import progress_bar
from regionclip.records import Record

logger = logging.getLogger(__name__)

NEGATIVES_PER_POSITIVE = 10
"""Of linear probing, as published."""

PAGE, DATASET = "retrieved.html", "retrieved.json"
"""What was retrieved, as a page and in COCO's format; next to the detector."""


@dataclass(frozen=True)
class Lesson:
    """What a detector is taught."""

    words: str
    """Class names with commas."""
    images: Path
    """Folder of images, which need no labels."""
    output: Path
    """Folder of the detector."""
    count: int = 100
    """Regions of each class."""
    objectness: float = 0.6
    """Minimum of a region."""
    excluded: tuple[int, ...] = ()
    """Numbers of regions, as the page shows them, that are not learned from."""
    settings: ProbeSettings = field(default_factory=ProbeSettings)

    @property
    def work(self) -> Path:
        """Folder of what an interrupted run goes on with."""
        return self.output / "work"


@dataclass(frozen=True)
class Learned:
    """Outcome of a lesson."""

    names: tuple[str, ...]
    boxes: int
    images: int


def learn(base: Pretrained, teacher: Pretrained, lesson: Lesson) -> Learned:
    """Teach a detector new class names, and write it to a folder.

    Args:
        base: an `LPOVOD`.
        teacher: a `CropCLIP` with the same CLIP as the base detector was distilled from; or the base detector itself,
            whose distilled head approximates it, much faster.
        lesson: words and images.

    Raises:
        UserError: detectors of other methods or CLIPs, names that are known already or retrieve nothing, or another
            set of images than that of the run that is continued.
    """
    model, crop_clip = _require_models(base, teacher)
    embedder = teacher.embedder()
    vocabulary = make_vocabulary(split_words(lesson.words), lambda: embedder, VocabularyOptions())
    taught = () if model.predictor.novel_prototypes is None else model.names.novel
    _require_new(vocabulary, (*model.names.base, *taught))
    regions = _embed(teacher, crop_clip, lesson)
    content = _retrieve(regions, vocabulary, lesson, crop_clip.device)
    kept = _without_excluded(content, lesson.excluded)
    cfg = _taught_config(base.cfg, TaughtNames(model.names.base, (*taught, *vocabulary.names)))
    student = _student(cfg, model)
    prototypes, images = _probe(student, cfg, kept, lesson, first=len(taught))
    with torch.no_grad():
        assert student.predictor.novel_prototypes is not None
        student.predictor.novel_prototypes[len(taught) :] = prototypes
    pack_detector(Pretrained(student.eval(), cfg, teacher.embedder), lesson.output, list(student.names.all))
    return Learned(vocabulary.names, len(kept["annotations"]), images)


def _require_models(base: Pretrained, teacher: Pretrained) -> tuple[LPOVOD, CropCLIP | LPOVOD]:
    model = base.model
    if not isinstance(model, LPOVOD):
        fix = "name a detector of LP-OVOD, such as lp_ovod_rn50"
        raise user_error("--model", "a detector that can be taught, LPOVOD", type(model).__name__, fix)
    if teacher is base:
        return model, model
    if not isinstance(teacher.model, CropCLIP):
        fix = "name one with configs/lp_ovod/crop_clip.yaml"
        raise user_error("--teacher", "CLIP on crops, CropCLIP", type(teacher.model).__name__, fix)
    spaces = model.text_space, teacher.model.text_space
    if spaces[0] != spaces[1]:
        expected, actual = (f"{space.clip} of width {space.dim}" for space in spaces)
        fix = "name a teacher with the CLIP that the detector was distilled from"
        raise user_error("--teacher", expected, actual, fix)
    return model, teacher.model


def _require_new(vocabulary: Vocabulary, names: Sequence[str]) -> None:
    known = set(map(same_to_clip, names))
    if again := [name for name in vocabulary.names if same_to_clip(name) in known]:
        raise user_error("--words", "words that the detector does not know", ", ".join(again), "leave them out")


def _embed(teacher: Pretrained, model: CropCLIP | LPOVOD, lesson: Lesson) -> FeatureFolder:
    """Write the embeddings of all proposals of the images, or go on with it."""
    cfg = teacher.cfg.clone()
    cfg.defrost()
    # What is below the threshold is not retrieved, and so not embedded.
    inputs = [*config_parts(cfg), lesson.objectness, hash_tensors([model.state_dict()])]
    cfg.INPUT_DIR, cfg.OUTPUT_DIR = str(lesson.images), str(lesson.work / f"regions-{fingerprint(inputs)[:16]}")
    job = ExtractionJob(
        format="safetensors", images_per_shard=50, half=True, objectness=True, min_objectness=lesson.objectness
    )
    job.configure(cfg)
    cfg.freeze()
    records = read_extraction_input(cfg, job)
    _require_same_images(lesson, {name: Path(record["file_name"]) for name, record in records.items()})
    report = extract_region_features(cfg, model, job, records)
    for failure in report.failures:
        logger.error("Skipped image %s", failure)
    logger.info("%d images embedded now, %d before", report.written, report.present)
    return FeatureFolder(cfg.OUTPUT_DIR)


def _require_same_images(lesson: Lesson, files: Mapping[str, Path]) -> None:
    """Raise a `UserError` if the images are not those of the run which is continued."""
    path = lesson.work / "images.json"
    states = {name: list(file_state(file)) for name, file in files.items()}
    before = read_json_file(path)
    if before is None:
        write_json(path, states)
        return
    new, gone = len(states.keys() - before.keys()), len(before.keys() - states.keys())
    changed = sum(before[name] != states[name] for name in states.keys() & before.keys())
    if new or gone or changed:
        actual = f"{new} new, {gone} gone, {changed} changed"
        fix = f"restore them, or remove {lesson.work} to start again"
        raise user_error(f"--images {lesson.images}", "the images of the first run", actual, fix)


def _retrieve(regions: FeatureFolder, vocabulary: Vocabulary, lesson: Lesson, device: torch.device) -> dict[str, Any]:
    """Return what each word retrieves in COCO's format, and write it with its page."""
    images = []
    for number, name in enumerate(regions, start=1):
        height, width = image_size(lesson.images / name)
        images.append(StoredImage(name, number, width, height, regions.rows(name).number))
    stored = progress_bar(regions.values(), unit="image", total=len(regions), description="retrieval")
    text = vocabulary.class_embeddings().to(device)
    found = retrieve(stored, text, lesson.count, lesson.objectness)
    _require_found(found, vocabulary.names, lesson)
    categories = [{"id": number, "name": name} for number, name in enumerate(vocabulary.names, start=1)]
    ids = [category["id"] for category in categories]
    content = retrieved_dataset(found, ids, categories, images, regions)
    _require_as_seen(lesson, content)
    write_json(lesson.output / DATASET, content)
    with atomic_write(lesson.output / PAGE) as file:
        file.write(retrieval_page(content, lesson.images, lesson.excluded).encode())
    logger.info("What each word has retrieved: %s", lesson.output / PAGE)
    return content


def _require_found(found: Sequence[Retrieved], names: Sequence[str], lesson: Lesson) -> None:
    if nothing := [name for name, best in zip(names, found, strict=True) if not len(best.rows)]:
        fix = "lower --min-objectness, or give more images"
        expected = f"regions with an objectness of at least {lesson.objectness:g}"
        raise user_error("--words", expected, f"none for {', '.join(nothing)}", fix)


def _require_as_seen(lesson: Lesson, content: dict[str, Any]) -> None:
    """Raise a `UserError` if numbers are excluded that the page does not show, or shows for other regions."""
    if not lesson.excluded:
        return
    seen, fix = read_json_file(lesson.output / DATASET), "leave --exclude out, look at the page, and choose again"
    places = [(entry["id"], entry["image_id"], entry["bbox"]) for entry in content["annotations"]]
    if seen is None or [(e["id"], e["image_id"], e["bbox"]) for e in seen["annotations"]] != places:
        raise user_error("--exclude", f"the regions of {PAGE}", "other words, counts or regions", fix)
    if unknown := set(lesson.excluded) - {number for number, *_ in places}:
        actual = ", ".join(map(str, sorted(unknown)))
        raise user_error("--exclude", f"numbers from 1 to {len(places)}", actual, fix)


def _without_excluded(content: dict[str, Any], excluded: Sequence[int]) -> dict[str, Any]:
    kept = [entry for entry in content["annotations"] if entry["id"] not in excluded]
    left = {entry["category_id"] for entry in kept}
    for category in content["categories"]:
        if category["id"] not in left:
            fix = "exclude fewer, or leave the word out"
            raise user_error("--exclude", "a region left for each word", f"none for {category['name']}", fix)
    return {**content, "annotations": kept}


def _taught_config(cfg: CfgNode, names: TaughtNames) -> CfgNode:
    """Return the config of a detector with prototypes of the names; background is limited as published."""
    changed: CfgNode = cfg.clone()
    changed.defrost()
    changed.MODEL.LP_OVOD.STAGE = "probe"
    changed.MODEL.LP_OVOD.BASE_CLASSES = write_names(names.base)
    changed.MODEL.LP_OVOD.NOVEL_CLASSES = write_names(names.novel)
    changed.MODEL.ENSEMBLE.NEGATIVES_PER_POSITIVE = NEGATIVES_PER_POSITIVE
    changed.freeze()
    return changed


def _student(cfg: CfgNode, model: LPOVOD) -> LPOVOD:
    """Return a detector with the weights of another, and prototypes of zeros for further names."""
    student = build_model(cfg)
    assert isinstance(student, LPOVOD) and student.predictor.novel_prototypes is not None
    state = dict(model.state_dict())
    known = state.pop("roi_heads.box_predictor.novel_prototypes", None)
    student.load_state_dict(state, strict=False)
    if known is not None:
        student.predictor.novel_prototypes.data[: len(known)] = known
    return student


def _probe(
    student: LPOVOD, cfg: CfgNode, content: dict[str, Any], lesson: Lesson, first: int
) -> tuple[torch.Tensor, int]:
    """Return the prototypes of the new names, and the number of images that they were learned from."""
    mapper = TestMapper(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, cfg.INPUT.FORMAT, keep_annotations=True)
    records = _records(content, lesson.images, first)
    inputs = [*config_parts(cfg), student.names, records, hash_tensors([student.state_dict()])]
    images = region_features(student, records, mapper, lesson.work / f"probe-{fingerprint(inputs)[:16]}")
    if not images:
        actual = "none with retrieved regions"
        raise user_error(f"--images {lesson.images}", "images that can be read", actual, "restore them")
    # Rows of all novel prototypes, to rows of the new ones.
    rows = [replace(image, labels=image.labels - first) for image in images]
    return probe(rows, len(student.names.novel) - first, lesson.settings), len(rows)


def _records(content: dict[str, Any], images: Path, first: int) -> list[Record]:
    """Return Detectron2's records; the classes are rows of prototypes, from `first` on."""
    boxes: dict[Any, list[Any]] = {}
    for entry in content["annotations"]:
        row = entry["category_id"] - 1 + first
        annotation = {"bbox": entry["bbox"], "bbox_mode": BoxMode.XYWH_ABS, "category_id": row}
        boxes.setdefault(entry["image_id"], []).append(annotation)
    return [
        {
            "file_name": str(images / image["file_name"]),
            "image_id": image["id"],
            "height": image["height"],
            "width": image["width"],
            "annotations": boxes[image["id"]],
        }
        for image in content["images"]
        if image["id"] in boxes
    ]
