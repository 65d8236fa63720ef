"""Feature extraction for the images of a folder or dataset, across processes, with resumption."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils import comm
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from regionclip.config.checks import check_config, dataset_problems
from regionclip.config.keys import get_value
from regionclip.data.datasets.custom_images import list_images
from regionclip.data.datasets.registered import read_clean_records
from regionclip.data.image_listing import names_below_common_folder
from regionclip.data.region_features.formats import Chunk, Features, Shards, make_format
from regionclip.data.region_features.index import MANIFEST, is_feature_folder, with_given_regions, write_index
from regionclip.data.test_loader import TestMapper
from regionclip.data.workers import arriving, wait_limit
from regionclip.engine.features.regions import (
    Choice,
    best_class,
    detections,
    every_region,
    region_features,
    with_objectness,
)
from regionclip.engine.ownership import own_folder
from regionclip.errors import Problem, UserError, user_error
from regionclip.files import read_json_file, resolve_path, write_json
from regionclip.fingerprints import config_parts, file_state, fingerprint
from regionclip.method import method_of, methods
from regionclip.modeling.detector import OpenVocabularyDetector
from regionclip.modeling.proposals.build import build_proposal_source
from regionclip.modeling.proposals.cache import flush_proposals
from regionclip.modeling.proposals.sources import ProposalSource
from regionclip.progress import progress_bar
from regionclip.records import MappedImage, Record

PROPOSALS, GRID = "RPN", "GRID"
"""Values of `ExtractionJob.regions` other than a file name."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExtractionJob:
    """Regions and images to extract features of, and the output format."""

    regions: str = PROPOSALS
    """RPN, GRID (cells of 32 pixels of the network input), or a file of boxes (JSON or npz)."""
    dataset: str = ""
    """Registered dataset: its ground-truth boxes are the regions, and its images those of the run."""
    format: str = "pth"
    """`pth`, `safetensors` or `parquet`."""
    images_at_once: int = 1
    """Images per batch; they are padded to a common size, which changes the last digits."""
    images_per_shard: int = 1000
    half: bool = field(default=False, repr=False)
    """Write `feats` as float16."""
    objectness: bool = field(default=False, repr=False)
    """Keep all proposals of the RPN, with their `objectness`, also with class embeddings."""
    min_objectness: float = field(default=0.0, repr=False)
    """Leave out proposals with less, before they are embedded."""

    @property
    def source(self) -> str:
        """The proposal source, a value of MODEL.CLIP.CROP_REGION_TYPE."""
        if self.dataset:
            return "GT"
        return self.regions if self.regions in (PROPOSALS, GRID) else "FILE"

    @property
    def keeps_regions(self) -> bool:
        """Whether all regions are kept, instead of being turned into detections."""
        return self.source != PROPOSALS or self.objectness

    def configure(self, cfg: CfgNode) -> None:
        """Set the proposal source of a config; regions other than proposals have no objectness, and need no RPN."""
        if self.source != PROPOSALS:
            cfg.MODEL.CLIP.CROP_REGION_TYPE = self.source
            cfg.MODEL.CLIP.PROPOSAL_FILE = self.regions if self.source == "FILE" else ""
            cfg.MODEL.CLIP.MULTIPLY_RPN_SCORE = False


@dataclass
class ExtractionReport:
    """Outcome of a run by number of images."""

    written: int = 0
    """Number of images of this run, over all processes."""
    present: int = 0
    """Number of images of an earlier run."""
    failures: list[str] = field(default_factory=list)
    """One line for each unreadable image."""


def check_extraction(cfg: CfgNode, job: ExtractionJob) -> None:
    """Raise one `UserError` with everything that prevents the extraction."""
    without_data = cfg.clone()
    without_data.defrost()
    without_data.DATASETS.TEST = ()  # the images come from INPUT_DIR
    check_config(without_data)
    problems = [
        Problem(key, f"{' or '.join(allowed)} to extract region features", repr(actual), f"add {key} {allowed[0]}")
        for key, allowed in values_for_features(cfg).items()
        if (actual := str(get_value(cfg, key))) not in allowed
    ]
    if job.source == PROPOSALS:
        problems += _proposal_problems(cfg)
    elif job.objectness and not is_feature_folder(job.regions):
        problems.append(Problem("--objectness", "proposals of the RPN", job.source, "leave it out"))
    if job.dataset:
        problems += dataset_problems(job.dataset, "--dataset")
        if job.regions != PROPOSALS:
            problems.append(Problem("--regions", "none with --dataset", job.regions, "leave one of them out"))
    if problems:
        raise UserError(problems)


