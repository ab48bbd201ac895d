"""Every artifact against the teacher, on probes that nothing was trained on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compress.exporters.divergence import layer_noise, start_of_loss
from compress.exporters.runners import Logits, OnnxRunner, Runner, TorchRunner, median_latency_ms
from compress.exporters.targets import Gates, Target
from compress.pipeline.adequacy import assess_adequacy
from compress.pipeline.copies import copied, repeated
from compress.pipeline.device import cpu_name
from compress.pipeline.fidelity import measure_artifact, measure_step, measures, weakest
from compress.pipeline.likeness import batch_norm_shift
from compress.pipeline.probes import Probes
from compress.pipeline.records import (
    ArtifactFidelity,
    ExportedGraph,
    LedgerRow,
    ProbeAdequacy,
    TeacherCost,
    ValidateRecord,
)
from compress.pipeline.teacher import Teacher

RowT = TypeVar("RowT", bound=LedgerRow)

AT_ONCE = 256
"""Probes that are floats at the same time."""

MOST_LOST = 0.01
"""Of the agreement with the teacher, by one step; where more is lost, it is looked for in the layers."""

LAYER_IMAGES = 64
"""Probes that layers are compared on."""


class Origin(NamedTuple):
    """What of the probes only the student's pool and the teacher can tell; a delivered folder has neither."""

    copied: int
    """Probes that are like images which the student learned from."""
    batch_norm_shift: float | None
    """How far those made for a class lie from the teacher's training, see `likeness`."""


class Examination(NamedTuple):
    """What every artifact is asked, and what it is judged by."""

    probes: Probes
    gates: Gates
    labels: tuple[str, ...]
    adequacy: ProbeAdequacy

    @classmethod
    def on(cls, probes: Probes, origin: Origin, gates: Gates, labels: tuple[str, ...]) -> "Examination":
        """That on these probes, which are looked at first: inadequate ones carry no verdict, whatever is answered."""
        made = probes.made_for_a_class
        adequacy = assess_adequacy(
            probes.teacher_logits,
            probes.targets,
            made,
            unrecognised=probes.unrecognised,
            copied=origin.copied,
            repeated=repeated(torch.from_numpy(probes.images[made])),
            batch_norm_shift=origin.batch_norm_shift,
        )
        return cls(probes, gates, labels, adequacy)

    def answers(self, runner: Runner) -> Logits:
        """Logits `[N, K]` of all probes. Few are floats at a time: those of large images would fill the memory."""
        starts = range(0, len(self.probes.images), AT_ONCE)
        return np.concatenate([runner(self.shown(start, AT_ONCE)) for start in starts])

    def shown(self, start: int, count: int) -> NDArray[np.float32]:
        """Some of the probes, `[count, C, H, W]` in [0, 1]."""
        return self.probes.images[start : start + count].astype(np.float32) / np.float32(255)


@dataclass(frozen=True)
class Form:
    """A form of the student, and the logits `[N, K]` that its row of the ledger rests on."""

    row: LedgerRow
    logits: Logits


@dataclass(frozen=True)
class Examined(Form):
    """The same of one that is delivered."""

    row: ArtifactFidelity


def fidelity_of(
    path: Path,
    precision: str,
    runner: Runner,
    examination: Examination,
    timed: Runner | None = None,
    origin: Form | None = None,
    *,
    on_device: bool = True,
) -> Examined:
    """One file by what its runner answers; `timed` gives the latency where that runner is not the one of production,
    `on_device` says whether it stands for that of the device. `origin` is the artifact that it was made from."""
    with runner:
        logits = examination.answers(runner)
        latency_ms = latency_of(timed or runner, examination)
    size_bytes = path.stat().st_size
    return judged(path.name, precision, size_bytes, latency_ms, logits, examination, origin, timed_on_device=on_device)


def latency_of(runner: Runner, examination: Examination) -> float:
    """Median milliseconds for one probe."""
    return median_latency_ms(runner, examination.shown(0, 1), repeats=25, warmup=10, times=3)


