"""Agreement with the teacher on real images over the time of a run, which itself never sees them.

    python benchmarks/curve.py OUTPUT_FOLDER --data IMAGES.npz --copies FOLDER -- compress TEACHER ... -o OUTPUT_FOLDER

Runs the command behind `--` and, meanwhile, copies its newest checkpoint every `--every` seconds, which costs it next to
nothing. When it has ended, the averaged weights of every copy are measured as `real_agreement.py` does.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from torch import Tensor

from compress.exporters.runners import TorchRunner
from compress.pipeline.networks import build
from compress.pipeline.networks.normalised import Normalised
from compress.pipeline.proportions import proportion
from compress.pipeline.report import text
from compress.pipeline.teacher import Teacher
from compress.pipeline.tensor_files import under
from real_agreement import Images, find_teacher, read_images

CHECKPOINTS = Path("work") / "3-distill.partial"


def watch(command: Sequence[str], folder: Path, copies: Path, every: float) -> int:
    """Run the command, copying checkpoints; returns its exit code."""
    copies.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(command)
    due = time.monotonic()
    while process.poll() is None:
        time.sleep(1)
        if time.monotonic() >= due and copy_newest(folder / CHECKPOINTS, copies):
            due = time.monotonic() + every
    return process.returncode


def copy_newest(checkpoints: Path, copies: Path) -> bool:
    """Whether there was a checkpoint of the learning student, and it stayed long enough to be copied."""
    indexes = sorted(checkpoints.glob("checkpoint-*.index"))
    try:
        numbers = json.loads(indexes[-1].read_bytes().rpartition(b"\n")[0])["numbers"]
        if not any(point["kd_steps"] for point in numbers["history"]):
            return False
        shutil.copy(indexes[-1].with_suffix(".safetensors"), copies / f"{round(numbers['seconds']):06}.safetensors")
    except (IndexError, FileNotFoundError):
        return False
    return True


def student_of(folder: Path, weights: dict[str, Tensor]) -> TorchRunner:
    """The delivered student with other weights."""
    student = json.loads((folder / "student.json").read_bytes())
    network = Normalised(build(student["architecture"]), student["input"]["mean"], student["input"]["std"])
    network.load_state_dict(weights)
    return TorchRunner(network)


def measure(folder: Path, copies: Path, teacher: Teacher, images: Images) -> Table:
    """A row a copy: seconds of distillation, and agreement with its 95 % interval."""
    wanted = TorchRunner(teacher.network)(images).argmax(1)
    table = Table("seconds of distillation", "agreement", "95 % interval", title=f"{len(images):,} real images")
    for copy in sorted(copies.glob("*.safetensors")):
        classes = student_of(folder, under("average", load_file(copy)))(images).argmax(1)
        share = proportion(int((classes == wanted).sum()), len(images))
        table.add_row(str(int(copy.stem)), text.share(share), text.interval(share))
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what the command delivers")
    parser.add_argument("--data", type=Path, required=True, help="real images as npz, see real_agreement.py")
    parser.add_argument("--copies", type=Path, required=True, help="folder for the copies of checkpoints")
    parser.add_argument("--every", type=float, default=120, help="seconds between two copies")
    parser.add_argument("--limit", type=int, help="only so many real images")
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    options = parser.parse_args(sys.argv[1:split])
    if command := sys.argv[split + 1 :]:
        code = watch(command, options.folder, options.copies, options.every)
        if code not in {0, 4}:  # a verdict is no reason to stop
            return code
    teacher, (images, _) = find_teacher(options.folder, None), read_images(options.data, options.limit)
    with torch.inference_mode():
        Console().print(measure(options.folder, options.copies, teacher, images))
    return 0


if __name__ == "__main__":
    sys.exit(main())
