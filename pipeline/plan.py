"""What a run would do, for `--dry-run`: teacher, student, steps and time, nothing written."""

from pathlib import Path

import torch

from compress.exporters.targets import load_target
from compress.pipeline.device import choose_compute
from compress.pipeline.distillation.schedule import (
    Schedule,
    expected_seconds,
    left_for_distillation,
    plan_schedule,
    seconds_after,
)
from compress.pipeline.distillation.stage import speed_here
from compress.pipeline.holdout import open_holdout
from compress.pipeline.labels import check_label_count, read_labels
from compress.pipeline.lte import embed_labels
from compress.pipeline.probes import with_enough_probes
from compress.pipeline.quantize import check_exclusions
from compress.pipeline.records import Finding, Record
from compress.pipeline.settings import Settings
from compress.pipeline.students import plan_student, size_findings
from compress.pipeline.teacher import open_teacher
from compress.pipeline.teacher.diagnosis import by_gravity


class Plan(Record):
    """A run before it happens."""

    teacher: str
    teacher_parameters: int
    student: str
    student_parameters: int
    inherited: bool
    classes: int
    target: str
    precisions: tuple[str, ...]
    warmup_rounds: int
    rounds: int
    kd_steps: int
    device: str
    findings: tuple[Finding, ...]
    """About the teacher and its class names, gravest first."""
    expected_seconds: float
    """For distillation, by timing one step of each kind on this machine."""
    seconds_after: float
    """For quantization, export and validation on probes, by the same measure."""
    real_images: int = 0
    """That are measured beside the probes."""

    def facts(self) -> dict[str, str]:
        """The plan in words."""
        ratio = self.student_parameters / self.teacher_parameters
        origin = "from the teacher's blocks" if self.inherited else "from random weights"
        measured = {"real images": f"{self.real_images:,}, measured beside the probes"} if self.real_images else {}
        return {
            "teacher": f"{self.teacher}, {self.teacher_parameters:,} parameters, {self.classes} classes",
            "student": f"{self.student}, {self.student_parameters:,} parameters ({ratio:.0%} of the teacher), {origin}",
            "target": f"{self.target}: {', '.join(self.precisions)}",
            "steps": f"{counted(self.warmup_rounds, 'round')} of warm-up, {self.rounds} of learning, "
            f"{self.kd_steps:,} student steps",
            "device": self.device,
            "expected time": f"about {self.expected_seconds / 60:.1f} min of distillation, "
            f"then {self.seconds_after / 60:.1f} min of quantization, export and validation",
            **measured,
        }


def counted(number: int, thing: str) -> str:
    """`1 round` or `2 rounds`."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def budget_findings(budget_seconds: float | None, least_seconds: float) -> tuple[Finding, ...]:
    """Whether a run of one round of each kind would already take longer than it may; forecasts are a tenth off at times."""
    if budget_seconds is None or least_seconds <= 1.1 * budget_seconds:
        return ()
    return (
        Finding(
            severity="warning",
            topic="budget",
            message=f"The budget of {budget_seconds:.0f} s is too short: the least that a run takes here is about "
            f"{least_seconds:.0f} s.",
            advice="Raise --budget; fewer held-out images (--set probes.batches=2) take less, too.",
        ),
    )


def make_plan(checkpoint: Path, labels_file: Path, settings: Settings, holdout: Path | None = None) -> Plan:
    """Open the inputs, choose the student, time this machine.

    Raises:
        CompressError: as the run itself would.
    """
    labels = read_labels(labels_file)
    compute = choose_compute(settings)
    teacher = open_teacher(checkpoint, **dict(settings.teacher))
    record = teacher.record
    settings = with_enough_probes(settings, record.num_classes)
    check_label_count(labels, record.num_classes)
    student, target = plan_student(record, settings.student), load_target(settings.target)
    check_exclusions(student, settings.quantize, target)
    real_images = len(open_holdout(holdout, labels, record.input)) if holdout else 0
    embed = settings.embed
    embeddings, names = embed_labels(
        labels,
        encoder=embed.text_encoder,
        prompt=embed.prompt,
        synonyms=embed.synonyms,
        allow_download=embed.allow_download,
        carried=record.labels,
    )
    teacher = teacher.to(compute.device, torch.channels_last)
    speed = speed_here(teacher, torch.from_numpy(embeddings), student, settings, compute)
    after = seconds_after(speed, settings, quantizes=target.int8 is not None)
    budget = left_for_distillation(settings.budget_seconds, after)
    schedule = plan_schedule(settings.distill, settings.probes, speed, budget)
    least = Schedule(warmup_rounds=1, rounds=1, deadline=None)
    least_seconds = expected_seconds(least, speed, settings.distill, settings.probes) + after
    short = budget_findings(settings.budget_seconds, least_seconds)
    return Plan(
        teacher=record.architecture,
        teacher_parameters=record.parameters,
        student=student.name,
        student_parameters=student.parameters,
        inherited=student.inherited,
        classes=record.num_classes,
        target=target.title,
        precisions=target.precisions,
        warmup_rounds=schedule.warmup_rounds,
        rounds=schedule.rounds,
        kd_steps=schedule.rounds * settings.distill.kd_steps,
        device=compute.title,
        findings=by_gravity(record.findings + names.findings + size_findings(student, record) + short),
        expected_seconds=round(expected_seconds(schedule, speed, settings.distill, settings.probes), 1),
        seconds_after=round(after, 1),
        real_images=real_images,
    )
