import math

import pytest
import torch
from torch import Tensor, nn

from compress.pipeline.records import Output, Severity
from compress.pipeline.teacher.diagnosis.answer_findings import (
    SURPRISING,
    answer_findings,
    class_findings,
    confidence_finding,
    detect_output,
    duplicated_classes,
    form_findings,
    output_of,
    relative_entropy,
    surprise_finding,
    useless_finding,
)
from compress.pipeline.teacher.model import LEAST_PROBABILITY
from tests.teacher.teachers import classifier, seen, teacher_of


def logits_of(count: int = 8, classes: int = 4) -> Tensor:
    return 3 * torch.randn(count, classes, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        (logits_of(), "logits"),
        (logits_of().log_softmax(1), "log-probabilities"),
        (logits_of().softmax(1), "probabilities"),
        (logits_of().sigmoid(), "logits"),  # no distribution over classes
        (torch.tensor([[0.5, 0.5], [0.5, 0.6]]), "logits"),  # one image of several is enough to tell
        (torch.tensor([[1.5, -0.5]]), "logits"),
    ],
)
def test_the_form_of_outputs_shows_in_their_sums(outputs: Tensor, expected: Output) -> None:
    assert detect_output(outputs) == expected


@pytest.mark.parametrize(
    ("last", "expected"),
    [(nn.Identity(), "logits"), (nn.LogSoftmax(dim=1), "log-probabilities"), (nn.Softmax(dim=1), "probabilities")],
)
def test_a_teacher_is_asked_for_the_form_of_its_outputs(last: nn.Module, expected: Output) -> None:
    network = nn.Sequential(classifier(nn.Conv2d(3, 8, 3), 8), last)
    assert output_of(teacher_of(network)) == expected


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("probabilities", "The network puts out probabilities; their logarithms are used."),
        ("log-probabilities", "The network puts out log-probabilities; they are used as logits, which they are."),
    ],
)
def test_outputs_that_are_not_logits_are_worth_a_note(output: Output, message: str) -> None:
    (finding,) = form_findings(output, logits_of())
    assert (finding.severity, finding.message) == ("note", message)


def test_logits_are_nothing_to_mention() -> None:
    assert list(form_findings("logits", logits_of())) == []


def test_a_sigmoid_for_each_class_is_worth_a_warning() -> None:
    (finding,) = form_findings("logits", logits_of().sigmoid())
    assert finding.severity == "warning"
    assert "between 0 and 1 without adding up to 1" in finding.message


SAME = torch.tensor([[1.0, -2.0], [1.0, -2.0]])


@pytest.mark.parametrize("change", [0.0, 1e-6])
def test_answers_that_change_by_no_more_than_rounding_are_a_problem(change: float) -> None:
    finding = useless_finding(SAME + torch.tensor([[0.0, 0.0], [change, 0.0]]))
    assert finding is not None
    assert finding.severity == "problem"
    assert finding.message == "The teacher gives the same answer to all of 2 different images of noise."


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_answers_that_are_no_numbers_are_a_problem(value: float) -> None:
    finding = useless_finding(SAME + torch.tensor([[0.0, 0.0], [value, 0.0]]))
    assert finding is not None
    assert finding.severity == "problem"
    assert finding.message == "The teacher answers 1 of 2 images of noise with NaN or infinity."


def test_answers_that_depend_on_the_image_are_of_use() -> None:
    assert useless_finding(SAME + torch.tensor([[0.0, 0.0], [1e-3, 0.0]])) is None


def test_distinct_classes_are_nothing_to_mention() -> None:
    assert list(class_findings(logits_of())) == []


def test_logits_that_never_change_are_counted() -> None:
    logits = logits_of(classes=9)
    logits[:, 2:9] = 0
    (finding,) = class_findings(logits)
    assert finding.severity == "warning"
    assert finding.message == "The logits of classes 2, 3, 4, 5, 6 and 2 more never change, whatever the image."


def test_probabilities_that_underflow_belong_to_no_dead_class() -> None:
    logits = logits_of()
    logits[:, 3] = math.log(LEAST_PROBABILITY)
    assert list(class_findings(logits)) == []


