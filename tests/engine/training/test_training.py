"""Training as a user runs it: what is learned, logged, left out, and kept."""

import copy
import json
import logging
import math

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.utils.events import EventStorage
from PIL import Image
from torch.amp import GradScaler
from torch.nn.modules.module import register_module_forward_hook

from regionclip.config.loading import load_config
from regionclip.config.training_checks import class_problems, training_problems
from regionclip.data.datasets.cleaning import clean_records
from regionclip.data.datasets.lvis import load_lvis
from regionclip.data.datasets.registered import read_records
from regionclip.data.sampling import TrainingBatches, endless_order
from regionclip.data.test_loader import build_test_loader
from regionclip.data.training_loader import TrainingMapper, read_training_data, read_training_records, training_batches
from regionclip.engine.checkpoint.reading import read_checkpoint
from regionclip.engine.training.averaging import WeightAverage
from regionclip.engine.training.state import best_of, best_value_of, recent_metrics
from regionclip.engine.training.trainer import DetectorTrainer
from regionclip.engine.workflows import scale_to_processes
from regionclip.errors import UserError
from regionclip.testing.deterministic import deterministic_text_embeddings
from tests.helpers.goldens import photo
from tests.helpers.paths import DATA
from tests.helpers.training import CONFIG, register, train, train_in_processes, training_config, write_images

SHORT = {"SOLVER__MAX_ITER": 4, "SOLVER__CHECKPOINT_PERIOD": 2, "DATASETS__TEST": "()"}


@pytest.fixture
def world(tmp_path):
    """Return a folder of images, and a function that changes what is annotated."""
    folder = tmp_path / "world"
    content = write_images(folder)

    def change(edit):
        edit(content)
        (folder / "annotations.json").write_text(json.dumps(content))

    return folder, change


def test_one_step_changes_what_is_trained_and_nothing_else(golden_detector, golden_inputs):
    golden, model = golden_detector("g_ovd_losses")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    image = photo(golden_inputs, 460229)
    image["instances"].gt_classes %= 48
    cfg = load_config(CONFIG)
    optimizer = DetectorTrainer.build_optimizer(cfg, model)
    with EventStorage():
        losses = model.train()([image])
    sum(losses.values()).backward()
    optimizer.step()
    changed = [key for key, value in model.state_dict().items() if not torch.equal(value, before[key])]
    assert sorted(changed) == sorted(json.loads(str(golden["ovd/trainable"])))


@pytest.mark.slow
def test_a_tiny_detector_learns_four_photos_by_heart(tmp_path):
    """Both stages from scratch: the region proposal network, then the detector on its boxes."""
    photos = DATA / "four_photos"
    torch.save(deterministic_text_embeddings("coco_48", 48, 32), tmp_path / "embeddings.pth")
    rpn_config = tmp_path / "rpn.yaml"
    rpn_config.write_text(
        f'_BASE_: "{DATA}/tiny_rpn.yaml"\nMODEL:\n  META_ARCHITECTURE: "ProposalNetwork"\n'
        '  RESNETS:\n    NORM: "GN"\n  BACKBONE:\n    FREEZE_AT: 0\n'
        "  ANCHOR_GENERATOR:\n    SIZES: [[16, 32, 64, 128]]\n  RPN:\n    BATCH_SIZE_PER_IMAGE: 64\n"
    )
    common = {
        "INPUT__MIN_SIZE_TRAIN": "(128, 160)",
        "INPUT__MIN_SIZE_TEST": 160,
        "MODEL__BACKBONE__FREEZE_AT": 0,
        "MODEL__CLIP__TEXT_EMB_PATH": tmp_path / "embeddings.pth",
        "MODEL__ROI_HEADS__NUM_CLASSES": 48,
        "SOLVER__IMS_PER_BATCH": 4,
        "SOLVER__BASE_LR": 0.02,
        "SOLVER__WARMUP_ITERS": 20,
        "SOLVER__CHECKPOINT_PERIOD": 1000,
    }
    rpn_only = {"MODEL__CLIP__CROP_REGION_TYPE": "", "DATASETS__TEST": "()", "MODEL__CLIP__TEXT_EMB_PATH": ""}
    schedule = {"SOLVER__MAX_ITER": 150, "SOLVER__STEPS": "(112,)"}
    train(photos, tmp_path / "rpn", config=str(rpn_config), **common | rpn_only | schedule)
    detector = {
        "MODEL__CLIP__OFFLINE_RPN_CONFIG": rpn_config,
        "MODEL__CLIP__BB_RPN_WEIGHTS": tmp_path / "rpn" / "model_final.pth",
        "MODEL__RESNETS__NORM": "BN",
        "MODEL__ROI_HEADS__BATCH_SIZE_PER_IMAGE": 32,
        "SOLVER__CLIP_GRADIENTS__ENABLED": True,
        "SOLVER__CLIP_GRADIENTS__CLIP_TYPE": "norm",
    }
    schedule = {"SOLVER__MAX_ITER": 120, "SOLVER__STEPS": "(90,)"}
    trainer, _ = train(photos, tmp_path / "detector", **common | detector | schedule)
    assert trainer.storage.latest()["bbox/AP50"][0] >= 90


