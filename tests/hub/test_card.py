"""Model cards from what an evaluation wrote."""

import json

import pytest
import yaml

from regionclip.errors import UserError
from regionclip.hub.card import model_card, read_evaluation
from regionclip.hub.pretrained import load_pretrained

METRICS = {
    "protocol": "emoji_val; 1174 classes (880 base, 294 novel); CLIP emoji_clip; RPN boxes; NMS 0.5",
    "classes": 1174,
    "images": 1000,
    "failures": [],
    "metrics": {"bbox": {"AP50": 40.51, "AP50-novel": 42.2, "APl": None, "AP-cat": 11.0}},
}


@pytest.fixture
def metrics(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps(METRICS))
    return path


def test_a_card_has_the_metadata_of_the_hub_and_a_table(metrics):
    detector = load_pretrained("emoji")
    text = model_card("my_detector", detector.cfg, [read_evaluation(metrics)], detector.vocabulary, "Apache-2.0")
    _, head, body = text.split("---\n", 2)
    data = yaml.safe_load(head)
    assert data["license"] == "apache-2.0"
    assert (data["library_name"], data["pipeline_tag"]) == ("regionclip", "zero-shot-object-detection")
    (entry,) = data["model-index"]
    found = {metric["type"]: metric["value"] for result in entry["results"] for metric in result["metrics"]}
    assert found == {"bbox AP50": 40.51, "bbox AP50-novel": 42.2}
    assert entry["results"][0]["dataset"]["name"] == "emoji_val"
    assert "1000 images. emoji_val; 1174 classes" in body
    assert "| 40.5" in " ".join(body.split()) or "40.5 |" in " ".join(body.split())
    assert "AP-cat" not in body and "11.0" not in body
    assert "1174 names" in body and "knows nothing of photographs" in body
    assert 'from_pretrained("my_detector")' in body


def test_pack_writes_the_card(command, detector_folder, metrics, tmp_path):
    given = ("pack", detector_folder, "--output", tmp_path / "packed")
    code, _, error = command(*given, "--card", metrics, "--license", "MIT", "--vocabulary", "coco17")
    assert code == 0, error
    text = (tmp_path / "packed" / "README.md").read_text()
    assert "license: mit" in text and "# packed" in text
    assert "17 names" in text  # those of the packed detector


@pytest.mark.parametrize("content", [None, "{}", json.dumps(METRICS | {"metrics": {}})])
def test_what_is_no_evaluation_is_said_before_anything_is_written(content, command, detector_folder, tmp_path):
    if content is not None:
        (tmp_path / "other.json").write_text(content)
    with pytest.raises(UserError, match="expected the metrics of an evaluation"):
        read_evaluation(tmp_path / "other.json")
    code, _, error = command("pack", detector_folder, "--output", tmp_path / "out", "--card", tmp_path / "other.json")
    assert code == 2
    assert "expected the metrics of an evaluation" in error
    assert not (tmp_path / "out").exists()


def test_notes_follow_the_metrics_on_the_card(command, detector_folder, metrics, tmp_path):
    (tmp_path / "notes.md").write_text("## Data\n\nTen images of “caf\u00e9s”.\n", encoding="utf-8")
    given = ("pack", detector_folder, "--output", tmp_path / "packed", "--notes", tmp_path / "notes.md")
    code, _, error = command(*given, "--card", metrics)
    assert code == 0, error
    text = (tmp_path / "packed" / "README.md").read_text(encoding="utf-8")
    assert text.endswith("\n\n## Data\n\nTen images of “caf\u00e9s”.\n")
    assert text.index("1000 images") < text.index("## Data")
    code, _, error = command(*given[:3], tmp_path / "out", "--notes", tmp_path / "nowhere.md")
    assert code == 2 and "nowhere.md" in error and not (tmp_path / "out").exists()
