"""From class names and a list of words to a store of negative words (RALF, section 3.1)."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from regionclip.clip.embedder import NameEmbedder
from regionclip.clip.prompts import PROMPT_ENSEMBLES, plain_name
from regionclip.data.class_lists import CLASS_LISTS, parse_names
from regionclip.errors import user_error
from regionclip.methods.ralf.vocabulary import VARIANCES, retrieve_words, sample_words
from regionclip.modeling.retrieval_augmentation.negatives import NO_WORD, NegativeWords

logger = logging.getLogger(__name__)

DEFAULT_WORDS = "default"
"""Name of the word list that is included: the class lists of LVIS, COCO and the emoji."""

SHIPPED_LISTS = ("lvis", "coco", "emoji")

TEMPLATES = "ralf"

PUBLISHED_COUNT, LARGEST_FRACTION = 2000, 6
"""Words of each class, and the fraction of a short list that is taken, 1 / n, where that is fewer."""


def read_words(source: str, classes: Sequence[str]) -> list[str]:
    """Return the words of a list that are no class names, each once.

    Args:
        source: `DEFAULT_WORDS`, a class list, a file, or words with commas.
        classes: class names, base and novel.

    Raises:
        UserError: nothing is left.
    """
    listed = (
        [name for key in SHIPPED_LISTS for name in CLASS_LISTS[key]()]
        if source == DEFAULT_WORDS
        else parse_names(source, synonyms=False)
    )
    taken = {plain_name(name) for name in classes}
    words = {plain_name(word): word for word in reversed(listed) if plain_name(word) not in taken}
    if not words:
        raise user_error(f"--words {source}", "words other than the class names", "none", "name a longer list")
    if len(words) < len(listed):
        logger.info("%d of %d words are class names or the same word again", len(listed) - len(words), len(listed))
    return list(reversed(words.values()))


def embed_words(names: Sequence[str], embedder: NameEmbedder) -> Tensor:
    """Return unit text embeddings [N, D] of "a photo of a {}"."""
    plain = [" ".join(name.replace("_", " ").split()) for name in names]
    return F.normalize(embedder.embed(plain, PROMPT_ENSEMBLES[TEMPLATES]), dim=1)


def sampled_words(
    classes: Sequence[str],
    words: Sequence[str],
    embedder: NameEmbedder,
    variance: str,
    threshold: float | None,
    drop: float,
) -> list[str]:
    """Return the words whose similarity says something about classes: those with enough rank variance.

    Args:
        classes: class names, base and novel.
        words: other words.
        embedder: text encoder of the detector.
        variance: key of `VARIANCES`.
        threshold: minimum variance; None drops a fraction of the words.
        drop: that fraction, of the words with the least variance.

    Raises:
        UserError: fewer than two classes.
    """
    if len(classes) < 2:
        raise user_error("--classes", "at least two classes, over which ranks vary", str(len(classes)), "name more")
    values = VARIANCES[variance](embed_words(classes, embedder) @ embed_words(words, embedder).T)
    least = float(values.quantile(drop)) if threshold is None else threshold
    return [words[row] for row in sample_words(values, least).tolist()]


def build_store(
    classes: Sequence[str],
    words: Sequence[str],
    embedder: NameEmbedder,
    count: int = 0,
    hub_classes: int = 0,
) -> NegativeWords:
    """Return the hard and easy negative words of each class.

    Args:
        classes: class names, base and novel.
        words: others.
        embedder: text encoder of the detector.
        count: words of each class, before hubs are removed; 0 takes `PUBLISHED_COUNT`, and of fewer than 12,000 words
            a sixth.
        hub_classes: a word on the lists of at least that many classes is removed; 0 takes two thirds of the classes.

    Raises:
        UserError: a class is left without words.
    """
    anchors, table = embed_words(classes, embedder), embed_words(words, embedder)
    count = count or max(min(PUBLISHED_COUNT, len(words) // LARGEST_FRACTION), 1)
    hub_classes = hub_classes or max(-(-2 * len(classes) // 3), 2)
    cosines = anchors @ table.T
    sides = {side: retrieve_words(cosines, count, hub_classes, largest=side == "hard") for side in ("hard", "easy")}
    for side, found in sides.items():
        without = (found.rows == NO_WORD).all(dim=1).nonzero()[:, 0].tolist()
        if without:
            names = ", ".join(classes[row] for row in without[:5])
            fix = "raise --hub-classes, or take a longer list of words"
            raise user_error(f"{side} negative words", "some for each class", f"none for {names}", fix)
        logger.info("%s negatives: %d words on most lists are removed", side, len(found.hubs))
    rows = {side: found.rows for side, found in sides.items()}
    used = torch.cat([part[part != NO_WORD] for part in rows.values()]).unique().long()
    place = torch.full((len(words) + 1,), NO_WORD, dtype=torch.int32)  # the last entry is that of NO_WORD
    place[used] = torch.arange(len(used), dtype=torch.int32)
    return NegativeWords(
        tuple(classes),
        anchors,
        table[used],
        **{side: place[part.long()] for side, part in rows.items()},
        word_names=tuple(words[row] for row in used.tolist()),
        clip=embedder.model,
        text_weights=embedder.weights_hash,
    )
