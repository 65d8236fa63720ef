"""The synthetic dataset: the same scenes for the same seed, and annotations that fit them."""

import hashlib
import io
import itertools
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tarfile
from functools import partial

import numpy as np
import open_clip
import pytest
import torch
from lvis import LVIS
from PIL import Image, ImageDraw
from pycocotools import mask as run_lengths
from pycocotools.coco import COCO

from regionclip.clip.architectures import get_architecture
from regionclip.clip.text_encoder import tokenize
from regionclip.config.loading import load_config
from regionclip.data.emoji_scenes import pairs, writing
from regionclip.data.emoji_scenes.captions import article, captions_of, plural
from regionclip.data.emoji_scenes.concepts import read_concepts
from regionclip.data.emoji_scenes.drawings import Drawings
from regionclip.data.emoji_scenes.packages import STYLES, icon_members, icon_name, prepare_drawings
from regionclip.data.emoji_scenes.pairs import write_pairs
from regionclip.data.emoji_scenes.scenes import SceneMaker, SceneSettings, _transformed
from regionclip.data.emoji_scenes.writing import jpeg_bytes, write_split
from regionclip.data.image_text.opening import open_pairs
from regionclip.data.image_text.writing import write_shards
from regionclip.engine.checkpoint.loading import load_weights
from regionclip.errors import UserError
from regionclip.inference.text_encoder import load_embedder
from regionclip.modeling.build import build_model
from tests.helpers.detectors import LVIS_CUSTOM, TINY, flat
from tests.helpers.paths import DATA, REPOSITORY

CONCEPTS = read_concepts()


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """Return a folder with packages of made-up drawings, as npm would bring them."""
    folder = tmp_path_factory.mktemp("packages")
    random = np.random.default_rng(0)
    for style in STYLES.values():
        with tarfile.open(folder / style.archive, "w:gz", compresslevel=1) as archive:
            if style.read is icon_members:
                write_icon_set(archive, style, random)
                continue
            for concept in CONCEPTS:
                drawing = Image.new("RGBA", (32, 32))
                edges = sorted(random.integers(0, 15, 2).tolist()) + sorted(random.integers(17, 31, 2).tolist())
                ImageDraw.Draw(drawing).ellipse(edges, fill=(*random.integers(0, 255, 3).tolist(), 255))
                path = folder / f"drawing.{style.member.rsplit('.')[-1]}"
                drawing.save(path)
                archive.add(path, style.member.format(concept.code))
                path.unlink()
    return folder


def write_icon_set(archive, style, random):
    """Add an icon set of circles with all concepts that the style draws; one has only an alias."""
    icons = {}
    for concept in CONCEPTS[: style.count]:
        red, green, blue = random.integers(0, 255, 3)
        circle = f'<circle cx="64" cy="48" r="30" fill="rgb({red},{green},{blue})"/>'
        icons[icon_name(concept)] = {"body": circle}
    first = icon_name(CONCEPTS[0])
    icons["other-name"] = icons.pop(first)
    content = {"icons": icons, "aliases": {first: {"parent": "other-name"}}, "width": 128, "height": 128}
    member = tarfile.TarInfo(style.member)
    member.size = len(json.dumps(content))
    archive.addfile(member, io.BytesIO(json.dumps(content).encode()))


