import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.pipeline.distillation import watching
from compress.pipeline.distillation.checkpoint import remove_checkpoints
from compress.pipeline.distillation.metrics_file import METRICS_FILE
from compress.pipeline.distillation.schedule import Schedule, Speed
from compress.pipeline.distillation.stage import distill
from compress.pipeline.distillation.watching import Meter, Watch
from compress.pipeline.progress import Moment, Silent
from compress.pipeline.records import HistoryPoint
from compress.pipeline.synthesis.synthesiser import SyntheticBatch
from compress.pipeline.teacher import Teacher
from tests.test_distill import WITHOUT_BATCH_NORM, interrupt, plan, run, settings, teacher_of
from tests.tiny import CPU, tiny_embeddings, tiny_teacher

SCHEDULE = Schedule(warmup_rounds=2, rounds=3, deadline=None)
"""Of two batches a round of warm-up, one batch and two steps a round of learning; probes take three batches of 12 images,
the first of which is thrown away."""

SPEED = Speed(synthesis=10.0, adversarial_synthesis=20.0, kd_step=5.0)
"""Two rounds of warm-up take 2 * 2 * 10 = 40 s, three of learning 3 * (20 + 2 * 5) = 90 s, the probes 2 * 10 = 20 s."""


class Follower(Silent):
    """Remembers every moment, and at which of them a round was over."""

    def __init__(self) -> None:
        self.moments: list[Moment] = []
        self.rounds: list[tuple[int, int]] = []

    def moved(self, moment: Moment) -> None:
        self.moments.append(moment)

    def advance(self, done: int, total: int, figures: str) -> None:
        self.rounds.append((done, len(self.moments)))


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("compress.pipeline.distillation.watching.time.monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def batch(loss: float = 7.5) -> SyntheticBatch:
    return SyntheticBatch(torch.zeros(12, 3, 8, 8, dtype=torch.uint8), torch.zeros(12, dtype=torch.int64), loss)


def point(number: int, agreement: float | None = None) -> HistoryPoint:
    return HistoryPoint(
        round=number,
        kd_steps=0,
        pool_images=0,
        synthesis_loss=6.25,
        kd_loss=math.nan if agreement is None else 1.5,
        monitor_agreement=agreement,
        seconds=0,
    )


class Unread:
    """A loss on a device that nobody may wait for."""

    def item(self) -> float:
        raise AssertionError("the host waited for the device")


def watch(follower: Follower, *, speed: Speed | None = SPEED, spent: float = 0.0, **schedule: Any) -> Watch:
    watched = Watch(settings(), follower, spent)
    watched.begin(SCHEDULE.model_copy(update={"speed": speed, **schedule}), 0)
    return watched


def test_progress_moves_within_a_round_after_every_batch_and_between_the_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "TELL_SECONDS", 0.0)
    follower = Follower()
    distill(tiny_teacher(), tiny_embeddings(), plan(), settings(), CPU, tmp_path, follower)
    doing = [moment.doing for moment in follower.moments]
    held_out = ["held-out images, batch 1", "held-out images, batch 2"]
    warmup = ["warm-up, batch 1 of 2", "warm-up, batch 2 of 2", ""]
    learning = ["synthesis, batch 1 of 1", "learning, step 1 of 2", "learning, step 2 of 2", ""]
    assert doing == held_out + 2 * warmup + 3 * learning + [*held_out, "held-out images, batch 3"]
    assert [done for done, _ in follower.rounds] == [1, 2, 3, 4, 5]
    assert all(doing[heard - 1] == "" for _, heard in follower.rounds)


def test_time_left_is_known_from_the_warm_up_on_and_ends_at_nothing(tmp_path: Path) -> None:
    follower = Follower()
    distill(tiny_teacher(), tiny_embeddings(), plan(), settings(), CPU, tmp_path, follower)
    left = [moment.seconds_left for moment in follower.moments]
    assert left[:2] == [None, None]  # only the monitor's own images were made
    assert all(seconds is not None and 0 <= seconds < 600 for seconds in left[2:])
    assert left[-1] == pytest.approx(0, abs=1e-9)
    assert follower.moments[-1].share == pytest.approx(1)


