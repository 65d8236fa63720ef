"""What the published command lines call Python with."""

import shlex
import subprocess

from regionclip.config.loading import load_config
from tests.helpers.paths import REPOSITORY


def recorded_calls(folder, script, arguments, environment):
    """Run a script with a Python that records its command lines; return the finished process and these."""
    recorder = folder / "python"
    recorder.write_text(f'#!/usr/bin/env bash\necho "$(printf "%q " "$@")" >> {folder / "calls"}\n')
    recorder.chmod(0o755)
    env = {"PYTHON": str(recorder), "PATH": "/usr/bin:/bin", **environment}
    done = subprocess.run(["bash", str(REPOSITORY / script), *arguments], env=env, capture_output=True, text=True)
    lines = (folder / "calls").read_text().splitlines() if (folder / "calls").exists() else []
    return done, [shlex.split(line) for line in lines]


def settings(arguments):
    """Return the config and the flags of a command line."""
    start = next(i for i, part in enumerate(arguments) if part.isupper() and "." in part and not part.startswith("./"))
    return load_config(arguments[arguments.index("--config-file") + 1], arguments[start:]), arguments[:start]
