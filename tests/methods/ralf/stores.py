"""Small files of RALF for tests: negative words, concepts, an augmenter, and a CLIP on crops."""

import torch

from regionclip.clip.vocabulary import Vocabulary
from regionclip.modeling.retrieval_augmentation.augmenter import ConceptAugmenter
from regionclip.modeling.retrieval_augmentation.negatives import NO_WORD, NegativeWords, write_negative_words
from regionclip.testing.deterministic import deterministic_text_embeddings, fill_deterministic


def write_store(path, names, anchors, words=40, hard=12, easy=9, clip="tiny"):
    """Write negative words: the nearest and the farthest of random words; the last class has few."""
    table = deterministic_text_embeddings("negative words", words, anchors.shape[1])
    order = (anchors @ table.T).argsort(dim=1, descending=True)
    lists = {"hard": order[:, :hard].clone(), "easy": order[:, -easy:].clone()}
    for rows in lists.values():
        rows[-1, 3:] = NO_WORD
    named = tuple(f"word {i}" for i in range(words))
    write_negative_words(path, NegativeWords(tuple(names), anchors, table, **lists, word_names=named, clip=clip))
    return path


def write_concepts(path, count=30, dim=32):
    """Write concept embeddings with names."""
    names = tuple(f"concept {i}" for i in range(count))
    Vocabulary(names, deterministic_text_embeddings("concepts", count, dim), torch.arange(count)).save(path)
    return path


def write_augmenter(path, dim=32, concepts=5):
    """Write a random augmenter."""
    model = ConceptAugmenter(dim, concepts)
    fill_deterministic(model)
    torch.save(model.state_dict(), path)
    return path