def test_classes_with_the_same_logits_are_grouped() -> None:
    logits = logits_of(classes=7)
    logits[:, 4] = logits[:, 1] + 1e-6
    logits[:, 6] = logits[:, 0]
    logits[:, 3] = logits[:, 4]
    assert duplicated_classes(logits) == [[0, 6], [1, 3, 4]]
    (finding,) = class_findings(logits)
    assert finding.severity == "warning"
    assert finding.message.endswith("very same logits, whatever the image: 0 and 6; 1 and 3 and 4.")


def test_one_answer_to_everything_is_worth_a_note() -> None:
    logits = logits_of()
    logits[:, 2] += 100
    (finding,) = class_findings(logits)
    assert finding.severity == "note"
    assert finding.message.startswith("Class 2 is the answer to all of 8 images of noise")


@pytest.mark.parametrize(
    ("logits", "entropy"),
    [
        ([0.0, 0.0, 0.0, 0.0], 1.0),
        ([100.0, 0.0, 0.0, 0.0], 0.0),
        ([0.0, 0.0, -100.0, -100.0], 0.5),  # log(2) / log(4)
    ],
)
def test_entropy_is_relative_to_equal_probabilities(logits: list[float], entropy: float) -> None:
    assert relative_entropy(torch.tensor([logits])) == pytest.approx(entropy, abs=1e-6)


CERTAIN, TORN = torch.tensor([[9.0, 0.0, 0.0]]), torch.tensor([[1.0, 1.0, -9.0]])
CLUELESS = torch.tensor([[0.1, 0.0, 0.0]])


@pytest.mark.parametrize(
    ("on_smooth", "on_white", "severity", "message"),
    [
        # 1 / (1 + 2 exp(-9)) = 99.98 %, 1 / (2 + exp(-10)) = 50.0 %, exp(0.1) / (exp(0.1) + 2) = 35.6 %
        (CERTAIN, TORN, "note", "is 100.0% on smooth and 50.0% on white noise."),
        (CLUELESS, CERTAIN, "note", "is 35.6% on smooth and 100.0% on white noise."),
        (CERTAIN, CERTAIN, "warning", "the teacher is certain of whatever it sees."),
        (CLUELESS, CLUELESS, "warning", "hardly more than chance: the teacher looks untrained or wrongly normalised."),
    ],
)
def test_confidence_is_odd_only_if_it_is_on_both_kinds_of_noise(
    on_smooth: Tensor, on_white: Tensor, severity: Severity, message: str
) -> None:
    finding = confidence_finding(on_smooth, on_white)
    assert finding.severity == severity
    assert finding.message.endswith(message)


@pytest.mark.parametrize(("surprise", "severity"), [(0.7, "note"), (SURPRISING, "note"), (1.51, "warning")])
def test_great_surprise_is_worth_a_warning(surprise: float, severity: Severity) -> None:
    finding = surprise_finding(surprise)
    assert finding.severity == severity
    assert f"surprises the batch norms by {surprise:.2f}" in finding.message


def test_a_teacher_that_does_not_look_is_a_problem_and_nothing_else_is_said() -> None:
    network = classifier(nn.Conv2d(3, 8, 1), 8)
    nn.init.zeros_(network.get_submodule("0").get_parameter("weight"))
    (finding,) = answer_findings(teacher_of(network))
    assert (finding.severity, finding.topic) == ("problem", "outputs")
    assert finding.message == "The teacher gives the same answer to all of 64 different images of noise."


def test_large_images_are_fewer() -> None:
    # 32 x 64 x 64 pixels are 8 images of 128 x 128, of each kind of noise.
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))
    nn.init.zeros_(network.get_submodule("2").get_parameter("weight"))
    teacher = teacher_of(network)
    teacher.record = teacher.record.model_copy(
        update={"input": teacher.record.input.model_copy(update={"height": 128, "width": 128})}
    )
    (finding,) = answer_findings(teacher)
    assert "all of 16 different images" in finding.message


def test_surprise_is_told_of_teachers_with_batch_norms_only() -> None:
    with_norm = teacher_of(seen(classifier(nn.Conv2d(3, 8, 3), 8), (0.0, 0.0, 0.0), 1.0))
    without = teacher_of(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3)))
    topics = [[finding.topic for finding in answer_findings(teacher)] for teacher in (with_norm, without)]
    assert ["batch norm" in found for found in topics] == [True, False]
    assert all("confidence" in found for found in topics)
