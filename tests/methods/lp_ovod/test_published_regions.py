"""Published proposals and embeddings as folders of region features, proposals of an evaluation, and retrieval."""

import json
import pickle

import numpy as np
import pytest
import torch

from regionclip.clip.vocabulary import Vocabulary
from regionclip.config.loading import load_config
from regionclip.data.region_features.index import FeatureFolder
from regionclip.data.test_loader import TestMapper, build_test_loader, read_test_records
from regionclip.engine.features.extraction import ExtractionJob, extract_region_features, read_extraction_input
from regionclip.errors import UserError
from regionclip.modeling.build import build_model
from regionclip.testing.deterministic import deterministic_text_embeddings, fill_deterministic
from tests.helpers.detectors import flat
from tests.helpers.paths import GOLDENS
from tests.helpers.training import register, write_images
from tests.methods.lp_ovod.tiny import TEACHER, TEACHER_OVERRIDES

UNITS = np.load(GOLDENS / "p_lp_ovod.npz")


@pytest.fixture
def published(tmp_path):
    """Write files as published: proposals in another order than the images, a map, embeddings; return the arrays."""
    write_images(tmp_path)
    rng = np.random.default_rng(0)
    counts = [3, 0, 5, 1, 4, 2, 6, 2]
    arrays = []
    for count in counts:
        corners = rng.uniform(2, 30, (count, 2))
        sides = rng.uniform(5, 30, (count, 2))
        arrays.append(np.hstack([corners, corners + sides, rng.uniform(0.3, 0.9, (count, 1))]).astype(np.float32))
    order = [5, 2, 0, 7, 1, 3, 6, 4]  # place of each image
    places = {str(i): place for i, place in enumerate(order)}
    (tmp_path / "map.json").write_text(json.dumps(places | {"num_proposal": counts}))
    (tmp_path / "proposals.pkl").write_bytes(pickle.dumps(arrays))
    table = rng.normal(size=(sum(counts), 32)).astype(np.float16)
    table.tofile(tmp_path / "embeddings.bin")
    starts = np.cumsum([0, *counts])
    rows = {f"{i}.png": (arrays[place], table[starts[place] : starts[place + 1]]) for i, place in enumerate(order)}
    return tmp_path, rows


def convert(command, folder, *more, proposals="proposals.pkl", output="regions"):
    files = ("--annotations", folder / "annotations.json", "--output", folder / output)
    return command("lp-ovod", "convert", folder / proposals, *files, *more)


def whole(folder):
    return ("--id-map", folder / "map.json", "--embeddings", folder / "embeddings.bin", "--width", "32")


def test_each_image_gets_its_rows(command, published):
    folder, rows = published
    code, out, error = convert(command, folder, *whole(folder))
    assert code == 0, error
    assert "Done: 23 regions" in out
    found = FeatureFolder(folder / "regions")
    assert (found.clip, found.dim) == ("ViT-B/32", 32)
    assert found.keys() == rows.keys()
    for name, (boxes, embeddings) in rows.items():
        np.testing.assert_array_equal(found[name]["boxes"].numpy(), boxes[:, :4])
        np.testing.assert_array_equal(found[name]["objectness"].numpy(), boxes[:, 4])
        if len(boxes):
            np.testing.assert_array_equal(found[name]["feats"].numpy(), embeddings)


def test_a_folder_keeps_the_regions_of_its_files(command, published):
    folder, _ = published
    assert convert(command, folder, *whole(folder))[0] == 0
    assert convert(command, folder, *whole(folder))[0] == 0
    code, _, error = convert(command, folder, "--id-map", folder / "map.json")
    assert code == 2 and "expected no regions of other files" in error


def test_boxes_beyond_their_image_are_of_another_one(command, published):
    folder, _ = published
    arrays = pickle.loads((folder / "proposals.pkl").read_bytes())
    arrays[3][0, 2] = 400
    (folder / "proposals.pkl").write_bytes(pickle.dumps(arrays))
    code, _, error = convert(command, folder, "--id-map", folder / "map.json")
    assert code == 2 and "expected boxes within" in error and "got boxes up to 400" in error


def test_regions_of_other_images_are_an_error(tmp_path, command, published):
    folder, _ = published
    assert convert(command, folder, *whole(folder))[0] == 0
    regions = FeatureFolder(folder / "regions")
    assert regions.find_all(["x/0.png", "9.png"]) == ["0.png", None]
    with pytest.raises(UserError, match=r"those of 2 images, such as a\.png, got none of them"):
        regions.find_all(["a.png", "b.png"])
    with pytest.raises(UserError, match=r"expected regions of one image each, got 0\.png for several images"):
        regions.find_all(["x/0.png", "y/0.png"])


