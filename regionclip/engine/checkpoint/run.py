"""Checkpoints of a training run: written atomically and verified by hash."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from regionclip.errors import user_error
from regionclip.files import atomic_write, write_json

logger = logging.getLogger(__name__)

MANIFEST = "checkpoints.json"
LAST = "last_checkpoint"
"""Detectron2's file with the name of the newest checkpoint."""

FINAL, BEST = "model_final", "model_best"
"""Names of the last checkpoint of a training, and of its best weights."""


@dataclass(frozen=True)
class Entry:
    """A checkpoint in the manifest."""

    file: str
    sha256: str
    temporary: bool
    """Remove it once the next checkpoint is complete."""


class RunCheckpoints:
    """Checkpoints in a folder, oldest first, as listed in `checkpoints.json`.

    Only the main process writes.
    """

    def __init__(self, folder: str | Path) -> None:
        """Refer to a folder, which need not exist yet."""
        self.folder = Path(folder)

    def save(self, name: str, content: dict[str, Any], *, temporary: bool = False) -> Path:
        """Write `content` to `name`.pth, hash it, and list it as the newest.

        Returns:
            The file, which gets its name only when it is complete.
        """
        path = self.folder / f"{name}.pth"
        with atomic_write(path) as file:
            torch.save(content, file)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        replaced = [entry for entry in self._entries() if entry.temporary and entry.file != path.name]
        kept = [entry for entry in self._entries() if not entry.temporary and entry.file != path.name]
        self._write_manifest([*kept, Entry(path.name, digest, temporary)])
        with atomic_write(self.folder / LAST) as file:
            file.write(path.name.encode())
        for entry in replaced:
            (self.folder / entry.file).unlink(missing_ok=True)
        logger.info("Saved checkpoint to %s", path)
        return path

    def save_weights(self, name: str, weights: dict[str, torch.Tensor]) -> Path:
        """Write only weights to `name`.pth, for use as MODEL.WEIGHTS; training cannot resume from it."""
        path = self.folder / f"{name}.pth"
        with atomic_write(path) as file:
            torch.save({"model": weights}, file)
        return path

    def newest(self) -> Path | None:
        """Return the newest undamaged checkpoint, None if there is none at all.

        A file without a hash, written by Detectron2, is returned unchecked.

        Raises:
            UserError: there are checkpoints, but all are damaged.
        """
        entries = self._entries()
        for entry in reversed(entries):
            path = self.folder / entry.file
            if path.is_file() and _sha256(path) == entry.sha256:
                return path
            state = "is damaged" if path.is_file() else "is gone"
            logger.warning("Checkpoint %s %s: falling back to the one before", path, state)
        if entries:
            fix = "remove the folder, or start again without --resume"
            raise user_error(str(self.folder), "a checkpoint that is complete", f"{len(entries)} damaged", fix)
        last = self.folder / LAST
        return self.folder / last.read_text().strip() if last.is_file() else None

    def restart(self) -> None:
        """Unlist the checkpoints of an earlier run in this folder; their files stay until they are replaced."""
        if self.newest_name():
            logger.warning("%s holds checkpoints of an earlier run, which --resume would continue", self.folder)
        for name in (MANIFEST, LAST):
            (self.folder / name).unlink(missing_ok=True)

    def newest_name(self) -> str:
        """Return the file name of the newest checkpoint, unchecked; empty if there is none."""
        entries, last = self._entries(), self.folder / LAST
        if entries:
            return entries[-1].file
        return last.read_text().strip() if last.is_file() else ""

    def remove_partial(self) -> None:
        """Remove partial files of a killed process."""
        for path in self.folder.glob(".*.pth.*.tmp"):
            path.unlink(missing_ok=True)

    def _entries(self) -> list[Entry]:
        path = self.folder / MANIFEST
        if not path.is_file():
            return []
        try:
            return [Entry(**entry) for entry in json.loads(path.read_text())]
        except (ValueError, TypeError) as error:
            raise user_error(str(path), "a list of checkpoints", str(error), "remove the file") from error

    def _write_manifest(self, entries: list[Entry]) -> None:
        write_json(self.folder / MANIFEST, [asdict(entry) for entry in entries])


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
