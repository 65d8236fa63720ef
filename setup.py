"""Package definition; the native operators are built when their sources and a compiler are there."""

import os
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
SOURCES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "regionclip" / "ops" / "csrc").glob("*.cpp"))


def native_operators() -> dict:
    """Return the arguments that build the optional C++ operators, or none without sources or torch.

    torch must be installed before, hence `pip install --no-build-isolation`. REGIONCLIP_BUILD_OPS=0
    skips the build; a failed build is reported by setuptools and does not stop the installation.
    """
    if not SOURCES or os.environ.get("REGIONCLIP_BUILD_OPS") == "0":
        return {}
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError:
        return {}
    extension = CppExtension("regionclip.ops._native", SOURCES, optional=True)
    return {"ext_modules": [extension], "cmdclass": {"build_ext": BuildExtension}}


def version() -> str:
    """Return the version that the package states."""
    text = (ROOT / "regionclip" / "__init__.py").read_text()
    return text.split('__version__ = "')[1].split('"')[0]


setup(
    name="regionclip",
    version=version(),
    description="Open-vocabulary object detection with region-text models, on Detectron2",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    python_requires=">=3.11",
    packages=find_packages(include=["regionclip", "regionclip.*"]),
    package_data={"regionclip": ["py.typed"]},
    # Detectron2 has no distribution name that pip could require; INSTALL.md and `make setup` bring it.
    install_requires=[
        "torch>=2.10",
        "torchvision",
        "numpy",
        "pillow",
        "tqdm",
        "tabulate",
        "open_clip_torch>=2.30",
        "timm",
        "safetensors",
        "pycocotools",
        "lvis",
        "faster-coco-eval>=1.6",
    ],
    **native_operators(),
)
