"""Image-text pairs from every format; captions of every kind; nouns and the pool of concepts."""

import csv
import io
import json
import logging
import random
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from regionclip.clip.architectures import get_architecture
from regionclip.clip.class_embeddings import load_class_embeddings
from regionclip.clip.text_encoder import END_OF_TEXT, TextEncoder
from regionclip.clip.vocabulary import Vocabulary
from regionclip.config.loading import load_config
from regionclip.data.caption_loader import (
    CaptionMapper,
    ImageTextPairs,
    ShortestEdge,
    all_captions,
    choose_caption,
    read_pairs,
    shuffled_groups,
)
from regionclip.data.image_text.nouns import parse, singular, spacy_parser
from regionclip.data.image_text.opening import open_pairs
from regionclip.data.image_text.pairs import Pair
from regionclip.data.image_text.writing import image_bytes, write_shards, write_tsv
from regionclip.data.images import UnreadableImageError
from regionclip.engine.concept_pool import count_concepts, read_concept_names
from regionclip.errors import UserError
from regionclip.inference.text_encoder import load_embedder
from regionclip.testing.deterministic import deterministic_state_dict
from tests.helpers.paths import DATA
from tests.helpers.pretraining import CAPTIONS, PHOTOS, pairs, pretrain, write_world

CONFIG = load_config(
    "configs/pretrain/RegionCLIP_RN50.yaml", ["AUG.TRAIN.IMAGE_SIZE", "[48]", "AUG.TRAIN.MAX_SIZE", "60"]
)


def contents(sources):
    return [(image_bytes(source[i]), source[i].text) for source in sources for i in range(len(source))]


def write_coco(folder):
    """Write a COCO captions file for the four photos."""
    (folder / "annotations").mkdir(parents=True)
    (folder / "train2017").symlink_to(PHOTOS[0].parent)
    images = [{"id": i, "file_name": path.name} for i, path in enumerate(PHOTOS)]
    annotations = [{"image_id": i, "caption": c} for i, path in enumerate(PHOTOS) for c in CAPTIONS[path.name]]
    path = folder / "annotations" / "captions_train2017.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    return path


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet"])
def test_tables_of_captions(ending, tmp_path):
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    rows = [{"file_name": str(path), "caption": CAPTIONS[path.name][0], "id": 1} for path in PHOTOS]
    path = tmp_path / f"captions.{ending}"
    if ending == "parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], delimiter="\t" if ending == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    for place in (path, tmp_path):
        found = contents(open_pairs(str(place), "CaptionTable"))
        assert found == [(photo.read_bytes(), CAPTIONS[photo.name][0]) for photo in PHOTOS]


def test_a_damaged_table_is_one_error(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "captions.parquet").write_bytes(b"PAR1 no table PAR1")
    with pytest.raises(UserError, match=r"captions\.parquet: expected a Parquet file"):
        open_pairs(str(tmp_path / "captions.parquet"), "CaptionTable")


def test_coco_captions_are_read_with_all_captions_of_an_image(tmp_path):
    found = contents(open_pairs(str(write_coco(tmp_path)), "COCOCaptions"))
    assert found == [(photo.read_bytes(), json.dumps({"captions": CAPTIONS[photo.name]})) for photo in PHOTOS]


@pytest.mark.parametrize(
    ("write", "factory"), [(write_shards, "ImageTextShards"), (write_tsv, "CLIPImgTxtPairTSVDataset")]
)
def test_what_is_written_is_read(write, factory, tmp_path):
    files = write(pairs(10), tmp_path / "out", size=4)
    assert len(files) == 3
    (source,) = open_pairs(str(tmp_path / "out"), factory)
    assert source.group_sizes == [4, 4, 2]
    assert contents([source]) == [(pair.image, pair.text) for pair in pairs(10)]
    # A second reader uses the index of the first.
    assert contents(open_pairs(str(files[1]), factory)) == contents([source])[4:8]
    both = "+".join(str(path) for path in files[:2])
    assert contents(open_pairs(both, factory)) == contents([source])[:8]


