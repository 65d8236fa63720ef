"""Images in tar shards and Parquet files: all of them, in order, by names that lead nowhere else."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from regionclip.data.image_contents import from_text, to_text
from regionclip.data.image_listing import LeftOut
from regionclip.data.image_sources import find_images, read_frames
from regionclip.data.images import UnreadableImageError
from regionclip.errors import UserError
from tests.helpers.archives import write_table, write_tar


def encoded(level):
    """Return a PNG of one level of gray."""
    file = io.BytesIO()
    Image.new("RGB", (6, 4), (level, level, level)).save(file, "PNG")
    return file.getvalue()


def level_of(file):
    (frame,) = read_frames(file)
    return int(frame.pixels[0, 0, 0])


def listed(*inputs, **options):
    return [(file.name, level_of(file)) for file in find_images(list(map(str, inputs)), **options)]


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_shard_gives_its_images_in_order_with_and_without_texts(workplace):
    members = [("b.png", encoded(1)), ("b.txt", b"text"), ("./in/a.v2.png", encoded(2)), ("c.json", b"{}")]
    write_tar(workplace / "0.tar", [*members, ("c.png", encoded(3)), ("._c.png", b""), ("d.cls", b"7")])
    left_out = LeftOut()
    files = find_images(["0.tar"], left_out=left_out)
    assert [(file.name, level_of(file)) for file in files] == [
        ("0.tar/b.png", 1),
        ("0.tar/in/a.v2.png", 2),
        ("0.tar/c.png", 3),
    ]
    assert [file.place for file in files] == [file.name for file in files] and not any(file.is_video for file in files)
    assert left_out == {"hidden": 1, "ending .cls": 1}


def test_shards_and_files_together_keep_their_folders(workplace):
    (workplace / "in").mkdir()
    for number in (0, 1):
        write_tar(workplace / "in" / f"{number}.tar", [("a.png", encoded(number))])
    (workplace / "a.png").write_bytes(encoded(9))
    expected = [("in/0.tar/a.png", 0), ("in/1.tar/a.png", 1), ("a.png", 9)]
    assert listed("in/*.tar", "a.png", "in/1.tar") == expected
    assert listed("-", lines=["in/0.tar\n", "in/1.tar", "a.png\r\n"]) == expected
    assert listed("in/1.tar") == [("1.tar/a.png", 1)]


def test_a_folder_does_not_look_into_archives(workplace):
    write_tar(workplace / "0.tar", [("a.png", encoded(0))])
    with pytest.raises(UserError, match=r"left out: 1 of other endings \(.tar 1\)\).*as '\*.tar'"):
        find_images([str(workplace)])
    (workplace / "b.png").write_bytes(encoded(5))
    assert listed(workplace) == listed("*") == [("b.png", 5)]


def test_names_in_a_shard_lead_nowhere_else_and_are_unique(workplace):
    names = ["../../a.png", "/a.png", "a.png", "x\\..\\b.png", "c" * 240 + ".png"]
    write_tar(workplace / "0.tar", [(name, encoded(level)) for level, name in enumerate(names)])
    files = find_images(["0.tar", "0.tar"])
    assert [level_of(file) for file in files] == [0, 1, 2, 3, 4]
    assert [file.name for file in files[:4]] == ["0.tar/a.png", "0.tar/a_1.png", "0.tar/a_2.png", "0.tar/x/b.png"]
    assert len(files[4].name) < 100 and len({file.place for file in files}) == 5


@pytest.mark.parametrize(
    ("damage", "good", "reason"),
    [
        (lambda content: content[:1600], 1, "0.tar/b.png: damaged after 1600 of 1600 bytes"),
        (lambda content: content[:1024] + b"x" * 512 + content[1536:], 1, "0.tar: damaged after"),
        (lambda content: b"", 0, "0.tar: damaged after 0 of 0 bytes, or compressed"),
        (lambda content: b"no archive" * 300, 0, "0.tar: damaged after 0 of 3000 bytes, or compressed"),
    ],
    ids=["cut", "overwritten", "empty", "something else"],
)
def test_a_damaged_shard_gives_what_is_good_and_one_error(damage, good, reason, workplace):
    path = write_tar(workplace / "0.tar", [("a.png", encoded(0)), ("b.png", encoded(1)), ("c.png", encoded(2))])
    path.write_bytes(damage(path.read_bytes()))
    write_tar(workplace / "1.tar", [("d.png", encoded(3))])
    *files, last = find_images(["*.tar"])
    assert [level_of(file) for file in files[:good]] == list(range(good)) and level_of(last) == 3
    assert len(files) == good + 1
    with pytest.raises(UnreadableImageError) as error:
        level_of(files[-1])
    assert str(error.value).startswith(reason)


def test_archives_without_images_are_errors_of_their_own(workplace):
    write_tar(workplace / "0.tar", [("a.txt", b"text")])
    for line in ("0.tar", "none.tar"):
        (file,) = find_images(["-"], lines=[line])
        with pytest.raises(UnreadableImageError, match=f"^{line}: (no images in it|no such file)$"):
            level_of(file)
    with pytest.raises(UserError, match="no such file"):
        find_images(["none.tar"])


def test_a_shard_is_read_again_after_a_change(workplace):
    for level in (1, 2):
        write_tar(workplace / "0.tar", [("x", b"0" * level * 600), ("a.png", encoded(level))])
        assert listed("0.tar") == [("0.tar/a.png", level)]


def test_a_member_that_is_none_names_the_shard(workplace):
    write_tar(workplace / "0.tar", [("a.png", b"nothing"), ("b.png", encoded(1))])
    broken, good = find_images(["0.tar"])
    with pytest.raises(UnreadableImageError, match=r"^0.tar/a.png: cannot identify image file '0.tar/a.png'$"):
        level_of(broken)
    assert level_of(good) == 1


CONTENTS = {
    "bytes with keys": lambda images: {"jpg": images, "__key__": [f"k{i}.png" for i in range(len(images))]},
    "structs": lambda images: {"image": [{"bytes": e, "path": f"k{i}.png"} for i, e in enumerate(images)]},
    "structs and a caption": lambda images: {
        "caption": ["a cat"] * len(images),
        "image": [{"bytes": e, "path": f"k{i}.png"} for i, e in enumerate(images)],
    },
    "an own name": lambda images: {"my_scans": images, "path": [f"k{i}.png" for i in range(len(images))]},
}


@pytest.mark.parametrize("columns", CONTENTS.values(), ids=CONTENTS)
def test_a_table_of_bytes_gives_its_rows(columns, workplace):
    pytest.importorskip("pyarrow")
    write_table(workplace / "x.parquet", columns([encoded(level) for level in range(100)]), row_group_size=40)
    expected = [(f"x.parquet/k{level}.png", level) for level in range(100)]
    assert listed("x.parquet") == expected
    files = find_images(["x.parquet"])
    order = np.random.default_rng(0).permutation(100)
    assert [level_of(files[i]) for i in order] == list(order)


def test_a_table_without_names_gives_numbers(workplace):
    pytest.importorskip("pyarrow")
    write_table(workplace / "x.parquet", {"image": [encoded(4), None, encoded(6)]})
    first, empty, last = find_images(["x.parquet"])
    assert [first.name, empty.name, last.name] == ["x.parquet/0", "x.parquet/1", "x.parquet/2"]
    assert (level_of(first), level_of(last)) == (4, 6)
    with pytest.raises(UnreadableImageError, match=r"^x.parquet/1: no content in row 1$"):
        level_of(empty)


def test_rows_may_name_files_and_addresses(workplace):
    fsspec, _ = pytest.importorskip("fsspec"), pytest.importorskip("pyarrow")
    (workplace / "lists" / "in").mkdir(parents=True)
    (workplace / "lists" / "in" / "a.png").write_bytes(encoded(1))
    (workplace / "b.png").write_bytes(encoded(2))
    fsspec.filesystem("memory").pipe("/bucket/c.png", encoded(3))
    paths = ["in/a.png", str(workplace / "b.png"), "memory://bucket/c.png", "in/none.png", None]
    write_table(workplace / "lists" / "x.parquet", {"path": paths, "label": range(5)})
    *good, missing, none = find_images(["lists/x.parquet"])
    assert [level_of(file) for file in good] == [1, 2, 3]
    assert [file.place for file in good] == ["lists/in/a.png", str(workplace / "b.png"), "memory://bucket/c.png"]
    for file, message in ((missing, "none.png"), (none, "x.parquet/4: no path in this row")):
        with pytest.raises(UnreadableImageError, match=message):
            level_of(file)
    write_table(workplace / "lists" / "y.parquet", {"image": [{"bytes": None, "path": "in/a.png"}]})
    assert listed("lists/y.parquet") == [("y.parquet/in/a.png", 1)]


def test_a_table_without_images_is_an_error(workplace):
    pytest.importorskip("pyarrow")
    write_table(workplace / "x.parquet", {"text": ["a"], "size": [1], "words": ["b"]})
    with pytest.raises(UserError, match=r"x.parquet: expected a column of images \(image, .*got text \(string\), size"):
        find_images(["x.parquet"])


def test_a_damaged_table_gives_what_is_good(workplace):
    pytest.importorskip("pyarrow")
    path, images = workplace / "x.parquet", [encoded(level) for level in range(60)]
    write_table(path, {"image": images}, row_group_size=20, compression="none", use_dictionary=False)
    content = bytearray(path.read_bytes())
    place = content.find(images[20])
    content[place - 60 : place + 200] = bytes(260)
    path.write_bytes(content)
    levels = []
    for file in find_images(["x.parquet"]):
        try:
            levels.append(level_of(file))
        except UnreadableImageError as error:
            assert str(error).startswith("x.parquet/")
    assert set(levels) >= {*range(20), *range(40, 60)}
    path.write_bytes(content[:-20])
    (lost,) = find_images(["x.parquet"])
    with pytest.raises(UnreadableImageError, match=r"^x.parquet: .*[Pp]arquet"):
        level_of(lost)


def test_contents_reach_other_processes(workplace):
    pytest.importorskip("pyarrow")
    write_tar(workplace / "0.tar", [("a.png", encoded(1)), ("b.png", b"")])
    write_table(workplace / "x.parquet", {"image": [encoded(2)]})
    for file in find_images(["0.tar", "x.parquet"]):
        again = from_text(to_text(file.content))
        assert again.read() == file.content.read() and again.place == file.place
        assert json.loads(to_text(file.content))["kind"] in ("TarImage", "TableImage")
