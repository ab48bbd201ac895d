"""Measures a synthesis step and a distillation step against the same step written naively, and against the machine.

    python benchmarks/steps.py TEACHER --labels FILE [--recipe NAME] [--set KEY=VALUE] [--threads N] [--json]

Both sides run with the same teacher, student, settings and batch sizes, each loop in a process of its own, in turns:
ours, naive, ours, naive. The ratio is the median of the pairs' ratios. `loops/naive.py` says what naive means,
`loops/peak.py` what the convolution peak is. A synthesis step is a share of a batch of `--generator-steps` steps, so
that what a batch costs once is part of it. Memory is the peak of a loop's process (of the GPU where there is one)
beyond what it held once the teacher was open. Needs Pillow.
"""

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from compress.pipeline.device import Compute, choose_compute
from compress.pipeline.errors import CompressError
from compress.pipeline.labels import read_labels
from compress.pipeline.lte import embed_labels
from compress.pipeline.settings import Settings, assignment, merge, resolve_settings
from loops.peak import PRECISIONS, Best, convolution_peak, matrix_product_peak
from loops.worker import Footprint, Job, Timing, started

STEPS = ("synthesis", "distillation")


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One loop, measured."""

    timings: tuple[Timing, ...]
    footprint: Footprint
    steps: int
    """Steps that one timing covers."""

    @property
    def seconds(self) -> float:
        """Of one step."""
        return median(timing.wall for timing in self.timings) / self.steps

    @property
    def rate(self) -> float:
        """Floating-point operations a second."""
        return self.footprint.flops / self.steps / self.seconds

    def facts(self) -> dict[str, float]:
        kernel = median(timing.kernel for timing in self.timings) / self.steps
        return {
            "seconds": self.seconds,
            "kernel_seconds": kernel,
            "gflop": self.footprint.flops / self.steps / 1e9,
            "gflop_per_second": self.rate / 1e9,
            "peak_mib": self.footprint.peak_bytes / 2**20,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A step, ours and naive, and the convolution peak of ours."""

    step: str
    images: int
    ours: Side
    naive: Side
    peak: Best
    fastest_convolution: Best

    @property
    def ratios(self) -> list[float]:
        """Naive over ours, pair by pair."""
        return [naive.wall / ours.wall for ours, naive in zip(self.ours.timings, self.naive.timings, strict=True)]

    def facts(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "images": self.images,
            "ours": self.ours.facts(),
            "naive": self.naive.facts(),
            "ratio": median(self.ratios),
            "ratios": self.ratios,
            "memory_ratio": self.ours.footprint.peak_bytes / self.naive.footprint.peak_bytes,
            "convolution_peak_gflop_per_second": self.peak.rate / 1e9,
            "fraction_of_convolution_peak": self.ours.rate / self.peak.rate,
            "naive_fraction_of_convolution_peak": self.naive.rate / self.peak.rate,
            "fastest_convolution": _best_facts(self.fastest_convolution),
        }