def append(content, **changes):
    annotation = content["annotations"][0] | {"id": len(content["annotations"]) + 1} | changes
    content["annotations"].append(annotation)


BAD_ANNOTATIONS = {
    "boxes outside the image, left out": {"bbox": [500, 5, 10, 10]},
    "boxes without area, left out": {"bbox": [5, 5, 0, 10]},
    "boxes with coordinates that are not finite, left out": {"bbox": [math.nan, 5, 10, 10]},
    "boxes that are not four numbers, left out": {"bbox": [5, 5, 10]},
    "boxes cut at the edge of the image": {"bbox": [50, 40, 300, 300]},
    "annotations of unknown categories": {"category_id": 77},
    "annotations of unknown images": {"image_id": 99},
}


def test_bad_annotations_are_counted_reported_once_and_left_out(world, caplog, tmp_path):
    folder, change = world

    def damage(content):
        for changes in BAD_ANNOTATIONS.values():
            append(content, **changes)
            append(content, **changes)
        for annotation in content["annotations"]:
            if annotation["image_id"] == 1:
                annotation["iscrowd"] = 1
            if annotation["image_id"] == 3:
                annotation["bbox"] = [0, 0, -4, 4]
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] != 2]

    change(damage)
    with caplog.at_level(logging.WARNING, "regionclip"):
        _, report = train(folder, tmp_path / "out", **SHORT)
    assert report.iterations == 4
    messages = [record.getMessage() for record in caplog.records]
    for reason in BAD_ANNOTATIONS:
        if "without area" not in reason:
            assert [m for m in messages if f" 2 {reason}" in m] == [m for m in messages if reason in m], reason
            assert len([m for m in messages if reason in m]) == 1, reason
    assert any("5 boxes without area" in m for m in messages)
    assert any("1 images with crowds only, left out" in m for m in messages)
    assert any("1 images without annotation, left out" in m for m in messages)
    assert any("1 images whose annotations are all unusable, left out" in m for m in messages)


def test_a_dataset_without_usable_images_is_refused(world, tmp_path):
    folder, change = world
    change(lambda content: content["annotations"].clear())
    with pytest.raises(UserError, match="expected images with boxes, got none of 8"):
        train(folder, tmp_path / "out", **SHORT)
    assert not (tmp_path / "out").exists()


def test_boxes_are_cut_at_the_edge_and_small_overlaps_are_not_counted():
    box = {"category_id": 0, "bbox_mode": 1}
    record = {"width": 100, "height": 50}
    annotations = [box | {"bbox": [90, 40, 10.5, 10.5]}, box | {"bbox": [90, 40, 30, 30]}]
    (cleaned,), counts = clean_records([record | {"annotations": annotations}], 1)
    assert [annotation["bbox"] for annotation in cleaned["annotations"]] == [[90, 40, 100, 50]] * 2
    assert counts == {"boxes cut at the edge of the image": 1}


def test_a_network_that_only_proposes_learns_from_the_boxes_of_any_class(world, tmp_path):
    folder, _ = world
    only_proposals = {"MODEL__META_ARCHITECTURE": "ProposalNetwork", "MODEL__ROI_HEADS__NUM_CLASSES": 1}
    cfg = training_config(folder, tmp_path / "out", **only_proposals)
    assert sum(len(record["annotations"]) for record in read_training_records(cfg)) == 8 * 3


def test_masks_that_cannot_be_learned_are_left_out():
    box = {"category_id": 0, "bbox_mode": 1, "bbox": [0, 0, 9, 9]}
    run_lengths = {"counts": [81], "size": [9, 9]}
    masks = [None, [], [[0, 0, 9, 9]], [[0, 0, 9, 0, 9, math.nan]], run_lengths, [[0, 0, 9, 0, 9, 9]]]
    record = {"width": 9, "height": 9, "annotations": [box | {"segmentation": mask} for mask in masks]}
    for mask_format, usable in (("polygon", 1), ("bitmask", 2)):
        (cleaned,), counts = clean_records([record], 1, mask_format=mask_format)
        assert len(cleaned["annotations"]) == usable
        assert counts["annotations without mask"] == counts["masks with broken polygons"] == 2


ODD_ANNOTATIONS = {
    "a null": None,
    "numbers as strings": {"bbox": ["5", "5", "10", "10"]},
    "no box": {"bbox": None},
    "a number of 400 digits": {"bbox": [5, 5, 10, 10**400]},
    "a flat polygon": {"segmentation": [5, 5, 20, 5, 20, 20]},
    "a number for a polygon": {"segmentation": 7},
    "a null in a polygon": {"segmentation": [[5, 5, None, 5, 20, 20]]},
    "run lengths without counts": {"segmentation": {"size": [64, 96]}},
    "run lengths of another size": {"segmentation": {"size": [5, 5], "counts": [25]}},
    "broken run lengths": {"segmentation": {"size": [64, 96], "counts": [1, 2]}},
    "a crowd in words": {"iscrowd": "1"},
}


