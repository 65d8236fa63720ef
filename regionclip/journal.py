"""Journals: what is finished of a long run over images, so that an interrupted one goes on where it stopped."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

from detectron2.utils import comm

from regionclip.errors import user_error


class Journal:
    """One JSON line per finished image, in one file per process: a dict with `image_id`, such as its predictions.

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
        return sorted(self.folder.glob(f"{glob.escape(self.name)}.[0-9]*.jsonl"))


def _complete(lines: Iterable[str]) -> list[Any]:
    """Parse the complete lines."""
    complete = []
    for line in lines:
        try:
            complete.append(json.loads(line))
        except ValueError:
            continue
    return complete
