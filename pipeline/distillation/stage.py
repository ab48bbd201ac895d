"""Stage: a teacher and label-text embeddings to a student, the pool it learned from, and held-out probes."""

import time
from itertools import count
from pathlib import Path

import torch
from torch import Tensor

from compress.exporters.bundle import write_file
from compress.pipeline.device import Compute
from compress.pipeline.distillation.learner import Learner, Monitor
from compress.pipeline.distillation.loop import Distillation
from compress.pipeline.distillation.schedule import (
    Schedule,
    Speed,
    expected_seconds,
    plan_schedule,
    replan,
    seconds_for,
)
from compress.pipeline.probes import held_out_images, make_probes, teacher_logits, with_enough_probes
from compress.pipeline.progress import Progress
from compress.pipeline.records import DistillRecord, HistoryPoint
from compress.pipeline.settings import Settings
from compress.pipeline.stages import SECONDS_FILE
from compress.pipeline.students import StudentPlan
from compress.pipeline.synthesis.pool import as_float
from compress.pipeline.synthesis.synthesiser import Synthesiser
from compress.pipeline.teacher import Teacher
from compress.pipeline.tensor_files import write_tensors

STUDENT_FILE, POOL_FILE, PROBES_FILE = "student.safetensors", "pool.safetensors", "probes.npz"


def distill(
    teacher: Teacher,
    embeddings: Tensor,
    plan: StudentPlan,
    settings: Settings,
    compute: Compute,
    folder: Path,
    progress: Progress,
    budget_seconds: float | None = None,
) -> DistillRecord:
    """Distil the teacher into the planned student; continues from what an interrupted run left in `folder`.

    Writes `student.safetensors`, `pool.safetensors` and `probes.npz`.

    Args:
        embeddings: label-text embeddings `[num_classes, dimension]`.
        budget_seconds: time for this stage; None runs the rounds of the settings.
    """
    teacher = teacher.to(compute.device, torch.channels_last)
    settings = with_enough_probes(settings, len(embeddings))
    started = time.monotonic()
    run = Distillation(teacher, embeddings, plan, settings, compute, folder)
    first, schedule = run.restore() or (0, _schedule(teacher, embeddings, plan, settings, compute, budget_seconds))
    if schedule.speed and budget_seconds and _least_seconds(schedule.speed, settings) > budget_seconds:
        progress.note("The budget is too short for one round and the probes: this run will take longer.")
    monitor = _monitor(teacher, embeddings, settings, compute)
    spent = run.history[-1].seconds if run.history else 0.0
    notes: tuple[str, ...] = ()
    for number in count(first):
        if number == schedule.warmup_rounds:
            schedule = replan(schedule, [point.seconds for point in run.history], settings.distill)
        if number >= schedule.total:
            break
        if run.best and _too_late(run.history, schedule.deadline):
            notes = (f"The budget ended distillation after {number} of {schedule.total} planned rounds.",)
            break
        run.history.append(run.run_round(number, schedule, monitor, started - spent))
        run.save(number, schedule)
        write_file(folder / SECONDS_FILE, str(run.history[-1].seconds).encode())
        progress.advance(number + 1, schedule.total, _figures(run.history[-1]))
    return _finish(run, schedule, teacher, embeddings, plan, notes)


def speed_here(teacher: Teacher, embeddings: Tensor, plan: StudentPlan, settings: Settings, compute: Compute) -> Speed:
    """Time the two kinds of work with a synthesiser and a learner that are thrown away."""
    learner = Learner(teacher, plan, settings, compute)
    # A few steps stand for all: what a batch costs once must not be counted with each of them.
    few = settings.synthesis.model_copy(update={"steps": min(4, settings.synthesis.steps)})
    synthesiser = Synthesiser(teacher, embeddings, few, compute)
    images = as_float(synthesiser.make().images)
    batch = images.repeat(-(-settings.distill.batch_size // len(images)), 1, 1, 1)[: settings.distill.batch_size]
    scale = settings.synthesis.steps / few.steps
    return Speed(
        synthesis=scale * seconds_for(synthesiser.make, compute),
        adversarial_synthesis=scale * seconds_for(lambda: synthesiser.make(learner.student), compute),
        kd_step=seconds_for(lambda: learner.step(batch, learner.first_rate), compute),
    )


def _schedule(
    teacher: Teacher,
    embeddings: Tensor,
    plan: StudentPlan,
    settings: Settings,
    compute: Compute,
    budget_seconds: float | None,
) -> Schedule:
    """The rounds to run, planned from a measurement where there is a budget."""
    speed = None if budget_seconds is None else speed_here(teacher, embeddings, plan, settings, compute)
    return plan_schedule(settings.distill, settings.probes, speed, budget_seconds)


def _monitor(teacher: Teacher, embeddings: Tensor, settings: Settings, compute: Compute) -> Monitor:
    """Made by seeds of its own, so that a continued run sees the same images as the run before it."""
    images, _ = held_out_images(
        teacher, embeddings, settings, compute, purpose="monitor", batches=settings.probes.monitor_batches, generators=1
    )
    return Monitor(images, teacher_logits(teacher, images).argmax(1))


def _finish(
    run: Distillation,
    schedule: Schedule,
    teacher: Teacher,
    embeddings: Tensor,
    plan: StudentPlan,
    notes: tuple[str, ...],
) -> DistillRecord:
    """Write the stage's files; what is only for continuing is dropped by the stage runner, once nothing can get lost."""
    write_tensors(run.folder / STUDENT_FILE, run.best)
    run.pool.save(run.folder / POOL_FILE)
    probes = make_probes(teacher, embeddings, run.settings, run.compute)
    probes.save(run.folder / PROBES_FILE)
    learned = [point for point in run.history if point.monitor_agreement is not None]
    return DistillRecord(
        student=plan.name,
        spec=plan.spec.model_dump(mode="json"),
        inherited=plan.inherited,
        kept_blocks=run.learner.kept_blocks,
        parameters=plan.parameters,
        warmup_rounds=len(run.history) - len(learned),
        rounds=len(learned),
        planned_rounds=schedule.rounds,
        kd_steps=run.history[-1].kd_steps,
        pool_images=len(run.pool),
        probes=len(probes.images),
        monitor_agreement=run.best_agreement,
        history=tuple(run.history),
        notes=notes,
    )


def _least_seconds(speed: Speed, settings: Settings) -> float:
    """What no run can do without: a round of each kind, and the held-out images."""
    least = Schedule(warmup_rounds=1, rounds=1, deadline=None)
    return expected_seconds(least, speed, settings.distill, settings.probes)


def _too_late(history: list[HistoryPoint], deadline: float | None) -> bool:
    """Whether another round like the last would end after the deadline."""
    if deadline is None:
        return False
    last = history[-1].seconds - (history[-2].seconds if len(history) > 1 else 0.0)
    return history[-1].seconds + last > deadline


def _figures(point: HistoryPoint) -> str:
    if point.monitor_agreement is None:
        return f"warm-up, synthesis loss {point.synthesis_loss:.2f}"
    return f"loss {point.kd_loss:.3f}, probe agreement {point.monitor_agreement:.1%}"
