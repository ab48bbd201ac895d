"""ONNX operators over torch tensors: pure functions, entered into one table."""

from compress.pipeline.teacher.programs.onnx.operators import elementwise, layers, reductions, resizing, shapes
from compress.pipeline.teacher.programs.onnx.operators.registry import Operator, Parameter, find_operator

__all__ = [
    "Operator",
    "Parameter",
    "elementwise",
    "find_operator",
    "layers",
    "reductions",
    "resizing",
    "shapes",
]
