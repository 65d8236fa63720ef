"""A page that shows the retrieved regions of each class name, in one file."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from regionclip.data.images import UnreadableImageError, read_image

SIDE = 112
"""Longest side of a shown crop in pixels."""

MARGIN = 0.15
"""Context around a box, in parts of its sides."""

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #222 }
.crops { display: flex; flex-wrap: wrap; gap: .5rem } figure { margin: 0; text-align: center; font-size: 12px }
img { border-radius: 4px; display: block; margin: auto } .out { opacity: .25; text-decoration: line-through }
h2 { margin-bottom: .3rem } p { color: #555 }
"""


def retrieval_page(content: Mapping[str, Any], images: Path, excluded: Sequence[int] = ()) -> str:
    """Return HTML with the crops of each category, the most similar first.

    Args:
        content: from `retrieved_dataset`, with all annotations.
        images: folder of its images.
        excluded: ids of annotations that are struck out.
    """
    crops = _crops(content, images)
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>Retrieved regions</title>",
        f"<style>{_STYLE}</style><h1>What each word has retrieved</h1>",
        "<p>The regions whose CLIP embeddings are most similar to that of the word. The detector learns from these "
        "boxes: strike out wrong ones with --exclude and their numbers, such as --exclude 3,17, and run it again.",
    ]
    for category in content["categories"]:
        own = [entry for entry in content["annotations"] if entry["category_id"] == category["id"]]
        parts.append(f"<h2>{html.escape(category['name'])}</h2><p>{len(own)} regions</p><div class=crops>")
        parts += [_figure(entry, crops.get(entry["id"]), entry["id"] in excluded) for entry in own]
        parts.append("</div>")
    return "\n".join([*parts, "</html>", ""])


def _figure(entry: Mapping[str, Any], crop: str | None, is_excluded: bool) -> str:
    shown = f'<img src="data:image/jpeg;base64,{crop}" alt="">' if crop else "(unreadable)"
    kind = " class=out" if is_excluded else ""
    return f"<figure{kind}>{shown}<figcaption>{entry['id']} &middot; {entry['cosine']:.3f}</figcaption></figure>"


def _crops(content: Mapping[str, Any], images: Path) -> dict[int, str]:
    """Return JPEG crops in base64 by annotation id; each image is read once."""
    files = {image["id"]: image["file_name"] for image in content["images"]}
    of_image: dict[Any, list[Mapping[str, Any]]] = {}
    for entry in content["annotations"]:
        of_image.setdefault(entry["image_id"], []).append(entry)
    crops: dict[int, str] = {}
    for image_id, entries in of_image.items():
        try:
            pixels = Image.fromarray(read_image(images / files[image_id], "RGB"))
        except UnreadableImageError:
            continue
        crops |= {entry["id"]: _jpeg(pixels, entry["bbox"]) for entry in entries}
    return crops


def _jpeg(image: Image.Image, box: Sequence[float]) -> str:
    x, y, width, height = box
    left, top = max(x - MARGIN * width, 0), max(y - MARGIN * height, 0)
    right, bottom = min(x + (1 + MARGIN) * width, image.width), min(y + (1 + MARGIN) * height, image.height)
    crop = image.crop((int(left), int(top), max(int(right), int(left) + 1), max(int(bottom), int(top) + 1)))
    crop.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    crop.save(buffer, "JPEG", quality=85)
    return base64.b64encode(buffer.getvalue()).decode()
