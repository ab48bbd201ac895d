"""Measures what `compress` made of the example's teacher on the held-out quarter of the digits, which it never saw.

    python examples/digits/evaluate.py OUTPUT_FOLDER [--min-agreement 0.97]

Exits with 1 when the most compact student agrees with the teacher on a smaller share of the images.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch
from digits_data import Images, load_splits
from rich.console import Console
from rich.table import Table

from compress.exporters.runners import OnnxRunner
from compress.pipeline.errors import CompressError
from compress.pipeline.teacher import open_teacher

Logits = npt.NDArray[np.float32]

TEACHER = Path(__file__).parent / "teacher.pt"
STUDENTS = {"student, fp32": "student.onnx", "student, int8": "student.int8.onnx"}


@dataclass(frozen=True)
class Model:
    """One file to measure: images `[N, 1, 8, 8]` to logits `[N, 10]`."""

    title: str
    weights: int
    size_bytes: int
    logits: Callable[[Images], Logits]


def open_torch_teacher(path: Path) -> Model:
    """The checkpoint, through the same intake as in `compress`."""
    teacher = open_teacher(path)
    weights = sum(parameter.numel() for parameter in teacher.network.parameters() if parameter.dim() > 1)

    def logits(images: Images) -> Logits:
        with torch.no_grad():
            answer: Logits = teacher.logits(torch.from_numpy(images)).numpy()
        return answer

    return Model("teacher", weights, path.stat().st_size, logits)


def open_onnx_student(title: str, path: Path) -> Model:
    """An ONNX file as the device will run it, whatever batch and form of images the graph takes."""
    return Model(title, count_weights(onnx.load(path)), path.stat().st_size, OnnxRunner(path))


def count_weights(model: onnx.ModelProto) -> int:
    """Weights of convolutions and linear layers, quantized or not.

    Biases and scales are vectors, and the normalisation's constants have a first dimension of 1; they do not count.
    """
    shapes = [tensor.dims for tensor in model.graph.initializer]
    return sum(int(np.prod(shape)) for shape in shapes if len(shape) > 1 and shape[0] > 1)


def measure(models: list[Model]) -> tuple[Table, list[float]]:
    """A table with one row a model, and each model's agreement with the first."""
    held_out = load_splits()[1]
    table = Table("", "weights", "size", "accuracy", "agreement with the teacher")
    agreements, verdicts = [], models[0].logits(held_out.images).argmax(1)
    for model in models:
        answers = model.logits(held_out.images).argmax(1)
        accuracy, agreement = (answers == held_out.classes).mean(), float((answers == verdicts).mean())
        size = f"{model.size_bytes / 1000:,.0f} kB"
        table.add_row(model.title, f"{model.weights:,}", size, f"{accuracy:.2%}", f"{agreement:.2%}")
        agreements.append(agreement)
    return table, agreements


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what `compress` delivered")
    parser.add_argument("--min-agreement", type=float, default=0.0, help="of the most compact student, from 0 to 1")
    options = parser.parse_args(arguments)
    files = {title: options.folder / name for title, name in STUDENTS.items() if (options.folder / name).is_file()}
    if not files:
        parser.error(f"there is no student in '{options.folder}'")
    try:
        models = [open_torch_teacher(TEACHER), *(open_onnx_student(title, path) for title, path in files.items())]
    except CompressError as error:
        parser.exit(error.exit_code, f"{error}\n")
    table, agreements = measure(models)
    Console().print(table)
    if agreements[-1] < options.min_agreement:
        print(f"{models[-1].title}: agreement {agreements[-1]:.4f} is below {options.min_agreement}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
