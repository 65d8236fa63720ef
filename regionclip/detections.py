"""Detections in an image: one structure shared by all tools."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from regionclip.errors import user_error

if TYPE_CHECKING:
    import supervision
    from detectron2.structures import Instances
    from PIL.Image import Image


class Detection(NamedTuple):
    """One detected object."""

    box: NDArray[np.float32]
    """[4], x1 y1 x2 y2 in pixels of the original image."""
    score: float
    name: str
    """Its class name."""


NO_TRACK = -1
"""Track id of a detection without a track, as in supervision."""

_SHAPES = {
    "boxes": ("N", "4"),
    "scores": ("N",),
    "class_ids": ("N",),
    "top_class_ids": ("N", "k"),
    "top_scores": ("N", "k"),
    "embeddings": ("N", "D"),
    "track_ids": ("N",),
}
"""Fields with a row for each box, and their shapes."""


@dataclass(frozen=True, eq=False)
class Detections:
    """N boxes with class names and scores, best first; user boxes keep their order.

    An index returns a `Detection`; a slice, a mask [N] or row numbers return `Detections`. For example:

        confident = detections[detections.scores > 0.5].of("cat", "dog")
        for box, score, name in confident:
            print(name, score, box)

    Raises:
        UserError: an array of another shape, or a class id that is not in the vocabulary.
    """

    boxes: NDArray[np.float32]
    """[N, 4], x1 y1 x2 y2 in pixels of the original image."""
    scores: NDArray[np.float32]
    """[N]."""
    class_ids: NDArray[np.int64]
    """[N], indices into `vocabulary`."""
    vocabulary: tuple[str, ...]
    """Class names of the vocabulary."""
    image_size: tuple[int, int]
    """(height, width) of the original image."""
    top_class_ids: NDArray[np.int64]
    """[N, k], the k most probable classes of each box; k is 0 unless requested."""
    top_scores: NDArray[np.float32]
    """[N, k], their probabilities."""
    embeddings: NDArray[np.float32] | None = None
    """[N, D], not normalized, if requested."""
    track_ids: NDArray[np.int64] | None = None
    """[N], the same for one object in all frames of a video, and `NO_TRACK` for none; None if not tracked."""
    image: NDArray[np.uint8] | None = field(default=None, repr=False)
    """The image [H, W, 3] in RGB, for `draw`."""
    warnings: tuple[str, ...] = ()
    """Why they may be wrong."""

    def __post_init__(self) -> None:
        """Raise a `UserError` for arrays that do not fit together."""
        sizes: dict[str, int] = {}
        for name, letters in _SHAPES.items():
            value = getattr(self, name)
            if value is not None and not _fits(np.shape(value), letters, sizes):
                known = "".join(f", {letter} = {size}" for letter, size in sizes.items() if letter in letters)
                expected, actual = f"[{', '.join(letters)}]{known}", str(list(np.shape(value)))
                raise user_error(f"detections: {name}", expected, actual, "give a row for each box")
        for name in ("class_ids", "top_class_ids"):
            ids = np.asarray(getattr(self, name))
            if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < len(self.vocabulary):
                expected, actual = f"indices into {len(self.vocabulary)} class names", f"{ids.min()} to {ids.max()}"
                raise user_error(f"detections: {name}", expected, actual, "give the names of all classes")

    def __len__(self) -> int:
        """Return the number of boxes N."""
        return len(self.boxes)

    @overload
    def __getitem__(self, rows: int | np.integer[Any]) -> Detection: ...

    @overload
    def __getitem__(self, rows: slice | Sequence[int] | Sequence[bool] | NDArray[Any]) -> Detections: ...

    def __getitem__(
        self, rows: int | np.integer[Any] | slice | Sequence[int] | Sequence[bool] | NDArray[Any]
    ) -> Detection | Detections:
        """Return the `Detection` of a row, or the `Detections` of a slice, of a mask [N], or of row numbers."""
        if isinstance(rows, int | np.integer):
            return Detection(self.boxes[rows], float(self.scores[rows]), self.vocabulary[self.class_ids[rows]])
        kept = rows if isinstance(rows, slice) else np.asarray(rows)
        if not isinstance(kept, slice) and not kept.size:
            kept = kept.astype(np.int64)  # an empty list has no dtype of its own
        return self._with_rows({name: value[kept] for name, value in self._rows().items()})

    def __iter__(self) -> Iterator[Detection]:
        """Yield box, score and class name of each row."""
        return (self[row] for row in range(len(self)))

    def of(self, *names: str) -> Detections:
        """Return the detections of some classes, by name; raises `UserError` for a name outside the vocabulary."""
        unknown = [name for name in names if name not in self.vocabulary]
        if unknown:
            expected = f"one of the {len(self.vocabulary)} class names"
            raise user_error("class name", expected, repr(unknown[0]), "write it as in the vocabulary")
        return self[np.isin(self.class_ids, [self.vocabulary.index(name) for name in names])]

    @classmethod
    def merge(cls, parts: Sequence[Detections]) -> Detections:
        """Return the detections of several runs on one image, best first; boxes are not compared.

        The vocabulary has the class names of all parts. The most probable classes are kept as far as all parts have
        them, embeddings if all parts have some of one width.

        Raises:
            UserError: no parts, or parts of images of different sizes.
        """
        sizes = {part.image_size for part in parts}
        if len(sizes) != 1:
            fix = "merge detections of one image"
            raise user_error("detections to merge", "one image size", str(sorted(sizes)) if sizes else "none", fix)
        names = tuple(dict.fromkeys(name for part in parts for name in part.vocabulary))
        place = {name: number for number, name in enumerate(names)}
        ranked = min(part.top_class_ids.shape[1] for part in parts)
        moved = [part._renumbered([place[name] for name in part.vocabulary], ranked) for part in parts]
        shared = [name for name in _SHAPES if all(name in rows for rows in moved)]
        if "embeddings" in shared and len({rows["embeddings"].shape[1] for rows in moved}) > 1:
            shared.remove("embeddings")
        joined = {name: np.concatenate([rows[name] for rows in moved]) for name in shared}
        order = np.argsort(-joined["scores"], kind="stable")
        image = next((part.image for part in parts if part.image is not None), None)
        warnings = tuple(dict.fromkeys(warning for part in parts for warning in part.warnings))
        base = replace(parts[0][:0], vocabulary=names, image=image, warnings=warnings)
        return base._with_rows({name: rows[order] for name, rows in joined.items()})

    def _rows(self) -> dict[str, NDArray[Any]]:
        return {name: value for name in _SHAPES if (value := getattr(self, name)) is not None}

    def _with_rows(self, rows: dict[str, NDArray[Any]]) -> Detections:
        absent: dict[str, Any] = dict.fromkeys(_SHAPES)
        return replace(self, **(absent | rows))

    def _renumbered(self, place: Sequence[int], ranked: int) -> dict[str, NDArray[Any]]:
        """Return the rows with other class ids, `place` by own id, and `ranked` most probable classes."""
        new = np.array(place, np.int64)
        rows = self._rows() | {"top_scores": self.top_scores[:, :ranked]}
        return rows | {"class_ids": new[self.class_ids], "top_class_ids": new[self.top_class_ids[:, :ranked]]}

    @property
    def names(self) -> list[str]:
        """The class name of each box."""
        return [self.vocabulary[i] for i in self.class_ids]

    def top_words(self, row: int) -> list[tuple[str, float]]:
        """Return the most probable class names of a box with their probabilities, as many as requested."""
        pairs = zip(self.top_class_ids[row], self.top_scores[row], strict=True)
        return [(self.vocabulary[i], float(score)) for i, score in pairs]

    def to_coco(self, image_id: int = 0, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """Return results in COCO's format, one dictionary per box.

        Args:
            image_id: id of the image.
            category_ids: ids of the vocabulary's classes; 1, 2, ... by default.
        """
        ids = range(1, len(self.vocabulary) + 1) if category_ids is None else category_ids
        corners = self.boxes.astype(float)
        boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1).tolist()
        return [
            {"image_id": _plain(image_id), "category_id": _plain(ids[class_id]), "bbox": box, "score": score}
            for box, score, class_id in zip(boxes, self.scores.tolist(), self.class_ids.tolist(), strict=True)
        ]

    def to_supervision(self) -> supervision.Detections:
        """Convert to the supervision library, with class names under `class_name` and track ids."""
        import supervision

        return supervision.Detections(
            xyxy=self.boxes,
            confidence=self.scores,
            class_id=self.class_ids,
            tracker_id=self.track_ids,
            data={"class_name": np.array(self.names, dtype=object)},
        )

    def to_instances(self) -> Instances:
        """Convert to Detectron2's Instances: `pred_boxes`, `scores`, `pred_classes`."""
        import torch
        from detectron2.structures import Boxes, Instances

        return Instances(
            self.image_size,
            pred_boxes=Boxes(torch.from_numpy(self.boxes.copy())),
            scores=torch.from_numpy(self.scores.copy()),
            pred_classes=torch.from_numpy(self.class_ids.copy()),
        )

    def draw(self, image: NDArray[np.uint8] | Image | None = None) -> Image:
        """Return the image with drawn boxes and class names.

        Args:
            image: the original image, as for `RegionCLIP.set_image`; by default the one used for detection.

        Raises:
            UserError: an image of another size.
        """
        from regionclip.data.images import to_rgb_pixels
        from regionclip.drawing import draw_detections

        pixels = self.image if image is None else to_rgb_pixels(image)
        if pixels is None or pixels.shape[:2] != self.image_size:
            height, width = self.image_size
            actual = "none" if pixels is None else f"{pixels.shape[1]} x {pixels.shape[0]}"
            raise user_error("image to draw on", f"{width} x {height} pixels", actual, "give the original image")
        return draw_detections(pixels, self)


def _fits(shape: tuple[int, ...], letters: tuple[str, ...], sizes: dict[str, int]) -> bool:
    """Return whether a shape is that of the letters; `sizes` gets the size of each letter that is new."""
    if len(shape) != len(letters):
        return False
    pairs = zip(shape, letters, strict=True)
    return all(size == (int(letter) if letter.isdigit() else sizes.setdefault(letter, size)) for size, letter in pairs)


def _plain(number: Any) -> Any:
    """Return a NumPy number as Python's own type, for JSON; anything else unchanged."""
    return number.item() if isinstance(number, np.generic) else number
