"""Files of words that are read as what they are, or refused."""

import codecs

import pytest

from regionclip.clip.class_name_files import names_alone
from regionclip.clip.vocabulary import read_class_names
from regionclip.data.class_lists import parse_names
from regionclip.engine.concept_pool import read_concept_names
from regionclip.errors import UserError
from regionclip.files import read_lines

THREE = ["wood", "traffic cone", "telescope"]

READ = {
    "lines.txt": "wood\n\n traffic cone \ntelescope\n",
    "windows.txt": "wood\r\ntraffic cone\r\ntelescope\r\n",
    "darknet.names": "wood\ntraffic cone\ntelescope",
    "one_line.txt": "wood,traffic cone, telescope",
    "trailing_comma.txt": "wood,traffic cone, telescope,\n",
    "list.json": '["wood", "traffic cone", "telescope"]',
    "list_in.txt": '["wood", "traffic cone", "telescope"]',
    "coco.json": '{"images": [], "categories": [{"id": 1, "name": "wood"}, {"id": 2, "name": "traffic cone"},'
    ' {"id": 9, "name": "telescope"}]}',
    "id2label.json": '{"2": "telescope", "0": "wood", "1": "traffic cone"}',
    "many.json": '{"' + '", "'.join(f'{i}": "w{i}' for i in range(11)) + '"}',
    "ultralytics.yaml": "path: data\nnc: 3\nnames:\n  0: wood\n  1: traffic cone\n  2: telescope\n",
    "flow.yml": "names: [wood, traffic cone, telescope]\n",
    "yaml_in.txt": "names:\n- wood\n- traffic cone\n- telescope\n",
    "markdown.txt": "- wood\n- traffic cone\n- telescope\n",
    "column.csv": "wood\ntraffic cone\ntelescope\n",
    "row.csv": 'wood,"traffic cone",telescope\n',
    "headed.csv": "id,Name,count\n1,wood,5\n2,traffic cone,2\n3,telescope,9\n",
    "headed.tsv": "name\tid\nwood\t1\ntraffic cone\t2\ntelescope\t3\n",
}


@pytest.mark.parametrize("name", READ)
def test_words_are_read_as_what_they_are(name, tmp_path):
    (tmp_path / name).write_text(READ[name])
    assert read_class_names(tmp_path / name) == ([f"w{i}" for i in range(11)] if name == "many.json" else THREE)


def test_lists_of_lists_are_synonyms(tmp_path):
    (tmp_path / "texts.json").write_text('[["wood"], ["carrot", "root"], "a|b"]')
    assert read_class_names(tmp_path / "texts.json") == [["wood"], ["carrot", "root"], "a|b"]


REFUSED = {
    "partial.json": ('["wood", "carrot', "partial.json: expected JSON"),
    "deep.json": ("[" * 99999, "deep.json: expected JSON"),
    "partial.txt": ('["wood", "carrot', "partial.txt: expected JSON"),
    "annotations.json": ('{"images": [], "annotations": []}', "expected a list of words, or one under names"),
    "text.json": ('"wood"', "expected a list of words"),
    "numbers.json": ('["wood", 7]', "numbers.json, entry 2: expected a word, or a list of synonyms, got 7"),
    "no.yaml": ("names: [yes, no]", "no.yaml, names, entry 1: .* in quotes"),
    "nested.json": ('[["wood", ["carrot"]]]', "nested.json, entry 1: expected a word"),
    "gap.json": ('{"0": "wood", "2": "carrot"}', "expected class numbers without a gap, got 0, 2"),
    "broken.yaml": ("names: [wood", "broken.yaml: expected YAML"),
    "codes.csv": ("/m/011k07,Tortoise\n/m/011q46kg,Container\n", "expected one column, or one called name"),
    "uneven.csv": ("name,id\nwood,1\ncarrot\n", "expected 2 columns, got the line"),
    "heads.csv": ("name,id\n", "expected at least one of the words, got none"),
    "map.pbtxt": ("item {\n  id: 1\n  name: 'wood'\n}\n", "expected a word on each line, got the line 'item {'"),
    "page.html": ("<html>\n<body>wood</body>", "got the line '<html>'"),
    "numbered.txt": ("1\twood\n2\tcarrot\n", "expected a word on each line, got the line"),
    "semicolons.txt": ("wood;carrot;telescope", "expected a word on each line, or commas between them"),
    "empty.txt": (" \n", "expected at least one of the words, got none"),
    "blank.json": ("", "expected at least one of the words, got none"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_list_of_words_is_refused(name, tmp_path):
    content, message = REFUSED[name]
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        read_class_names(tmp_path / name)


def test_lines_with_commas_are_words_and_said(tmp_path, caplog):
    (tmp_path / "synsets.txt").write_text("tench, Tinca tinca\ngoldfish, Carassius auratus\n")
    assert read_class_names(tmp_path / "synsets.txt") == ["tench, Tinca tinca", "goldfish, Carassius auratus"]
    assert "each line is one word" in caplog.text


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
    ],
)
def test_byte_order_marks_are_no_part_of_a_word(mark, encoding, tmp_path):
    for name, content in (("a.txt", "Käse\nwood"), ("a.json", '["Käse", "wood"]'), ("a.csv", "name\nKäse\nwood")):
        (tmp_path / name).write_bytes(mark + content.encode(encoding))
        assert read_class_names(tmp_path / name) == ["Käse", "wood"]
    (tmp_path / "templates.txt").write_bytes(mark + "a photo of a {}.".encode(encoding))
    assert read_lines(tmp_path / "templates.txt", "templates") == ["a photo of a {}."]
    (tmp_path / "pool.txt").write_bytes(mark + "Käse,7\nwood,3\n".encode(encoding))
    assert read_concept_names(tmp_path / "pool.txt") == ["Käse", "wood"]


def test_synonyms_are_refused_where_each_line_is_a_concept(tmp_path):
    (tmp_path / "concepts.txt").write_text("wood\ncarrot | root\n")
    with pytest.raises(UserError, match=r"concepts.txt: expected a word in each place, got synonyms, 'carrot \| root'"):
        names_alone(read_class_names(tmp_path / "concepts.txt"), "concepts.txt")
    assert names_alone(["wood", "carrot"], "concepts.txt") == ["wood", "carrot"]


@pytest.mark.parametrize("name", ["my/names.txt", "names.json", "list.YAML"])
def test_a_file_that_is_not_there_is_no_class_name(name):
    with pytest.raises(UserError, match="expected a file of class names, got no such file"):
        parse_names(name)
    assert parse_names("mini skirt, traffic cone") == ["mini skirt", "traffic cone"]