def test_the_converter_goes_both_ways(run_tool, tmp_path):
    write_shards(pairs(5), tmp_path / "a", size=3)

    def convert(source, factory, target, output):
        places = ["--input", tmp_path / source, "--format", factory, "--to", target, "--output", tmp_path / output]
        code, printed = run_tool("convert_image_text.py", *places)
        assert code == 0, printed
        assert f"files in {tmp_path / output}, 0 pairs left out" in printed

    places = ["--input", tmp_path / "a", "--format", "ImageTextShards", "--to", "tsv", "--output", tmp_path / "none"]
    code, printed = run_tool("convert_image_text.py", *places, "--size", 0)
    assert code == 2 and "expected a number above 0, got 0" in printed and not (tmp_path / "none").exists()
    convert("a", "ImageTextShards", "tsv", "b")
    convert("b", "CLIPImgTxtPairTSVDataset", "shards", "c")
    assert contents(open_pairs(str(tmp_path / "c"), "ImageTextShards")) == [(p.image, p.text) for p in pairs(5)]


def test_upstream_tsv_folders_are_read(tmp_path):
    """Line indices that upstream needs are made where they are missing; row lists choose; texts lie beside."""
    write_tsv(pairs(6), tmp_path, size=6)
    (tmp_path / "images-00000.lineidx").unlink()
    (tmp_path / "images-00000.linelist").write_text("4\n1\n")
    (source,) = open_pairs(str(tmp_path), "CLIPImgTxtPairTSVDataset")
    assert [pair.key.split("/")[1] for pair in (source[0], source[1])] == ["1", "4"]
    offsets = [int(x) for x in (tmp_path / "images-00000.lineidx").read_text().split()]
    lines = (tmp_path / "images-00000.tsv").read_bytes().splitlines(keepends=True)
    assert offsets == np.cumsum([0, *map(len, lines)])[:-1].tolist()
    (tmp_path / "text-00000.tsv").write_text("other\tcaption\n" * 6)
    (tmp_path / "text-00000.lineidx").unlink()
    (source,) = open_pairs(str(tmp_path), "CLIPImgTxtPairTSVDataset")
    with pytest.raises(ValueError, match=r"line of 1 in images-00000\.tsv, of other"):
        source[0]
    (tmp_path / "text-00000.tsv").unlink()
    with pytest.raises(UserError, match=r"expected its captions in text-00000\.tsv"):
        open_pairs(str(tmp_path), "CLIPImgTxtPairTSVDataset")


def test_webdataset_members_in_folders_and_with_two_texts(tmp_path):
    path = tmp_path / "a.tar"
    members = {
        "x/1.jpg": b"one", "x/1.txt": b"plain", "x/1.json": b'{"caption": "better"}', "x/2.png": b"two",
        "y/1.jpg": b"three", "y/1.txt": "caf\u00e9".encode(), "y/1.cls": b"7",
        "z.jpg": b"four", "z.json": b'{"url": "no words"}', "z.txt": b"words",
    }  # fmt: skip
    write_members(path, members)
    found = contents(open_pairs(str(path), "ImageTextShards"))
    assert found == [(b"one", '{"caption": "better"}'), (b"three", "caf\u00e9"), (b"four", "words")]