def test_losses_and_agreement_are_told_as_they_come(clock: Clock) -> None:
    follower = Follower()
    watched = watch(follower)
    watched.batch(batch())
    watched.ended(point(0))
    watched.begin(SCHEDULE, 2)
    watched.batch(batch(0.1))  # of another loss, which says nothing about the student
    clock.now += 1
    watched.step(torch.tensor(2.5))
    watched.ended(point(2, agreement=0.875))
    clock.now += 1
    watched.begin(SCHEDULE, 3)
    watched.step(torch.tensor(2.25))
    assert [moment.figures for moment in follower.moments] == [
        "synthesis loss 7.50",
        "warm-up, synthesis loss 6.25",
        "warm-up, synthesis loss 6.25",
        "loss 2.500",
        "loss 1.500, probe agreement 87.5%",
        "loss 2.250, probe agreement 87.5%",
    ]


def test_the_host_waits_for_no_step_but_now_and_then(clock: Clock) -> None:
    follower = Follower()
    watched = watch(follower)
    watched.begin(SCHEDULE, 2)
    for _ in range(100):
        clock.now += watching.TELL_SECONDS / 200
        watched.step(Unread())  # type: ignore[arg-type]
    assert follower.moments == []
    clock.now += watching.TELL_SECONDS
    watched.step(torch.tensor(2.0))
    assert [moment.doing for moment in follower.moments] == ["learning, step 101 of 2"]


def test_time_left_counts_what_was_measured_and_expects_the_rest(clock: Clock) -> None:
    watched = watch(Follower())
    assert watched.seconds_left() == 40 + 90 + 20
    clock.now += 4
    watched.batch(batch())
    # Synthesis takes 4 s instead of 10: three batches of warm-up and two for the probes.
    assert watched.seconds_left() == 3 * 4 + 90 + 2 * 4
    watched.begin(SCHEDULE, 4)
    clock.now += 30
    watched.batch(batch())
    clock.now += 2
    watched.step(torch.tensor(1.0))
    # The last round: one more step of 2 s; the probes.
    assert watched.seconds_left() == 2 + 2 * 4
    clock.now += 2
    watched.step(torch.tensor(1.0))
    watched.begin(SCHEDULE, 5)
    clock.now += 4
    watched.held_out_batch()
    assert watched.seconds_left() == 4


def test_a_round_that_takes_longer_than_planned_leaves_no_less_than_nothing(clock: Clock) -> None:
    watched = watch(Follower())
    watched.begin(SCHEDULE, 5)
    for _ in range(9):
        watched.held_out_batch()
    assert watched.seconds_left() == 0


def test_a_budget_bounds_the_time_left(clock: Clock) -> None:
    watched = watch(Follower(), spent=30.0, deadline=100.0)
    # 150 s of work, but the rounds end 100 s after the start, 30 of which are gone; the probes come after them.
    assert watched.seconds_left() == 70 + 20


def test_earlier_runs_count_into_the_share_that_is_done(clock: Clock) -> None:
    follower = Follower()
    watched = watch(follower, spent=29.0)
    clock.now += 10
    watched.batch(batch())
    # 29 s before and 10 now are spent; three batches, learning and probes are left: 30 + 90 + 20 s.
    assert (follower.moments[0].seconds_spent, follower.moments[0].seconds_left) == (39, 140)
    assert follower.moments[0].share == pytest.approx(39 / 179)


def test_rates_are_those_of_images_and_of_steps(clock: Clock) -> None:
    follower = Follower()
    watched = watch(follower)
    clock.now += 3
    watched.batch(batch())
    watched.begin(SCHEDULE, 2)
    clock.now += 24
    watched.batch(batch())
    for _ in range(2):
        clock.now += 0.5
        watched.step(torch.tensor(1.0))
    assert [moment.rate for moment in follower.moments] == [
        "4.0 images a second",  # 12 in 3 s
        "2.0 s an image",  # 24 s for 12
        "2.0 steps a second",
        "2.0 steps a second",
    ]


