"""Images at addresses of fsspec: files, folders, patterns, archives; no credentials in what is shown."""

import functools
import http.server
import io
import threading
import zipfile

import pytest
from PIL import Image

from regionclip import RegionCLIP
from regionclip.batch.detect import DetectOptions, run_fingerprint
from regionclip.data import locations
from regionclip.data.image_contents import from_text, to_text
from regionclip.data.image_listing import LeftOut
from regionclip.data.image_sources import find_images, read_frames
from regionclip.data.images import UnreadableImageError
from regionclip.data.live import is_live
from regionclip.data.locations import Location, is_address, without_credentials
from regionclip.errors import UserError
from tests.helpers.archives import write_table, write_tar

fsspec = pytest.importorskip("fsspec")

SECRET = "S3CRET"


def encoded(level):
    file = io.BytesIO()
    Image.new("RGB", (6, 4), (level, level, level)).save(file, "PNG")
    return file.getvalue()


def level_of(file):
    (frame,) = read_frames(file)
    return int(frame.pixels[0, 0, 0])


@pytest.fixture
def bucket(tmp_path):
    """Return a file system in memory with images, hidden ones, a text, and archives."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    for level, name in enumerate(["photos/a.png", "photos/in/b.png", "photos/in/c.JPG", "photos/.hidden/d.png"]):
        files.pipe(f"/bucket/{name}", encoded(level))
    files.pipe("/bucket/photos/notes.txt", b"")
    files.pipe(
        "/bucket/0.tar", write_tar(tmp_path / "0.tar", [("x.png", encoded(7)), ("y.png", encoded(8))]).read_bytes()
    )
    return files


def found(*inputs, **options):
    return [(file.name, file.place, level_of(file)) for file in find_images(list(map(str, inputs)), **options)]


def test_files_folders_and_patterns(bucket):
    left_out = LeftOut()
    photos = "memory://bucket/photos"
    everything = [
        ("a.png", f"{photos}/a.png", 0),
        ("in/b.png", f"{photos}/in/b.png", 1),
        ("in/c.JPG", f"{photos}/in/c.JPG", 2),
    ]
    assert found(photos, left_out=left_out) == everything
    assert left_out == {"hidden": 1, "ending .txt": 1}
    assert found(f"{photos}/in/*") == [("b.png", f"{photos}/in/b.png", 1), ("c.JPG", f"{photos}/in/c.JPG", 2)]
    assert found(f"{photos}/**/*.png", f"{photos}/in/b.png") == everything[:2]
    assert found(f"{photos}/a.png") == found("-", lines=[f"{photos}/a.png\n"]) == everything[:1]


def test_local_files_and_addresses_together_have_unique_names(bucket, tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(9))
    names = [name for name, *_ in found(tmp_path / "a.png", "memory://bucket/photos/a.png")]
    assert names[0].endswith("/a.png") and names[1] == "memory:/bucket/photos/a.png" and len(set(names)) == 2


def test_shards_and_tables_at_addresses(bucket, tmp_path):
    expected = [("0.tar/x.png", "memory://bucket/0.tar/x.png", 7), ("0.tar/y.png", "memory://bucket/0.tar/y.png", 8)]
    assert found("memory://bucket/*.tar") == found("memory://bucket/0.tar") == expected
    pytest.importorskip("pyarrow")
    bytes_of = write_table(tmp_path / "x.parquet", {"image": [encoded(i) for i in range(40)]}).read_bytes()
    bucket.pipe("/bucket/x.parquet", bytes_of)
    assert [level for *_, level in found("memory://bucket/x.parquet")] == list(range(40))
    paths = write_table(tmp_path / "y.parquet", {"url": ["photos/a.png", "memory://bucket/photos/in/b.png"]})
    bucket.pipe("/bucket/y.parquet", paths.read_bytes())
    assert [level for *_, level in found("memory://bucket/y.parquet")] == [0, 1]


def test_a_chain_of_addresses(tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for level, name in enumerate(["in/a.png", "in/b.png", "c.png"]):
            archive.writestr(name, encoded(level))
        archive.write(write_tar(tmp_path / "0.tar", [("x.png", encoded(7))]), "0.tar")
    end = f"::{tmp_path}/photos.zip"
    assert found(f"zip://in/*.png{end}") == [("a.png", f"zip://in/a.png{end}", 0), ("b.png", f"zip://in/b.png{end}", 1)]
    assert [level for *_, level in found(f"zip://{end}")] == [2, 0, 1]
    assert [(name, level) for name, _, level in found(f"zip://0.tar{end}")] == [("0.tar/x.png", 7)]


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("memory://bucket/none.png", "no such file"),
        ("memory://bucket/none/*.png", "expected images, got none"),
        ("memory://bucket/photos/notes.txt", "a file ending in"),
        ("nonsense://a.png", "expected an address that fsspec opens, got Protocol not known: nonsense"),
        ("zip://a.png::none.zip", "no such file"),
    ],
)
def test_an_address_without_images_is_one_error(address, message, bucket):
    with pytest.raises(UserError, match=message):
        find_images([address])


def test_images_of_which_only_the_address_is_known_are_told_apart(detector_folder):
    """Their names lack the query, so that a stopped run must not go on with other addresses."""
    detector = RegionCLIP.from_pretrained(detector_folder, device="cpu")
    detector.set_vocabulary(["cat"])
    lists = [[f"http://host/get?id={number}"] for number in (1, 2, 1)]
    first, second, again = (
        run_fingerprint(detector, find_images(["-"], lines=lines), DetectOptions(), None) for lines in lists
    )
    assert first == again != second


def test_an_address_that_is_none_is_one_error():
    with pytest.raises(UserError, match=r"http://\.\.\.: expected an address, got Invalid IPv6 URL"):
        is_live("http://[user:password@host/photo.jpg")
    assert not is_live("zip://[ab]*.jpg::photos.zip")  # a pattern


def test_a_protocol_whose_library_is_missing_is_one_error(monkeypatch):
    def missing(address):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(UserError, match=r"s3://b/a.png: expected the library of its protocol, got Install s3fs"):
        find_images(["s3://b/a.png"])


def test_the_version_of_a_file_changes_with_it(bucket):
    address = "memory://bucket/photos/*.png"
    before = find_images([address])[0].version
    assert before == find_images([address])[0].version
    bucket.pipe("/bucket/photos/a.png", encoded(77))
    assert find_images([address])[0].version != before


def test_reading_is_tried_again_and_what_fails_is_an_error_of_the_image(bucket, monkeypatch):
    monkeypatch.setattr(locations, "WAITS", (0.0, 0.0))
    (file,) = find_images(["memory://bucket/photos/a.png"])
    read, failures = type(bucket).cat_file, [OSError(f"https://user:{SECRET}@host/a.png?sig={SECRET} is busy")] * 2

    def sometimes(self, *arguments, **options):
        if failures:
            raise failures.pop()
        return read(self, *arguments, **options)

    monkeypatch.setattr(type(bucket), "cat_file", sometimes)
    assert level_of(file) == 0 and not failures
    failures += [OSError(f"https://user:{SECRET}@host/a.png?sig={SECRET} is busy")] * 3
    with pytest.raises(UnreadableImageError) as error:
        level_of(file)
    assert str(error.value) == "memory://bucket/photos/a.png: https://host/a.png is busy"
    assert error.value.__suppress_context__
    bucket.rm("/bucket/photos/a.png")
    with pytest.raises(UnreadableImageError, match=r"^memory://bucket/photos/a.png: no such file$"):
        level_of(file)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"https://user:{SECRET}@host/a.jpg", "https://host/a.jpg"),
        (f"https://host/a.jpg?X-Amz-Signature={SECRET}#x", "https://host/a.jpg"),
        (f"zip://in/a.jpg::ftp://user:p@{SECRET}@host/x.zip", "zip://in/a.jpg::ftp://host/x.zip"),
        (f"403, url=URL('https://host/a.jpg?sig={SECRET}')", "403, url=URL('https://host/a.jpg')"),
        ("s3://bucket/what?.jpg", "s3://bucket/what?.jpg"),
        ("s3://bucket/me@home.jpg", "s3://bucket/me@home.jpg"),
    ],
)
def test_credentials_are_not_shown(text, expected):
    assert without_credentials(text) == expected
    assert SECRET not in repr(Location("", text)) and SECRET not in repr(Location(text, text))


def test_what_is_an_address():
    assert all(map(is_address, ("s3://b/a.jpg", "zip://a.jpg::x.zip", "simplecache::s3://b/a.jpg", "gs://b")))
    assert not any(map(is_address, ("a.jpg", "C:\\a.jpg", "C://a.jpg", "/a:b/c.jpg", "photos/x://y")))


@pytest.fixture
def website(tmp_path):
    """Serve a folder on this machine, and yield its address without `http://`."""
    (tmp_path / "photos").mkdir()
    for level, name in enumerate(["a.png", "b.png"]):
        (tmp_path / "photos" / name).write_bytes(encoded(level))
    write_tar(tmp_path / "photos" / "0.tar", [("x.png", encoded(7)), ("y.png", encoded(8))])
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def test_files_of_the_web(website, capfd):
    pytest.importorskip("aiohttp")
    place = f"http://{website}/photos"
    signed = [f"{place}/a.png?sig={SECRET}", f"{place}/b.png?sig={SECRET}", f"{place}/b.png?sig=other"]
    files = find_images(signed)
    assert [(file.name, level_of(file)) for file in files] == [("a.png", 0), ("b.png", 1), ("b_1.png", 1)]
    assert [file.place for file in files] == [f"{place}/a.png", f"{place}/b.png", f"{place}/b.png#1"]
    assert SECRET not in repr(files) and level_of_copy(files[0]) == 0
    assert [(name, level) for name, _, level in found(f"{place}/")] == [("a.png", 0), ("b.png", 1)]
    assert [(name, level) for name, _, level in found(f"{place}/0.tar")] == [("0.tar/x.png", 7), ("0.tar/y.png", 8)]
    with pytest.raises(UserError, match=rf"^{place}/none.png: .*no such file") as error:
        find_images([f"{place}/none.png?sig={SECRET}"])
    assert SECRET not in str(error.value)
    (missing,) = find_images(["-"], lines=[f"{place}/none.png?sig={SECRET}"])
    with pytest.raises(UnreadableImageError, match=rf"^{place}/none.png: no such file$"):
        level_of(missing)


def level_of_copy(file):
    """Return the level of an image that was sent to another process."""
    content = from_text(to_text(file.content))
    return int(Image.open(content.open()).convert("RGB").getpixel((0, 0))[0])
