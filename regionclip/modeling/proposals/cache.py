"""Disk cache of the proposals of a frozen RPN, so that later epochs skip it."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

import torch
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from regionclip.errors import user_error
from regionclip.files import atomic_write, read_json_file, write_json
from regionclip.fingerprints import hash_tensors
from regionclip.modeling.proposals.resized import ResizedProposals
from regionclip.modeling.proposals.sources import ImageInput, RPNProposals

SHARD_BYTES = 64 * 2**20
"""A shard is written once this much is pending, and by `flush`."""

MANIFEST, LOCK_FILE = "proposer.json", ".lock"


class CachedProposals:
    """Proposal source that runs the RPN once for each image of each size.

    The RPN processes images one by one, as in testing, so that an entry does not depend on the rest of
    its batch. A key consists of the image id, the size, and a hash of the pixels; the folder belongs to
    one RPN, identified by the hashes of its weights and anchors, and its settings.
    """

    def __init__(self, rpn: RPNProposals, folder: str | Path) -> None:
        """Create a source; the folder is opened at the first image, after the weights were loaded."""
        self.rpn = rpn
        self.folder = Path(folder)
        self._shards: dict[str, Path] | None = None
        self._files: dict[Path, Any] = {}
        self._pending: dict[str, Tensor] = {}
        self._written = 0
        self._identity: dict[str, str] = {}

    def identify(self) -> None:
        """Remember what the boxes depend on, before the weights are folded for inference, which changes no box."""
        self._identity = describe_rpn(self.rpn)

    def propose(self, inputs: Sequence[ImageInput], device: torch.device) -> list[Instances]:
        """Return the proposals of each image, from the cache if present.

        Raises:
            UserError: the folder belongs to another RPN, or cannot be read.
        """
        shards = self._open()
        proposals = []
        for image in inputs:
            key = _key(image)
            if f"{key}.boxes" not in self._pending and key not in shards:
                (found,) = self._propose_alone(image, device)
                self._pending[f"{key}.boxes"] = found.proposal_boxes.tensor.float().cpu()
                self._pending[f"{key}.logits"] = found.objectness_logits.float().cpu()
            proposals.append(self._instances(key, tuple(image["image"].shape[1:])).to(device))
        if sum(value.nbytes for value in self._pending.values()) > SHARD_BYTES:
            self.flush()
        return proposals

    def _propose_alone(self, image: ImageInput, device: torch.device) -> list[Instances]:
        """Return what evaluation gets: without mixed precision, and without the padding of a batch."""
        preprocessor = self.rpn.preprocessor
        smallest, preprocessor.smallest = preprocessor.smallest, (0, 0)
        try:
            with torch.autocast(device.type, enabled=False):
                return self.rpn.propose([image], device)
        finally:
            preprocessor.smallest = smallest

    def flush(self) -> None:
        """Write pending proposals to disk."""
        if not self._pending:
            return
        shards, path = self._open(), self._next_shard()
        with atomic_write(path) as file:
            file.write(save(self._pending))
        shards.update((name.removesuffix(".boxes"), path) for name in self._pending if name.endswith(".boxes"))
        self._pending = {}

    def _instances(self, key: str, size: tuple[int, ...]) -> Instances:
        names = f"{key}.boxes", f"{key}.logits"
        if names[0] in self._pending:
            boxes, logits = (self._pending[name] for name in names)
        else:
            file = self._file(self._open()[key])
            boxes, logits = (file.get_tensor(name) for name in names)
        return Instances(size, proposal_boxes=Boxes(boxes.clone()), objectness_logits=logits.clone())

    def _file(self, path: Path) -> Any:
        if path not in self._files:
            self._files[path] = safe_open(path, framework="pt")
        return self._files[path]

    def _open(self) -> dict[str, Path]:
        """Return the shard path of each key; the first call checks that the folder belongs to this RPN."""
        if self._shards is None:
            self._check_manifest()
            self._shards = {
                name.removesuffix(".boxes"): path
                for path in sorted(self.folder.glob("*.safetensors"))
                for name in _names(path)
                if name.endswith(".boxes")
            }
        return self._shards

    def _check_manifest(self) -> None:
        path = self.folder / MANIFEST
        wanted = {**(self._identity or describe_rpn(self.rpn)), **_precision_of(self.rpn)}
        found = read_json_file(path)
        if found is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / LOCK_FILE):  # if two RPNs claim it at once, the second sees the first
                found = read_json_file(path) or self._claim(path, wanted)
        known = {"anchors": wanted["anchors"], **found}  # folders of earlier versions do not say theirs
        for name in sorted({*wanted, *known}):
            if known.get(name) != wanted.get(name):
                expected = f"boxes of an RPN with {name} {wanted.get(name)}"
                raise user_error(
                    f"MODEL.CLIP.PROPOSAL_CACHE {self.folder}", expected, f"{name} {known.get(name)}", _FIX
                )

    def _claim(self, path: Path, wanted: dict[str, str]) -> dict[str, str]:
        if any(self.folder.glob("*.safetensors")):
            raise user_error(
                f"MODEL.CLIP.PROPOSAL_CACHE {self.folder}", f"a file {MANIFEST}", "shards without it", _FIX
            )
        write_json(path, wanted)  # by every process: machines may have separate disks
        return wanted

    def _next_shard(self) -> Path:
        # Runs that share the folder write concurrently: file names must be unique.
        self._written += 1
        unique = uuid.uuid4().hex[:12]
        return self.folder / f"proposals.{comm.get_rank()}.{self._written - 1:05d}.{unique}.safetensors"


def flush_proposals(model: nn.Module) -> None:
    """Write a detector's pending proposals to its cache, if it has one."""
    source = cache_of(model)
    if source is not None:
        source.flush()


