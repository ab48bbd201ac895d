"""How long one batch takes in ONNX Runtime: the teacher, and the files of a delivered folder, in turns.

    python benchmarks/latency.py FOLDER [--teacher CHECKPOINT] [--batches 1 8] [--threads 1 2] [--rounds 30] [--json]

The folder should be one for `cpu-x86` or `cpu-arm64`; int8 files for TensorRT are not made for ONNX Runtime. All models of a
setting take turns, a few calls each, so that whatever else the machine does falls on all of them. Times are wall clock.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from compress.exporters.camera_input import ONNX_RUNTIME_BYTES, camera_images
from compress.exporters.onnx_graph import export_onnx
from compress.pipeline.errors import CompressError
from compress.pipeline.metrics import percentile
from compress.pipeline.synthesis.pool import as_float
from real_agreement import find_teacher

CALLS = 5
"""Of each model in a turn; the first of a turn finds the caches cold, as a device does that does other things, too."""

SETTLED = 0.05
"""Seconds between two models of several threads: those of the one before spin for a while, in hope of more work, and would
take a core away."""


class Latency(NamedTuple):
    """Milliseconds of one call."""

    p50: float
    p99: float


def session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    """As `deploy` uses it: all optimisations, and so many threads within an operator."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def in_turns(
    sessions: Mapping[str, onnxruntime.InferenceSession], images: NDArray[np.float32], rounds: int, pause: float = 0
) -> dict[str, Latency]:
    """Latency of every model on the same images `[N, C, H, W]`; seconds of `pause` between two models."""
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    for turn in range(rounds + 1):
        for name, model in sessions.items():
            time.sleep(pause)
            input = model.get_inputs()[0]
            feed = {input.name: camera_images(images) if input.type == ONNX_RUNTIME_BYTES else images}
            for _ in range(CALLS):
                started = time.perf_counter()
                model.run(None, feed)
                if turn:  # the first turn warms up
                    seconds[name].append(time.perf_counter() - started)
    return {name: latency_of(values) for name, values in seconds.items()}


def latency_of(seconds: Sequence[float]) -> Latency:
    """Median and 99th percentile, in milliseconds."""
    return Latency(1000 * statistics.median(seconds), 1000 * percentile(np.array(seconds), 99))


def models_of(folder: Path, checkpoint: Path | None, scratch: Path) -> dict[str, Path]:
    """The teacher as an ONNX file, then the folder's."""
    teacher = find_teacher(folder, checkpoint)
    with np.load(folder / "probes.npz") as probes:
        example = as_float(torch.from_numpy(probes["images"][:2]))
    export_onnx(teacher.network, scratch / "teacher.onnx", example=example, opset=17, ir_version=8, metadata={})
    return {"teacher.onnx": scratch / "teacher.onnx"} | {path.name: path for path in sorted(folder.glob("*.onnx"))}


def measured(
    models: Mapping[str, Path], images: NDArray[np.float32], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """A row for every model, batch and number of threads."""
    rows = []
    for threads in options.threads:
        sessions = {name: session(path, threads) for name, path in models.items()}
        for batch in options.batches:
            shown = np.resize(images, (batch, *images.shape[1:]))
            latencies = in_turns(sessions, shown, options.rounds, pause=SETTLED if threads > 1 else 0)
            slowest = latencies["teacher.onnx"].p50
            for name, latency in latencies.items():
                size, times_faster = models[name].stat().st_size, slowest / latency.p50
                row = {"model": name, "batch": batch, "threads": threads, "bytes": size, "times_faster": times_faster}
                rows.append(row | latency._asdict())
    return rows


def as_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """For people."""
    table = Table("batch", "threads", "model", "size", "p50 ms", "p99 ms", "teacher / it")
    for row in rows:
        file = (row["model"], f"{row['bytes'] / 1e6:.2f} MB")
        times = (f"{row['p50']:.3f}", f"{row['p99']:.3f}", f"{row['times_faster']:.1f}")
        table.add_row(str(row["batch"]), str(row["threads"]), *file, *times)
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what `compress` delivered")
    parser.add_argument("--teacher", type=Path, help="the checkpoint, if it is no longer where it was")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=30, help=f"turns of {CALLS} calls")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        try:
            models = models_of(options.folder, options.teacher, Path(scratch))
        except CompressError as error:
            parser.exit(error.exit_code, f"{error}\n")
        with np.load(options.folder / "probes.npz") as probes:
            images = probes["images"][: max(options.batches)].astype(np.float32) / np.float32(255)
        rows = measured(models, images, options)
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        Console().print(as_table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
