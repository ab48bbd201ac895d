"""The geometry of the charts, in percent of the drawing area; the template draws it."""

from collections.abc import Sequence
from dataclasses import dataclass

from compress.pipeline.fidelity import percent
from compress.pipeline.records import HistoryPoint, Proportion

MAX_DOTS = 60
"""Beyond this many points the line alone is drawn."""

# Where the axis of agreement starts, and the step of its ticks.
_SCALES = ((0.9, 0.02), (0.8, 0.05), (0.5, 0.1), (0.0, 0.2))


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Agreement over rounds; coordinates run from 0 at the left and top to 100."""

    points: tuple[tuple[float, float], ...]
    dots: tuple[tuple[float, float], ...]
    """The points that are drawn as such."""
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    limit_y: float | None
    description: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassShare:
    """The agreement on the images of one class."""

    label: str
    part: Proportion


def agreement_curve(history: Sequence[HistoryPoint], limit: float | None) -> Curve | None:
    """The monitor agreement over rounds, and the required agreement where it lies on the axis; None without values."""
    measured = [(point.round, point.monitor_agreement) for point in history if point.monitor_agreement is not None]
    if not measured:
        return None
    rounds, values = [step for step, _ in measured], [value for _, value in measured]
    bottom, tick = next(scale for scale in _SCALES if scale[0] <= min(values))
    first, last = rounds[0], rounds[-1]

    def x(step: int) -> float:
        return round(100 * (step - first) / (last - first), 2) if last > first else 50.0

    def y(value: float) -> float:
        return round(100 * (1 - value) / (1 - bottom), 2)

    points = tuple((x(step), y(value)) for step, value in measured)
    ticks = [bottom + index * tick for index in range(round((1 - bottom) / tick) + 1)]
    return Curve(
        points=points,
        dots=points if len(points) <= MAX_DOTS else (),
        x_ticks=tuple((x(step), f"{step:,}") for step in sorted({first, (first + last) // 2, last})),
        y_ticks=tuple((y(value), f"{value * 100:.0f} %") for value in ticks),
        limit_y=y(limit) if limit is not None and limit >= bottom else None,
        description=(
            f"From {percent(values[0])} in round {first:,} to {percent(values[-1])} in round {last:,}; "
            f"the best is {percent(max(values))} in round {rounds[values.index(max(values))]:,}."
        ),
    )


def lowest_classes(labels: Sequence[str], parts: Sequence[Proportion], most: int) -> list[ClassShare]:
    """The `most` classes of lowest agreement, lowest first; at equal agreement the one with more images first."""
    shares = [ClassShare(label=label, part=part) for label, part in zip(labels, parts, strict=True) if part.total > 0]
    return sorted(shares, key=lambda share: (share.part.value, -share.part.total))[:most]


def unseen_classes(labels: Sequence[str], parts: Sequence[Proportion]) -> list[str]:
    """The classes that the teacher names on no image, about which nothing is known."""
    return [label for label, part in zip(labels, parts, strict=True) if part.total == 0]