def cut(whole):
    return whole[: len(whole) // 2]


def joined(whole):
    return whole + whole


@pytest.mark.parametrize("damage", [cut, joined])
def test_a_damaged_shard_gives_what_comes_before_and_says_so(damage, tmp_path, caplog):
    (path,) = write_shards(pairs(6), tmp_path, size=6)
    path.write_bytes(damage(path.read_bytes()))
    for _ in range(2):  # with the index of the first visit, too
        caplog.clear()
        with caplog.at_level(logging.WARNING, "regionclip"):
            found = contents(open_pairs(str(path), "ImageTextShards"))
        assert 1 <= len(found) <= 6
        assert found == [(pair.image, pair.text) for pair in pairs(len(found))]
        if damage is cut:
            assert "damaged after" in caplog.text
            assert len(found) < 6


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b zipped", b"no archive" * 200])
def test_a_shard_without_a_pair_is_an_error(content, tmp_path):
    write_shards(pairs(2), tmp_path)
    (tmp_path / "bad.tar").write_bytes(content)
    with pytest.raises(UserError, match=r"bad\.tar: expected a tar file with images and texts"):
        open_pairs(str(tmp_path), "ImageTextShards")


@pytest.mark.parametrize("index", ["", "{", "[]", '{"x": 1}', '{"version": 0, "state": [], "pairs": []}'])
def test_a_damaged_index_is_made_again(index, tmp_path):
    (path,) = write_shards(pairs(2), tmp_path)
    (tmp_path / f"{path.name}.index.json").write_text(index)
    assert len(contents(open_pairs(str(path), "ImageTextShards"))) == 2
    assert json.loads((tmp_path / f"{path.name}.index.json").read_text())["version"] == 1


def test_files_without_partner_are_counted(tmp_path, caplog):
    path = tmp_path / "a.tar"
    write_members(path, {"./1.jpg": b"one", "1.txt": b"text", "2.jpg": b"alone", "3.txt": b"alone"})
    with caplog.at_level(logging.WARNING, "regionclip"):
        assert contents(open_pairs(str(path), "ImageTextShards")) == [(b"one", "text")]
    assert "2 files without a partner" in caplog.text


def write_members(path, members):
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def test_old_files_in_the_folder_are_not_mixed_with_new_ones(tmp_path):
    for write in (write_shards, write_tsv):
        write(pairs(10), tmp_path, size=4)
        with pytest.raises(UserError, match="expected a folder without"):
            write(pairs(10), tmp_path, size=10)


@pytest.mark.parametrize("kind", ["MPO", "JPEG2000", "TGA", "PNG", "WEBP", "BMP"])
def test_images_of_any_kind_survive_the_converter(kind, tmp_path):
    encoded = io.BytesIO()
    Image.open(PHOTOS[0]).save(encoded, kind)
    write_shards([Pair("a", encoded.getvalue(), "text"), Pair("b", b"P6 broken", "text")], tmp_path)
    found = contents(open_pairs(str(tmp_path), "ImageTextShards"))
    assert [image for image, _ in found] == [encoded.getvalue(), b"P6 broken"]


def test_tables_as_spreadsheets_write_them(tmp_path):
    (tmp_path / "a.csv").write_text('\ufefffile_name,caption\nx.jpg,"one, two"\n', encoding="utf-8")
    (tmp_path / "b.tsv").write_text('file_name\tcaption\nx.jpg\t"open\ny.jpg\tclosed\n')
    texts = [source[i].text for source in open_pairs(str(tmp_path), "CaptionTable") for i in range(len(source))]
    assert texts == ["one, two", '"open', "closed"]


def test_ids_of_captions_may_be_text_and_nothing_is_left_out_without_a_word(tmp_path, caplog):
    path = write_coco(tmp_path)
    content = json.loads(path.read_text())
    expected = contents(open_pairs(str(path), "COCOCaptions"))
    for image in content["images"]:
        image["id"] = str(image["id"])
    content["annotations"] += [None, {"image_id": 99, "caption": "a stranger"}]
    content["images"].append(dict(content["images"][0]))
    path.write_text(json.dumps(content), encoding="utf-8-sig")
    with caplog.at_level(logging.WARNING, "regionclip"):
        assert contents(open_pairs(str(path), "COCOCaptions")) == expected
    for line in ("annotations without a caption", "captions of unknown images", "images listed twice"):
        assert f"captions_train2017.json: 1 {line}, left out" in caplog.text
    content["images"][1]["id"] = "0"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="images: expected an id for each, got 0 for"):
        open_pairs(str(path), "COCOCaptions")


