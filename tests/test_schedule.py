import itertools
import math
import random
import time

import pytest
import torch

from compress.pipeline.distillation.schedule import (
    Schedule,
    Speed,
    cosine,
    evenly,
    expected_seconds,
    learning_rate,
    left_for_distillation,
    plan_schedule,
    replan,
    seconds_after,
    seconds_for,
    synthesis_batches_held_out,
)
from compress.pipeline.settings import DistillSettings, ProbeSettings, QuantizeSettings, Settings, SynthesisSettings
from tests.tiny import CPU

SPEED = Speed(synthesis=2.0, adversarial_synthesis=3.0, kd_step=0.5)
RECIPE = DistillSettings(warmup_rounds=4, warmup_batches=2, rounds=30, batches=1, kd_steps=20)
"""A round of warm-up takes 2 * 2 = 4 s, one of learning 1 * 3 + 20 * 0.5 = 13 s."""
SLOW_WARMUP = [16.0, 24.0, 32.0, 40.0]
"""Ends of rounds of warm-up that took twice as long as they should."""
PROBES = ProbeSettings(batches=4, generators=2, warmup_batches=2, monitor_batches=1)
"""Probes take 4 + 2 * 2 batches, the monitor 1 + 2: 11 batches, 22 s."""


def planned(budget_seconds: float | None) -> Schedule:
    return plan_schedule(RECIPE, PROBES, SPEED, budget_seconds)


def test_held_out_batches_count_those_that_fresh_generators_throw_away() -> None:
    assert synthesis_batches_held_out(PROBES) == 11
    # One batch cannot be shared by two generators: 1 + 1 * 2 for the probes, 1 + 2 for the monitor.
    assert synthesis_batches_held_out(PROBES.model_copy(update={"batches": 1})) == 6


def test_expected_seconds_add_up_held_out_images_warm_up_and_learning() -> None:
    # 11 * 2 + 4 * 4 + 30 * 13
    assert expected_seconds(planned(None), SPEED, RECIPE, PROBES) == 428.0


def test_without_a_budget_the_recipe_decides() -> None:
    assert planned(None) == Schedule(warmup_rounds=4, rounds=30, deadline=None, annealed=evenly(30))
    assert plan_schedule(RECIPE, PROBES, None, 60.0) == planned(None)
    assert planned(None).total == 34


def test_what_comes_after_distillation_is_told_by_what_an_image_costs() -> None:
    # A step of 64 images takes 0.5 s, and is shared by 2: 2 * 0.5 / 64 s an image. Probes: 2.5 views of 4 * 200. int8 looks at
    # 8,000 more and takes 100 steps of 64 images, each twice as long.
    settings = Settings(
        distill=RECIPE,
        probes=PROBES,
        synthesis=SynthesisSettings(batch_size=200),
        quantize=QuantizeSettings(tail_steps=100),
    )
    shared = SPEED.model_copy(update={"ranks": 2})
    an_image = 2 * 0.5 / 64
    assert seconds_after(shared, settings, quantizes=False) == 20 + 2000 * an_image
    assert seconds_after(shared, settings, quantizes=True) == 20 + (2000 + 8000 + 2 * 6400) * an_image


def test_the_stages_after_get_no_more_than_a_quarter_of_a_budget() -> None:
    assert left_for_distillation(None, 50.0) is None
    assert left_for_distillation(400.0, 50.0) == 350.0
    assert left_for_distillation(100.0, 50.0) == 75.0


def test_a_budget_is_filled_but_for_a_twentieth() -> None:
    # 0.95 * 200 - 22 = 168 s; 4 rounds of warm-up leave 152 s: 11 rounds. Probes need 8 batches, so no round ends
    # after 200 - 16 s.
    assert planned(200.0) == Schedule(warmup_rounds=4, rounds=11, deadline=184.0, speed=SPEED, annealed=(1 / 11,))


def test_a_small_budget_cuts_the_warm_up_to_a_quarter() -> None:
    # 0.95 * 60 - 22 = 35 s, a quarter of it is 8.75 s: 2 rounds of warm-up, and two of learning in the 27 s left.
    assert planned(60.0) == Schedule(warmup_rounds=2, rounds=2, deadline=44.0, speed=SPEED, annealed=(1 / 2,))