@pytest.mark.parametrize("masks", ["none", "polygon", "bitmask"])
def test_odd_annotations_never_stop_a_training(masks, world, tmp_path):
    folder, change = world

    def damage(content):
        for changes in ODD_ANNOTATIONS.values():
            content["annotations"].append(changes if changes is None else content["annotations"][0] | changes)
        for image in content["images"][:2]:
            image["width"] = None
        content["images"][2].pop("height")

    change(damage)
    options = {"MODEL__MASK_ON": masks != "none", "INPUT__MASK_FORMAT": masks if masks != "none" else "polygon"}
    trainer, report = train(folder, tmp_path / "out", **SHORT | options | {"SOLVER__MAX_ITER": 8})
    assert (report.iterations, report.unreadable) == (8, [])
    assert len(trainer.data.records) == 8


def test_images_without_annotation_are_kept_when_asked_for(world):
    folder, change = world
    change(lambda content: content.update(annotations=[a for a in content["annotations"] if a["image_id"] > 2]))
    for wanted, count in ((True, 5), (False, 8)):
        cfg = training_config(folder, folder / "out", DATALOADER__FILTER_EMPTY_ANNOTATIONS=wanted)
        assert len(read_training_data(cfg).records) == count


def test_classes_that_detectron2_reads_late_are_checked_then(world, tmp_path):
    folder, _ = world
    register_coco_instances(f"own_{tmp_path}", {}, str(folder / "annotations.json"), str(folder / "images"))
    own = {"DATASETS__TRAIN": f"('own_{tmp_path}',)", "MODEL__ROI_HEADS__NUM_CLASSES": 4}
    with pytest.raises(UserError, match="NUM_CLASSES: expected 3, the classes of own_"):
        train(folder, tmp_path / "out", **SHORT | own)
    assert not (tmp_path / "out").exists()
    DatasetCatalog.remove(f"own_{tmp_path}")
    MetadataCatalog.remove(f"own_{tmp_path}")


def test_norms_that_are_trained_are_as_before_a_step_that_diverged(world, tmp_path):
    folder, _ = world
    settings = SHORT | {"MODEL__RESNETS__NORM": "BN", "SOLVER__CHECKPOINT_PERIOD": 100}
    trainer = DetectorTrainer(training_config(folder, tmp_path / "out", **settings), allow_missing=("offline_",))
    trainer.resume_or_load(False)
    forward, steps = trainer.model.forward, []

    def poisoned(batch):
        steps.append(batch)
        if len(steps) == 3:
            for image in batch:
                image["image"] = image["image"].float() * math.nan
        return forward(batch)

    trainer.model.forward = poisoned
    with pytest.raises(UserError, match="the state before this step is in"):
        trainer.train()
    weights = torch.load(tmp_path / "out" / "model_0000001.pth", weights_only=True)["model"]
    assert "backbone.bn1.running_mean" in weights
    assert all(torch.isfinite(value).all() for value in weights.values() if value.is_floating_point())


@pytest.mark.parametrize(("reference", "images", "rate"), [(0, 16, 0.002), (1, 16, 0.002), (4, 4, 0.0005)])
def test_a_config_for_other_processes_is_scaled_before_it_is_checked(reference, images, rate, world, tmp_path):
    options = {"SOLVER__IMS_PER_BATCH": 16, "SOLVER__REFERENCE_WORLD_SIZE": reference, "SOLVER__MAX_ITER": 100}
    cfg = scale_to_processes(training_config(world[0], tmp_path, **options))
    assert (images, rate) == (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR)
    with pytest.raises(UserError, match="REFERENCE_WORLD_SIZE: expected a divisor of 16"):
        scale_to_processes(training_config(world[0], tmp_path, **options | {"SOLVER__REFERENCE_WORLD_SIZE": 5}))


def test_unreadable_images_are_replaced_and_reported(world, tmp_path, caplog):
    folder, _ = world
    (folder / "images" / "1.png").unlink()
    (folder / "images" / "4.png").write_bytes(b"no image")
    Image.new("RGB", (10, 10)).save(folder / "images" / "6.png")
    with caplog.at_level(logging.WARNING, "regionclip"):
        _, report = train(folder, tmp_path / "out", **SHORT | {"SOLVER__MAX_ITER": 8})
    assert report.iterations == 8
    assert sorted(line.split(":")[0][-5:] for line in report.unreadable) == ["1.png", "4.png", "6.png"]
    assert any("10 x 10 pixels, its annotations say 64 x 96" in line for line in report.unreadable)
    for line in report.unreadable:
        assert caplog.text.count(f"Replaced unreadable image {line}") == 1