def test_coco_files_with_gaps(tmp_path):
    path = write_coco(tmp_path)
    content = json.loads(path.read_text())
    content["annotations"] += [{"image_id": 0}, {"caption": "nowhere"}, {"image_id": 99, "caption": "gone"}]
    content["images"].append({"id": 5})
    path.write_text(json.dumps(content))
    assert len(contents(open_pairs(str(path), "COCOCaptions"))) == 4
    content["annotations"] = [{"image_id": 0, "bbox": []}]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="expected annotations with captions, got none"):
        open_pairs(str(path), "COCOCaptions")


def test_tsv_files_that_are_not_as_they_should_be(tmp_path):
    write_tsv(pairs(3), tmp_path, size=3)
    images = tmp_path / "images-00000.tsv"
    whole = images.with_suffix(".lineidx").read_text()
    images.with_suffix(".lineidx").write_text("0\n5\n")
    open_pairs(str(tmp_path), "CLIPImgTxtPairTSVDataset")
    assert images.with_suffix(".lineidx").read_text() == whole, "a stale index is written again"
    for content, message in (("0\n7\n", "expected rows from 0 to 2"), ("a\n", "expected a whole number")):
        images.with_suffix(".linelist").write_text(content)
        with pytest.raises(UserError, match=message):
            open_pairs(str(tmp_path), "CLIPImgTxtPairTSVDataset")
    (tmp_path / "photos.tsv").write_text("a\tb\n")
    with pytest.raises(UserError, match="'image' or 'img' in its name"):
        open_pairs(str(tmp_path / "photos.tsv"), "CLIPImgTxtPairTSVDataset")


@pytest.mark.parametrize(
    ("path", "factory", "message"),
    [
        ("nothing", "COCOCaptions", "expected a file or folder of image-text pairs, got .*nothing"),
        ("empty", "ImageTextShards", "expected image-text pairs, got none"),
        ("empty", "Webdataset", "FACTORY_TRAIN: expected CLIPImgTxtPairTSVDataset or ImageTextShards"),
        ("table.csv", "CaptionTable", "expected a column of files .*, got a, b"),
        ("captions_x.json", "COCOCaptions", "expected COCO's captions format"),
    ],
)
def test_wrong_places_are_errors(path, factory, message, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    (tmp_path / "captions_x.json").write_text("[]")
    with pytest.raises(UserError, match=message):
        open_pairs(str(tmp_path / path), factory)


def test_shards_are_shuffled_and_every_sample_comes_once_an_epoch():
    sizes = [7, 1, 30, 12] * 10
    order = shuffled_groups(sizes, seed=1)
    epochs = [[next(order) for _ in range(sum(sizes))] for _ in range(2)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(sum(sizes)))
    assert epochs[0] != epochs[1]
    again = shuffled_groups(sizes, seed=1)
    assert [next(again) for _ in range(sum(sizes))] == epochs[0]
    # Within a stretch of the order only a few shards are read.
    shard = np.repeat(np.arange(len(sizes)), sizes)
    assert len(set(shard[epochs[0][:100]])) <= 16


CAPTIONS_OF = {
    "plain text": ["plain text"],
    '{"captions": ["one", "", "two", "three", "four", "five", "six"]}': ["one", "two", "three", "four", "five", "six"],
    '{"captions": "a whole sentence"}': ["a whole sentence"],
    '{"caption": "one", "id": 3}': ["one"],
    "   ": [],
    '{"captions": []}': [],
    '"quoted"': ['"quoted"'],
    "{broken": ["{broken"],
    '{"caption": null}': [],
    '{"captions": 5, "caption": false}': [],
    '{"captions": {"a": "b"}}': [],
    '["a dog", "a cat", 7]': ["a dog", "a cat"],
    '\ufeff{"caption": "after a mark"}': ["after a mark"],
    "[" * 10000: ["[" * 10000],
    '{"a":' * 10000: ['{"a":' * 10000],
}


@pytest.mark.parametrize("text", CAPTIONS_OF)
def test_captions_of_a_text(text):
    assert all_captions(text) == CAPTIONS_OF[text]
    drawn = {choose_caption(text) for _ in range(200)}
    assert drawn == {caption[:2000] for caption in CAPTIONS_OF[text] or [""]}


def test_tags_are_shuffled_into_a_template():
    random.seed(0)
    drawn = {choose_caption('{"tags": "red car"}') for _ in range(300)}
    assert len(drawn) > 100
    assert all("red car" in caption or "car red" in caption for caption in drawn)


@pytest.fixture(scope="module")
def mapper():
    return CaptionMapper(CONFIG)


STRANGE_CAPTIONS = {
    "long": "dog " * 2500,
    "emoji": "a dog \U0001f415\u200d\U0001f9ba on the beach \U0001f3d6\ufe0f",
    "control": "a\x00dog\x07\n\ton\x1b[31m grass",
    "one word": "x" * 10000,
    "right to left": "\u202ecolb a",
}


@pytest.mark.parametrize("kind", STRANGE_CAPTIONS)
def test_strange_captions_keep_their_end_of_text(kind, mapper):
    mapped = mapper({"pair": Pair("a", PHOTOS[0], STRANGE_CAPTIONS[kind])})
    tokens = mapped["tokens"]
    assert tokens.shape == (77,)
    assert tokens.dtype == torch.long
    assert (tokens == END_OF_TEXT).sum() == 1
    assert tokens.argmax() >= 2
    if kind == "long":
        assert tokens[76] == END_OF_TEXT
    if kind == "control":
        assert torch.equal(tokens, mapper({"pair": Pair("a", PHOTOS[0], "a dog on [31m grass")})["tokens"])


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (Pair("a", PHOTOS[0], ""), "a: no caption"),
        (Pair("a", PHOTOS[0], '{"captions": [" "]}'), "a: no caption"),
        (Pair("a", DATA / "missing.jpg", "dog"), "missing.jpg"),
        (Pair("a", b"", "dog"), "cannot identify"),
        (Pair("a", PHOTOS[0].read_bytes()[:2000], "dog"), "truncated"),
    ],
)
def test_pairs_that_cannot_be_used_are_named(pair, message, mapper):
    with pytest.raises(UnreadableImageError, match=message):
        mapper({"pair": pair})


