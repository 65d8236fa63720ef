"""The detector of commands that name none: the best for photos on this machine, or the embedded one."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from regionclip.console import can_ask, confirmed
from regionclip.hub.downloads import is_offline
from regionclip.hub.fetching import download_summary, fetch_all, one_error, place_of
from regionclip.hub.zoo import EMBEDDED, MODELS, OFFERED, PHOTO_MODELS, files_of, named_default
from regionclip.published import PublishedModel

DRAWINGS_ONLY = "the embedded detector knows emoji drawings only"

HOW_TO_CHANGE = f"for photos: regionclip detect --model {OFFERED}, or see regionclip models"


@dataclass(frozen=True)
class DefaultModel:
    """A detector that was chosen because none was named."""

    name: str
    reason: str
    """Half a sentence for the user."""


def is_here(model: PublishedModel) -> bool:
    """Return whether all files that a detector needs are on this machine."""
    return all(place_of(file) is not None for file in files_of(model))


def default_model() -> DefaultModel:
    """Return the detector of $REGIONCLIP_MODEL, else the best for photos on this machine, else the embedded one."""
    if own := named_default():
        return DefaultModel(own, "REGIONCLIP_MODEL")
    for model in PHOTO_MODELS:
        if is_here(model):
            return DefaultModel(model.name, "the best detector of photos on this machine")
    return DefaultModel(EMBEDDED, f"{DRAWINGS_ONLY}; {HOW_TO_CHANGE}")


def default_or_offer(*, agreed: bool) -> DefaultModel:
    """Return `default_model`, after the offer to download a detector of photos where there is none.

    Without a terminal, or offline, nothing is offered. A download that fails is reported, and the embedded detector
    serves.

    Args:
        agreed: `--yes`: download without asking.
    """
    chosen = default_model()
    if chosen.name != EMBEDDED or named_default() or is_offline() or not (can_ask() or agreed):
        return chosen
    files = [file for file in files_of(MODELS[OFFERED]) if place_of(file) is None]
    if not agreed:
        print(f"No detector of photos is on this machine, and {DRAWINGS_ONLY}.", file=sys.stderr)
        if not confirmed(f"Download {OFFERED}: {download_summary(files)}?"):
            return chosen
    if errors := fetch_all(files):
        print(f"error: {one_error(errors)}", file=sys.stderr)
        return chosen
    return DefaultModel(OFFERED, "just downloaded")
