"""Nouns and noun phrases of captions: a small rule-based parser, or spaCy if installed.

Captions are simple: "a brown dog sits on the wooden bench". A word that is no closed-class word, no known
adjective or adverb, and no verb by its form or position, is a noun; a run of nouns is a phrase.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from regionclip.errors import user_error

Parser = Callable[[str], list[str]]
"""Returns the nouns and noun phrases of a caption, singular and lower case."""

MAX_WORDS = 200
"""Maximum number of parsed words of a caption."""

_WORD_CLASSES = Path(__file__).with_name("english.txt")
_WORD = re.compile(r"[^\W\d_]+(?:[-'][^\W\d_]+)*|[^\s]")


@cache
def _words(kind: str) -> frozenset[str]:
    """Return the words under a heading of `english.txt`."""
    sections = re.split(r"^\[(.+)\]$", _WORD_CLASSES.read_text(), flags=re.MULTILINE)
    return frozenset(sections[sections.index(kind) + 1].split())


@cache
def _irregular() -> dict[str, str]:
    return dict(entry.split(":") for entry in _words("irregular"))


def singular(noun: str) -> str:
    """Return the singular of an English noun in lower case."""
    if noun in _irregular():
        return _irregular()[noun]
    if noun in _words("same in singular") or len(noun) < 4:
        return noun
    if noun.endswith("men"):
        return noun[:-3] + "man"
    if noun.endswith(("ss", "us", "is")) or not noun.endswith("s"):
        return noun
    if noun.endswith("ies"):
        return noun[:-3] + "y"
    if noun.endswith(("ches", "shes", "sses", "xes", "zzes", "oes")):
        return noun[:-2]
    return noun[:-1]


def parse(caption: str) -> list[str]:
    """Return the nouns of a caption in singular, and each run of several nouns as a phrase.

    "Two men ride motor bikes" gives man, bike, motor, motor bike.
    """
    found = []
    for run in _noun_runs(caption.lower()):
        *modifiers, head = run
        head = singular(head)
        found += [head, *modifiers]
        if modifiers:
            found.append(" ".join([*modifiers, head]))
    return found


def _noun_runs(caption: str) -> Iterator[list[str]]:
    words = _WORD.findall(caption)[:MAX_WORDS]
    around = ["", *words, ""]
    return _runs(words, lambda i, in_run: _is_noun(words[i], around[i], around[i + 2], in_run))


def _is_noun(word: str, before: str, after: str, in_run: bool) -> bool:
    if len(word) < 2 or not word[0].isalpha() or "'" in word:
        return False
    if any(word in _words(kind) for kind in ("determiners", "function words", "adverbs", "adjectives")):
        return False
    if word in _words("verbs"):
        if word not in _words("nouns after a determiner"):
            return False
        # "a ride", "a long ride", "a bus stop at", but "men ride", "a dog runs past"
        ends_run = in_run and singular(before) == before and (not after.isalpha() or after in _words("function words"))
        return ends_run or before in _words("determiners") or before in _words("adjectives")
    if word.endswith("ing") and len(word) > 4:
        return word in _words("nouns in -ing")
    if word.endswith("ed") and len(word) > 3:
        return word in _words("nouns in -ed")
    if word.endswith("ly") and len(word) > 4:
        return word in _words("nouns in -ly")
    return True


def spacy_parser(model: str = "en_core_web_sm") -> Parser:
    """Return a parser on spaCy's part-of-speech tags.

    Raises:
        UserError: spaCy or the model is not installed.
    """
    try:
        import spacy

        pipeline = spacy.load(model, disable=["ner"])
    except (ImportError, OSError) as error:
        fix = f"pip install spacy && python -m spacy download {model}, or --parser embedded"
        raise user_error("--parser spacy", f"spaCy with {model}", str(error).splitlines()[0], fix) from error

    def parse_with_spacy(caption: str) -> list[str]:
        words = list(pipeline(caption)[:MAX_WORDS])
        found = []
        for run in _runs(words, lambda i, _: words[i].pos_ in ("NOUN", "PROPN")):
            *modifiers, head = run
            lemma = head.lemma_.lower()
            parts = [word.text.lower() for word in modifiers]
            found += [lemma, *parts]
            if parts:
                found.append(" ".join([*parts, lemma]))
        return found

    return parse_with_spacy


def _runs(words: Sequence[Any], belongs: Callable[[int, bool], bool]) -> Iterator[list[Any]]:
    """Yield the maximal runs of words for which `belongs(index, whether in a run)`."""
    run: list[Any] = []
    for i, word in enumerate(words):
        if belongs(i, bool(run)):
            run.append(word)
        elif run:
            yield run
            run = []
    if run:
        yield run
