import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress.pipeline.distillation.divergence import all_finite, has_diverged, running_level, silent_loss
from compress.pipeline.distillation.learner import Learner
from compress.pipeline.distillation.recovery import Measures, eased, memory_for
from compress.pipeline.errors import DivergenceError, MemoryFullError, MissingResourceError
from compress.pipeline.students.choice import choose_blocks
from compress.pipeline.synthesis.synthesiser import Synthesiser, SyntheticBatch
from tests.test_distill import interrupt, results, run, timeless
from tests.test_learner import images, tiny_learner
from tests.tiny import tiny_settings

SMALL: dict[str, Any] = {
    "synthesis": {"batch_size": 16, "steps": 1},
    "distill": {
        "warmup_rounds": 1,
        "warmup_batches": 1,
        "rounds": 2,
        "kd_steps": 2,
        "batch_size": 16,
        "inherited_learning_rate": 0.05,
    },
}


# What is a divergence


def test_a_silent_student_loses_at_most_the_uniform_answers_and_one_a_stage() -> None:
    # T^2 log K = 4^2 * 2.302585 = 36.8414, and three stages at weight 10
    assert silent_loss(4.0, 10, 10.0, 3) == pytest.approx(66.8414, abs=1e-4)


def test_the_level_is_the_lowest_mean_so_far_but_not_less_than_silence() -> None:
    losses = torch.full((20,), 3.0)
    assert running_level(losses, [], 1.0) == 3.0
    assert running_level(losses, [9.0, 2.0, 4.0], 1.0) == 2.0
    assert running_level(losses, [0.001], 1.0) == 1.0


@pytest.mark.parametrize(
    ("losses", "diverged"),
    [
        ([1.0] * 30, False),
        ([1.0, math.nan], True),
        ([1.0, math.inf, 1.0], True),
        ([1.0] + [11.0] * 9 + [1.0] * 5, False),
        ([1.0] + [11.0] * 10 + [1.0] * 5, True),
        ([10.0] * 30, False),
        ([11.0] * 9, False),
    ],
)
def test_ten_steps_in_a_row_far_above_the_level_are_a_divergence_and_so_is_what_is_not_finite(
    losses: list[float], diverged: bool
) -> None:
    assert has_diverged(torch.tensor(losses), level=1.0) is diverged


def test_infinities_are_looked_for_in_floating_point_only() -> None:
    assert all_finite([torch.ones(2), torch.tensor(7)]) and all_finite([])
    assert not all_finite([torch.ones(2), torch.tensor([1.0, math.nan])])


# Measures


def test_eased_settings_have_lower_rates_and_smaller_batches_of_as_many_images() -> None:
    before = tiny_settings()
    after = eased(before, Measures(rate_halvings=2, synthesis_halvings=1))
    assert after.distill.learning_rate == before.distill.learning_rate / 4
    assert after.distill.inherited_learning_rate == before.distill.inherited_learning_rate / 4
    assert after.synthesis.learning_rate == before.synthesis.learning_rate / 4
    assert (after.synthesis.batch_size, after.probes.batches) == (10, 4)  # 20 and 2 before
    assert eased(before, Measures()) == before


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory"), torch.cuda.OutOfMemoryError()]
)
def test_out_of_memory_is_known_in_all_its_forms(error: Exception) -> None:
    with pytest.raises(MemoryFullError, match="The memory is full") as caught, memory_for("student"):
        raise error
    assert caught.value.work == "student"


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="a shape"), memory_for("student"):
        raise RuntimeError("a shape")


def test_without_batch_norm_in_training_micro_batches_sum_up_to_the_gradient_of_the_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gradients = []
    for parts in (1, 3):
        learner = tiny_learner("resnet8")
        learner.micro_batches = parts
        train = learner.student.train
        monkeypatch.setattr(learner.student, "train", partial(train, False))  # batch norms use running statistics
        loss = learner.step(images(16), 0.1)
        weight = learner.student.get_parameter("network.conv1.weight").grad
        assert weight is not None
        gradients.append((loss, weight))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-5)


# Out of memory


def full_above(function: Callable[..., Any], limit: int, size_of: Callable[..., int]) -> Callable[..., Any]:
    """The function, for which the memory is too small above a batch size."""

    def limited(*arguments: Any, **options: Any) -> Any:
        if size_of(*arguments) > limit:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")
        return function(*arguments, **options)

    return limited


def test_a_student_step_that_does_not_fit_is_taken_in_parts_and_resumes_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited = full_above(Learner._loss, 8, lambda _, batch: len(batch))
    monkeypatch.setattr(Learner, "_loss", limited)
    record, heard = run(tmp_path / "whole", **SMALL)
    assert heard == [1, 2, 3]
    (note,) = record.notes
    assert note.startswith(
        "The memory did not hold 16 images in a student step: gradients are summed up over parts of 8"
    )
    interrupt(tmp_path / "cut", 2, **SMALL)
    again, heard = run(tmp_path / "cut", **SMALL)
    assert heard == [3]
    assert results(tmp_path / "cut") == results(tmp_path / "whole")
    assert timeless(again) == timeless(record)


