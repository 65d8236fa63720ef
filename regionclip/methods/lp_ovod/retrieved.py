"""Retrieved regions as a dataset in COCO's format, for linear probing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from regionclip.data.region_features.formats import Features
from regionclip.methods.lp_ovod.retrieval import Retrieved, image_and_offset


@dataclass(frozen=True)
class StoredImage:
    """An image with stored regions."""

    name: str
    """In the store of features."""
    image_id: Any
    width: int
    height: int
    count: int
    """Number of its regions."""
    file_name: str = ""
    """In the dataset; empty if the same."""


def retrieved_dataset(
    found: Sequence[Retrieved],
    category_ids: Sequence[Any],
    categories: Sequence[Mapping[str, Any]],
    images: Sequence[StoredImage],
    features: Mapping[str, Features],
) -> dict[str, Any]:
    """Return a dataset in COCO's format whose annotations are retrieved regions.

    Annotations have `score`, the objectness, and `cosine`, as published; images are those that have some, by first use.

    Args:
        found: of K classes.
        category_ids: K of them.
        categories: all categories of the dataset.
        images: all images, in the order of the rows.
        features: by image name.
    """
    counts = [image.count for image in images]
    annotations: list[dict[str, Any]] = []
    used: dict[int, StoredImage] = {}
    for category, best in zip(category_ids, found, strict=True):
        places = image_and_offset(best.rows, counts)
        for (place, offset), cosine in zip(places, best.cosines.tolist(), strict=True):
            image = used.setdefault(place, images[place])
            content = features[image.name]
            x1, y1, x2, y2 = content["boxes"][offset].tolist()
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image.image_id,
                    "category_id": category,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                    "segmentation": [],
                    "score": float(content["objectness"][offset]) if "objectness" in content else 1.0,
                    "cosine": cosine,
                }
            )
    return {
        "images": [
            {
                "id": image.image_id,
                "file_name": image.file_name or image.name,
                "width": image.width,
                "height": image.height,
            }
            for image in used.values()
        ],
        "annotations": annotations,
        "categories": list(categories),
    }
