"""User interface of the detector: encode an image once, detect with many vocabularies.

For example:

    from regionclip import RegionCLIP

    detector = RegionCLIP.from_pretrained("clip_rn50")
    detector.set_image("street.jpg")
    detector.set_vocabulary(["car", "traffic cone"])
    detections = detector.predict(threshold=0.3)
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor, nn

from regionclip.clip.embedder import NameEmbedder
from regionclip.clip.vocabulary import TEXT, Vocabulary
from regionclip.data.images import WHITE, read_image, to_rgb_pixels
from regionclip.data.test_loader import TestMapper
from regionclip.data.user_boxes import check_boxes
from regionclip.detections import Detections
from regionclip.engine.checkpoint.loading import declared_weights
from regionclip.errors import UserError, user_error
from regionclip.fingerprints import config_texts
from regionclip.hub.pretrained import load_pretrained
from regionclip.inference.classifier import BackgroundClassifier
from regionclip.inference.encoded_image import EncodedImage, image_key
from regionclip.inference.examples import Examples, add_examples, require_supported
from regionclip.inference.slices import Slices, detect_in_slices, merge
from regionclip.inference.vocabularies import VocabularyOptions, Words, make_vocabulary
from regionclip.isolation import with_own_settings
from regionclip.limits import require_limits, whole_number
from regionclip.modeling.detector import Selection, require_detector
from regionclip.modeling.inference.prepare import prepare_as_configured
from regionclip.modeling.score_scale import shown_scale

ImageLike = str | Path | Image.Image | NDArray[Any] | Tensor
"""A file, a PIL image, an RGB array [H, W, 3], or an RGB tensor [3, H, W]."""

MIN_SHOWN = 0.05
"""Minimum score of detections that are shown by default."""

PHOTOGRAPH = "a photograph, of which this detector, trained on drawings, knows nothing"
"""Warning of detectors whose INPUT.DOMAIN is drawings."""

OWN_WORDS = "own"
"""Value of `background`: the detector's default vocabulary."""


