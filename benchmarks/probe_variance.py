"""Does the interval of the verdict say how far the probes of another generator would be from these?

    python benchmarks/probe_variance.py FOLDER [--sets 24] [--batches 3] [--seed 100]

FOLDER is what `compress` delivered. So many sets of probes are made with its recipe, each by a generator of its own that was
freshly initialised, and each with a seed of its own. A row an artifact: the mean of its agreement with the teacher over the
sets, the standard deviation between them, the one that their intervals rest on, the ratio of the two variances, which is 1
where the intervals are right, and on how many sets the interval holds the mean of all.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from compress.pipeline.metrics import top_k_agreement
from compress.pipeline.probes import Probes
from compress.pipeline.proportions import percent, proportion_of
from compress.pipeline.records import Proportion
from real_agreement import answers, find_teacher
from verdict_calibration import fresh_probes


def agreement_on(sets: Sequence[Probes], logits_on: Sequence[np.ndarray]) -> list[Proportion]:
    """Of one artifact, on each set; `logits_on` are its answers `[N, K]`."""
    return [
        proportion_of(top_k_agreement(probes.teacher_logits, logits), probes.origin)
        for probes, logits in zip(sets, logits_on, strict=True)
    ]


def row_of(artifact: str, parts: Sequence[Proportion]) -> tuple[str, ...]:
    """What the table says of an artifact with that agreement on each set."""
    shares = np.array([part.value for part in parts])
    mean = float(shares.mean())
    said = np.mean([part.value * (1 - part.value) * part.design_effect / part.total for part in parts])
    held = sum(part.low <= mean <= part.high for part in parts)
    effect = np.mean([part.design_effect for part in parts])
    return (
        artifact,
        percent(mean),
        f"{100 * shares.std(ddof=1):.2f}",
        f"{100 * said**0.5:.2f}",
        f"{shares.var(ddof=1) / said:.2f}",
        f"{held} of {len(parts)}",
        f"{effect:.2f}",
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what `compress` delivered")
    parser.add_argument("--sets", type=int, default=24, help="of probes, each of a generator of its own")
    parser.add_argument("--batches", type=int, default=3, help="that a set's images are made in")
    parser.add_argument("--seed", type=int, default=100, help="of the first set; the others follow")
    options = parser.parse_args()
    teacher = find_teacher(options.folder, None)
    seeds = range(options.seed, options.seed + options.sets)
    sets = [fresh_probes(options.folder, teacher, options.batches, seed, generators=1) for seed in seeds]
    shown = [probes.images.astype(np.float32) / np.float32(255) for probes in sets]
    headings = ("artifact", "mean", "points between", "points said", "ratio of variances", "held", "design effect")
    table = Table(*headings, title=f"{len(sets)} sets of {len(sets[0].images):,} probes")
    with torch.inference_mode():
        for artifact, run in answers(options.folder, teacher).items():
            if artifact != "teacher":
                table.add_row(*row_of(artifact, agreement_on(sets, [run(images) for images in shown])))
    Console(width=140).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
