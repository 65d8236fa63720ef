"""The documents say what the code does."""

import inspect
import io
import json
import logging
import os
import re
import runpy
import shlex
import subprocess
import sys
import tempfile
import textwrap
from contextlib import chdir, redirect_stdout
from functools import cache
from importlib import import_module

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, pairwise_iou
from PIL import Image

from regionclip.cli.main import main
from regionclip.config.reference import config_page
from tests.helpers.archives import write_tar
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
    targets = [target for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()) if "://" not in target]
    for target in targets:
        file, _, anchor = target.partition("#")
        place = page.parent / file if file else page
        assert place.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", place.read_text(), re.M)
            slugs = {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
            assert anchor in slugs, target


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
    photos = sorted((DATA / "four_photos" / "images").iterdir())
    for i, name in enumerate(["photo.jpg", "street.jpg", "photos/a.jpg", "more/b.png"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.open(photos[i]).save(tmp_path / name)
    write_video(tmp_path / "street.mp4", frames=6)
    (tmp_path / "shards").mkdir()
    write_tar(tmp_path / "shards" / "0.tar", [("key.jpg", photos[2].read_bytes())])
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


NOTEBOOKS = sorted((REPOSITORY / "examples").glob("*.ipynb"))


def code_cells(notebook):
    return [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]


@cache
def run_notebook(notebook):
    """Run a notebook in an empty folder; return its variables, and of each cell what it printed.

    Commands that ran before in this process have set up a log on the console, which a notebook has not.
    """
    variables, printed = {"__name__": "__main__"}, []
    logging.disable(logging.INFO)
    try:
        with tempfile.TemporaryDirectory() as folder, chdir(folder):
            for number, cell in enumerate(code_cells(notebook)):
                with redirect_stdout(io.StringIO()) as console:
                    exec(compile("".join(cell["source"]), f"{notebook.name}, cell {number}", "exec"), variables)
                printed.append(console.getvalue())
    finally:
        logging.disable(logging.NOTSET)
    return variables, printed


def without_numbers(text):
    return re.findall(r"[a-z]+", text)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_prints_what_it_shows(notebook):
    cells = code_cells(notebook)
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
    for cell, text in zip(cells, run_notebook(notebook)[1], strict=True):
        shown = "".join("".join(output.get("text", "")) for output in cell["outputs"])
        assert without_numbers(text) == without_numbers(shown)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_small_and_says_nothing_of_its_machine(notebook):
    outputs = [output for cell in code_cells(notebook) for output in cell["outputs"]]
    assert any("image/jpeg" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    assert not re.search(r'["\s](?:/home|/root|/tmp|/usr|/work|C:)[/\\]', json.dumps(outputs))
    assert notebook.stat().st_size < 100_000


def test_the_notebook_finds_what_is_in_its_images():
    variables, _ = run_notebook(REPOSITORY / "examples" / "detect.ipynb")
    found, own_words, by_example = (variables[name] for name in ("detections", "own_words", "by_example"))
    assert found.names[:3] == ["no littering", "world map", "hamster"] and found.scores.max() <= 1
    assert own_words.names == ["map of the world", "rodent", "carrot"]
    np.testing.assert_allclose(own_words.boxes[0], found.boxes[1])
    (rocket,) = by_example
    assert rocket.name == "part 4711" and intersection_over_union(rocket.box, (167, 0, 256, 95)) > 0.5


def test_the_notebook_has_unit_embeddings_of_which_those_of_a_class_are_alike():
    variables, _ = run_notebook(REPOSITORY / "examples" / "detect.ipynb")
    units, similarities = variables["units"], variables["similarities"]
    assert units.shape == (3, variables["detector"].vocabulary.dim)
    assert variables["regions"].names == ["guitar", "guitar", "pizza"]
    np.testing.assert_allclose(np.linalg.norm(units, axis=1), 1, rtol=1e-5)
    assert similarities[0, 1] > max(similarities[0, 2], similarities[1, 2]) + 0.1


def intersection_over_union(first, second):
    boxes = (torch.as_tensor([[*map(float, box)]]) for box in (first, second))
    return float(pairwise_iou(*map(Boxes, boxes)))


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
    text_encoder = ["--architecture", str(DATA / "tiny_clip.json"), "--weights", weights]
    if not example.startswith("regionclip"):  # a pipe
        environment = os.environ | {"REGIONCLIP_MODEL": str(detector_folder)}
        line = example.replace("regionclip", f"{sys.executable} -m regionclip", 1)
        done = subprocess.run(["bash", "-c", line], env=environment, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
        return
    _, command, *arguments = shlex.split(example)
    if "words.safetensors" in arguments and command == "detect":
        concepts = ["concepts", "--vocabulary", "words.txt", "--output", "words.safetensors", *text_encoder]
        subprocess.run([sys.executable, "-m", "regionclip", *concepts], check=True, capture_output=True, timeout=100)
    if command == "concepts":
        arguments = [argument for argument in arguments if not argument.startswith("pretrained_ckpt")]
        arguments = [argument for argument in arguments if argument != "--weights"] + text_encoder
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
