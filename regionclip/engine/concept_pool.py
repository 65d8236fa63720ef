"""A pool of concepts from captions: nouns, how often they come, and their embeddings."""

from __future__ import annotations

import hashlib
import json
import logging
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn
from tqdm import tqdm

from regionclip.clip import CLIPArchitecture
from regionclip.clip.prompts import PROMPT_TEMPLATES, fill_template
from regionclip.clip.text import TextEncoder, Tokenizer, tokenize
from regionclip.data.captions import all_captions
from regionclip.data.image_text import PairSource
from regionclip.data.nouns import Parser
from regionclip.engine.checkpoint import load_weights
from regionclip.errors import user_error
from regionclip.files import atomic_write

logger = logging.getLogger(__name__)


class ConceptCounts:
    """What the captions of a source say: their nouns, as numbers in arrays."""

    def __init__(self) -> None:
        """Start with nothing."""
        self.captions = 0
        self._numbers: dict[str, int] = {}
        self._mentions, self._caption_of = array("I"), array("I")

    def add(self, nouns: Iterable[str]) -> None:
        """Count the nouns and phrases of a caption, each once."""
        for noun in set(nouns):
            self._mentions.append(self._numbers.setdefault(noun, len(self._numbers)))
            self._caption_of.append(self.captions)
        self.captions += 1

    @property
    def concepts(self) -> dict[str, int]:
        """In how many captions each noun or phrase comes, by falling frequency, then by name."""
        counts = np.bincount(np.frombuffer(self._mentions, np.uint32), minlength=len(self._numbers)).tolist()
        return dict(sorted(zip(self._numbers, counts, strict=True), key=lambda item: (-item[1], item[0])))

    def at_least(self, count: int) -> list[str]:
        """Return the concepts that come in so many captions, the most frequent first."""
        return [name for name, found in self.concepts.items() if found >= count]

    def coverage(self, names: Iterable[str]) -> tuple[float, float]:
        """Return the shares of captions with one of `names`, and of noun mentions that are one of them."""
        numbers = [self._numbers[name] for name in names if name in self._numbers]
        is_one = np.isin(np.frombuffer(self._mentions, np.uint32), numbers)
        covered = len(np.unique(np.frombuffer(self._caption_of, np.uint32)[is_one]))
        return covered / max(self.captions, 1), int(is_one.sum()) / max(len(is_one), 1)


def count_concepts(sources: Sequence[PairSource], parser: Parser) -> ConceptCounts:
    """Parse all captions; texts that cannot be read are left out and counted in the log."""
    counts, unreadable = ConceptCounts(), 0
    for source in sources:
        for number in tqdm(range(len(source)), desc="captions", unit="image"):
            try:
                texts = all_captions(source.text(number))
            except (OSError, ValueError):
                unreadable += 1
                continue
            for text in texts:
                counts.add(parser(text))
    if unreadable:
        logger.warning("%d texts could not be read", unreadable)
    return counts


class TextTower(nn.Module):
    """A text encoder under the key that checkpoints use."""

    def __init__(self, architecture: CLIPArchitecture) -> None:
        """Make the tower of a CLIP size."""
        super().__init__()
        self.lang_encoder = TextEncoder(architecture)


def load_text_encoder(architecture: CLIPArchitecture, weights: str, *, trust_pickle: bool = False) -> TextEncoder:
    """Return the text encoder of a CLIP or RegionCLIP checkpoint.

    Raises:
        UserError: the file cannot be read, or has no text tower of this size.
    """
    tower = TextTower(architecture)
    load_weights(tower, weights, trust_pickle=trust_pickle)
    return tower.lang_encoder.eval()


@torch.no_grad()
def embed_concepts(encoder: TextEncoder, names: Sequence[str], device: torch.device) -> Tensor:
    """Return float32 [N, D]: the mean over the 81 prompts of each name, not normalised, as upstream.

    Args:
        encoder: text tower.
        names: concepts or classes.
        device: where to compute.
    """
    encoder, tokenizer = encoder.to(device), Tokenizer()
    means = []
    for name in tqdm(names, desc="concepts", unit="concept"):
        prompts = [fill_template(template, name) for template in PROMPT_TEMPLATES]
        means.append(encoder(tokenize(prompts, tokenizer).to(device)).mean(dim=0))
    return torch.stack(means).float().cpu()


def write_names(path: str | Path, names: Sequence[str], counts: dict[str, int]) -> None:
    """Write a line for each concept: name, comma, count."""
    with atomic_write(path) as file:
        file.write("".join(f"{name},{counts.get(name, 0)}\n" for name in names).encode())


def read_concept_names(path: str | Path) -> list[str]:
    """Return the names in a text file: of each line what comes before the first comma.

    Raises:
        UserError: missing or empty file, or a name that comes twice.
    """
    place = Path(path)
    if not place.is_file():
        raise user_error(str(path), "a text file with a name on each line", "no such file", "correct the path")
    names = [line.split(",")[0].strip() for line in place.read_text(encoding="utf-8").splitlines()]
    names = [name for name in names if name]
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if not names or twice:
        actual = f"twice: {', '.join(twice[:5])}" if twice else "none"
        raise user_error(str(path), "names, each once", actual, "correct the file")
    return names


def read_concepts(path: str | Path) -> list[str]:
    """Return the concepts of a text file, one on each line as upstream reads them; blank lines are left out.

    Raises:
        UserError: missing file, or nothing in it.
    """
    place = Path(path)
    if not place.is_file():
        fix = "write it, or set INPUT_DIR"
        raise user_error(str(path), "a text file with a concept on each line", "no such file", fix)
    names = [line.strip() for line in place.read_text(encoding="utf-8", errors="replace").splitlines()]
    names = [name for name in names if name]
    if not names:
        raise user_error(str(path), "a concept on each line", "none", "write some")
    return names


def write_embeddings(path: str | Path, names: Sequence[str], embeddings: Tensor, model: str) -> None:
    """Write a safetensors file of embeddings that says what they are: names, model, templates."""
    metadata = {"names": json.dumps(list(names)), "model": model, "templates": template_hash()}
    with atomic_write(path) as file:
        file.write(save({"embeddings": embeddings.contiguous()}, metadata))


def template_hash() -> str:
    """Return a short hash of the prompt templates."""
    return hashlib.sha256("\n".join(PROMPT_TEMPLATES).encode()).hexdigest()[:16]
