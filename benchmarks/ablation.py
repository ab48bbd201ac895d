"""What each switch of distillation is worth: the same teacher and the same time, one switch turned at a time.

    python benchmarks/ablation.py TEACHER --labels FILE --data IMAGES.npz --budget 5m -o FOLDER
        [--recipe balanced] [--set KEY=VALUE ...] [--rows ROW ...] [--jobs N]

Every row is a run of `compress` with the time of `--budget`, measured on real images as `real_agreement.py` does; the run
never sees them. Measured rows are kept in FOLDER/rows.jsonl and not run again, so that a long table can be made in parts.
What is equal is the time: of the clock, on a machine that has nothing else to do; with `--jobs`, of one processor for each
row, so that rows may run side by side.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from compress.pipeline.proportions import proportion
from real_agreement import Images, Measured, answers, find_teacher, read_images

ON_PROCESSOR_TIME = Path(__file__).with_name("on_processor_time.py")

ROWS: Mapping[str, Sequence[str]] = {
    "the recipe": (),
    "the recipe, seed 1": ("seed=1",),
    "the recipe, seed 2": ("seed=2",),
    "student from random weights": ("student.name=resnet20",),
    "student of twice the blocks, half their channels": ("student.name=inherit-6-6-6-w0.5",),
    "student of more blocks": ("student.name=inherit-5-5-5",),
    "student of fewer, whole blocks": ("student.name=inherit-3-3-3",),
    "no stage matching": ("distill.stage_weight=0",),
    "stages at weight 10": ("distill.stage_weight=10",),
    "last weights, not their average": ("distill.average_decay=0",),
    "last moment, not the best on held-out images": ("distill.selection=last",),
    "images selected by the batch": ("synthesis.selection=batch",),
    "pool of 1,000 images": ("distill.pool_limit=1000",),
    "prioritised replay": ("distill.replay_priority=0.6",),
    "nothing mixed": ("distill.mixing=none",),
    "CutMix only": ("distill.mixing=cutmix",),
    "Mixup only": ("distill.mixing=mixup",),
    "SGD": ("distill.optimiser=sgd", "distill.inherited_learning_rate=0.05", "distill.weight_decay=1e-4"),
    "temperature 1": ("distill.temperature=1",),
    "temperature 20": ("distill.temperature=20",),
    "5 generator steps": ("synthesis.steps=5",),
    "20 generator steps": ("synthesis.steps=20",),
    "latent drawn directly": ("synthesis.latent_source=direct",),
    "published rate": ("distill.optimiser=sgd", "distill.temperature=20", "distill.inherited_learning_rate=0.2"),
}
"""Each row's name, and the settings that differ from the recipe's; other seeds tell how much single runs say."""


TEACHERS: dict[str, NDArray[np.int64]] = {}
"""What each teacher, by its hash, names the real images: it takes longer to ask than the student of a row."""


def measured_student(folder: Path, images: Images, labels: NDArray[np.int64]) -> Measured:
    """The float student of a delivered folder against its teacher."""
    teacher = find_teacher(folder, None)
    ask, sha256 = answers(folder, teacher), teacher.record.sha256
    with torch.inference_mode():
        if sha256 not in TEACHERS:
            TEACHERS[sha256] = ask["teacher"](images).argmax(1)
        classes = ask["student.safetensors"](images).argmax(1)
    right, same = (proportion(int((classes == other).sum()), len(images)) for other in (labels, TEACHERS[sha256]))
    return Measured(accuracy=right, agreement=same)


def run_row(options: argparse.Namespace, number: int, settings: Sequence[str]) -> dict[str, Any]:
    """Run `compress` with these settings and measure the student that it delivers."""
    folder = options.output / f"row-{number:02}"
    program = ["-m", "compress"] if options.jobs is None else [ON_PROCESSOR_TIME]
    command = [sys.executable, *program, options.teacher, "--labels", options.labels, "--target", "onnx", "--quiet"]
    command += ["--recipe", options.recipe, "--budget", options.budget, "-o", folder]
    one_thread = () if options.jobs is None else ("threads=1",)
    command += [word for setting in (*options.set, *settings, *one_thread) for word in ("--set", setting)]
    code = subprocess.run([str(word) for word in command], check=False, stdout=subprocess.DEVNULL).returncode
    if code not in {0, 4}:  # a verdict is what is measured here, not a reason to stop
        raise SystemExit(f"compress ended with exit code {code}: {' '.join(str(word) for word in command)}")
    student = measured_student(folder, *read_images(options.data, options.limit))
    report = json.loads((folder / "report.json").read_bytes())
    return {
        "settings": list(settings),
        "agreement": student.agreement.model_dump(),
        "accuracy": student.accuracy.value,
        "kd_steps": report["distill"]["kd_steps"],
        "images": report["distill"]["pool_images"],
        "seconds": round(sum(report["timings"].values())),
    }


def table_of(rows: Mapping[str, dict[str, Any]]) -> Table:
    """Rows in the order of `ROWS`."""
    table = Table("switch", "agreement on real images", "95 % interval", "steps", "images", "seconds")
    for name in (name for name in ROWS if name in rows):
        row = rows[name]
        agreement = row["agreement"]
        interval = f"{agreement['low']:.1%} to {agreement['high']:.1%}"
        counts = (f"{row[key]:,}" for key in ("kd_steps", "images", "seconds"))
        table.add_row(name, f"{agreement['value']:.1%}", interval, *counts)
    return table


def measured_before(path: Path) -> dict[str, dict[str, Any]]:
    """Rows that the file holds, by name."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {row["name"]: row for row in map(json.loads, lines)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("--labels", type=Path, required=True, help="class names, one a line")
    parser.add_argument("--data", type=Path, required=True, help="real images as npz, see real_agreement.py")
    parser.add_argument("--budget", required=True, help="time of each run, such as 5m")
    parser.add_argument("--recipe", default="balanced", help="what the switches are turned in")
    parser.add_argument("--output", "-o", type=Path, required=True, help="folder for the runs and their results")
    parser.add_argument("--set", action="append", default=[], help="a setting of every row, such as threads=2")
    parser.add_argument("--jobs", type=int, help="rows side by side, one thread and the time of one processor each")
    parser.add_argument("--limit", type=int, help="only so many real images")
    parser.add_argument("--rows", nargs="+", default=[], metavar="ROW", help=f"default: all of {', '.join(ROWS)}")
    options = parser.parse_args()
    unknown = set(options.rows) - set(ROWS)
    if unknown:
        parser.error(f"there is no row '{unknown.pop()}'")
    options.output.mkdir(parents=True, exist_ok=True)
    results = options.output / "rows.jsonl"
    rows = measured_before(results)
    missing = [name for name in dict.fromkeys(options.rows or ROWS) if name not in rows]
    failures: list[BaseException] = []

    def run_unless_failed(name: str) -> dict[str, Any]:
        if failures:
            raise failures[0]  # The one that waits for the rows may be too slow to cancel those behind.
        try:
            return run_row(options, list(ROWS).index(name), ROWS[name])
        except BaseException as failure:
            failures.append(failure)
            raise

    with ThreadPoolExecutor(options.jobs or 1) as side_by_side:
        runs = {side_by_side.submit(run_unless_failed, name): name for name in missing}
        try:
            for run in as_completed(runs):
                rows[runs[run]] = {"name": runs[run]} | run.result()
                with results.open("a") as file:
                    file.write(json.dumps(rows[runs[run]]) + "\n")
        except BaseException:  # what has not begun must not, after a failure as after Ctrl-C
            side_by_side.shutdown(wait=False, cancel_futures=True)
            raise
    Console().print(table_of(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
