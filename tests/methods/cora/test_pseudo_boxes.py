"""CORA+: pseudo boxes of further classes, their export from a detector, and training with them."""

import json

import numpy as np
import pytest
import torch
from detectron2.structures import BoxMode
from typer.testing import CliRunner

from regionclip import RegionCLIP
from regionclip.cli.main import app
from regionclip.clip.vocabulary import Vocabulary
from regionclip.config.checks import check_config
from regionclip.config.loading import load_config
from regionclip.errors import UserError
from regionclip.methods.cora.export import read_captions, read_tags
from regionclip.methods.cora.matching import Targets
from regionclip.methods.cora.pseudo_boxes import add_pseudo_boxes, classes_of_batch, read_pseudo_boxes
from regionclip.modeling.build import build_model
from regionclip.testing.deterministic import deterministic_text_embeddings
from tests.helpers.cora import fill
from tests.helpers.detectors import flat
from tests.helpers.training import train, write_images
from tests.methods.cora.tiny import CONFIG, OVERRIDES, settings

NUMBERS = {"person": 0, "car": 1, "dog": 2, "umbrella": 3, "traffic cone": 4}


def entry(name, *box, image=1, score=0.5):
    return {"image_id": image, "bbox": list(box), "category_name": name, "score": score}


def record(*boxes):
    annotations = [{"bbox": list(box), "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0} for box in boxes]
    return {"file_name": "1.png", "image_id": 1, "height": 100, "width": 100, "annotations": annotations}


def test_boxes_that_overlap_an_annotated_box_by_half_are_dropped():
    # IoU with [0, 0, 40, 40]: 20 x 40 / 1600 = 0.5, 19 x 40 / 1600 = 0.475
    given = {"1": [entry("umbrella", 0, 0, 20, 40), entry("umbrella", 0, 0, 19, 40), entry("car", 60, 60, 60, 20)]}
    (extended,) = add_pseudo_boxes([record([0, 0, 40, 40])], given, NUMBERS)
    added = [(annotation["category_id"], annotation["bbox"]) for annotation in extended["annotations"][1:]]
    assert added == [(3, [0, 0, 19, 40]), (1, [60, 60, 100, 80])]


def test_images_without_annotations_keep_all_and_others_are_unchanged():
    given = {"1": [entry("Traffic Cone", 5, 5, 20, 20)], "9": [entry("car", 0, 0, 9, 9, image=9)]}
    (extended,) = add_pseudo_boxes([record()], given, NUMBERS)
    assert [annotation["category_id"] for annotation in extended["annotations"]] == [4]
    untouched = {**record([0, 0, 40, 40]), "image_id": 2}
    assert add_pseudo_boxes([untouched], given, NUMBERS) == [untouched]


def test_a_name_without_embedding_is_an_error():
    with pytest.raises(UserError, match="expected an embedding for each name in PSEUDO_BOXES, got none of bench"):
        add_pseudo_boxes([record()], {"1": [entry("bench", 5, 5, 20, 20)]}, NUMBERS)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({}, "expected a list of pseudo boxes, got dict"),
        ([{"image_id": 1, "bbox": [1, 2, 3, 4]}], "entry 0: expected image_id, category_name, and bbox"),
        ([entry("cat", 1, 2, 0, 4)], "with an area"),
        ([entry("cat", 1, 2, float("nan"), 4)], "with an area"),
        ([entry("cat", 1, 2, 3)], "with an area"),
    ],
)
def test_bad_files_are_one_error(content, said, tmp_path):
    path = tmp_path / "pseudo.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=said):
        read_pseudo_boxes(str(path))