def test_without_a_map_the_order_of_the_images_counts(command, published):
    folder, _ = published
    code, _, error = convert(command, folder)
    assert code == 0, error
    found = FeatureFolder(folder / "regions")
    arrays = pickle.loads((folder / "proposals.pkl").read_bytes())
    for place, array in enumerate(arrays):
        np.testing.assert_array_equal(found[f"{place}.png"]["boxes"].numpy(), array[:, :4])


def test_files_that_do_not_belong_together_are_errors(command, published):
    folder, _ = published
    cut = (folder / "embeddings.bin").read_bytes()
    (folder / "embeddings.bin").write_bytes(cut + bytes(len(cut)))
    code, _, error = convert(command, folder, *whole(folder))
    assert code == 2 and "twice as many. Fix: the published code maps it as float32" in error
    (folder / "embeddings.bin").write_bytes(cut[:-2])
    code, _, error = convert(command, folder, *whole(folder))
    assert code == 2 and "expected 1472 bytes, 23 x 32 float16, got 1470" in error
    arrays = pickle.loads((folder / "proposals.pkl").read_bytes())
    (folder / "fewer.pkl").write_bytes(pickle.dumps(arrays[:-1]))
    code, _, error = convert(command, folder, proposals="fewer.pkl")
    assert code == 2 and "proposals: expected 8 images, as the annotation file, got 7" in error
    (folder / "map.json").write_text(json.dumps({"0": 3, "num_proposal": []}))
    code, _, error = convert(command, folder, "--id-map", folder / "map.json")
    assert code == 2 and "image 1: expected a place below 8, got None" in error
    (folder / "map.json").write_text(json.dumps(dict.fromkeys(map(str, range(8)), 3)))
    code, _, error = convert(command, folder, "--id-map", folder / "map.json")
    assert code == 2 and "expected a place of its own for each image, got one for several" in error
    assert not (folder / "regions" / "index.json").exists()


class Runs:
    def __reduce__(self):
        return print, ("code ran",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([Runs()], "expected tensors only, got a pickle that could run code"),
        ({"boxes": 1}, "expected a list with an array"),
        ([np.zeros((3, 6))], "image 0: expected finite numbers"),
        ([np.full((3, 5), np.nan)], "image 0: expected finite numbers"),
    ],
)
def test_other_pickles_are_refused(content, message, command, published):
    folder, _ = published
    (folder / "other.pkl").write_bytes(pickle.dumps(content))
    code, out, error = convert(command, folder, proposals="other.pkl")
    assert code == 2 and message in error and "code ran" not in out, error


def test_a_folder_gives_the_proposals_of_an_evaluation_with_their_objectness(command, published):
    folder, rows = published
    assert convert(command, folder, "--id-map", folder / "map.json")[0] == 0
    options = {"MODEL.CLIP.CROP_REGION_TYPE": "FILE", "MODEL.CLIP.PROPOSAL_FILE": str(folder / "regions")}
    cfg = load_config(TEACHER, flat(TEACHER_OVERRIDES | options | {"INPUT.MIN_SIZE_TEST": "128"}))
    loader = build_test_loader(cfg, read_test_records(cfg, register(folder)))
    for (image,) in loader:
        boxes, _ = rows[image["file_name"].split("/")[-1]]
        scale = 128 / min(image["height"], image["width"])
        np.testing.assert_allclose(image["proposals"].proposal_boxes.tensor.numpy(), boxes[:, :4] * scale, rtol=1e-5)
        np.testing.assert_allclose(image["proposals"].objectness_logits.sigmoid().numpy(), boxes[:, 4], atol=1e-6)


def test_given_proposals_are_embedded_with_their_objectness(command, published):
    folder, rows = published
    assert convert(command, folder, "--id-map", folder / "map.json")[0] == 0
    places = {"INPUT_DIR": str(folder / "images"), "OUTPUT_DIR": str(folder / "embedded")}
    cfg = load_config(TEACHER, flat(TEACHER_OVERRIDES | places))
    job = ExtractionJob(regions=str(folder / "regions"), format="safetensors", half=True, objectness=True)
    job.configure(cfg)
    model = build_model(cfg)
    fill_deterministic(model)
    extract_region_features(cfg, model, job, read_extraction_input(cfg, job))
    found = FeatureFolder(folder / "embedded")
    for name, (boxes, _) in rows.items():
        np.testing.assert_allclose(found[name]["boxes"].numpy(), boxes[:, :4], atol=1e-4)
        np.testing.assert_allclose(found[name]["objectness"].numpy(), boxes[:, 4], atol=1e-6)