@pytest.fixture(scope="module")
def drawings(packages, tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawings")
    prepare_drawings(folder, packages)
    return [Drawings(folder, style) for style in ("noto", "twemoji")]


@pytest.fixture(scope="module")
def maker(drawings):
    return SceneMaker(drawings, CONCEPTS, seed=7)


def fingerprint(maker, numbers):
    digest = hashlib.sha256()
    for number in numbers:
        scene = maker.make(number)
        digest.update(scene.pixels.tobytes() + jpeg_bytes(scene))
        digest.update(repr([(item.concept.code, item.box, item.mask.tobytes()) for item in scene.objects]).encode())
        digest.update(repr(captions_of(scene, maker.seed, number)).encode())
    return digest.hexdigest()


def test_the_list_of_concepts():
    assert 1000 <= len(CONCEPTS) <= 1300
    assert len({concept.name for concept in CONCEPTS}) == len({concept.code for concept in CONCEPTS}) == len(CONCEPTS)
    novel = sum(concept.split == "novel" for concept in CONCEPTS)
    assert novel / len(CONCEPTS) == pytest.approx(0.25, abs=0.01)
    assert all(0 <= concept.rarity <= 1 for concept in CONCEPTS)
    by_name = {concept.name: concept for concept in CONCEPTS}
    assert not by_name["backhand index pointing left"].mirrored
    assert by_name["cat"].mirrored
    unwanted = ("flag", "skin tone", "o'clock", "keycap", "button")
    assert all("mailbox" in name for name in by_name if name.endswith(unwanted))


def test_the_same_seed_gives_the_same_scenes_in_any_order_and_process(maker, drawings):
    expected = fingerprint(maker, range(12))
    again = SceneMaker(drawings, CONCEPTS, seed=7)
    again.make(40)
    assert fingerprint(again, range(12)) == expected
    with multiprocessing.get_context("forkserver").Pool(2) as pool:
        assert set(pool.starmap(fingerprint, [(maker, range(12))] * 2)) == {expected}
    assert fingerprint(SceneMaker(drawings, CONCEPTS, seed=8), range(12)) != expected


def test_boxes_and_masks_are_of_what_can_be_seen(maker):
    counts = []
    for number in range(60):
        scene = maker.make(number)
        height, width = scene.pixels.shape[:2]
        assert {height, width} <= set(maker.settings.sides)
        covered = np.zeros((height, width), int)
        for item in scene.objects:
            left, top, box_width, box_height = item.box
            assert left >= 0
            assert top >= 0
            assert left + box_width <= width
            assert top + box_height <= height
            assert item.mask.shape == (box_height, box_width)
            for edge in (item.mask[0], item.mask[-1], item.mask[:, 0], item.mask[:, -1]):
                assert edge.any()
            covered[top : top + box_height, left : left + box_width] += item.mask
        assert covered.max(initial=0) <= 1
        counts.append(len(scene.objects))
    assert 2 < np.mean(counts) < 7
    assert max(counts) > 8


def test_what_is_mostly_hidden_is_not_annotated(drawings):
    hidden = SceneSettings(objects=(12, 12), object_side=(150, 160), sides=(256,), least_visible=0.4)
    maker, every = SceneMaker(drawings, CONCEPTS, 3, hidden), []
    for number in range(10):
        scene = maker.make(number)
        assert len(scene.objects) < 12
        every += scene.objects
    whole = SceneMaker(drawings, CONCEPTS, 3, SceneSettings(**(vars(hidden) | {"least_visible": 0.0})))
    assert sum(len(whole.make(number).objects) for number in range(10)) > len(every)


@pytest.mark.parametrize("tail", [20, 1])
def test_frequent_concepts_come_more_often(drawings, tail):
    maker = SceneMaker(drawings, CONCEPTS, 7, SceneSettings(tail=tail))
    rarities = np.array([concept.rarity for concept in CONCEPTS])
    shares = tail**-rarities / (tail**-rarities).sum()
    found = np.array([item.concept.rarity for number in range(300) for item in maker.make(number).objects])
    deviation = np.sqrt((shares * rarities**2).sum() - (shares * rarities).sum() ** 2) / np.sqrt(len(found))
    assert np.mean(found) == pytest.approx((shares * rarities).sum(), abs=4 * deviation)


@pytest.mark.parametrize("scale", [0.2, 0.45, 0.9])
@pytest.mark.parametrize("angle", [0.0, 20.0])
@pytest.mark.parametrize("mirrored", [False, True])
def test_turned_and_scaled_drawings_are_whole(scale, angle, mirrored):
    drawing = np.zeros((120, 160, 4), np.uint8)
    drawing[10:110, 10:150] = 255
    drawing[10:110, 10:40, 0] = 0  # its left side lacks red
    result = _transformed(drawing, scale, angle, mirrored=mirrored)
    share = (result[:, :, 3] > 127).sum() / ((drawing[:, :, 3] > 127).sum() * scale**2)
    assert share == pytest.approx(1, abs=0.08)
    opaque = result[:, :, 3] > 127
    middle = np.nonzero(opaque)[1].mean()
    without_red = np.nonzero(opaque & (result[:, :, 0] < 100))[1].mean()
    assert (without_red > middle) == mirrored


def test_captions_name_what_is_there(maker):
    for number in range(30):
        scene = maker.make(number)
        names = {item.concept.name for item in scene.objects}
        for caption in captions_of(scene, 0, number):
            assert not names or any(name in caption or plural(name) in caption for name in names), caption
    assert captions_of(maker.make(0), 0, 0) != captions_of(maker.make(0), 1, 0)
    words = ["cat", "face with tears of joy", "fox", "cherry", "monkey"]
    assert [plural(name) for name in words] == ["cats", "faces with tears of joy", "foxes", "cherries", "monkeys"]
    assert [article(name) for name in ("owl", "cat")] == ["an", "a"]


def test_a_split_is_written_as_coco_lvis_captions_and_shards(maker, tmp_path):
    written = write_split(tmp_path, "val", maker, 25, shards=True)
    assert [path.name for path in written] == ["val.json", "val_base.json", "lvis_val.json", "captions_val.json"]
    whole, base = COCO(str(written[0])), COCO(str(written[1]))
    assert len(whole.getImgIds()) == 25
    assert len(whole.cats) == len(CONCEPTS)
    base_ids = {concept.number + 1 for concept in CONCEPTS if concept.split == "base"}
    assert set(base.cats) == base_ids
    assert {a["category_id"] for a in base.dataset["annotations"]} <= base_ids
    assert 0 < len(base.dataset["annotations"]) < len(whole.dataset["annotations"])
    for annotation in whole.dataset["annotations"]:
        mask = run_lengths.decode(annotation["segmentation"])
        assert mask.sum() == annotation["area"]
        assert run_lengths.toBbox(annotation["segmentation"]).tolist() == annotation["bbox"]
    with Image.open(tmp_path / "val" / "000003.jpg") as image:
        assert image.size == (whole.imgs[3]["width"], whole.imgs[3]["height"])
    lvis = LVIS(str(written[2]))
    assert {category["frequency"] for category in lvis.cats.values()} <= {"r", "c", "f"}
    counts = np.bincount([a["category_id"] for a in whole.dataset["annotations"]], minlength=len(CONCEPTS) + 1)
    assert all(lvis.cats[i]["instance_count"] == counts[i] for i in lvis.cats)
    captions = json.loads(written[3].read_text())["annotations"]
    assert len(captions) == 50
    (source,) = open_pairs(str(tmp_path / "shards" / "val"), "ImageTextShards")
    assert len(source) == 25
    assert captions[0]["caption"] in source.text(0)
    written = [path for path in tmp_path.rglob("*.*") if not path.name.endswith(".index.json")]
    first = {path: path.read_bytes() for path in written if path.suffix in (".jpg", ".json")}
    write_split(tmp_path, "val", maker, 25, shards=True)
    assert first == {path: path.read_bytes() for path in first}


def interrupted_after(count):
    def bar(made, **_):
        yield from itertools.islice(made, count)
        raise KeyboardInterrupt

    return bar


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_interrupted_split_goes_on_where_it_stopped(maker, tmp_path, monkeypatch):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    write_split(whole, "val", maker, 24)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(writing, "progress_bar", interrupted_after(15))
        write_split(resumed, "val", maker, 24)
    left = {path.name: path.stat().st_mtime_ns for path in sorted((resumed / "val").iterdir())[:15]}
    write_split(resumed, "val", maker, 24)
    assert contents(resumed) == contents(whole)
    assert {name: (resumed / "val" / name).stat().st_mtime_ns for name in left} == left
    # Another maker's scenes are not mixed with these.
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(writing, "progress_bar", interrupted_after(5))
        write_split(resumed, "val", SceneMaker(maker.drawings, CONCEPTS, seed=8), 24)
    write_split(resumed, "val", maker, 24)
    assert contents(resumed) == contents(whole)


def test_interrupted_pairs_go_on_with_the_next_shard(drawings, tmp_path, monkeypatch):
    monkeypatch.setattr(pairs, "PAIRS_IN_FILE", 10)
    monkeypatch.setattr(pairs, "write_shards", partial(write_shards, size=10))
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    for folder in (whole, resumed):
        folder.mkdir()
    write_pairs(whole, drawings, 35)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(pairs, "progress_bar", interrupted_after(25))
        write_pairs(resumed, drawings, 35)
    kept = {path.name: path.stat().st_mtime_ns for path in (resumed / "pairs").glob("*.tar")}
    assert sorted(kept) == ["00000.tar", "00001.tar"]
    assert [path.name for path in write_pairs(resumed, drawings, 35)] == [f"0000{i}.tar" for i in range(4)]
    assert contents(resumed) == contents(whole)
    assert {name: (resumed / "pairs" / name).stat().st_mtime_ns for name in kept} == kept
    (resumed / "pairs" / "00001.tar").unlink()
    write_pairs(resumed, drawings, 35)
    assert contents(resumed) == contents(whole)
    # With other drawings all are made again.
    assert len(write_pairs(resumed, drawings[:1], 35)) == 4
    assert contents(resumed) != contents(whole)


def test_drawings_are_prepared_once(packages, tmp_path):
    (folder,) = prepare_drawings(tmp_path, packages, ["fluent"])
    assert len(list(folder.iterdir())) == len(CONCEPTS)
    prepare_drawings(tmp_path, tmp_path / "nowhere", ["fluent"])
    next(folder.iterdir()).unlink()
    with pytest.raises(UserError, match="expected a package of drawings, got no such file"):
        prepare_drawings(tmp_path, tmp_path / "nowhere", ["fluent"])
    with pytest.raises(UserError, match="drawings of noto: expected 1174 files"):
        Drawings(tmp_path, "noto")


def test_without_npm_the_packages_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="npm: expected the program, to fetch the drawings, got not installed"):
        prepare_drawings(tmp_path / "drawings", None, ["noto"])


