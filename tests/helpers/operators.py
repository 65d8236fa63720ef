"""Random problems for the operators, and how closely implementations have to agree."""

import math

import torch
from hypothesis import strategies as st

LAYOUTS = {"channels first": torch.contiguous_format, "channels last": torch.channels_last}


def random_problem(seed, dtype=torch.float32, images=2, channels=5, height=13, width=17, count=9):
    """Maps and regions in and around them, for a scale of 1 / 16."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(images, channels, height, width, generator=generator, dtype=torch.float64)
    corner = torch.rand(count, 2, generator=generator, dtype=torch.float64) * torch.tensor([width, height]) * 20 - 32
    size = torch.rand(count, 2, generator=generator, dtype=torch.float64) ** 2 * 16 * torch.tensor([width, height])
    image = torch.randint(0, max(images, 1), (count, 1), generator=generator)
    # Coordinates in thirds of a pixel: no sample lies where rounding decides whether it counts.
    boxes = (torch.cat([corner, corner + size], dim=1) * 3).round() / 3 + 0.0123
    rois = torch.cat([image, boxes], dim=1)
    return features.to(dtype), rois.to(torch.promote_types(dtype, torch.float32))


TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def random_boxes(seed, count, size=100.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator, dtype=torch.float64) * size
    sides = torch.rand(count, 2, generator=generator, dtype=torch.float64) * size / 2
    scores = (torch.rand(count, generator=generator, dtype=torch.float64) * 50).round() / 50  # with ties
    classes = torch.randint(-3, 4, (count,), generator=generator) * 10**9
    return torch.cat([corner, corner + sides], dim=1).to(dtype), scores.to(dtype), classes


def literal_nms(boxes, scores, classes, threshold):
    """The definition in loops over plain numbers."""

    def iou(a, b):
        width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
        shared = max(width, 0) * max(height, 0)
        union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
        return shared / union if union else 0.0

    boxes, scores, classes = boxes.tolist(), scores.tolist(), classes.tolist()
    kept = []
    for i in sorted(range(len(boxes)), key=lambda i: (-scores[i], i)):
        if all(classes[j] != classes[i] or iou(boxes[j], boxes[i]) <= threshold for j in kept):
            kept.append(i)
    return kept


STRANGE = st.sampled_from([math.nan, math.inf, -math.inf, 1e38, -1e38, 0.0, -0.0, 1e-40, 5.0, 7.0, 3.0])
