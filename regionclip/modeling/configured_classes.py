"""Class embeddings that a config names."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode
from torch import Tensor, nn
from torch.nn import functional as F

from regionclip.clip.class_embeddings import load_class_embeddings
from regionclip.data.class_lists import names_of_embeddings


class ConfiguredClasses(nn.Module):
    """The classes of an embedding file, as a `Classifier`; they are no weights."""

    embeddings: Tensor
    """Unit vectors [K, D]."""

    def __init__(self, embeddings: Tensor, names: Sequence[str] = ()) -> None:
        """Store embeddings [K, D] and, if known, K names."""
        super().__init__()
        self.register_buffer("embeddings", F.normalize(embeddings, dim=1), persistent=False)
        self.names = tuple(names)

    @property
    def classes(self) -> int:
        """Number K of classes."""
        return len(self.embeddings)

    def forward(self, unit_regions: Tensor) -> Tensor:
        """Return cosines [R, K] of unit region embeddings [R, D]."""
        return unit_regions @ self.embeddings.T


def build_classes(cfg: CfgNode, key: str, rows: int | None = None) -> ConfiguredClasses | None:
    """Return the classes of the file that MODEL.CLIP.`key` names; None if it names none.

    Raises:
        UserError: unreadable file, or one of another shape.
    """
    path = cfg.MODEL.CLIP[key]
    if not path:
        return None
    embeddings = load_class_embeddings(path, rows=rows, dim=cfg.MODEL.CLIP.TEXT_EMB_DIM, key=f"MODEL.CLIP.{key}")
    return ConfiguredClasses(embeddings, names_of_embeddings(path))
