"""Stage: a teacher and label-text embeddings to a student, the pool it learned from, and held-out probes."""

import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from compress.exporters.targets import load_target
from compress.pipeline.device import Compute
from compress.pipeline.distillation.learner import Learner, Monitor
from compress.pipeline.distillation.loop import Distillation
from compress.pipeline.distillation.metrics_file import append_metrics, restart_metrics
from compress.pipeline.distillation.recovery import Recovery, eased, memory_for, without_frames
from compress.pipeline.distillation.samples import write_samples
from compress.pipeline.distillation.schedule import (
    Schedule,
    Speed,
    expected_seconds,
    left_for_distillation,
    plan_schedule,
    replan,
    seconds_after,
    seconds_for,
)
from compress.pipeline.distillation.tensorboard import Curves
from compress.pipeline.distillation.watching import Watch
from compress.pipeline.errors import DivergenceError, MemoryFullError
from compress.pipeline.parallel.world import World
from compress.pipeline.probes import held_out_images, make_probes, recognised, teacher_logits, with_enough_probes
from compress.pipeline.progress import Progress, Silent
from compress.pipeline.records import DistillRecord, HistoryPoint
from compress.pipeline.settings import Settings
from compress.pipeline.students import StudentPlan
from compress.pipeline.synthesis.pool import as_float
from compress.pipeline.synthesis.synthesiser import Synthesiser
from compress.pipeline.teacher import Teacher
from compress.pipeline.tensor_files import write_tensors

ResultT = TypeVar("ResultT")

STUDENT_FILE, POOL_FILE, PROBES_FILE = "student.safetensors", "pool.safetensors", "probes.npz"
LAST_FILE = "student.last.safetensors"
"""The weights of the last step, as they are before they are averaged."""
WARMUP_SAMPLES_FILE, FINAL_SAMPLES_FILE = "samples-warmup.png", "samples-final.png"


def distill(
    teacher: Teacher,
    embeddings: Tensor,
    plan: StudentPlan,
    settings: Settings,
    compute: Compute,
    folder: Path,
    progress: Progress,
    budget_seconds: float | None = None,
    curves: Curves | None = None,
    remarks: tuple[str, ...] = (),
) -> DistillRecord:
    """Distil the teacher into the planned student; continues from what an interrupted run left in `folder`.

    Writes `student.safetensors`, `student.last.safetensors`, `pool.safetensors` and `probes.npz`; a line of `metrics.jsonl`
    after each round;
    and pictures of synthetic images after the warm-up and at the end.

    Args:
        embeddings: label-text embeddings `[num_classes, dimension]`.
        budget_seconds: time for this stage and those after it; None runs the rounds of the settings.
        curves: where each round is told of, beside `metrics.jsonl`.
        remarks: what the record's notes begin with.

    Raises:
        MissingResourceError: the memory does not even hold small batches, or the disk is full.
        DivergenceError: what is learned is not finite, or the loss grows, lower rates notwithstanding.
    """
    recovery = Recovery(folder, settings, progress, compute.world, remarks)

    def attempt() -> DistillRecord:
        run, schedule, notes = _learn(teacher, embeddings, plan, settings, compute, recovery, budget_seconds, curves)
        return _finish(run, schedule, teacher, embeddings, plan, (*recovery.measures.notes, *notes))

    return _until_whole(attempt, recovery)


def assist(
    teacher: Teacher,
    embeddings: Tensor,
    plan: StudentPlan,
    settings: Settings,
    compute: Compute,
    folder: Path,
    budget_seconds: float | None,
) -> None:
    """What a process of a rank above 0 does while rank 0 runs `distill`; nothing is written into its `folder`."""
    recovery = Recovery(folder, settings, Silent(), compute.world)

    def attempt() -> None:
        run, *_ = _learn(teacher, embeddings, plan, settings, compute, recovery, budget_seconds, curves=None)
        run.joint_pool()

    _until_whole(attempt, recovery)


def _until_whole(attempt: Callable[[], ResultT], recovery: Recovery) -> ResultT:
    """Try, respond to trouble, and try again; what cannot be recovered from is raised."""
    while True:
        try:
            return attempt()
        except (MemoryFullError, DivergenceError) as met:
            trouble = without_frames(met)
        recovery.respond(trouble)


