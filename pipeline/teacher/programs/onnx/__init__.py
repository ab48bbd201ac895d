"""ONNX models as teachers: translated operator by operator, so that gradients reach the images."""