def judged(
    artifact: str,
    precision: str,
    size_bytes: int,
    latency_ms: float | None,
    logits: Logits,
    examination: Examination,
    origin: Form | None = None,
    *,
    timed_on_device: bool = True,
) -> Examined:
    """An artifact by its answers, wherever it ran."""
    probes = examination.probes
    row = measure_artifact(
        artifact,
        precision=precision,
        size_bytes=size_bytes,
        latency_ms=latency_ms,
        teacher_logits=probes.teacher_logits,
        student_logits=logits,
        kinds=probes.kind,
        groups=probes.origin,
        generators=probes.generator,
        gates=examination.gates,
        labels=examination.labels,
        timed_on_device=timed_on_device,
        adequate=examination.adequacy.adequate,
    )
    return Examined(_with_step(row, logits, origin, probes), logits)


def undelivered(
    form: str, precision: str, runner: Runner, examination: Examination, origin: Form | None = None
) -> Form:
    """A form of the student that the delivered ones were made from; no gate is about it."""
    probes = examination.probes
    with runner:
        logits = examination.answers(runner)
    found = measures(probes.teacher_logits, logits, probes.origin)
    row = LedgerRow(artifact=form, precision=precision, **dict(found))
    return Form(_with_step(row, logits, origin, probes), logits)


def _with_step(row: RowT, logits: Logits, origin: Form | None, probes: Probes) -> RowT:
    """The row, set against the form of the student that it was made from."""
    if origin is None:
        return row
    step = measure_step(origin.row, row, origin.logits, logits, probes.origin)
    return row.model_copy(update={"step": step})


def examine_files(
    weights: Path,
    student: nn.Module,
    folder: Path,
    graphs: Sequence[ExportedGraph],
    target: Target,
    examination: Examination,
    origin: Form | None = None,
) -> tuple[Examined, list[Examined]]:
    """The student in PyTorch, made from `origin`, and every ONNX file that was made from it."""
    runner = TorchRunner(student)
    in_torch = fidelity_of(weights, "fp32", runner, examination, origin=origin, on_device=target.timed_on_cpu)
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
            found = replace(found, row=_with_start_of_loss(found.row, folder / graphs[0].file_name, path, examination))
        examined.append(found)
    return examined


def runner_of(graph: Path, target: Target) -> Runner:
    """What answers for a graph as its device would."""
    return OnnxRunner(graph, exact=target.runtime == "tensorrt")


def _with_start_of_loss(row: ArtifactFidelity, origin: Path, path: Path, examination: Examination) -> ArtifactFidelity:
    """The row with the layer in which its step's loss begins, where it lost more than its share."""
    if row.step is None or row.step.lost <= MOST_LOST:
        return row
    start = start_of_loss(layer_noise(origin, path, examination.shown(0, LAYER_IMAGES)))
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
    shift = batch_norm_shift(teacher, images[torch.from_numpy(probes.made_for_a_class)])
    return Origin(copied(images, pool), shift)


def concluded(
    examined: Sequence[Examined],
    decisive: Sequence[Examined],
    examination: Examination,
    undelivered: Sequence[Form] = (),
    teacher: TeacherCost | None = None,
) -> ValidateRecord:
    """The ledger and its verdict, which is that of the weakest of the `decisive` artifacts."""
    probes = examination.probes
    shipped = weakest([found.row for found in decisive])
    kinds, counts = np.unique(probes.kind, return_counts=True)
    return ValidateRecord(
        probes=len(probes.images),
        probe_images=len(np.unique(probes.origin)),
        probe_kinds=dict(zip(kinds.tolist(), counts.tolist(), strict=True)),
        adequacy=examination.adequacy,
        teacher=teacher,
        undelivered=tuple(form.row for form in undelivered),
        ledger=tuple(found.row for found in examined),
        shipped=shipped.artifact,
        verdict=shipped.verdict,
        cpu=cpu_name(),
    )
