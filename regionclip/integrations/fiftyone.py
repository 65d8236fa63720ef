"""Model for FiftyOne's `apply_model` (`pip install fiftyone`).

For example:

    import fiftyone
    from regionclip import RegionCLIP
    from regionclip.integrations.fiftyone import DetectorModel

    detector = RegionCLIP.from_pretrained("clip_rn50")
    detector.set_vocabulary(["cat", "traffic cone"])
    dataset = fiftyone.Dataset.from_images_dir("photos")
    dataset.apply_model(DetectorModel(detector), label_field="regionclip")
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from regionclip.errors import user_error
from regionclip.predictor import RegionCLIP

try:
    from fiftyone.core.labels import Detection, Detections
    from fiftyone.core.models import Model
except ImportError as error:
    raise user_error("FiftyOne", "the library fiftyone", str(error), "pip install fiftyone") from error


class DetectorModel(Model):
    """A detector with a vocabulary, as FiftyOne applies models to the images of a dataset."""

    media_type = "image"
    ragged_batches = True
    """Images of a batch may differ in size."""
    transforms = None
    preprocess = False

    def __init__(self, detector: RegionCLIP, threshold: float | None = None) -> None:
        """Use a detector whose vocabulary is set; without a threshold, that of its detections."""
        self.detector = detector
        self.threshold = detector.usual_threshold if threshold is None else threshold

    def predict(self, arg: NDArray[np.uint8]) -> Any:
        """Return FiftyOne's `Detections` of an image [H, W, 3] in RGB; boxes are fractions x y width height of it."""
        self.detector.set_image(arg)
        found = self.detector.predict(threshold=self.threshold)
        height, width = found.image_size
        corners = found.boxes / np.array([width, height, width, height], np.float32)
        boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1).tolist()
        return Detections(
            detections=[
                Detection(label=name, bounding_box=box, confidence=score)
                for name, box, score in zip(found.names, boxes, found.scores.tolist(), strict=True)
            ]
        )
