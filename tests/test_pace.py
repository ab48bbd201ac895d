import pytest

from compress.pipeline.distillation.pace import Work, forecast, work_left
from compress.pipeline.distillation.schedule import Schedule, Speed, expected_seconds, synthesis_batches_held_out
from compress.pipeline.settings import DistillSettings, ProbeSettings

RECIPE = DistillSettings(warmup_rounds=4, warmup_batches=2, rounds=30, batches=1, kd_steps=20)
SCHEDULE = Schedule(warmup_rounds=4, rounds=30, deadline=None)
SPEED = Speed(synthesis=2.0, adversarial_synthesis=3.0, kd_step=0.5)


@pytest.mark.parametrize(
    ("number", "left"),
    [
        (0, Work(4 * 2 + 6, 30, 600)),
        (3, Work(1 * 2 + 6, 30, 600)),
        (4, Work(6, 30, 600)),
        (33, Work(6, 1, 20)),
        (34, Work(6, 0, 0)),
    ],
)
def test_what_is_left_are_the_rounds_from_this_one_on_and_the_probes(number: int, left: Work) -> None:
    assert work_left(SCHEDULE, RECIPE, number, held_out=6) == left


def test_before_the_first_round_all_is_left_that_was_expected() -> None:
    probes = ProbeSettings()
    left = work_left(SCHEDULE, RECIPE, 0, synthesis_batches_held_out(probes))
    assert left.seconds(SPEED) == expected_seconds(SCHEDULE, SPEED, RECIPE, probes)


def test_a_forecast_counts_passes_through_the_networks() -> None:
    # 10 + 2 * 30 * 100 * 0.001 s against the student; 128 * (0.004 + 3 * 0.001) s a step of it.
    speed = forecast(10.0, synthesis_images=3000, kd_images=128, teacher_image=0.004, student_image=0.001)
    expected = {"synthesis": 10, "adversarial_synthesis": 16, "kd_step": 0.896, "ranks": 1}
    assert speed.model_dump() == pytest.approx(expected)