def _proposal_problems(cfg: CfgNode) -> Iterator[Problem]:
    """Yield why the detector would have no proposals of its own."""
    method = method_of(cfg)
    conditioned = method is not None and cfg.MODEL.META_ARCHITECTURE in method.class_conditioned
    if conditioned and not cfg.MODEL.CLIP.TEXT_EMB_PATH:
        fix = "set it, or give boxes with --regions"
        yield Problem("MODEL.CLIP.TEXT_EMB_PATH", "class embeddings, which the proposals depend on", "none", fix)
    elif not conditioned and cfg.MODEL.CLIP.CROP_REGION_TYPE != "RPN":
        key, actual = "MODEL.CLIP.CROP_REGION_TYPE", repr(cfg.MODEL.CLIP.CROP_REGION_TYPE)
        yield Problem(key, "RPN to extract region features", actual, f"add {key} RPN")


def values_for_features(cfg: CfgNode) -> Mapping[str, tuple[str, ...]]:
    """Return the allowed values by config key, of the config's method or else of the first method that has some."""
    own = method_of(cfg)
    if own is not None and own.region_features:
        return own.region_features
    return next(method.region_features for method in methods() if method.region_features)


def read_extraction_input(cfg: CfgNode, job: ExtractionJob) -> dict[str, Record]:
    """Return the images of a run as Detectron2's records by unique name, with `user_boxes` if regions are in a file.

    Raises:
        UserError: no images, or unusable annotations or boxes.
    """
    records = _records(cfg, job)
    if job.source != "FILE":
        return records
    names = list(records)
    return dict(zip(names, with_given_regions(list(records.values()), names, job.regions), strict=True))


def extract_region_features(
    cfg: CfgNode, model: OpenVocabularyDetector, job: ExtractionJob, records: dict[str, Record] | None = None
) -> ExtractionReport:
    """Write the features of all images to OUTPUT_DIR, except those that are there already.

    The images are split into chunks independent of the number of processes, and each process takes its share.
    See `Features` for what is written per image.

    Args:
        cfg: config of the detector, OUTPUT_DIR and INPUT_DIR.
        model: in evaluation mode afterwards.
        job: which regions, and how they are written.
        records: from `read_extraction_input`, which is called by default.

    Raises:
        UserError: no images, or the folder has features of another config or other weights, or is in use by
            another process.
    """
    records = records or read_extraction_input(cfg, job)
    output = Path(cfg.OUTPUT_DIR)
    with own_folder(output, f"OUTPUT_DIR {output}"):
        return _extract(cfg, model, job, records, output)


def _extract(
    cfg: CfgNode, model: OpenVocabularyDetector, job: ExtractionJob, records: dict[str, Record], output: Path
) -> ExtractionReport:
    choose = _choice(cfg, job)
    source = build_proposal_source(cfg) if job.source != PROPOSALS else None
    target = make_format(job.format, output, job.images_per_shard)
    chunks = target.chunks(list(records), job.images_at_once)
    _claim(output, _fingerprint(cfg, job, records), model)
    done: list[Chunk] = []
    missing: list[Chunk] = []
    for chunk in chunks:
        (done if target.is_done(chunk, _newest(chunk, records)) else missing).append(chunk)
    comm.synchronize()  # before any process writes
    mapper = TestMapper(
        cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, cfg.INPUT.FORMAT, keep_annotations=bool(job.dataset)
    )
    model.eval()
    written = 0
    lines: list[str] = []
    share = missing[comm.get_rank() :: comm.get_world_size()]
    total = sum(len(chunk.names) for chunk in share)
    with progress_bar(total=total, unit="image", hidden=not comm.is_main_process()) as progress:
        for chunk in share:
            images = _read(chunk, records, mapper, cfg.DATALOADER.NUM_WORKERS)
            features, failures = _chunk_features(model, images, choose, source, job.images_at_once, progress)
            if job.half:
                features = {name: {**content, "feats": content["feats"].half()} for name, content in features.items()}
            target.write(chunk, features, failures)
            written += len(features)
            lines += failures.values()
    flush_proposals(cast(nn.Module, model))
    comm.synchronize()
    if isinstance(target, Shards) and comm.is_main_process():
        write_index(target, chunks)
    before = list(itertools.chain(*(target.failures(chunk) for chunk in done)))
    failures_of_all = before + list(itertools.chain(*comm.all_gather(lines)))
    present = sum(len(chunk.names) for chunk in done) - len(before)
    return ExtractionReport(sum(comm.all_gather(written)), present, failures_of_all)


def _records(cfg: CfgNode, job: ExtractionJob) -> dict[str, Record]:
    """Return the images as Detectron2's records, by unique name."""
    if not job.dataset:
        return {path.name: {"file_name": str(path)} for path in list_images(cfg.INPUT_DIR)}
    records = read_clean_records(job.dataset)
    if not any(record.get("annotations") for record in records):
        annotations = MetadataCatalog.get(job.dataset).get("json_file", "")
        raise user_error(f"--dataset {job.dataset}", "annotated boxes", f"none in {annotations}", "name another")
    names = names_below_common_folder([record["file_name"] for record in records])
    by_name = dict(zip(names, records, strict=True))
    if len(by_name) < len(records):
        actual = f"{len(records)} images in {len(by_name)} files"
        raise user_error(f"--dataset {job.dataset}", "a file for each image", actual, "list each file once")
    return by_name


