"""Registered datasets on their way to other processes."""

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
    """All registered datasets, in a form that other processes understand."""

    functions: dict[str, bytes]
    metadata: dict[str, dict[str, Any]]

    @classmethod
    def of_this_process(cls) -> Registrations:
        """Return what is registered here; a function that cannot be sent is left out with a warning."""
        functions = {}
        for name in DatasetCatalog.list():
            try:
                functions[name] = cloudpickle.dumps(DatasetCatalog[name])
            except Exception as error:  # whatever the function holds decides what is raised
                logger.warning("dataset %s stays unknown to the other processes: %s", name, error)
        return cls(functions, {name: MetadataCatalog.get(name).as_dict() for name in MetadataCatalog.list()})

    def install(self) -> None:
        """Register them in this process, in the place of what has their names."""
        for name, function in self.functions.items():
            DatasetCatalog.pop(name, None)
            DatasetCatalog.register(name, pickle.loads(function))
        for name, metadata in self.metadata.items():
            MetadataCatalog.pop(name, None)
            MetadataCatalog.get(name).set(**metadata)
