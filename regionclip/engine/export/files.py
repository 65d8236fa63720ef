"""Writing the parts of a detector as ONNX files, or as torch's exported programs."""

from __future__ import annotations

import importlib.util
import logging
import operator
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from unittest import mock

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from regionclip.engine.export.graphs import BackboneGraph, HeadGraph, ProposerGraph
from regionclip.engine.export.operators import onnx_translations
from regionclip.errors import user_error
from regionclip.files import atomic_write, write_json
from regionclip.hub.pretrained import Pretrained
from regionclip.methods.regionclip.detector import CLIPFastRCNN
from regionclip.modeling.inference.prepare import prepare_for_inference

logger = logging.getLogger(__name__)

FORMATS = {"onnx": ".onnx", "torch": ".pt2"}
"""Formats, and the ending of their files."""

SMALLEST_SIDE, LARGEST_SIDE = 65, 8192
"""Pixels of an image. The coarsest map of a pyramid has two cells then; torch treats a single one in its own way."""


@dataclass(frozen=True)
class Part:
    """A graph with example inputs, whose marked sizes may be any."""

    name: str
    graph: nn.Module
    inputs: dict[str, Tensor]
    sizes: dict[str, dict[int, Any]]
    outputs: tuple[str, ...]


def export_detector(detector: Pretrained, output: Path, form: str = "onnx") -> list[Path]:
    """Write `backbone`, `rpn` (where the detector has one) and `head`, and `export.json` about their use.

    Args:
        detector: as `load_pretrained` found it; it cannot be trained afterwards.
        output: the folder; files of these names are replaced.
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
    if not isinstance(detector.model, CLIPFastRCNN):
        expected, actual = "a detector (CLIPFastRCNN)", type(detector.model).__name__
        raise user_error("export", expected, actual, "name the config of a detector")
    model = cast(CLIPFastRCNN, prepare_for_inference(detector.model.to("cpu")))
    parts = list(_parts(model, detector.cfg.MODEL.CLIP.TEXT_EMB_DIM))
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
        "channels": detector.cfg.INPUT.FORMAT,
        "shortest_side": detector.cfg.INPUT.MIN_SIZE_TEST,
        "longest_side": detector.cfg.INPUT.MAX_SIZE_TEST,
        "embedding_dim": detector.cfg.MODEL.CLIP.TEXT_EMB_DIM,
        "parts": {part.name: {"inputs": list(part.inputs), "outputs": list(part.outputs)} for part in parts},
    }
    write_json(output / "export.json", about)
    return [*paths, output / "export.json"]


def _parts(model: CLIPFastRCNN, embedding_dim: int) -> Iterator[Part]:
    head = HeadGraph(model)
    rows, columns, regions, classes = (Dim(name, min=2) for name in ("rows", "columns", "regions", "classes"))
    image = torch.zeros(3, 160, 224)
    sides = {axis: Dim(name, min=SMALLEST_SIDE, max=LARGEST_SIDE) for axis, name in ((1, "height"), (2, "width"))}
    backbone = BackboneGraph(model)
    yield Part("backbone", backbone, {"image": image}, {"image": sides}, ("features",))
    if model.offline_backbone is not None:
        yield Part("rpn", ProposerGraph(model), {"image": image}, {"image": sides}, ("boxes", "objectness"))
    inputs = {
        "features": backbone(image).detach().contiguous(),
        "proposals": torch.tensor([[0.0, 0, 60, 60], [9, 9, 100, 80], [5, 50, 99, 99]]),
        "objectness": torch.ones(3),
        "class_embeddings": torch.eye(max(embedding_dim, 5))[:5, :embedding_dim].contiguous(),
        "image_size": torch.tensor([160.0, 224.0]),
    }
    sizes: dict[str, dict[int, Any]] = {
        "features": {2: rows, 3: columns},
        "proposals": {0: regions},
        "objectness": {0: regions},
        "class_embeddings": {0: classes},
        "image_size": {},
    }
    yield Part("head", head, inputs, sizes, ("boxes", "scores", "classes"))


def _trace(part: Part) -> ExportedProgram:
    with _pools_of_any_size():
        return torch.export.export(part.graph.eval(), (), kwargs=part.inputs, dynamic_shapes=part.sizes, strict=False)


@contextmanager
def _pools_of_any_size() -> Iterator[None]:
    """Let torch trace pools for even and odd maps alike: its division tests a remainder, which decides nothing."""
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
