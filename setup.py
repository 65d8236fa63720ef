"""What pyproject.toml cannot say: the native operators, built where there is a compiler, and the shipped files."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from setuptools import Extension, find_packages, setup

ROOT = Path(__file__).parent
OPERATORS = ROOT / "regionclip" / "ops" / "csrc"
BUILD_PROBLEM = ROOT / "regionclip" / "ops" / "build_problem.txt"
"""Where it is written why operators are not built, since pip is quiet about it."""

OLDEST_TORCH = "0x020a000000000000"
"""torch 2.10: the stable interface of which the operators use, so that one build serves later versions."""

GPU_GENERATIONS = "7.5;8.0;9.0+PTX"
"""What is built where no GPU tells what it is; later ones translate the last."""

SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer", "-g", "-O1")


def native_operators() -> dict:
    """Return the arguments that build the C++ and CUDA operators, or none without torch.

    torch must be installed before, hence `pip install --no-build-isolation`. Environment:
    REGIONCLIP_BUILD_OPS=0 skips the build, FORCE_CUDA=1 and FORCE_CUDA=0 decide on CUDA, which is
    built where nvcc and a torch with CUDA are found; REGIONCLIP_SANITIZE=1 adds sanitizers. A build
    that fails is reported and does not stop the installation.
    """
    if os.environ.get("REGIONCLIP_BUILD_OPS") == "0":
        return {}
    try:
        import torch
        from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension
    except ImportError:
        return {}
    extensions = [extension(CppExtension, "_native", "*.cpp", "cpu/*.cpp")]
    compiler = shutil.which("nvcc")
    if os.environ.get("FORCE_CUDA", "1" if compiler and torch.version.cuda else "0") == "1":
        if not torch.cuda.is_available():
            os.environ.setdefault("TORCH_CUDA_ARCH_LIST", GPU_GENERATIONS)
        # Apart from the other, so that one is there when a toolkit does not fit.
        folders = toolkit_libraries(compiler) if compiler else []
        extensions.append(extension(CUDAExtension, "_native_cuda", "module.cpp", "cuda/*.cu", library_dirs=folders))

    class BuildOperators(BuildExtension):
        """Builds what can be built."""

        def build_extensions(self) -> None:
            """Build without CUDA where the toolkit is not that of torch; errors of compilers are warnings."""
            try:
                super().build_extensions()
            except RuntimeError as error:
                message = str(error.args[0]) % error.args[1:] if len(error.args) > 1 else str(error)
                print(f"warning: not all native operators are built: {message}", file=sys.stderr)
                BUILD_PROBLEM.write_text(message)
                rest = [extension for extension in self.extensions if "cuda" not in extension.name]
                if len(rest) < len(self.extensions):
                    self.extensions = rest
                    self.build_extensions()

    BUILD_PROBLEM.unlink(missing_ok=True)
    return {"ext_modules": extensions, "cmdclass": {"build_ext": BuildOperators}}


def toolkit_libraries(compiler: str) -> list[str]:
    """Return the library folders of a CUDA toolkit; only its compiler knows where the toolkit is."""
    dry_run = subprocess.run(
        [compiler, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True, check=False
    )
    lines = [line for line in dry_run.stderr.splitlines() if line.startswith("#$ LIBRARIES=")]
    return [folder for line in lines for folder in re.findall(r'"-L([^"]+)"', line) if "stubs" not in folder]


def extension(kind: Callable[..., Extension], name: str, *patterns: str, **options: list[str]) -> Extension:
    """Return one extension module of the operators, of the sources that match the patterns."""
    sources = sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in OPERATORS.glob(pattern))
    sanitizers = list(SANITIZERS) if os.environ.get("REGIONCLIP_SANITIZE") == "1" else []
    flags = ["-std=c++17", "-O3", "-fvisibility=hidden", "-Wno-psabi", *sanitizers]
    return kind(
        f"regionclip.ops.{name}",
        sources,
        define_macros=[
            ("TORCH_TARGET_VERSION", OLDEST_TORCH),
            ("REGIONCLIP_MODULE", name),
            *([("USE_CUDA", None)] if "cuda" in name else []),
        ],
        extra_compile_args={"cxx": flags, "nvcc": ["-std=c++17", "-O3", "--extended-lambda"]},
        extra_link_args=sanitizers[:1],
        depends=sorted(str(path) for ending in ("h", "inl") for path in OPERATORS.rglob(f"*.{ending}")),
        py_limited_api=True,
        optional=True,
        **options,
    )


SHIPPED = {
    "configs": ["*.yaml", "*/*.yaml", "*/*.json"],
    "datasets": ["demo_images/*", "demo_scenes/*", "own_scenes/*.json", "own_scenes/images/*"],
    "pretrained_ckpt": ["emoji/*"],
}
"""Files of the repository that a wheel carries as `regionclip/shipped/`."""

PACKAGES = {f"regionclip.shipped.{name}": name for name in SHIPPED}
TEXTS = [
    *("data/image_text/english.txt", "data/emoji_scenes/concepts.tsv"),
    *("batch/report.html", "evaluation/page/page.html"),
]

setup(
    packages=[*find_packages(include=["regionclip", "regionclip.*"]), *PACKAGES],
    package_dir=PACKAGES,
    package_data={"regionclip": ["py.typed", *TEXTS], **{p: SHIPPED[name] for p, name in PACKAGES.items()}},
    **native_operators(),
)
