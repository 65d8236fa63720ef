"""Imports run one way: tools -> engine -> modeling -> clip, ops."""

import ast
import subprocess
import sys
import tempfile

import pytest

from tests.helpers.paths import REPOSITORY

FORBIDDEN = {
    "clip": ("detectron2", "regionclip.modeling", "regionclip.data", "regionclip.engine", "regionclip.config"),
    "ops": ("detectron2", "regionclip.clip", "regionclip.modeling", "regionclip.data", "regionclip.engine"),
    "modeling": ("regionclip.engine", "regionclip.data", "regionclip.evaluation", "argparse"),
    "data": ("regionclip.engine", "regionclip.modeling", "regionclip.evaluation", "argparse"),
    "evaluation": ("regionclip.engine", "regionclip.modeling", "argparse"),
    "config": ("regionclip.engine", "regionclip.modeling", "regionclip.data", "argparse"),
}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("room", FORBIDDEN)
def test_room_imports_nothing_above_it(room):
    for path in (REPOSITORY / "regionclip" / room).rglob("*.py"):
        bad = [name for name in imported(path) if name.startswith(FORBIDDEN[room])]
        assert not bad, f"{path.name} imports {bad}"


@pytest.mark.parametrize("module", ["regionclip", "regionclip.clip", "regionclip.ops", "regionclip.doctor"])
def test_lower_rooms_load_without_detectron2(module):
    code = f"import sys; sys.modules['detectron2'] = None; import {module}; assert 'open_clip' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_doctor_finds_this_installation_good():
    done = subprocess.run([sys.executable, "-m", "regionclip.doctor"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert {line.split()[1] for line in done.stdout.splitlines()} >= {"python", "torch", "torchvision", "detectron2"}


def test_config_can_be_checked_before_anything_else_is_imported():
    code = """
import torch
from regionclip.config.checks import check_config
from regionclip.config.loading import load_config
torch.save(torch.rand(65, 1024), "embeddings.pth")
config = "configs/COCO-InstanceSegmentation/CLIP_fast_rcnn_R_50_C4_ovd_zsinf.yaml"
check_config(load_config(config, ["MODEL.CLIP.CROP_REGION_TYPE", "GT", "MODEL.CLIP.TEXT_EMB_PATH", "embeddings.pth"]))
"""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
