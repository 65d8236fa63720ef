"""Imports run one way, as docs/architecture.md says; no package imports what its user did not ask for."""

import ast
import re
import subprocess
import sys
import tempfile

import pytest

from regionclip.method import METHODS
from tests.helpers.detectors import LVIS_CUSTOM, TINY, flat
from tests.helpers.paths import REPOSITORY

LAYERS = {
    "ops": (),
    "clip": ("ops",),
    "config": ("clip",),
    "modeling": ("config", "clip", "ops"),
    "data": ("config", "clip"),
    "evaluation": ("data", "config", "clip"),
    "engine": ("modeling", "data", "evaluation", "config", "clip", "ops"),
    "methods": ("engine", "modeling", "data", "evaluation", "config", "clip", "ops"),
    "inference": ("methods", "engine", "modeling", "data", "evaluation", "config", "clip", "ops"),
    "hub": ("inference", "methods", "engine", "modeling", "data", "evaluation", "config", "clip", "ops"),
    "integrations": ("predictor", "inference", "data", "clip"),
    "web": ("predictor", "detections", "inference", "data", "config", "clip"),
    "batch": ("predictor", "detections", "drawing", "hub", "inference", "engine", "modeling", "data", "config", "clip"),
}
"""What each package may import beside itself and the modules of BASE."""

BASE = {
    *("addresses", "errors", "files", "randomness", "isolation", "limits", "memory", "console"),
    *("method", "fingerprints", "journal", "published", "records", "progress"),
}
WITHOUT_DETECTRON2 = ("ops", "clip")

PARTS = {path.stem for path in (REPOSITORY / "regionclip").iterdir()}
"""Packages and modules."""


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            yield node.module
            if node.module == "regionclip" or node.module.startswith("regionclip."):
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_package_has_its_layer():
    packages = {path.parent.name for path in (REPOSITORY / "regionclip").glob("*/__init__.py")}
    assert packages == {*LAYERS, "cli", "testing"}  # above everything, and for tests


@pytest.mark.parametrize("package", LAYERS)
def test_a_package_imports_nothing_above_it(package):
    allowed = {package, *LAYERS[package], *BASE}
    for path in (REPOSITORY / "regionclip" / package).rglob("*.py"):
        if package == "methods" and path.parent.name == "cli":
            continue  # part of the command line
        own = [name.split(".")[1] for name in imported(path) if name.startswith("regionclip.")]
        own = [name for name in own if name in PARTS]  # what `from regionclip import` names may also be a class
        assert set(own) <= allowed, f"{path.name} imports {set(own) - allowed}"
        if package in WITHOUT_DETECTRON2:
            assert not [name for name in imported(path) if name.startswith("detectron2")], path


@pytest.mark.parametrize("method", METHODS)
def test_methods_never_import_each_other(method):
    others = tuple(f"regionclip.methods.{other}" for other in METHODS if other != method)
    for path in (REPOSITORY / "regionclip" / "methods" / method).rglob("*.py"):
        assert not [name for name in imported(path) if name.startswith(others)], path


def test_no_test_imports_another():
    for path in (REPOSITORY / "tests").rglob("*.py"):
        assert not [name for name in imported(path) if name.startswith("tests.") and ".test_" in name], path


def test_packages_import_nothing():
    for path in (REPOSITORY / "regionclip").rglob("__init__.py"):
        package = path.parent.relative_to(REPOSITORY).as_posix()
        if package in ("regionclip", "regionclip/ops") or path.parent.parent.name == "methods":
            continue  # what users import from, and the declarations of methods
        assert not list(imported(path)), path


def test_a_declaration_imports_neither_torch_nor_detectron2():
    code = (
        "import sys; sys.modules.update(torch=None, detectron2=None); from regionclip.method import methods; methods()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def named_in(path):
    """Yield the identifiers of a module, and the words of its strings other than docstrings."""
    tree = ast.parse(path.read_text())
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            yield node.id if isinstance(node, ast.Name) else node.attr
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield from re.findall(r"\w+", node.value)


def test_no_class_of_a_method_is_named_outside_of_methods():
    """Whoever needs one asks the contract, or the declaration; docstrings may speak of papers and their parts."""
    defined = {True: set(), False: set()}
    for path in (REPOSITORY / "regionclip").rglob("*.py"):
        of_method = "methods" in path.relative_to(REPOSITORY).parts
        defined[of_method] |= {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)}
    classes = defined[True] - defined[False]  # a name such as MLP may stand for a class of its own
    assert {"CLIPFastRCNN", "CORA"} <= classes
    for path in (REPOSITORY / "regionclip").rglob("*.py"):
        if "methods" not in path.relative_to(REPOSITORY).parts:
            words = set(named_in(path))
            assert not words & classes, f"{path}: {words & classes}"


def test_detectron2_builds_our_models_after_an_import():
    """A script of a Detectron2 user: `build_model` finds the meta-architectures of all methods."""
    code = f"""
import regionclip
from detectron2.modeling import build_model
cfg = regionclip.load_config({LVIS_CUSTOM!r}, {flat(TINY)!r})
assert type(build_model(cfg)).__name__ == "CLIPFastRCNN"
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", ["regionclip", "regionclip.clip", "regionclip.ops", "regionclip.doctor"])
def test_lower_packages_load_without_detectron2(module):
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
