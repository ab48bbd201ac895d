"""One student for every target: which files come out, whether the lint is content, and how faithful each is.

    python benchmarks/exports.py TEACHER --labels FILE -o FOLDER [--data IMAGES.npz] [--recipe balanced] [--set KEY=VALUE ...]

The student is distilled once, for the first target; the others start from copies of its stages, so that what differs is
quantization, where they round otherwise, and export. Every file is linted against its own target. The figures are those that the run itself left in
report.json: parity is the largest difference of logits between ONNX Runtime and PyTorch. With real images, which no run saw,
each file's agreement with the teacher on them stands beside.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from compress.exporters.lint import lint
from compress.exporters.targets import load_target, target_names
from compress.pipeline.report import text
from compress.pipeline.report.data import ReportData
from real_agreement import Measured, find_teacher, measure, read_images

FIRST = "jetson"
SHARED = ("1-intake", "2-embed", "3-distill", "4-quantize")
"""Stages of the first run that others start from; quantization is made again where the target rounds otherwise."""


def run(target: str, folder: Path, options: argparse.Namespace) -> None:
    """`compress` for one target, whatever its verdict."""
    words = [str(options.teacher), "--labels", str(options.labels), "--target", target, "-o", str(folder)]
    words += ["--recipe", options.recipe] if options.recipe else []
    words += [word for assignment in options.set for word in ("--set", assignment)]
    done = subprocess.run(
        [sys.executable, "-m", "compress", *words, "--quiet", "--json"], stdout=subprocess.PIPE, check=False
    )
    if done.returncode not in (0, 4):
        raise SystemExit(done.returncode)


def start_from(folder: Path, other: Path) -> None:
    """Give a run the stages of another that has the same student."""
    for stage in SHARED:
        if not (folder / "work" / stage).exists():
            shutil.copytree(other / "work" / stage, folder / "work" / stage)
    shutil.copyfile(other / ".compress", folder / ".compress")


def rows_of(folder: Path, on_real: Mapping[str, Measured]) -> Iterator[dict[str, Any]]:
    """A row for each ONNX file of a delivered folder."""
    report = ReportData.model_validate_json((folder / "report.json").read_bytes())
    ledger = {row.artifact: row for row in report.validation.ledger}
    for graph in report.export.graphs:
        row, measured = ledger[graph.file_name], on_real.get(graph.file_name)
        yield {
            "target": report.target.name,
            "file": graph.file_name,
            "opset": graph.opset,
            "ir_version": graph.ir_version,
            "bytes": graph.size_bytes,
            "lint": len(lint(folder / graph.file_name, load_target(report.target.name))),
            "parity": graph.max_abs_difference,
            "on_probes": text.share(row.agreement),
            "sqnr_db": row.sqnr_db,
            "on_real_images": text.share(measured.agreement) if measured else "",
            "verdict": row.verdict,
        }


def as_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """For people."""
    table = Table(
        *("target", "file", "opset, IR", "size", "lint", "parity", "probes", "SQNR", "real images", "verdict")
    )
    for row in rows:
        size, parity, noise = f"{row['bytes'] / 1e3:.0f} kB", f"{row['parity']:.2g}", f"{row['sqnr_db']:.1f} dB"
        format_ = f"{row['opset']}, {row['ir_version']}"
        findings = "clean" if not row["lint"] else f"{row['lint']} findings"
        table.add_row(
            *(row["target"], row["file"], format_, size, findings, parity),
            *(row["on_probes"], noise, row["on_real_images"], row["verdict"]),
        )
    return table


def on_real_images(folder: Path, options: argparse.Namespace) -> dict[str, Measured]:
    """Every artifact of the folder on the images that `--data` names."""
    teacher = find_teacher(folder, options.teacher)
    with torch.inference_mode():
        return measure(folder, teacher, *read_images(options.data, options.limit))


def all_targets(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Run, or find made already, each target in turn."""
    first = options.output / FIRST
    for target in (FIRST, *(name for name in target_names() if name != FIRST)):
        folder = options.output / target
        if target != FIRST:
            start_from(folder, first)
        run(target, folder, options)
        yield from rows_of(folder, on_real_images(folder, options) if options.data else {})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--recipe")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--data", type=Path, help="real images as npz, see real_agreement.py")
    parser.add_argument("--limit", type=int, help="only so many real images")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = list(all_targets(options))
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        Console(width=160).print(as_table(rows))
    return 1 if any(row["lint"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
