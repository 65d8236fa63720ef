"""Training of both stages: what moves, resumption, several processes; and relabeling."""

import json
import os
import subprocess
import sys
import time

import pytest
import torch
from typer.testing import CliRunner

from regionclip.cli.main import app
from regionclip.clip.vocabulary import Vocabulary
from regionclip.config.loading import load_config
from regionclip.engine.checkpoint.loading import load_weights
from regionclip.errors import UserError
from regionclip.journal import Journal
from regionclip.methods.cora.image_pass import each_image
from regionclip.methods.cora.matching import Targets
from regionclip.modeling.build import build_model
from tests.helpers.cora import fill
from tests.helpers.detectors import flat
from tests.helpers.paths import DATA, REPOSITORY
from tests.helpers.training import (
    assert_a_killed_training_ends_with_the_same_bits,
    train,
    train_in_processes,
    training_config,
    write_images,
)
from tests.methods.cora.tiny import FAST, OVERRIDES, STAGES, settings

PROMPT = "backbone.attnpool.positional_embedding"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Return a folder with images, annotations, class embeddings, and weights of a tiny CLIP."""
    folder = tmp_path_factory.mktemp("cora")
    write_images(folder)
    model = fill(build_model(load_config(STAGES["prompt"], flat(OVERRIDES | {"MODEL.CLIP.CROP_REGION_TYPE": "GT"}))))
    torch.save({"model": model.state_dict()}, folder / "clip.pth")
    return folder


@pytest.mark.parametrize("stage", STAGES)
def test_only_the_trained_part_moves(stage, world, tmp_path):
    trainer, _ = train(world, tmp_path, **settings(world, stage, SOLVER__MAX_ITER=2))
    before = torch.load(world / "clip.pth", weights_only=True)["model"]
    after = trainer.model.state_dict()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved == ({PROMPT} if stage == "prompt" else set())
    trained = {key for key, weight in trainer.model.named_parameters() if weight.requires_grad}
    assert trained == {PROMPT} if stage == "prompt" else not any(key.startswith("backbone.") for key in trained)


@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_training_ends_with_the_same_bits(stage, world, tmp_path):
    options = settings(world, stage, SOLVER__MAX_ITER=16, MODEL__CORA__SPLIT_PROBABILITY=0.5)
    assert_a_killed_training_ends_with_the_same_bits(world, tmp_path, **options)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_are_as_one(stage, world, tmp_path):
    # The published learning rate, and images of one size: padding changes what is next to it.
    options = settings(
        world,
        stage,
        SOLVER__MAX_ITER=5,
        MODEL__CORA__SPLIT_PROBABILITY=0.0,
        INPUT__MIN_SIZE_TRAIN="(64,)",
        SOLVER__BASE_LR=1e-4,
    )
    found = {count: train_in_processes(count, world, tmp_path / str(count), **options) for count in (1, 2)}
    assert found[1].keys() == found[2].keys()
    for name, losses in found[1].items():
        assert found[2][name] == pytest.approx(losses, abs=1e-5, rel=1e-5), name


def test_images_without_boxes_are_trained_on(world):
    model = build_model(training_config(world, "unused", **settings(world, "localizer"))).train()
    from detectron2.structures import Boxes, Instances
    from detectron2.utils.events import EventStorage

    empty = Instances((64, 96), gt_boxes=Boxes(torch.zeros(0, 4)), gt_classes=torch.zeros(0, dtype=torch.int64))
    batch = [{"image": torch.zeros(3, 64, 96, dtype=torch.uint8), "instances": empty}] * 2
    with EventStorage() as storage:
        losses = model(batch)
        assert storage.latest()["matched_objects"][0] == 0
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert float(losses["loss_l1"].detach()) == 0 < float(losses["loss_objectness"].detach())
    prompt = build_model(training_config(world, "unused", **settings(world, "prompt"))).train()
    loss = prompt(batch)["loss_region_prompt"]
    loss.backward()
    assert float(loss.detach()) == 0
    assert float(prompt.get_parameter(PROMPT).grad.abs().sum()) == 0


def losses_of(world, **weights):
    """Return the losses of one image with two objects, for loss and cost weights of a localizer."""
    from detectron2.structures import Boxes, Instances
    from detectron2.utils.events import EventStorage

    keys = {f"MODEL__CORA__{key}": value for key, value in weights.items()}
    options = settings(world, "localizer", MODEL__CORA__SPLIT_PROBABILITY=0.0, **keys)
    model = fill(build_model(training_config(world, "unused", **options))).train()
    boxes = Boxes(torch.tensor([[4.0, 4, 60, 50], [30.0, 10, 90, 60]]))
    target = Instances((64, 96), gt_boxes=boxes, gt_classes=torch.tensor([0, 1]))
    pixels = torch.randint(0, 255, (3, 64, 96), generator=torch.Generator().manual_seed(0)).byte()
    with EventStorage(), torch.no_grad():
        return {name: float(loss) for name, loss in model([{"image": pixels, "instances": target}]).items()}


@pytest.mark.parametrize(("term", "published"), [("OBJECTNESS", 2), ("L1", 5), ("GIOU", 2)])
def test_a_loss_weight_scales_its_loss_in_every_layer(term, published, world):
    usual = losses_of(world)
    scaled = {name: value * (3 if f"_{term.lower()}" in name else 1) for name, value in usual.items()}
    assert 0 < len([name for name in usual if usual[name] != scaled[name]]) < len(usual)
    assert losses_of(world, **{f"LOSS__{term}": 3.0 * published}) == pytest.approx(scaled, rel=1e-5)


def test_the_matching_cost_is_the_weighted_sum_of_its_terms(world):
    target = Targets(torch.tensor([[0.5, 0.5, 0.4, 0.2], [0.2, 0.3, 0.1, 0.1]]), torch.tensor([0, 1]))
    logits, boxes = torch.tensor([-1.0, 0.5, 2.0]), torch.rand(3, 4, generator=torch.Generator().manual_seed(0))
    costs = []
    for weights in ((2.0, 0.0, 0.0), (0.0, 3.0, 0.0), (0.0, 0.0, 5.0), (2.0, 3.0, 5.0)):
        keys = dict(zip(("OBJECTNESS", "L1", "GIOU"), weights, strict=True))
        options = settings(world, "localizer", **{f"MODEL__CORA__COST__{key}": value for key, value in keys.items()})
        model = build_model(training_config(world, "unused", **options))
        costs.append(model.losses.matcher.cost(logits, boxes, target))
    distance = (boxes[:, None] - target.boxes[None]).abs().sum(dim=2)
    torch.testing.assert_close(costs[1], 3 * distance)
    assert float(costs[2].min()) >= -5 and float(costs[2].max()) <= 5
    torch.testing.assert_close(costs[3], costs[0] + costs[1] + costs[2])


def test_proposals_come_from_a_loaded_rpn(world, tmp_path):
    """A region prompt can be evaluated on proposals, too."""
    options = {"MODEL__CLIP__CROP_REGION_TYPE": "RPN", "MODEL__CLIP__OFFLINE_RPN_CONFIG": str(DATA / "tiny_rpn.yaml")}
    model = build_model(training_config(world, "unused", **settings(world, "prompt", **options)))
    rpn = {key: value.clone() for key, value in model.state_dict().items() if key.startswith("offline_")}
    assert rpn and not any(weight.requires_grad for weight in model.offline_backbone.parameters())
    assert not model.train().offline_backbone.training
    with pytest.raises(UserError, match="offline_backbone"):
        load_weights(model, str(world / "clip.pth"))
    torch.save({"model": {key.removeprefix("offline_"): value + 1 for key, value in rpn.items()}}, tmp_path / "rpn.pth")
    load_weights(model, str(world / "clip.pth"), {"rpn": str(tmp_path / "rpn.pth")})
    assert all(torch.equal(model.state_dict()[key], value + 1) for key, value in rpn.items())


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def relabel_arguments(world, output, *more):
    options = settings(world, "prompt")
    overrides = {
        key.replace("__", "."): str(value) for key, value in options.items() if key not in ("config", *FAST)
    } | {
        "MODEL.ROI_HEADS.NUM_CLASSES": "3",
        "MODEL.CLIP.TEXT_EMB_PATH": str(world / "embeddings.pth"),
        "DATASETS.TEST": "()",
        "INPUT.MIN_SIZE_TEST": "64",
    }
    files = ("--annotations", world / "annotations.json", "--images", world / "images", "--output", output)
    config = ("--config-file", STAGES["prompt"])
    return [str(part) for part in ("cora", "relabel", *config, *files, *more, *flat(overrides))]


def relabel(world, output, *more):
    return run(*relabel_arguments(world, output, "--num-gpus", "0", *more))


def start_relabeling(world, output, *more):
    command = [sys.executable, "-m", "regionclip", *relabel_arguments(world, output, *more)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=REPOSITORY, env=environment, **pipes)


@pytest.mark.slow
def test_relabeling_in_two_processes_and_after_a_kill_is_as_one(world, tmp_path):
    assert relabel(world, tmp_path / "whole.json").exit_code == 0
    whole = (tmp_path / "whole.json").read_bytes()
    two = start_relabeling(world, tmp_path / "two" / "new.json", "--num-gpus", "2", "--dist-url", "auto")
    output, _ = two.communicate(timeout=200)
    assert two.returncode == 0, output
    assert output.count("% of the classes unchanged") == 1
    assert (tmp_path / "two" / "new.json").read_bytes() == whole
    killed = tmp_path / "killed" / "new.json"
    process = start_relabeling(world, killed, "--num-gpus", "0")
    while process.poll() is None and not any(path.stat().st_size for path in journals(killed.parent)):
        time.sleep(0.001)
    process.kill()
    process.communicate()
    assert not killed.exists()
    finished = sum(len(path.read_text().splitlines()) for path in journals(killed.parent))
    assert finished > 0
    done = relabel(world, killed)
    assert done.exit_code == 0, done.output
    assert killed.read_bytes() == whole
    assert [path.name for path in killed.parent.iterdir()] == ["new.json"]


def journals(folder):
    return list(folder.glob("new.*.jsonl"))


def test_relabeling_changes_category_ids_only(world, tmp_path):
    done = relabel(world, tmp_path / "new.json")
    assert done.exit_code == 0, done.output
    before, after = (json.loads(path.read_text()) for path in (world / "annotations.json", tmp_path / "new.json"))
    labels = [annotation.pop("category_id") for annotation in after["annotations"]]
    old = [annotation.pop("category_id") for annotation in before["annotations"]]
    assert after == before
    assert len(set(labels)) > 1
    assert set(labels) <= set(old)
    unchanged = 100 * sum(a == b for a, b in zip(labels, old, strict=True)) / len(old)
    assert f"{len(old)} boxes, {unchanged:.1f} % of the classes unchanged" in done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.json"]


def test_relabeling_with_other_classes_is_an_error(world, tmp_path):
    done = relabel(world, tmp_path / "new.json")
    assert done.exit_code == 0
    content = json.loads((world / "annotations.json").read_text())
    content["categories"].append({"id": 90, "name": "toothbrush"})
    (world / "more.json").write_text(json.dumps(content))
    done = relabel(world, tmp_path / "other.json", "--annotations", world / "more.json")
    assert done.exit_code == 2
    assert "categories: expected the 3 classes of the model, got 4" in done.output
    assert not (tmp_path / "other.json").exists()


def test_relabeling_with_classes_in_another_order_is_an_error(world, tmp_path):
    names = tuple(category["name"] for category in json.loads((world / "annotations.json").read_text())["categories"])
    rows, files = torch.load(world / "embeddings.pth", weights_only=True), {}
    for listed in (names, names[::-1]):
        file = tmp_path / f"{listed[0]}.safetensors"
        Vocabulary(listed, torch.nn.functional.normalize(rows, dim=1), torch.arange(3)).save(file)
        arguments = relabel_arguments(world, tmp_path / f"{listed[0]}.json", "--num-gpus", "0")
        files[listed] = run(*arguments, "MODEL.CLIP.TEXT_EMB_PATH", file)
    assert files[names].exit_code == 0, files[names].output
    assert files[names[::-1]].exit_code == 2
    assert f"categories: expected {', '.join(names[::-1])}, as the embeddings" in files[names[::-1]].output


def test_images_that_could_not_be_read_are_tried_again(world, tmp_path):
    cfg = training_config(world, tmp_path, **settings(world, "prompt"))
    images = json.loads((world / "annotations.json").read_text())["images"]
    (tmp_path / "empty").mkdir()
    for root, failed in ((tmp_path / "empty", len(images)), (world / "images", 0)):
        journal = Journal(tmp_path, "run", "new[1]")
        entries = each_image(cfg, images, root, world / "annotations.json", journal, lambda image, mapped: {"seen": 1})
        assert len(entries) == len(images) and sum("error" in entry for entry in entries) == failed


def test_the_prompt_of_a_training_is_written_alone(world, tmp_path):
    trainer, report = train(world, tmp_path / "run", **settings(world, "prompt", SOLVER__MAX_ITER=2))
    done = run("cora", "prompt", report.weights, tmp_path / "prompt.pth")
    assert done.exit_code == 0, done.output
    content = torch.load(tmp_path / "prompt.pth", weights_only=True)
    assert list(content) == ["attnpool.positional_embedding"]
    assert torch.equal(content["attnpool.positional_embedding"], trainer.model.get_parameter(PROMPT).detach())
