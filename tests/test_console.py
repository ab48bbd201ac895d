import io
from collections.abc import Callable

import pytest
from rich.console import Console

from compress.pipeline.console import ConsoleProgress
from compress.pipeline.progress import Progress, Silent


def printed(progress: ConsoleProgress) -> str:
    assert isinstance(progress.console.file, io.StringIO)
    return progress.console.file.getvalue()


@pytest.fixture
def plain() -> ConsoleProgress:
    """As in CI: no terminal."""
    return ConsoleProgress(Console(file=io.StringIO(), soft_wrap=True))


@pytest.fixture
def terminal() -> ConsoleProgress:
    return ConsoleProgress(Console(file=io.StringIO(), force_terminal=True, width=120, legacy_windows=False))


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the clock."""

    def set_clock(seconds: float) -> None:
        monkeypatch.setattr("compress.pipeline.console.time.monotonic", lambda: seconds)

    set_clock(1000)
    return set_clock


def whole_stage(progress: Progress) -> None:
    progress.stage_started(3, 7, "distill")
    for done in (1, 2, 3):
        progress.advance(done, 3, f"loss {done}.0")
    progress.note("the budget [was] short")
    progress.stage_finished("resnet[8]: 100 parameters", reused=False, seconds=2.04)


def test_without_a_terminal_there_are_plain_lines_only(plain: ConsoleProgress) -> None:
    whole_stage(plain)
    text = printed(plain)
    assert all(character.isprintable() or character == "\n" for character in text)
    lines = text.splitlines()
    assert lines[0] == "[3/7] distill"
    assert lines[1].startswith("      3/3  loss 3.0")
    assert lines[2:] == ["      note: the budget [was] short", "      resnet[8]: 100 parameters (2.0 s)"]


def test_long_lines_are_not_broken_in_a_log(plain: ConsoleProgress) -> None:
    plain.note("x" * 300)
    assert printed(plain).splitlines() == ["      note: " + "x" * 300]


def test_a_log_hears_of_a_long_stage_now_and_then(plain: ConsoleProgress, at: Callable[[float], None]) -> None:
    plain.stage_started(3, 7, "distill")
    for done in range(1, 41):
        at(1000 + done)
        plain.advance(done, 100, "loss 1.0")
    # A line is written at the first step that is 15 seconds or more after the one before it.
    assert printed(plain).splitlines()[1:] == [
        "      15/100  loss 1.0  1.0 s a step",
        "      30/100  loss 1.0  1.0 s a step",
    ]


def test_the_last_step_is_always_told(plain: ConsoleProgress, at: Callable[[float], None]) -> None:
    plain.stage_started(3, 7, "distill")
    plain.advance(1, 2, "loss 1.0")
    at(1000.25)
    plain.advance(2, 2, "loss 0.5")
    # One step in a quarter of a second.
    assert printed(plain).splitlines()[1:] == ["      2/2  loss 0.5  4.0 steps a second"]


def test_the_rate_counts_from_where_a_continued_run_began(plain: ConsoleProgress, at: Callable[[float], None]) -> None:
    plain.stage_started(3, 7, "distill")
    plain.advance(90, 100, "loss 1.0")
    at(1020)
    plain.advance(100, 100, "loss 1.0")
    # Ten steps in twenty seconds, not a hundred.
    assert printed(plain).splitlines()[-1] == "      100/100  loss 1.0  2.0 s a step"


def test_each_stage_has_a_rate_of_its_own(plain: ConsoleProgress, at: Callable[[float], None]) -> None:
    whole_stage(plain)
    at(2000)
    plain.stage_started(4, 7, "quantize")
    plain.advance(1, 1, "loss 1.0")
    assert printed(plain).splitlines()[-1] == "      1/1  loss 1.0"


def test_figures_with_brackets_are_no_markup(plain: ConsoleProgress) -> None:
    plain.advance(1, 1, "loss [bold]1.0")
    assert printed(plain) == "      1/1  loss [bold]1.0\n"


def test_a_reused_stage_says_so(plain: ConsoleProgress) -> None:
    plain.stage_finished("as before", reused=True, seconds=30)
    assert printed(plain) == "      as before (reused)\n"


def test_a_terminal_shows_a_bar_with_figures_and_rate_and_takes_it_away(
    terminal: ConsoleProgress, at: Callable[[float], None]
) -> None:
    terminal.stage_started(3, 7, "distill")
    terminal.advance(1, 4, "loss [1.5]")
    at(1000.5)
    terminal.advance(2, 4, "loss [1.25]")
    assert terminal._bar is not None
    terminal._bar.refresh()
    text = printed(terminal)
    assert "━" in text
    assert "2/4" in text
    assert "loss [1.25]  2.0 steps a second" in text
    terminal.stage_finished("a student", reused=False, seconds=1)
    assert terminal._bar is None
    # Cursor up and erase the line, and the summary where the bar was.
    assert printed(terminal).endswith("\x1b[1A\x1b[2K      a student \x1b[2m(1.0 s)\x1b[0m\n")


def test_closing_takes_the_bar_away_and_may_be_done_twice(terminal: ConsoleProgress) -> None:
    terminal.advance(1, 4, "loss 1.5")
    terminal.close()
    terminal.close()
    assert terminal._bar is None
    assert printed(terminal).endswith("\x1b[?25h\r\x1b[1A\x1b[2K")


def test_quiet_says_nothing() -> None:
    progress = ConsoleProgress(Console(file=io.StringIO(), quiet=True))
    whole_stage(progress)
    assert printed(progress) == ""


def test_who_does_not_listen_hears_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    whole_stage(Silent())
    assert capfd.readouterr() == ("", "")
