import itertools
import json
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from compress.pipeline import probes
from compress.pipeline.device import Compute
from compress.pipeline.distillation import loop
from compress.pipeline.distillation import stage as module
from compress.pipeline.distillation.checkpoint import RESUME_FILES
from compress.pipeline.distillation.learner import Learner, Monitor
from compress.pipeline.distillation.metrics_file import METRICS_FILE
from compress.pipeline.distillation.schedule import Schedule, Speed, cosine, evenly
from compress.pipeline.distillation.stage import (
    FINAL_SAMPLES_FILE,
    LAST_FILE,
    POOL_FILE,
    PROBES_FILE,
    STUDENT_FILE,
    WARMUP_SAMPLES_FILE,
    distill,
    speed_here,
)
from compress.pipeline.networks import NetworkSpec, build
from compress.pipeline.networks.convnext import ConvNeXtSpec
from compress.pipeline.networks.normalised import Normalised
from compress.pipeline.networks.resnet import ResNetSpec
from compress.pipeline.networks.vit import ViTSpec
from compress.pipeline.probes import Probes, held_out_images, recognised, teacher_logits
from compress.pipeline.records import DistillRecord
from compress.pipeline.settings import Settings, StudentSettings, merge
from compress.pipeline.stages import SECONDS_FILE
from compress.pipeline.students import StudentPlan, inheriting_student, plan_student
from compress.pipeline.synthesis import mixing as mixing_module
from compress.pipeline.synthesis.pool import NO_CLASS, ImagePool
from compress.pipeline.synthesis.synthesiser import Synthesiser, SyntheticBatch
from compress.pipeline.teacher import Teacher
from tests.test_checkpoint import flip_bit
from tests.tiny import (
    CPU,
    Listener,
    copied,
    record_of,
    same_tensors,
    tiny_embeddings,
    tiny_settings,
    tiny_spec,
    tiny_teacher,
)

ROUNDS = 5
"""Two of warm-up, three of learning, and a generator that lives for two of them."""

KEPT = {
    *(STUDENT_FILE, LAST_FILE, POOL_FILE, PROBES_FILE, METRICS_FILE, SECONDS_FILE),
    *(WARMUP_SAMPLES_FILE, FINAL_SAMPLES_FILE),
}
"""What a run leaves behind."""

LITTLE: dict[str, Any] = {"batch_size": 4, "steps": 1}
"""Synthesis for tests that do not look at the images."""


def settings(**changes: Any) -> Settings:
    usual: dict[str, Any] = {
        "synthesis": {"batch_size": 12, "steps": 1, "generator_life": 2},
        "distill": {"warmup_rounds": 2, "warmup_batches": 2, "rounds": 3, "kd_steps": 2, "batch_size": 8},
        "probes": {"batches": 1, "generators": 1, "warmup_batches": 1},
    }
    return tiny_settings(**merge(usual, changes))


def plan(name: str = "inherit-1-1", teacher: Teacher | None = None) -> StudentPlan:
    record = (teacher or tiny_teacher()).record
    if name == "inherit-1-1":  # without counting all others first
        return inheriting_student(ResNetSpec.model_validate(record.spec), (1, 1))
    return plan_student(record, StudentSettings(name=name))


def run(
    folder: Path,
    *,
    interrupt_after: int | None = None,
    student: str = "inherit-1-1",
    teacher: Teacher | None = None,
    compute: Compute = CPU,
    budget_seconds: float | None = None,
    **changes: Any,
) -> tuple[DistillRecord, list[int]]:
    """What distillation hands on, and the rounds that it went through."""
    folder.mkdir(exist_ok=True)
    teacher, listener = teacher or tiny_teacher(), Listener(interrupt_after=interrupt_after)
    record = distill(
        teacher,
        tiny_embeddings(),
        plan(student, teacher),
        settings(**changes),
        compute,
        folder,
        listener,
        budget_seconds,
    )
    return record, [done for done, _, _ in listener.heard]


