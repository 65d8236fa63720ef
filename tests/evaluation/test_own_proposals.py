"""Recall of a detector's own proposals, for every method, against a literal computation."""

import importlib
import json

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from regionclip.config.loading import load_config
from regionclip.data.class_lists import parse_names
from regionclip.engine.evaluation.evaluate import evaluate, prepare_evaluation
from regionclip.errors import UserError
from regionclip.evaluation.build import build_evaluator
from regionclip.method import METHODS
from regionclip.modeling.build import build_model
from regionclip.modeling.proposals.own import OwnProposals
from regionclip.testing.deterministic import fill_deterministic
from tests.helpers.detectors import flat
from tests.helpers.training import register, write_images


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own_proposals")
    write_images(folder)
    return folder


@pytest.fixture(params=METHODS)
def detector(request, world, embedding_file, tmp_path):
    """Return the config and the tiny detector of a method, on a dataset of three classes."""
    case = importlib.import_module(f"tests.methods.{request.param}.tiny")
    options = case.OVERRIDES | {
        "DATASETS.TEST": f"('{register(world)}',)",
        "MODEL.ROI_HEADS.NUM_CLASSES": "3",
        case.EMBEDDINGS: embedding_file("own_proposals", 3, 32, parse_names(getattr(case, "NAMES", ""))[:3]),
        "TEST.EVALUATE_PROPOSALS": "True",
        "OUTPUT_DIR": str(tmp_path),
    }
    cfg = load_config(case.CONFIG, flat(options))
    model = build_model(cfg).eval()
    fill_deterministic(model, skip=["cls_score.weight", "cls_bg_score.weight"])
    return cfg, model


def literal_recall(truth, proposals, limit):
    """Return COCO's average recall: the share of objects with a proposal, over ten overlaps.

    As in COCO, a proposal serves one object, and the best ones choose first.
    """
    found = []
    for overlap in np.arange(0.5, 1.0, 0.05):
        for image, boxes in truth.items():
            free = dict(enumerate(boxes))
            for box in proposals[image][:limit]:
                overlaps = {n: float(box_iou(box[None], other[None])) for n, other in free.items()}
                best = max(overlaps, key=overlaps.get, default=None)
                if best is not None and overlaps[best] >= min(overlap, 1 - 1e-10):
                    del free[best]
            found.append(len(boxes) - len(free))
    return 100 * sum(found) / (10 * sum(map(len, truth.values())))


def test_recalls_are_those_of_a_literal_computation(detector, world):
    cfg, model = detector
    (job,) = prepare_evaluation(cfg)
    images = [image for batch in job.loader for image in batch]
    report = evaluate(cfg, model, [job])[job.dataset_name]
    # One image at a time, as in evaluation: padding changes what is next to it.
    own = OwnProposals(model).eval()
    outputs = {image["image_id"]: own([image])[0]["proposals"] for image in images}
    proposals = {number: output.proposal_boxes.tensor for number, output in outputs.items()}
    assert all(len(boxes) for boxes in proposals.values())
    truth = {image: [] for image in proposals}
    for annotation in json.loads((world / "annotations.json").read_text())["annotations"]:
        x, y, w, h = annotation["bbox"]
        truth[annotation["image_id"]].append(torch.tensor([x, y, x + w, y + h], dtype=torch.float32))
    for limit in (10, 100):
        expected = literal_recall(truth, proposals, limit)
        assert report.metrics["proposals"][f"AR@{limit}"] == pytest.approx(expected, abs=1e-6)
    assert report.metrics["proposals"]["AR@100"] > 0


def test_other_datasets_are_refused(detector):
    cfg, _ = detector
    with pytest.raises(UserError, match="expected a COCO dataset, for recall"):
        build_evaluator(cfg, "lvis_v1_val", "unused", 3)
