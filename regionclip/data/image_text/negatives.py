"""Captions of other pairs as further negatives of the contrastive loss, and what each caption is about."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from typing import Protocol

import torch
from open_clip.tokenizer import SimpleTokenizer

from regionclip.data.image_text.pairs import read_json
from regionclip.records import MappedImage, Record


class PairTexts(Protocol):
    """Texts of pairs by index."""

    def __len__(self) -> int:
        """Return the number of pairs."""
        ...

    def text(self, number: int) -> str:
        """Read the text of a pair; raises `OSError` or `ValueError` if it is damaged."""
        ...


class NegativeCaptions:
    """A mapper of pairs that adds captions of other pairs (MODEL.CLIP.NEGATIVE_CAPTIONS)."""

    def __init__(
        self,
        mapper: Callable[[Record], MappedImage],
        texts: PairTexts,
        choose: Callable[[str], str],
        tokenizer: SimpleTokenizer,
        count: int,
    ) -> None:
        """Create the mapper.

        Args:
            mapper: maps the pair itself.
            texts: of all pairs.
            choose: draws a caption from the text of a pair; empty if it has none.
            tokenizer: of captions.
            count: number of negatives K for each pair.
        """
        self.mapper, self.texts, self.choose, self.tokenizer, self.count = mapper, texts, choose, tokenizer, count

    def __call__(self, record: Record) -> MappedImage:
        """Return what the mapper returns, and more.

        `subject` is an int64 scalar, `negative_tokens` int64 [K, 77], `negative_subjects` int64 [K].

        Raises:
            UnreadableImageError: as the mapper.
        """
        from regionclip.clip.text_encoder import tokenize

        mapped = self.mapper(record)
        texts = [self._draw() for _ in range(self.count)]
        captions = [self.choose(text) for text in texts]
        mapped["subject"] = torch.tensor(subject_of(record["pair"].text))
        mapped["negative_tokens"] = tokenize(captions, self.tokenizer)
        mapped["negative_subjects"] = torch.tensor([subject_of(text) for text in texts])
        return mapped

    def _draw(self) -> str:
        try:
            return self.texts.text(random.randrange(len(self.texts)))
        except (OSError, ValueError):  # the pair itself is reported when its turn comes
            return ""


def subject_of(text: str) -> int:
    """Return a number that two pairs share if their texts are about the same.

    That is a hash of the `concepts` in a JSON object, in any order, and otherwise of the whole text.
    """
    content = read_json(text)
    concepts = content.get("concepts") if isinstance(content, dict) else None
    about = "\n".join(sorted(map(str, concepts))) if isinstance(concepts, list) and concepts else text
    return int.from_bytes(hashlib.sha256(about.encode("utf-8", "replace")).digest()[:8], "big", signed=True)