def test_a_training_without_a_readable_image_stops(world, tmp_path):
    folder, _ = world
    for path in (folder / "images").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="training images: expected files that can be read"):
        train(folder, tmp_path / "out", **SHORT)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_with_names_and_a_checkpoint(bad, world, tmp_path):
    folder, _ = world
    cfg = training_config(folder, tmp_path / "out", **SHORT | {"SOLVER__CHECKPOINT_PERIOD": 100})
    trainer = DetectorTrainer(cfg, allow_missing=("offline_",))
    trainer.resume_or_load(False)
    forward, batches = trainer.model.forward, []

    def diverging(batch):
        batches.append(batch)
        losses = forward(batch)
        return {name: loss * bad if len(batches) == 3 else loss for name, loss in losses.items()}

    trainer.model.forward = diverging
    with pytest.raises(UserError) as stop:
        trainer.train()
    message = str(stop.value)
    assert message.startswith("loss of iteration 3: expected a finite number, got loss_box_reg=")
    for image in batches[2]:
        assert image["file_name"] in message
    path = tmp_path / "out" / "model_0000001.pth"
    assert f"the state before this step is in {path}" in message
    weights = torch.load(path, weights_only=True)["model"]
    assert all(torch.isfinite(value).all() for value in weights.values() if value.is_floating_point())
    resumed, report = train(folder, tmp_path / "out", **SHORT)
    assert (resumed.start_iter, report.iterations) == (2, 4)


def test_logs_hold_losses_speed_memory_and_time_left(world, tmp_path, caplog):
    folder, _ = world
    with caplog.at_level(logging.INFO, "regionclip"):
        train(folder, tmp_path / "out", SOLVER__MAX_ITER=40, SOLVER__STEPS="()", DATASETS__TEST="()")
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.json").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [19, 39]
    wanted = {"total_loss", "loss_cls", "loss_box_reg", "lr", "time", "data_time", "images_per_second", "max_memory_gb"}
    assert all(wanted <= line.keys() for line in lines)
    (line, _) = [r.getMessage() for r in caplog.records if r.getMessage().startswith("iteration ")]
    for part in ("iteration 20/40", "0:00:0", " left", "loss_cls ", "lr 0.002", " images/s", " s of it data", " GB"):
        assert part in line, part
    assert list((tmp_path / "out").glob("events.out.tfevents.*"))


def test_the_best_weights_by_a_named_metric_are_kept(world, tmp_path, monkeypatch, caplog):
    folder, _ = world
    values = iter([10.0, 30.0, 20.0])
    seen = []

    def evaluation(cls, cfg, model):
        seen.append({name: p.detach().clone() for name, p in model.named_parameters()})
        return {"bbox": {"AP50": next(values)}}

    monkeypatch.setattr(DetectorTrainer, "test", classmethod(evaluation))
    settings = SHORT | {"DATASETS__TEST": "('coco_2017_ovd_b_test',)", "SOLVER__MAX_ITER": 6, "TEST__EVAL_PERIOD": 2}
    _, report = train(folder, tmp_path / "out", SOLVER__BEST_CHECKPOINT_METRIC="bbox/AP50", **settings)
    best = torch.load(tmp_path / "out" / "model_best.pth", weights_only=True)["model"]
    assert all(torch.equal(best[name], value) for name, value in seen[1].items())
    assert report.weights.name == "model_final.pth"
    values = iter([1.0] * 3)
    with caplog.at_level(logging.ERROR, "regionclip"):
        train(folder, tmp_path / "other", resume=False, SOLVER__BEST_CHECKPOINT_METRIC="bbox/AP51", **settings)
    assert "SOLVER.BEST_CHECKPOINT_METRIC bbox/AP51 is none of: bbox/AP50" in caplog.text


def test_the_average_of_the_weights_is_evaluated_and_saved(world, tmp_path, monkeypatch):
    folder, _ = world
    evaluated = []

    def evaluation(cls, cfg, model):
        evaluated.append({name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad})
        return {}

    monkeypatch.setattr(DetectorTrainer, "test", classmethod(evaluation))
    settings = SHORT | {"DATASETS__TEST": "('coco_2017_ovd_b_test',)", "SOLVER__CHECKPOINT_PERIOD": 1}
    trainer, _ = train(folder, tmp_path / "out", MODEL_EMA__ENABLED=True, MODEL_EMA__DECAY=0.5, **settings)
    states = [torch.load(tmp_path / "out" / f"model_000000{i}.pth", weights_only=True)["model"] for i in range(4)]
    average = torch.load(tmp_path / "out" / "model_final_ema.pth", weights_only=True)["model"]
    name = "roi_heads.box_predictor.bbox_pred.weight"
    # The average starts at the initial weights, which the first step has not changed by much.
    expected = 0.5 * states[3][name] + 0.25 * states[2][name] + 0.125 * states[1][name] + 0.0625 * states[0][name]
    initial = (average[name] - expected) / 0.0625
    assert (initial - states[0][name]).abs().max() < 1e-2
    assert torch.equal(evaluated[0][name], average[name])
    assert torch.equal(states[3][name], trainer.model.state_dict()[name])

    result = str(tmp_path / "out" / "model_final.pth")
    assert torch.equal(read_checkpoint(result).state[name], average[name])  # what users evaluate and pack
    assert torch.equal(read_checkpoint(result, averaged=False).state[name], states[3][name])
    resumed = DetectorTrainer(trainer.cfg)
    resumed.resume_or_load(resume=True)
    assert torch.equal(resumed.model.state_dict()[name], states[3][name])
    assert torch.equal(resumed.average.state_dict()[name], average[name])


