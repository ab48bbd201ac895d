"""Progress for people: a bar on a terminal, plain lines everywhere else, all of it on stderr."""

import time

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, SpinnerColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Column

from compress.pipeline.progress import Moment, rate, time_left
from compress.pipeline.records import Severity

LINE_SECONDS = 15.0
"""Without a terminal, the long stage says something about this often at first."""

LINE_SHARE = 0.05
"""Later a line follows the one before it when the stage has become older by this share, so that logs stay short."""

LINE_SECONDS_AT_MOST = 300.0
"""Silence for longer than that is what makes CI systems end a job."""


class ConsoleProgress:
    """Announces stages and shows how the long one moves on; a `Progress`."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bar: Bar | None = None
        self._started = self._last_line = time.monotonic()
        self._first: tuple[float, int] | None = None
        self._moment: Moment | None = None

    def stage_started(self, index: int, total: int, title: str) -> None:
        self._say(f"[bold]\\[{index}/{total}] {title}[/bold]")
        self._started = self._last_line = time.monotonic()
        self._first, self._moment = None, None

    def stage_finished(self, summary: str, *, reused: bool, seconds: float) -> None:
        self.close()
        remark = "reused" if reused else f"{seconds:.1f} s"
        self._say(f"      {escape(summary)} [dim]({remark})[/dim]")

    def moved(self, moment: Moment) -> None:
        self._moment = moment
        self._show(moment.done, moment.total, ": ".join(filter(None, (moment.doing, moment.figures))))

    def advance(self, done: int, total: int, figures: str) -> None:
        self._first = self._first or (time.monotonic(), done)
        self._show(done, total, figures, always=done == total)

    def note(self, text: str, severity: Severity = "note") -> None:
        colour = "red" if severity == "problem" else "yellow"
        self._say(f"      [{colour}]{severity}:[/{colour}] {escape(text)}")

    def close(self) -> None:
        """Take the bar away, if there is one."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _say(self, markup: str) -> None:
        self.console.print(markup, highlight=False)

    def _show(self, done: int, total: int, text: str, *, always: bool = False) -> None:
        pace, share = self._pace(done, total)
        text = f"{text}  {pace}".rstrip()
        if self.console.is_terminal:
            self._draw(share, f"{done}/{total}", text)
        elif always or self._line_is_due():
            self._last_line = time.monotonic()
            self._say(f"      {done}/{total}  {escape(text)}")

    def _line_is_due(self) -> bool:
        now = time.monotonic()
        wait = min(max(LINE_SECONDS, LINE_SHARE * (now - self._started)), LINE_SECONDS_AT_MOST)
        return now - self._last_line >= wait

    def _pace(self, done: int, total: int) -> tuple[str, float]:
        """Rate and time left in words, and the share that is done; by whole steps where nobody knows better."""
        if self._moment is not None:
            return _words(self._moment.rate, self._moment.seconds_left), self._moment.share
        now = time.monotonic()
        began, first = self._first or (now, done)
        left = (now - began) / (done - first) * (total - done) if done > first else None
        return _words(rate(done - first, now - began, "step"), left), done / total

    def _draw(self, share: float, counted: str, text: str) -> None:
        if self._bar is None:
            self._bar = Bar(
                SpinnerColumn(),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[counted]}"),
                TextColumn("{task.description}", table_column=Column(overflow="fold")),
                console=self.console,
                transient=True,
            )
            self._bar.add_task("", total=1.0, counted=counted)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=share, counted=counted, description=escape(text))


def _words(speed: str, seconds_left: float | None) -> str:
    """`5.1 steps a second, 2 min left`, as far as it is known."""
    return ", ".join(filter(None, (speed, time_left(seconds_left) if seconds_left else "")))
