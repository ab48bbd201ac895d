"""Tells of distillation while it works, within its rounds, too: what is going on, how fast, and how much time is left.

No step of the student waits for the device on this account: its loss is read now and then, by the clock.
"""

import time
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from compress.pipeline.device import Compute
from compress.pipeline.distillation.pace import Work, forecast, work_left
from compress.pipeline.distillation.schedule import Schedule, Speed, seconds_for, synthesis_batches_held_out
from compress.pipeline.progress import Moment, Progress, Silent, rate
from compress.pipeline.records import HistoryPoint
from compress.pipeline.settings import Settings
from compress.pipeline.synthesis.pool import as_float
from compress.pipeline.synthesis.synthesiser import SyntheticBatch
from compress.pipeline.teacher import Teacher

TELL_SECONDS = 0.5
"""A step of the student is told of if the last telling is that long ago."""

TIMED_IMAGES = 32
"""Images that a forecast times the networks on."""


@dataclass(slots=True)
class Meter:
    """Seconds that pieces of work of one kind took."""

    seconds: float = 0.0
    pieces: float = 0.0

    def add(self, seconds: float) -> None:
        self.seconds, self.pieces = self.seconds + seconds, self.pieces + 1

    def age(self) -> None:
        """Let what follows weigh more than what was."""
        if self.pieces > 1:
            self.seconds, self.pieces = self.seconds / 2, self.pieces / 2


class Watch:
    """Hears of every piece of work and passes on what people want to know.

    All time between two pieces of work counts for the later one, so that checkpoints and measurements are in the forecast.
    """

    def __init__(self, settings: Settings, progress: Progress | None = None, spent: float = 0.0) -> None:
        """`spent`: seconds that interrupted runs have worked already."""
        self.settings, self.progress = settings, progress or Silent()
        self.expected: Speed | None = None
        self._meters = {kind: Meter() for kind in Work._fields}
        self._schedule, self._number, self._round = Schedule(warmup_rounds=0, rounds=0, deadline=None), 0, Work()
        self._loss, self._agreement = "", ""
        self._last_piece = self._last_told = time.monotonic()
        self._epoch = self._last_piece - spent

    def begin(self, schedule: Schedule, number: int) -> None:
        """Round `number` of a schedule begins, or what comes before and after all rounds."""
        self._schedule, self._number, self._round = schedule, number, Work()
        self.expected = self.expected or schedule.speed
        for meter in self._meters.values():
            meter.age()

    def batch(self, made: SyntheticBatch) -> SyntheticBatch:
        """A synthetic batch is done; it is handed on."""
        settings = self.settings.distill
        if self._number < self._schedule.warmup_rounds:
            self._loss = f"synthesis loss {made.loss:.2f}"
            self._done("synthesis")
            self._tell(f"warm-up, batch {self._round.synthesis} of {settings.warmup_batches}", "synthesis")
        else:
            self._done("adversarial_synthesis")
            doing = f"synthesis, batch {self._round.adversarial_synthesis} of {settings.batches}"
            self._tell(doing, "adversarial_synthesis")
        return made

    def step(self, loss: Tensor) -> Tensor:
        """A step of the student is done; its loss, a scalar on the device, is handed on."""
        due = time.monotonic() - self._last_told >= TELL_SECONDS
        if due:
            self._loss = f"loss {loss.item():.3f}"
        self._done("kd_step")
        if due:
            self._tell(f"learning, step {self._round.kd_step} of {self.settings.distill.kd_steps}", "kd_step")
        return loss

    def held_out_batch(self) -> None:
        """A batch of held-out images is done, for the monitor or for the probes."""
        self._done("synthesis")
        self._tell(f"held-out images, batch {self._round.synthesis}", "synthesis")

    def ended(self, point: HistoryPoint) -> None:
        """The round is over and saved."""
        if point.monitor_agreement is None:
            self._loss, kind = f"warm-up, synthesis loss {point.synthesis_loss:.2f}", "synthesis"
        else:
            self._loss, kind = f"loss {point.kd_loss:.3f}", "kd_step"
            self._agreement = f"probe agreement {point.monitor_agreement:.1%}"
        self._number, self._round = point.round + 1, Work()
        self._tell("", kind)
        self.progress.advance(self._number, self._schedule.total, self._figures())

    @torch.no_grad()
    def expect(self, teacher: Teacher, student: nn.Module, images: Tensor, compute: Compute) -> None:
        """Forecast the kinds of work that nobody has planned or seen, by passing images, uint8, through both networks."""
        settings, seen = self.settings, self._meters["synthesis"]
        if self.expected is not None or not seen.pieces:
            return
        shown = as_float(images[:TIMED_IMAGES])
        with compute.autocast():
            of_teacher, of_student = (
                seconds_for(partial(network, shown), compute, repeats=1) / len(shown)
                for network in (teacher.logits, student.eval())
            )
        self.expected = forecast(
            synthesis=seen.seconds / seen.pieces,
            synthesis_images=settings.synthesis.steps * settings.synthesis.batch_size,
            kd_images=settings.distill.batch_size,
            teacher_image=of_teacher,
            student_image=of_student,
        )
        self._last_piece = time.monotonic()

    def seconds_left(self) -> float | None:
        """Until the probes are made, or the budget is used up; None before anything is known."""
        if self.expected is None:
            return None
        measured = {kind: meter.seconds / meter.pieces for kind, meter in self._meters.items() if meter.pieces}
        speed = self.expected.model_copy(update=measured)
        probes = self.settings.probes
        held_out = synthesis_batches_held_out(probes) - probes.monitor_batches - probes.warmup_batches
        ahead = work_left(self._schedule, self.settings.distill, self._number, held_out)
        left = max(ahead.seconds(speed) - self._round.seconds(speed), 0.0)
        if self._schedule.deadline is None:
            return left
        return min(left, max(self._schedule.deadline - self._spent(), 0.0) + held_out * speed.synthesis)

    def _spent(self) -> float:
        return time.monotonic() - self._epoch

    def _done(self, kind: str) -> None:
        now = time.monotonic()
        self._meters[kind].add(now - self._last_piece)
        self._last_piece = now
        self._round = self._round._replace(**{kind: getattr(self._round, kind) + 1})

    def _tell(self, doing: str, kind: str) -> None:
        self._last_told = time.monotonic()
        self.progress.moved(
            Moment(
                done=self._number,
                total=self._schedule.total,
                doing=doing,
                rate=self._rate(kind),
                seconds_spent=self._spent(),
                seconds_left=self.seconds_left(),
                figures=self._figures(),
            )
        )

    def _rate(self, kind: str) -> str:
        meter = self._meters[kind]
        if kind == "kd_step":
            return rate(meter.pieces, meter.seconds, "step")
        return rate(meter.pieces * self.settings.synthesis.batch_size, meter.seconds, "image")

    def _figures(self) -> str:
        return ", ".join(filter(None, (self._loss, self._agreement)))
