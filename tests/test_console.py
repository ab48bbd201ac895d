import io
import itertools
import re
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from compress.pipeline.console import ConsoleProgress
from compress.pipeline.progress import Moment, Progress, Silent, rate, time_left


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
        progress.moved(moment(done=done - 1, total=3))
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
        "      15/100  loss 1.0  1.0 s a step, 1 min left",
        "      30/100  loss 1.0  1.0 s a step, 1 min left",
    ]


def test_the_log_of_a_day_stays_short_and_never_falls_silent(
    plain: ConsoleProgress, at: Callable[[float], None]
) -> None:
    plain.stage_started(3, 7, "distill")
    told, length = [0], len(printed(plain))
    for second in range(0, 24 * 3600, 5):
        at(1000 + second)
        plain.moved(moment(seconds_spent=second))
        if plain.console.file.tell() > length:
            told, length = [*told, second], plain.console.file.tell()
    gaps = [later - earlier for earlier, later in itertools.pairwise(told)]
    assert (gaps[0], min(gaps), max(gaps)) == (15, 15, 300)
    assert len(gaps) < 400


def moment(**changes: Any) -> Moment:
    usual: dict[str, Any] = {
        "done": 5,
        "total": 14,
        "doing": "learning, step 20 of 400",
        "rate": "5.1 steps a second",
        "seconds_spent": 60.0,
        "seconds_left": 180.0,
        "figures": "loss 2.3",
    }
    return Moment(**(usual | changes))


def test_a_line_within_a_round_says_what_is_done_how_fast_and_how_long_still(
    plain: ConsoleProgress, at: Callable[[float], None]
) -> None:
    plain.stage_started(3, 7, "distill")
    at(1015)
    plain.moved(moment())
    at(1030)
    plain.moved(moment(doing="warm-up, batch 1 of 10", rate="", seconds_left=None, figures=""))
    assert printed(plain).splitlines()[1:] == [
        "      5/14  learning, step 20 of 400: loss 2.3  5.1 steps a second, 3 min left",
        "      5/14  warm-up, batch 1 of 10",
    ]


def test_the_end_of_a_round_is_told_with_the_pace_within_it(plain: ConsoleProgress) -> None:
    plain.stage_started(3, 7, "distill")
    plain.moved(moment(done=14, doing="", seconds_left=0.0))
    plain.advance(14, 14, "loss 2.3")
    assert printed(plain).splitlines()[1:] == ["      14/14  loss 2.3  5.1 steps a second"]


def test_the_pace_of_a_stage_is_forgotten_in_the_next(plain: ConsoleProgress) -> None:
    plain.moved(moment())
    plain.stage_started(4, 7, "quantize")
    plain.advance(1, 1, "loss 1.0")
    assert printed(plain).splitlines()[-1] == "      1/1  loss 1.0"


@pytest.mark.parametrize(("width", "height"), [(60, 3), (200, 1)])
def test_the_bar_moves_within_a_round_and_hides_nothing_on_a_narrow_terminal(width: int, height: int) -> None:
    progress = ConsoleProgress(Console(file=io.StringIO(), force_terminal=True, width=width, legacy_windows=False))
    progress.moved(moment())
    assert progress._bar is not None
    assert progress._bar.tasks[0].completed == 0.25  # of 60 + 180 seconds
    lines = progress.console.render_lines(progress._bar.get_renderable(), pad=False)
    assert len(lines) == height
    shown = " ".join("".join(segment.text for segment in line) for line in lines)
    for word in re.split(" ", "5/14 learning, step 20 of 400: loss 2.3 5.1 steps a second, 3 min left"):
        assert word in shown
    progress.close()


@pytest.mark.parametrize(
    ("pieces", "seconds", "unit", "shown"),
    [
        (100, 4, "image", "25.0 images a second"),
        (6000, 2, "image", "3,000.0 images a second"),
        (2, 5, "image", "2.5 s an image"),
        (3, 3, "step", "1.0 s a step"),
        (0, 3, "step", ""),
        (3, 0, "step", ""),
    ],
)
def test_rates_are_told_in_the_unit_that_suits_them(pieces: float, seconds: float, unit: str, shown: str) -> None:
    assert rate(pieces, seconds, unit) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.4, "0 s left"), (59, "59 s left"), (719, "12 min left"), (7500, "2 h 5 min left")]
)
def test_time_left_is_told_as_exactly_as_a_forecast_is(seconds: float, shown: str) -> None:
    assert time_left(seconds) == shown


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


def test_figures_alone_have_no_colon_before_them(plain: ConsoleProgress, at: Callable[[float], None]) -> None:
    plain.stage_started(3, 7, "distill")
    at(1015)
    plain.moved(moment(doing="", figures="loss 1.0"))
    assert printed(plain).splitlines()[1].startswith("      5/14  loss 1.0")


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
