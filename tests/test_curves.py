import math
from typing import Any

import pytest

from compress.pipeline.records import HistoryPoint
from compress.pipeline.report.curves import LOSSES, MAX_DOTS, agreement_curve, loss_curves, round_step, time_ticks


def point(number: int, agreement: float | None = None, **changes: Any) -> HistoryPoint:
    usual = {"kd_steps": 0, "pool_images": 0, "synthesis_loss": math.nan, "kd_loss": math.nan, "seconds": 10 * number}
    return HistoryPoint.model_validate({"round": number, "monitor_agreement": agreement, **usual, **changes})


def test_agreement_runs_over_the_seconds_since_distillation_began() -> None:
    curve = agreement_curve([point(0), point(1), point(2, 0.6), point(3, 0.9), point(8, 0.8)], limit=0.75)
    assert curve is not None
    # 80 s are the whole width; the axis of agreement runs from 50 % to 100 %.
    assert curve.points == ((25, 80), (37.5, 20), (100, 40))
    assert curve.dots == curve.points
    assert curve.limit_y == 50
    assert curve.x_ticks == ((0, "0"), (25, "20 s"), (50, "40 s"), (75, "60 s"), (100, "80 s"))
    assert [label for _, label in curve.y_ticks] == ["50 %", "60 %", "70 %", "80 %", "90 %", "100 %"]
    assert curve.description == "From 60.0 % in round 2 to 80.0 % in round 8; the best is 90.0 % in round 3."


def test_a_limit_below_the_axis_is_not_drawn() -> None:
    curve = agreement_curve([point(7, 1.0)], limit=0.5)
    assert curve is not None
    assert (curve.points, curve.limit_y) == (((100, 0),), None)


def test_a_run_of_no_time_stands_in_the_middle() -> None:
    curve = agreement_curve([point(0, 1.0)], limit=None)
    assert curve is not None
    assert curve.points == ((50, 0),)


def test_nothing_that_was_measured_is_no_curve() -> None:
    assert agreement_curve([point(0), point(1)], limit=0.9) is None
    assert loss_curves([point(0), point(1)]) == []
    assert loss_curves([]) == []


def test_a_long_curve_is_drawn_without_dots() -> None:
    curve = agreement_curve([point(number, 0.5) for number in range(MAX_DOTS + 1)], limit=None)
    assert curve is not None
    assert (len(curve.points), curve.dots) == (61, ())


def test_every_loss_that_was_measured_twice_is_drawn_on_an_axis_of_round_numbers() -> None:
    history = [
        point(0, synthesis_loss=9.0, one_hot_loss=1.0),
        point(5, synthesis_loss=5.0, adversarial_loss=-0.25, kd_loss=math.inf),
        point(10, synthesis_loss=3.0, adversarial_loss=-0.5, kd_loss=2.0),
    ]
    curves = loss_curves(history)
    assert [curve.title for curve in curves] == [LOSSES["synthesis_loss"], LOSSES["adversarial_loss"]]
    # 3 to 9 in steps of 2: from 2 to 10.
    assert curves[0].y_ticks == ((100, "2"), (75, "4"), (50, "6"), (25, "8"), (0, "10"))
    assert curves[0].points == ((0, 12.5), (50, 62.5), (100, 87.5))
    assert curves[0].description == "From 9 to 3."
    # -0.5 to -0.25 in steps of 0.1: from -0.5 to -0.2.
    assert curves[1].y_ticks == ((100, "-0.5"), (66.67, "-0.4"), (33.33, "-0.3"), (0, "-0.2"))
    assert [x for x, _ in curves[1].points] == [50, 100]


def test_a_loss_that_falls_far_is_drawn_on_a_logarithmic_axis() -> None:
    (curve,) = loss_curves([point(0, kd_loss=100.0), point(1, kd_loss=1.0), point(2, kd_loss=0.1)])
    assert curve.y_ticks == ((100, "0.1"), (66.67, "1"), (33.33, "10"), (0, "100"))
    assert [y for _, y in curve.points] == [0, 66.67, 100]


def test_a_loss_that_stands_still_is_drawn_within_its_axis() -> None:
    (curve,) = loss_curves([point(0, kd_loss=0.0), point(1, kd_loss=0.0)])
    assert all(0 <= y <= 100 for _, y in curve.points)
    assert len(curve.y_ticks) == 2


def test_the_divergence_is_drawn_only_beside_other_parts_of_the_loss() -> None:
    alone = [point(number, kd_loss=2.0, kl_loss=2.0) for number in range(2)]
    assert [curve.title for curve in loss_curves(alone)] == [LOSSES["kd_loss"]]
    beside = [point(number, kd_loss=2.0, kl_loss=1.0, stage_loss=0.1) for number in range(2)]
    assert [curve.title for curve in loss_curves(beside)] == [LOSSES[f] for f in ("kd_loss", "kl_loss", "stage_loss")]


def test_every_loss_of_the_history_has_a_title() -> None:
    assert {name for name in HistoryPoint.model_fields if name.endswith("_loss")} == set(LOSSES)


@pytest.mark.parametrize(
    ("end", "labels"),
    [
        (0.5, ["0"]),
        (90, ["0", "20 s", "40 s", "60 s", "80 s"]),
        (900, ["0", "5 min", "10 min", "15 min"]),
        (3600, ["0", "15 min", "30 min", "45 min", "60 min"]),
        (12 * 3600, ["0", "5 h", "10 h"]),
        (400 * 3600, ["0", "100 h", "200 h", "300 h", "400 h"]),
    ],
)
def test_time_is_told_in_few_round_numbers_of_one_unit(end: float, labels: list[str]) -> None:
    assert [label for _, label in time_ticks(end)] == labels


@pytest.mark.parametrize(("least", "step"), [(1.0, 1), (1.1, 2), (0.3, 0.5), (60, 100), (0.002, 0.002)])
def test_steps_are_one_two_or_five_times_a_power_of_ten(least: float, step: float) -> None:
    assert round_step(least) == pytest.approx(step)
