"""What a run says while it works: results go to stdout, everything here to stderr."""

from dataclasses import dataclass
from typing import Protocol

from compress.pipeline.records import Severity


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """Where the long stage stands, between two calls of `advance`, too."""

    done: int
    """Whole rounds."""
    total: int
    doing: str
    """What is going on, such as `warm-up, batch 3 of 10`."""
    rate: str
    """Such as `24.3 images a second`; may be empty."""
    seconds_spent: float
    seconds_left: float | None
    """None as long as nothing can be said."""
    figures: str
    """Losses and agreement as they are now; may be empty."""

    @property
    def share(self) -> float:
        """Of the stage's whole time, from 0 to 1."""
        if self.seconds_left is None:
            return 0.0
        return self.seconds_spent / max(self.seconds_spent + self.seconds_left, 1e-9)


class Progress(Protocol):
    """Somebody who listens to a run."""

    def stage_started(self, index: int, total: int, title: str) -> None:
        """A stage announces itself."""

    def stage_finished(self, summary: str, *, reused: bool, seconds: float) -> None:
        """It is done, in one line."""

    def moved(self, moment: Moment) -> None:
        """The long stage moved on, if only by a piece of a round."""

    def advance(self, done: int, total: int, figures: str) -> None:
        """The long part moved on: `done` of `total` steps, with figures worth watching."""

    def note(self, text: str, severity: Severity = "note") -> None:
        """Something the user should know."""


class Silent:
    """Nobody listens."""

    def stage_started(self, index: int, total: int, title: str) -> None: ...

    def stage_finished(self, summary: str, *, reused: bool, seconds: float) -> None: ...

    def moved(self, moment: Moment) -> None: ...

    def advance(self, done: int, total: int, figures: str) -> None: ...

    def note(self, text: str, severity: Severity = "note") -> None: ...


def rate(pieces: float, seconds: float, unit: str) -> str:
    """`24.3 images a second`, or `2.5 s an image` where one takes longer; nothing when either is 0.

    Args:
        unit: one piece, such as `image`.
    """
    if not pieces or seconds <= 0:
        return ""
    if seconds >= pieces:
        return f"{seconds / pieces:.1f} s {'an' if unit[0] in 'aeiou' else 'a'} {unit}"
    return f"{pieces / seconds:,.1f} {unit}s a second"


def time_left(seconds: float) -> str:
    """`45 s left`, `12 min left` or `2 h 5 min left`: as exact as a forecast is."""
    if seconds < 60:
        return f"{seconds:.0f} s left"
    minutes = round(seconds / 60)
    return f"{minutes} min left" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min left"
