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
    url: str = ""
    """Empty if it has to be downloaded by hand from `folder_url`."""
    folder_url: str = ""
    """Web page of the publishers' folder that has it."""
    sha256: str = ""
    """Empty if none is published."""
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
    """CLIP size."""
    vocabulary: str = ""
    """Embeddings of the default vocabulary."""
    suffix: str = ""
    """Suffix of its embedding files."""

    @property
    def files(self) -> tuple[str, ...]:
        """The files required to run the detector."""
        return tuple(path for path in (self.weights, self.rpn_weights) if path)

    @property
    def all_files(self) -> tuple[str, ...]:
        """The required files, the file of the text encoder, and the default vocabulary."""
        return tuple(path for path in (*self.files, self.text_weights, self.vocabulary) if path)
