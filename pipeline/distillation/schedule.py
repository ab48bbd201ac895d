"""How many rounds: the recipe's, or as many as a time budget holds."""

import math
import time
from collections.abc import Callable, Sequence

from compress.pipeline.device import Compute
from compress.pipeline.probes import VIEWS_OF_AN_IMAGE, batches_for
from compress.pipeline.records import Record
from compress.pipeline.settings import DistillSettings, ProbeSettings, Settings

SAFETY = 0.95
"""Share of the time left that is planned for: machines slow down, and a plan that is cut short never cools its student."""

LATER_SECONDS = 20.0
"""What export, validation and report take of a budget, whatever the networks."""

LATER_IMAGES = 8_000
"""What choosing the ranges of int8 and judging it, layer by layer, cost, in images that the student learns from."""

ROUNDED_STEP = 2.0
"""How much longer an image takes in a step with rounding, in fp32, than in one of distillation."""

RECENT_ROUNDS = 3
"""Of learning, whose pace the plan of the next ones is made by."""


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
    annealed: tuple[float, ...] = ()
    """How far the cosine is after each round of learning, as far as that is decided: 0 where it begins, 1 at its end."""

    @property
    def total(self) -> int:
        return self.warmup_rounds + self.rounds

    def span(self, learning: int) -> tuple[float, float]:
        """How far the cosine is before and after a round of learning, counted from 0."""
        return (self.annealed[learning - 1] if learning else 0.0), self.annealed[learning]


def evenly(rounds: int) -> tuple[float, ...]:
    """How far the cosine is after each of so many rounds, where all are planned at once."""
    return tuple((number + 1) / rounds for number in range(rounds))


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


def seconds_after(speed: Speed, settings: Settings, quantizes: bool) -> float:
    """What the stages after distillation will take; one process does them, however many distil."""
    an_image = speed.kd_step * speed.ranks / settings.distill.batch_size
    made = round(VIEWS_OF_AN_IMAGE * settings.probes.batches * settings.synthesis.batch_size)
    images, more = float(max(made, settings.probes.least)), settings.probes.least - made
    making = batches_for(more, settings) * speed.held_out_synthesis if more > 0 else 0.0
    if quantizes:
        images += LATER_IMAGES + ROUNDED_STEP * settings.quantize.tail_steps * settings.quantize.batch_size
    return LATER_SECONDS + an_image * images + making


def left_for_distillation(budget_seconds: float | None, after: float) -> float | None:
    """Seconds of a budget, less those of the stages after; of a short one these get no more than a quarter."""
    return None if budget_seconds is None else budget_seconds - min(after, budget_seconds / 4)


def plan_schedule(
    settings: DistillSettings, probes: ProbeSettings, speed: Speed | None, budget_seconds: float | None
) -> Schedule:
    """The recipe's rounds without a budget; else as many as fit, the warm-up cut to a quarter of the time at most.

    At least one round of each is always run; the warm-up leaves the time for it where there is any.
    """
    if speed is None or budget_seconds is None:
        annealed = settings.annealed or evenly(settings.rounds)
        return Schedule(warmup_rounds=settings.warmup_rounds, rounds=settings.rounds, deadline=None, annealed=annealed)
    usable = SAFETY * budget_seconds - synthesis_batches_held_out(probes) * speed.held_out_synthesis
    a_warmup, a_round = _warmup_seconds(speed, settings), _round_seconds(speed, settings)
    warmup = min(settings.warmup_rounds, max(1, math.floor(min(usable / 4, usable - a_round) / a_warmup)))
    rounds = max(1, math.floor((usable - warmup * a_warmup) / a_round))
    reserve = _probe_batches(probes) * speed.held_out_synthesis
    deadline = max(budget_seconds - reserve, 0.0)
    return Schedule(warmup_rounds=warmup, rounds=rounds, deadline=deadline, speed=speed, annealed=evenly(rounds)[:1])


def replan(schedule: Schedule, seconds: Sequence[float], settings: DistillSettings) -> Schedule:
    """The rounds that still fit by what the last ones took; what is left of the cosine is shared out to them evenly.

    So the learning rate comes down in time, whatever becomes of the machine's pace. A few timed steps are a poor forecast
    of the first rounds; what a round of warm-up took is a better one, and the rounds of learning themselves the best.

    Args:
        schedule: the plan so far.
        seconds: at which second each round had ended.
        settings: what a round consists of.
    """
    learned = len(seconds) - schedule.warmup_rounds
    if schedule.speed is None or schedule.deadline is None or learned < 0:
        return schedule
    so_far = schedule.annealed[:learned]
    done = so_far[-1] if so_far else 0.0
    if done >= 1:
        return schedule.model_copy(update={"rounds": learned})
    a_round = _seconds_a_round(seconds, learned, schedule.speed, settings)
    left = max(1, math.floor(SAFETY * (schedule.deadline - seconds[-1]) / a_round))
    after = done + (1 - done) / left if left > 1 else 1.0
    return schedule.model_copy(update={"rounds": learned + left, "annealed": (*so_far, after)})


def _seconds_a_round(seconds: Sequence[float], learned: int, speed: Speed, settings: DistillSettings) -> float:
    """What the next round of learning will take. The first one chose blocks, too, and the start of all is not known."""
    recent = seconds[-min(learned, RECENT_ROUNDS + 1) :] if learned > 1 else ()
    if recent:
        return (recent[-1] - recent[0]) / (len(recent) - 1)
    warmup = seconds[: len(seconds) - learned]
    slower = 1.0
    if len(warmup) > 1:
        slower = (warmup[-1] - warmup[0]) / (len(warmup) - 1) / _warmup_seconds(speed, settings)
    return slower * _round_seconds(speed, settings)


def _probe_batches(probes: ProbeSettings) -> int:
    return probes.batches + min(probes.generators, probes.batches) * probes.warmup_batches


def _warmup_seconds(speed: Speed, settings: DistillSettings) -> float:
    return settings.warmup_batches * speed.synthesis


def _round_seconds(speed: Speed, settings: DistillSettings) -> float:
    return settings.batches * speed.adversarial_synthesis + settings.kd_steps * speed.kd_step


def cosine(done: float, first: float, last: float) -> float:
    """Learning rate when the share `done` of the way is behind: half a cosine from `first` down to `last`.

    Source: Loshchilov and Hutter, "SGDR", ICLR 2017, equation 5, without restarts.
    """
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * done))


def learning_rate(index: int, span: tuple[float, float], settings: DistillSettings, first: float) -> float:
    """Learning rate of step `index` of a round, counted from 0; the cosine begins at `first`.

    Annealed by the round, all steps of a round share the rate of its first one, as in the published code, whose rounds
    are called epochs.

    Args:
        span: how far the cosine is before and after the round, see `Schedule.span`.
    """
    before, after = span
    passed = 0.0 if settings.anneal == "round" else index / settings.kd_steps
    return cosine(before + (after - before) * passed, first, settings.final_learning_rate)


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
