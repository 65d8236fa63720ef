"""The command line: `regionclip detect|features|concepts|eval|train|download|doctor`."""

from regionclip.cli.main import app, main

__all__ = ["app", "main"]