def test_a_large_budget_goes_beyond_the_recipe_but_warms_up_no_longer() -> None:
    # (0.95 * 3600 - 22 - 16) / 13 = 260.2
    planned_long = Schedule(warmup_rounds=4, rounds=260, deadline=3584.0, speed=SPEED, annealed=(1 / 260,))
    assert planned(3600.0) == planned_long


def test_the_warm_up_corrects_the_plan() -> None:
    # Rounds of warm-up took 8 s instead of 4, so one of learning takes 26 s: 0.95 * (184 - 40) / 26 = 5.3.
    slower = replan(planned(200.0), SLOW_WARMUP, RECIPE)
    assert (slower.rounds, slower.annealed) == (5, (1 / 5,))
    # Twice as fast as measured: 0.95 * (184 - 20) / 6.5 = 23.97.
    assert replan(planned(200.0), [14.0, 16.0, 18.0, 20.0], RECIPE).rounds == 23


def test_the_first_round_of_learning_says_nothing_of_the_next_ones() -> None:
    # It chose blocks, too. Still 26 s a round: 0.95 * (184 - 100) / 26 = 3.1, and 4/5 of the cosine for three rounds.
    first = replan(planned(200.0), SLOW_WARMUP, RECIPE)
    second = replan(first, [*SLOW_WARMUP, 100.0], RECIPE)
    assert second.rounds == 4
    assert second.annealed == pytest.approx((1 / 5, 1 / 5 + 4 / 15))


def test_each_round_plans_what_is_left_by_the_last_ones() -> None:
    before = planned(200.0).model_copy(update={"annealed": (0.1, 0.2, 0.3)})
    # Rounds of 10 s, then one of 40 s: 20 s on average, 0.95 * (184 - 120) / 20 = 3.04.
    after = replan(before, [*SLOW_WARMUP, 60.0, 70.0, 80.0, 120.0][:8], RECIPE)
    assert after.rounds == 4 + 3
    assert after.annealed == pytest.approx((0.1, 0.2, 0.3, 0.3 + 0.7 / 3))


def test_however_the_pace_changes_the_cosine_comes_down_and_time_is_kept() -> None:
    pace = random.Random(0)
    for _ in range(200):
        schedule, seconds = planned(400.0), [4.0, 8.0, 12.0, 16.0]
        schedule = replan(schedule, seconds, RECIPE)
        a_round = 13.0 * pace.uniform(0.5, 2)
        while len(seconds) < schedule.total:
            a_round *= pace.uniform(0.9, 1.1)
            seconds.append(seconds[-1] + a_round)
            schedule = replan(schedule, seconds, RECIPE)
        assert schedule.deadline is not None
        assert schedule.annealed[-1] == 1.0
        assert len(schedule.annealed) == schedule.rounds
        assert all(after > before for before, after in itertools.pairwise(schedule.annealed))
        assert seconds[-1] < schedule.deadline + a_round / 2


def test_a_finished_plan_is_left_alone() -> None:
    done = planned(200.0).model_copy(update={"rounds": 2, "annealed": (0.5, 1.0)})
    assert replan(done, [*SLOW_WARMUP, 50.0, 60.0], RECIPE) == done


def test_a_plan_is_not_corrected_without_a_budget_or_by_one_round_alone() -> None:
    assert replan(planned(None), [1.0, 2.0, 3.0, 4.0, 5.0], RECIPE) == planned(None)
    assert replan(planned(200.0), [40.0], RECIPE) == planned(200.0)
    one = planned(200.0).model_copy(update={"warmup_rounds": 1})
    assert replan(one, [40.0], RECIPE).rounds == 10  # 0.95 * (184 - 40) / 13 = 10.5


def test_a_corrected_plan_keeps_one_round_of_learning() -> None:
    late = replan(planned(200.0), [100.0, 200.0, 300.0, 400.0], RECIPE)
    assert (late.rounds, late.annealed) == (1, (1.0,))


