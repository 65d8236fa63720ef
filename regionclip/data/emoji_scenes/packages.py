"""Packages of drawings: fetched from the npm registry, and unpacked into one image file per concept."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regionclip.data.emoji_scenes.concepts import Concept, read_concepts
from regionclip.errors import user_error
from regionclip.files import atomic_write

ICON_SIDE = 160
"""Pixels of the longer side of an icon drawn from SVG."""


def image_members(package: tarfile.TarFile, member: str) -> Iterator[tuple[str, bytes]]:
    """Yield code point and file of each concept in a package with one image per code point.

    Args:
        package: an open package.
        member: path in the package; {} is the code point.
    """
    wanted = {member.format(concept.code): concept.code for concept in read_concepts()}
    for entry in package:
        content = package.extractfile(entry) if entry.name in wanted else None
        if content is not None:
            yield wanted[entry.name], content.read()


def icon_members(package: tarfile.TarFile, member: str) -> Iterator[tuple[str, bytes]]:
    """Yield code point and PNG file of each concept in an icon set of Iconify: one JSON file of SVG by name.

    Args:
        package: an open package.
        member: path of the JSON file in the package.

    Raises:
        UserError: resvg_py is not installed.
    """
    content = package.extractfile(member) if member in package.getnames() else None
    icons: dict[str, Any] = json.load(content) if content is not None else {"icons": {}}
    for concept in read_concepts():
        name = icon_name(concept)
        icon = icons["icons"].get(icons.get("aliases", {}).get(name, {}).get("parent", name))
        if icon is not None:
            yield concept.code, _drawn(icon["body"], icons.get("width", 16), icons.get("height", 16))


def icon_name(concept: Concept) -> str:
    """Return the name of a concept in icon sets: `rolling-on-the-floor-laughing`."""
    return concept.name.replace(" ", "-").translate(str.maketrans("", "", "'\u2019.,:"))


def _drawn(body: str, width: int, height: int) -> bytes:
    """Return the PNG file of an SVG of this size."""
    try:
        import resvg_py
    except ImportError as error:
        raise user_error(
            "resvg_py", "the library, to draw icon sets", "not installed", "pip install regionclip[emoji]"
        ) from error
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    svg = f'<svg {names} viewBox="0 0 {width} {height}" width="{width}" height="{height}">{body}</svg>'
    return bytes(resvg_py.svg_to_bytes(svg_string=svg, width=ICON_SIDE, skip_system_fonts=True))


@dataclass(frozen=True)
class Style:
    """One family of drawings of the same concepts."""

    package: str
    """Name on the npm registry."""
    version: str
    member: str
    """Path in the package of the images, where {} is the code point, or of the icon set."""
    license: str
    count: int
    """Number of concepts that it draws."""
    read: Callable[[tarfile.TarFile, str], Iterator[tuple[str, bytes]]] = image_members

    @property
    def ending(self) -> str:
        """Extension of the image files."""
        return ".webp" if self.member.endswith(".webp") else ".png"

    @property
    def archive(self) -> str:
        """File name of the package as `npm pack` writes it."""
        return f"{self.package.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


STYLES = {
    "noto": Style("emoji-datasource-google", "16.0.0", "package/img/google/64/{}.png", "Apache-2.0", 1174),
    "twemoji": Style("emoji-datasource-twitter", "16.0.0", "package/img/twitter/64/{}.png", "CC-BY-4.0", 1174),
    "noto_v1": Style("@iconify-json/noto-v1", "1.2.5", "package/icons.json", "Apache-2.0", 863, icon_members),
    "emojione": Style("@iconify-json/emojione", "1.2.3", "package/icons.json", "CC-BY-4.0", 849, icon_members),
    "fluent": Style("@lobehub/fluent-emoji-3d", "1.1.0", "package/assets/{}.webp", "MIT", 1174),
}
"""All but Fluent 3D are for training; it is kept for measuring transfer to another style. The first versions of Noto
and EmojiOne lack the concepts that Unicode added later."""


def prepare_drawings(folder: Path, packages: Path | None = None, styles: Sequence[str] = tuple(STYLES)) -> list[Path]:
    """Write the drawings of all concepts to `folder/<style>/<code>.png|webp`, and return the folders.

    Args:
        folder: where drawings are kept; styles that are complete stay as they are.
        packages: folder with the packages as `npm pack` writes them; without, `npm pack` fetches them.
        styles: names in `STYLES`.

    Raises:
        UserError: no npm, no such package, or one without the drawings.
    """
    done = []
    for name in styles:
        target, style = folder / name, STYLES[name]
        if len(list(target.glob(f"*{style.ending}"))) < style.count:
            with tempfile.TemporaryDirectory() as work:
                _unpack(_find_archive(style, packages, Path(work)), style, target)
        done.append(target)
    return done


def _find_archive(style: Style, packages: Path | None, work: Path) -> Path:
    if packages is not None:
        path = packages / style.archive
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
    if result.returncode or not (work / style.archive).is_file():
        reason = " ".join((result.stderr or result.stdout).split())[:200]
        raise user_error(" ".join(command), "the package", reason, "check the connection to the npm registry")
    return work / style.archive


def _unpack(archive: Path, style: Style, target: Path) -> None:
    found = 0
    with tarfile.open(archive) as package:
        for code, content in style.read(package, style.member):
            found += 1
            with atomic_write(target / f"{code}{style.ending}") as file:
                file.write(content)
    if found < style.count:
        expected, actual = f"drawings of {style.count} concepts", f"{style.count - found} missing"
        raise user_error(str(archive), expected, actual, f"use version {style.version}")
