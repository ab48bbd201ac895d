"""The geometry of the curves of distillation over time, in percent of the drawing area; the template draws them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from compress.pipeline.proportions import percent
from compress.pipeline.records import HistoryPoint

MAX_DOTS = 60
"""Beyond this many points the line alone is drawn."""

LOG_RATIO = 30.0
"""A loss whose largest value is that many times its smallest is drawn on a logarithmic axis."""

LOSSES = {
    "kd_loss": "Student: whole loss",
    "kl_loss": "Student: divergence of answers",
    "stage_loss": "Student: distance of stage outputs",
    "synthesis_loss": "Synthesis: whole loss",
    "batch_norm_loss": "Synthesis: distance of batch-norm statistics",
    "prior_loss": "Synthesis: image prior",
    "one_hot_loss": "Synthesis: cross-entropy with the class",
    "adversarial_loss": "Synthesis: adversarial term",
}
"""Fields of the history that are drawn, where they were measured, and what they are called."""

# Where the axis of agreement starts, and the step of its ticks.
_SCALES = ((0.9, 0.02), (0.8, 0.05), (0.5, 0.1), (0.0, 0.2))
_UNITS = ((1, "s"), (60, "min"), (3600, "h"))
_STEPS = (1, 2, 5, 10, 15, 20, 30)

Ticks = tuple[tuple[float, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A value over the seconds since distillation began; coordinates run from 0 at the left and top to 100."""

    title: str
    points: tuple[tuple[float, float], ...]
    dots: tuple[tuple[float, float], ...]
    """The points that are drawn as such."""
    x_ticks: Ticks
    y_ticks: Ticks
    limit_y: float | None
    description: str


def agreement_curve(history: Sequence[HistoryPoint], limit: float | None) -> Curve | None:
    """The monitor agreement, and the required agreement where it lies on the axis; None without values."""
    measured = [(point, point.monitor_agreement) for point in history if point.monitor_agreement is not None]
    if not measured:
        return None
    values = [value for _, value in measured]
    bottom, step = next(scale for scale in _SCALES if scale[0] <= min(values))
    best = measured[values.index(max(values))][0]

    def height(value: float) -> float:
        return round(100 * (1 - value) / (1 - bottom), 2)

    ticks = [bottom + index * step for index in range(round((1 - bottom) / step) + 1)]
    return _curve(
        "Agreement of the student with its teacher over the time of distillation",
        [(point.seconds, height(value)) for point, value in measured],
        tuple((height(value), f"{value * 100:.0f} %") for value in ticks),
        history[-1].seconds,
        limit_y=height(limit) if limit is not None and limit >= bottom else None,
        description=(
            f"From {percent(values[0])} in round {measured[0][0].round:,} to {percent(values[-1])} in round "
            f"{measured[-1][0].round:,}; the best is {percent(max(values))} in round {best.round:,}."
        ),
    )


def loss_curves(history: Sequence[HistoryPoint]) -> list[Curve]:
    """A curve for each loss and part of a loss that two rounds or more have a finite value of."""
    curves = []
    for field, title in LOSSES.items():
        if field == "kl_loss" and all(point.stage_loss is None for point in history):
            continue  # It is the whole loss.
        found = [(point.seconds, getattr(point, field)) for point in history]
        series = [(seconds, value) for seconds, value in found if value is not None and math.isfinite(value)]
        if len(series) > 1:
            curves.append(_loss_curve(title, series, history[-1].seconds))
    return curves


def _loss_curve(title: str, series: Sequence[tuple[float, float]], end: float) -> Curve:
    values = [value for _, value in series]
    height, ticks = _axis(min(values), max(values))
    return _curve(
        title,
        [(seconds, height(value)) for seconds, value in series],
        tuple((height(value), f"{value:,g}") for value in ticks),
        end,
        description=f"From {values[0]:.3g} to {values[-1]:.3g}.",
    )


def _curve(
    title: str,
    points: Sequence[tuple[float, float]],
    y_ticks: Ticks,
    end: float,
    *,
    description: str,
    limit_y: float | None = None,
) -> Curve:
    """A curve of heights over seconds, from 0 to `end` of them."""
    drawn = tuple((_place(seconds, end), y) for seconds, y in points)
    return Curve(
        title=title,
        points=drawn,
        dots=drawn if len(drawn) <= MAX_DOTS else (),
        x_ticks=tuple((_place(seconds, end), label) for seconds, label in time_ticks(end)),
        y_ticks=y_ticks,
        limit_y=limit_y,
        description=description,
    )


def _place(seconds: float, end: float) -> float:
    return round(100 * seconds / end, 2) if end > 0 else 50.0


def time_ticks(end: float, most: int = 4) -> Ticks:
    """At most `most` round times after 0, up to `end` seconds, all in the largest unit that has room for two."""
    size, unit = next(((size, unit) for size, unit in reversed(_UNITS) if end >= 2 * size), (1, "s"))
    count = end / size
    steps = (step * 10**power for power in range(9) for step in _STEPS)
    step = next(step for step in steps if count / step < most + 1)
    return ((0.0, "0"), *((float(size * tick), f"{tick} {unit}") for tick in range(step, math.floor(count) + 1, step)))


def _axis(low: float, high: float) -> tuple[Callable[[float], float], list[float]]:
    """How high a value stands on an axis from `low` to `high`, widened to round numbers, and these."""
    if low > 0 and high / low >= LOG_RATIO:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        return lambda value: round(100 * (last - math.log10(value)) / (last - first), 2), [
            10.0**power for power in range(first, last + 1)
        ]
    step = round_step((high - low) / 3 or abs(high) or 1.0)
    bottom, top = math.floor(low / step), math.ceil(high / step)
    top = max(top, bottom + 1)
    ticks = [round(index * step, 12) for index in range(bottom, top + 1)]
    return lambda value: round(100 * (top - value / step) / (top - bottom), 2), ticks


def round_step(least: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that is not below `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))
