from pathlib import Path

import pytest

from compress.pipeline.errors import InputError
from compress.pipeline.inspection import Inspection, inspect_teacher, student_outlook
from compress.pipeline.records import Finding, Severity
from tests.tiny import record_of, tiny_spec


def inspection(*severities: Severity) -> Inspection:
    findings = tuple(Finding(severity=severity, topic="t", message="m") for severity in severities)
    return Inspection(**dict(record_of(tiny_spec()).model_copy(update={"findings": findings})))


@pytest.mark.parametrize(
    ("severities", "outlook"),
    [
        ((), "Nothing was found that stands in the way of distillation."),
        (("note", "note"), "Nothing was found that stands in the way of distillation."),
        (("warning", "note"), "Distillation can work; the warnings say what it may cost."),
        (("problem", "warning"), "Little can be expected of distillation before the problems are solved."),
    ],
)
def test_the_outlook_is_that_of_the_gravest_finding(severities: tuple[Severity, ...], outlook: str) -> None:
    assert inspection(*severities).outlook == outlook


def test_the_facts_name_the_architecture_and_its_input() -> None:
    facts = inspection().facts()
    assert facts["architecture"].startswith("resnet10: ResNet-10 (CIFAR form")
    assert facts["input"] == "3 x 8 x 8, mean 0.4, 0.4, 0.4, std 0.2, 0.2, 0.2"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"blocks": (3, 4)}, "can start from the teacher's blocks: 1-1 to 3-4 a stage (--student inherit-...)"),
        ({"blocks": (1, 1)}, "starts from random weights: the teacher's 1-1 blocks a stage can do without none"),
    ],
)
def test_the_facts_say_whether_a_student_can_start_from_the_teachers_blocks(
    changes: dict[str, object], sentence: str
) -> None:
    assert student_outlook(record_of(tiny_spec(**changes))) == sentence
    assert Inspection(**dict(record_of(tiny_spec(**changes)))).facts()["student"] == sentence


def test_of_an_unknown_network_no_blocks_can_be_taken() -> None:
    unknown = record_of(tiny_spec()).model_copy(update={"spec": {"family": "program"}})
    assert student_outlook(unknown) == "starts from random weights: nothing is known of the teacher's blocks"


def test_class_names_are_looked_at_where_they_are_given(teacher_file: Path, labels_file: Path) -> None:
    alone, with_names = inspect_teacher(teacher_file), inspect_teacher(teacher_file, labels_file)
    assert alone.class_names is None
    assert with_names.class_names is not None
    assert with_names.all_findings == alone.findings + with_names.class_names.findings
    assert len(with_names.all_findings) > len(alone.findings)


def test_another_number_of_names_than_of_classes_is_an_error(teacher_file: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("one\ntwo\n")
    with pytest.raises(InputError, match="tells 4 classes apart, but the labels file names 2"):
        inspect_teacher(teacher_file, tmp_path / "labels.txt")