def test_processes_have_one_average(world, tmp_path):
    """Each begins with other weights, until all get those of the first."""
    folder, _ = world
    train_in_processes(2, folder, tmp_path / "out", MODEL_EMA__ENABLED=True, MODEL_EMA__DECAY=0.9, **SHORT)
    first, second = ((tmp_path / "out" / f"average.{rank}").read_text() for rank in range(2))
    assert first == second


def test_the_average_of_a_short_run_warms_up():
    layer = torch.nn.Linear(1, 1, bias=False)
    for warms_up in (True, False):
        layer.weight.data.fill_(0.0)
        average = WeightAverage(layer, 0.9, warms_up=warms_up)
        layer.weight.data.fill_(1.0)
        average.update(0)
        # A decay of (1 + 0) / (10 + 0) with it, and from (1 + t) / (10 + t) = 0.9 on that of the config.
        assert average.state_dict()["weight"].item() == pytest.approx(0.9 if warms_up else 0.1)
        average.update(199)
        assert average.state_dict()["weight"].item() == pytest.approx(0.91 if warms_up else 0.19)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_images_are_cropped_before_they_are_resized(world, share):
    """DETR's crop, with its probability: boxes stay on what is left, and those outside are gone."""
    folder, _ = world
    cfg = training_config(folder, folder / "out", INPUT__CROP_FIRST=share, INPUT__RANDOM_FLIP="none")
    mapper, sizes = TrainingMapper(cfg), set()
    (record, *_) = read_training_records(cfg)
    for seed in range(12):
        np.random.seed(seed)
        sizes.add(tuple(mapper(copy.deepcopy(record))["image"].shape[1:]))
    ratios = {round(width / height, 1) for height, width in sizes}
    assert (len(ratios) > 1) == bool(share)


def test_a_damaged_result_is_written_again(world, tmp_path):
    folder, _ = world
    train(folder, tmp_path / "out", **SHORT)
    final = tmp_path / "out" / "model_final.pth"
    whole = torch.load(final, weights_only=True)["model"]
    final.write_bytes(final.read_bytes()[:1000])
    train(folder, tmp_path / "out", **SHORT)
    again = torch.load(final, weights_only=True)["model"]
    assert all(torch.equal(again[name], value) for name, value in whole.items())


def test_a_longer_schedule_begins_with_its_own_rate(world, tmp_path):
    folder, _ = world
    cosine = SHORT | {"SOLVER__LR_SCHEDULER_NAME": "WarmupCosineLR", "SOLVER__WARMUP_ITERS": 0, "SOLVER__STEPS": "()"}
    train(folder, tmp_path / "out", **cosine)
    resumed = DetectorTrainer(training_config(folder, tmp_path / "out", **(cosine | {"SOLVER__MAX_ITER": 8})))
    resumed.resume_or_load(resume=True)
    base = resumed.cfg.SOLVER.BASE_LR
    assert resumed.optimizer.param_groups[0]["lr"] == pytest.approx(base / 2)  # half of the way
    assert resumed.start_iter == 4


def test_the_best_value_is_one_of_its_metric_and_test_sets(world, tmp_path, caplog):
    cfg = training_config(world[0], tmp_path, SOLVER__BEST_CHECKPOINT_METRIC="bbox/AP50")
    run = {"best_value": 60.0, "best_of": best_of(cfg)}
    assert best_value_of(run, cfg) == best_value_of({"best_value": 60.0}, cfg) == 60
    other = training_config(world[0], tmp_path, SOLVER__BEST_CHECKPOINT_METRIC="bbox/AP50-novel")
    assert best_value_of(run, other) == -math.inf


def test_recent_metrics_are_those_of_the_last_steps():
    with EventStorage() as storage:
        for step in range(30):
            for part in range(2):  # a batch in two parts
                storage.put_scalar("loss", 10.0 * step + part, cur_iter=step)
        kept = recent_metrics(storage)["loss"]["values"]
    assert [step for _, step in kept] == [step for step in range(10, 30) for _ in range(2)]


