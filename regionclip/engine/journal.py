"""A journal of predictions, so that an interrupted evaluation goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

from detectron2.config import CfgNode
from detectron2.utils import comm

from regionclip.config.checks import find_weights
from regionclip.evaluation.predictions import Prediction

logger = logging.getLogger(__name__)


class PredictionJournal:
    """One line for each finished image, in a file for each process.

    The first line is a fingerprint of config and weights: a journal of another run is left out.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        """Make a journal in `folder`; nothing is written before the first image."""
        self.folder = folder
        self.fingerprint = fingerprint
        self._file: TextIO | None = None

    def finished(self) -> list[Prediction]:
        """Return the predictions that interrupted runs of this fingerprint left behind, each image once."""
        by_image: dict[int, Prediction] = {}
        for path in self._paths():
            head, *lines = path.read_text().split("\n")
            if head == self.fingerprint:
                by_image.update((prediction["image_id"], prediction) for prediction in _complete(lines))
        return list(by_image.values())

    def append(self, predictions: Iterable[Prediction]) -> None:
        """Add finished images."""
        if self._file is None:
            self._file = self._open()
        for prediction in predictions:
            self._file.write(json.dumps(prediction) + "\n")
        self._file.flush()

    def remove(self) -> None:
        """Delete the journals of all processes: the results are written."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if comm.is_main_process():
            for path in self._paths():
                path.unlink()

    def _open(self) -> TextIO:
        path = self.folder / f"predictions.{comm.get_rank()}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            head, *lines = path.read_text().split("\n")
            kept = _complete(lines) if head == self.fingerprint else []
        else:
            kept = []
        # Written anew: a torn last line must not run into the next one.
        file = path.open("w")
        file.write("\n".join([self.fingerprint, *map(json.dumps, kept)]) + "\n")
        return file

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("predictions.*.jsonl"))


def fingerprint(cfg: CfgNode, weights: Sequence[str]) -> str:
    """Return a hash of the config and of the state of the weight files."""
    digest = hashlib.sha256(cfg.dump().encode())
    for name in weights:
        path = find_weights(name)
        state = (path.stat().st_size, path.stat().st_mtime_ns) if path.is_file() else ()
        digest.update(repr((name, state)).encode())
    return digest.hexdigest()


def _complete(lines: Iterable[str]) -> list[dict[str, Any]]:
    """Parse the lines that were written to their end."""
    complete = []
    for line in lines:
        try:
            complete.append(json.loads(line))
        except ValueError:
            continue
    return complete
