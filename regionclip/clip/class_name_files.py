"""Files of class names: one per line, comma-separated, JSON, YAML or CSV; others are rejected with the reason."""

from __future__ import annotations

import csv
import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from regionclip.errors import user_error
from regionclip.files import read_text, resolve_path

logger = logging.getLogger(__name__)

Word = str | Sequence[str]
"""One class: a class name, or its synonyms with the class name first."""

SYNONYM_MARK = "|"
"""Separates synonyms."""

LIST_KEYS = ("names", "classes", "categories", "words")
"""Keys of a JSON or YAML file that may hold the list of class names."""

NAME_KEYS = ("name", "word", "class", "label", "category")
"""Keys of a list entry, or headers of a CSV column, that may hold the class name."""

_FIX = "write a word on each line, or a JSON list of words"
_MARK_ALONE = re.compile(r"(?<!<)\|(?!>)")
"""The synonym mark, except inside special tokens of the tokenizer such as `<|endoftext|>`."""

_YAML_LINE = re.compile(rf"({'|'.join(LIST_KEYS)})\s*:|- ")


def split_synonyms(text: str) -> list[str]:
    """Return the stripped synonyms of `sofa | couch`."""
    return [word.strip() for word in _MARK_ALONE.split(text)]


def read_class_names(path: str | Path) -> list[Word]:
    """Read the class names of a file; synonyms may be separated by `|`.

    Supported are text with one class name per line, or on one line separated by commas; a JSON or YAML list of names
    or of lists of synonyms, also under `names`, `classes`, `categories` or `words`, and as a mapping from numbers;
    CSV with one column, or with one named `name`, `word`, `class`, `label` or `category`.

    Args:
        path: file, relative to the working directory or the repository; the extension decides only about CSV.

    Raises:
        UserError: missing file, not text, empty, or no class names.
    """
    text = read_text(path, "words").strip()
    if not text:
        raise user_error(str(path), "at least one of the words", "none", "write one on each line")
    ending, source = resolve_path(path).suffix.lower(), str(path)
    if ending == ".json" or (text[0] in "[{" and ending not in (".yaml", ".yml", ".csv", ".tsv")):
        return _from_json(text, source)
    if ending in (".yaml", ".yml") or _is_yaml(text):
        return _from_yaml(text, source)
    if ending in (".csv", ".tsv"):
        return _from_table(text, "\t" if ending == ".tsv" else ",", source)
    return _from_lines([line.strip() for line in text.splitlines() if line.strip()], source)


def _is_yaml(text: str) -> bool:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return bool(lines) and (all(map(_YAML_LINE.match, lines)) or bool(re.fullmatch(r"names\s*:.*", lines[0])))


def _from_lines(lines: list[str], source: str) -> list[Word]:
    strange = next((line for line in lines if line[0] in "<[{" or line[-1] in "{[" or "\t" in line), None)
    if strange is not None:
        raise user_error(source, "a word on each line", f"the line {strange[:80]!r}", _FIX)
    if len(lines) == 1 and "," in lines[0]:
        return _from_lines([word.strip() for word in lines[0].split(",") if word.strip()], source)
    if len(lines) == 1 and ";" in lines[0]:
        raise user_error(source, "a word on each line, or commas between them", f"{lines[0][:80]!r}", _FIX)
    if len(lines) > 1 and all("," in line for line in lines):
        logger.warning("%s: each line is one word, commas and all; synonyms stand between |", source)
    return list(lines)


def _from_json(text: str, source: str) -> list[Word]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise user_error(source, "JSON, as it begins like it", str(error), _FIX) from error
    return _from_content(content, source)


def _from_yaml(text: str, source: str) -> list[Word]:
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise user_error(source, "YAML", " ".join(str(error).split()), _FIX) from error
    return _from_content(content, source)


def _from_content(content: Any, source: str) -> list[Word]:
    """Return the class names in the content of a JSON or YAML file."""
    if isinstance(content, Mapping) and (key := next((key for key in LIST_KEYS if key in content), None)):
        return _from_content(content[key], f"{source}, {key}")
    if isinstance(content, Mapping) and content and all(str(key).isdecimal() for key in content):
        # Class numbers, which must be 0, 1, ... or 1, 2, ... so that they give the class order.
        numbers = sorted(content, key=int)
        if [int(number) - int(numbers[0]) for number in numbers] != list(range(len(numbers))):
            actual = ", ".join(map(str, numbers[:10]))
            raise user_error(source, "class numbers without a gap", actual, "write the words as a list, in their order")
        content = [content[number] for number in numbers]
    if not isinstance(content, list):
        actual = f"keys such as {', '.join(map(str, list(content)[:3]))}" if isinstance(content, Mapping) else content
        raise user_error(source, f"a list of words, or one under {', '.join(LIST_KEYS)}", str(actual)[:100], _FIX)
    return [_entry(entry, number, source) for number, entry in enumerate(content, start=1)]


def _entry(entry: Any, number: int, source: str) -> Word:
    if isinstance(entry, Mapping):
        entry = next((entry[key] for key in NAME_KEYS if key in entry), entry)
    if isinstance(entry, str) or (isinstance(entry, list) and entry and all(isinstance(word, str) for word in entry)):
        return entry
    fix = "put words such as no, yes and 7 in quotes" if isinstance(entry, bool | int | float) else _FIX
    raise user_error(f"{source}, entry {number}", "a word, or a list of synonyms", repr(entry)[:100], fix)


def _from_table(text: str, delimiter: str, source: str) -> list[Word]:
    try:
        rows = [row for row in csv.reader(text.splitlines(), delimiter=delimiter, strict=True) if any(row)]
    except csv.Error as error:
        raise user_error(source, "CSV", str(error), _FIX) from error
    heads = [head.strip().lower() for head in rows[0]]
    column = next((heads.index(key) for key in NAME_KEYS if key in heads), None)
    widths = {len(row) for row in rows}
    if column is None and len(rows) == 1:
        return [word.strip() for word in rows[0] if word.strip()]
    if column is None and widths != {1}:
        expected, actual = f"one column, or one called {' or '.join(NAME_KEYS)}", f"the line {rows[0]}"
        raise user_error(source, expected, actual[:120], "write such a line above the others")
    if column is not None and widths != {len(heads)}:
        row = next(row for row in rows if len(row) != len(heads))
        raise user_error(source, f"{len(heads)} columns", f"the line {row}"[:120], "correct it")
    words = [row[column or 0].strip() for row in rows[int(column is not None) :]]
    if not words:
        raise user_error(source, "at least one of the words", "none", "write one on each line")
    return list(words)


def names_alone(words: Sequence[Word], source: str) -> list[str]:
    """Return the class names of a list without synonyms; raises `UserError` if it has some."""
    synonyms = next((word for word in words if not isinstance(word, str) or SYNONYM_MARK in word), None)
    if synonyms is not None:
        actual = f"synonyms, {synonyms!r}"
        raise user_error(
            source, "a word in each place", actual, "embed them with regionclip concepts, which reads them"
        )
    return [str(word) for word in words]
