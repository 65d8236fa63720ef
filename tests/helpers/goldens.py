"""Comparison with the numbers of the published systems."""

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from tests.goldens.compare import compare
from tests.helpers.paths import GOLDENS


def photo(inputs, image):
    if f"{image}/image" not in inputs:
        pytest.skip(f"photo {image} may not be shipped; set REGIONCLIP_GOLDENS to a folder with inputs.npz")
    pixels = torch.from_numpy(inputs[f"{image}/image"])
    height, width = inputs[f"{image}/orig_hw"].tolist()
    instances = Instances(tuple(pixels.shape[1:]))
    instances.gt_boxes = Boxes(torch.from_numpy(inputs[f"{image}/gt_boxes"]))
    instances.gt_classes = torch.from_numpy(inputs[f"{image}/gt_classes"])
    return {"image": pixels, "instances": instances, "height": height, "width": width}


def assert_agrees(golden, computed, prefix=""):
    report = compare({key: golden[key] for key in golden.files if key in computed}, computed)
    assert report.rows, "nothing was compared"
    assert report.ok, f"{prefix}\n{report.text()}"


def best_words(golden, prefix, boxes, classes):
    """The words [N, 20] that a golden has for detections, which are at other ranks there where scores tie."""
    apart = torch.cdist(boxes, torch.from_numpy(golden[f"{prefix}boxes"]).float())
    other_class = classes[:, None] != torch.from_numpy(golden[f"{prefix}classes"])[None]
    return torch.from_numpy(golden[f"{prefix}probs_top20_idx"])[(apart + 1e6 * other_class).argmin(dim=1)]


UNITS = np.load(GOLDENS / "i_units.npz")