def interrupt(folder: Path, after: int, **options: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(folder, interrupt_after=after, **options)


def results(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in (STUDENT_FILE, LAST_FILE, POOL_FILE, PROBES_FILE)}


def results_and_more(folder: Path) -> set[str]:
    """Names of the files that are left, without those that only serve to continue and go when the stage is whole."""
    passing = {path for pattern in RESUME_FILES for path in folder.glob(pattern)}
    return {path.name for path in folder.iterdir() if path not in passing}


def timeless(record: DistillRecord) -> str:
    """The record as JSON, without the seconds in its history."""
    content = record.model_dump(mode="json")
    for point in content["history"]:
        del point["seconds"]
    return json.dumps(content)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DistillRecord]:
    """A run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    record, heard = run(folder)
    assert heard == list(range(1, ROUNDS + 1))
    return folder, record


# What is left


def test_only_the_results_are_left(whole: tuple[Path, DistillRecord]) -> None:
    assert results_and_more(whole[0]) == KEPT


def test_the_record_says_what_was_made(whole: tuple[Path, DistillRecord]) -> None:
    folder, record = whole
    assert (record.student, record.inherited) == ("inherit-1-1", True)
    assert record.parameters == sum(p.numel() for p in build(record.spec).parameters())
    assert (record.warmup_rounds, record.rounds, record.kd_steps) == (2, 3, 6)
    assert record.pool_images == len(ImagePool.load(folder / POOL_FILE)) == 2 * 2 * 12 + 3 * 12
    found = Probes.load(folder / PROBES_FILE)
    assert record.probes == len(found.images) > 24 == found.made.sum()  # five of each of four classes, in batches of 12
    assert record.notes == ()


def test_the_record_comes_back_from_its_json(whole: tuple[Path, DistillRecord]) -> None:
    again = DistillRecord.model_validate_json(json.dumps(whole[1].model_dump(mode="json")))
    assert again.model_dump_json() == whole[1].model_dump_json()


def test_the_history_tells_warm_up_from_learning(whole: tuple[Path, DistillRecord]) -> None:
    history = whole[1].history
    assert [point.round for point in history] == list(range(ROUNDS))
    assert [point.pool_images for point in history] == [24, 48, 60, 72, 84]
    assert [point.kd_steps for point in history] == [0, 0, 2, 4, 6]
    assert [math.isnan(point.kd_loss) for point in history] == [True] * 2 + [False] * 3  # nothing is learned yet
    assert [point.monitor_agreement is None for point in history] == [True] * 2 + [False] * 3
    assert all(0 < point.synthesis_loss < 1e6 for point in history)
    seconds = [point.seconds for point in history]
    assert seconds == sorted(seconds)


def test_figures_follow_the_rounds(tmp_path: Path) -> None:
    listener = Listener()
    distill(tiny_teacher(), tiny_embeddings(), plan(), settings(), CPU, tmp_path, listener)
    assert [(done, total) for done, total, _ in listener.heard] == [(n, ROUNDS) for n in range(1, ROUNDS + 1)]
    assert listener.heard[0][2].startswith("warm-up, synthesis loss ")
    assert "probe agreement " in listener.heard[-1][2] and listener.heard[-1][2].endswith("%")


def loaded(folder: Path, record: DistillRecord) -> Normalised:
    student = Normalised(build(record.spec), (0.4,) * 3, (0.2,) * 3)
    student.load_state_dict(load_file(folder / STUDENT_FILE))
    return student.eval()


def test_the_student_on_disk_agrees_as_recorded(whole: tuple[Path, DistillRecord]) -> None:
    folder, record = whole
    images, targets, _ = held_out_images(
        tiny_teacher(), tiny_embeddings(), settings(), CPU, purpose="monitor", batches=1, generators=1
    )
    images = images[recognised(tiny_teacher(), images, targets)]
    monitor = Monitor(images, teacher_logits(tiny_teacher(), images).argmax(1))
    assert monitor.agreement(loaded(folder, record)) == record.monitor_agreement
    assert record.monitor_agreement == max(point.monitor_agreement or 0 for point in record.history)


def test_the_probes_say_what_the_teacher_says(whole: tuple[Path, DistillRecord]) -> None:
    made = Probes.load(whole[0] / PROBES_FILE)
    expected = tiny_teacher().logits(torch.from_numpy(made.images) / 255)
    torch.testing.assert_close(torch.from_numpy(made.teacher_logits), expected)


def test_a_student_of_random_weights_learns_from_its_teacher(tmp_path: Path) -> None:
    longer = {"rounds": 5, "kd_steps": 20, "batch_size": 32, "learning_rate": 0.05}
    record, _ = run(tmp_path, student="resnet8-w0.5", distill=longer, synthesis={"batch_size": 24, "steps": 2})
    losses = [point.kl_loss or math.nan for point in record.history[2:]]
    assert losses[-1] < 0.3 * losses[0]
    assert not record.inherited


# The loop


def test_warm_up_synthesises_without_the_student_and_learning_against_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    against: list[bool] = []
    make = Synthesiser.make

    def watched(self: Synthesiser, student: nn.Module | None = None, targets: Tensor | None = None) -> SyntheticBatch:
        against.append(student is not None)
        return make(self, student, targets)

    monkeypatch.setattr(Synthesiser, "make", watched)
    run(tmp_path, distill={"batches": 3}, synthesis=LITTLE)
    # The monitor's two batches, the warm-up's, those of learning, the probes': one to warm up, five of four images, so
    # that each of the four classes has five.
    assert against == [False] * 2 + [False] * 2 * 2 + [True] * 3 * 3 + [False] * 6


@pytest.mark.parametrize(
    ("life", "expected"),
    [
        (2, [2, 3, 5]),  # in warm-up by the round's number, from then on counted from the first round of learning
        (3, [3, 6]),
        (10, [3]),
        (1, [1, 2, 3, 4, 5, 6]),
    ],
)
def test_the_generator_is_replaced_when_its_life_is_over_and_when_learning_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, life: int, expected: list[int]
) -> None:
    renewed: list[int] = []
    renew, run_round = Synthesiser.renew, loop.Distillation.run_round
    current = [-1]

    def watched_round(self: loop.Distillation, number: int, *rest: Any) -> Any:
        current[0] = number
        return run_round(self, number, *rest)

    def watched_renew(self: Synthesiser) -> None:
        renewed.append(current[0])
        renew(self)

    monkeypatch.setattr(loop.Distillation, "run_round", watched_round)
    monkeypatch.setattr(Synthesiser, "renew", watched_renew)
    rounds = {"warmup_rounds": 3, "rounds": 4}
    run(tmp_path, distill=rounds, synthesis=LITTLE | {"generator_life": life})
    assert renewed == expected


@pytest.mark.parametrize(("student", "first"), [("inherit-1-1", 0.06), ("resnet8-w0.5", 0.2)])
def test_the_rate_falls_in_half_a_cosine_over_all_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, student: str, first: float
) -> None:
    rates: list[float] = []
    step = Learner.step

    def watched(self: Learner, images: Tensor, rate: float) -> Tensor:
        assert images.shape == (8, 3, 8, 8)
        rates.append(rate)
        return step(self, images, rate)

    monkeypatch.setattr(Learner, "step", watched)
    ends = {"learning_rate": 0.2, "inherited_learning_rate": 0.06, "final_learning_rate": 0.001}
    run(tmp_path, student=student, distill={"warmup_rounds": 1, "rounds": 3, "kd_steps": 4} | ends, synthesis=LITTLE)
    assert rates == [pytest.approx(cosine(number / 12, first, 0.001)) for number in range(12)]


@pytest.mark.parametrize(
    ("selection", "agreements", "shipped"),
    [
        ("best", [0.2, 0.9, 0.3], 1),
        ("best", [0.9, 0.9, 0.1], 1),
        ("best", [0.9, 0.2, 0.3], 0),
        ("last", [0.9, 0.2, 0.3], 2),
    ],
)
def test_the_student_of_the_best_moment_is_shipped_and_later_ones_win_ties_unless_the_last_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, selection: str, agreements: list[float], shipped: int
) -> None:
    moments: list[dict[str, Tensor]] = []

    def scripted(self: Monitor, student: nn.Module) -> float:
        moments.append(copied(student))
        return agreements[len(moments) - 1]

    monkeypatch.setattr(Monitor, "agreement", scripted)
    record, _ = run(tmp_path, synthesis=LITTLE, distill={"selection": selection})
    assert [point.monitor_agreement for point in record.history[2:]] == agreements
    assert record.monitor_agreement == agreements[shipped]
    assert same_tensors(load_file(tmp_path / STUDENT_FILE), moments[shipped])


@pytest.mark.parametrize(("mixing", "mixed_images"), [("none", 0), ("cutmix", 6), ("mixup", 6)])
def test_the_student_learns_from_mixed_images_where_that_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mixing: str, mixed_images: int
) -> None:
    calls: list[int] = []

    def watched(mix: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        calls.append(len(images))
        return mix(images)

    for name in ("cutmix", "mixup"):
        monkeypatch.setattr(mixing_module, name, partial(watched, getattr(mixing_module, name)))
    run(tmp_path, synthesis=LITTLE, distill={"mixing": mixing, "mixed_share": 1.0})
    assert calls == [8] * mixed_images


@pytest.mark.parametrize(("student", "times"), [("inherit-1-1", 1), ("resnet8-w0.5", 0)])
def test_only_a_student_that_lost_blocks_has_its_statistics_estimated_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, student: str, times: int
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(Learner, "recalibrate", lambda self, images: calls.append(len(images)))
    run(tmp_path, student=student, synthesis=LITTLE)
    assert calls == [2 * 2 * 4 + 4] * times  # with the images of the warm-up and of the first round of learning


@pytest.mark.parametrize("anneal", ["step", "round"])
def test_the_rate_is_annealed_by_the_step_or_by_the_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, anneal: str
) -> None:
    rates: list[float] = []
    step = Learner.step

    def watched(self: Learner, images: Tensor, rate: float) -> Tensor:
        rates.append(rate)
        return step(self, images, rate)

    monkeypatch.setattr(Learner, "step", watched)
    ends = {"inherited_learning_rate": 0.06, "final_learning_rate": 0.001, "anneal": anneal}
    run(tmp_path, distill={"warmup_rounds": 1, "rounds": 2, "kd_steps": 2} | ends, synthesis=LITTLE)
    steps = [0, 1, 2, 3] if anneal == "step" else [0, 0, 2, 2]
    assert rates == [pytest.approx(cosine(number / 4, 0.06, 0.001)) for number in steps]


@pytest.mark.parametrize("limit", [5, 30, 100, None])
def test_the_pool_keeps_to_its_limit(tmp_path: Path, limit: int | None) -> None:
    record, _ = run(tmp_path, distill={"warmup_rounds": 2, "rounds": 2, "pool_limit": limit})
    # Two rounds of two batches and two of one: 72 images, if there is room.
    expected = [min(limit or 100, images) for images in (24, 48, 60, 72)]
    assert [point.pool_images for point in record.history] == expected
    assert len(ImagePool.load(tmp_path / POOL_FILE)) == record.pool_images == expected[-1]


def test_no_probe_was_trained_on_or_chosen_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held_out: dict[str, set[bytes]] = {}
    make = probes.held_out_images

    def watched(*arguments: Any, purpose: str, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
        made: tuple[Tensor, Tensor, Tensor] = make(*arguments, purpose=purpose, **options)
        held_out[purpose] = {image.numpy().tobytes() for image in made[0]}
        return made

    monkeypatch.setattr(probes, "held_out_images", watched)
    monkeypatch.setattr(module, "held_out_images", watched)
    run(tmp_path)
    pool = {image.numpy().tobytes() for image in ImagePool.load(tmp_path / POOL_FILE).images}
    found = Probes.load(tmp_path / PROBES_FILE).images
    final = {image.tobytes() for image in found}
    assert [len(images) for images in (pool, held_out["monitor"], held_out["probes"])] == [84, 12, 24]
    assert len(found) > 12
    assert not pool & (final | held_out["probes"])
    assert not pool & held_out["monitor"]
    assert not held_out["monitor"] & (final | held_out["probes"])


def test_bf16_distils_into_float32_weights(tmp_path: Path) -> None:
    record, _ = run(tmp_path, compute=Compute(device=torch.device("cpu"), bf16=True))
    weights = load_file(tmp_path / STUDENT_FILE)
    assert {value.dtype for value in weights.values()} == {torch.float32, torch.int64}
    assert all(value.isfinite().all() for value in weights.values())
    assert record.history[-1].kd_loss >= 0


# The same bits


def test_the_same_seed_gives_the_same_bytes(whole: tuple[Path, DistillRecord], tmp_path: Path) -> None:
    torch.manual_seed(99)
    record, _ = run(tmp_path)
    assert results(tmp_path) == results(whole[0])
    assert timeless(record) == timeless(whole[1])


def test_another_seed_gives_others(whole: tuple[Path, DistillRecord], tmp_path: Path) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    other = settings().model_copy(update={"seed": 1})
    distill(tiny_teacher(), tiny_embeddings(), plan(), other, CPU, folder, Listener())
    expected = results(whole[0])
    assert all(content != expected[name] for name, content in results(folder).items())


@pytest.mark.parametrize("after", [[1], [2], [3], [ROUNDS], [1, 4]])
def test_an_interrupted_run_continues_to_the_same_bytes(
    whole: tuple[Path, DistillRecord], tmp_path: Path, after: list[int]
) -> None:
    for round_number in after:
        interrupt(tmp_path, round_number)
        torch.manual_seed(round_number)
    record, heard = run(tmp_path)
    assert heard == list(range(after[-1] + 1, ROUNDS + 1))
    assert results(tmp_path) == results(whole[0])
    assert timeless(record) == timeless(whole[1])
    assert results_and_more(tmp_path) == KEPT


def test_the_choice_of_blocks_is_remembered_over_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compress.pipeline.distillation.learner.choose_blocks", lambda *_: ((1,), (0,)))
    assert plan().kept_blocks == ((0,), (0,))
    interrupt(tmp_path, 4)  # behind the first round of learning, which the choice is made in
    assert run(tmp_path)[0].kept_blocks == ((1,), (0,))
    assert run(tmp_path / "random", student="resnet8-w0.5")[0].kept_blocks is None


OTHERS: dict[str, dict[str, Any]] = {
    "random weights, prioritised replay, and a pool that overflows": {
        "student": "resnet8-w0.5",
        "distill": {"pool_limit": 17, "replay_priority": 0.6},
    },
    "grey images, a pool smaller than a batch, classes that do not divide it": {
        "teacher": {"channels": 1, "shortcut": "pad", "size": 9},
        "distill": {"pool_limit": 5},
        "synthesis": {"batch_size": 11, "generator_life": 3},
    },
    "no batch norm, momentum or average, and a generator for life": {
        "teacher": {"batch_norm": False},
        "distill": {"optimiser": "sgd", "momentum": 0.0, "average_decay": 0.0},
        "synthesis": {"generator_life": 100},
    },
}


@pytest.mark.parametrize("options", OTHERS.values(), ids=OTHERS)
def test_whatever_is_distilled_continues_to_the_same_bytes(tmp_path: Path, options: dict[str, Any]) -> None:
    def attempt(folder: Path, interrupt_after: int | None = None) -> DistillRecord:
        teacher = tiny_teacher(**options.get("teacher", {}))
        return run(folder, interrupt_after=interrupt_after, **{**options, "teacher": teacher})[0]

    expected = attempt(tmp_path / "whole")
    for after in (1, 4):
        with pytest.raises(KeyboardInterrupt):
            attempt(tmp_path / "cut", interrupt_after=after)
    assert timeless(attempt(tmp_path / "cut")) == timeless(expected)
    assert results(tmp_path / "cut") == results(tmp_path / "whole")


def interrupted_call(function: Callable[..., Any], call: int) -> Callable[..., Any]:
    """The function, interrupted at its nth call before it does anything."""
    calls = iter(range(1, 10_000))

    def watched(*arguments: Any, **options: Any) -> Any:
        if next(calls) == call:
            raise KeyboardInterrupt
        return function(*arguments, **options)

    return watched


@pytest.mark.parametrize(
    ("owner", "name", "call", "left"),
    [
        (Synthesiser, "make", 2, ROUNDS),  # while the monitor is made
        (Synthesiser, "make", 6, ROUNDS - 1),  # in the second round, half of its images there
        (Learner, "step", 4, 2),  # in the second round of learning
        (loop, "save_checkpoint", 1, ROUNDS),  # before anything was done
        (loop, "save_checkpoint", 6, 1),  # a round done, and no checkpoint of it
        (module, "make_probes", 1, 0),  # when all is learned
        (module, "DistillRecord", 1, 0),  # with all results written
    ],
)
def test_an_interruption_at_any_moment_does_no_harm(
    whole: tuple[Path, DistillRecord],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    call: int,
    left: int,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupted_call(getattr(owner, name), call))
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    record, heard = run(tmp_path)
    assert len(heard) == left
    assert results(tmp_path) == results(whole[0])
    assert timeless(record) == timeless(whole[1])


@pytest.mark.parametrize("pattern", ["checkpoint-*.safetensors", "checkpoint-*.index", "pool-*.safetensors"])
def test_a_damaged_checkpoint_is_told_and_the_one_before_is_taken(
    whole: tuple[Path, DistillRecord], tmp_path: Path, pattern: str
) -> None:
    interrupt(tmp_path, 4)
    damaged = max(tmp_path.glob(pattern))
    flip_bit(damaged, damaged.stat().st_size // 2)
    record, heard = run(tmp_path)
    assert heard == [4, 5]
    assert results(tmp_path) == results(whole[0])
    (note,) = record.notes
    assert note.startswith("The newest checkpoint could not be used, so it goes on from the one before: ")
    assert damaged.name in note and "changed." in note
    assert timeless(record.model_copy(update={"notes": ()})) == timeless(whole[1])


def test_when_no_checkpoint_is_usable_that_is_told_and_everything_done_again(
    whole: tuple[Path, DistillRecord], tmp_path: Path
) -> None:
    interrupt(tmp_path, 4)
    flip_bit(min(tmp_path.glob("pool-*.safetensors")), -1)  # images of the first round, which all need
    record, heard = run(tmp_path)
    assert heard == list(range(1, ROUNDS + 1))
    assert results(tmp_path) == results(whole[0])
    (note,) = record.notes
    assert note.startswith("The newest checkpoint could not be used, so distillation starts over: pool-000001.saf")


def test_another_number_of_threads_starts_over_and_says_so(
    whole: tuple[Path, DistillRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Sums over threads differ in their last bits, so a run that went on would match neither number.
    interrupt(tmp_path, 4)
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    record, heard = run(tmp_path)
    assert heard == list(range(1, ROUNDS + 1))
    assert results(tmp_path) == results(whole[0])
    before, now = (f"{count} threads in 1 process" for count in (threads, threads + 1))
    assert record.notes == (f"Distillation starts over: it was begun with {before}, and sums over {now} differ.",)


# Time


def test_a_student_of_other_shapes_learns_through_adapters_that_survive_an_interruption(tmp_path: Path) -> None:
    often = {"checkpoint_seconds": 0.0}
    run(tmp_path / "whole", student="resnet8", distill=often)
    interrupt(tmp_path / "cut", 4, student="resnet8", distill=often)
    record, _ = run(tmp_path / "cut", student="resnet8", distill=often)
    assert results(tmp_path / "cut") == results(tmp_path / "whole")
    assert record.history[-1].stage_loss is not None
    assert set(load_file(tmp_path / "cut" / STUDENT_FILE)) == {
        f"network.{name}" for name in build(plan("resnet8").spec).state_dict()
    }


def test_a_pause_does_not_count_as_time_spent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def tick() -> float:
        now[0] += 1
        return now[0]

    with monkeypatch.context() as patch:
        patch.setattr(time, "monotonic", tick)
        interrupt(tmp_path, 4)
        spent = json.loads((tmp_path / SECONDS_FILE).read_bytes())
        now[0] += 1e6
        record, _ = run(tmp_path)
    seconds = [point.seconds for point in record.history]
    assert seconds == sorted(seconds)
    assert seconds[3] == spent
    assert seconds[-1] < 1000
    # What it takes to continue is no part of the first round after it: that is as long by the clock as the next one.
    rounds = [after - before for before, after in itertools.pairwise(seconds)]
    assert rounds[3] <= rounds[2] + 2
    assert json.loads((tmp_path / SECONDS_FILE).read_bytes()) == seconds[-1]


SPEED = Speed(synthesis=1.0, adversarial_synthesis=1.0, kd_step=1.0)
"""A round of warm-up takes 2 s, one of learning 1 + 2 = 3 s, held-out images 2 + 2 = 4 s."""


def as_first_planned(schedule: Schedule, *_: object) -> Schedule:
    return schedule.model_copy(update={"annealed": evenly(schedule.rounds)})


def test_a_budget_decides_on_the_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "speed_here", lambda *_: SPEED)
    monkeypatch.setattr(module, "replan", as_first_planned)
    record, heard = run(tmp_path, budget_seconds=40.0, synthesis=LITTLE)
    # A quarter of the budget is for later: eight batches of held-out images take 8 s: 0.95 * 30 - 8 = 20.5 s. A
    # quarter is 2 rounds of warm-up, which leave 16.5 s for 5 rounds of learning.
    assert (record.warmup_rounds, record.rounds, len(heard)) == (2, 5, 7)
    assert record.notes == ()


UNEVEN = (0.2, 0.7, 1.0)


def three_uneven_rounds(schedule: Schedule, seconds: list[float], _: object) -> Schedule:
    """Decides on each round of learning when the one before it has ended."""
    decided = max(len(seconds) - schedule.warmup_rounds + 1, 1)
    return schedule.model_copy(update={"rounds": 3, "annealed": UNEVEN[:decided]})


def test_the_plan_is_corrected_after_every_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "speed_here", lambda *_: SPEED)
    monkeypatch.setattr(module, "replan", three_uneven_rounds)
    record, heard = run(tmp_path, budget_seconds=40.0, synthesis=LITTLE)
    assert (record.warmup_rounds, record.rounds, record.annealed, len(heard)) == (2, 3, UNEVEN, 5)
    ended = [point.learning_rate for point in record.history if point.learning_rate is not None]
    rate, last = settings().distill.inherited_learning_rate, settings().distill.final_learning_rate
    # Each round has two steps, and its second one is halfway.
    assert ended == [pytest.approx(cosine(done, rate, last)) for done in (0.1, 0.45, 0.85)]


def test_a_round_that_is_continued_keeps_its_part_of_the_cosine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "speed_here", lambda *_: SPEED)
    monkeypatch.setattr(module, "replan", three_uneven_rounds)
    run(tmp_path / "whole", budget_seconds=40.0, synthesis=LITTLE)
    interrupt(tmp_path / "cut", 4, budget_seconds=40.0, synthesis=LITTLE)
    run(tmp_path / "cut", budget_seconds=40.0, synthesis=LITTLE)
    assert results(tmp_path / "cut") == results(tmp_path / "whole")


def test_a_continued_run_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(tmp_path, 2)
    told: list[str] = []
    monkeypatch.setattr(Listener, "note", lambda _, text, severity="note": told.append(text), raising=False)
    run(tmp_path)
    assert told == [f"It continues after 2 of {ROUNDS} rounds."]


def test_a_continued_run_keeps_the_plan_of_the_first_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "speed_here", lambda *_: SPEED)
    monkeypatch.setattr(module, "replan", as_first_planned)
    run(tmp_path / "whole", budget_seconds=40.0, synthesis=LITTLE)
    interrupt(tmp_path / "cut", 4, budget_seconds=40.0, synthesis=LITTLE)
    slower = Speed(synthesis=3.0, adversarial_synthesis=3.0, kd_step=3.0)
    monkeypatch.setattr(module, "speed_here", lambda *_: slower)
    record, heard = run(tmp_path / "cut", budget_seconds=20.0, synthesis=LITTLE)
    assert heard == [5, 6, 7]
    assert (record.warmup_rounds, record.rounds) == (2, 5)
    assert results(tmp_path / "cut") == results(tmp_path / "whole")


def test_when_time_is_up_the_run_ends_after_a_round_of_learning_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = Schedule(warmup_rounds=2, rounds=5, deadline=0.0, annealed=evenly(5))
    monkeypatch.setattr(module, "speed_here", lambda *_: SPEED)
    monkeypatch.setattr(module, "plan_schedule", lambda *_: late)
    with monkeypatch.context() as patch:
        patch.setattr(module, "make_probes", interrupted_call(probes.make_probes, 1))
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, budget_seconds=1.0)
    record, heard = run(tmp_path, budget_seconds=1.0)
    assert heard == []  # time was up before the interruption, and still is
    assert (record.warmup_rounds, record.rounds) == (2, 1)
    assert record.notes == ("The budget ended distillation after 3 of 7 planned rounds.",)
    assert (tmp_path / STUDENT_FILE).exists()


@pytest.mark.parametrize(("deadline", "annealed"), [(0.0, UNEVEN[:1]), (1e6, UNEVEN)])
def test_a_run_under_a_budget_is_repeated_by_how_far_its_cosine_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deadline: float, annealed: tuple[float, ...]
) -> None:
    planned = Schedule(warmup_rounds=2, rounds=3, deadline=deadline, annealed=UNEVEN)
    monkeypatch.setattr(module, "speed_here", lambda *_: SPEED)
    monkeypatch.setattr(module, "plan_schedule", lambda *_: planned)
    record, _ = run(tmp_path / "ended", budget_seconds=1.0)
    assert record.annealed == annealed
    monkeypatch.undo()
    run(tmp_path / "again", distill={"warmup_rounds": 2, "rounds": record.rounds, "annealed": record.annealed})
    assert results(tmp_path / "again") == results(tmp_path / "ended")


def test_a_run_that_ends_with_its_last_round_was_not_cut_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last = Schedule(warmup_rounds=1, rounds=1, deadline=0.0, annealed=evenly(1))
    monkeypatch.setattr(module, "speed_here", lambda *_: SPEED)
    monkeypatch.setattr(module, "plan_schedule", lambda *_: last)
    record, _ = run(tmp_path, budget_seconds=1.0)
    assert record.rounds == 1
    assert record.notes == ()


def test_measuring_the_speed_leaves_no_trace(whole: tuple[Path, DistillRecord], tmp_path: Path) -> None:
    teacher = tiny_teacher()
    before = copied(teacher.network)
    speed = speed_here(teacher, tiny_embeddings(), plan(), settings(), CPU)
    assert min(speed.synthesis, speed.adversarial_synthesis, speed.kd_step) > 0
    assert same_tensors(copied(teacher.network), before)
    run(tmp_path, teacher=teacher)
    assert results(tmp_path) == results(whole[0])


@pytest.mark.parametrize(("steps", "timed_steps", "seconds"), [(20, 4, 5 * 0.5), (3, 3, 0.5)])
def test_a_few_steps_of_the_generator_are_timed_and_stand_for_all(
    monkeypatch: pytest.MonkeyPatch, steps: int, timed_steps: int, seconds: float
) -> None:
    made: list[int] = []
    make = Synthesiser.make

    def timed(work: Callable[[], object], _: Compute) -> float:
        work()
        return 0.5

    def watched(self: Synthesiser, student: nn.Module | None = None) -> SyntheticBatch:
        made.append(self.settings.steps)
        return make(self, student)

    monkeypatch.setattr(module, "seconds_for", timed)
    monkeypatch.setattr(Synthesiser, "make", watched)
    asked = settings(synthesis={"batch_size": 3, "steps": steps})
    speed = speed_here(tiny_teacher(), tiny_embeddings(), plan(), asked, CPU)
    assert set(made) == {timed_steps}
    assert speed == Speed(synthesis=seconds, adversarial_synthesis=seconds, kd_step=0.5)


# Teachers without batch norm

WITHOUT_BATCH_NORM: dict[str, NetworkSpec] = {
    "ViT": ViTSpec(patch=4, grid=2, width=16, depth=2, heads=2, mlp_width=32, num_classes=4),
    "ConvNeXt": ConvNeXtSpec(blocks=(1, 1), widths=(8, 16), patch=2, kernel=3, num_classes=4),
    "folded ResNet": tiny_spec(batch_norm=False),
}


def teacher_of(spec: NetworkSpec) -> Teacher:
    record = record_of(spec)
    torch.manual_seed(4)
    return Teacher(record, Normalised(build(spec), record.input.mean, record.input.std))


@pytest.mark.parametrize("spec", WITHOUT_BATCH_NORM.values(), ids=WITHOUT_BATCH_NORM)
@pytest.mark.parametrize("compute", [CPU, Compute(device=torch.device("cpu"), bf16=True)], ids=["fp32", "bf16"])
def test_a_teacher_without_batch_norm_goes_through(tmp_path: Path, spec: NetworkSpec, compute: Compute) -> None:
    teacher = teacher_of(spec)
    assert not teacher.bn_statistics
    student = "inherit-1-1" if spec.family == "resnet" else "resnet8-w0.5"
    made, _ = run(tmp_path / "whole", teacher=teacher, student=student, compute=compute)
    assert all(math.isfinite(point.synthesis_loss) for point in made.history)
    assert all(math.isfinite(point.kd_loss) for point in made.history[2:])
    interrupt(tmp_path / "twice", 3, teacher=teacher, student=student, compute=compute)
    again, heard = run(tmp_path / "twice", teacher=teacher, student=student, compute=compute)
    assert heard == [4, 5]
    assert timeless(again) == timeless(made)
    assert results(tmp_path / "twice") == results(tmp_path / "whole")


@pytest.mark.parametrize(("share", "leaves"), [(0.0, 0), (1.0, 12), (0.5, 6)])
def test_dead_leaves_join_the_pool_of_a_teacher_without_batch_norm(tmp_path: Path, share: float, leaves: int) -> None:
    teacher = teacher_of(WITHOUT_BATCH_NORM["folded ResNet"])
    made, _ = run(tmp_path, teacher=teacher, synthesis={"dead_leaves": share})
    pool = ImagePool.load(tmp_path / POOL_FILE)
    batches = 2 * 2 + 3  # of the warm-up and of the learning, with 12 synthesised images each
    assert len(pool) == made.pool_images == batches * (12 + leaves)
    assert (pool.targets == NO_CLASS).sum() == batches * leaves
    assert (Probes.load(tmp_path / PROBES_FILE).targets >= 0).all()


def test_no_dead_leaves_join_the_pool_where_there_is_batch_norm(whole: tuple[Path, DistillRecord]) -> None:
    assert (ImagePool.load(whole[0] / POOL_FILE).targets >= 0).all()
