"""A detector for other runtimes: ONNX files, or torch's exported programs."""
