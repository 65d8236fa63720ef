"""Transfer of registered datasets to other processes."""

from __future__ import annotations

import logging
import pickle
from dataclasses import dataclass
from typing import Any

import cloudpickle
from detectron2.data import DatasetCatalog, MetadataCatalog

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Registrations:
    """All registered datasets, in picklable form."""

    functions: dict[str, bytes]
    metadata: dict[str, dict[str, Any]]

    @classmethod
    def of_this_process(cls) -> Registrations:
        """Return the registrations of this process; a function that cannot be pickled is skipped with a warning."""
        functions = {}
        for name in DatasetCatalog.list():
            try:
                functions[name] = cloudpickle.dumps(DatasetCatalog[name])
            except Exception as error:  # pickling can raise anything, depending on the function's contents
                logger.warning("dataset %s stays unknown to the other processes: %s", name, error)
        return cls(functions, {name: MetadataCatalog.get(name).as_dict() for name in MetadataCatalog.list()})

    def install(self) -> None:
        """Register them in this process, replacing datasets of the same names."""
        for name, function in self.functions.items():
            DatasetCatalog.pop(name, None)
            DatasetCatalog.register(name, pickle.loads(function))
        for name, metadata in self.metadata.items():
            MetadataCatalog.pop(name, None)
            MetadataCatalog.get(name).set(**metadata)
