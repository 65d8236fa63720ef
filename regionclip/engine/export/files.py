"""Export of a detector's graphs as ONNX files, or as torch's exported programs."""

from __future__ import annotations

import importlib.util
import logging
import operator
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
from detectron2.config import CfgNode
from torch import nn
from torch.export import ExportedProgram

from regionclip.engine.export.operators import onnx_translations
from regionclip.errors import user_error
from regionclip.files import atomic_write, write_json
from regionclip.modeling.detector import Part, require_detector

logger = logging.getLogger(__name__)

FORMATS = {"onnx": ".onnx", "torch": ".pt2"}
"""File extension of each format."""


def export_detector(model: nn.Module, cfg: CfgNode, output: Path, form: str = "onnx") -> list[Path]:
    """Write the graphs of a detector, and `export.json` that describes their use.

    Args:
        model: a detector with loaded weights; moved to the CPU, and not trainable afterwards.
        cfg: its config.
        output: the folder; existing files of the same names are replaced.
        form: one of `FORMATS`.

    Returns:
        The files.

    Raises:
        UserError: an unknown format, a missing package, or a detector that has no counterpart in ONNX.
    """
    if form not in FORMATS:
        raise user_error("--format", " or ".join(FORMATS), repr(form), "name one of them")
    if form == "onnx" and importlib.util.find_spec("onnxscript") is None:
        raise user_error("export to ONNX", "the package onnxscript", "not installed", "pip install onnx onnxscript")
    detector = require_detector(model.to("cpu"))
    detector.prepare_for_inference("float32", "res5", "replace")
    parts = list(detector.export_parts())
    output.mkdir(parents=True, exist_ok=True)
    paths = []
    with torch.no_grad():
        for part in parts:
            program = _trace(part)
            content = _onnx_bytes(part, program) if form == "onnx" else _torch_bytes(program)
            path = output / f"{part.name}{FORMATS[form]}"
            with atomic_write(path) as file:
                file.write(content)
            logger.info("%s: %.1f MB", path, len(content) / 1e6)
            paths.append(path)
    about = {
        "channels": cfg.INPUT.FORMAT,
        "shortest_side": cfg.INPUT.MIN_SIZE_TEST,
        "longest_side": cfg.INPUT.MAX_SIZE_TEST,
        "embedding_dim": detector.text_space.dim,
        "parts": {part.name: {"inputs": list(part.inputs), "outputs": list(part.outputs)} for part in parts},
    }
    write_json(output / "export.json", about)
    return [*paths, output / "export.json"]


def _trace(part: Part) -> ExportedProgram:
    with _pools_of_any_size():
        return torch.export.export(part.graph.eval(), (), kwargs=part.inputs, dynamic_shapes=part.sizes, strict=False)


@contextmanager
def _pools_of_any_size() -> Iterator[None]:
    """Make pooling traceable with dynamic sizes: torch's check of a remainder has no effect on the result."""
    if not hasattr(torch._meta_registrations, "div_rtn"):
        yield
        return
    with mock.patch.object(torch._meta_registrations, "div_rtn", operator.floordiv):
        yield


def _onnx_bytes(part: Part, program: ExportedProgram) -> bytes:
    converted = torch.onnx.export(
        program,
        dynamo=True,
        input_names=list(part.inputs),
        output_names=list(part.outputs),
        custom_translation_table=onnx_translations(),
        external_data=False,
        verbose=False,
    )
    assert converted is not None
    return converted.model_proto.SerializeToString()


def _torch_bytes(program: ExportedProgram) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "program.pt2"
        torch.export.save(program, path)
        return path.read_bytes()
