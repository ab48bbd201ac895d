"""The NAYER loop: images are synthesised, the student learns from the teacher on them, and again.

Every round is a function of the state before it and of a seed derived from the round's number, so a run that was
stopped and continued gives the same bits as one that was not, without any random state being stored.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from compress.pipeline.device import Compute, derived_seed
from compress.pipeline.distillation.checkpoint import (
    load_checkpoint,
    momentum_of,
    remove_checkpoint,
    restore_momentum,
    save_checkpoint,
)
from compress.pipeline.distillation.learner import Learner, Monitor
from compress.pipeline.distillation.schedule import (
    Schedule,
    cosine,
)
from compress.pipeline.records import HistoryPoint
from compress.pipeline.settings import Settings
from compress.pipeline.students import StudentPlan
from compress.pipeline.synthesis.dead_leaves import dead_leaves
from compress.pipeline.synthesis.losses import Statistics
from compress.pipeline.synthesis.pool import NO_CLASS, ImagePool, as_bytes
from compress.pipeline.synthesis.synthesiser import Synthesiser
from compress.pipeline.teacher import Teacher
from compress.pipeline.tensor_files import prefixed, under, write_tensors

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
            "kept_blocks": self.learner.kept_blocks,
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
        kept = numbers["kept_blocks"]
        self.learner.kept_blocks = None if kept is None else tuple(tuple(stage) for stage in kept)
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
