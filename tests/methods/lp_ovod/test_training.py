"""Both stages of LP-OVOD: what moves, resumption, several processes, and regions of another CLIP."""

import json
import shutil

import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from regionclip.cli.extract_region_features import extract, parse_arguments
from regionclip.config.loading import load_config
from regionclip.config.training_checks import training_problems
from regionclip.data.region_features.index import FeatureFolder
from regionclip.data.training_loader import read_training_data, training_batches
from regionclip.engine.training.trainer import DetectorTrainer
from regionclip.errors import UserError
from regionclip.modeling.build import build_model
from regionclip.testing.deterministic import fill_deterministic
from tests.helpers.detectors import flat
from tests.helpers.training import (
    assert_a_killed_training_ends_with_the_same_bits,
    train,
    train_in_processes,
    training_config,
    write_images,
)
from tests.methods.lp_ovod.tiny import TEACHER, TEACHER_OVERRIDES, settings

STAGES = ("base", "probe")
PROTOTYPES = "roi_heads.box_predictor.novel_prototypes"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Return a folder with images, annotations, stored regions, and weights of a base detector."""
    folder = tmp_path_factory.mktemp("lp_ovod")
    write_images(folder)
    teacher = build_model(load_config(TEACHER, flat(TEACHER_OVERRIDES)))
    fill_deterministic(teacher)
    torch.save({"model": teacher.state_dict()}, folder / "teacher.pth")
    places = {"MODEL.WEIGHTS": "teacher.pth", "INPUT_DIR": "images", "OUTPUT_DIR": "regions"}
    options = flat(TEACHER_OVERRIDES | {key: str(folder / place) for key, place in places.items()})
    given = ["--config-file", TEACHER, "--format", "safetensors", "--images-per-shard", "3", "--half", "--objectness"]
    assert extract(parse_arguments([*given, *options], "features")) == 0
    base = build_model(training_config(folder, folder / "unused", **settings(folder, "probe")))
    fill_deterministic(base)
    torch.save({key: value for key, value in base.state_dict().items() if key != PROTOTYPES}, folder / "base.pth")
    return folder


def test_stored_regions_have_objectness_and_half_embeddings(world):
    regions = FeatureFolder(world / "regions")
    assert (regions.clip, regions.dim, len(regions)) == ("tiny_clip", 32, 8)
    for features in regions.values():
        assert features["feats"].dtype == torch.float16 and len(features["feats"]) == len(features["boxes"]) > 5
        assert 0 < float(features["objectness"].min()) <= float(features["objectness"].max()) < 1


def test_regions_are_transformed_with_their_image(world, tmp_path):
    cfg = training_config(world, tmp_path, **settings(world, "base"), INPUT__MIN_SIZE_TRAIN="(128,)")
    stored, data = FeatureFolder(world / "regions"), read_training_data(cfg)
    batches = training_batches(cfg, data, seed=0)
    flipped = set()
    for _ in range(4):
        for image in next(batches):
            features = stored[image["file_name"].split("/")[-1]]
            width = image["image"].shape[2]
            scale = width / image["width"]
            expected = features["boxes"] * scale
            mirrored = torch.stack([width - expected[:, 2], expected[:, 1], width - expected[:, 0], expected[:, 3]], 1)
            found = image["regions"]
            is_flipped = torch.allclose(found.proposal_boxes.tensor, mirrored, atol=1e-3)
            assert is_flipped or torch.allclose(found.proposal_boxes.tensor, expected, atol=1e-3)
            assert torch.equal(found.embeddings, features["feats"])
            flipped.add(is_flipped)
    assert flipped == {True, False}


@pytest.mark.parametrize("stage", STAGES)
def test_only_the_trained_part_moves(stage, world, tmp_path):
    trainer, _ = train(world, tmp_path, **settings(world, stage, SOLVER__MAX_ITER=3, SOLVER__CHECKPOINT_PERIOD=100))
    after = trainer.model.state_dict()
    if stage == "probe":
        before = torch.load(world / "base.pth", weights_only=True)
        assert {key for key in after if key not in before or not torch.equal(before[key], after[key])} == {PROTOTYPES}
        assert bool(after[PROTOTYPES].any())
        return
    statistics = [key for key in after if "bottom_up" in key and "running" in key]
    assert statistics and all(not bool(after[key].any()) for key in statistics if key.endswith("mean"))
    trained = {key for key, weight in trainer.model.named_parameters() if weight.grad is not None}
    assert trained == {key for key, _ in trainer.model.named_parameters()}


def test_probing_learns_to_tell_the_novel_classes_apart(world, tmp_path):
    options = settings(world, "probe", SOLVER__MAX_ITER=40, SOLVER__BASE_LR=1.0)
    trainer, _ = train(world, tmp_path, **options)
    losses = [value for value, _ in trainer.storage.history("loss_cls").values()]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert {annotation["category_id"] for record in trainer.data.records for annotation in record["annotations"]} == {
        0,
        1,
    }


@pytest.mark.parametrize("stage", [pytest.param("base", marks=pytest.mark.slow), "probe"])
def test_a_killed_training_ends_with_the_same_bits(stage, world, tmp_path):
    options = settings(world, stage, SOLVER__MAX_ITER=16)
    assert_a_killed_training_ends_with_the_same_bits(world, tmp_path, **options)


@pytest.mark.parametrize("boxes", [0, 1])
def test_an_image_with_hardly_any_region_is_trained_on(boxes, world):
    model = build_model(training_config(world, "unused", **settings(world, "base"))).train()
    fill_deterministic(model)
    found = Boxes(torch.tensor([[4.0, 4, 40, 40]])[:boxes])
    truth = Instances((64, 96), gt_boxes=found, gt_classes=torch.zeros(boxes, dtype=torch.int64))
    regions = Instances((64, 96), proposal_boxes=found, embeddings=torch.ones(boxes, 32).half())
    image = {"image": torch.zeros(3, 64, 96, dtype=torch.uint8), "instances": truth, "regions": regions}
    with EventStorage():
        losses = model([image] * 2)
    sum(losses.values()).backward()
    assert all(bool(torch.isfinite(loss)) for loss in losses.values())


def changed_store(world, folder, **about):
    shutil.copytree(world / "regions", folder)
    content = json.loads((folder / "features.json").read_text())
    (folder / "features.json").write_text(json.dumps(content | about))
    return folder


def test_regions_of_another_clip_or_of_other_images_are_an_error(world, tmp_path):
    other = changed_store(world, tmp_path / "other", clip="RN50", dim=1024)
    options = settings(world, "base", MODEL__LP_OVOD__REGIONS=str(other))
    with pytest.raises(UserError, match="expected embeddings of tiny_clip of width 32, got RN50 of width 1024"):
        DetectorTrainer(training_config(world, tmp_path / "out", **options))
    boxes = changed_store(world, tmp_path / "boxes", clip="", dim=None)
    options = settings(world, "base", MODEL__LP_OVOD__REGIONS=str(boxes))
    with pytest.raises(UserError, match="expected embeddings of tiny_clip of width 32, got none"):
        DetectorTrainer(training_config(world, tmp_path / "out", **options))
    options = settings(world, "base", MODEL__LP_OVOD__REGIONS="nowhere")
    with pytest.raises(UserError, match=r"MODEL\.LP_OVOD\.REGIONS nowhere: expected a folder of region features"):
        DetectorTrainer(training_config(world, tmp_path / "out", **options))
    fewer = changed_store(world, tmp_path / "fewer")
    index = json.loads((fewer / "index.json").read_text())
    index["images"] = dict(list(index["images"].items())[:5])
    (fewer / "index.json").write_text(json.dumps(index))
    options = settings(world, "base", MODEL__LP_OVOD__REGIONS=str(fewer))
    with pytest.raises(UserError, match="expected the regions of each training image, got none of 3 images, such as "):
        DetectorTrainer(training_config(world, tmp_path / "out", **options))


@pytest.mark.parametrize(
    ("stage", "overrides", "message"),
    [
        ("base", {"MODEL__LP_OVOD__BASE_CLASSES": "person,dog,car"}, "BASE_CLASSES: expected the classes of DATASETS"),
        (
            "probe",
            {"MODEL__LP_OVOD__NOVEL_CLASSES": "car,zebra"},
            "expected a class .* got none for zebra",
        ),
    ],
)
def test_classes_of_another_dataset_are_an_error(stage, overrides, message, world, tmp_path):
    with pytest.raises(UserError, match=message):
        DetectorTrainer(training_config(world, tmp_path, **settings(world, stage, **overrides)))


@pytest.mark.slow
def test_probing_in_two_processes_is_as_in_one(world, tmp_path):
    options = settings(world, "probe", SOLVER__MAX_ITER=5, INPUT__MIN_SIZE_TRAIN="(64,)", SOLVER__BASE_LR=1.0)
    options |= {"MODEL__FPN__NORM": "naiveSyncBN", "MODEL__ROI_BOX_HEAD__NORM": "naiveSyncBN"}
    found = {count: train_in_processes(count, world, tmp_path / str(count), **options) for count in (1, 2)}
    assert len(found[1]["loss_cls"]) == 5
    assert found[2]["loss_cls"] == pytest.approx(found[1]["loss_cls"], rel=1e-5)


def test_several_processes_on_cpus_cannot_share_a_synchronized_normalization(world, tmp_path):
    cfg = training_config(world, tmp_path, **settings(world, "base"))
    assert not [problem for problem in training_problems(cfg) if "naiveSyncBN" in problem.fix]
    assert [problem for problem in training_problems(cfg, processes=2) if "naiveSyncBN" in problem.fix]
