"""Small files of RALF for tests: negative words, concepts, an augmenter, and stored regions."""

import json

import torch

from regionclip.clip.vocabulary import Vocabulary
from regionclip.data.region_features.formats import Chunk, SafetensorsShard, Shards
from regionclip.data.region_features.index import write_index
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


def write_regions(folder, names, boxes=((0, 0, 20, 20),) * 6, dim=32):
    """Write a folder of region features: six regions of each image, the third of which is no object."""
    folder.mkdir()
    shards, features = Shards(folder, SafetensorsShard(), len(names)), {}
    for i, name in enumerate(names):
        rows = deterministic_text_embeddings(f"regions {i}", 6, dim)
        objectness = torch.tensor([0.9, 0.9, 0.3, 0.9, 0.8, 0.7])
        features[name] = {"boxes": torch.tensor(boxes).float(), "feats": rows.half(), "objectness": objectness}
    chunk = Chunk(tuple(names), folder / "features-0.safetensors")
    shards.write(chunk, features, {})
    write_index(shards, [chunk])
    about = {"fingerprint": "of a test", "clip": "tiny_clip", "dim": dim}
    (folder / "features.json").write_text(json.dumps(about))
    return folder
