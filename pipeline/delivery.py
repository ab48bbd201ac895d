"""The last stage: everything that was found out as one report, and the delivered folder around it."""

import json
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from compress.exporters.bundle import deliver, write_manifest
from compress.pipeline.distillation.schedule import evenly
from compress.pipeline.distillation.stage import STUDENT_FILE
from compress.pipeline.records import (
    DistillRecord,
    EmbeddingRecord,
    ExportRecord,
    QuantizeRecord,
    TeacherRecord,
    ValidateRecord,
)
from compress.pipeline.report import ReportData, probe_samples, render
from compress.pipeline.settings import Settings
from compress.pipeline.stages import STAGE_FILE, package_versions
from compress.pipeline.workspace import STAGES, Workspace


def collect(
    space: Workspace,
    teacher: TeacherRecord,
    embedding: EmbeddingRecord,
    student: DistillRecord,
    quantized: QuantizeRecord | None,
    exported: ExportRecord,
    validated: ValidateRecord,
) -> ReportData:
    """All records, and the settings as they were resolved."""
    return ReportData(
        title=f"{space.checkpoint.stem} for {space.target.name}",
        target=space.target,
        teacher=teacher,
        embedding=embedding,
        distill=student,
        quantize=quantized,
        export=exported,
        validation=validated,
        labels=embedding.labels,
        settings=resolved(space, student).model_dump(mode="json"),
        timings={name: result.seconds for name, result in space.results.items()},
        seed=space.settings.seed,
        versions=package_versions(),
    )


def resolved(space: Workspace, student: DistillRecord) -> Settings:
    """The settings with everything decided that was left open; fed back, they give the same student."""
    settings, record = space.settings, space.teacher.record
    as_planned = student.annealed == evenly(student.rounds)
    rounds = {
        "warmup_rounds": student.warmup_rounds,
        "rounds": student.rounds,
        "annealed": None if as_planned else student.annealed,
    }
    square = record.input.height == record.input.width  # One number cannot say more; the checkpoint says it again.
    size = record.input.height if square else None
    source = {"input_size": size, "mean": record.input.mean, "std": record.input.std}
    return settings.model_copy(
        update={
            "budget_seconds": None,
            "device": str(space.compute.device),
            "precision": "bf16" if space.compute.bf16 else "fp32",
            "threads": torch.get_num_threads(),
            "teacher": settings.teacher.model_copy(update=source),
            "student": settings.student.model_copy(update={"name": student.student}),
            "distill": settings.distill.model_copy(update=rounds),
        }
    )


def package(space: Workspace, report: ReportData) -> None:
    """Fill the output folder, its manifest last."""
    started = time.monotonic()
    space.progress.stage_started(len(STAGES), len(STAGES), STAGES[-1])
    grids = _class_grids(space, report.distill)
    files = {
        **_exported(space.results["export"].folder),
        **render(report, probe_samples(space.probes.images, space.probes.kind), grids),
        **grids,  # The page holds them, too, but a page is no place to get them back from.
        "student.safetensors": space.file("distill", STUDENT_FILE),
        "student.json": _student_json(report),
        "probes.npz": space.probes_file,
        "labels.txt": "".join(f"{label}\n" for label in report.labels).encode(),
        "settings.yaml": yaml.safe_dump(report.settings, sort_keys=False, allow_unicode=True).encode(),
    }
    deliver(space.folder, files)
    write_manifest(space.folder, names=files, provenance=_provenance(report))
    summary = f"{len(files) + 1} files in {space.folder}"
    space.progress.stage_finished(summary, reused=False, seconds=time.monotonic() - started)


def _exported(folder: Path) -> dict[str, Path | bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != STAGE_FILE)
    return {path.relative_to(folder).as_posix(): path for path in files}


def _provenance(report: ReportData) -> dict[str, Any]:
    validation = report.validation
    return {
        "verdict": validation.verdict,
        "rejected": validation.verdict != "PASS",
        "judged": validation.shipped,
        "teacher_sha256": report.teacher.sha256,
        "labels": list(report.labels),
        "text_encoder_sha256": report.embedding.encoder_sha256,
        "seed": report.seed,
        "target": report.target.name,
        "stage_seconds": report.timings,
        "training_data": "none; synthetic images only",
    }


def _student_json(report: ReportData) -> bytes:
    content = {
        "architecture": report.distill.spec,
        "input": report.teacher.input.model_dump(mode="json"),
        "weights": "student.safetensors",
    }
    return json.dumps(content, indent=2).encode() + b"\n"


def _class_grids(space: Workspace, student: DistillRecord) -> dict[str, bytes]:
    return {grid.file_name: space.file("distill", grid.file_name).read_bytes() for grid in student.samples}
