"""The NAYER loop: images are synthesised, the student learns from the teacher on them, and again.

Every synthetic batch and every step of the student is a function of the state before it and of a seed derived from its
number, so a run that was stopped and continued gives the same bits as one that was not, without any random state being
stored. A checkpoint may be written after any of them. What it may not depend on is when one was written.

Several processes run the same rounds together, each with its shard of the pool; all else is the same for all of them.
Only rank 0 reads and writes files, and decides what depends on a clock.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from compress.exporters.bundle import write_file
from compress.pipeline.device import Compute, derived_seed
from compress.pipeline.distillation.checkpoint import (
    Checkpoint,
    FileEntry,
    pool_chunk,
    restore_state,
    save_checkpoint,
    state_of,
)
from compress.pipeline.distillation.divergence import all_finite, has_diverged, running_level
from compress.pipeline.distillation.learner import Learner, Monitor
from compress.pipeline.distillation.recovery import Measures, memory_for
from compress.pipeline.distillation.schedule import (
    Schedule,
    learning_rate,
)
from compress.pipeline.distillation.watching import Watch
from compress.pipeline.errors import DivergenceError
from compress.pipeline.records import HistoryPoint, SampleGrid
from compress.pipeline.settings import Settings
from compress.pipeline.stages import SECONDS_FILE
from compress.pipeline.students import StudentPlan
from compress.pipeline.synthesis.dead_leaves import dead_leaves
from compress.pipeline.synthesis.loss_parts import LossParts
from compress.pipeline.synthesis.losses import Statistics
from compress.pipeline.synthesis.mixing import mixed
from compress.pipeline.synthesis.pool import NO_CLASS, NO_LIMIT, ImagePool, as_bytes
from compress.pipeline.synthesis.synthesiser import Synthesiser
from compress.pipeline.teacher import Teacher
from compress.pipeline.tensor_files import prefixed, under

LOOK_EVERY = 50
"""Steps after which the losses are looked at, so that a round of hours does not go on with NaN."""


@dataclass(slots=True)
class RoundSoFar:
    """How far a round has come that is not finished."""

    synthesis_losses: list[float] = field(default_factory=list)
    """One of each synthetic batch."""
    losses: list[Tensor] = field(default_factory=list)
    """One of each step of the student, on its device."""

    @property
    def is_empty(self) -> bool:
        return not self.synthesis_losses


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
        measures: Measures,
    ) -> None:
        self.settings, self.compute, self.folder, self.measures = settings, compute, folder, measures
        self.world = compute.world
        self.learner = Learner(teacher, plan, settings, compute)
        self.learner.micro_batches = measures.micro_batches
        torch.manual_seed(derived_seed(settings.seed, "generator"))
        self.synthesiser = Synthesiser(teacher, embeddings, settings.synthesis, compute)
        limit = settings.distill.pool_limit or NO_LIMIT
        self.pool = ImagePool(self.world.share(limit), settings.distill.replay_priority)
        self.best: dict[str, Tensor] = {}
        self.best_agreement = -1.0
        self.history: list[HistoryPoint] = []
        self.samples: list[SampleGrid] = []
        self.watch = Watch(settings)
        self.done = RoundSoFar()
        self._fresh: list[tuple[Tensor, Tensor]] = []  # Images and classes that no checkpoint holds yet.
        self._pool_files: tuple[FileEntry, ...] = ()
        self._saved = time.monotonic()

    def run_round(self, number: int, schedule: Schedule, monitor: Monitor, epoch: float) -> HistoryPoint:
        """One round, or what is left of it: fresh images into the pool; after the warm-up also steps of the student.

        `epoch` is when distillation began by the monotonic clock, pauses left out.

        Raises:
            MemoryFullError: the memory does not hold a batch.
            DivergenceError: what was learned cannot be used.
        """
        settings, learner, done = self.settings.distill, self.learner, self.done
        learning = number - schedule.warmup_rounds
        save_if_due = partial(self.save_if_due, schedule, epoch)
        self._synthesise(number, learning, save_if_due)
        self.refuse_divergence()
        kd_loss, agreement, rate = float("nan"), None, None
        if learning == 0 and not done.losses and learner.plan.inherited:
            with memory_for("student"):
                learner.recalibrate(self.pool.images)
        if learning >= 0:
            self._learn(learning, schedule.span(learning), save_if_due)
            self.refuse_divergence()
            kd_loss = torch.stack(done.losses).mean().item()
            rate = learner.optimiser.param_groups[0]["lr"]
            agreement = monitor.agreement(learner.average)
            self._keep_best(agreement)
        self.done = RoundSoFar()
        return HistoryPoint(
            round=number,
            kd_steps=max(learning + 1, 0) * settings.kd_steps,
            pool_images=len(self.pool) * self.world.size,
            synthesis_loss=sum(done.synthesis_losses) / len(done.synthesis_losses),
            kd_loss=kd_loss,
            monitor_agreement=agreement,
            seconds=round(time.monotonic() - epoch, 3),
            learning_rate=rate,
            **self.synthesiser.parts.take(),
            **learner.parts.take(),
        )

    def save_if_due(self, schedule: Schedule, epoch: float) -> None:
        """Write a checkpoint within a round if the last one was written long enough ago by the clock of rank 0."""
        if self.world.size > 1 and len(self.done.losses) % LOOK_EVERY:
            return  # To ask rank 0 after every step would keep all waiting.
        if self.world.tell(time.monotonic() - self._saved >= self.settings.distill.checkpoint_seconds):
            self.save(schedule, time.monotonic() - epoch)

    def save(self, schedule: Schedule, seconds: float) -> None:
        """Write a checkpoint, `seconds` into distillation.

        Raises:
            DivergenceError: something in it is not finite; nothing is written.
            MissingResourceError: the disk is full or fails.
        """
        self.refuse_divergence()
        tensors = self._tensors()
        if not all_finite(tensors.values()):
            raise DivergenceError(f"A weight is not finite in round {self._round()}.", self._cure())
        numbers = {
            "best_agreement": self.best_agreement,
            "history": [point.model_dump(mode="json") for point in self.history],
            "samples": [grid.model_dump(mode="json") for grid in self.samples],
            "synthesis_losses": self.done.synthesis_losses,
            "loss_parts": [parts.state() for parts in self._loss_parts()],
            "seconds": seconds,
            "threads": torch.get_num_threads(),
            "ranks": self.world.size,
            "schedule": schedule.model_dump(mode="json"),
            "measures": self.measures.model_dump(mode="json"),
            "kept_blocks": self.learner.kept_blocks,
        }
        checkpoint = Checkpoint(
            tensors=tensors, numbers=numbers, between_rounds=self.done.is_empty, pool=self._pool_files
        )
        fresh = [self.world.gathered(torch.cat(parts)) for parts in zip(*self._fresh, strict=True)]
        named = dict(zip(("images", "targets"), fresh, strict=True)) if fresh else None
        self._fresh, self._saved = [], time.monotonic()
        if self.world.leads:
            self._pool_files = save_checkpoint(self.folder, checkpoint, named).pool
            write_file(self.folder / SECONDS_FILE, str(round(seconds, 3)).encode())

    def restore(self, checkpoint: Checkpoint) -> tuple[Schedule, float]:
        """Be as the run was at a checkpoint; returns its schedule, and how many seconds distillation had taken.

        A schedule that was made from a measurement is kept, since the next measurement would differ.
        """
        tensors, numbers = checkpoint.tensors, checkpoint.numbers
        device = self.compute.device
        self.learner.student.load_state_dict(under("student", tensors))
        self.learner.average.load_state_dict(under("average", tensors))
        self.learner.adapters.load_state_dict(under("adapters", tensors))
        restore_state(self.learner.optimiser, under("optimiser", tensors))
        kept = numbers["kept_blocks"]
        self.learner.kept_blocks = None if kept is None else tuple(tuple(stage) for stage in kept)
        self.synthesiser.generator.load_state_dict(under("generator", tensors), strict=False)
        self.best = {name: tensor.to(device) for name, tensor in under("best", tensors).items()}
        running = under("running", tensors)
        layers = sorted({name.partition(".")[0] for name in running})
        self.synthesiser.running = [
            Statistics(*(running[f"{layer}.{name}"].to(device) for name in Statistics._fields)) for layer in layers
        ] or None
        self.best_agreement = numbers["best_agreement"]
        self.history = [HistoryPoint.model_validate(point) for point in numbers["history"]]
        self.samples = [SampleGrid.model_validate(grid) for grid in numbers["samples"]]
        self.done = RoundSoFar(list(numbers["synthesis_losses"]), list(tensors["losses"].to(device).unbind()))
        for parts, state in zip(self._loss_parts(), numbers["loss_parts"], strict=True):
            parts.restore(state, device)
        for entry in self.world.tell(checkpoint.pool):
            made = self.world.tell_tensors(pool_chunk(self.folder, FileEntry(*entry)) if self.world.leads else None)
            self.pool.add(*(self.world.mine(made[name]).to(device) for name in ("images", "targets")))
        self.pool.surprise = self.world.mine(tensors["surprise"])
        self._pool_files = checkpoint.pool
        return Schedule.model_validate(numbers["schedule"]), numbers["seconds"]

    def refuse_divergence(self) -> None:
        """Look at the losses of this round; waits for the device.

        Raises:
            DivergenceError: they are not finite, or far above where they were.
        """
        done, number = self.done, self._round()
        if not all(map(math.isfinite, done.synthesis_losses)):
            raise DivergenceError(f"The loss of a synthetic batch is not finite in round {number}.", self._cure())
        if not done.losses:
            return
        losses = torch.stack(done.losses)
        earlier = [point.kd_loss for point in self.history if math.isfinite(point.kd_loss)]
        if has_diverged(losses, running_level(losses, earlier, self.learner.silent_loss)):
            raise DivergenceError(f"The student's loss grew beyond all bounds in round {number}.", self._cure())

    def _loss_parts(self) -> tuple[LossParts, LossParts]:
        return self.synthesiser.parts, self.learner.parts

    def _round(self) -> int:
        """The round that was last worked on, counted from 1 as users do."""
        return max(len(self.history) + (not self.done.is_empty), 1)

    def _cure(self) -> str:
        student = "inherited_learning_rate" if self.learner.plan.inherited else "learning_rate"
        return f"Lower --set distill.{student}=... or --set synthesis.learning_rate=..., or say --set precision=fp32."

    def _tensors(self) -> dict[str, Tensor]:
        """All tensors of a checkpoint but the pool's."""
        # Noisy layers are drawn anew for every batch, and most of a generator.
        drawn = {f"noisy.{name}" for name in self.synthesiser.generator.noisy.DRAWN}
        generator = {
            name: tensor for name, tensor in self.synthesiser.generator.state_dict().items() if name not in drawn
        }
        return {
            **prefixed("student", self.learner.student.state_dict()),
            **prefixed("average", self.learner.average.state_dict()),
            **prefixed("adapters", self.learner.adapters.state_dict()),
            **prefixed("optimiser", state_of(self.learner.optimiser)),
            **prefixed("generator", generator),
            **prefixed("best", self.best),
            **{
                f"running.{index:04}.{name}": getattr(value, name)
                for index, value in enumerate(self.synthesiser.running or [])
                for name in Statistics._fields
            },
            "surprise": self.world.gathered(self.pool.surprise),
            "losses": torch.stack(self.done.losses) if self.done.losses else torch.empty(0),
        }

    def joint_pool(self) -> ImagePool:
        """The shards of all processes in one pool, on rank 0."""
        pool = ImagePool(len(self.pool) * self.world.size)
        pool.add(self.world.gathered(self.pool.images), self.world.gathered(self.pool.targets))
        return pool

    def _synthesise(self, number: int, learning: int, save_if_due: Callable[[], None]) -> None:
        """Make the batches of a round that are not there yet."""
        settings, losses = self.settings.distill, self.done.synthesis_losses
        student = self.learner.student if learning >= 0 else None
        if not losses:
            self._renew_generator(number, learning)
        for index in range(len(losses), settings.batches if learning >= 0 else settings.warmup_batches):
            torch.manual_seed(derived_seed(self.settings.seed, "batch", number, index, *self.world.own_seed()))
            with memory_for("synthesis"):
                batch = self.watch.batch(self.synthesiser.make(student))
            made = self._with_dead_leaves(batch.images, batch.targets)
            self.pool.add(*made)
            self._fresh.append(made)
            losses.append(batch.loss)
            save_if_due()

    def _renew_generator(self, number: int, learning: int) -> None:
        life = self.settings.synthesis.generator_life
        if number > 0 and (number % life == 0 if learning < 0 else learning % life == 0):
            torch.manual_seed(derived_seed(self.settings.seed, "generator", number))
            self.synthesiser.renew()

    def _learn(self, learning: int, span: tuple[float, float], save_if_due: Callable[[], None]) -> None:
        """Take the steps of a round that are not taken yet."""
        settings, losses = self.settings.distill, self.done.losses
        for index in range(len(losses), settings.kd_steps):
            step = learning * settings.kd_steps + index
            torch.manual_seed(derived_seed(self.settings.seed, "step", step, *self.world.own_seed()))
            rate = learning_rate(index, span, settings, self.learner.first_rate)
            with memory_for("student"):
                drawn = self.pool.draw(self.world.share(settings.batch_size))
                images = self.synthesiser.augmentation(self.pool.at(drawn))
                images = mixed(images, settings.mixing, settings.mixed_share)
                images = images.contiguous(memory_format=torch.channels_last)
                losses.append(self.watch.step(self.learner.step(images, rate)))
            if settings.replay_priority:
                self.pool.seen(drawn, self.learner.divergences)
            if len(losses) % LOOK_EVERY == 0:
                self.refuse_divergence()
            save_if_due()

    def _with_dead_leaves(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Join images that look more like photographs than what a teacher without batch norm can make a generator draw."""
        teacher = self.learner.teacher
        if teacher.bn_statistics:
            return images, targets
        count = round(self.settings.synthesis.dead_leaves * len(images))
        leaves = as_bytes(dead_leaves(count, teacher.record.input, images.device))
        return torch.cat([images, leaves]), torch.cat([targets, targets.new_full((count,), NO_CLASS)])

    def _keep_best(self, agreement: float) -> None:
        """Later moments win ties: they saw more images."""
        if agreement >= self.best_agreement or self.settings.distill.selection == "last":
            self.best_agreement = agreement
            self.best = {name: tensor.clone() for name, tensor in self.learner.average.state_dict().items()}
