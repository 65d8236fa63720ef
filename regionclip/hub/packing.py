"""Packing a detector into a self-contained folder for `from_pretrained`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from detectron2.config import CfgNode
from safetensors.torch import save
from torch import Tensor

from regionclip.clip.embedder import NameEmbedder
from regionclip.config.keys import all_keys, get_value
from regionclip.config.loading import load_config
from regionclip.engine.checkpoint.layouts.published import without_weight_files
from regionclip.files import atomic_write, existing_file
from regionclip.hub.pretrained import CONFIG_FILE, TEXT_FILE, VOCABULARY_FILE, WEIGHT_FILES, Pretrained
from regionclip.inference.vocabularies import VocabularyOptions, Words, make_vocabulary, save_vocabulary
from regionclip.modeling.detector import require_detector

RPN_FILE = "rpn.yaml"


@dataclass(frozen=True)
class PackedFile:
    """A file of a packed detector."""

    path: Path
    size: int
    """In bytes."""


def pack_detector(
    detector: Pretrained, output: Path, vocabulary: Words | None = None, *, half: bool = False
) -> list[PackedFile]:
    """Write a detector with its RPN, text encoder and vocabulary to a folder.

    Args:
        detector: from `load_pretrained`.
        output: the folder; existing files of the same names are replaced.
        vocabulary: default vocabulary of the detector; None omits it.
        half: store float16, half the size; it is loaded as float32.

    Returns:
        The files, with their sizes.

    Raises:
        UserError: no text encoder, or no class names.
    """
    embedder = detector.embedder()
    if half:
        embedder = _rounded(embedder)
    # Everything that can fail comes before the first file.
    made = None if vocabulary is None else make_vocabulary(vocabulary, lambda: embedder, VocabularyOptions())
    unused = require_detector(detector.model).unused_with_class_names
    weights = {key: value for key, value in detector.model.state_dict().items() if not key.startswith(unused)}
    text = {f"lang_encoder.{key}": value for key, value in embedder.encoder.state_dict().items()}
    contents = _config_files(detector.cfg)
    output.mkdir(parents=True, exist_ok=True)
    paths = [_write(output / name, content) for name, content in contents.items()]
    paths.append(_write_state(output / WEIGHT_FILES[0], weights, half=half))
    paths.append(_write_state(output / TEXT_FILE, text, half=half))
    (output / VOCABULARY_FILE).unlink(missing_ok=True)  # of another detector packed here before
    if made is not None:
        save_vocabulary(made, output / VOCABULARY_FILE)
        paths.append(output / VOCABULARY_FILE)
    return [PackedFile(path, path.stat().st_size) for path in paths]


@torch.no_grad()
def _rounded(embedder: NameEmbedder) -> NameEmbedder:
    """Return an embedder with weights rounded to float16: the vocabulary's hash refers to these."""
    for weight in embedder.encoder.parameters():
        weight.copy_(weight.half())
    return NameEmbedder(embedder.encoder, embedder.model, embedder.device, embedder.cache)


def _config_files(cfg: CfgNode) -> dict[str, bytes]:
    """Return the configs of detector and RPN, and copies of files that they name, such as that of the CLIP size."""
    configs = {CONFIG_FILE: cfg.clone()}
    configs[CONFIG_FILE].defrost()
    if cfg.MODEL.CLIP.OFFLINE_RPN_CONFIG:
        configs[RPN_FILE] = load_config(cfg.MODEL.CLIP.OFFLINE_RPN_CONFIG)
        configs[CONFIG_FILE].MODEL.CLIP.OFFLINE_RPN_CONFIG = RPN_FILE
    contents = dict.fromkeys((CONFIG_FILE, RPN_FILE, WEIGHT_FILES[0], TEXT_FILE, VOCABULARY_FILE), b"")
    for name, config in configs.items():
        config.merge_from_list(["MODEL.WEIGHTS", "", *without_weight_files()])
        for key in all_keys():
            file = existing_file(get_value(config, key.name)) if key.is_packed else None
            if file is not None:
                copied = file.read_bytes()
                # A file of another key may have the same name, which of a CLIP size is its identity.
                alone = contents.get(file.name, copied) == copied
                place = file.name if alone else f"{key.name.rpartition('.')[2].lower()}/{file.name}"
                contents[place] = copied
                config.merge_from_list([key.name, place])
        contents[name] = config.dump().encode()
    return {name: content for name, content in contents.items() if content}


def _write_state(path: Path, state: dict[str, Tensor], *, half: bool) -> Path:
    kept = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    if half:
        kept = {key: value.half() if value.is_floating_point() else value for key, value in kept.items()}
    return _write(path, save(kept))


def _write(path: Path, content: bytes) -> Path:
    with atomic_write(path) as file:
        file.write(content)
    return path