def save_names(folder, names, dim=32):
    rows = deterministic_text_embeddings("retrieval", len(names), dim)
    path = folder / f"{len(names)}x{dim}.safetensors"
    Vocabulary(tuple(names), rows, torch.arange(len(names))).save(path)
    return path


def retrieve(command, folder, embeddings, *more):
    files = ("--regions", folder / "regions", "--embeddings", embeddings, "--annotations", folder / "annotations.json")
    return command("lp-ovod", "retrieve", *files, "--output", folder / "retrieved.json", *more)


def test_retrieval_writes_a_dataset_and_its_page(command, published):
    folder, rows = published
    assert convert(command, folder, *whole(folder))[0] == 0
    names = save_names(folder, ("dog", "car"))
    code, _, error = retrieve(command, folder, names, "--per-word", "4", "--images", folder / "images")
    assert code == 0, error
    content = json.loads((folder / "retrieved.json").read_text())
    assert [entry["category_id"] for entry in content["annotations"]] == [18] * 4 + [3] * 4
    assert [category["name"] for category in content["categories"]] == ["person", "car", "dog"]
    text = torch.nn.functional.normalize(Vocabulary.from_file(names).class_embeddings(), dim=1).double()
    every = [
        (float(np.dot(row / np.linalg.norm(row), text[0])), name, box)
        for name, (boxes, table) in rows.items()
        for box, row in zip(boxes, table.astype(np.float64), strict=True)
        if box[4] >= np.float32(0.6)
    ]
    best = sorted(every, key=lambda entry: -entry[0])[:4]
    assert [entry["cosine"] for entry in content["annotations"][:4]] == pytest.approx([b[0] for b in best], abs=1e-6)
    assert [f"{entry['image_id']}.png" for entry in content["annotations"][:4]] == [b[1] for b in best]
    assert (folder / "retrieved.html").read_text().count("data:image/jpeg") == 8


def test_a_retrieved_dataset_has_the_file_names_and_spelling_of_its_annotations(command, published):
    folder, _ = published
    assert convert(command, folder, *whole(folder))[0] == 0
    content = json.loads((folder / "annotations.json").read_text())
    for image in content["images"]:
        image["file_name"] = f"yard/{image['file_name']}"
    for category in content["categories"]:
        category["name"] = category["name"].replace("dog", "hot_dog_(food)")
    (folder / "annotations.json").write_text(json.dumps(content))
    code, _, error = retrieve(command, folder, save_names(folder, ("hot dog food",)), "--per-word", "2")
    assert code == 0, error
    written = json.loads((folder / "retrieved.json").read_text())
    assert {image["file_name"] for image in written["images"]} <= {image["file_name"] for image in content["images"]}


def test_what_retrieval_cannot_use_is_an_error(command, published):
    folder, _ = published
    assert convert(command, folder, *whole(folder))[0] == 0
    code, _, error = retrieve(command, folder, save_names(folder, ("dog",), 64))
    assert code == 2 and "expected width 32 of ViT-B/32, as the regions, got width 64" in error
    code, _, error = retrieve(command, folder, save_names(folder, ("dog", "pallet", "zebra")))
    assert code == 2 and "expected categories of" in error and "got pallet, zebra" in error
    code, _, error = retrieve(command, folder, save_names(folder, ("dog",)), "--min-cosine", "0.99")
    assert code == 2 and "retrieval: expected regions for each class, got none for dog" in error
    assert convert(command, folder, output="boxes")[0] == 0
    code, _, error = retrieve(command, folder, save_names(folder, ("dog",)), "--regions", folder / "boxes")
    assert code == 2 and "expected the embeddings of the regions, got none" in error
    assert not (folder / "retrieved.json").exists()


def test_a_damaged_shard_is_one_error(command, published):
    folder, _ = published
    assert convert(command, folder, *whole(folder))[0] == 0
    (shard,) = (folder / "regions").glob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:100])
    code, _, error = retrieve(command, folder, save_names(folder, ("dog",)))
    assert code == 2 and "expected a shard of region features" in error
    rows = FeatureFolder(folder / "regions").rows("0.png")
    with pytest.raises(UserError, match="expected a shard of region features"):
        TestMapper(64, 128, "RGB", keep_annotations=False)(
            {"file_name": str(folder / "images" / "0.png"), "stored_regions": rows}
        )
