"""Code and pages use the field's words, such as RPN and image encoder, and American spelling."""

import re
from pathlib import Path

import pytest

from tests.helpers.paths import REPOSITORY

WORDS = {
    "proposer": "RPN, proposal generator",
    r"towers?": "image encoder, text encoder",
    r"pictures?": "image",
    r"figures?": "metrics",
    r"things?": "object",
    r"rectif\w+": "ReLU",
    r"lying": "landscape",
    r"small world": "synthetic dataset",
    r"in the place of": "instead of",
    r"torn": "partial",
    r"anew": "from scratch, again",
    r"colou?rful|colour\w*": "color",
    r"grey\w*": "gray",
    r"neighbour\w*": "neighbor, adjacent",
    r"(?:de)?normalis\w+": "normalize",
    r"initialis\w+": "initialize",
    r"licence\w*": "license",
}
"""What is not written, and what is written instead."""

ALLOWED = {"proposer.json", "normalised", "figure", "Figure"}
"""Names of files, and keys in files, that exist; HTML's element, and the class of Matplotlib."""

FOLDERS = ("regionclip", "tools", "benchmarks", "docs", "configs", "tests")
FILES = sorted(
    path
    for found in (REPOSITORY.glob("*"), *((REPOSITORY / folder).rglob("*") for folder in FOLDERS))
    for path in found
    if path != Path(__file__) and path.suffix in (".py", ".md", ".yaml", ".sh", ".h", ".inl", ".cpp", ".cu")
)


@pytest.mark.parametrize("pattern", WORDS)
def test_a_word_of_no_paper_is_not_used(pattern):
    found = []
    for path in FILES:
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            for word in re.findall(rf"(?<![\w./-])(?:{pattern})(?![\w-])(?:\.yaml|\.json)?", line, re.IGNORECASE):
                if word not in ALLOWED:
                    found.append(f"{path.relative_to(REPOSITORY)}:{number}: {word}, write {WORDS[pattern]}")
    assert FILES
    assert not found, "\n".join(found)