def test_damaged_pairs_are_skipped_counted_and_reported(tmp_path, caplog):
    write_world(tmp_path, count=8, size=4)
    good = pairs(6)
    bad = [Pair("a", good[0].image, ""), Pair("b", b"no image", good[0].text), Pair("c", good[1].image[:900], "dog")]
    for path in (tmp_path / "shards").iterdir():
        path.unlink()
    write_shards([*good, *bad], tmp_path / "shards", size=9)
    with caplog.at_level(logging.WARNING, "regionclip"):
        _, report = pretrain(tmp_path, tmp_path / "out")
    assert report.iterations == 20
    assert len(report.unreadable) == 3
    assert caplog.text.count("Replaced unreadable image") == 3


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((640, 480), (66, 50)),
        ((480, 640), (50, 66)),
        ((1000, 100), (80, 8)),
        ((50, 50), (50, 50)),
        ((5000, 1), (80, 1)),
    ],
)
def test_images_are_resized_by_the_published_rule(size, expected):
    """The longer side is cut to a whole number, not rounded: 50 * 640 / 480 = 66.7."""
    resize = ShortestEdge(50, 80, Image.Resampling.BICUBIC)
    assert resize(Image.new("RGB", size)).size == expected


def test_two_numbers_make_random_crops(mapper):
    cfg = CONFIG.clone()
    cfg.AUG.TRAIN.IMAGE_SIZE = [40, 56]
    cropping = CaptionMapper(cfg)
    pair = {"pair": Pair("a", PHOTOS[0], "dog")}
    torch.manual_seed(0)
    first, second = cropping(pair)["image"], cropping(pair)["image"]
    assert first.shape == (3, 40, 56)
    assert not torch.equal(first, second)
    assert mapper(pair)["image"].shape == (3, 48, 48)