def test_a_package_without_the_drawings_is_refused(tmp_path):
    with tarfile.open(tmp_path / "emoji-datasource-google-16.0.0.tgz", "w:gz"):
        pass
    with pytest.raises(UserError, match="expected drawings of 1174 concepts, got 1174 missing"):
        prepare_drawings(tmp_path / "drawings", tmp_path, ["noto"])


def test_icon_sets_are_drawn_and_may_lack_concepts(packages, tmp_path):
    style = STYLES["emojione"]
    (folder,) = prepare_drawings(tmp_path, packages, ["emojione"])
    assert len(list(folder.iterdir())) == style.count < len(CONCEPTS)
    drawings = Drawings(tmp_path, "emojione")
    assert CONCEPTS[0] in drawings
    assert CONCEPTS[-1] not in drawings
    drawn = drawings[CONCEPTS[0]]  # a circle, cut to what is drawn
    assert max(drawn.shape[:2]) == 160
    assert min(drawn.shape[:2]) >= 158
    assert (drawn[:, :, 3] > 127).mean() == pytest.approx(np.pi / 4, abs=0.02)
    maker = SceneMaker([drawings], CONCEPTS[: style.count], 7)
    assert maker.make(1).objects


def test_a_package_without_the_icon_set_is_refused(tmp_path):
    with tarfile.open(tmp_path / STYLES["noto_v1"].archive, "w:gz"):
        pass
    with pytest.raises(UserError, match="expected drawings of 863 concepts, got 863 missing"):
        prepare_drawings(tmp_path / "drawings", tmp_path, ["noto_v1"])


