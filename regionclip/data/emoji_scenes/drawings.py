"""The drawings: fetched by name from the npm registry, and read as pictures with transparency."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from regionclip.data.emoji_scenes.concepts import Concept, read_concepts
from regionclip.errors import user_error
from regionclip.files import atomic_write

SIDE = 160
"""Pixels of the longer side of a drawing in memory: the largest that is drawn."""

Drawing = NDArray[np.uint8]
"""[H, W, 4], RGB and opacity, cut to what is drawn."""


@dataclass(frozen=True)
class Style:
    """One family of drawings of the same things."""

    package: str
    """Name on the npm registry."""
    version: str
    member: str
    """Path in the package; {} is the code."""
    licence: str


STYLES = {
    "noto": Style("emoji-datasource-google", "16.0.0", "package/img/google/64/{}.png", "Apache-2.0"),
    "twemoji": Style("emoji-datasource-twitter", "16.0.0", "package/img/twitter/64/{}.png", "CC-BY-4.0"),
    "fluent": Style("@lobehub/fluent-emoji-3d", "1.1.0", "package/assets/{}.webp", "MIT"),
}
"""Noto and Twemoji are for training; Fluent 3D is kept for measuring transfer to another style."""


def prepare_drawings(folder: Path, packages: Path | None = None, styles: Sequence[str] = tuple(STYLES)) -> list[Path]:
    """Put the drawings of all concepts under `folder/<style>/<code>.png|webp`, and return the folders.

    Args:
        folder: where drawings are kept; styles that are complete stay as they are.
        packages: folder with the packages as `npm pack` writes them; without, `npm pack` fetches them.
        styles: names in `STYLES`.

    Raises:
        UserError: no npm, no such package, or one without the drawings.
    """
    done = []
    for name in styles:
        target = folder / name
        if not all(path.is_file() for path in _files(target, name)):
            with tempfile.TemporaryDirectory() as work:
                archive = _archive(STYLES[name], packages, Path(work))
                _unpack(archive, STYLES[name], target)
        done.append(target)
    return done


class Drawings:
    """The drawings of one style, in memory."""

    def __init__(self, folder: Path, style: str) -> None:
        """Read a style; raises `UserError` when drawings are missing."""
        paths = _files(folder / style, style)
        missing = [path for path in paths if not path.is_file()]
        if missing:
            what, fix = f"drawings of {style}", "run tools/prepare_emoji.py"
            raise user_error(what, f"{len(paths)} files in {folder / style}", f"{len(missing)} missing", fix)
        self.folder = folder
        self.style = style
        self._drawings = [_read(path) for path in paths]

    def __reduce__(self) -> tuple[type[Drawings], tuple[Path, str]]:
        """Travel to another process as a name: reading again is cheaper than copying."""
        return Drawings, (self.folder, self.style)

    def __getitem__(self, concept: Concept) -> Drawing:
        """Return the drawing of a concept; not to be changed."""
        return self._drawings[concept.number]


def _files(folder: Path, style: str) -> list[Path]:
    ending = Path(STYLES[style].member).suffix
    return [folder / f"{concept.code}{ending}" for concept in read_concepts()]


def _archive(style: Style, packages: Path | None, work: Path) -> Path:
    file_name = f"{style.package.removeprefix('@').replace('/', '-')}-{style.version}.tgz"
    if packages is not None:
        path = packages / file_name
        if not path.is_file():
            fix = f"run npm pack {style.package}@{style.version} there"
            raise user_error(str(path), "a package of drawings", "no such file", fix)
        return path
    npm = shutil.which("npm")
    if npm is None:
        fix = "install it (apt install npm), or name a folder with the packages (--packages)"
        raise user_error("npm", "the program, to fetch the drawings", "not installed", fix)
    command = [npm, "pack", f"{style.package}@{style.version}", "--silent"]
    result = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
    if result.returncode or not (work / file_name).is_file():
        reason = " ".join((result.stderr or result.stdout).split())[:200]
        raise user_error(" ".join(command), "the package", reason, "check the connection to the npm registry")
    return work / file_name


def _unpack(archive: Path, style: Style, target: Path) -> None:
    ending = Path(style.member).suffix
    wanted = {style.member.format(concept.code): f"{concept.code}{ending}" for concept in read_concepts()}
    with tarfile.open(archive) as package:
        for member in package:
            name = wanted.pop(member.name, None)
            content = package.extractfile(member) if name else None
            if name and content is not None:
                with atomic_write(target / name) as file:
                    file.write(content.read())
    if wanted:
        actual = f"{len(wanted)} missing, such as {next(iter(wanted))}"
        raise user_error(str(archive), "a drawing of each concept", actual, f"use version {style.version}")


def _read(path: Path) -> Drawing:
    with Image.open(path) as image:
        pixels = np.array(image.convert("RGBA"))
    rows, columns = np.nonzero(pixels[:, :, 3] > 127)
    pixels = pixels[np.min(rows) : np.max(rows) + 1, np.min(columns) : np.max(columns) + 1]
    # Colour under full transparency would bleed into the edges.
    pixels[pixels[:, :, 3] == 0] = 0
    scale = SIDE / max(pixels.shape[:2])
    size = (max(round(pixels.shape[1] * scale), 1), max(round(pixels.shape[0] * scale), 1))
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(pixels, size, interpolation=way), np.uint8)