def test_images_are_mirrored_as_often_as_the_key_says(mapper):
    pair = {"pair": Pair("a", PHOTOS[0], "a dog on the left")}
    cfg = CONFIG.clone()
    assert cfg.AUG.TRAIN.FLIP_PROBABILITY == 0.5  # as published
    cfg.AUG.TRAIN.FLIP_PROBABILITY = 0.0
    upright = CaptionMapper(cfg)(pair)["image"]
    assert all(torch.equal(CaptionMapper(cfg)(pair)["image"], upright) for _ in range(8))
    cfg.AUG.TRAIN.FLIP_PROBABILITY = 1.0
    assert torch.equal(CaptionMapper(cfg)(pair)["image"], upright.flip(2)) and not torch.equal(upright, upright.flip(2))
    assert len({mapper(pair)["image"].sum(dim=0)[:, 0].sum().item() for _ in range(30)}) == 2


def test_pairs_of_several_sources_are_numbered_through(tmp_path):
    write_shards(pairs(3), tmp_path / "a")
    write_tsv(pairs(2), tmp_path / "b")
    cfg = CONFIG.clone()
    cfg.DATASETS.TRAIN = ("imgtxtpairs", "imgtxtpairs")
    cfg.DATASETS.PATH_TRAIN = (str(tmp_path / "a"), str(tmp_path / "b"))
    cfg.DATASETS.FACTORY_TRAIN = ("ImageTextShards", "CLIPImgTxtPairTSVDataset")
    found = read_pairs(cfg)
    assert isinstance(found, ImageTextPairs)
    assert (len(found), found.group_sizes) == (5, [3, 2])
    assert [found[i]["pair"].image for i in range(5)] == [p.image for p in [*pairs(3), *pairs(2)]]


PARSED = {
    "A brown dog sits on the wooden bench.": {"dog", "bench"},
    "Two men ride motor bikes past a red fire hydrant.": {
        "man",
        "bike",
        "motor",
        "motor bike",
        "hydrant",
        "fire",
        "fire hydrant",
    },
    "People watching children fly kites": {"person", "child", "kite"},
    "A bus stop at the corner of a street": {"bus", "stop", "bus stop", "corner", "street"},
    "The building's ceiling; painting, clothing!": {"ceiling", "painting", "clothing"},
    "A caf\u00e9 with cr\u00eapes": {"caf\u00e9", "cr\u00eape"},
    "": set(),
    "\U0001f415 \U0001f415": set(),
    "12 345 ...": set(),
}


@pytest.mark.parametrize("caption", PARSED)
def test_nouns_of_captions(caption):
    assert set(parse(caption)) == PARSED[caption]


def test_a_caption_of_ten_thousand_characters_is_parsed():
    assert set(parse("dog and cat. " * 1000)) == {"dog", "cat"}


@pytest.mark.parametrize(
    ("plural", "noun"),
    [
        ("knives", "knife"),
        ("buses", "bus"),
        ("boxes", "box"),
        ("puppies", "puppy"),
        ("women", "woman"),
        ("skis", "ski"),
        ("glasses", "glasses"),
        ("tennis", "tennis"),
        ("tomatoes", "tomato"),
        ("dishes", "dish"),
        ("grass", "grass"),
        ("firemen", "fireman"),
        ("zombies", "zombie"),
        ("mazes", "maze"),
        ("lenses", "lens"),
    ],
)
def test_singular(plural, noun):
    assert singular(plural) == noun


def test_spacy_is_an_extra():
    with pytest.raises(UserError, match="pip install spacy"):
        spacy_parser("no_such_model")


def test_concepts_are_counted_by_caption(tmp_path):
    found = count_concepts(open_pairs(str(write_coco(tmp_path)), "COCOCaptions"), parse)
    assert found.captions == 8
    assert {name: found.concepts[name] for name in ("person", "man", "car", "bowl", "oven", "microwave")} == {
        "person": 2, "man": 2, "car": 2, "bowl": 2, "oven": 2, "microwave": 2,
    }  # fmt: skip
    assert found.at_least(2)[0] == min(name for name, count in found.concepts.items() if count == 2)
    captions, mentions = found.coverage(["oven", "bird"])
    assert captions == 4 / 8
    assert mentions == pytest.approx(4 / sum(found.concepts.values()))


