"""OLN's protocol, against hand-computed values."""

import pytest

from regionclip.evaluation.unseen_recall import area_under_recall, unseen_recalls

SEEN, NOVEL = 1, 2


def truth(*objects, crowds=()):
    annotations = [
        {
            "id": number,
            "image_id": 1,
            "category_id": category,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": (x2 - x1) * (y2 - y1),
            "iscrowd": int(number - 1 in crowds),
        }
        for number, (category, (x1, y1, x2, y2)) in enumerate(objects, start=1)
    ]
    categories = [{"id": SEEN, "name": "seen"}, {"id": NOVEL, "name": "novel"}]
    image = {"id": 1, "width": 400, "height": 200, "file_name": "1.jpg"}
    return {"images": [image], "annotations": annotations, "categories": categories}


def ranked(*boxes):
    return [
        {"image_id": 1, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": 1 - i / 100}
        for i, (x1, y1, x2, y2) in enumerate(boxes)
    ]


def test_detections_of_seen_objects_cost_no_budget_but_their_duplicates_do():
    content = truth((SEEN, (0, 0, 100, 100)), (NOVEL, (200, 0, 300, 100)))
    results = ranked((0, 0, 100, 100), (0, 0, 100, 80), (200, 0, 300, 82))
    recalls = unseen_recalls(content, results, {SEEN}, (1, 2, 3))
    assert recalls == pytest.approx({1: 0.0, 2: 0.7, 3: 0.7})


def test_only_seen_objects_are_ignored():
    content = truth((SEEN, (0, 0, 100, 100)))
    assert all(value != value for value in unseen_recalls(content, ranked((0, 0, 9, 9)), {SEEN}).values())
    content = truth((NOVEL, (0, 0, 100, 100)), (NOVEL, (200, 0, 300, 100)))
    assert unseen_recalls(content, ranked((0, 0, 100, 100)), {SEEN}, (1,)) == pytest.approx({1: 0.5})


def test_the_area_under_the_published_recalls():
    recalls = {10: 18, 30: 26.5, 50: 29.6, 100: 33.4, 300: 39, 500: 41.5, 1000: 45}
    assert area_under_recall(recalls) / 100 == pytest.approx(0.248473330376813, abs=1e-12)
