"""Journal of predictions, so that an interrupted evaluation can resume."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils import comm

from regionclip.config.resolve import find_weights
from regionclip.errors import user_error
from regionclip.fingerprints import config_parts, file_state, fingerprint
from regionclip.records import Record


class PredictionJournal:
    """One JSON line per finished image, in one file per process: a dict with `image_id`, such as a `Prediction`.

    The first line is a fingerprint of the run: the journal of another run is never used, and is
    replaced only if it has no finished image.
    """

    def __init__(self, folder: Path, fingerprint: str, name: str = "predictions") -> None:
        """Create a journal in `folder` with file prefix `name`; nothing is written before the first image."""
        self.folder = folder
        self.name = name
        self.fingerprint = fingerprint
        self._file: TextIO | None = None

    def finished(self) -> list[Any]:
        """Return the predictions of interrupted runs with this fingerprint, each image once."""
        by_image: dict[Any, Any] = {}
        for path in self._paths():
            head, *lines = path.read_text().split("\n")
            if head == self.fingerprint:
                by_image.update((prediction["image_id"], prediction) for prediction in _complete(lines))
        return list(by_image.values())

    def require_own(self) -> None:
        """Raise a `UserError` if the folder has results of another unfinished run."""
        others = []
        for path in self._paths():
            head, *lines = path.read_text().split("\n")
            if head != self.fingerprint and _complete(lines):
                others.append(path.name)
        if others:
            expected = "no unfinished results, or those of this run"
            actual = f"those of a run with other words, model, images or options in {', '.join(others)}"
            fix = "finish that run with its own command, name another folder, or remove these files"
            raise user_error(f"output {self.folder}", expected, actual, fix)

    def append(self, predictions: Iterable[Any]) -> None:
        """Append finished images."""
        if self._file is None:
            self._file = self._open()
        try:
            for prediction in predictions:
                self._file.write(json.dumps(prediction) + "\n")
            self._file.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, self._file.name) from error

    def remove(self) -> None:
        """Delete the journals of all processes, after the results are written."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if comm.is_main_process():
            for path in self._paths():
                path.unlink()

    def _open(self) -> TextIO:
        path = self.folder / f"{self.name}.{comm.get_rank()}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        content = path.read_text() if path.is_file() else ""
        if not content.startswith(self.fingerprint + "\n"):
            file = path.open("w")
            file.write(self.fingerprint + "\n")
            return file
        file = path.open("a")
        if not content.endswith("\n"):
            file.write("\n")  # so that a partial last line does not run into the next one
        return file

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob(f"{self.name}.*.jsonl"))


def evaluation_fingerprint(
    cfg: CfgNode,
    dataset_name: str,
    records: Sequence[Record],
    weights: Sequence[str],
    allow_missing: Sequence[str] = (),
) -> str:
    """Return a hash of everything that determines the predictions of an evaluation.

    Args:
        cfg: its values, and the state (size and time) of the files that it names.
        dataset_name: registered dataset, with its annotation file.
        records: the images, and the state of their files.
        weights: checkpoint files, as given by the user.
        allow_missing: key prefixes of weights that may keep their initial values.
    """
    annotations = MetadataCatalog.get(dataset_name).get("json_file")
    files = [find_weights(name) for name in weights] + ([Path(annotations)] if annotations else [])
    files += [Path(record["file_name"]) for record in records]
    images = [record["image_id"] for record in records]
    states = [(str(path), file_state(path)) for path in files]
    return fingerprint([dataset_name, *config_parts(cfg), sorted(allow_missing), images, states])


def _complete(lines: Iterable[str]) -> list[Any]:
    """Parse the complete lines."""
    complete = []
    for line in lines:
        try:
            complete.append(json.loads(line))
        except ValueError:
            continue
    return complete