def test_periods_stay_whole_steps_when_scaled(world, tmp_path, monkeypatch):
    monkeypatch.setattr("regionclip.engine.workflows.comm.get_world_size", lambda: 8)
    cfg = training_config(
        world[0], tmp_path, SOLVER__REFERENCE_WORLD_SIZE=1, SOLVER__CHECKPOINT_PERIOD=3, TEST__EVAL_PERIOD=3
    )
    scaled = scale_to_processes(cfg)
    assert (scaled.SOLVER.CHECKPOINT_PERIOD, scaled.TEST.EVAL_PERIOD) == (1, 1)
    for key, value in (("SOLVER.CHECKPOINT_PERIOD", 0), ("MODEL.CLIP.GET_CONCEPT_EMB", True)):
        cfg = training_config(world[0], tmp_path, **{key.replace(".", "__"): value})
        assert any(problem.what == key for problem in training_problems(cfg)), key


@pytest.mark.parametrize("clipping", ["full_model", "norm"])
def test_gradients_are_clipped_at_their_own_scale(world, tmp_path, monkeypatch, clipping):
    """Half precision on a GPU scales losses, by a power of two; the weights are those without."""
    folder, _ = world
    settings = SHORT | {"SOLVER__OPTIMIZER": "ADAMW", "SOLVER__CLIP_GRADIENTS__ENABLED": True}
    settings |= {"SOLVER__CLIP_GRADIENTS__CLIP_TYPE": clipping, "SOLVER__CLIP_GRADIENTS__CLIP_VALUE": 1e-3}
    plain, _ = train(folder, tmp_path / "plain", **settings)
    monkeypatch.setattr("regionclip.engine.training.trainer.GradScaler", lambda enabled: GradScaler("cpu"))
    scaled, _ = train(folder, tmp_path / "scaled", **settings)
    assert scaled.scaler.get_scale() > 1
    for name, value in plain.model.state_dict().items():
        torch.testing.assert_close(scaled.model.state_dict()[name], value, msg=name)


def test_clipping_changes_nothing_else_of_sgd(world, tmp_path):
    folder, _ = world
    groups = []
    for clipping in ("norm", "full_model"):
        cfg = training_config(
            folder, tmp_path / "out", SOLVER__CLIP_GRADIENTS__CLIP_TYPE=clipping, SOLVER__BIAS_LR_FACTOR=2.0
        )
        cfg.defrost()
        cfg.SOLVER.CLIP_GRADIENTS.ENABLED, cfg.SOLVER.WEIGHT_DECAY_BIAS = True, 0.5
        optimizer = DetectorTrainer.build_optimizer(cfg, DetectorTrainer.build_model(cfg))
        groups.append([(len(g["params"]), g["lr"], g["weight_decay"], g["momentum"]) for g in optimizer.param_groups])
    assert groups[0] == groups[1]
    assert {decay for _, _, decay, _ in groups[0]} >= {0.5}


@pytest.mark.parametrize("native", [True, False])
def test_mixed_precision_trains_on_a_cpu_and_is_replaced_where_it_is_emulated(
    world, tmp_path, monkeypatch, caplog, native
):
    monkeypatch.setattr("regionclip.modeling.inference.precision.is_native", lambda *_: native)
    folder, _ = world
    computed = set()
    hook = register_module_forward_hook(
        lambda module, _, output: computed.add(output.dtype) if isinstance(module, torch.nn.Conv2d) else None
    )
    try:
        trainer, report = train(folder, tmp_path / "out", SOLVER__AMP__ENABLED=True, **SHORT)
    finally:
        hook.remove()
    assert report.iterations == 4
    assert (torch.bfloat16 in computed) == native
    assert trainer.autocast == (torch.bfloat16 if native else None)
    assert ("SOLVER.AMP.ENABLED: this processor emulates bfloat16" in caplog.text) != native
    assert math.isfinite(trainer.storage.latest()["total_loss"][0])
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())


def test_batches_do_not_depend_on_processes_and_can_begin_anywhere():
    order = [int(i) for i in np.random.default_rng(0).integers(0, 10, 400)]
    landscape = [i % 3 == 0 for i in range(10)]

    def batches(**options):
        return list(TrainingBatches(order, 4, landscape=landscape, **options))

    together = batches()
    shares = [batches(rank=rank, world_size=2) for rank in (0, 1)]
    assert len(together) > 90
    for batch, *parts in zip(together, *shares, strict=True):
        assert sorted(batch) == sorted(parts[0] + parts[1])
        assert len({landscape[draw.image] for draw in batch}) == 1
    assert batches(first_batch=17) == together[17:]
    drawn = sorted(draw for batch in together for draw in batch)
    assert len(drawn) > 392
    assert all(order[draw.position] == draw.image for draw in drawn)