def _newest(chunk: Chunk, records: dict[str, Record]) -> float:
    """Return the latest modification time of a chunk's images."""
    files = [Path(records[name]["file_name"]) for name in chunk.names]
    return max((file.stat().st_mtime for file in files if file.is_file()), default=0.0)


def _choice(cfg: CfgNode, job: ExtractionJob) -> Choice:
    choice = best_class if job.keeps_regions else detections
    if not cfg.MODEL.CLIP.TEXT_EMB_PATH:
        choice = every_region
    return with_objectness(choice, job.min_objectness) if job.objectness else choice


def _read(chunk: Chunk, records: dict[str, Record], mapper: TestMapper, workers: int) -> Iterator[Any]:
    """Return mapped images in order, decoded ahead by workers for larger chunks."""
    items = [cast(Record, {**records[name], "name": name}) for name in chunk.names]
    processes = min(workers, os.cpu_count() or 1) if len(items) > 1 else 0
    timeout = wait_limit(processes)
    return arriving(DataLoader(_Mapped(items, mapper), batch_size=None, num_workers=processes, timeout=timeout))


class _Mapped(torch.utils.data.Dataset[MappedImage]):
    """Dataset that maps images on access."""

    def __init__(self, items: Sequence[Record], mapper: TestMapper) -> None:
        self.items = items
        self.mapper = mapper

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> MappedImage:
        return self.mapper(self.items[number])


def _chunk_features(
    model: OpenVocabularyDetector,
    images: Iterable[Any],
    choose: Choice,
    source: ProposalSource | None,
    images_at_once: int,
    progress: tqdm[Any],
) -> tuple[dict[str, Features], dict[str, str]]:
    features: dict[str, Features] = {}
    failures: dict[str, str] = {}
    for batch in _batches(images, images_at_once):
        failures |= {image["name"]: image["error"] for image in batch if "error" in image}
        good = [image for image in batch if "error" not in image]
        found, bad = _features_of(model, good, choose, source)
        features |= found
        failures |= bad
        progress.update(len(batch))
    return features, failures


def _features_of(
    model: OpenVocabularyDetector, images: list[MappedImage], choose: Choice, source: ProposalSource | None
) -> tuple[dict[str, Features], dict[str, str]]:
    """Return the features of images, and the error of each image with invalid boxes."""
    if not images:
        return {}, {}
    try:
        found = region_features(model, images, choose, source)
    except UserError as error:
        if len(images) == 1:
            return {}, {images[0]["name"]: str(error)}
        alone = [_features_of(model, [image], choose, source) for image in images]
        return (
            {name: content for features, _ in alone for name, content in features.items()},
            {name: line for _, failures in alone for name, line in failures.items()},
        )
    return {image["name"]: content for image, content in zip(images, found, strict=True)}, {}


def _batches(images: Iterable[Any], size: int) -> Iterator[list[MappedImage]]:
    iterator = iter(images)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def _fingerprint(cfg: CfgNode, job: ExtractionJob, records: dict[str, Record]) -> str:
    """Return a hash of what the features depend on besides the pixels; for shards also of the list of images."""
    relevant = cfg.clone()
    relevant.defrost()
    relevant.OUTPUT_DIR = relevant.MODEL.DEVICE = ""
    relevant.INPUT_DIR = "" if job.dataset else str(resolve_path(cfg.INPUT_DIR).resolve())
    relevant.DATALOADER.NUM_WORKERS = 0
    annotations = MetadataCatalog.get(job.dataset).get("json_file", "") if job.dataset else ""
    states = [(annotations, file_state(resolve_path(annotations)))] if annotations else []
    images = list(records) if job.format != "pth" else []
    options = [f"{name}={value}" for name in ("half", "objectness", "min_objectness") if (value := getattr(job, name))]
    return fingerprint([*config_parts(relevant), " ".join([str(job), *options]), states, images])[:16]


def _claim(output: Path, fingerprint: str, model: OpenVocabularyDetector) -> None:
    found = read_json_file(output / MANIFEST)
    if found is not None and found.get("fingerprint") != fingerprint:
        expected, actual = "no features of another config or other weights", f"those of {found.get('fingerprint')}"
        raise user_error(f"OUTPUT_DIR {output}", expected, actual, "name another folder, or remove this one")
    comm.synchronize()
    if comm.is_main_process():
        space = model.text_space
        write_json(output / MANIFEST, {"fingerprint": fingerprint, "clip": space.clip, "dim": space.dim})
