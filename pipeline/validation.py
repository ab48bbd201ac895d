"""Every artifact against the teacher, on probes that nothing was trained on."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compress.exporters.divergence import layer_noise, start_of_loss
from compress.exporters.runners import Logits, OnnxRunner, Runner, TorchRunner, median_latency_ms
from compress.exporters.targets import Gates, Target
from compress.pipeline.copies import copied, repeated
from compress.pipeline.device import cpu_name
from compress.pipeline.fidelity import (
    CLASS_CONDITIONAL,
    assess_adequacy,
    measure_artifact,
    measure_step,
    overall_verdict,
    weakest,
)
from compress.pipeline.likeness import batch_norm_shift
from compress.pipeline.probes import Probes
from compress.pipeline.records import ArtifactFidelity, ExportedGraph, ValidateRecord
from compress.pipeline.teacher import Teacher

MOST_LOST = 0.01
"""Of the agreement with the teacher, by one step; where more is lost, it is looked for in the layers."""

LAYER_IMAGES = 64
"""Probes that layers are compared on."""


class Examination(NamedTuple):
    """What every artifact is asked, and what it is judged by."""

    probes: Probes
    gates: Gates
    labels: tuple[str, ...]

    @property
    def images(self) -> NDArray[np.float32]:
        """The probes, `[N, C, H, W]` in [0, 1]."""
        return self.probes.images.astype(np.float32) / np.float32(255)


class Origin(NamedTuple):
    """What of the probes only the student's pool and the teacher can tell; a delivered folder has neither."""

    copied: int
    """Probes that are like images which the student learned from."""
    batch_norm_shift: float | None
    """How far those made for a class lie from the teacher's training, see `likeness`."""


class Examined(NamedTuple):
    """An artifact's row of the ledger, and the logits `[N, K]` that it rests on."""

    row: ArtifactFidelity
    logits: Logits


def fidelity_of(
    path: Path,
    precision: str,
    runner: Runner,
    examination: Examination,
    timed: Runner | None = None,
    origin: Examined | None = None,
    *,
    on_device: bool = True,
) -> Examined:
    """One file by what its runner answers; `timed` gives the latency where that runner is not the one of production,
    `on_device` says whether it stands for that of the device. `origin` is the artifact that it was made from."""
    images = examination.images
    with runner:
        logits = runner(images)
        latency_ms = median_latency_ms(timed or runner, images[:1], repeats=25, warmup=10, times=3)
    size_bytes = path.stat().st_size
    return judged(path.name, precision, size_bytes, latency_ms, logits, examination, origin, timed_on_device=on_device)


def judged(
    artifact: str,
    precision: str,
    size_bytes: int,
    latency_ms: float | None,
    logits: Logits,
    examination: Examination,
    origin: Examined | None = None,
    *,
    timed_on_device: bool = True,
) -> Examined:
    """An artifact by its answers, wherever it ran."""
    probes, gates, labels = examination
    row = measure_artifact(
        artifact,
        precision=precision,
        size_bytes=size_bytes,
        latency_ms=latency_ms,
        teacher_logits=probes.teacher_logits,
        student_logits=logits,
        kinds=probes.kind,
        gates=gates,
        labels=labels,
        timed_on_device=timed_on_device,
    )
    if origin is not None:
        row = row.model_copy(update={"step": measure_step(origin.row, row, origin.logits, logits)})
    return Examined(row, logits)


def examine_files(
    weights: Path,
    student: nn.Module,
    folder: Path,
    graphs: Sequence[ExportedGraph],
    target: Target,
    examination: Examination,
) -> tuple[Examined, list[Examined]]:
    """The student in PyTorch, and every ONNX file that was made from it."""
    in_torch = fidelity_of(weights, "fp32", TorchRunner(student), examination, on_device=target.timed_on_cpu)
    return in_torch, examine_graphs(folder, graphs, target, examination, in_torch)


def examine_graphs(
    folder: Path, graphs: Sequence[ExportedGraph], target: Target, examination: Examination, in_torch: Examined
) -> list[Examined]:
    """Every ONNX file, in ONNX Runtime. TensorRT rounds where the graph says; ONNX Runtime's own rewriting would elsewhere.

    The first is in fp32 and made from the student in PyTorch; the others say the same in fewer bits.
    """
    examined: list[Examined] = []
    for graph in graphs:
        path = folder / graph.file_name
        with OnnxRunner(path) as timed:
            origin, runner = examined[0] if examined else in_torch, runner_of(path, target)
            on_device = target.timed_on_cpu
            found = fidelity_of(path, graph.precision, runner, examination, timed, origin, on_device=on_device)
        if examined:
            found = found._replace(row=_with_start_of_loss(found.row, folder / graphs[0].file_name, path, examination))
        examined.append(found)
    return examined


def runner_of(graph: Path, target: Target) -> Runner:
    """What answers for a graph as its device would."""
    return OnnxRunner(graph, exact=target.runtime == "tensorrt")


def _with_start_of_loss(row: ArtifactFidelity, origin: Path, path: Path, examination: Examination) -> ArtifactFidelity:
    """The row with the layer in which its step's loss begins, where it lost more than its share."""
    if row.step is None or row.step.lost <= MOST_LOST:
        return row
    start = start_of_loss(layer_noise(origin, path, examination.images[:LAYER_IMAGES]))
    return row.model_copy(update={"step": row.step.model_copy(update={"starts_in": start})})


def decisive(examined: Sequence[Examined], graphs: Sequence[ExportedGraph]) -> Sequence[Examined]:
    """Of the graphs, those that the device may run: which int8 file its engine is built from, its TensorRT decides."""
    return examined[-2:] if graphs[-1].typed else examined[-1:]


def made_from(onnx_sha256: str | None, graphs: Sequence[ExportedGraph], examined: Sequence[Examined]) -> Examined:
    """The graph that an engine was built from; the one for TensorRT up to 10 where its hash is not known."""
    found = [each for each, graph in zip(examined, graphs, strict=True) if graph.sha256 == onnx_sha256]
    return (found or decisive(examined, graphs))[0]


def origin_of(probes: Probes, pool: Tensor, teacher: Teacher) -> Origin:
    """What the pool, uint8 `[M, C, H, W]`, and the teacher say of the probes."""
    images = torch.from_numpy(probes.images)
    shift = batch_norm_shift(teacher, images[torch.from_numpy(probes.kind == CLASS_CONDITIONAL)])
    return Origin(copied(images, pool), shift)


def concluded(
    examined: Sequence[Examined], decisive: Sequence[Examined], probes: Probes, origin: Origin
) -> ValidateRecord:
    """The ledger and its verdict, which is that of the weakest of the `decisive` artifacts."""
    adequacy = assess_adequacy(
        probes.teacher_logits,
        probes.targets,
        probes.kind,
        probes.teacher_logits.shape[1],
        copied=origin.copied,
        repeated=repeated(torch.from_numpy(probes.images[probes.kind == CLASS_CONDITIONAL])),
        batch_norm_shift=origin.batch_norm_shift,
    )
    shipped = weakest([found.row for found in decisive], adequacy)
    kinds, counts = np.unique(probes.kind, return_counts=True)
    return ValidateRecord(
        probes=len(probes.images),
        probe_kinds=dict(zip(kinds.tolist(), counts.tolist(), strict=True)),
        adequacy=adequacy,
        ledger=tuple(found.row for found in examined),
        shipped=shipped.artifact,
        verdict=overall_verdict(shipped, adequacy),
        cpu=cpu_name(),
    )
