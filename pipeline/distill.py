"""The NAYER loop: images are synthesised, the student learns from the teacher on them, and again.

Every round is a function of the state before it and of a seed derived from the round's number, so a run that was
stopped and continued gives the same bits as one that was not, without any random state being stored.
"""

import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from compress.exporters.bundle import write_file
from compress.pipeline.checkpoint import (
    load_checkpoint,
    momentum_of,
    prefixed,
    remove_checkpoint,
    restore_momentum,
    save_checkpoint,
    under,
    write_tensors,
)
from compress.pipeline.device import Compute, derived_seed
from compress.pipeline.learner import Learner, Monitor
from compress.pipeline.probes import held_out_images, make_probes, teacher_logits, with_enough_probes
from compress.pipeline.progress import Progress
from compress.pipeline.records import DistillRecord, HistoryPoint
from compress.pipeline.schedule import Schedule, Speed, cosine, expected_seconds, plan_schedule, replan, seconds_for
from compress.pipeline.settings import Settings
from compress.pipeline.stages import SECONDS_FILE
from compress.pipeline.students import StudentPlan
from compress.pipeline.synthesis.dead_leaves import dead_leaves
from compress.pipeline.synthesis.losses import Statistics
from compress.pipeline.synthesis.pool import NO_CLASS, ImagePool, as_bytes, as_float
from compress.pipeline.synthesis.synthesiser import Synthesiser
from compress.pipeline.teacher import Teacher

STUDENT_FILE, POOL_FILE, PROBES_FILE = "student.safetensors", "pool.safetensors", "probes.npz"


