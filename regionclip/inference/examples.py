"""Example images in place of class names: mean region embeddings, moved to where text embeddings are.

Region embeddings and text embeddings of CLIP lie around different means, so that an example would win against every
word. Moved by the difference of the means, examples and words share a vocabulary.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from detectron2.structures import Boxes
from torch import Tensor
from torch.nn import functional as F

from regionclip.clip.prompts import same_to_clip
from regionclip.clip.vocabulary import Vocabulary
from regionclip.data.images import IMAGE_ENDINGS
from regionclip.data.user_boxes import check_boxes
from regionclip.errors import user_error
from regionclip.files import resolve_path
from regionclip.inference.encoded_image import EncodedImage

_WITH_BOX = re.compile(r"^(.*):((?:-?[\d.]+,){3}-?[\d.]+)$")

EXPECTED = "NAME=IMAGE:X,Y,WIDTH,HEIGHT, or NAME=FOLDER of crops"


@dataclass(frozen=True)
class Example:
    """An object in an image."""

    image: Any
    """As for `RegionCLIP.set_image`."""
    box: tuple[float, float, float, float] | None = None
    """x1 y1 x2 y2 in pixels of the image; None is the whole image, a crop."""

    @property
    def source(self) -> str:
        """Where it is from, for vocabulary files."""
        place = str(self.image) if isinstance(self.image, str | Path) else "an image in memory"
        return place if self.box is None else f"{place}:{','.join(f'{edge:g}' for edge in self.box)}"


Examples = Mapping[str, Sequence[Example]]
"""Examples of each class by its name."""


def parse_examples(options: Sequence[str]) -> dict[str, list[Example]]:
    """Return the examples that command-line options name.

    Args:
        options: each `NAME=IMAGE:X,Y,WIDTH,HEIGHT` in pixels, `NAME=CROP`, or `NAME=FOLDER` of crops.

    Raises:
        UserError: another form, no such file, or a folder without images.
    """
    found: dict[str, list[Example]] = defaultdict(list)
    for option in options:
        name, mark, rest = option.partition("=")
        if not (name.strip() and mark and rest):
            raise user_error(
                f"--example {option}", EXPECTED, "no name and image", "such as pallet=photo.jpg:10,20,90,60"
            )
        found[" ".join(name.split())] += _examples_at(option, rest)
    return dict(found)


def _examples_at(option: str, text: str) -> list[Example]:
    with_box = _WITH_BOX.match(text)
    place = resolve_path(with_box[1] if with_box else text)
    if with_box and place.is_file():
        try:
            x, y, width, height = map(float, with_box[2].split(","))
        except ValueError as error:
            raise user_error(f"--example {option}", EXPECTED, with_box[2], "write four numbers") from error
        if width <= 0 or height <= 0:
            fix = "give left and top edge, width and height"
            raise user_error(f"--example {option}", "a width and a height above 0", with_box[2], fix)
        return [Example(place, (x, y, x + width, y + height))]
    if place.is_file():
        return [Example(place)]
    if place.is_dir():
        crops = sorted(path for path in place.iterdir() if path.suffix.lower() in IMAGE_ENDINGS)
        if crops:
            return [Example(path) for path in crops]
    actual = "a folder without images" if place.is_dir() else "no such file or folder"
    raise user_error(f"--example {option}", EXPECTED, actual, "correct the path")


@dataclass(frozen=True)
class EmbeddedExamples:
    """Classes by the region embeddings of their examples."""

    names: tuple[str, ...]
    embeddings: Tensor
    """Unit vectors [K, D]: means over the unit region embeddings of the examples."""
    center: Tensor | None
    """Mean [D] of the unit embeddings of all proposals in the images with boxes; None if all examples are crops."""
    sources: tuple[tuple[str, ...], ...]
    """Of each class."""

    def __len__(self) -> int:
        """Return the number of classes K."""
        return len(self.names)


@torch.no_grad()
def embed_examples(examples: Examples, prepare: Callable[[Any], EncodedImage]) -> EmbeddedExamples:
    """Return the embeddings of examples by a detector.

    Args:
        examples: by class name.
        prepare: reads an image for the detector.

    Raises:
        UserError: a class without examples, or an invalid image or box.
    """
    rows, sources, centers = [], [], []
    for name, group in examples.items():
        if not group:
            raise user_error(f"examples of {name}", "at least one image", "none", "name one, or leave the class out")
        units = []
        for example in group:
            image = prepare(example.image)
            units.append(_embed(image, example, f"example {example.source} of {name}"))
            if example.box is not None:
                centers.append(_embed_proposals(image))
        rows.append(F.normalize(torch.cat(units).mean(dim=0), dim=0))
        sources.append(tuple(example.source for example in group))
    center = torch.cat(centers).mean(dim=0) if centers else None
    return EmbeddedExamples(tuple(examples), torch.stack(rows), center, tuple(sources))


def _embed(image: EncodedImage, example: Example, what: str) -> Tensor:
    height, width = image.size
    box = [example.box or (0.0, 0.0, float(width), float(height))]
    return _unit_embeddings(image, check_boxes(box, image.size, what) * image.scale)


def _embed_proposals(image: EncodedImage) -> Tensor:
    return _unit_embeddings(image, image.encoding.proposals.proposal_boxes.tensor)


def _unit_embeddings(image: EncodedImage, boxes: Tensor) -> Tensor:
    found = image.model.embed_regions(image.encoding, Boxes(boxes.to(image.model.device)))
    return F.normalize(found[:, : image.model.text_space.dim].float(), dim=1).cpu()


def join_examples(words: Vocabulary | None, examples: EmbeddedExamples, text_center: Tensor | None) -> Vocabulary:
    """Return the vocabulary of words and examples; a class with both is the mean of its unit embeddings.

    Args:
        words: None without words.
        examples: at least one.
        text_center: mean [D] of unit text embeddings; None if there are no text embeddings to compare with.

    Raises:
        UserError: examples are crops only, so that nothing tells where region embeddings are.
    """
    rows = examples.embeddings
    if text_center is not None:
        if examples.center is None:
            expected, fix = "an image with a box among the examples", "name a photo as IMAGE:X,Y,WIDTH,HEIGHT"
            raise user_error(
                "examples next to words", expected, "crops only", f"{fix}, or leave words and background out"
            )
        rows = F.normalize(rows - examples.center + text_center, dim=1)
    if words is None:
        count = len(examples)
        return Vocabulary(examples.names, rows, torch.arange(count), examples=examples.sources, source="examples")
    place = {same_to_clip(name): number for number, name in enumerate(words.names)}
    table, sources = F.normalize(words.embeddings, dim=1), list(words.examples or [()] * len(words))
    added = []
    for number, name in enumerate(examples.names):
        known = place.get(same_to_clip(name))
        if known is None:
            added.append(number)
            continue
        of_class = words.class_of_row == known
        table[of_class] = F.normalize(table[of_class] + rows[number], dim=1)
        sources[known] = examples.sources[number]
    names = tuple(examples.names[number] for number in added)
    return replace(
        words,
        names=words.names + names,
        embeddings=torch.cat([table, rows[added]]),
        class_of_row=torch.cat([words.class_of_row, torch.arange(len(added)) + len(words)]),
        synonyms=words.synonyms + tuple((name,) for name in names) if words.synonyms else (),
        examples=(*sources, *(examples.sources[number] for number in added)),
    )
