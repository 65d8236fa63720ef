"""Export of a detector to other runtimes: ONNX files, or torch's exported programs."""
