"""Retrieval among stored regions of the images of an annotation file."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from regionclip.clip.prompts import plain_name
from regionclip.clip.vocabulary import Vocabulary
from regionclip.data.class_lists import names_of_embeddings
from regionclip.data.datasets.annotation_file import Entry, read_annotation_file
from regionclip.data.region_features.formats import Features
from regionclip.data.region_features.index import FeatureFolder
from regionclip.errors import user_error
from regionclip.files import atomic_write, write_json
from regionclip.methods.lp_ovod.cli.page import retrieval_page
from regionclip.methods.lp_ovod.retrieval import retrieve
from regionclip.methods.lp_ovod.retrieved import StoredImage, retrieved_dataset
from regionclip.progress import progress_bar

logger = logging.getLogger(__name__)


def retrieve_file(
    regions: Path,
    embeddings: Path,
    annotations: Path,
    output: Path,
    images: Path | None,
    count: int,
    objectness: float,
    cosine: float,
    device: str = "cpu",
) -> dict[str, Any]:
    """Write the regions that each class retrieves, and return the dataset; arguments are those of the command.

    Raises:
        UserError: embeddings of another width or without names, names that are no categories, no objectness in the
            folder, or a class that retrieves nothing.
    """
    folder = FeatureFolder(regions)
    vocabulary = Vocabulary.from_file(embeddings, names=names_of_embeddings(embeddings))
    if folder.dim is not None and (folder.dim != vocabulary.dim or vocabulary.model not in ("", folder.clip)):
        expected = f"width {folder.dim} of {folder.clip}, as the regions"
        actual = f"width {vocabulary.dim} of {vocabulary.model or 'an unknown CLIP'}"
        raise user_error(f"--embeddings {embeddings}", expected, actual, "embed the names with the same CLIP")
    content = read_annotation_file(annotations, what="COCO's JSON format", fix="name its file", key="categories")
    ids = {plain_name(category["name"]): category["id"] for category in content["categories"]}
    if unknown := [name for name in vocabulary.names if plain_name(name) not in ids]:
        expected = f"categories of {annotations}"
        raise user_error(f"--embeddings {embeddings}", expected, ", ".join(unknown[:5]), "name the novel classes only")
    stored = _stored_images(folder, content["images"])
    read = progress_bar(_features(folder, stored, objectness), unit="image", total=len(stored))
    found = retrieve(read, vocabulary.class_embeddings().to(device), count, objectness, cosine)
    if nothing := [name for name, best in zip(vocabulary.names, found, strict=True) if not len(best.rows)]:
        fix = "lower --min-objectness or --min-cosine"
        raise user_error("retrieval", "regions for each class", f"none for {', '.join(nothing)}", fix)
    wanted = [ids[plain_name(name)] for name in vocabulary.names]
    dataset = retrieved_dataset(found, wanted, content["categories"], stored, folder)
    write_json(output, dataset)
    if images is not None:
        page = output.with_suffix(".html")
        shown = {**dataset, "categories": [c for c in dataset["categories"] if c["id"] in wanted]}
        with atomic_write(page) as file:
            file.write(retrieval_page(shown, images).encode())
        logger.info("What each class has retrieved: %s", page)
    return dataset


def _stored_images(folder: FeatureFolder, images: list[Entry]) -> list[StoredImage]:
    """Return the images of an annotation file that have stored regions, in the order of the file."""
    named = zip(images, folder.find_all([image["file_name"] for image in images]), strict=True)
    stored = [
        StoredImage(name, image["id"], image["width"], image["height"], folder.rows(name).number, image["file_name"])
        for image, name in named
        if name is not None
    ]
    if len(stored) < len(images):
        logger.warning("%d of %d images have no stored regions", len(images) - len(stored), len(images))
    return stored


def _features(folder: FeatureFolder, images: list[StoredImage], objectness: float) -> Iterator[Features]:
    fixes = {"feats": ("embeddings", "write them with regionclip features, or lp-ovod convert --embeddings")}
    if objectness > 0:
        fixes["objectness"] = "objectness", "write it with regionclip features --objectness, or add --min-objectness 0"
    for image in images:
        features = folder[image.name]
        for key, (name, fix) in fixes.items():
            if key not in features and image.count:
                raise user_error(f"--regions {folder.folder}", f"the {name} of the regions", "none", fix)
        if image.count:
            yield features
