"""What a run says while it works: results go to stdout, everything here to stderr."""

from typing import Protocol

from compress.pipeline.records import Severity


class Progress(Protocol):
    """Somebody who listens to a run."""

    def stage_started(self, index: int, total: int, title: str) -> None:
        """A stage announces itself."""

    def stage_finished(self, summary: str, *, reused: bool, seconds: float) -> None:
        """It is done, in one line."""

    def advance(self, done: int, total: int, figures: str) -> None:
        """The long part moved on: `done` of `total` steps, with figures worth watching."""

    def note(self, text: str, severity: Severity = "note") -> None:
        """Something the user should know."""


class Silent:
    """Nobody listens."""

    def stage_started(self, index: int, total: int, title: str) -> None: ...

    def stage_finished(self, summary: str, *, reused: bool, seconds: float) -> None: ...

    def advance(self, done: int, total: int, figures: str) -> None: ...

    def note(self, text: str, severity: Severity = "note") -> None: ...