def test_without_a_plan_a_forecast_comes_from_a_pass_through_both_networks(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []

    def timed(work: Callable[[], Tensor], *_: object, repeats: int) -> float:
        passes.append(len(work()))
        return [0.8, 0.2][len(passes) - 1]

    monkeypatch.setattr(watching, "seconds_for", timed)
    teacher, images = tiny_teacher(), torch.zeros(40, 3, 8, 8, dtype=torch.uint8)
    watched = watch(Follower(), speed=None)
    watched.expect(teacher, teacher.network, images, CPU)
    assert watched.seconds_left() is None  # nothing was synthesised yet
    clock.now += 6
    watched.held_out_batch()
    watched.expect(teacher, teacher.network, images, CPU)
    assert passes == [watching.TIMED_IMAGES] * 2
    # 1/160 s an image through the student, 12 images and one step a batch: 6 + 2 * 12 / 160; 8 images a step of the
    # student, and 1/40 s an image through the teacher: 8 * (1/40 + 3/160).
    assert watched.expected is not None
    assert watched.expected.model_dump() == pytest.approx(
        {"synthesis": 6, "adversarial_synthesis": 6.15, "kd_step": 0.35, "ranks": 1}
    )
    watched.expect(teacher, teacher.network, images, CPU)
    assert len(passes) == 2


def test_recent_rounds_weigh_more_and_the_last_piece_is_never_forgotten() -> None:
    meter = Meter()
    for seconds in (4.0, 4.0, 4.0, 4.0):
        meter.add(seconds)
    meter.age()
    for seconds in (1.0, 1.0):
        meter.add(seconds)
    assert meter.seconds / meter.pieces == (2 * 4 + 2 * 1) / 4
    for _ in range(3000):
        meter.age()
    assert meter.seconds / meter.pieces == 2.5


# What is written


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]


def timeless(folder: Path) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines(folder)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    run(folder)
    return folder


def test_the_metrics_are_the_history(whole: Path, tmp_path: Path) -> None:
    record, _ = run(tmp_path)
    assert timeless(tmp_path) == timeless(whole)
    history = [point.model_dump(mode="json") for point in record.history]
    for told, remembered in zip(lines(tmp_path), history, strict=True):
        assert told == remembered | ({"kd_loss": None} if math.isnan(remembered["kd_loss"]) else {})


def test_the_parts_add_up_to_the_losses(whole: Path) -> None:
    synthesis, student = settings().synthesis, settings().distill
    for line in lines(whole):
        # One step a batch, so the mean over the steps is the mean over the kept images.
        parts = synthesis.batch_norm_weight * line["batch_norm_loss"] + synthesis.one_hot_weight * line["one_hot_loss"]
        adversarial = line["adversarial_loss"] or 0.0
        assert line["synthesis_loss"] == pytest.approx(parts + synthesis.adversarial_weight * adversarial, rel=1e-5)
        assert (line["adversarial_loss"] is None) == (line["kd_loss"] is None) == (line["round"] < 2)
        assert line["prior_loss"] is None
    for line in lines(whole)[2:]:
        whole_loss = line["kl_loss"] + student.stage_weight * line["stage_loss"]
        assert line["kd_loss"] == pytest.approx(whole_loss, rel=1e-5)
    rates = [line["learning_rate"] for line in lines(whole)]
    assert rates[:2] == [None, None]
    assert rates[2:] == sorted(rates[2:], reverse=True)


def test_a_teacher_without_batch_norm_tells_its_prior_instead(tmp_path: Path) -> None:
    teacher: Teacher = teacher_of(WITHOUT_BATCH_NORM["ViT"])
    run(tmp_path, teacher=teacher, student="resnet8-w0.5")
    assert all(line["prior_loss"] > 0 and line["batch_norm_loss"] is None for line in lines(tmp_path))
    # Its layers and the student's stages have other shapes, and are matched through adapters once the student learns.
    assert all((line["stage_loss"] is not None) == (line["kl_loss"] is not None) for line in lines(tmp_path))
    assert any(line["stage_loss"] is not None for line in lines(tmp_path))


@pytest.mark.parametrize("after", [[1], [4], [2, 3]])
def test_a_continued_run_tells_every_round_once(whole: Path, tmp_path: Path, after: list[int]) -> None:
    for round_number in after:
        interrupt(tmp_path, round_number)
        assert [line["round"] for line in lines(tmp_path)] == list(range(round_number))
        with (tmp_path / METRICS_FILE).open("a") as file:
            file.write('{"round": 9')  # as a crash may leave it
    run(tmp_path)
    assert timeless(tmp_path) == timeless(whole)


def test_a_run_that_starts_over_forgets_what_was_told(whole: Path, tmp_path: Path) -> None:
    interrupt(tmp_path, 4)
    remove_checkpoints(tmp_path)
    run(tmp_path)
    assert timeless(tmp_path) == timeless(whole)


def test_nobody_watching_changes_nothing(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Watch, "expect", lambda *_: None)
    monkeypatch.setattr(Watch, "_tell", lambda *_: None)
    run(tmp_path)
    student = "student.safetensors"
    assert (tmp_path / student).read_bytes() == (whole / student).read_bytes()
