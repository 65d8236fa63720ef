"""Concepts of RAF: noun chunks of descriptions of words, and the published file of them (RALF, section 3.3)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regionclip.clip.prompts import same_to_clip
from regionclip.data.image_text.nouns import Parser
from regionclip.errors import user_error
from regionclip.files import read_text
from regionclip.methods.ralf.published_arrays import load_arrays
from regionclip.progress import progress_bar

PROMPT = "Describe in one sentence what {} looks like: its parts, colors, materials and surroundings."
"""Question to a language model about a word; the published one is unknown."""


def read_descriptions(path: str | Path) -> list[str]:
    """Return the descriptions in a text file, one on each line, or in a JSON object of words with one or several.

    Raises:
        UserError: missing or empty file, or other JSON.
    """
    text = read_text(path, "descriptions").strip()
    if not text.startswith(("{", "[")):
        found = [line.strip() for line in text.splitlines() if line.strip()]
    else:
        try:
            found = list(_texts(json.loads(text)))
        except ValueError as error:
            raise user_error(str(path), "JSON, as it begins like it", str(error), "correct the file") from error
    if not found:
        raise user_error(str(path), "at least one description", "none", "write one on each line")
    return found


def _texts(content: Any) -> Iterable[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, Mapping):
        for part in content.values():
            yield from _texts(part)
    elif isinstance(content, list):
        for part in content:
            yield from _texts(part)
    else:
        raise ValueError(f"{content!r} is no description")


def noun_chunks(descriptions: Iterable[str], parser: Parser) -> list[str]:
    """Return the nouns and noun phrases of descriptions, each once, in the order of their first use."""
    chunks: dict[str, str] = {}
    for text in progress_bar(list(descriptions), unit="description"):
        for chunk in parser(text):
            chunks.setdefault(same_to_clip(chunk), chunk)
    return list(chunks.values())


def read_published_concepts(path: Path) -> Tensor:
    """Return the text features [N, D] of a published file, of which nothing else is used.

    Raises:
        UserError: another file.
    """
    expected = "a published file with all_noun_chunks, text_features [N, D]"
    content = load_arrays(path, expected)
    chunks = content.get("all_noun_chunks") if isinstance(content, dict) else None
    features = chunks.get("text_features") if isinstance(chunks, dict) else None
    table = None if features is None else torch.as_tensor(features).float()
    if table is None or table.ndim != 2 or not len(table) or not bool(torch.isfinite(table).all()):
        actual = "another content" if table is None else f"{list(table.shape)}" + ", not all finite" * (table.ndim == 2)
        raise user_error(str(path), expected, actual, "name v3det_gpt_noun_chunk_{coco,lvis}_strict.pkl")
    return table