def test_icon_names_have_no_marks():
    names = {concept.name: icon_name(concept) for concept in CONCEPTS}
    assert names["rolling on the floor laughing"] == "rolling-on-the-floor-laughing"
    assert all(re.fullmatch(r"[\w-]+", name) for name in names.values())


@pytest.mark.slow
def test_the_tool_makes_registered_datasets(packages, tmp_path):
    environment = os.environ | {"DETECTRON2_DATASETS": str(tmp_path)}
    code = """
import runpy
try:
    runpy.run_path("tools/prepare_emoji.py", run_name="__main__")
except SystemExit as stop:
    assert not stop.code
from detectron2.data import MetadataCatalog
from regionclip.data.datasets.registered import read_records
for name in ("emoji_val", "emoji_val_base"):
    records = read_records(name)
    groups = MetadataCatalog.get(name).class_groups
    print(len(records), sum(len(r["annotations"]) for r in records) > 0, {g: len(m) for g, m in groups.items()})
"""
    options = [
        "--packages",
        packages,
        "--scenes",
        "6",
        "--splits",
        "val",
        "--shards",
        "--sheet",
        tmp_path / "sheet.png",
    ]
    command = [sys.executable, "-c", code, *map(str, options)]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "Done: 1 splits" in done.stdout
    assert done.stdout.splitlines()[-2:] == ["6 True {'novel': 294, 'base': 880}", "6 True {'base': 880}"]
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width / sheet.height == 2  # six scenes, four in a row
    assert len(open_pairs(str(tmp_path / "emoji" / "shards" / "val"), "ImageTextShards")[0]) == 6