class Distillation:
    """All that a run of the loop holds, and how it is saved and put back."""

    def __init__(
        self,
        teacher: Teacher,
        embeddings: Tensor,
        plan: StudentPlan,
        settings: Settings,
        compute: Compute,
        folder: Path,
    ) -> None:
        self.settings, self.compute, self.folder = settings, compute, folder
        self.learner = Learner(teacher, plan, settings, compute)
        torch.manual_seed(derived_seed(settings.seed, "generator"))
        self.synthesiser = Synthesiser(teacher, embeddings, settings.synthesis, compute)
        self.pool = ImagePool(settings.distill.pool_limit)
        self.best: dict[str, Tensor] = {}
        self.best_agreement = -1.0
        self.history: list[HistoryPoint] = []

    def run_round(self, number: int, schedule: Schedule, monitor: Monitor, epoch: float) -> HistoryPoint:
        """One round: fresh images into the pool; after the warm-up also steps of the student.

        `epoch` is when distillation began by the monotonic clock, pauses left out.
        """
        settings, learner = self.settings.distill, self.learner
        torch.manual_seed(derived_seed(self.settings.seed, "round", number))
        learning = number - schedule.warmup_rounds
        life = self.settings.synthesis.generator_life
        if number > 0 and (number % life == 0 if learning < 0 else learning % life == 0):
            self.synthesiser.renew()
        synthesis_loss = self._fill_pool(number, learning >= 0)
        kd_loss, agreement = float("nan"), None
        if learning == 0:
            learner.recalibrate(self.pool.images)
        if learning >= 0:
            losses = [learner.step(*lesson) for lesson in self._lessons(learning, schedule.rounds)]
            kd_loss = torch.stack(losses).mean().item()
            agreement = monitor.agreement(learner.average)
            self._keep_best(agreement)
        return HistoryPoint(
            round=number,
            kd_steps=max(learning + 1, 0) * settings.kd_steps,
            pool_images=len(self.pool),
            synthesis_loss=synthesis_loss,
            kd_loss=kd_loss,
            monitor_agreement=agreement,
            seconds=round(time.monotonic() - epoch, 3),
        )

    def save(self, number: int, schedule: Schedule) -> None:
        """Write a checkpoint after round `number` of a schedule."""
        generator = self.synthesiser.generator.state_dict()
        running = self.synthesiser.running or []
        tensors = {
            **prefixed("student", self.learner.student.state_dict()),
            **prefixed("average", self.learner.average.state_dict()),
            **prefixed("momentum", momentum_of(self.learner.optimiser)),
            **prefixed("generator", generator),
            **prefixed("best", self.best),
            **{
                f"running.{index:04}.{name}": getattr(value, name)
                for index, value in enumerate(running)
                for name in Statistics._fields
            },
        }
        numbers = {
            "best_agreement": self.best_agreement,
            "history": [point.model_dump(mode="json") for point in self.history],
            "threads": torch.get_num_threads(),
            "schedule": schedule.model_dump(mode="json"),
        }
        save_checkpoint(self.folder, number, tensors, numbers)

    def restore(self) -> tuple[int, Schedule] | None:
        """Continue from the last checkpoint: the first round to run, and the schedule that the rounds belong to.

        None when there is nothing to continue from. A schedule that was made from a measurement is kept, since the
        next measurement would differ.
        """
        found = load_checkpoint(self.folder)
        if found is None or found[2]["threads"] != torch.get_num_threads():
            remove_checkpoint(self.folder)
            return None
        number, tensors, numbers = found
        device = self.compute.device
        self.learner.student.load_state_dict(under("student", tensors))
        self.learner.average.load_state_dict(under("average", tensors))
        restore_momentum(self.learner.optimiser, under("momentum", tensors))
        self.synthesiser.generator.load_state_dict(under("generator", tensors))
        self.best = {name: tensor.to(device) for name, tensor in under("best", tensors).items()}
        running = under("running", tensors)
        layers = sorted({name.partition(".")[0] for name in running})
        self.synthesiser.running = [
            Statistics(*(running[f"{layer}.{name}"].to(device) for name in Statistics._fields)) for layer in layers
        ] or None
        self.best_agreement = numbers["best_agreement"]
        self.history = [HistoryPoint.model_validate(point) for point in numbers["history"]]
        for chunk in sorted(self.folder.glob("pool-*.safetensors")):
            made = load_file(chunk)
            self.pool.add(made["images"].to(device), made["targets"].to(device))
        return number + 1, Schedule.model_validate(numbers["schedule"])

    def _fill_pool(self, number: int, learning: bool) -> float:
        settings = self.settings.distill
        student = self.learner.student if learning else None
        made = [
            self.synthesiser.make(student) for _ in range(settings.batches if learning else settings.warmup_batches)
        ]
        images, targets = (
            torch.cat(parts) for parts in ([batch.images for batch in made], [batch.targets for batch in made])
        )
        images, targets = self._with_dead_leaves(images, targets)
        self.pool.add(images, targets)
        chunk = self.folder / f"pool-{number:05}.safetensors"
        write_tensors(chunk, {"images": images, "targets": targets})
        return sum(batch.loss for batch in made) / len(made)

    def _with_dead_leaves(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Join images that look more like photographs than what a teacher without batch norm can make a generator draw."""
        teacher = self.learner.teacher
        if teacher.bn_statistics:
            return images, targets
        count = round(self.settings.synthesis.dead_leaves * len(images))
        leaves = as_bytes(dead_leaves(count, teacher.record.input, images.device))
        return torch.cat([images, leaves]), torch.cat([targets, targets.new_full((count,), NO_CLASS)])

    def _lessons(self, learning: int, rounds: int) -> Iterator[tuple[Tensor, float]]:
        settings = self.settings.distill
        steps = rounds * settings.kd_steps
        for step in range(learning * settings.kd_steps, (learning + 1) * settings.kd_steps):
            images = self.synthesiser.augmentation(self.pool.sample(settings.batch_size))
            yield (
                images.contiguous(memory_format=torch.channels_last),
                cosine(step, steps, self.learner.first_rate, settings.final_learning_rate),
            )

    def _keep_best(self, agreement: float) -> None:
        """Later moments win ties: they saw more images."""
        if agreement >= self.best_agreement:
            self.best_agreement = agreement
            self.best = {name: tensor.clone() for name, tensor in self.learner.average.state_dict().items()}


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
