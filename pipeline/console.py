"""Progress for people: a bar on a terminal, plain lines everywhere else, all of it on stderr."""

import time

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from compress.pipeline.records import Severity

LINE_SECONDS = 15.0
"""Without a terminal, the long stage says something about this often."""


class ConsoleProgress:
    """Announces stages and shows how the long one moves on; a `Progress`."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bar: Bar | None = None
        self._last_line = 0.0
        self._first: tuple[float, int] | None = None

    def stage_started(self, index: int, total: int, title: str) -> None:
        self._say(f"[bold]\\[{index}/{total}] {title}[/bold]")
        self._first, self._last_line = None, time.monotonic()

    def stage_finished(self, summary: str, *, reused: bool, seconds: float) -> None:
        self.close()
        remark = "reused" if reused else f"{seconds:.1f} s"
        self._say(f"      {escape(summary)} [dim]({remark})[/dim]")

    def advance(self, done: int, total: int, figures: str) -> None:
        now = time.monotonic()
        self._first = self._first or (now, done)
        text = f"{figures}  {self._rate(now, done)}".rstrip()
        if self.console.is_terminal:
            self._draw(done, total, text)
        elif done == total or now - self._last_line >= LINE_SECONDS:
            self._last_line = now
            self._say(f"      {done}/{total}  {escape(text)}")

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

    def _rate(self, now: float, done: int) -> str:
        began, first = self._first or (now, done)
        if done == first or now == began:
            return ""
        seconds = (now - began) / (done - first)
        return f"{seconds:.1f} s a step" if seconds >= 1 else f"{1 / seconds:.1f} steps a second"

    def _draw(self, done: int, total: int, text: str) -> None:
        if self._bar is None:
            self._bar = Bar(
                SpinnerColumn(),
                BarColumn(),
                TextColumn("{task.completed:.0f}/{task.total:.0f}"),
                TimeRemainingColumn(),
                TextColumn("{task.description}"),
                console=self.console,
                transient=True,
            )
            self._bar.add_task("", total=total, completed=done)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=done, total=total, description=escape(text))
