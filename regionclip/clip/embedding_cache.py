"""Disk cache of text embeddings, so that no class name is encoded twice."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regionclip.files import cache_folder

logger = logging.getLogger(__name__)

TABLE = "CREATE TABLE IF NOT EXISTS embeddings (scope, word, row, PRIMARY KEY (scope, word))"

TOKENS = "CREATE TABLE IF NOT EXISTS tokens (word PRIMARY KEY, ids)"

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
        select = "SELECT word, row FROM embeddings WHERE scope = ? AND word IN"
        blobs = self._read(TABLE, select, (scope,), words)
        whole = {word: blob for word, blob in blobs.items() if _is_whole(blob) and len(blob) == 4 * dim}
        return {word: torch.from_numpy(np.frombuffer(blob, np.float32).copy()) for word, blob in whole.items()}

    def put(self, scope: str, words: Sequence[str], embeddings: Tensor) -> None:
        """Store the embeddings float32 [N, D] of N class names."""
        rows = [(scope, word, row.tobytes()) for word, row in zip(words, embeddings.cpu().float().numpy(), strict=True)]
        self._write(TABLE, "INSERT OR REPLACE INTO embeddings VALUES (?, ?, ?)", rows)

    def token_ids(self, words: Sequence[str]) -> dict[str, tuple[int, ...]]:
        """Return the stored token ids by class name."""
        blobs = self._read(TOKENS, "SELECT word, ids FROM tokens WHERE word IN", (), words)
        whole = {word: blob for word, blob in blobs.items() if _is_whole(blob)}
        return {word: tuple(np.frombuffer(blob, np.int32).tolist()) for word, blob in whole.items()}

    def keep_token_ids(self, ids: Mapping[str, Sequence[int]]) -> None:
        """Store the token ids of class names."""
        rows = [(word, np.asarray(tokens, np.int32).tobytes()) for word, tokens in ids.items()]
        self._write(TOKENS, "INSERT OR REPLACE INTO tokens VALUES (?, ?)", rows)

    def weights_hash(self, file: str) -> str | None:
        """Return the hash stored for a `file_version`, or None."""
        return self._read(FILES, "SELECT file, hash FROM weights WHERE file IN", (), [file]).get(file)

    def keep_weights_hash(self, file: str, weights_hash: str) -> None:
        """Store the hash of the weights in a file, by its `file_version`."""
        self._write(FILES, "INSERT OR REPLACE INTO weights VALUES (?, ?)", [(file, weights_hash)])

    def _read(self, table: str, select: str, fixed: tuple[str, ...], keys: Sequence[str]) -> dict[str, Any]:
        """Return what `select` finds of the keys; `fixed` are its parameters before them."""
        found: dict[str, Any] = {}
        if not (self._usable and self.path.is_file()):
            return found
        try:
            with closing(sqlite3.connect(self.path, timeout=60)) as database:
                database.execute(table)
                for start in range(0, len(keys), KEYS_AT_ONCE):
                    part = keys[start : start + KEYS_AT_ONCE]
                    found.update(database.execute(f"{select} ({','.join('?' * len(part))})", (*fixed, *part)))
        except sqlite3.Error as error:
            self._give_up(error)
            return {}
        return found

    def _write(self, table: str, insert: str, rows: Sequence[tuple[Any, ...]]) -> None:
        if not self._usable:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path, timeout=60)) as database, database:
                database.execute(table)
                database.executemany(insert, rows)
        except (sqlite3.Error, OSError) as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._usable = False
        logger.warning(
            "The cache of embeddings %s cannot be used (%s); remove the file to start again", self.path, error
        )


def _is_whole(blob: object) -> bool:
    """Return whether a value of the table consists of 4-byte numbers; it is computed again if it is damaged."""
    return isinstance(blob, bytes) and len(blob) % 4 == 0
