"""Weights: reading files safely, recognising whose they are, and loading them with a report."""

from regionclip.engine.checkpoint.layouts import rename_for_model, rename_proposer
from regionclip.engine.checkpoint.loading import LoadReport, load_weights
from regionclip.engine.checkpoint.reading import Checkpoint, read_checkpoint
from regionclip.engine.checkpoint.run import RunCheckpoints

__all__ = [
    "Checkpoint",
    "LoadReport",
    "RunCheckpoints",
    "load_weights",
    "read_checkpoint",
    "rename_for_model",
    "rename_proposer",
]