@pytest.mark.parametrize("budget", [0.001, 1.0, 20.0, 40.0])
def test_there_is_always_one_round_of_each(budget: float) -> None:
    schedule = planned(budget)
    assert (schedule.warmup_rounds, schedule.rounds) == (1, 1)
    assert schedule.deadline is not None and 0 <= schedule.deadline <= budget


def test_no_plan_exceeds_its_budget_by_its_own_estimate() -> None:
    speeds = [
        Speed(synthesis=a, adversarial_synthesis=b, kd_step=c) for a, b, c in itertools.product((0.1, 3, 40), repeat=3)
    ]
    least = Schedule(warmup_rounds=1, rounds=1, deadline=None)
    fitting = 0
    for speed, budget in itertools.product(speeds, [1.5**exponent for exponent in range(28)]):
        schedule = plan_schedule(RECIPE, PROBES, speed, budget)
        longer = schedule.model_copy(update={"rounds": schedule.rounds + 1})
        if expected_seconds(least, speed, RECIPE, PROBES) <= 0.95 * budget:
            fitting += 1
            assert expected_seconds(schedule, speed, RECIPE, PROBES) <= 0.95 * budget + 1e-6
            assert expected_seconds(longer, speed, RECIPE, PROBES) > 0.95 * budget
        else:
            assert (schedule.warmup_rounds, schedule.rounds) == (1, 1)
    assert 200 < fitting < 27 * 28


def test_the_cosine_falls_from_first_to_last() -> None:
    rates = [cosine(step / 100, 0.1, 0.002) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[25] == pytest.approx(0.002 + 0.098 * (2 + 2**0.5) / 4)  # cos(pi / 4) = sqrt(2) / 2
    assert rates[50] == pytest.approx(0.051)
    assert rates[100] == pytest.approx(0.002)
    assert all(before > after for before, after in itertools.pairwise(rates))


def rates(annealed: tuple[float, ...], settings: DistillSettings, first: float) -> list[float]:
    """Of every step of all rounds."""
    schedule = Schedule(warmup_rounds=1, rounds=len(annealed), deadline=None, annealed=annealed)
    return [
        learning_rate(index, schedule.span(number), settings, first)
        for number in range(len(annealed))
        for index in range(settings.kd_steps)
    ]


def test_the_learning_rate_follows_the_cosine_by_the_step_or_by_the_round() -> None:
    # Two rounds of two steps from 0.3 to 0.1: cos is 1, sqrt(1/2), 0 and -sqrt(1/2) at the four steps.
    by_step = DistillSettings(kd_steps=2, final_learning_rate=0.1, anneal="step")
    by_round = by_step.model_copy(update={"anneal": "round"})
    assert rates(evenly(2), by_step, 0.3) == pytest.approx([0.3, 0.2 + 0.1 * 0.5**0.5, 0.2, 0.2 - 0.1 * 0.5**0.5])
    assert rates(evenly(2), by_round, 0.3) == pytest.approx([0.3, 0.3, 0.2, 0.2])
    # The first of the rounds goes a quarter of the way: cos(pi / 8), cos(pi / 4) and cos(5 pi / 8).
    uneven = [0.2 + 0.1 * math.cos(math.pi * share) for share in (0, 1 / 8, 1 / 4, 5 / 8)]
    assert rates((0.25, 1.0), by_step, 0.3) == pytest.approx(uneven)


def test_annealed_by_the_round_the_rate_is_that_of_torch_stepped_once_an_epoch() -> None:
    # As the published code does: 300 epochs of learning, from 0.2 down to 2e-4.
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 300, eta_min=2e-4)
    settings = DistillSettings(kd_steps=400, final_learning_rate=2e-4, anneal="round")
    ours = rates(evenly(300), settings, 0.2)
    for epoch in range(300):
        for step in (400 * epoch, 400 * epoch + 399):
            assert ours[step] == pytest.approx(scheduler.get_last_lr()[0], rel=1e-6)
        optimiser.step()
        scheduler.step()


def test_seconds_are_the_mean_over_calls_after_one_to_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 11.0, 20.0, 22.0, 30.0, 36.0])  # calls of 1, 2 and 6 seconds
    calls: list[None] = []
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    assert seconds_for(lambda: calls.append(None), CPU, repeats=3) == 3.0
    assert len(calls) == 4
