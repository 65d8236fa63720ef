"""RALF's published detectors and files."""

from __future__ import annotations

from regionclip.published import PublishedFile, PublishedModel

MODELS: tuple[PublishedModel, ...] = ()

FILES: tuple[PublishedFile, ...] = ()