def test_the_same_draw_has_the_same_pixels_in_any_process(world):
    folder, _ = world
    seen = []
    for workers in (0, 2):
        cfg = training_config(folder, folder / "out", DATALOADER__NUM_WORKERS=workers)
        data = read_training_data(cfg)
        torch.manual_seed(workers)
        state = torch.get_rng_state()
        batches = training_batches(cfg, data, seed=5)
        seen.append([next(batches) for _ in range(6)])
        assert torch.equal(torch.get_rng_state(), state), "loading draws nothing from the model's random numbers"
    cfg = training_config(folder, folder / "out")
    later = training_batches(cfg, data, seed=5, first_batch=4)
    for batch, other in zip([*seen[0], *seen[0][4:]], [*seen[1], next(later), next(later)], strict=True):
        for image, same in zip(batch, other, strict=True):
            assert torch.equal(image["image"], same["image"])
            assert torch.equal(image["instances"].gt_boxes.tensor, same["instances"].gt_boxes.tensor)
            assert image["seed"] == same["seed"]


LVIS_FREQUENCIES = {1: "f", 2: "r", 3: "c", 4: "f"}


@pytest.fixture
def small_lvis(tmp_path):
    """Six images: class 1 in all, 3 in two, 4 in one, the rare 2 in two, once alone."""
    classes = {1: [1], 2: [1, 3], 3: [1, 3, 4], 4: [1, 2], 5: [1], 6: [2]}
    images = [
        {"id": i, "width": 90, "height": 60, "coco_url": f"http://images/train2017/{i}.jpg"}
        | {"not_exhaustive_category_ids": [3], "neg_category_ids": [4]}
        for i in classes
    ]
    box = {"bbox": [1, 1, 9, 9], "area": 81, "segmentation": [[1, 1, 9, 1, 9, 9]]}
    pairs = [(i, c) for i, members in classes.items() for c in members]
    annotations = [box | {"id": n, "image_id": i, "category_id": c} for n, (i, c) in enumerate(pairs, 1)]
    categories = [{"id": i, "name": f"class_{i}", "frequency": f} for i, f in LVIS_FREQUENCIES.items()]
    path = tmp_path / "lvis.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return str(path)


def test_lvis_base_labels_and_repeat_factors_are_those_computed_by_hand(small_lvis):
    records = load_lvis(small_lvis, "images", base_only=True)
    # The rare class 2 is left out, with image 6; classes 1, 3, 4 become 0, 1, 2.
    assert [[a["category_id"] for a in r["annotations"]] for r in records] == [[0], [0, 1], [0, 1, 2], [0], [0]]
    cfg = load_config(CONFIG)
    cfg.merge_from_list(["DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler", "DATALOADER.REPEAT_THRESHOLD", 0.8])
    # f(0) = 1, f(1) = 2/5, f(2) = 1/5, so r = 1, sqrt(0.8 / 0.4) = 1.414, sqrt(0.8 / 0.2) = 2.
    epochs = 2000
    order = iter(endless_order(cfg, records, seed=0))
    counts = np.bincount([next(order) for _ in range(round(epochs * (3 + 2**0.5 + 2)))], minlength=5)
    assert counts / epochs == pytest.approx([1, 2**0.5, 2, 1, 1], abs=0.03)


def test_full_supervision_of_lvis_keeps_all_classes(small_lvis):
    records = load_lvis(small_lvis, "images")
    assert [[a["category_id"] for a in r["annotations"]] for r in records][3:] == [[0, 1], [0], [1]]
    assert {"lvis_v1_train_fullysup", "lvis_v1_val_fullysup"} <= set(DatasetCatalog.list())
    metadata = MetadataCatalog.get("lvis_v1_train_fullysup")
    assert len(metadata.thing_classes) == 1203
    cfg = load_config(CONFIG)
    cfg.merge_from_list(["DATASETS.TRAIN", ("lvis_v1_train_fullysup",), "MODEL.ROI_HEADS.NUM_CLASSES", 866])
    (problem,) = class_problems(cfg, "lvis_v1_train_fullysup")
    assert (problem.what, problem.expected) == (
        "MODEL.ROI_HEADS.NUM_CLASSES",
        "1203, the classes of lvis_v1_train_fullysup",
    )


def test_a_milestone_at_the_end_is_refused(world, tmp_path):
    cfg = training_config(world[0], tmp_path, SOLVER__STEPS="(30, 50)")
    (problem,) = training_problems(cfg)
    assert str(problem).startswith("SOLVER.STEPS: expected milestones other than SOLVER.MAX_ITER, got 50")


