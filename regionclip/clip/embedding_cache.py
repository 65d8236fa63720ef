"""Disk cache of text embeddings, so that no class name is encoded twice."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from regionclip.files import cache_folder

logger = logging.getLogger(__name__)

TABLE = "CREATE TABLE IF NOT EXISTS embeddings (scope, word, row, PRIMARY KEY (scope, word))"

FILES = "CREATE TABLE IF NOT EXISTS weights (file PRIMARY KEY, hash)"

KEYS_AT_ONCE = 500
"""Keys per query; SQLite limits the number of parameters."""


class EmbeddingCache:
    """SQLite table from (text weights, prompt templates, class name) to embedding; safe for concurrent processes.

    A cache that cannot be used is no error: it is disabled with one warning.
    """

    def __init__(self, path: Path | None = None) -> None:
        """Open a cache file, `embeddings.sqlite` in `cache_folder()` by default."""
        self.path = path or cache_folder() / "embeddings.sqlite"
        self._usable = True

    def get(self, scope: str, words: Sequence[str], dim: int) -> dict[str, Tensor]:
        """Return the cached embeddings float32 [dim] by class name; `scope` identifies weights and templates."""
        try:
            found = self._read(scope, words) if self._usable and self.path.is_file() else {}
            return {word: row for word, row in found.items() if row.shape == (dim,)}
        except sqlite3.Error as error:
            self._give_up(error)
            return {}

    def put(self, scope: str, words: Sequence[str], embeddings: Tensor) -> None:
        """Store the embeddings float32 [N, D] of N class names."""
        rows = [(scope, word, row.tobytes()) for word, row in zip(words, embeddings.cpu().float().numpy(), strict=True)]
        try:
            if self._usable:
                self._write(rows)
        except (sqlite3.Error, OSError) as error:
            self._give_up(error)

    def weights_hash(self, file: str) -> str | None:
        """Return the hash stored for a `file_state`, or None."""
        try:
            if not (self._usable and self.path.is_file()):
                return None
            with closing(sqlite3.connect(self.path, timeout=60)) as database:
                database.execute(FILES)
                row = database.execute("SELECT hash FROM weights WHERE file = ?", (file,)).fetchone()
            return row[0] if row else None
        except sqlite3.Error as error:
            self._give_up(error)
            return None

    def keep_weights_hash(self, file: str, weights_hash: str) -> None:
        """Store the hash of the weights in a file, by its `file_state`."""
        try:
            if self._usable:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with closing(sqlite3.connect(self.path, timeout=60)) as database, database:
                    database.execute(FILES)
                    database.execute("INSERT OR REPLACE INTO weights VALUES (?, ?)", (file, weights_hash))
        except (sqlite3.Error, OSError) as error:
            self._give_up(error)

    def _read(self, scope: str, words: Sequence[str]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        with closing(sqlite3.connect(self.path, timeout=60)) as database:
            database.execute(TABLE)
            for start in range(0, len(words), KEYS_AT_ONCE):
                part = words[start : start + KEYS_AT_ONCE]
                marks = ",".join("?" * len(part))
                query = f"SELECT word, row FROM embeddings WHERE scope = ? AND word IN ({marks})"
                for word, row in database.execute(query, (scope, *part)):
                    whole = len(row) // 4 * 4
                    found[word] = torch.from_numpy(np.frombuffer(row[:whole], np.float32).copy())
        return found

    def _write(self, rows: Sequence[tuple[str, str, bytes]]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(self.path, timeout=60)) as database, database:
            database.execute(TABLE)
            database.executemany("INSERT OR REPLACE INTO embeddings VALUES (?, ?, ?)", rows)

    def _give_up(self, error: Exception) -> None:
        self._usable = False
        logger.warning(
            "The cache of embeddings %s cannot be used (%s); remove the file to start again", self.path, error
        )


def file_state(file: Path) -> str:
    """Return a string that changes when the file is written, replaced or moved."""
    state = file.stat()
    return f"{file.resolve()} {state.st_ino} {state.st_size} {state.st_mtime_ns} {state.st_ctime_ns}"