@pytest.fixture(scope="module")
def text_weights(tmp_path_factory):
    """Write the text encoder of the tiny CLIP in OpenAI's layout."""
    encoder = TextEncoder(get_architecture(str(DATA / "tiny_clip.json")))
    state = deterministic_state_dict({key: value.shape for key, value in encoder.state_dict().items()})
    path = tmp_path_factory.mktemp("clip") / "clip.pth"
    torch.save(state, path)
    return path


def test_the_tool_makes_a_pool_from_captions(text_weights, run_tool, tmp_path):
    captions = ["--captions", write_coco(tmp_path), "--min-count", "2"]
    size = [
        "--architecture",
        DATA / "tiny_clip.json",
        "--weights",
        text_weights,
        "--output",
        tmp_path / "pool.safetensors",
    ]
    code, output = run_tool("build_concept_pool.py", *captions, *size)
    assert code == 0, output
    assert "8 captions, " in output
    assert "they cover 100.0% of the captions" in output
    names = read_concept_names(tmp_path / "pool.txt")
    assert {"oven", "microwave", "person", "car"} <= set(names)
    with safe_open(tmp_path / "pool.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["names"]) == names
    assert metadata["model"] == "tiny_clip"
    assert metadata["templates"].startswith("regionclip ")
    rows = load_class_embeddings(tmp_path / "pool.safetensors", rows=len(names), dim=32)
    embedder = load_embedder(get_architecture(str(DATA / "tiny_clip.json")), str(text_weights))
    expected = Vocabulary.from_concepts(names[:3], embedder).embeddings
    torch.testing.assert_close(rows[:3], expected, atol=1e-5, rtol=1e-4)
    again = ["--names", tmp_path / "pool.txt", *size[:-1], tmp_path / "again.safetensors"]
    code, output = run_tool("build_concept_pool.py", *again)
    assert code == 0, output
    assert torch.equal(load_class_embeddings(tmp_path / "again.safetensors"), rows)


def write_pool(path, names, rows):
    Vocabulary(tuple(names), rows, torch.arange(len(rows))).save(path)


def test_bad_pools_are_errors(text_weights, tmp_path):
    (tmp_path / "twice.txt").write_text("dog,3\ncat,2\ndog,1\n")
    with pytest.raises(UserError, match="expected names, each once, got twice: dog"):
        read_concept_names(tmp_path / "twice.txt")
    from regionclip.clip.class_embeddings import load_concepts

    write_pool(tmp_path / "twice.safetensors", ["dog", "cat", "dog"], torch.rand(3, 8))
    with pytest.raises(UserError, match="expected each concept once, got twice: dog"):
        load_concepts(tmp_path / "twice.safetensors", 8, "MODEL.CLIP.CONCEPT_POOL_EMB")
    write_pool(tmp_path / "short.safetensors", ["dog"], torch.rand(3, 8))
    with pytest.raises(UserError, match="expected a name for each of 3 rows, got 1 names"):
        load_concepts(tmp_path / "short.safetensors", 8, "MODEL.CLIP.CONCEPT_POOL_EMB")
    torch.save(torch.tensor([[1.0] * 8, [0.0] * 8]), tmp_path / "zero.pth")
    with pytest.raises(UserError, match="expected a direction for each concept, got zeros in row 1"):
        load_concepts(tmp_path / "zero.pth", 8, "MODEL.CLIP.CONCEPT_POOL_EMB")
    with pytest.raises(UserError, match=r"expected a float tensor \[K, 16\]"):
        load_concepts(tmp_path / "short.safetensors", 16, "MODEL.CLIP.CONCEPT_POOL_EMB")
    with pytest.raises(UserError, match="weights of lang_encoder"):
        load_embedder(get_architecture("RN50"), str(text_weights))