def test_choosing_blocks_sees_fewer_images_where_the_memory_does_not_hold_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited = full_above(choose_blocks, 8, lambda _, planned, seen: len(seen))
    monkeypatch.setattr("compress.pipeline.distillation.learner.choose_blocks", limited)
    monkeypatch.setattr("compress.pipeline.distillation.learner.IMAGES", 16)
    record, _ = run(tmp_path, **SMALL)
    assert record.kept_blocks is not None
    assert record.notes[0].startswith("The memory did not hold 16 images in a student step")


def test_a_synthetic_batch_that_does_not_fit_is_halved_and_resumes_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Synthesiser, "_step", full_above(Synthesiser._step, 8, lambda _, targets, student: len(targets))
    )
    record, _ = run(tmp_path / "whole", **SMALL)
    assert record.notes == ("The memory did not hold a synthetic batch of 16 images: from here on they have 8.",)
    assert record.pool_images == 3 * 8
    assert record.probes == 60  # five images of each of four classes in batches of 8, in 2.5 views each
    interrupt(tmp_path / "cut", 2, **SMALL)
    again, _ = run(tmp_path / "cut", **SMALL)
    assert results(tmp_path / "cut") == results(tmp_path / "whole")
    assert timeless(again) == timeless(record)


def test_when_the_smallest_batch_does_not_fit_the_run_ends_with_a_hint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Learner, "_loss", full_above(Learner._loss, 0, lambda _, batch: len(batch)))
    with pytest.raises(MissingResourceError, match="The memory does not even hold 8 images") as caught:
        run(tmp_path, **SMALL)
    assert caught.value.exit_code == 5
    assert "--student" in caught.value.hint


# Divergence


def spoiled(monkeypatch: pytest.MonkeyPatch, above: float) -> None:
    """Steps at a rate above this spoil the student."""
    step = Learner.step

    def watched(self: Learner, batch: Tensor, rate: float) -> Tensor:
        loss = step(self, batch, rate)
        return loss * math.nan if rate > above else loss

    monkeypatch.setattr(Learner, "step", watched)


def test_after_a_divergence_it_goes_on_from_the_round_before_at_half_the_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoiled(monkeypatch, above=0.02)  # The rate begins at 0.05: halved twice, it is good.
    record, heard = run(tmp_path / "whole", **SMALL)
    assert heard == [1, 2, 3]
    found = "The student's loss grew beyond all bounds in round 2. Back to the end of the round before, rates halved "
    assert record.notes == (f"{found}(1 of 3).", f"{found}(2 of 3).")
    # A checkpoint after every step leads to the same end, a kill in between too.
    often = {**SMALL, "distill": {**SMALL["distill"], "checkpoint_seconds": 0}}
    interrupt(tmp_path / "cut", 2, **often)
    again, _ = run(tmp_path / "cut", **often)
    assert results(tmp_path / "cut") == results(tmp_path / "whole")
    assert timeless(again) == timeless(record)


def test_after_three_halvings_the_run_is_given_up_and_the_settings_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoiled(monkeypatch, above=0.0)
    with pytest.raises(DivergenceError, match="Learning rates were halved 3 times before") as caught:
        run(tmp_path, **SMALL)
    assert caught.value.exit_code == 7
    assert "distill.inherited_learning_rate" in caught.value.hint


def test_no_checkpoint_is_written_of_weights_that_are_not_finite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Learner.step

    def poisoned(self: Learner, batch: Tensor, rate: float) -> Tensor:
        loss = step(self, batch, rate)
        if rate > 0.02:
            nn.init.constant_(self.student.get_parameter("network.fc.bias"), math.inf)
        return loss

    monkeypatch.setattr(Learner, "step", poisoned)
    one = {**SMALL, "distill": {**SMALL["distill"], "kd_steps": 1}}  # so that no loss tells
    record, _ = run(tmp_path, **one)
    assert [note[:40] for note in record.notes] == ["A weight is not finite in round 2. Back "] * 2


def test_a_synthetic_batch_of_nan_is_a_divergence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = Synthesiser.make

    def spoilt(self: Synthesiser, *arguments: Any, **options: Any) -> SyntheticBatch:
        batch = make(self, *arguments, **options)
        return batch._replace(loss=math.nan) if self.settings.learning_rate > 0.002 else batch

    monkeypatch.setattr(Synthesiser, "make", spoilt)
    record, _ = run(tmp_path, **SMALL)
    assert [note[:58] for note in record.notes] == ["The loss of a synthetic batch is not finite in round 1. Ba"]


# Within a round


@pytest.mark.parametrize(("owner", "name", "call"), [(Synthesiser, "make", 5), (Learner, "step", 3)])
def test_a_run_stopped_within_a_round_goes_on_within_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int
) -> None:
    often = {**SMALL, "distill": {**SMALL["distill"], "batches": 2, "checkpoint_seconds": 0}}
    original, calls = getattr(owner, name), [0]

    def counted(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    expected, _ = run(tmp_path / "whole", **often)
    monkeypatch.setattr(owner, name, counted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", **often)
    record, _ = run(tmp_path / "cut", **often)
    # The monitor is made of two batches, and that twice; the probes of three, since each of four classes has five images.
    monitor = 2 if name == "make" else 0
    whole = 5 + 2 + 3 if name == "make" else 4
    assert calls[0] == whole + monitor + 1  # nothing was done twice but what was being done
    assert results(tmp_path / "cut") == results(tmp_path / "whole")
    assert timeless(record) == timeless(expected)