def _learn(
    teacher: Teacher,
    embeddings: Tensor,
    plan: StudentPlan,
    settings: Settings,
    compute: Compute,
    recovery: Recovery,
    budget_seconds: float | None,
    curves: Curves | None,
) -> tuple[Distillation, Schedule, tuple[str, ...]]:
    """All rounds from the last checkpoint on, if there is one; every process runs the same ones, as rank 0 plans them.

    Raises:
        MemoryFullError: the memory does not hold a batch.
        DivergenceError: what was learned cannot be used.
    """
    started, progress, folder, world = time.monotonic(), recovery.progress, recovery.folder, compute.world
    teacher = teacher.to(compute.device, torch.channels_last)
    checkpoint = recovery.checkpoint()
    settings = with_enough_probes(eased(settings, recovery.measures), len(embeddings))
    run = Distillation(teacher, embeddings, plan, settings, compute, folder, recovery.measures)
    if checkpoint is None:
        schedule, spent = _schedule(teacher, embeddings, plan, settings, compute, budget_seconds), 0.0
        run.save(schedule, spent)
    else:
        schedule, spent = run.restore(checkpoint)
    if checkpoint is not None:
        progress.note(f"It continues after {len(run.history)} of {schedule.total} rounds.")
    elif schedule.speed and budget_seconds and _least_seconds(schedule.speed, settings) > 1.1 * budget_seconds:
        progress.note("The budget is too short for one round and the probes: this run will take longer.")
    run.watch = Watch(settings, progress, spent)
    run.watch.begin(schedule, len(run.history))
    if world.leads:
        restart_metrics(folder, run.history)
    with memory_for("synthesis"):
        monitor = _monitor(teacher, embeddings, settings, compute, run.watch.held_out_batch)
    run.watch.expect(teacher, run.learner.average, monitor.images, compute)
    # What it takes to continue is a pause, and says nothing about the pace of rounds.
    epoch = started if checkpoint is None else time.monotonic() - spent
    notes: tuple[str, ...] = ()
    for number in count(len(run.history)):
        if number == schedule.warmup_rounds and world.leads:
            run.samples = [write_samples(run.pool, folder / WARMUP_SAMPLES_FILE, "after warm-up")]
        if number >= schedule.total:
            break
        if world.tell(bool(run.best) and _too_late(run.history, schedule.deadline)):
            notes = (f"The budget ended distillation after {number} of {schedule.total} planned rounds.",)
            break
        run.watch.begin(schedule, number)
        run.history.append(run.run_round(number, schedule, monitor, epoch))
        schedule = _told(world, replan(schedule, [point.seconds for point in run.history], settings.distill))
        run.save(schedule, run.history[-1].seconds)
        if world.leads:
            append_metrics(folder, run.history[-1])
        if curves:
            curves.add(run.history[-1])
        run.watch.ended(run.history[-1])
    return run, schedule, notes


def speed_here(teacher: Teacher, embeddings: Tensor, plan: StudentPlan, settings: Settings, compute: Compute) -> Speed:
    """Time the two kinds of work with a synthesiser and a learner that are thrown away."""
    learner = Learner(teacher, plan, settings, compute)
    # A few steps stand for all: what a batch costs once must not be counted with each of them.
    few = settings.synthesis.model_copy(update={"steps": min(4, settings.synthesis.steps)})
    synthesiser = Synthesiser(teacher, embeddings, few, compute)
    images = as_float(synthesiser.make().images)
    count = compute.world.share(settings.distill.batch_size)
    batch = images.repeat(-(-count // len(images)), 1, 1, 1)[:count]
    scale = settings.synthesis.steps / few.steps
    return Speed(
        synthesis=scale * seconds_for(synthesiser.make, compute),
        adversarial_synthesis=scale * seconds_for(lambda: synthesiser.make(learner.student), compute),
        kd_step=seconds_for(lambda: learner.step(batch, learner.first_rate), compute),
        ranks=compute.world.size,
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
    with memory_for("synthesis"):
        speed = None if budget_seconds is None else speed_here(teacher, embeddings, plan, settings, compute)
    left = None if speed is None else left_for_distillation(budget_seconds, _after(speed, settings))
    return _told(compute.world, plan_schedule(settings.distill, settings.probes, speed, left))


def _after(speed: Speed, settings: Settings) -> float:
    return seconds_after(speed, settings, quantizes=load_target(settings.target).int8 is not None)


def _told(world: World, schedule: Schedule) -> Schedule:
    """Rank 0's schedule: clocks differ, and a process that ran fewer rounds would leave the others waiting."""
    return Schedule.model_validate(world.tell(schedule.model_dump(mode="json")))


def _monitor(
    teacher: Teacher, embeddings: Tensor, settings: Settings, compute: Compute, on_batch: Callable[[], None]
) -> Monitor:
    """Made by seeds of its own, so that a continued run sees the same images as the run before it."""
    images, targets, _ = held_out_images(
        teacher,
        embeddings,
        settings,
        compute,
        purpose="monitor",
        batches=settings.probes.monitor_batches,
        generators=1,
        on_batch=on_batch,
    )
    images = images[recognised(teacher, images, targets.to(images.device))]  # as among the probes
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
    write_tensors(run.folder / LAST_FILE, run.learner.student.state_dict())
    pool = run.joint_pool()
    pool.save(run.folder / POOL_FILE)
    final = write_samples(pool, run.folder / FINAL_SAMPLES_FILE, "at the end")
    run.watch.begin(schedule, len(run.history))
    with memory_for("synthesis"):
        probes = make_probes(teacher, embeddings, run.settings, run.compute, on_batch=run.watch.held_out_batch)
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
        annealed=schedule.annealed[: len(learned)],
        kd_steps=run.history[-1].kd_steps,
        pool_images=len(pool),
        ranks=run.world.size,
        probes=len(probes.images),
        monitor_agreement=run.best_agreement,
        history=tuple(run.history),
        samples=(*run.samples, final),
        notes=notes,
    )


def _least_seconds(speed: Speed, settings: Settings) -> float:
    """What no run can do without: a round of each kind, the held-out images, and the stages after."""
    least = Schedule(warmup_rounds=1, rounds=1, deadline=None)
    return expected_seconds(least, speed, settings.distill, settings.probes) + _after(speed, settings)


def _too_late(history: list[HistoryPoint], deadline: float | None) -> bool:
    """Whether most of another round like the last would be after the deadline."""
    if deadline is None:
        return False
    last = history[-1].seconds - (history[-2].seconds if len(history) > 1 else 0.0)
    return history[-1].seconds + last / 2 > deadline
