"""Every artifact against the teacher, on probes that nothing was trained on."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from compress.exporters.runners import OnnxRunner, Runner, median_latency_ms
from compress.exporters.targets import Gates, Target
from compress.pipeline.device import cpu_name
from compress.pipeline.fidelity import assess_adequacy, measure_artifact, overall_verdict, weakest
from compress.pipeline.probes import Probes
from compress.pipeline.records import ArtifactFidelity, ExportedGraph, ValidateRecord


class Examination(NamedTuple):
    """What every artifact is asked, and what it is judged by."""

    probes: Probes
    gates: Gates
    labels: tuple[str, ...]


def fidelity_of(
    path: Path, precision: str, runner: Runner, examination: Examination, timed: Runner | None = None
) -> ArtifactFidelity:
    """One file by what its runner answers; `timed` gives the latency where that runner is not the one of production."""
    probes, gates, labels = examination
    images = probes.images.astype(np.float32) / np.float32(255)
    with runner:
        return measure_artifact(
            path.name,
            precision=precision,
            size_bytes=path.stat().st_size,
            latency_ms=median_latency_ms(timed or runner, images[:1], repeats=50, warmup=10),
            teacher_logits=probes.teacher_logits,
            student_logits=runner(images),
            kinds=probes.kind,
            gates=gates,
            labels=labels,
        )


def graph_rows(
    folder: Path, graphs: Sequence[ExportedGraph], target: Target, examination: Examination
) -> list[ArtifactFidelity]:
    """Every ONNX file, in ONNX Runtime. TensorRT rounds where the graph says; ONNX Runtime's own rewriting would elsewhere."""
    rows = []
    for graph in graphs:
        path = folder / graph.file_name
        with OnnxRunner(path) as timed:
            runner = OnnxRunner(path, exact=target.runtime == "tensorrt")
            rows.append(fidelity_of(path, graph.precision, runner, examination, timed))
    return rows


def decisive_rows(rows: Sequence[ArtifactFidelity], graphs: Sequence[ExportedGraph]) -> Sequence[ArtifactFidelity]:
    """Of the graphs' rows, those that the device may run: which int8 file its engine is built from, its TensorRT decides."""
    return rows[-2:] if graphs[-1].typed else rows[-1:]


def concluded(
    ledger: Sequence[ArtifactFidelity], decisive: Sequence[ArtifactFidelity], probes: Probes, copied: int
) -> ValidateRecord:
    """The ledger and its verdict, which is that of the weakest of the `decisive` rows.

    `copied` probes are like images that the student learned from.
    """
    num_classes = probes.teacher_logits.shape[1]
    adequacy = assess_adequacy(probes.teacher_logits, probes.targets, probes.kind, num_classes, copied)
    shipped = weakest(decisive, adequacy)
    kinds, counts = np.unique(probes.kind, return_counts=True)
    return ValidateRecord(
        probes=len(probes.images),
        probe_kinds=dict(zip(kinds.tolist(), counts.tolist(), strict=True)),
        adequacy=adequacy,
        ledger=tuple(ledger),
        shipped=shipped.artifact,
        verdict=overall_verdict(shipped, adequacy),
        cpu=cpu_name(),
    )
