"""Example images in place of class names: mean region embeddings, moved to where text embeddings are.

Region embeddings and text embeddings of CLIP lie around different means, so that an example would win against every
word. Moved by the difference of the means, examples and words share a vocabulary.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes
from torch import Tensor
from torch.nn import functional as F

from regionclip.clip.class_name_files import SYNONYM_MARK
from regionclip.clip.prompts import same_to_clip
from regionclip.clip.vocabulary import REGION, TEXT, Vocabulary
from regionclip.data.images import IMAGE_ENDINGS, WHITE, UnreadableImageError
from regionclip.data.user_boxes import check_boxes
from regionclip.errors import user_error
from regionclip.files import resolve_path
from regionclip.inference.encoded_image import EncodedImage
from regionclip.method import methods
from regionclip.modeling.detector import OpenVocabularyDetector

_WITH_BOX = re.compile(r"^(.*):((?:\s*-?[\d.]+\s*,){3}\s*-?[\d.]+\s*)$")

GRID_CELLS = 8
"""Cells of a grid in a row."""

EXPECTED = "NAME=IMAGE:X,Y,WIDTH,HEIGHT, or NAME=FOLDER of crops"


@dataclass(frozen=True)
class Example:
    """An object in an image."""

    image: Any
    """File, PIL image, array or tensor, as for `RegionCLIP.set_image`."""
    box: tuple[float, ...] | None = None
    """x1 y1 x2 y2 in pixels of the image; None is the whole image, a crop."""
    matte: str = WHITE
    """Color behind transparent pixels."""

    def __post_init__(self) -> None:
        """Take the box as numbers; raises `UserError` for anything but four."""
        if self.box is None:
            return
        try:
            box = tuple(float(edge) for edge in self.box)
        except (TypeError, ValueError):
            box = ()
        if len(box) != 4:
            raise user_error("box of an example", "four numbers x1 y1 x2 y2", repr(self.box)[:80], "or None for a crop")
        object.__setattr__(self, "box", box)

    @property
    def source(self) -> str:
        """Where it is from, for vocabulary files: the image and, as on the command line, x, y, width and height."""
        place = str(self.image) if isinstance(self.image, str | Path) else "an image in memory"
        if self.box is None:
            return place
        x1, y1, x2, y2 = self.box
        return f"{place}:{x1:g},{y1:g},{x2 - x1:g},{y2 - y1:g}"


Examples = Mapping[str, Sequence[Any]]
"""Examples of each class by its name: `Example`s, or images that are crops."""


def parse_examples(options: Sequence[str], matte: str = WHITE) -> dict[str, list[Example]]:
    """Return the examples that command-line options name.

    Args:
        options: each `NAME=IMAGE:X,Y,WIDTH,HEIGHT` in pixels, `NAME=CROP`, or `NAME=FOLDER` of crops.
        matte: color behind transparent pixels.

    Raises:
        UserError: another form, no such file, or a folder without images.
    """
    found: dict[str, list[Example]] = defaultdict(list)
    names: dict[str, str] = {}
    for option in options:
        name, mark, rest = option.partition("=")
        if not (name.strip() and mark and rest):
            fix = "such as pallet=photo.jpg:10,20,90,60"
            raise user_error(f"--example {option}", EXPECTED, "no name and image", fix)
        chosen = names.setdefault(same_to_clip(name), " ".join(name.split()))
        found[chosen] += [replace(example, matte=matte) for example in _examples_at(option, rest)]
    return dict(found)


def _examples_at(option: str, text: str) -> list[Example]:
    with_box = _WITH_BOX.match(text)
    place = resolve_path(with_box[1] if with_box else text)
    if with_box and place.is_dir():
        raise user_error(f"--example {option}", EXPECTED, "a box in a folder", "name an image, or leave the box out")
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
        crops = sorted(
            path
            for path in place.iterdir()
            if path.is_file() and path.suffix.lower() in IMAGE_ENDINGS and not path.name.startswith(".")
        )
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
def embed_examples(
    examples: Examples, prepare: Callable[..., EncodedImage], *, on_grid: bool = False
) -> EmbeddedExamples:
    """Return the embeddings of examples by a detector.

    Args:
        examples: by class name.
        prepare: reads an image for the detector, with a `matte`.
        on_grid: tell where region embeddings are by the cells of a grid, for detectors whose proposals depend on class
            names; else by their proposals.

    Raises:
        UserError: a class without examples, two of the same name, or an invalid image or box.
    """
    groups = _checked(examples)
    images: dict[str, EncodedImage] = {}
    rows, sources, with_boxes = [], [], {}
    for name, group in groups.items():
        units = []
        for example in group:
            image = _prepared(example, name, prepare)
            image = images.setdefault(image.key, image)  # encoded once
            units.append(_embed(image, example, f"example {example.source} of {name}"))
            if example.box is not None:
                with_boxes[image.key] = image
        rows.append(F.normalize(torch.cat(units).mean(dim=0), dim=0))
        sources.append(tuple(example.source for example in group))
    regions = [_embed_regions(image, on_grid=on_grid) for image in with_boxes.values()]
    found = torch.cat(regions) if regions else torch.empty(0)
    return EmbeddedExamples(tuple(groups), torch.stack(rows), found.mean(dim=0) if len(found) else None, tuple(sources))


def _prepared(example: Example, name: str, prepare: Callable[..., EncodedImage]) -> EncodedImage:
    try:
        return prepare(example.image, matte=example.matte)
    except UnreadableImageError as error:
        what, fix = f"example {example.source} of {name}", "name another image, or save this one again"
        raise user_error(what, "a readable image", str(error), fix) from error


def _checked(examples: Examples) -> dict[str, list[Example]]:
    """Return the examples of each class; images without box are crops."""
    if not isinstance(examples, Mapping):
        fix = 'give {"pallet": [Example("photo.jpg", (10, 20, 100, 80))]}'
        raise user_error("examples", "a mapping from class names to examples", type(examples).__name__, fix)
    checked: dict[str, list[Example]] = {}
    for name, group in examples.items():
        if not isinstance(name, str) or not name.strip() or SYNONYM_MARK in name:
            raise user_error("examples", f"class names without {SYNONYM_MARK}", repr(name), "name each class once")
        listed = list(group) if isinstance(group, list | tuple) else [group]
        if not listed:
            raise user_error(f"examples of {name}", "at least one image", "none", "name one, or leave the class out")
        checked[name] = [each if isinstance(each, Example) else Example(each) for each in listed]
    twice = [name for name, count in Counter(map(same_to_clip, checked)).items() if count > 1]
    if twice:
        raise user_error("examples", "each class once", f"more than once: {', '.join(twice)}", "join their examples")
    return checked


def _embed(image: EncodedImage, example: Example, what: str) -> Tensor:
    height, width = image.size
    box = [example.box or (0.0, 0.0, float(width), float(height))]
    return _unit_embeddings(image, check_boxes(box, image.size, what) * image.scale)


def _embed_regions(image: EncodedImage, *, on_grid: bool) -> Tensor:
    if not on_grid:
        return _unit_embeddings(image, image.encoding.proposals.proposal_boxes.tensor)
    height, width = image.network_size
    steps = [torch.linspace(0, length, GRID_CELLS + 1) for length in (width, height)]
    x, y = (grid.flatten() for grid in torch.meshgrid(steps[0][:-1], steps[1][:-1], indexing="ij"))
    return _unit_embeddings(image, torch.stack([x, y, x + width / GRID_CELLS, y + height / GRID_CELLS], dim=1))


def _unit_embeddings(image: EncodedImage, boxes: Tensor) -> Tensor:
    found = image.model.embed_regions(image.encoding, Boxes(boxes.to(image.model.device)))
    return F.normalize(found[:, : image.model.text_space.dim].float(), dim=1).cpu()


def proposes_by_names(cfg: CfgNode) -> bool:
    """Return whether the proposals of a detector depend on class names."""
    return any(cfg.MODEL.META_ARCHITECTURE in method.class_conditioned for method in methods())


def require_supported(model: OpenVocabularyDetector, cfg: CfgNode) -> None:
    """Raise a `UserError` for a detector that looks class names up, or embeds them itself, for its scores."""
    raf = cfg.MODEL.RALF.RAF
    if model.known_names is not None or (raf.ENABLED and raf.EMBEDDING == "crops"):
        expected, fix = "a detector that compares regions with embeddings alone", "use words, or another detector"
        raise user_error("examples", expected, "one that looks class names up", fix)


def add_examples(
    words: Vocabulary | None,
    examples: Examples,
    text_center: Tensor | None,
    prepare: Callable[..., EncodedImage],
    cfg: CfgNode,
) -> Vocabulary:
    """Return the vocabulary of words and examples of a detector; arguments as for `embed_examples`, `join_examples`."""
    found = embed_examples(examples, prepare, on_grid=proposes_by_names(cfg))
    return join_examples(words, found, text_center)


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
    space = REGION if text_center is None else TEXT
    if words is None:
        count = torch.arange(len(examples))
        return Vocabulary(examples.names, rows, count, examples=examples.sources, space=space, source="examples")
    groups = words.synonyms or tuple((name,) for name in words.names)
    place = {same_to_clip(name): number for number, group in enumerate(groups) for name in group}
    table, sources = F.normalize(words.embeddings, dim=1), list(words.examples or [()] * len(words))
    added = []
    for number, name in enumerate(examples.names):
        known = place.get(same_to_clip(name))
        if known is None:
            added.append(number)
            continue
        of_class = words.class_of_row == known
        table[of_class] = F.normalize(table[of_class] + rows[number], dim=1)
        sources[known] = (*sources[known], *examples.sources[number])
    names = tuple(examples.names[number] for number in added)
    return replace(
        words,
        names=words.names + names,
        embeddings=torch.cat([table, rows[added]]),
        class_of_row=torch.cat([words.class_of_row, torch.arange(len(added)) + len(words)]),
        synonyms=words.synonyms + tuple((name,) for name in names) if words.synonyms else (),
        examples=(*sources, *(examples.sources[number] for number in added)),
    )