def cache_of(model: nn.Module) -> CachedProposals | None:
    """Return the source of a detector's proposals that keeps them on disk; None if it has none."""
    source = getattr(model, "proposal_source", None)
    source = source.source if isinstance(source, ResizedProposals) else source
    return source if isinstance(source, CachedProposals) else None


_FIX = "name an empty folder, or remove this one"


def describe_rpn(rpn: RPNProposals) -> dict[str, str]:
    """Return what the boxes of an RPN depend on, by name: weights, settings, and anchors."""
    generator = cast(RPN, rpn.proposal_generator)
    settings = {
        "selection": [generator.pre_nms_topk[False], generator.post_nms_topk[False], generator.nms_thresh],
        "min_box_size": generator.min_box_size,
        "size_divisibility": rpn.preprocessor.size_divisibility,
        "flip_channels": rpn.preprocessor.flip_channels,
        "mean": rpn.preprocessor.mean.flatten().tolist(),
        "std": rpn.preprocessor.std.flatten().tolist(),
    }
    if threshold := getattr(generator, "score_threshold", 0.0):
        settings["score_threshold"] = threshold
    states = [rpn.backbone.state_dict(), rpn.proposal_generator.state_dict()]
    return {
        "weights": hash_tensors(states),
        "settings": json.dumps(settings, sort_keys=True),
        "anchors": hashlib.sha256(json.dumps(_geometry_of(generator), sort_keys=True).encode()).hexdigest()[:16],
    }


def _geometry_of(generator: Any) -> dict[str, Any]:
    """Return what turns the outputs of an RPN, or of both stages of OLN, into boxes, which no weight tells."""
    rpn = getattr(generator, "rpn", generator)
    anchors, box = rpn.anchor_generator, getattr(generator, "box", None)
    parts: dict[str, Any] = {
        "cells": [cell.tolist() for cell in getattr(anchors, "cell_anchors", ())],
        "strides": list(getattr(anchors, "strides", ())),
        "offset": getattr(anchors, "offset", 0.0),
        "maps": list(rpn.in_features),
    }
    parts["deltas"] = list(getattr(getattr(rpn, "box2box_transform", None), "weights", ()))
    if box is not None:
        poolers = [
            [*level.output_size, level.spatial_scale, level.sampling_ratio, bool(level.aligned)]
            for level in box.pooler.level_poolers
        ]
        parts["second stage"] = [list(box.transform.weights), list(box.in_features), poolers]
    return parts


def _precision_of(rpn: RPNProposals) -> dict[str, str]:
    """Return the half precision of the RPN's convolutions, which changes its boxes."""
    dtype = rpn.preprocessor.dtype
    return {} if dtype in (None, torch.float32) else {"precision": str(dtype).removeprefix("torch.")}


def _key(image: ImageInput) -> str:
    pixels = image["image"]
    digest = hashlib.blake2b(pixels.cpu().contiguous().numpy().data, digest_size=8).hexdigest()
    name = quote(str(image.get("image_id", "")), errors="replace")
    return f"{name}-{pixels.shape[1]}x{pixels.shape[2]}-{digest}"


def _names(path: Path) -> list[str]:
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise user_error(str(path), "a shard of proposals", str(error), "remove the file") from error
