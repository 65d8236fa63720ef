"""Average recall of proposals, against a slow definition."""

import json
import math

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from torchvision.ops import box_iou

from regionclip.evaluation.proposals import LIMITS, ProposalEvaluator
from regionclip.evaluation.unseen_recall import unseen_recalls

NAMES = {"cat": 3, "dog": 5, "bird": 9}
GROUPS = {"novel": ["bird"], "base": ["cat", "dog"]}


def random_boxes(random, count):
    corners = random.uniform(0, 80, (count, 2))
    return np.concatenate([corners, corners + random.uniform(8, 60, (count, 2))], axis=1).round(1)


@pytest.fixture
def world(tmp_path):
    """Return annotations, and proposals near some of them."""
    random = np.random.default_rng(0)
    truth = {"images": [], "annotations": [], "categories": [{"id": i, "name": n} for n, i in NAMES.items()]}
    proposals = {}
    for image in range(6):
        boxes = random_boxes(random, 7)
        truth["images"].append({"id": image, "width": 150, "height": 150, "file_name": f"{image}.jpg"})
        for box in boxes.tolist():
            x1, y1, x2, y2 = box
            annotation = {"id": len(truth["annotations"]) + 1, "image_id": image, "iscrowd": 0}
            annotation |= {"category_id": int(random.choice(list(NAMES.values()))), "area": (x2 - x1) * (y2 - y1)}
            truth["annotations"].append(annotation | {"bbox": [x1, y1, x2 - x1, y2 - y1]})
        near = boxes + random.normal(0, 4, boxes.shape)
        rows = torch.tensor(np.concatenate([near, random_boxes(random, 40)]), dtype=torch.float32)
        scores = torch.tensor(random.normal(0, 1, len(rows)), dtype=torch.float32)
        proposals[image] = Instances((150, 150), proposal_boxes=Boxes(rows), objectness_logits=scores)
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(truth))
    return path, truth, proposals


def slow_recall(truth, proposals, limit, ids):
    """Match greedily from the best proposal on, at each threshold, and average the shares of objects that are found."""
    shares = []
    for threshold in np.arange(0.5, 1, 0.05):
        found = total = 0
        for image, instances in proposals.items():
            objects = [a["bbox"] for a in truth["annotations"] if a["image_id"] == image and a["category_id"] in ids]
            if not objects:
                continue
            x, y, width, height = torch.tensor(objects, dtype=torch.float64).T
            order = instances.objectness_logits.argsort(descending=True)[:limit]
            overlaps = box_iou(
                instances.proposal_boxes.tensor[order].double(), torch.stack([x, y, x + width, y + height], dim=1)
            )
            free = torch.ones(len(objects), dtype=torch.bool)
            for row in overlaps:
                best = row.where(free, -1.0).argmax()
                if free[best] and row[best] >= threshold - 1e-10:
                    free[best] = False
            found += int((~free).sum())
            total += len(objects)
        shares.append(found / total)
    return 100 * float(np.mean(shares))


@pytest.mark.parametrize("backend", ["faster", "official"])
def test_recalls_are_those_of_the_definition(backend, world, tmp_path):
    path, truth, proposals = world
    evaluator = ProposalEvaluator(str(path), tmp_path, class_ids=NAMES, class_groups=GROUPS, backend=backend)
    evaluator.reset()
    evaluator.process([{"image_id": image} for image in proposals], [{"proposals": p} for p in proposals.values()])
    metrics = evaluator.evaluate()["proposals"]
    groups = {"": set(NAMES.values()), "-novel": {9}, "-base": {3, 5}}
    for group, ids in groups.items():
        for limit in LIMITS:
            expected = slow_recall(truth, proposals, limit, ids)
            assert metrics[f"AR@{limit}{group}"] == pytest.approx(expected, abs=1e-6), (limit, group)
    assert 5 < metrics["AR@10"] < metrics["AR@100"] < 95
    results = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert len(results) == 6 * 47
    assert {result["category_id"] for result in results} == {3}


def test_olns_protocol_removes_what_is_of_base_objects(world, tmp_path, monkeypatch):
    path, _, proposals = world
    removed = []

    def noted(content, results, seen, *arguments):
        removed.append(seen)
        return unseen_recalls(content, results, seen, *arguments)

    monkeypatch.setattr("regionclip.evaluation.proposals.unseen_recalls", noted)
    options = {"class_ids": NAMES, "class_groups": GROUPS, "unseen_budget": True}
    evaluator = ProposalEvaluator(str(path), tmp_path, **options)
    evaluator.process([{"image_id": image} for image in proposals], [{"proposals": p} for p in proposals.values()])
    metrics = evaluator.evaluate()["proposals"]
    numbers = {name: number for number, name in enumerate(NAMES, start=1)}
    assert removed == [{numbers[name] for name in GROUPS["base"]}]
    assert metrics["AR@100-unseen"] >= metrics["AR@100-novel"] > 0


def test_nothing_found_and_nothing_there_are_no_number(world, tmp_path):
    path, _, proposals = world
    evaluator = ProposalEvaluator(str(path), tmp_path, class_ids=NAMES | {"fish": 11}, class_groups={"novel": ["fish"]})
    evaluator.process([{"image_id": 0}], [{"proposals": proposals[0]}])
    metrics = evaluator.evaluate()["proposals"]
    assert math.isnan(metrics["AR@100-novel"])
    assert metrics["AR@100"] > 0
    evaluator.reset()
    assert math.isnan(evaluator.evaluate()["proposals"]["AR@100"])
