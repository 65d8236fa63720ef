#!/usr/bin/env python3
"""Build a concept pool from captions: nouns and noun phrases, their frequencies and embeddings."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from regionclip.clip.architectures import architecture_from_depth, get_architecture
from regionclip.clip.vocabulary import Vocabulary
from regionclip.data.image_text.nouns import parse, spacy_parser
from regionclip.data.image_text.opening import FACTORIES, open_pairs
from regionclip.engine.command import DONE, log_to_console, run_command
from regionclip.engine.concept_pool import count_concepts, read_concept_names, write_names
from regionclip.errors import user_error
from regionclip.inference.text_encoder import load_embedder


def parse_arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--captions", help="file or folder of image-text pairs; a+b joins several")
    parser.add_argument("--format", default="COCOCaptions", choices=FACTORIES, help="of --captions")
    parser.add_argument("--names", help="text file of concepts to embed instead of those in captions")
    parser.add_argument("--parser", default="embedded", choices=["embedded", "spacy"], help="finds the nouns")
    parser.add_argument("--min-count", type=int, default=5, help="captions that a concept has to come in")
    parser.add_argument("--weights", default="", help="CLIP checkpoint with the text encoder; none writes names only")
    parser.add_argument("--depth", type=int, default=50, help="of the CLIP model: 50, 101 or 200 (RN50x4)")
    parser.add_argument("--architecture", default="", help="CLIP size by name or open_clip JSON file, for --depth")
    parser.add_argument(
        "--output", required=True, help="file to write, ending in .safetensors; names go to a .txt next to it"
    )
    parser.add_argument("--trust-pickle", action="store_true", help="read checkpoints that can run code")
    return parser.parse_args()


def build() -> int:
    """Run the command, and return the exit code."""
    args = parse_arguments()
    output = Path(args.output)
    if output.suffix != ".safetensors" or bool(args.captions) == bool(args.names):
        actual = f"--output {output}, --captions {args.captions}, --names {args.names}"
        raise user_error("arguments", "--output X.safetensors and one of --captions and --names", actual, "see --help")
    counts: dict[str, int] = {}
    if args.names:
        names = read_concept_names(args.names)
    else:
        found = count_concepts(
            open_pairs(args.captions, args.format), parse if args.parser == "embedded" else spacy_parser()
        )
        counts, names = found.concepts, found.at_least(args.min_count)
        captions, mentions = found.coverage(names)
        print(f"{found.captions} captions, {len(counts)} concepts, {len(names)} in at least {args.min_count} captions")
        print(f"they cover {captions:.1%} of the captions and {mentions:.1%} of the mentions")
        if not names:
            raise user_error("--min-count", "a count that some concept reaches", str(args.min_count), "lower it")
    architecture = get_architecture(args.architecture) if args.architecture else architecture_from_depth(args.depth)
    pool = None
    if args.weights:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        embedder = load_embedder(architecture, args.weights, device, trust_pickle=args.trust_pickle)
        pool = Vocabulary.from_concepts(names, embedder)
    write_names(output.with_suffix(".txt"), names, counts)
    print(f"Done: {len(names)} names in {output.with_suffix('.txt')}")
    if pool is not None:
        print(f"Done: {len(pool)} x {pool.dim} embeddings in {pool.save(output)}")
    return DONE


if __name__ == "__main__":
    log_to_console()
    run_command(build)
