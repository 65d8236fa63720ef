"""Weights: reading files safely, recognising whose they are, and loading them with a report."""

from regionclip.engine.checkpoint.checkpointer import DetectorCheckpointer
from regionclip.engine.checkpoint.layouts import rename_for_model, rename_proposer
from regionclip.engine.checkpoint.loading import LoadReport, load_weights
from regionclip.engine.checkpoint.reading import Checkpoint, read_checkpoint

__all__ = [
    "Checkpoint",
    "DetectorCheckpointer",
    "LoadReport",
    "load_weights",
    "read_checkpoint",
    "rename_for_model",
    "rename_proposer",
]