def test_only_the_pseudo_classes_of_a_batch_are_in_its_vocabulary():
    base, pseudo = torch.eye(8)[:3], torch.eye(8)[3:]
    targets = [Targets(torch.zeros(3, 4), torch.tensor([2, 6, 4])), Targets(torch.zeros(1, 4), torch.tensor([6]))]
    text, renumbered = classes_of_batch(base, pseudo, targets)
    assert torch.equal(text, torch.eye(8)[[0, 1, 2, 4, 6]])
    assert [target.labels.tolist() for target in renumbered] == [[2, 4, 3], [4]]
    for before, after in zip(targets, renumbered, strict=True):
        assert torch.equal(text[after.labels], torch.eye(8)[before.labels])
    without = [Targets(torch.zeros(1, 4), torch.tensor([1]))]
    assert classes_of_batch(base, pseudo, without)[0] is base


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Return a folder with images, annotations, named embeddings, and weights of a tiny CLIP and localizer."""
    folder = tmp_path_factory.mktemp("cora_plus")
    content = write_images(folder)
    names = [category["name"] for category in content["categories"]]
    rows = {"embeddings": names, "further": ["car", "umbrella", "bench"]}
    for file, words in rows.items():
        table = deterministic_text_embeddings(file, len(words), 32)
        Vocabulary(tuple(words), table, torch.arange(len(words))).save(folder / f"{file}.safetensors")
    model = fill(build_model(load_config(CONFIG, flat(OVERRIDES))))
    torch.save({"model": model.state_dict()}, folder / "clip.pth")
    return folder


def train_with(world, output, pseudo, **overrides):
    (output.parent / f"{output.name}.json").write_text(json.dumps(pseudo))
    options = {
        "MODEL__CLIP__TEXT_EMB_PATH": str(world / "embeddings.safetensors"),
        "MODEL__CORA__PSEUDO_BOXES": str(output.parent / f"{output.name}.json"),
        "MODEL__CORA__PSEUDO_EMBEDDINGS": str(world / "further.safetensors"),
        "MODEL__CORA__SPLIT_PROBABILITY": 0.5,
        "SOLVER__MAX_ITER": 4,
    }
    return train(world, output, **settings(world, "localizer", **options | overrides))


def test_training_learns_from_pseudo_boxes(world, tmp_path):
    content = json.loads((world / "annotations.json").read_text())
    boxes = [{**entry("umbrella", 2, 2, 14, 14, image=image["id"])} for image in content["images"]]
    trainer, _ = train_with(world, tmp_path / "with", boxes)
    assert any(4 in target for target in labels(trainer))
    assert trainer.model.state_dict().keys() == torch.load(world / "clip.pth", weights_only=True)["model"].keys()
    # A pseudo box of a trained class is one more box of that class.
    trainer, _ = train_with(world, tmp_path / "base", [entry("Car", 2, 2, 14, 14, image=0)])
    assert {label for target in labels(trainer) for label in target} == {0, 1, 2}


def labels(trainer):
    return [[annotation["category_id"] for annotation in record["annotations"]] for record in trainer.data.records]


def test_pseudo_boxes_without_embeddings_or_a_localizer_are_an_error(world, tmp_path):
    (tmp_path / "pseudo.json").write_text("[]")
    overrides = OVERRIDES | {"MODEL.CORA.PSEUDO_BOXES": str(tmp_path / "pseudo.json"), "DATASETS.TEST": "()"}
    with pytest.raises(UserError, match=r"PSEUDO_BOXES, PSEUDO_EMBEDDINGS: expected both or neither, got one"):
        check_config(load_config(CONFIG, flat(overrides)))
    both = overrides | {"MODEL.CORA.PSEUDO_EMBEDDINGS": str(world / "further.safetensors")}
    check_config(load_config(CONFIG, flat(both)))
    prompting = flat(both | {"MODEL.CLIP.CROP_REGION_TYPE": "GT"})
    with pytest.raises(UserError, match="PSEUDO_BOXES: expected the localizer, CORA, got RegionPromptCLIP"):
        check_config(load_config("configs/cora/region_coco_rn50.yaml", prompting))


def export(world, folder, output, *more):
    options = {
        "MODEL.WEIGHTS": str(folder / "model.safetensors"),
        "DATASETS.TEST": "()",
        "MODEL.CLIP.TEXT_EMB_PATH": "",
    }
    options |= {"MODEL.DEVICE": "cpu"}
    files = ("--annotations", world / "annotations.json", "--images", world / "images", "--output", output)
    config = ("--config-file", folder / "config.yaml", "--num-gpus", "0")
    arguments = ("cora", "pseudo-boxes", *config, *files, *more, *flat(options))
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def test_an_export_has_the_detections_of_each_images_own_names(world, detector_folder, tmp_path):
    own_scores = ["MODEL.CLIP.SHOWN_SCORES", "published"]
    detector = RegionCLIP.from_pretrained(detector_folder, device="cpu", overrides=own_scores)
    words = ("cat", "dog", "traffic cone", "bench")
    vocabulary = detector.set_vocabulary(list(words), background=None)
    vocabulary.save(tmp_path / "names.safetensors")
    (tmp_path / "tags.json").write_text(json.dumps({"0": ["dog", "bench"], "1": ["Cat", "unheard of"], "2": []}))
    given = ("--vocabulary", tmp_path / "names.safetensors", "--threshold", "0.3", "--tags", tmp_path / "tags.json")
    done = export(world, detector_folder, tmp_path / "pseudo.json", *given)
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "pseudo.json").read_text())
    assert f"Done: {len(found)} pseudo boxes in 8 images, 0 images failed" in done.output
    assert {box["image_id"] for box in found} == {0, 1}
    for image, names in ((0, ["dog", "bench"]), (1, ["cat"])):
        detector.set_image(world / "images" / f"{image}.png")
        detector.set_vocabulary(names, background=None)
        expected = detector.predict(threshold=0.3, per_class=True)
        own = [box for box in found if box["image_id"] == image]
        assert [box["category_name"] for box in own] == list(expected.names)
        np.testing.assert_allclose([box["score"] for box in own], expected.scores, atol=1e-4)
        corners = np.array([box["bbox"] for box in own])
        corners[:, 2:] += corners[:, :2]
        np.testing.assert_allclose(corners, expected.boxes, atol=0.05)
    assert read_pseudo_boxes(str(tmp_path / "pseudo.json")).keys() == {"0", "1"}


def test_names_come_from_captions_or_a_list(tmp_path):
    captions = [{"image_id": 7, "caption": "Two dogs on a wooden bench"}, {"image_id": 7, "caption": "a motor bike"}]
    (tmp_path / "captions.json").write_text(json.dumps({"images": [{"id": 7}], "annotations": captions}))
    names = read_captions(tmp_path / "captions.json")
    assert names.keys() == {"7"}
    assert {"dog", "bench", "motor bike"} <= set(names["7"])
    (tmp_path / "tags.json").write_text('{"7": "dog"}')
    with pytest.raises(UserError, match="expected a JSON object: image id to a list of names"):
        read_tags(tmp_path / "tags.json")
    (tmp_path / "broken.json").write_text(json.dumps({"images": [{"id": 7}], "annotations": [{"image_id": 7}]}))
    with pytest.raises(UserError, match="annotation 0: expected image_id and caption"):
        read_captions(tmp_path / "broken.json")


def test_names_of_another_clip_are_an_error(world, detector_folder, tmp_path):
    Vocabulary(("cat",), torch.randn(1, 64), torch.arange(1)).save(tmp_path / "names.safetensors")
    (tmp_path / "tags.json").write_text("{}")
    given = ("--vocabulary", tmp_path / "names.safetensors", "--tags", tmp_path / "tags.json")
    done = export(world, detector_folder, tmp_path / "pseudo.json", *given)
    assert done.exit_code == 2
    assert "width 64" in done.output
    assert not (tmp_path / "pseudo.json").exists()