def test_classes_of_data_and_detector_have_to_agree(world, tmp_path, caplog):
    folder, _ = world
    cfg = training_config(folder, tmp_path, MODEL__ROI_HEADS__NUM_CLASSES=4)
    (problem,) = training_problems(cfg)
    assert str(problem).startswith("MODEL.ROI_HEADS.NUM_CLASSES: expected 3, the classes of")
    plain = {"MODEL__CLIP__USE_TEXT_EMB_CLASSIFIER": False, "MODEL__ROI_HEADS__NUM_CLASSES": 4}
    assert not list(training_problems(training_config(folder, tmp_path, **plain)))
    assert "has 3 classes: the others will never be seen" in caplog.text
    few = plain | {"MODEL__ROI_HEADS__NUM_CLASSES": 2}
    assert list(training_problems(training_config(folder, tmp_path, **few)))


def test_training_sets_have_to_have_the_same_classes(world, tmp_path):
    folder, _ = world
    content = json.loads((folder / "annotations.json").read_text())
    content["categories"][0]["name"], content["categories"][1]["name"] = "car", "person"
    (folder / "swapped.json").write_text(json.dumps(content))
    register_coco_instances("tests_swapped", {}, str(folder / "swapped.json"), str(folder / "images"))
    try:
        cfg = training_config(folder, tmp_path, DATASETS__TRAIN=f"('{register(folder)}', 'tests_swapped')")
        with pytest.raises(UserError, match=r"DATASETS\.TRAIN tests_swapped: expected person as class 0, as in"):
            read_training_records(cfg)
    finally:
        for catalog in (DatasetCatalog, MetadataCatalog):
            catalog.remove("tests_swapped")


@pytest.mark.parametrize("masks", [False, True])
def test_scale_jitter_keeps_boxes_on_their_objects(world, masks):
    folder, _ = world
    options = {"INPUT__SCALE_JITTER": "(0.5, 2.0)", "INPUT__SCALE_JITTER_SIZE": 80, "MODEL__MASK_ON": masks}
    mapper = TrainingMapper(training_config(folder, folder / "out", **options))
    sizes, looked_at = set(), 0
    for record in read_records(register(folder)):
        for _ in range(4):
            mapped = mapper(json.loads(json.dumps(record)))
            pixels, instances = mapped["image"].float(), mapped["instances"]
            sizes.add(tuple(pixels.shape[1:]))
            assert max(pixels.shape[1:]) <= 80
            # The third class was drawn last, so nothing covers it.
            for left, top, right, bottom in instances.gt_boxes.tensor[instances.gt_classes == 2]:
                inside = pixels[:, int(top) + 2 : int(bottom) - 1, int(left) + 2 : int(right) - 1]
                if inside.numel():
                    looked_at += 1
                    assert inside.mean(dim=(1, 2)).tolist() == pytest.approx([50, 70, 230], abs=6)
    assert looked_at > 15
    assert len(sizes) > 5


def test_an_image_without_objects_has_masks_of_none_to_crop(world, tmp_path):
    folder, change = world
    change(lambda content: content.update(annotations=[]))
    cfg = training_config(
        folder,
        tmp_path / "out",
        MODEL__MASK_ON=True,
        DATALOADER__FILTER_EMPTY_ANNOTATIONS=False,
        INPUT__SCALE_JITTER="(0.5, 1.5)",
        INPUT__SCALE_JITTER_SIZE=64,
    )
    mapper = TrainingMapper(cfg)
    (record, *_) = read_training_records(cfg)
    assert len(mapper(copy.deepcopy(record))["instances"]) == 0 and mapper.recompute_boxes


def test_a_mask_detector_is_trained(world, tmp_path):
    folder, _ = world
    trainer, report = train(folder, tmp_path / "out", MODEL__MASK_ON=True, **SHORT)
    assert report.iterations == 4
    assert "loss_mask" in trainer.storage.latest()


PLAIN = {"MODEL__CLIP__CROP_REGION_TYPE": "", "MODEL__CLIP__TEXT_EMB_PATH": "", "MODEL__CLIP__OFFLINE_RPN_CONFIG": ""}


@pytest.mark.parametrize("config", ["mask_rcnn_CLIP_R_50_C4_1x_ovd_FSD", "mask_rcnn_R_50_C4_1x_ovd_FSD"])
def test_detectors_with_an_rpn_of_their_own_are_trained(config, world, tmp_path):
    folder, _ = world
    plain = PLAIN | {"MODEL__RESNETS__DEPTH": 50, "MODEL__WEIGHTS": "", "SOLVER__MAX_ITER": 1}
    if "CLIP" not in config:
        plain |= {"MODEL__RESNETS__DEPTH": 18, "MODEL__RESNETS__RES2_OUT_CHANNELS": 64}
    path = f"configs/COCO-InstanceSegmentation/{config}.yaml"
    trainer, report = train(folder, tmp_path / "out", config=path, **SHORT | plain)
    assert report.iterations == 1
    losses = {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_mask"}
    assert losses <= set(trainer.storage.latest())
    loader = build_test_loader(trainer.cfg, read_records(register(folder))[:1])
    with torch.no_grad():
        (output,) = trainer.model.eval()(next(iter(loader)))
    assert output["instances"].has("pred_masks")
