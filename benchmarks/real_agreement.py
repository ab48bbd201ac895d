"""Measures every artifact of a delivered folder against its teacher on real images, which the run never saw.

    python benchmarks/real_agreement.py OUTPUT_FOLDER --data IMAGES.npz [--teacher CHECKPOINT] [--limit N]

IMAGES.npz holds either `images`, uint8 `[N, C, H, W]`, or encoded files end to end in `jpeg` with their `offsets`; and
`labels` `[N]`. The teacher is found where the run read it, and must be the very file that the manifest names. Needs Pillow
for encoded files.
"""

import argparse
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

from compress.exporters.runners import OnnxRunner, TorchRunner
from compress.pipeline.errors import CompressError, UsageError
from compress.pipeline.networks import build
from compress.pipeline.networks.normalised import Normalised
from compress.pipeline.proportions import proportion
from compress.pipeline.records import Proportion
from compress.pipeline.report import text
from compress.pipeline.settings import TeacherSettings
from compress.pipeline.teacher import Teacher, open_teacher
from compress.pipeline.workspace import COMMAND_FILE

Images = NDArray[np.float32]
Logits = NDArray[np.float32]


class Measured(NamedTuple):
    """An artifact on real images."""

    accuracy: Proportion
    agreement: Proportion
    """With the teacher."""


def read_images(path: Path, limit: int | None) -> tuple[Images, NDArray[np.int64]]:
    """Images `[N, C, H, W]`, float32 in [0, 1], and their classes `[N]`; the first `limit` of them."""
    with np.load(path, allow_pickle=False) as arrays:
        labels = arrays["labels"][:limit].astype(np.int64)
        images = arrays["images"][:limit] if "images" in arrays else decoded(arrays["jpeg"], arrays["offsets"], limit)
    return images.astype(np.float32) / np.float32(255), labels


def decoded(content: NDArray[np.uint8], offsets: NDArray[np.int64], limit: int | None) -> NDArray[np.uint8]:
    """Image files end to end as uint8 `[N, 3, H, W]`."""
    from PIL import Image

    count = min(len(offsets) - 1, limit or len(offsets))
    files = (content[offsets[index] : offsets[index + 1]].tobytes() for index in range(count))
    return np.stack([np.asarray(Image.open(io.BytesIO(file)).convert("RGB")).transpose(2, 0, 1) for file in files])


def find_teacher(folder: Path, checkpoint: Path | None) -> Teacher:
    """The teacher of a delivered folder.

    Raises:
        UsageError: it is not where it was, or is another file by now.
    """
    command = folder / "work" / COMMAND_FILE
    if checkpoint is None and not command.exists():
        raise UsageError(f"'{folder}' does not say where its teacher is.", "Name it with --teacher.")
    path = checkpoint or Path(json.loads(command.read_bytes())["checkpoint"])
    report = json.loads((folder / "report.json").read_bytes())
    settings = report["settings"]["teacher"]
    teacher = open_teacher(path, **dict(TeacherSettings.model_validate(settings)))
    if teacher.record.sha256 != report["teacher"]["sha256"]:
        raise UsageError(f"'{path}' is not the teacher of '{folder}'.", "Name the right one with --teacher.")
    return teacher


def answers(folder: Path, teacher: Teacher) -> dict[str, Callable[[Images], Logits]]:
    """Every artifact that runs here, the teacher first; int8 for TensorRT rounds as the graph says."""
    student = json.loads((folder / "student.json").read_bytes())
    network = Normalised(build(student["architecture"]), student["input"]["mean"], student["input"]["std"])
    network.load_state_dict(load_file(folder / "student.safetensors"))
    exact = json.loads((folder / "report.json").read_bytes())["target"]["runtime"] == "tensorrt"
    graphs = {path.name: OnnxRunner(path, exact=exact) for path in sorted(folder.glob("*.onnx"))}
    return {"teacher": TorchRunner(teacher.network), "student.safetensors": TorchRunner(network), **graphs}


def measure(folder: Path, teacher: Teacher, images: Images, labels: NDArray[np.int64]) -> dict[str, Measured]:
    """Accuracy of every artifact, and its agreement with the teacher, which comes first."""
    measured: dict[str, Measured] = {}
    wanted: NDArray[np.int64] | None = None
    for name, run in answers(folder, teacher).items():
        classes = run(images).argmax(1)
        wanted = classes if wanted is None else wanted
        right, same = (proportion(int((classes == other).sum()), len(images)) for other in (labels, wanted))
        measured[name] = Measured(accuracy=right, agreement=same)
    return measured


def as_table(measured: dict[str, Measured], count: int) -> Table:
    """A row an artifact, with the 95 % interval of its agreement."""
    table = Table("artifact", "accuracy", "agreement", "95 % interval", title=f"{count:,} real images")
    for name, (accuracy, agreement) in measured.items():
        table.add_row(name, text.share(accuracy), text.share(agreement), text.interval(agreement))
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what `compress` delivered")
    parser.add_argument("--data", type=Path, required=True, help="real images as npz")
    parser.add_argument("--teacher", type=Path, help="the checkpoint, if it is no longer where it was")
    parser.add_argument("--limit", type=int, help="only so many images")
    options = parser.parse_args()
    try:
        teacher = find_teacher(options.folder, options.teacher)
    except CompressError as error:
        parser.exit(error.exit_code, f"{error}\n")
    with torch.inference_mode():
        images, labels = read_images(options.data, options.limit)
        Console().print(as_table(measure(options.folder, teacher, images, labels), len(images)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
