"""The documents say what the code does."""

import inspect
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import textwrap
from importlib import import_module

import pytest
from PIL import Image

from regionclip.cli.main import main
from regionclip.config.reference import config_page
from tests.helpers.paths import DATA, REPOSITORY
from tests.helpers.videos import write_video

PAGES = sorted(
    path
    for path in REPOSITORY.rglob("*.md")
    if not any(part in ("build", "output") or part.startswith(".venv") for part in path.relative_to(REPOSITORY).parts)
)


def test_config_page_is_current():
    page = (REPOSITORY / "docs" / "config.md").read_text()
    assert page == config_page() + "\n", "run python -m regionclip.config > docs/config.md"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_to_files(page):
    targets = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    broken = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    assert not broken


def test_readme_commands_name_files_that_exist():
    commands = "\n".join(re.findall(r"```bash\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.S))
    named = re.findall(r"(?:configs|tools)/\S+|\w+\.sh", commands)
    assert named
    assert all((REPOSITORY / name).exists() for name in named)


MODEL_NAME = '"clip_rn50"'
"""The detector of the examples; the tests put a tiny one in its place."""


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", (REPOSITORY / page).read_text(), re.S)


def python_examples():
    """Yield the Python examples of a page as one program each: a later block goes on from the first."""
    for page in ("README.md", "docs/detect.md"):
        yield pytest.param("\n".join(blocks(page, "python")), id=page)
    for module in ("regionclip.predictor",):
        yield pytest.param(textwrap.dedent(import_module(module).__doc__.split("For example:\n\n", 1)[1]), id=module)


@pytest.fixture
def workplace(tmp_path, monkeypatch, detector_folder):
    """Go to a folder with the files that the examples name."""
    photos = sorted((DATA / "four_photos" / "pictures").iterdir())
    for i, name in enumerate(["photo.jpg", "street.jpg", "photos/a.jpg", "more/b.png"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.open(photos[i]).save(tmp_path / name)
    write_video(tmp_path / "street.mp4", frames=6)
    (tmp_path / "words.txt").write_text("cat | kitten\ntraffic cone\n")
    (tmp_path / "datasets").symlink_to(REPOSITORY / "datasets")
    (tmp_path / "boxes.json").write_text(json.dumps({"photo.jpg": [[5, 5, 60, 60]]}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REGIONCLIP_MODEL", str(detector_folder))
    return tmp_path


@pytest.mark.parametrize("example", python_examples())
def test_python_examples_run(example, workplace, detector_folder, capsys):
    assert MODEL_NAME in example
    (workplace / "example.py").write_text(example.replace(MODEL_NAME, repr(str(detector_folder))))
    runpy.run_path(str(workplace / "example.py"))


@pytest.mark.parametrize("notebook", sorted((REPOSITORY / "examples").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_run_and_are_shown_as_executed(notebook, tmp_path, monkeypatch):
    cells = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] and not has_error(cell) for cell in cells)
    assert any(cell["outputs"] for cell in cells)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notebook.py").write_text("\n\n".join("".join(cell["source"]) for cell in cells))
    runpy.run_path("notebook.py")


def has_error(cell):
    return any(output["output_type"] == "error" for output in cell["outputs"])


def command_examples():
    text = "\n".join(block for page in ("README.md", "docs/detect.md") for block in blocks(page, "bash"))
    for name in ("detect", "concepts"):
        text += "\n" + inspect.getdoc(getattr(import_module(f"regionclip.cli.{name}"), name))
    lines = [line.strip() for line in text.splitlines()]
    examples = {line for line in lines if re.match(r"(find .*\| )?regionclip (detect|concepts)", line)}
    # The quick start with own data, whose detector is made by the lines before: tests/integration/test_own_data.py.
    return sorted(line for line in examples if "output/mine" not in line)


@pytest.mark.parametrize("example", command_examples())
def test_command_line_examples_run(example, workplace, detector_folder, monkeypatch, capfd):
    weights = str(detector_folder / "text.safetensors")
    text_tower = ["--architecture", str(DATA / "tiny_clip.json"), "--weights", weights]
    if not example.startswith("regionclip"):  # a pipe
        environment = os.environ | {"REGIONCLIP_MODEL": str(detector_folder)}
        line = example.replace("regionclip", f"{sys.executable} -m regionclip", 1)
        done = subprocess.run(["bash", "-c", line], env=environment, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
        return
    _, command, *arguments = shlex.split(example)
    if "words.safetensors" in arguments and command == "detect":
        concepts = ["concepts", "--vocabulary", "words.txt", "--output", "words.safetensors", *text_tower]
        subprocess.run([sys.executable, "-m", "regionclip", *concepts], check=True, capture_output=True, timeout=100)
    if command == "concepts":
        arguments = [argument for argument in arguments if not argument.startswith("pretrained_ckpt")]
        arguments = [argument for argument in arguments if argument != "--weights"] + text_tower
        arguments += ["--synonyms", "mean"]
    arguments += ["--templates", "single"] if "lvis" in arguments else []
    monkeypatch.setattr(sys, "argv", ["regionclip", command, *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code, capfd.readouterr().err


@pytest.mark.slow
def test_the_example_for_ray_runs(workplace, detector_folder):
    ray = pytest.importorskip("ray")
    parquet = pytest.importorskip("pyarrow.parquet")
    (workplace / "broken.jpg").write_bytes(b"nothing")
    (example,) = [block for block in blocks("docs/scaling.md", "python") if "import ray" in block]
    program = example.replace(MODEL_NAME, repr(str(detector_folder)))
    paths = [str(workplace / name) for name in ("photo.jpg", "street.jpg", "broken.jpg", "photos/a.jpg")]
    (workplace / "example.py").write_text(f"paths = {paths!r}\n{program}")
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "RAY_DEDUP_LOGS": "0"}
    done = subprocess.run(
        [sys.executable, "example.py"], cwd=workplace, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = parquet.read_table(workplace / "detections").to_pylist()
    assert sorted(row["path"] for row in rows) == sorted(paths)
    assert [row["path"] for row in rows if row["error"]] == [str(workplace / "broken.jpg")]
    assert all(len(vector) == 32 for row in rows for vector in row["embeddings"])
    assert all(len(row["boxes"]) == len(row["names"]) == len(row["embeddings"]) for row in rows)
    assert ray.__version__
