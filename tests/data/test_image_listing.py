"""What a search of a folder finds, and what it says of the rest."""

import os

import pytest

from regionclip.data.datasets.custom_images import list_images
from regionclip.data.image_listing import LeftOut, files_in_folder
from regionclip.data.image_sources import find_images
from regionclip.errors import UserError


@pytest.fixture
def make(tmp_path):
    """Make empty files below a folder, and return it."""

    def make(*names):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(b"")
        return tmp_path

    return make


def names(folder, **options):
    left_out = LeftOut()
    found = files_in_folder(folder, {".jpg"}, left_out, **options)
    return [path.relative_to(folder).as_posix() for path in found], dict(left_out)


def test_linked_folders_are_followed_once(make, tmp_path):
    make("in/a/x.jpg", "beside/y.jpg")
    folder = tmp_path / "in"
    (folder / "0_link").symlink_to("a")  # comes before the folder itself, whose name is kept
    (folder / "a" / "loop").symlink_to("..")
    (folder / "other").symlink_to("../beside")
    (tmp_path / "beside" / "back").symlink_to("../in")
    found, left_out = names(folder)
    assert found == ["a/x.jpg", "other/y.jpg"]
    assert left_out == {"linked folders that were looked into before": 3}


def test_hidden_entries_and_companions_are_left_out(make):
    folder = make("a.jpg", "._a.jpg", ".b.jpg", ".git/c.jpg", "__MACOSX/d.jpg", "@eaDir/a.jpg/e.jpg", "in/.f.jpg")
    assert names(folder) == (["a.jpg"], {"hidden": 6})


def test_a_hidden_folder_that_is_named_is_looked_into(make):
    assert names(make(".cache/a.jpg") / ".cache") == (["a.jpg"], {})


def test_what_is_no_file_is_counted(make, tmp_path):
    folder = make("a.jpg", "b.JPG", "c.txt", "d", "in/e.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "broken.jpg").symlink_to("nothing.jpg")
    (tmp_path / "round.jpg").symlink_to("round.jpg")
    expected = {"neither files nor folders": 1, "broken links": 2, "ending .txt": 1, "ending none": 1}
    assert names(folder) == (["a.jpg", "b.JPG", "in/e.jpg"], expected)
    assert names(folder, recursive=False) == (["a.jpg", "b.JPG"], expected | {"sub-folders": 1})


def test_folders_that_cannot_be_opened_are_counted(make, tmp_path, monkeypatch):
    folder, scandir = make("a.jpg", "closed/b.jpg"), os.scandir

    def scan(path):
        if str(path).endswith("closed"):
            raise PermissionError
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)
    assert names(folder) == (["a.jpg"], {"folders that cannot be opened": 1})


def test_links_to_where_one_may_not_look_are_counted(make, tmp_path, monkeypatch):
    folder = make("a.jpg")
    (folder / "link").symlink_to(tmp_path)
    (folder / "closed").symlink_to("/nowhere")
    (folder / ("b" * 200)).symlink_to("c" * 300)  # longer than any name
    assert names(folder) == (["a.jpg"], {"broken links": 2, "linked folders that were looked into before": 1})


def test_names_that_no_file_can_have_are_no_files():
    for name in ("a" * 5000, "a\0b", "a" * 300 + ".jpg"):
        with pytest.raises(UserError, match="expected images or videos, got no such file"):
            find_images([name])


def test_the_folder_of_results_is_not_looked_into(make, tmp_path):
    folder = make("a.jpg", "out/drawings/a.jpg")
    assert names(folder, without=tmp_path / "out") == (["a.jpg"], {"folder of results": 1})


def test_patterns_find_what_a_link_leads_to_once(make, tmp_path):
    make("a/x.jpg", "a/y.txt")
    (tmp_path / "a" / "loop").symlink_to("..")
    left_out = LeftOut()
    found = find_images([f"{tmp_path}/**/*"], left_out=left_out)
    assert [file.path.relative_to(tmp_path).as_posix() for file in found] == ["a/x.jpg"]


def test_a_folder_without_images_says_what_it_has(make, tmp_path):
    make("a.heic", "b.heic", "._c.jpg")
    message = r"got a folder without \(left out: 1 hidden, 2 of other endings \(.heic 2\)\)"
    with pytest.raises(UserError, match=message):
        find_images([str(tmp_path)])
    with pytest.raises(UserError, match=r"got none; left out: 1 hidden, 2 of other endings"):
        list_images(tmp_path)


def test_images_of_a_folder_are_listed_with_what_is_beside_them(make, tmp_path, caplog):
    make("a.jpg", "b.jfif", "notes.txt", "in/c.jpg", "._a.jpg")
    with caplog.at_level("INFO", "regionclip"):
        assert [path.name for path in list_images(tmp_path)] == ["a.jpg", "b.jfif"]
        list_images(tmp_path)
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [f"INPUT_DIR {tmp_path}: left out 1 hidden, 1 sub-folders, 1 of other endings (.txt 1)"]
