"""A detector for other runtimes: ONNX files, or torch's exported programs."""

from regionclip.engine.export.files import FORMATS, export_detector

__all__ = ["FORMATS", "export_detector"]
