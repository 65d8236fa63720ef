"""A picture and what was computed of it, so that nothing is computed twice."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from numpy.typing import NDArray
from torch import Tensor, nn

from regionclip.data.test_loader import TestMapper
from regionclip.errors import user_error
from regionclip.isolation import with_own_settings
from regionclip.methods.regionclip.box_predictor import TextEmbeddingOutputLayers
from regionclip.methods.regionclip.detector import CLIPFastRCNN
from regionclip.modeling.heads.region_encoder import EncodeBoxes
from regionclip.modeling.inference.early_end import LazyRegions


class EncodedImage:
    """A picture; feature maps and regions are computed when they are first asked for."""

    def __init__(self, model: CLIPFastRCNN, pixels: NDArray[np.uint8], mapper: TestMapper, key: str) -> None:
        """Take a picture, uint8 [H, W, 3] in RGB, for a model with a text classifier, and its `picture_key`."""
        self.pixels, self.key = pixels, key
        self.size: tuple[int, int] = (pixels.shape[0], pixels.shape[1])
        self.model = model
        self._input = mapper.map_pixels(pixels)
        height, width = self._input["image"].shape[1:]
        self.network_size: tuple[int, int] = (height, width)

    @cached_property
    @with_own_settings
    def regions(self) -> LazyRegions:
        """The proposals of the detector, of which as many are encoded as the questions so far took."""
        return self._regions(*self.model.proposal_source.propose([self._input], self.model.device))

    def _regions(self, proposals: Instances) -> LazyRegions:
        (proposals,) = text_predictor(self.model).usable([proposals])
        return LazyRegions(proposals, self._encoder)

    def _encoder(self, regions: int) -> EncodeBoxes:
        return self.model.roi_heads.encoder_of_image(self._maps, regions)

    @with_own_settings
    def encode(self, boxes: Boxes) -> Tensor:
        """Return the embeddings [N, D], not normalised, of boxes in pixels of the network input."""
        return self.model.encode_boxes(self._maps, boxes)

    @property
    def scale(self) -> Tensor:
        """Factors [4] from xyxy in pixels of the picture to those of the network input."""
        vertical, horizontal = (network / own for network, own in zip(self.network_size, self.size, strict=True))
        return torch.tensor([horizontal, vertical, horizontal, vertical])

    @cached_property
    def _maps(self) -> dict[str, Tensor]:
        return self.model.image_features([self._input])

    @staticmethod
    @with_own_settings
    def encode_together(images: Sequence[EncodedImage], *, regions: bool = True) -> None:
        """Compute the feature maps that images of one model lack at once, and their proposals.

        Pictures are padded to the largest, which moves a little what is found in those that are smaller.

        Args:
            images: pictures. Of equal ones the first alone is encoded, as it is the one that is remembered.
            regions: the proposals too, and not the maps alone. How many of them are encoded, detection says.
        """
        distinct = {image.key: image for image in reversed(images)}.values()
        unmapped = [image for image in distinct if "_maps" not in vars(image)]
        if unmapped:
            maps = unmapped[0].model.image_features([image._input for image in unmapped])
            for row, image in enumerate(unmapped):
                image._maps = {name: part[row : row + 1] for name, part in maps.items()}
        without = [image for image in distinct if regions and "regions" not in vars(image)]
        if without:
            model = without[0].model
            found = model.proposal_source.propose([image._input for image in without], model.device)
            for image, proposals in zip(without, found, strict=True):
                image.regions = image._regions(proposals)


def picture_key(pixels: NDArray[np.uint8]) -> str:
    """Return what only equal pictures share."""
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()


def text_predictor(model: CLIPFastRCNN) -> TextEmbeddingOutputLayers:
    """Return the predictor of a model that `require_text_classifier` accepts."""
    return model.roi_heads.box_predictor


def require_text_classifier(model: nn.Module) -> None:
    """Raise a `UserError` unless the words of a detector can be changed while it runs."""
    heads = getattr(model, "roi_heads", None)
    predictor = getattr(heads, "box_predictor", None)
    if not isinstance(model, CLIPFastRCNN) or not isinstance(predictor, TextEmbeddingOutputLayers):
        fix = "use a config with CLIPFastRCNN, CLIPRes5ROIHeads and USE_TEXT_EMB_CLASSIFIER"
        raise user_error("detector", "a classifier of text embeddings", type(predictor or model).__name__, fix)
    if not predictor.keep_proposal_boxes and predictor.bbox_pred.out_features != 4:
        fix = "use a config with MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG True"
        raise user_error("detector", "box deltas that hold for any word", "some for each trained class", fix)
