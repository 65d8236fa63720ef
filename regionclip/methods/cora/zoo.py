"""CORA's published detectors and files."""

from __future__ import annotations

MODELS, FILES = (), ()
