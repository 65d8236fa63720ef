r"""Automatic annotation in CVAT, by its SDK (`pip install cvat-sdk`) and command line.

For example, with the class names as labels of the task:

    cvat-cli task auto-annotate 137 --function-module regionclip.integrations.cvat \
        -p words="str:cat,traffic cone" -p model=str:clip_rn50 -p threshold=float:0.2
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from regionclip.errors import user_error
from regionclip.inference.vocabularies import split_words
from regionclip.predictor import RegionCLIP

if TYPE_CHECKING:
    from PIL import Image


class DetectionFunction:
    """A detector with a vocabulary, as CVAT's automatic annotation calls it."""

    def __init__(self, detector: RegionCLIP, threshold: float | None = None) -> None:
        """Use a detector whose vocabulary is set; without a threshold, that of its detections."""
        try:
            import cvat_sdk.auto_annotation
        except ImportError as error:
            raise user_error("CVAT", "the library cvat-sdk", "not installed", "pip install cvat-sdk") from error
        self._cvat: Any = cvat_sdk.auto_annotation
        self.detector, self.threshold = detector, threshold

    @property
    def spec(self) -> Any:
        """The labels: class names in the order of the vocabulary."""
        names = self.detector.vocabulary.names
        return self._cvat.DetectionFunctionSpec(
            labels=[self._cvat.label_spec(name, number) for number, name in enumerate(names)]
        )

    def detect(self, context: Any, image: Image.Image) -> list[Any]:
        """Return a rectangle for each detection, in pixels of the image.

        Args:
            context: its `conf_threshold`, if it has one, is the minimum score.
            image: of the task.
        """
        wanted = getattr(context, "conf_threshold", None)
        threshold = self.detector.usual_threshold if self.threshold is None else self.threshold
        self.detector.set_image(image)
        found = self.detector.predict(threshold=threshold if wanted is None else wanted)
        numbers = found.class_ids.tolist()
        return [self._cvat.rectangle(number, box) for number, box in zip(numbers, found.boxes.tolist(), strict=True)]


def create(words: str, model: str = "clip_rn50", threshold: float | None = None) -> DetectionFunction:
    """Return the function that `cvat-cli` asks this module for.

    Args:
        words: class names with commas, the labels of the task; `|` separates synonyms.
        model: name or folder of a detector.
        threshold: minimum score.
    """
    detector = RegionCLIP.from_pretrained(model)
    detector.set_vocabulary(split_words(words))
    return DetectionFunction(detector, threshold)
