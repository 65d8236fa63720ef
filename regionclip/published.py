"""What is known of published files and detectors; methods list theirs in `zoo.py`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from regionclip.files import download_folder, resolve_path

FOLDER = "pretrained_ckpt"


@dataclass(frozen=True)
class PublishedFile:
    """One file under `pretrained_ckpt/`."""

    path: str
    """Relative to `pretrained_ckpt/`."""
    sources: tuple[str, ...] = ()
    """Addresses, tried in order: `https://`, `hf://`, `drive://` (see `hub.downloads.download`)."""
    sha256: str = ""
    """Empty if none is published."""
    md5_prefix: str = ""
    """First digits of the MD5, as Detectron2's file names have them."""
    megabytes: int = 0
    """Size, about; 0 if unknown."""
    license: str = "Apache-2.0"
    """SPDX identifier."""
    instead: str = ""
    """Path of another published file with the same weights, for when this one cannot be had."""
    shape: tuple[int, ...] = ()
    """Shape of the single tensor, for embeddings; of `key` otherwise."""
    key: str = ""
    """An entry that identifies the content of the file."""
    text_encoder: str = ""
    """CLIP size of the text encoder that the file includes."""

    @property
    def place(self) -> Path:
        """Path where the file is searched."""
        return resolve_path(Path(FOLDER) / self.path)

    @property
    def target(self) -> Path:
        """Where the file is put when it is downloaded."""
        return download_folder() / FOLDER / self.path


@dataclass(frozen=True)
class PublishedModel:
    """A named detector: config, overrides, and files."""

    name: str
    config: str
    weights: str
    """Path relative to `pretrained_ckpt/`, like all following ones."""
    overrides: tuple[str, ...] = ()
    rpn_weights: str = ""
    text_weights: str = ""
    """File of the text encoder; empty if `weights` includes it."""
    clip: str = "RN50"
    """CLIP size, or the open_clip JSON file that describes it."""
    vocabulary: str = ""
    """Embeddings of the default vocabulary."""
    class_list: str = ""
    """Class list that is the default vocabulary where no embeddings are published; embedded once, in one template."""
    suffix: str = ""
    """Suffix of its embedding files."""
    rank: int = 0
    """Order of photo detectors as the default of `regionclip detect`, the best first; 0 is never the default."""
    summary: str = ""
    """One sentence: what it was trained on, and what its RPN has seen."""
    reported: str = ""
    """Accuracy as its paper reports it, quoted."""

    @property
    def files(self) -> tuple[str, ...]:
        """The files required to run the detector."""
        return tuple(path for path in (self.weights, self.rpn_weights) if path)

    @property
    def all_files(self) -> tuple[str, ...]:
        """The required files, the file of the text encoder, and the default vocabulary."""
        return tuple(path for path in (*self.files, self.text_weights, self.vocabulary) if path)
