#!/usr/bin/env python3
"""Embed the concepts of INPUT_DIR/concepts.txt, one per line: means over 81 prompts, not normalized."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import torch

from regionclip.clip.class_name_files import names_alone, read_class_names
from regionclip.clip.vocabulary import Vocabulary
from regionclip.config.loading import load_config
from regionclip.config.resolve import clip_architecture
from regionclip.engine.command import DONE, choose_device, detector_argument_parser, log_to_console, run_command
from regionclip.errors import user_error
from regionclip.files import atomic_write, read_text, resolve_path
from regionclip.inference.text_encoder import load_embedder

logger = logging.getLogger("regionclip.concepts")


def read_concepts(path: Path) -> list[str]:
    """Return the concepts of a text file, one per line as upstream reads them; blank lines are skipped.

    Raises:
        UserError: missing or empty file, no UTF-8 text, or synonyms, which are not supported here.
    """
    if not path.is_file():
        fix = "write it, or set INPUT_DIR"
        raise user_error(str(path), "a text file with a concept on each line", "no such file", fix)
    if not read_text(path, "concepts").strip():
        raise user_error(str(path), "a concept on each line", "none", "write some")
    return names_alone(read_class_names(path), str(path))


def extract(args: argparse.Namespace) -> int:
    """Write OUTPUT_DIR/concept_embeds.pth, float32 [N, D] as upstream, and a safetensors file with names."""
    cfg = load_config(args.config_file, args.opts)
    names = read_concepts(resolve_path(cfg.INPUT_DIR) / "concepts.txt")
    # Only the text encoder is built: the config's detector, data and embeddings are not used.
    device = choose_device(cfg.MODEL.DEVICE, args.num_gpus)
    embedder = load_embedder(clip_architecture(cfg), cfg.MODEL.WEIGHTS, device, trust_pickle=args.trust_pickle)
    concepts = Vocabulary.from_concepts(names, embedder)
    output = Path(cfg.OUTPUT_DIR) / "concept_embeds.pth"
    with atomic_write(output) as file:
        torch.save(concepts.embeddings, file)
    concepts.save(output.with_suffix(".safetensors"))
    logger.info("Done: %d concepts x %d in %s", *concepts.embeddings.shape, output)
    return DONE


if __name__ == "__main__":
    arguments = detector_argument_parser(str(__doc__)).parse_args()
    log_to_console()
    run_command(lambda: extract(arguments))
