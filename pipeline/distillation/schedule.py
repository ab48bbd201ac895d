"""How many rounds: the recipe's, or as many as a time budget holds."""

import math
import time
from collections.abc import Callable, Sequence

from compress.pipeline.device import Compute
from compress.pipeline.records import Record
from compress.pipeline.settings import DistillSettings, ProbeSettings

SAFETY = 0.95
"""Share of the budget that is planned for: machines slow down, and a plan that is cut short never cools its student."""


class Speed(Record):
    """Seconds on this machine for one batch of synthesis, with and without the student's answers, and one student step."""

    synthesis: float
    adversarial_synthesis: float
    kd_step: float
    ranks: int = 1
    """Processes that share this work."""

    @property
    def held_out_synthesis(self) -> float:
        """Of a batch of held-out images, which no process shares with another."""
        return self.ranks * self.synthesis

    def times(self, factor: float) -> "Speed":
        """Everything slower by a factor."""
        return Speed(
            synthesis=factor * self.synthesis,
            adversarial_synthesis=factor * self.adversarial_synthesis,
            kd_step=factor * self.kd_step,
            ranks=self.ranks,
        )


class Schedule(Record):
    """Rounds of warm-up and of learning, and what they are expected to take."""

    warmup_rounds: int
    rounds: int
    deadline: float | None
    """Seconds into distillation by which the last round must have ended; None without a budget."""
    speed: Speed | None = None
    """What the rounds were planned with; None without a budget."""
    end_after: int | None = None
    """Rounds of learning that are run if not all are."""

    @property
    def total(self) -> int:
        return self.warmup_rounds + min(self.rounds, self.end_after or self.rounds)


def expected_seconds(schedule: Schedule, speed: Speed, settings: DistillSettings, probes: ProbeSettings) -> float:
    """Seconds for the whole of distillation, held-out images included."""
    return (
        synthesis_batches_held_out(probes) * speed.held_out_synthesis
        + schedule.warmup_rounds * _warmup_seconds(speed, settings)
        + (schedule.total - schedule.warmup_rounds) * _round_seconds(speed, settings)
    )


def synthesis_batches_held_out(probes: ProbeSettings) -> int:
    """Batches for monitor and probes, with those that each fresh generator makes and throws away."""
    return _probe_batches(probes) + probes.monitor_batches + probes.warmup_batches


def plan_schedule(
    settings: DistillSettings, probes: ProbeSettings, speed: Speed | None, budget_seconds: float | None
) -> Schedule:
    """The recipe's rounds without a budget; else as many as fit, the warm-up cut to a quarter of the time at most.

    At least one round of each is always run; the warm-up leaves the time for it where there is any.
    """
    if speed is None or budget_seconds is None:
        return Schedule(
            warmup_rounds=settings.warmup_rounds, rounds=settings.rounds, deadline=None, end_after=settings.end_after
        )
    usable = SAFETY * budget_seconds - synthesis_batches_held_out(probes) * speed.held_out_synthesis
    a_warmup, a_round = _warmup_seconds(speed, settings), _round_seconds(speed, settings)
    warmup = min(settings.warmup_rounds, max(1, math.floor(min(usable / 4, usable - a_round) / a_warmup)))
    rounds = max(1, math.floor((usable - warmup * a_warmup) / a_round))
    reserve = _probe_batches(probes) * speed.held_out_synthesis
    return Schedule(warmup_rounds=warmup, rounds=rounds, deadline=max(budget_seconds - reserve, 0.0), speed=speed)


def replan(schedule: Schedule, seconds: Sequence[float], settings: DistillSettings) -> Schedule:
    """The rounds that fit by what the warm-up really took, since a few timed steps are a poor forecast.

    Args:
        schedule: the plan so far.
        seconds: at which second each round of the warm-up had ended; the first one's start is not known.
        settings: what a round consists of.
    """
    if schedule.speed is None or schedule.deadline is None or len(seconds) < 2:
        return schedule
    measured = (seconds[-1] - seconds[0]) / (len(seconds) - 1)
    speed = schedule.speed.times(measured / _warmup_seconds(schedule.speed, settings))
    rounds = max(1, math.floor((SAFETY * schedule.deadline - seconds[-1]) / _round_seconds(speed, settings)))
    return schedule.model_copy(update={"rounds": rounds})


def _probe_batches(probes: ProbeSettings) -> int:
    return probes.batches + min(probes.generators, probes.batches) * probes.warmup_batches


def _warmup_seconds(speed: Speed, settings: DistillSettings) -> float:
    return settings.warmup_batches * speed.synthesis


def _round_seconds(speed: Speed, settings: DistillSettings) -> float:
    return settings.batches * speed.adversarial_synthesis + settings.kd_steps * speed.kd_step


def cosine(step: int, steps: int, first: float, last: float) -> float:
    """Learning rate at `step` of `steps`: half a cosine from `first` down to `last`.

    Source: Loshchilov and Hutter, "SGDR", ICLR 2017, equation 5, without restarts.
    """
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * min(step / steps, 1)))


def learning_rate(step: int, rounds: int, settings: DistillSettings, first: float) -> float:
    """Learning rate of a student step, counted from 0, that is one of `rounds * kd_steps`.

    The cosine begins at `first`. Annealed by the round, all steps of a round share the rate of its first one, as in the
    published code, whose rounds are called epochs.
    """
    steps = settings.kd_steps
    return cosine(
        step - step % steps if settings.anneal == "round" else step, rounds * steps, first, settings.final_learning_rate
    )


def seconds_for(work: Callable[[], object], compute: Compute, repeats: int = 2) -> float:
    """Mean wall time of one call over `repeats`, after one to warm up."""
    work()
    times = []
    for _ in range(repeats):
        compute.synchronise()
        started = time.perf_counter()
        work()
        compute.synchronise()
        times.append(time.perf_counter() - started)
    return sum(times) / len(times)
