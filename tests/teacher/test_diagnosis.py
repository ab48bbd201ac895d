import torch
from torch import nn

from compress.pipeline.records import Finding, Severity
from compress.pipeline.teacher.checkpoint import Checkpoint
from compress.pipeline.teacher.diagnosis import by_gravity, diagnose
from compress.pipeline.teacher.model import Teacher
from tests.teacher.teachers import classifier, digits_teacher, teacher_of


def findings_of(teacher: Teacher, **batches_tracked: int) -> tuple[Finding, ...]:
    checkpoint = Checkpoint(
        file_name="teacher.pt", sha256="0" * 64, format="", tensors={}, batches_tracked=batches_tracked
    )
    return diagnose(teacher, checkpoint)


def said(findings: tuple[Finding, ...], severity: Severity) -> list[str]:
    return [finding.topic for finding in findings if finding.severity == severity]


def test_the_digits_teacher_has_nothing_wrong_with_it() -> None:
    findings = findings_of(digits_teacher())
    assert {finding.severity for finding in findings} == {"note"}
    assert sorted(finding.topic for finding in findings) == [
        "batch norm",
        "batch norm",
        "confidence",
        "normalisation",
    ]
    assert findings[0].message == "33 batch norms with statistics of 792 channels."


def test_the_digits_teacher_with_a_wrong_normalisation_has_that_said_first() -> None:
    findings = findings_of(digits_teacher(mean=0.0, std=1.0))
    assert (findings[0].severity, findings[0].topic) == ("problem", "normalisation")
    assert said(findings, "problem") == ["normalisation"]


def test_pixels_up_to_255_where_standardised_ones_were_expected_trouble_everything() -> None:
    findings = findings_of(digits_teacher(mean=0.0, std=1 / 255))
    assert said(findings, "problem") == ["normalisation"]
    assert said(findings, "warning") == ["confidence", "batch norm"]


def test_an_untrained_teacher_is_recognised() -> None:
    torch.manual_seed(0)
    findings = findings_of(teacher_of(classifier(nn.Conv2d(3, 8, 3), 8)), norm=0)
    assert said(findings, "problem") == ["batch norm"]
    assert "untrained" in str(findings[said(findings, "problem").index("batch norm") + 1])


def test_what_the_counters_tell_is_part_of_it() -> None:
    findings = findings_of(digits_teacher(), one=10_000, other=100)
    assert said(findings, "warning") == ["batch norm"]
    assert "1 of 2 batch norms have seen fewer batches" in findings[0].message


def test_findings_are_sorted_by_gravity_and_else_left_in_order() -> None:
    order: tuple[Severity, ...] = ("note", "problem", "warning", "note", "problem")
    findings = [Finding(severity=severity, topic="", message=str(number)) for number, severity in enumerate(order)]
    assert [finding.message for finding in by_gravity(findings)] == ["1", "4", "2", "0", "3"]
