"""Every file that a config names is part of a run's fingerprint, without anyone listing it."""

import pytest

from regionclip.config.keys import all_keys
from regionclip.config.loading import load_config
from regionclip.fingerprints import config_parts, file_state, fingerprint

FILE_KEYS = ["MODEL.WEIGHTS", *(key.name for key in all_keys() if key.is_file)]


@pytest.mark.parametrize("key", FILE_KEYS)
def test_another_content_of_a_file_is_another_run(key, tmp_path):
    path = tmp_path / ("file.yaml" if key.endswith("OFFLINE_RPN_CONFIG") else "file.pth")
    path.write_text("VERSION: 2\n")
    cfg = load_config("", [key, str(path)])
    before = fingerprint(config_parts(cfg))
    assert fingerprint(config_parts(cfg)) == before
    path.write_text("VERSION: 2\nSEED: 7\n")
    assert fingerprint(config_parts(cfg)) != before


def test_another_base_of_a_named_config_is_another_run(tmp_path):
    (tmp_path / "base.yaml").write_text("SEED: 1\n")
    (tmp_path / "rpn.yaml").write_text("_BASE_: base.yaml\n")
    cfg = load_config("", ["MODEL.CLIP.OFFLINE_RPN_CONFIG", str(tmp_path / "rpn.yaml")])
    before = fingerprint(config_parts(cfg))
    (tmp_path / "base.yaml").write_text("SEED: 2\n")
    assert fingerprint(config_parts(cfg)) != before


def test_a_missing_file_has_no_state_and_another_value_is_another_run(tmp_path):
    assert file_state(tmp_path / "nothing") == ()
    one, other = (fingerprint(config_parts(load_config("", ["SEED", seed]))) for seed in ("1", "2"))
    assert one != other


def test_a_folder_of_regions_has_the_state_of_its_index(tmp_path):
    assert file_state(tmp_path) == ()
    states = []
    for content in ("{}", '{"images": {}}'):
        (tmp_path / "index.json").write_text(content)
        states.append(file_state(tmp_path))
    assert states[0] and states[0] != states[1]
