"""The whole pipeline, in its order: a teacher and its class names in, a verified edge model out."""

import json
import time
from dataclasses import dataclass
from pathlib import Path

from compress.exporters.bundle import claim_output_folder, friendly_os_errors, write_file
from compress.pipeline import steps
from compress.pipeline.delivery import collect, package
from compress.pipeline.distillation.tensorboard import require_tensorboard
from compress.pipeline.holdout import open_holdout
from compress.pipeline.labels import check_label_count, read_labels
from compress.pipeline.progress import Progress
from compress.pipeline.quantize import check_exclusions
from compress.pipeline.report import ReportData
from compress.pipeline.settings import Settings
from compress.pipeline.stages import exclusive
from compress.pipeline.students import plan_student, size_findings
from compress.pipeline.workspace import COMMAND_FILE, Workspace


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """What a run leaves behind."""

    folder: Path
    report: ReportData
    reused: tuple[str, ...]
    """Stages that were not run again."""
    seconds: float


def run(
    checkpoint: Path,
    labels_file: Path,
    folder: Path,
    settings: Settings,
    progress: Progress,
    holdout: Path | None = None,
) -> Delivery:
    """Compress a teacher into `folder`; what an earlier run with the same inputs finished is not done again.

    The images of a `holdout` are measured beside the probes; no stage but the last measurement sees them, and only figures
    are written.

    Raises:
        CompressError: whatever a user can cause, see `errors.py`.
    """
    started = time.monotonic()
    labels = read_labels(labels_file)
    if settings.tensorboard:
        require_tensorboard()
    space = Workspace(checkpoint, folder, settings, progress)
    check_label_count(labels, space.teacher.record.num_classes)
    plan = plan_student(space.teacher.record, settings.student)
    check_exclusions(plan, settings.quantize, space.target)
    for finding in size_findings(plan, space.teacher.record):
        progress.note(str(finding), finding.severity)
    real = open_holdout(holdout, labels, space.teacher.record.input) if holdout else None
    for note in real.notes if real else ():
        progress.note(note)
    claim_output_folder(folder)
    with friendly_os_errors(folder), exclusive(folder / "work"):
        command = {"checkpoint": str(checkpoint.resolve()), "labels": str(labels_file.resolve())}
        write_file(folder / "work" / COMMAND_FILE, json.dumps(command).encode())
        teacher = steps.intake(space)
        embedding = steps.embed(space, labels)
        student = steps.distill(space, plan)
        quantized = steps.quantize(space, student)
        exported = steps.export(space, student, labels)
        validated = steps.validate(space, student, exported, labels, real)
        report = collect(space, teacher, embedding, student, quantized, exported, validated)
        package(space, report)
    reused = tuple(name for name, result in space.results.items() if result.reused)
    return Delivery(folder=folder, report=report, reused=reused, seconds=time.monotonic() - started)