@pytest.mark.slow
def test_pairs_are_written_as_shards_the_same_each_time(drawings, tmp_path):
    (shard,) = write_pairs(tmp_path, drawings, 30)
    first = tar_contents(shard)
    (pairs,) = open_pairs(str(tmp_path / "pairs"), "ImageTextShards")
    assert len(pairs) == 30
    names = {concept.name.replace(",", "") for concept in CONCEPTS}
    for number in range(1, 10):  # one object each
        captions = json.loads(pairs[number].text)["captions"]
        assert len(set(captions)) == 4
        assert any(all(name in caption for caption in captions) for name in names), captions
    assert len(json.loads(pairs[20].text)["captions"]) == 2
    (shard,) = write_pairs(tmp_path, drawings, 30)
    assert tar_contents(shard) == first


def tar_contents(path):
    with tarfile.open(path) as archive:
        return [(member.name, archive.extractfile(member).read()) for member in archive]


def test_a_small_clip_is_trained_and_its_encoders_are_loaded_everywhere(run_tool, drawings, tmp_path):
    write_pairs(tmp_path, drawings, 60)
    overrides = {
        "MODEL.CLIP.ARCHITECTURE": DATA / "tiny_clip.json",
        "DATASETS.PATH_TRAIN": f"('{tmp_path}/pairs',)",
        "AUG.TRAIN.IMAGE_SIZE": "[64,64]",
        "DATALOADER.NUM_WORKERS": 0,
        "SOLVER.IMS_PER_BATCH": 16,
        "SOLVER.MAX_ITER": 12,
        "SOLVER.WARMUP_ITERS": 0,
        "SOLVER.AMP.ENABLED": False,
        "OUTPUT_DIR": tmp_path / "out",
        "SEED": 1,
    }
    command = ["train_net.py", "--config-file", "configs/EmojiOVD/clip.yaml"]
    code, output = run_tool(*command, *(part for pair in overrides.items() for part in pair))
    assert code == 0, output
    weights = tmp_path / "out" / "model_final.pth"
    state = torch.load(weights, weights_only=True)["model"]
    assert {"visual.conv1.weight", "visual.attnpool.c_proj.weight", "transformer.resblocks.0.ln_1.weight"} <= set(state)
    model = build_model(load_config("configs/EmojiOVD/clip.yaml", [str(p) for pair in overrides.items() for p in pair]))
    report = load_weights(model, str(weights))
    assert report.missing == []
    assert not report.unexpected
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    architecture = get_architecture(str(DATA / "tiny_clip.json"))
    trained = open_clip.CLIP(
        architecture.embedding_dim,
        {"layers": architecture.blocks, "width": architecture.width, "image_size": architecture.image_resolution},
        {"width": 64, "heads": 1, "layers": 2},
        quick_gelu=True,
    ).eval()
    trained.load_state_dict(state)
    embedder = load_embedder(architecture, str(weights))
    tokens = tokenize(["a photo of a cat."], embedder.tokenizer)
    with torch.no_grad():
        torch.testing.assert_close(trained.encode_text(tokens), embedder.encoder(tokens), atol=1e-5, rtol=1e-4)
    backbone = build_model(load_config(LVIS_CUSTOM, flat(TINY))).backbone
    holder = torch.nn.Module()
    holder.backbone = backbone
    load_weights(holder, str(weights))
    assert torch.equal(backbone.conv1.weight, state["visual.conv1.weight"])
    code, output = run_tool(
        *command, *(part for pair in overrides.items() for part in pair), "AUG.TRAIN.IMAGE_SIZE", "[96,96]"
    )
    assert code == 2
    assert "AUG.TRAIN.IMAGE_SIZE: expected [64, 64], the images of this CLIP, got [96, 96]" in output


