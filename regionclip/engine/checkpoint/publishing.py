"""Writing a checkpoint under the keys of a published system, for its code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from regionclip.engine.checkpoint.layouts.layout import State
from regionclip.engine.checkpoint.reading import read_checkpoint
from regionclip.errors import user_error
from regionclip.files import atomic_write


def write_published(
    checkpoint: str,
    output: Path,
    rename: Callable[[State], dict[str, Tensor]],
    key: str,
    method: str,
    *,
    trust_pickle: bool = False,
) -> int:
    """Write the weights of a checkpoint as MMDetection does, and return their number.

    Args:
        checkpoint: of a training.
        output: file to write.
        rename: returns weights under the published keys.
        key: one of them that identifies the detector.
        method: its name, for messages.
        trust_pickle: allow files that run code.

    Raises:
        UserError: unreadable file, or one of another detector.
    """
    state = rename(read_checkpoint(checkpoint, trust_pickle=trust_pickle).state)
    if key not in state:
        actual = f"keys such as {', '.join(sorted(state)[:3])}"
        raise user_error(checkpoint, f"a detector of {method}", actual, "name a checkpoint of its training")
    with atomic_write(output) as file:
        torch.save({"state_dict": state, "meta": {}}, file)
    return len(state)
