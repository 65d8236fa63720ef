#!/usr/bin/env python3
"""Embed the concepts of INPUT_DIR/concepts.txt, one on each line: means over 81 prompts, not normalised."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import torch

from regionclip.config import load_config
from regionclip.config.checks import clip_architecture
from regionclip.engine.command import DONE, choose_device, detector_argument_parser, log_to_console, run_command
from regionclip.engine.concept_pool import embed_concepts, load_text_encoder, read_concepts, write_embeddings
from regionclip.files import atomic_write, resolve_path

logger = logging.getLogger("regionclip.concepts")


def extract(args: argparse.Namespace) -> int:
    """Write OUTPUT_DIR/concept_embeds.pth, float32 [N, D] as upstream, and the same with names as safetensors."""
    cfg = load_config(args.config_file, args.opts)
    names = read_concepts(resolve_path(cfg.INPUT_DIR) / "concepts.txt")
    architecture = clip_architecture(cfg)
    # Only the text tower is built: the config's detector, data and embeddings are not looked at.
    encoder = load_text_encoder(architecture, cfg.MODEL.WEIGHTS, trust_pickle=args.trust_pickle)
    device = torch.device(choose_device(cfg.MODEL.DEVICE, args.num_gpus))
    embeddings = embed_concepts(encoder, names, device)
    output = Path(cfg.OUTPUT_DIR) / "concept_embeds.pth"
    with atomic_write(output) as file:
        torch.save(embeddings, file)
    write_embeddings(output.with_suffix(".safetensors"), names, embeddings, architecture.name)
    logger.info("Done: %d concepts x %d in %s", *embeddings.shape, output)
    return DONE


if __name__ == "__main__":
    arguments = detector_argument_parser(str(__doc__)).parse_args()
    log_to_console()
    run_command(lambda: extract(arguments))