def compare(
    step: str, options: argparse.Namespace, settings: Settings, compute: Compute, embeddings: Any
) -> Comparison:
    """Both loops in turns, then the peak with the machine to itself."""
    ours, naive = (
        Job(
            loop=f"{side} {step}",
            checkpoint=options.teacher,
            embeddings=embeddings,
            settings=settings,
            pool=options.pool,
            threads=torch.get_num_threads(),
        )
        for side in ("ours", "naive")
    )
    with started(ours) as our_worker, started(naive) as naive_worker:
        for worker in (our_worker, naive_worker):
            worker.run()  # to warm up
        pairs = [(our_worker.run(), naive_worker.run()) for _ in range(options.repeats)]
        footprints = our_worker.finish(), naive_worker.finish()
    steps = settings.synthesis.steps if step == "synthesis" else 1
    sides = [
        Side(timings=timings, footprint=footprint, steps=steps)
        for timings, footprint in zip(zip(*pairs, strict=True), footprints, strict=True)
    ]
    peak, fastest = convolution_peak(footprints[0].convolutions, compute)
    batch = settings.synthesis.batch_size if step == "synthesis" else settings.distill.batch_size
    return Comparison(step=step, images=batch, ours=sides[0], naive=sides[1], peak=peak, fastest_convolution=fastest)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that is printed, as JSON has it.

    Raises:
        CompressError: as a run with these inputs would.
    """
    settings = chosen_settings(options)
    compute = choose_compute(settings)
    asked = settings.embed
    labels = read_labels(options.labels)
    embeddings, _ = embed_labels(labels, encoder=asked.text_encoder, prompt=asked.prompt)
    embedded = torch.from_numpy(embeddings)
    comparisons = [compare(step, options, settings, compute, embedded).facts() for step in options.step or STEPS]
    products = [matrix_product_peak(precision, compute, options.matrix_side) for precision in PRECISIONS]
    return {
        "machine": {
            "device": compute.title,
            "processor": processor(),
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "matrix_products": [_best_facts(best) for best in products],
        "steps": comparisons,
    }


def chosen_settings(options: argparse.Namespace) -> Settings:
    """The recipe, with the batch sizes that the published loop was timed with unless others are set."""
    given = {
        "recipe": options.recipe,
        "synthesis": {"batch_size": options.synthesis_batch, "steps": options.generator_steps},
        "distill": {"batch_size": options.distillation_batch},
        **({"threads": options.threads} if options.threads else {}),
    }
    return resolve_settings(reduce(merge, map(assignment, options.set), given), environment={})


def processor() -> str:
    """The processor's name, as far as the system tells it."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def show(facts: dict[str, Any], console: Console) -> None:
    """Two tables: the steps, and the machine."""
    machine = facts["machine"]
    table = Table("", *(f"{step['step']}, {step['images']} images" for step in facts["steps"]), title=_title(machine))
    for name, row in _rows(facts["steps"]).items():
        table.add_row(name, *row)
    console.print(table)
    for best in [*facts["matrix_products"], *(step["fastest_convolution"] for step in facts["steps"])]:
        console.print(f"{best['gflop_per_second']:.0f} GFLOP/s: {best['way']}", highlight=False)


def _title(machine: dict[str, Any]) -> str:
    return f"{machine['processor']}, {machine['device']}, torch {machine['torch']}, Python {machine['python']}"


def _rows(steps: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    def each(text: str, *path: str) -> list[str]:
        return [text.format(reduce(lambda facts, key: facts[key], path, step)) for step in steps]

    return {
        "ours, seconds a step": each("{:.3f}", "ours", "seconds"),
        "naive, seconds a step": each("{:.3f}", "naive", "seconds"),
        "naive / ours": each("{:.1f}", "ratio"),
        "ours, GFLOP a step": each("{:.1f}", "ours", "gflop"),
        "naive, GFLOP a step": each("{:.1f}", "naive", "gflop"),
        "ours, GFLOP/s": each("{:.0f}", "ours", "gflop_per_second"),
        "naive, GFLOP/s": each("{:.0f}", "naive", "gflop_per_second"),
        "convolution peak, GFLOP/s": each("{:.0f}", "convolution_peak_gflop_per_second"),
        "ours / convolution peak": each("{:.0%}", "fraction_of_convolution_peak"),
        "naive / convolution peak": each("{:.0%}", "naive_fraction_of_convolution_peak"),
        "ours, seconds in the kernel": each("{:.3f}", "ours", "kernel_seconds"),
        "naive, seconds in the kernel": each("{:.3f}", "naive", "kernel_seconds"),
        "ours, peak MiB": each("{:.0f}", "ours", "peak_mib"),
        "naive, peak MiB": each("{:.0f}", "naive", "peak_mib"),
    }


def _best_facts(best: Best) -> dict[str, Any]:
    return {"way": best.way, "gflop_per_second": best.rate / 1e9}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", type=Path, help="a checkpoint")
    parser.add_argument("--labels", type=Path, required=True, help="its class names, one a line")
    parser.add_argument("--recipe", default="default", help="whose settings hold")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any other setting")
    parser.add_argument("--step", action="append", choices=STEPS, help="only this one; by default both")
    parser.add_argument("--threads", type=int, help="CPU threads; by default torch's")
    parser.add_argument("--synthesis-batch", type=int, default=200, help="images a synthesis step")
    parser.add_argument("--generator-steps", type=int, default=3, help="synthesis steps a batch")
    parser.add_argument("--distillation-batch", type=int, default=256, help="images a distillation step")
    parser.add_argument("--pool", type=int, default=2000, help="images in the pool")
    parser.add_argument("--repeats", type=int, default=5, help="pairs of measurements")
    parser.add_argument("--matrix-side", type=int, default=2048, help="rows of the matrices of the peak")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    options = parser.parse_args()
    try:
        facts = measure(options)
    except CompressError as error:
        parser.exit(error.exit_code, f"{error}\n")
    if options.json:
        print(json.dumps(facts, indent=1))
    else:
        show(facts, Console())
    return 0


if __name__ == "__main__":
    sys.exit(main())
