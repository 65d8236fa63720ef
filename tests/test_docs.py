"""The documents say what the code does."""

import re

import pytest

from regionclip.config.__main__ import config_page
from tests.conftest import REPOSITORY

PAGES = sorted(path for path in REPOSITORY.rglob("*.md") if not {".venv", "build", "output"} & set(path.parts))


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
