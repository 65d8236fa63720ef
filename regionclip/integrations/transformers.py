"""The interface of transformers' `pipeline("zero-shot-object-detection")`, without transformers.

For example:

    import regionclip

    detect = regionclip.pipeline("zero-shot-object-detection", model="clip_rn50")
    detect("street.jpg", candidate_labels=["car", "traffic cone"], threshold=0.2)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from regionclip.errors import user_error
from regionclip.predictor import RegionCLIP

TASK = "zero-shot-object-detection"


class ZeroShotObjectDetectionPipeline:
    """Detects objects by class names."""

    def __init__(self, detector: RegionCLIP) -> None:
        """Use a detector."""
        self.detector = detector

    def __call__(
        self,
        image: Any,
        candidate_labels: str | Sequence[str] | None = None,
        *,
        threshold: float = 0.1,
        top_k: int | None = None,
    ) -> list[Any]:
        """Return the detections of an image, or a list of them for several.

        Args:
            image: as for `RegionCLIP.set_image`; a mapping with `image` and `candidate_labels`; or a list of either.
            candidate_labels: class names, or a text with commas.
            threshold: minimum score.
            top_k: maximum number of detections of an image.

        Returns:
            Of each image a list of `{"score": ..., "label": ..., "box": {"xmin", "ymin", "xmax", "ymax"}}`, best first,
            boxes in whole pixels.

        Raises:
            UserError: no class names, or an invalid image.
        """
        if isinstance(image, list | tuple):
            return [self(each, candidate_labels, threshold=threshold, top_k=top_k) for each in image]
        if isinstance(image, Mapping):
            names = image.get("candidate_labels", candidate_labels)
            return self(image["image"], names, threshold=threshold, top_k=top_k)
        if not candidate_labels:
            raise user_error("candidate_labels", "class names", "none", 'give some, such as ["cat", "dog"]')
        listed = candidate_labels.split(",") if isinstance(candidate_labels, str) else candidate_labels
        self.detector.set_vocabulary([name.strip() for name in listed])
        self.detector.set_image(image)
        found = self.detector.predict(threshold=threshold, topk=top_k)
        return [
            {
                "score": float(score),
                "label": name,
                "box": dict(zip(("xmin", "ymin", "xmax", "ymax"), (round(float(edge)) for edge in box), strict=True)),
            }
            for box, score, name in found
        ]


def pipeline(
    task: str = TASK, model: str | Path | RegionCLIP = "clip_rn50", **options: Any
) -> ZeroShotObjectDetectionPipeline:
    """Return a pipeline of a detector, or of its name with the options of `RegionCLIP.from_pretrained`.

    Raises:
        UserError: another task, or an unknown detector.
    """
    if task != TASK:
        raise user_error("task", TASK, repr(task), "name this one")
    return ZeroShotObjectDetectionPipeline(
        model if isinstance(model, RegionCLIP) else RegionCLIP.from_pretrained(model, **options)
    )