def test_metrics_become_tables(run_tool, tmp_path):
    def write(stage, task="bbox", **metrics):
        path = tmp_path / stage / "inference" / "metrics.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"metrics": {task: {key.replace("_", "-"): v for key, v in metrics.items()}}}))

    write("zero_shot_gt_clip", AP=30.0, AP50_novel=25.0)
    write("zero_shot_gt_pretrain", AP=40.0, AP50_novel=None)
    write("zero_shot_gt_pretrain_seed2", AP=43.0)
    write("rpn", task="proposals", **{"AR@100": 61.25})
    code, output = run_tool("emoji_table.py", "--folder", tmp_path)
    assert code == 0, output
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in output.splitlines()]
    table = {row[0]: row[1:] for row in rows}
    assert table["zero-shot, ground-truth boxes, AP"][:2] == ["30.0", "41.5 (40.0 to 43.0)"]
    assert table["zero-shot, ground-truth boxes, AP50, novel"][:2] == ["25.0", "not run"]
    assert table["AR@100"] == ["61.2"]
    assert table["whole recipe, 1500 steps"][0] == "40.0"
    assert table["random boxes"] == ["not run", "not run"]
    assert "no such folder" in run_tool("emoji_table.py", "--folder", tmp_path / "nowhere")[1]


@pytest.mark.slow
def test_the_whole_recipe_runs_in_small_and_goes_on(packages, tmp_path):
    environment = os.environ | {
        "PYTHON": sys.executable,
        "DETECTRON2_DATASETS": str(tmp_path / "data"),
        "EMOJI_OUTPUT": str(tmp_path / "out"),
        "EMOJI_SCENES": "8",
        "EMOJI_PAIRS": "40",
        "EMOJI_PACKAGES": str(packages),
    }
    settings = ["SOLVER.MAX_ITER", "2", "SOLVER.WARMUP_ITERS", "0", "SOLVER.IMS_PER_BATCH", "4"]
    command = ["bash", "tools/train_emoji.sh", *settings, "DATALOADER.NUM_WORKERS", "0"]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    evaluated = {path.parent.parent.name for path in (tmp_path / "out").glob("*/inference/metrics.json")}
    zero_shot = {f"zero_shot_{boxes}_{stage}" for boxes in ("gt", "rpn") for stage in ("clip", "pretrain")}
    style = {f"style_{boxes}_{stage}" for boxes in ("gt", "rpn") for stage in ("clip", "pretrain")}
    assert evaluated >= {*zero_shot, *style, "shown_transfer_pretrain", "transfer_clip", "transfer_pretrain", "rpn"}
    packed = tmp_path / "out" / "packed" / "emoji"
    assert (packed / "vocabulary.safetensors").is_file()
    card = (packed / "README.md").read_text()
    assert card.count("8 images. emoji_") == 3 and "## Limits" in card
    metrics = json.loads((tmp_path / "out" / "rpn" / "inference" / "metrics.json").read_text())["metrics"]
    assert {"AR@100", "AR@100-novel", "AR@100-base"} <= set(metrics["proposals"])
    shutil.rmtree(tmp_path / "out" / "transfer_pretrain")
    again = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr[-2000:]
    assert again.stdout.count("Command line:") == 1
