import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compress.exporters.targets import load_target
from compress.pipeline.distillation.schedule import Speed
from compress.pipeline.errors import InputError
from compress.pipeline.plan import Plan, budget_findings, make_plan
from compress.pipeline.settings import Settings, resolve_settings
from tests.command import LABELS, compress

DISTILL = {"warmup_rounds": 1, "warmup_batches": 1, "rounds": 2, "batches": 1, "kd_steps": 2}
PROBES = {"batches": 2, "generators": 1, "warmup_batches": 1, "monitor_batches": 1}


def settings(**changes: Any) -> Settings:
    plain = {"recipe": "smoke", "device": "cpu", "precision": "fp32", "distill": DISTILL, "probes": PROBES}
    return resolve_settings(plain | changes, environment={})


@pytest.fixture(autouse=True)
def known_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second a batch and a tenth of one a step: what a plan says must not depend on the machine."""
    speed = Speed(synthesis=1.0, adversarial_synthesis=1.0, kd_step=0.1)
    monkeypatch.setattr("compress.pipeline.plan.speed_here", lambda *_: speed)


def test_a_plan_says_what_a_run_would_do(teacher_file: Path, labels_file: Path) -> None:
    plan = make_plan(teacher_file, labels_file, settings())
    assert plan.teacher.startswith("ResNet-18 (CIFAR form")
    assert (plan.classes, plan.student, plan.inherited) == (len(LABELS), "inherit-1-1", True)
    assert plan.student_parameters < plan.teacher_parameters / 3
    assert (plan.target, plan.precisions) == (load_target("jetson").title, ("fp32", "int8"))
    assert (plan.warmup_rounds, plan.rounds, plan.kd_steps) == (1, 2, 4)
    assert plan.device.startswith("CPU, ")
    # 2 probe batches and 1 thrown away, 1 and 1 for the monitor, 1 of warm-up, 2 rounds of 1 batch and 2 steps.
    assert plan.expected_seconds == pytest.approx(5 + 1 + 2 * (1 + 0.2))


def test_a_plan_counts_the_real_images_that_will_be_measured(
    teacher_file: Path, labels_file: Path, tmp_path: Path
) -> None:
    images = np.zeros((5, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "real.npz", images=images)
    plan = make_plan(teacher_file, labels_file, settings(), tmp_path / "real.npz")
    assert plan.real_images == 5
    assert plan.facts()["real images"] == "5, measured beside the probes"
    assert "real images" not in make_plan(teacher_file, labels_file, settings()).facts()


def test_a_budget_decides_the_rounds(teacher_file: Path, labels_file: Path) -> None:
    short, long = (make_plan(teacher_file, labels_file, settings(budget_seconds=budget)) for budget in (60.0, 600.0))
    assert 2 < short.rounds < long.rounds
    assert short.expected_seconds < 60
    assert 300 < long.expected_seconds < 600


def test_a_named_student_and_target_are_planned_for(teacher_file: Path, labels_file: Path) -> None:
    plan = make_plan(teacher_file, labels_file, settings(student={"name": "resnet8-w0.5"}, target="onnx"))
    assert (plan.student, plan.inherited, plan.precisions) == ("resnet8-w0.5", False, ("fp32",))


def test_a_budget_that_no_run_can_keep_is_told_of() -> None:
    # The least run takes 72 s; a tenth more than the budget is what forecasts are off at times.
    (finding,) = budget_findings(60.0, 72.0)
    assert finding.message == "The budget of 60 s is too short: the least that a run takes here is about 72 s."
    assert budget_findings(66.0, 72.0) == budget_findings(None, 72.0) == ()


def test_the_facts_are_the_plan_in_words() -> None:
    plan = Plan(
        teacher="ResNet-20",
        teacher_parameters=10_000,
        student="resnet8",
        student_parameters=2_500,
        inherited=False,
        classes=10,
        target="a board",
        precisions=("fp32", "int8"),
        warmup_rounds=4,
        rounds=30,
        kd_steps=1800,
        device="CPU, 2 threads, fp32",
        findings=(),
        expected_seconds=90,
        seconds_after=42,
    )
    assert plan.facts() == {
        "teacher": "ResNet-20, 10,000 parameters, 10 classes",
        "student": "resnet8, 2,500 parameters (25% of the teacher), from random weights",
        "target": "a board: fp32, int8",
        "steps": "4 rounds of warm-up, 30 of learning, 1,800 student steps",
        "device": "CPU, 2 threads, fp32",
        "expected time": "about 1.5 min of distillation, then 0.7 min of quantization, export and validation",
    }


def test_inputs_are_checked_as_a_run_would(teacher_file: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("circle\nsquare\n")
    with pytest.raises(InputError, match="tells 4 classes apart, but the labels file names 2"):
        make_plan(teacher_file, labels, settings())


@pytest.mark.parametrize("as_json", [False, True])
def test_a_dry_run_prints_the_plan_and_writes_nothing(
    teacher_file: Path, labels_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    words = (teacher_file, "--labels", labels_file, "--recipe", "smoke", "--dry-run", "-o", tmp_path / "out")
    rounds = (f"--set=distill.{name}={value}" for name, value in DISTILL.items())
    result = compress(*words, *rounds, *(["--json"] if as_json else []))
    assert (result.exit_code, result.stderr) == (0, "")
    if as_json:
        assert Plan.model_validate(json.loads(result.stdout)).rounds == 2
    else:
        assert "inherit-1-1" in result.stdout
        assert "1 round of warm-up, 2 of learning, 4 student steps" in result.stdout
    assert list(tmp_path.iterdir()) == []
