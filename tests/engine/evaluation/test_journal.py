"""The journal of an evaluation: what is kept, what is left out, and when it goes."""

import json
import os
from pathlib import Path

import pytest
import torch
from detectron2.structures import Boxes, Instances
from torch import nn

from regionclip.config.loading import load_config
from regionclip.data.datasets.custom_images import use_custom_image_folder
from regionclip.engine.evaluation.evaluate import evaluate, evaluation_fingerprint, prepare_evaluation
from regionclip.engine.training.trainer import DetectorTrainer
from regionclip.journal import Journal
from tests.helpers.detectors import flat
from tests.helpers.images import write_image

NAMES = ("lvis_v1_val_custom_img", "lvis_v1_train_custom_img")


class Stub(nn.Module):
    """A detector of one box an image, which dies at a given call."""

    def __init__(self, dies_at=None):
        super().__init__()
        self.calls, self.dies_at = 0, dies_at

    def forward(self, images):
        if self.calls == self.dies_at:
            raise KeyboardInterrupt
        self.calls += 1
        instances = Instances((60, 90))
        instances.pred_boxes = Boxes(torch.tensor([[1.0, 2.0, 30.0, 40.0]]))
        instances.scores, instances.pred_classes = torch.tensor([0.5]), torch.tensor([3])
        return [{"instances": instances} for _ in images]


@pytest.fixture
def cfg(tiny, tmp_path):
    """A config on three images under two dataset names."""
    for name in "abc":
        write_image(tmp_path / "in" / f"{name}.jpg")
    use_custom_image_folder(tmp_path / "in")
    overrides = {"INPUT_DIR": str(tmp_path / "in"), "OUTPUT_DIR": str(tmp_path / "out"), "DATASETS.TEST": str(NAMES)}
    return load_config(tiny["config"], flat(tiny["overrides"] | overrides))


def test_interruption_between_two_datasets_loses_neither(cfg, tmp_path):
    weights = [cfg.MODEL.WEIGHTS]
    with pytest.raises(KeyboardInterrupt):
        evaluate(cfg, Stub(dies_at=4), prepare_evaluation(cfg, weights))  # 3 images of the first, 1 of the second
    model = Stub()
    reports = evaluate(cfg, model, prepare_evaluation(cfg, weights))
    assert model.calls == 2
    assert [report.images for report in reports.values()] == [3, 3]
    for name in NAMES:
        results = json.loads((tmp_path / "out/inference" / name / "lvis_instances_results.json").read_text())
        assert sorted(result["image_id"] for result in results) == [0, 1, 2]
    assert not list((tmp_path / "out").rglob("*.jsonl")), "a complete run leaves no journal"


def test_evaluation_without_weight_files_keeps_no_journal(cfg, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        evaluate(cfg, Stub(dies_at=1), prepare_evaluation(cfg))
    assert not list((tmp_path / "out").rglob("*.jsonl"))


def test_partial_line_does_not_run_into_the_next(tmp_path):
    journal = Journal(tmp_path, "print")
    journal.append([{"image_id": 1, "instances": []}])
    path = tmp_path / "predictions.0.jsonl"
    path.write_text(path.read_text() + '{"image_id": 2, "inst')
    before = path.read_text()
    again = Journal(tmp_path, "print")
    again.append([{"image_id": 3, "instances": []}])
    assert path.read_text().startswith(before), "what an earlier run wrote is only added to"
    assert [prediction["image_id"] for prediction in again.finished()] == [1, 3]


def test_journals_of_more_processes_than_now_are_read_once_an_image(tmp_path):
    for rank, ids in enumerate([[1, 2], [2, 3]]):
        lines = ["print", *(json.dumps({"image_id": i, "instances": []}) for i in ids)]
        (tmp_path / f"predictions.{rank}.jsonl").write_text("\n".join(lines) + "\n")
    assert sorted(p["image_id"] for p in Journal(tmp_path, "print").finished()) == [1, 2, 3]
    assert Journal(tmp_path, "other").finished() == []


def change_embeddings(cfg, records):
    path = cfg.MODEL.CLIP.TEXT_EMB_PATH
    state = Path(path).stat()
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    return {}


def replace_image(cfg, records):
    write_image(Path(records[0]["file_name"]), size=(91, 60))
    return {}


CHANGES = {
    "nothing": lambda cfg, records: {},
    "embeddings": change_embeddings,
    "image": replace_image,
    "fewer images": lambda cfg, records: {"records": records[1:]},
    "allowed to miss": lambda cfg, records: {"allow_missing": ["offline_"]},
    "weights": lambda cfg, records: {"weights": [cfg.MODEL.CLIP.TEXT_EMB_PATH]},
    "dataset": lambda cfg, records: {"dataset_name": NAMES[1]},
}


@pytest.mark.parametrize("change", CHANGES)
def test_fingerprint_covers_all_that_decides_predictions(cfg, tmp_path, change):
    paths = sorted((tmp_path / "in").iterdir())
    records = [{"image_id": i, "file_name": str(path)} for i, path in enumerate(paths)]
    arguments = {"cfg": cfg, "dataset_name": NAMES[0], "records": records, "weights": [cfg.MODEL.WEIGHTS]}
    before = evaluation_fingerprint(**arguments)
    after = evaluation_fingerprint(**(arguments | CHANGES[change](cfg, records)))
    assert (before == after) == (change == "nothing")


def test_fingerprint_covers_the_rpn(cfg, tmp_path):
    config = tmp_path / "rpn.yaml"
    prints = []
    for threshold in ("0.5", "0.7"):
        config.write_text(f"MODEL: {{RPN: {{NMS_THRESH: {threshold}}}}}\n")
        cfg.MODEL.CLIP.OFFLINE_RPN_CONFIG = str(config)
        prints.append(evaluation_fingerprint(cfg, NAMES[0], [], []))
    assert prints[0] != prints[1]


def test_training_without_test_set_evaluates_nothing(cfg):
    cfg.DATASETS.TEST = ()
    assert DetectorTrainer.test(cfg, Stub()) == {}


def test_names_of_files_may_have_any_characters(tmp_path):
    """`new[1]` is no pattern, and `new` is another run than `new.val`."""
    for name in ("new[1]", "new", "new.val"):
        journal = Journal(tmp_path, f"run of {name}", name)
        journal.append([{"image_id": name}])
        again = Journal(tmp_path, f"run of {name}", name)
        again.require_own()
        assert again.finished() == [{"image_id": name}]
