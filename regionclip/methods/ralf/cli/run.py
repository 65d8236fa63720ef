"""What the commands of RALF do; each returns the line that is printed at the end."""

from __future__ import annotations

import json
from argparse import Namespace

import torch

from regionclip.cli.concepts import find_embedder
from regionclip.clip.class_embeddings import load_concepts
from regionclip.clip.vocabulary import Vocabulary
from regionclip.data.class_lists import parse_names
from regionclip.data.image_text.nouns import Parser, parse, spacy_parser
from regionclip.data.region_features.index import FeatureFolder
from regionclip.engine.checkpoint.publishing import write_published
from regionclip.engine.ownership import own_folder
from regionclip.errors import user_error
from regionclip.files import atomic_write, make_folder, write_json
from regionclip.hub.pretrained import require_device
from regionclip.methods.ralf import word_store
from regionclip.methods.ralf.augmenter_training import (
    WEIGHTS_FILE,
    AugmenterSettings,
    AugmenterTraining,
    RegionFilter,
    read_regions,
)
from regionclip.methods.ralf.checkpoints import published_state
from regionclip.methods.ralf.concepts import PROMPT, noun_chunks, read_descriptions, read_published_concepts
from regionclip.methods.ralf.published_store import read_published_store, write_published_store
from regionclip.methods.ralf.vocabulary import VARIANCES
from regionclip.modeling.retrieval_augmentation.negatives import read_negative_words, write_negative_words


def sample_words(args: Namespace) -> str:
    """Write the words that vary most."""
    if args.variance not in VARIANCES:
        raise user_error("--variance", " or ".join(VARIANCES), repr(args.variance), "choose one of them")
    make_folder(args.output.parent, f"--output {args.output}")
    classes = _class_names(args.classes)
    words = word_store.read_words(args.words, classes)
    embedder = find_embedder(args)
    kept = word_store.sampled_words(classes, words, embedder, args.variance, args.threshold, args.drop)
    if not kept:
        raise user_error("--threshold", "a variance that some words have", str(args.threshold), "lower it")
    write_json(args.output, {str(number): word for number, word in enumerate(kept)})
    return f"{len(kept)} of {len(words)} words in {args.output}"


def build_store(args: Namespace) -> str:
    """Write the negative words of classes."""
    make_folder(args.output.parent, f"--output {args.output}")
    classes = _class_names(args.classes)
    words = word_store.read_words(args.words, classes)
    store = word_store.build_store(classes, words, find_embedder(args), args.per_class, args.hub_classes)
    write_negative_words(args.output, store)
    return f"{len(store.words)} words for {len(classes)} classes, {store.clip}, in {args.output}"


def import_store(args: Namespace) -> str:
    """Convert a published file of negatives."""
    names = _class_names(args.classes) if args.classes else ()
    store = read_published_store(args.published, names, args.architecture)
    write_negative_words(args.output, store)
    return f"{len(store.words)} words for {len(store.names)} classes in {args.output}"


def export_store(args: Namespace) -> str:
    """Write a store as a published file."""
    store = read_negative_words(args.store)
    write_published_store(args.output, store)
    return f"{len(store.names)} classes in {args.output}"


def export_checkpoint(args: Namespace) -> str:
    """Write a checkpoint of DetPro under the published keys."""
    about = published_state, "roi_head.bg_embedding.weight", "DetPro"
    number = write_published(args.checkpoint, args.output, *about, trust_pickle=args.trust_pickle)
    return f"{number} entries in {args.output}"


def write_prompts(args: Namespace) -> str:
    """Write a question about each word."""
    words = word_store.read_words(args.words, ())
    with atomic_write(args.output) as file:
        file.write("".join(PROMPT.format(word) + "\n" for word in words).encode())
    return f"{len(words)} questions in {args.output}"


def build_concepts(args: Namespace) -> str:
    """Embed concepts."""
    if bool(args.descriptions) == bool(args.words):
        actual = "both" if args.words else "neither"
        raise user_error(
            "--descriptions and --words", "one of them", actual, "see regionclip ralf build-concepts --help"
        )
    if args.descriptions:
        concepts = noun_chunks(read_descriptions(args.descriptions), _parser(args.parser))
    else:
        concepts = word_store.read_words(args.words, ())
    if not concepts:
        raise user_error(f"--descriptions {args.descriptions}", "nouns", "none", "describe the words in sentences")
    Vocabulary.from_names(concepts, find_embedder(args), templates=args.templates).save(args.output)
    return f"{len(concepts)} concepts in {args.output}"


def _parser(name: str) -> Parser:
    if name not in ("embedded", "spacy"):
        raise user_error("--parser", "embedded or spacy", repr(name), "choose one of them")
    return spacy_parser() if name == "spacy" else parse


def import_concepts(args: Namespace) -> str:
    """Convert a published file of noun chunks."""
    if args.output.suffix != ".pth":
        raise user_error(f"{args.output}", "a name that ends in .pth", args.output.suffix or "none", "rename it")
    features = read_published_concepts(args.published)
    with atomic_write(args.output) as file:
        torch.save(features, file)
    return f"{len(features)} concepts in {args.output}"


def train_augmenter(args: Namespace) -> str:
    """Train the augmenter."""
    chosen = RegionFilter(args.min_objectness, args.min_side, args.per_image)
    names = ("epochs", "images_per_batch", "learning_rate", "weight_class", "weight_region", "held_out", "seed")
    settings = AugmenterSettings(
        **{name: getattr(args, name) for name in names}, concepts=args.per_region, regions=chosen
    )
    device = require_device(args.device)
    with own_folder(args.output, f"--output {args.output}"):
        regions = read_regions(FeatureFolder(args.regions), chosen)
        dim = regions.embeddings.shape[1]
        concepts, classes = (load_concepts(getattr(args, name), dim, f"--{name}") for name in ("concepts", "classes"))
        training = AugmenterTraining(regions, concepts, classes, settings, args.output, device)
        metrics = training.run()
    print(json.dumps(metrics))
    return f"{training.steps} steps on {len(regions.embeddings)} regions, weights in {args.output / WEIGHTS_FILE}"


def _class_names(text: str) -> list[str]:
    names = parse_names(text, synonyms=False)
    if not names:
        raise user_error("--classes", "class names", repr(text), "name a class list, a file, or names with commas")
    return names
