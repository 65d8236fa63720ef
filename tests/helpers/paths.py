"""Where files of the tests are."""

from pathlib import Path

REPOSITORY = Path(__file__).parent.parent.parent
DATA = REPOSITORY / "tests" / "data"
GOLDENS = DATA / "goldens"