class RegionCLIP:
    """Open-vocabulary detector with an image and a vocabulary."""

    @with_own_settings
    def __init__(
        self,
        model: nn.Module,
        cfg: CfgNode,
        *,
        embedder: Callable[[], NameEmbedder],
        vocabulary: Vocabulary | None = None,
        published_suffix: str | None = None,
        cached_images: int = 2,
    ) -> None:
        """Create a detector; `from_pretrained` does this by name.

        Args:
            model: with loaded weights.
            cfg: config of the model.
            embedder: returns the text encoder; called when the first class names have to be embedded.
            vocabulary: default vocabulary.
            published_suffix: suffix of the published embedding files of its CLIP, None if there are none.
            cached_images: number of images whose encoding is cached.

        Raises:
            UserError: the model is not open-vocabulary.
        """
        self.model = require_detector(model.eval())
        self.model.require_open_vocabulary()
        self._optional_weights = declared_weights(model, "optional_weights")
        self.cfg = cfg
        self._make_embedder = embedder
        self._own_vocabulary = vocabulary
        self._published_suffix = published_suffix
        self._images: OrderedDict[str, EncodedImage] = OrderedDict()
        self._cached_images = max(cached_images, 1)
        self._mapper = TestMapper(
            cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, cfg.INPUT.FORMAT, keep_annotations=False
        )
        if vocabulary is not None:
            self._require_fit(vocabulary)
        self._vocabulary = vocabulary
        self.background: Vocabulary | None = None
        """Classes that share the softmax and are never reported."""
        self._classifier = BackgroundClassifier(vocabulary, None, self.model.device) if vocabulary else None
        self._scale = shown_scale(cfg, self.model.score_scale)
        self._knows_drawings = cfg.INPUT.DOMAIN == "drawings"

    @classmethod
    @with_own_settings
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        config: str = "",
        overrides: tuple[str, ...] | list[str] = (),
        text_weights: str = "",
        device: str = "",
        source: str = "",
        trust_pickle: bool = False,
    ) -> RegionCLIP:
        """Load a detector: a published one by name, a folder of a training run, or a checkpoint.

        Files of published detectors are searched in `pretrained_ckpt/`, then downloaded if the
        publishers or `source` have a URL for them. REGIONCLIP_OFFLINE=1 disables downloads.

        Args:
            name_or_path: such as `clip_rn50` (docs/MODEL_ZOO.md lists the names); a
                folder with `config.yaml` and weights; or a checkpoint, with its `config`.
            config: config (YAML) of a checkpoint.
            overrides: `KEY, VALUE, ...` applied to the config.
            text_weights: a checkpoint with the text encoder, if that of the detector has none.
            device: `cuda`, `cuda:1`, `cpu`; by default a GPU if there is one.
            source: folder on the web or hub (`hf://owner/repository`) that mirrors `pretrained_ckpt/`.
            trust_pickle: read files that can run code.

        Raises:
            UserError: unknown name, a missing or mismatched file, or a model without text-embedding classifier.
        """
        found = load_pretrained(
            str(name_or_path), config, overrides, text_weights, device, source, trust_pickle=trust_pickle
        )
        prepare_as_configured(found.model, found.cfg)
        return cls(
            found.model,
            found.cfg,
            embedder=found.embedder,
            vocabulary=found.vocabulary,
            published_suffix=found.published_suffix,
        )

    @cached_property
    @with_own_settings
    def embedder(self) -> NameEmbedder:
        """The text encoder; raises `UserError` if no file has it."""
        embedder = self._make_embedder()
        if self._own_vocabulary is not None:
            embedder.learn(self._own_vocabulary)
        return embedder

    @cached_property
    @with_own_settings
    def fingerprint(self) -> str:
        """A short fingerprint of config and weights: equal for detectors with equal results."""
        digest = hashlib.sha256("".join(config_texts(self.cfg)).encode())
        # Weights that a file may lack are random, and differ between runs.
        random = (*self.model.unused_with_class_names, *self._optional_weights)
        # Buffers that are no weights, such as concepts of RAF, decide results too.
        buffers = dict(cast(nn.Module, self.model).named_buffers())
        for key, value in {**buffers, **self.model.state_dict()}.items():
            if not key.startswith(random):
                digest.update(key.encode() + value.detach().float().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    @property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary of `predict`; raises `UserError` if none is set."""
        if self._vocabulary is None:
            raise user_error("vocabulary", "words to look for", "none", 'call set_vocabulary(["cat", "dog"]) first')
        return self._vocabulary

    @with_own_settings
    def set_vocabulary(
        self,
        words: Words = (),
        *,
        background: Words | None = OWN_WORDS,
        options: VocabularyOptions | None = None,
        examples: Examples | None = None,
    ) -> Vocabulary:
        """Set the classes to detect; images stay encoded.

        Scores of a region are normalized over all classes: with only `cat`, everything is a cat.
        Background classes take part in the softmax and are never reported.

        Args:
            words: class names or lists of synonyms; the name of a class list (`coco`, `coco65`, `coco48`, `coco17`,
                `lvis`, `lvis866`, `emoji`, `emoji880`, `emoji294`); a file of class names or embeddings; or a
                `Vocabulary`.
            background: likewise; `own` is the detector's default vocabulary, if any; None disables it.
            options: templates, and treatment of synonyms.
            examples: example images by class name, in place of words or in addition to them: the class of a word with
                examples is the mean of both.

        Returns:
            The vocabulary, which can be saved and set again.

        Raises:
            UserError: no class names, empty or duplicate ones, some that the detector was not taught, an invalid file,
                embeddings of another CLIP, or an invalid example.
        """
        options = options or VocabularyOptions()
        if isinstance(background, str) and background == OWN_WORDS:
            others = self._own_vocabulary
        else:
            others = None if background is None else self._make(background, options)
        if examples:
            vocabulary = self._with_examples(words, options, examples, has_text=others is not None)
        else:
            vocabulary = self._make(words, options)
        if not len(vocabulary):
            raise user_error("vocabulary", "at least one word", "none", 'name some, such as ["cat", "dog"]')
        self.model.require_names(vocabulary.names)
        if others is not None:
            vocabulary.require_text_space()
            known = [word for group in vocabulary.synonyms or ((name,) for name in vocabulary.names) for word in group]
            others = others.without(known)
        self.background = others
        self._classifier = BackgroundClassifier(vocabulary, others, self.model.device)
        self._vocabulary = vocabulary
        return vocabulary

    @with_own_settings
    def set_image(self, image: ImageLike | EncodedImage, *, matte: str = WHITE) -> None:
        """Set the image; the first `predict` encodes it, and the encoding is cached.

        Args:
            image: file (upright by its EXIF data), PIL image, array [H, W, 3] or [H, W] in RGB or
                gray, tensor [3, H, W] in RGB; uint8, or floats in [0, 1]. Or the result of `prepare_image`.
            matte: color behind transparent pixels of a file or PIL image, by name or as `#rrggbb`.

        Raises:
            UnreadableImageError: the file is no valid image.
            UserError: the array is no valid image.
        """
        prepared = image if isinstance(image, EncodedImage) else self.prepare_image(image, matte=matte)
        if prepared.model is not self.model:
            raise user_error("image", "one that this detector prepared", "another's", "call its prepare_image")
        self._images.setdefault(prepared.key, prepared)
        self._images.move_to_end(prepared.key)
        while len(self._images) > self._cached_images:
            self._images.popitem(last=False)

    @with_own_settings
    def prepare_image(self, image: ImageLike, *, matte: str = WHITE) -> EncodedImage:
        """Read and resize an image for `set_image`, in any thread.

        Arguments and errors are those of `set_image`. A cached image is returned unchanged.
        """
        pixels = read_image(image, matte=matte) if isinstance(image, str | Path) else to_rgb_pixels(image, matte)
        key = image_key(pixels)
        return self._images.get(key) or EncodedImage(self.model, pixels, self._mapper, key)

    def forget_images(self) -> None:
        """Drop all images and their cached encodings."""
        self._images.clear()

    @property
    def encoded_images(self) -> list[EncodedImage]:
        """The cached images, the current one last."""
        return list(self._images.values())

    @property
    def usual_threshold(self) -> float:
        """Default score threshold for showing detections: that of the config, but at least 0.05."""
        own = self._scale.shown(torch.tensor(self.model.score_threshold, dtype=torch.float64))
        return max(float(own), MIN_SHOWN)

    @with_own_settings
    def predict(
        self,
        boxes: ArrayLike | Tensor | None = None,
        *,
        threshold: float | None = None,
        topk: int | None = None,
        words_per_box: int = 0,
        per_class: bool = False,
        embeddings: bool = False,
        slices: Slices | None = None,
    ) -> Detections:
        """Detect objects of the vocabulary's classes in the image, or classify user boxes.

        Args:
            boxes: [N, 4] x1 y1 x2 y2 in pixels of the image. Each gets its best class, in the given
                order; only the threshold excludes boxes. None detects objects.
            threshold: minimum score; by default that of the config (MODEL.ROI_HEADS.SCORE_THRESH_TEST, whose
                published scale is converted), and none for user boxes.
            topk: maximum number of detections; TEST.DETECTIONS_PER_IMAGE by default. Not for user boxes.
            words_per_box: number of most probable classes returned for each box, with probabilities.
            per_class: suppress duplicates only within each class, as published, so that a box can
                have several classes; else each object keeps its best class.
            embeddings: return the region embeddings.
            slices: also detect in tiles of the image, for small objects. Not for user boxes.

        Raises:
            UserError: no image, no vocabulary, or invalid boxes.
        """
        if not self._images:
            raise user_error("image", "one to look at", "none", "call set_image(image) first")
        image, words = next(reversed(self._images.values())), self.vocabulary
        require_limits(threshold, topk, words_per_box, len(words), with_boxes=boxes is not None)
        if slices is not None and boxes is not None:
            raise user_error("slices", "none with user boxes, which are given", str(slices), "leave out one of them")
        topk, words_per_box = None if topk is None else whole_number(topk), int(words_per_box)
        threshold = None if threshold is None else float(threshold)
        if boxes is not None:
            found = self._classify(image, check_boxes(boxes, image.size), threshold or 0.0)
        else:
            own = None if threshold is None else self._scale.own(threshold)
            selection = Selection(own, topk, per_class)
            found = self._detect(image, selection) if slices is None else self._slice(image, selection, slices)
            found.scores = self._scale.shown(found.scores)
        return self._detections(image, found, words_per_box, embeddings)

    def _detect(self, image: EncodedImage, selection: Selection) -> Instances:
        return self.model.detect(image.encoding, self._classifier, selection)

    def _slice(self, image: EncodedImage, selection: Selection, slices: Slices) -> Instances:
        if len(slices.tiles(image.size)) == 1:
            return self._detect(image, selection)
        every = replace(selection, topk=None)  # boxes that edges cut take no place of others
        return merge(detect_in_slices(image, slices, lambda each: self._detect(each, every)), self.cfg, selection)

    def _make(self, words: Words, options: VocabularyOptions) -> Vocabulary:
        vocabulary = make_vocabulary(words, lambda: self.embedder, options, self._published_suffix)
        self._require_fit(vocabulary)
        if vocabulary.text_weights:
            try:
                embedder = self.embedder
            except UserError:
                return vocabulary  # no file has the text encoder to compare with
            self._require_fit(vocabulary, embedder.weights_hash)
        return vocabulary

    def _with_examples(
        self, words: Words, options: VocabularyOptions, examples: Examples, *, has_text: bool
    ) -> Vocabulary:
        require_supported(self.model, self.cfg)
        has_words = isinstance(words, str | Path | Vocabulary) or len(words) > 0
        of_words = self._make(words, options) if has_words else None
        center = self._text_center if has_text or (of_words is not None and of_words.space == TEXT) else None
        joined = add_examples(of_words, examples, center, self.prepare_image, self.cfg)
        return replace(joined, model=joined.model or self.model.text_space.clip)

    @cached_property
    def _text_center(self) -> Tensor:
        """Mean [D] of unit text embeddings: of the default vocabulary, or of COCO's class names."""
        generic = self._own_vocabulary or make_vocabulary("coco", lambda: self.embedder, VocabularyOptions("single"))
        return generic.class_embeddings().mean(dim=0)

    def _require_fit(self, vocabulary: Vocabulary, text_weights: str = "") -> None:
        space = self.model.text_space
        vocabulary.require_fit(space.dim, space.clip, text_weights)

    def _classify(self, image: EncodedImage, boxes: Tensor, threshold: float) -> Instances:
        scaled = Boxes((boxes * image.scale).to(self.model.device))
        found = Instances(image.network_size, pred_boxes=scaled)
        found.embeddings = self.model.embed_regions(image.encoding, scaled)
        found.scores, found.pred_classes = self._probabilities(found)[:, :-1].max(dim=1)
        return found[found.scores >= threshold]

    def _probabilities(self, found: Instances) -> Tensor:
        """Return [R, K + 1]: the classes, then the rest."""
        return self.model.probabilities(found.embeddings, self._classifier)

    def _detections(
        self,
        image: EncodedImage,
        found: Instances,
        words_per_box: int,
        with_embeddings: bool,
    ) -> Detections:
        top = self._probabilities(found)[:, :-1].topk(words_per_box, dim=1)
        boxes = found.pred_boxes.tensor.cpu() / image.scale
        return Detections(
            boxes=boxes.numpy(),
            scores=found.scores.cpu().numpy(),
            class_ids=found.pred_classes.cpu().numpy(),
            vocabulary=self.vocabulary.names,
            image_size=image.size,
            top_class_ids=top.indices.cpu().numpy(),
            top_scores=top.values.cpu().numpy(),
            embeddings=found.embeddings[:, : self.model.text_space.dim].cpu().numpy() if with_embeddings else None,
            image=image.pixels,
            warnings=(PHOTOGRAPH,) if self._knows_drawings and image.is_photograph else (),
        )
