"""The trainer's checkpointer: safe reading, reported loading, atomic saving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from fvcore.common.checkpoint import _IncompatibleKeys
from torch import nn

from regionclip.engine.checkpoint.loading import load_state
from regionclip.engine.checkpoint.reading import read_checkpoint
from regionclip.files import atomic_write


class DetectorCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer on this project's reading and loading."""

    def __init__(self, model: nn.Module, save_dir: str = "", *, trust_pickle: bool = False, **kwargs: Any) -> None:
        """Make a checkpointer; `kwargs` as for Detectron2's."""
        super().__init__(model, save_dir, **kwargs)
        self.trust_pickle = trust_pickle

    def save(self, name: str, **kwargs: Any) -> None:
        """Save model, checkpointables and `kwargs` to `name`.pth; the file appears when it is complete."""
        if not self.save_dir or not self.save_to_disk:
            return
        path = Path(self.save_dir) / f"{name}.pth"
        content = {"model": self.model.state_dict()}
        content.update({key: value.state_dict() for key, value in self.checkpointables.items()})
        with atomic_write(path) as file:
            torch.save({**content, **kwargs}, file)
        self.logger.info("Saved checkpoint to %s", path)
        self.tag_last_checkpoint(path.name)

    def _load_file(self, filename: str) -> dict[str, Any]:
        checkpoint = read_checkpoint(filename, trust_pickle=self.trust_pickle)
        return {"model": checkpoint.state, "path": checkpoint.path, **checkpoint.extra}

    def _load_model(self, checkpoint: dict[str, Any]) -> _IncompatibleKeys:
        report = load_state(self.model, checkpoint["path"], checkpoint.pop("model"))
        self.logger.info("Weights from %s:\n%s", checkpoint["path"], report.table())
        reshaped = [(key, *shapes) for key, shapes in report.reshaped.items()]
        return _IncompatibleKeys(report.missing, sorted(report.unexpected), reshaped)

    def _log_incompatible_keys(self, incompatible: _IncompatibleKeys) -> None:
        """Leave it at the table that was logged while loading."""
