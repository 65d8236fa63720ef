"""Image-text pairs as training samples: one caption, its tokens, and the resized image, by index."""

from __future__ import annotations

import io
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode, RandomResizedCrop

from regionclip.clip.prompts import PROMPT_TEMPLATES, fill_template
from regionclip.data.image_text.negatives import NegativeCaptions
from regionclip.data.image_text.opening import open_pairs
from regionclip.data.image_text.pairs import Pair, PairSource, read_json
from regionclip.data.images import UnreadableImageError, read_image
from regionclip.records import MappedImage, Record

MAX_CAPTION = 2000
"""Maximum number of characters of a caption: 77 tokens are never longer."""

_RESAMPLING = {
    Image.Resampling.NEAREST: InterpolationMode.NEAREST,
    Image.Resampling.BOX: InterpolationMode.BOX,
    Image.Resampling.BILINEAR: InterpolationMode.BILINEAR,
    Image.Resampling.HAMMING: InterpolationMode.HAMMING,
    Image.Resampling.BICUBIC: InterpolationMode.BICUBIC,
    Image.Resampling.LANCZOS: InterpolationMode.LANCZOS,
}

GROUPS_TOGETHER = 16
"""Number of shards whose samples are shuffled together, so that reads stay local on disk."""


class ImageTextPairs:
    """All pairs of DATASETS.TRAIN by index, as records for `CaptionMapper`."""

    def __init__(self, sources: Sequence[PairSource]) -> None:
        """Concatenate sources."""
        self.sources = list(sources)
        self.group_sizes = [size for source in self.sources for size in source.group_sizes]
        self._ends = list(itertools.accumulate(len(source) for source in self.sources))

    def __len__(self) -> int:
        """Return the number of pairs."""
        return self._ends[-1]

    def __getitem__(self, number: int) -> MappedImage:
        """Return `pair`, or `error` if it cannot be read."""
        source, place = self._locate(number)
        try:
            return {"pair": source[place]}
        except (OSError, ValueError) as error:
            return {"error": f"sample {number}: {error}"}

    def text(self, number: int) -> str:
        """Read only the text of a pair; raises `OSError` or `ValueError` if it is damaged."""
        source, place = self._locate(number)
        return source.text(place)

    def _locate(self, number: int) -> tuple[PairSource, int]:
        """Return the source of a pair, and its index there."""
        source = next(i for i, end in enumerate(self._ends) if number < end)
        return self.sources[source], number - (self._ends[source - 1] if source else 0)


class CaptionMapper:
    """Decodes and augments the image of a pair, and samples one of its captions."""

    def __init__(self, cfg: CfgNode) -> None:
        """Create the mapper that AUG.TRAIN describes."""
        from regionclip.clip.text_encoder import Tokenizer

        aug = cfg.AUG
        self.tokenizer = Tokenizer()
        self.resize = ShortestEdge(aug.TRAIN.IMAGE_SIZE[0], aug.TRAIN.MAX_SIZE, Image.Resampling(aug.INTERPOLATION))
        self.flip_probability = aug.TRAIN.FLIP_PROBABILITY
        self.crop: RandomResizedCrop | None = None
        if len(aug.TRAIN.IMAGE_SIZE) == 2:
            resampling = _RESAMPLING[Image.Resampling(aug.INTERPOLATION)]
            self.crop = RandomResizedCrop(tuple(aug.TRAIN.IMAGE_SIZE), aug.SCALE, aug.RATIO, resampling)

    def __call__(self, record: Record) -> MappedImage:
        """Return `image` uint8 [3, H, W], RGB; `tokens` int64 [77]; `image_id` and `file_name`.

        Raises:
            UnreadableImageError: the image cannot be decoded, or there is no caption.
        """
        from regionclip.clip.text_encoder import tokenize

        if "error" in record:
            raise UnreadableImageError(record["error"])
        pair: Pair = record["pair"]
        caption = choose_caption(pair.text)
        if not caption:
            raise UnreadableImageError(f"{pair.key}: no caption")
        photo = self._augment(decode(pair))
        pixels = torch.from_numpy(np.ascontiguousarray(np.asarray(photo).transpose(2, 0, 1)))
        tokens = tokenize([caption], self.tokenizer)[0]
        height, width = pixels.shape[1:]
        return {
            "image": pixels,
            "tokens": tokens,
            "image_id": pair.key,
            "file_name": pair.key,
            "height": height,
            "width": width,
        }

    def _augment(self, photo: Image.Image) -> Image.Image:
        resized = self.crop(photo) if self.crop else self.resize(photo)
        is_flipped = random.random() < self.flip_probability
        return resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if is_flipped else resized


