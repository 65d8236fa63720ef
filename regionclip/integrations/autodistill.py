"""Base model of autodistill, which labels images for the training of a small model (`pip install autodistill`).

For example:

    from autodistill.detection import CaptionOntology
    from regionclip.integrations.autodistill import RegionCLIPBaseModel

    base_model = RegionCLIPBaseModel(CaptionOntology({"traffic cone | pylon": "cone", "dog": "dog"}), model="clip_rn50")
    base_model.label("photos", extension=".jpg")
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from regionclip.errors import user_error
from regionclip.predictor import RegionCLIP

try:
    from autodistill.detection import DetectionBaseModel
except ImportError as error:
    raise user_error("autodistill", "the library autodistill", str(error), "pip install autodistill") from error


class RegionCLIPBaseModel(DetectionBaseModel):
    """A detector whose class names are the prompts of an ontology."""

    def __init__(
        self, ontology: Any, model: str | Path | RegionCLIP = "clip_rn50", threshold: float | None = None
    ) -> None:
        """Load a detector and set its vocabulary.

        Args:
            ontology: autodistill's `CaptionOntology`, class names by prompt; `|` separates synonyms in a prompt.
            model: a detector, or its name or folder.
            threshold: minimum score; None takes that of the detector.
        """
        self.detector = model if isinstance(model, RegionCLIP) else RegionCLIP.from_pretrained(model)
        self.threshold = threshold
        self.set_ontology(ontology)

    def set_ontology(self, ontology: Any) -> None:
        """Replace the class names."""
        self.ontology = ontology
        self.detector.set_vocabulary(ontology.prompts())

    def predict(self, input: Any) -> Any:
        """Return supervision's `Detections`, with class ids in the order of the ontology.

        Args:
            input: a file, a PIL image, or an array [H, W, 3] in BGR, as OpenCV and autodistill have it.
        """
        threshold = self.detector.usual_threshold if self.threshold is None else self.threshold
        self.detector.set_image(np.ascontiguousarray(input[:, :, ::-1]) if isinstance(input, np.ndarray) else input)
        return self.detector.predict(threshold=threshold).to_supervision()
