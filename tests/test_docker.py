"""Dockerfile, compose.yaml and .dockerignore fit the package; tests/docker.sh builds an image and runs it."""

import http.server
import json
import os
import re
import subprocess
import sys
import threading
from dataclasses import dataclass, field

import pytest
import yaml

from regionclip.cli.main import app
from regionclip.web.guards import Limits
from regionclip.web.server import create_app
from tests.helpers.paths import REPOSITORY

COMPOSE = yaml.safe_load((REPOSITORY / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
DEVICES = ("cpu", "cuda")
MADE = ("build", "wheel", "__pycache__", ".egg-info")
"""Parts of paths that are made in the sources."""


@dataclass
class Stage:
    """A stage of the Dockerfile."""

    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)
    """Instructions and their arguments."""

    def all(self, name):
        return [arguments for instruction, arguments in self.steps if instruction == name]

    def the(self, name):
        (arguments,) = self.all(name)
        return arguments


def read_stages():
    """Return the stages by name; that which is built has none."""
    text = re.sub(r"^#.*\n", "", (REPOSITORY / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", "")
    stages = {"before": Stage("")}
    for line in filter(None, text.splitlines()):
        instruction, arguments = line.split(maxsplit=1)
        if instruction == "FROM":
            base, _, name = arguments.partition(" AS ")
            assert name not in stages
            stages[name] = Stage(base)
        else:
            stages[[*stages][-1]].steps.append((instruction, arguments))
    return stages


STAGES = read_stages()
BUILD, LAST = STAGES["build"], STAGES[""]


def is_ignored(path):
    """Return whether .dockerignore leaves a file out: the last pattern that fits it, or a folder of it, decides."""
    ignored = False
    for line in (REPOSITORY / ".dockerignore").read_text().splitlines():
        pattern = re.escape(line.removeprefix("!")).replace(r"\*\*/", "(?:.*/)?").replace(r"\*", "[^/]*")
        if line and not line.startswith("#") and re.fullmatch(f"{pattern}(?:/.*)?", path):
            ignored = not line.startswith("!")
    return ignored


def test_both_devices_have_a_stage_to_build_and_one_to_run():
    assert set(STAGES) == {
        "before",
        "",
        "build",
        *(f"{job}-{device}" for job in ("build", "run") for device in DEVICES),
    }
    assert STAGES["before"].steps == [("ARG", "DEVICE=cpu")]
    assert (BUILD.base, LAST.base) == ("build-${DEVICE}", "run-${DEVICE}")
    assert LAST.all("COPY")[0].split() == ["--from=build", "/opt/regionclip", "/opt/regionclip"]


def test_torch_is_that_of_setup_and_of_the_toolkit():
    installs = "\n".join(BUILD.all("RUN"))
    source = (REPOSITORY / "tools" / "install.py").read_text()
    pinned = re.findall(r"torch\w*==[\d.]+", installs)
    assert len(pinned) == 2 and all(f'"{requirement}"' in source for requirement in pinned)
    toolkit = STAGES["build-cuda"].base
    assert STAGES["run-cuda"].base == toolkit.replace("-devel-", "-base-")
    assert STAGES["run-cpu"].base == STAGES["build-cpu"].base
    major, minor = re.search(r"cuda:(\d+)\.(\d+)", toolkit).groups()
    assert STAGES["build-cuda"].all("ARG")[0].endswith(f"/whl/cu{major}{minor}")
    assert STAGES["build-cpu"].all("ARG")[0].endswith("/whl/cpu")


def test_the_dependencies_come_from_setup_without_the_tools_of_the_tests():
    (command,) = (run for run in BUILD.all("RUN") if "tools/install.py" in run)
    listed = subprocess.run(
        [sys.executable, *command.split()[1:], "--list"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.split("\n")
    assert {"torch==2.11.0", "fastapi", "uvicorn", "gradio>=6"} <= set(listed)
    assert not {"pytest", "hypothesis", "ninja"} & set(listed)


def test_every_source_is_there_and_in_the_context():
    sources = [source for copy in BUILD.all("COPY") for source in copy.split()[:-1]]
    assert sources
    for source in sources:
        path = REPOSITORY / source
        files = [source] if path.is_file() else [str(p.relative_to(REPOSITORY)) for p in path.rglob("*") if p.is_file()]
        assert any(not is_ignored(file) for file in files), source


def test_the_context_has_what_a_wheel_ships_and_nothing_private():
    shipped = ["configs/COCO-InstanceSegmentation/CLIP_fast_rcnn_R_50_C4_ovd.yaml", "regionclip/ops/csrc/module.cpp"]
    shipped += [
        "datasets/demo_scenes/000088.jpg",
        "datasets/own_scenes/images/07.jpg",
        "pretrained_ckpt/emoji/config.yaml",
    ]
    assert all((REPOSITORY / path).is_file() for path in shipped)
    assert not [path for path in shipped if is_ignored(path)]
    private = [".env", ".git/config", ".venv/bin/python", "output/a.pth", "pretrained_ckpt/regionclip/a.pth"]
    private += [
        "regionclip/ops/_native.abi3.so",
        "regionclip/__pycache__/a.pyc",
        "datasets/coco/a.jpg",
        "tests/docker.sh",
    ]
    assert not [path for path in private if not is_ignored(path)]


def test_it_runs_as_a_user_that_is_not_root():
    user = LAST.the("USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user), "numbers, so that Kubernetes sees that it is not root"
    (create,) = (run for run in LAST.all("RUN") if "useradd" in run)
    assert f"--uid {user.split(':')[0]} " in create
    assert not [name for name, service in SERVICES.items() if "user" in service or service.get("privileged")]
    assert all(service["read_only"] and service["cap_drop"] == ["ALL"] for service in SERVICES.values())


def test_signals_reach_a_command_that_exists():
    commands = {command.name for command in app.registered_commands}
    assert json.loads(LAST.the("ENTRYPOINT")) == ["regionclip"]
    assert json.loads(LAST.the("CMD")) == ["serve"]
    assert {service["command"][0] for service in SERVICES.values()} == {"serve", "demo"} <= commands


@pytest.fixture
def small_server():
    """Serve /health with a status that a test sets, and return (port, statuses, paths that were asked for)."""
    statuses, asked = [200], []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(statuses[0])
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port, statuses, asked
    server.shutdown()
    server.server_close()


def health_command(service=None):
    """Return the command of the image's health check, or of a service's own."""
    test = service["healthcheck"]["test"] if service else json.loads(LAST.the("HEALTHCHECK").split("CMD", 1)[1])
    words = test[1:] if service else test
    assert words[0] == "python"
    return [sys.executable, *words[1:]]


def test_the_health_check_asks_a_path_of_the_server(small_server):
    port, statuses, asked = small_server
    environment = os.environ | {"REGIONCLIP_PORT": str(port), "http_proxy": "http://127.0.0.1:1"}
    assert subprocess.run(health_command(), env=environment).returncode == 0
    statuses[0] = 503
    assert subprocess.run(health_command(), env=environment).returncode == 1
    routes = {route.path for route in create_app(None, Limits()).routes}
    assert set(asked) <= routes and "--start-period" in LAST.the("HEALTHCHECK")


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_of_compose_fits_the_image(name):
    service = SERVICES[name]
    device = service["image"].removeprefix("regionclip:")
    assert device in DEVICES and (device == "cuda") == (service.get("profiles") == ["gpu"]) == ("deploy" in service)
    inside = service["ports"][0].rsplit(":", 1)[1]
    assert inside in LAST.the("EXPOSE").split()
    assert service["ports"][0].startswith("${REGIONCLIP_ADDRESS:-127.0.0.1}:")  # no key is set, and no TLS
    if service["command"][0] == "demo":
        assert f", {inside}, " in health_command(service)[-1]
    weights = next(volume for volume in service["volumes"] if volume.endswith(":ro"))
    outside, place = re.fullmatch(r"\$\{REGIONCLIP_WEIGHTS:-(.+)\}:(.+):ro", weights).groups()
    assert (REPOSITORY / outside).is_dir()
    assert f"REGIONCLIP_CACHE={place.removesuffix('/pretrained_ckpt')} " in LAST.the("ENV")


def test_each_image_of_compose_is_built_once():
    built = {service["image"]: service["build"] for service in SERVICES.values() if "build" in service}
    assert set(built) == {f"regionclip:{device}" for device in DEVICES}
    assert built == {"regionclip:cpu": ".", "regionclip:cuda": {"context": ".", "args": {"DEVICE": "cuda"}}}
    assert sum("build" in service for service in SERVICES.values()) == len(DEVICES)
    assert all("build" in service or service["pull_policy"] == "never" for service in SERVICES.values())


def test_ports_of_services_that_run_together_differ():
    ports = [re.search(r":-(\d+)\}:\d+$", service["ports"][0])[1] for service in SERVICES.values()]
    assert len(set(ports)) == len(ports)