def build_caption_mapper(cfg: CfgNode, pairs: ImageTextPairs) -> Callable[[Record], MappedImage]:
    """Return the mapper of a config, which adds negative captions from `pairs` if NEGATIVE_CAPTIONS asks for them."""
    mapper, count = CaptionMapper(cfg), cfg.MODEL.CLIP.NEGATIVE_CAPTIONS
    return NegativeCaptions(mapper, pairs, choose_caption, mapper.tokenizer, count) if count else mapper


class ShortestEdge:
    """Resizes the shorter side to `shortest`, with the longer side at most `longest`; rounds down, as upstream."""

    def __init__(self, shortest: int, longest: int | None, resampling: Image.Resampling) -> None:
        """Create a transform; sides in pixels."""
        self.shortest, self.longest, self.resampling = shortest, longest, resampling

    def __call__(self, photo: Image.Image) -> Image.Image:
        """Return the resized image."""
        short, long = sorted(photo.size)
        new_short, new_long = self.shortest, int(self.shortest * long / short)
        if self.longest is not None and new_long > self.longest:
            new_short, new_long = int(self.longest * short / long), self.longest
        size = (new_short, new_long) if photo.width <= photo.height else (new_long, new_short)
        size = max(size[0], 1), max(size[1], 1)
        return photo if size == photo.size else photo.resize(size, self.resampling)


def decode(pair: Pair) -> Image.Image:
    """Return the image of a pair, upright and RGB; raises `UnreadableImageError`."""
    source = pair.image if not isinstance(pair.image, bytes) else io.BytesIO(pair.image)
    try:
        return Image.fromarray(read_image(source))
    except UnreadableImageError as error:
        raise UnreadableImageError(str(error).replace(repr(source), pair.key)) from error


def choose_caption(text: str) -> str:
    """Return a random caption of a pair, by Python's `random`; empty if there is none.

    `tags` are shuffled and inserted into a random template. Control characters become spaces.
    """
    choices, content = all_captions(text), read_json(text)
    tags = content.get("tags") if isinstance(content, dict) else None
    words = tags.split() if isinstance(tags, str) else _strings(tags)
    if words:
        choices.append(fill_template(random.choice(PROMPT_TEMPLATES), " ".join(random.sample(words, len(words)))))
    caption = random.choice(choices) if choices else ""
    return " ".join("".join(c if c.isprintable() else " " for c in caption[:MAX_CAPTION]).split())


def all_captions(text: str) -> list[str]:
    """Return the captions in the text of a pair.

    A JSON object may hold `captions`, `caption` or `text`, each a list or one string; a JSON list
    is a list of captions; any other text is the caption itself.
    """
    content = read_json(text)
    if isinstance(content, list):
        return _strings(content)
    if isinstance(content, dict):
        return [caption for key in ("captions", "caption", "text") for caption in _strings(content.get(key))]
    return _strings(text.removeprefix("\ufeff"))


def _strings(value: Any) -> list[str]:
    """Return the non-blank strings in a string or list; empty for anything else."""
    values = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    return [text for text in values if isinstance(text, str) and text.strip()]


def shuffled_groups(group_sizes: Sequence[int], seed: int) -> Iterator[int]:
    """Yield the indices of all samples, epoch after epoch, endlessly.

    Each epoch has every sample once; groups are in random order, and the samples of
    `GROUPS_TOGETHER` of them are shuffled with each other.
    """
    generator = torch.Generator().manual_seed(seed)
    ends = list(itertools.accumulate(group_sizes))
    while True:
        for groups in torch.randperm(len(group_sizes), generator=generator).split(GROUPS_TOGETHER):
            numbers = torch.cat(
                [torch.arange(ends[group] - group_sizes[group], ends[group]) for group in groups.tolist()]
            )
            yield from numbers[torch.randperm(len(numbers), generator=generator)].tolist()


def read_pairs(cfg: CfgNode) -> ImageTextPairs:
    """Return the pairs of PATH_TRAIN, with one entry for each of DATASETS.TRAIN and FACTORY_TRAIN.

    Raises:
        UserError: an invalid path or factory, or malformed files.
    """
    entries = zip(cfg.DATASETS.PATH_TRAIN, cfg.DATASETS.FACTORY_TRAIN, strict=True)
    return ImageTextPairs([source for path, factory in entries for source in open_pairs(path, factory)])
