import pytest
import torch
from torch import Tensor, nn

from compress.pipeline.records import Severity
from compress.pipeline.teacher.diagnosis.layer_findings import (
    FEW_BATCHES,
    dead_channel_findings,
    dead_channels,
    layer_findings,
    no_batch_norm_finding,
    statistics_findings,
    tracking_findings,
    weight_findings,
)
from compress.pipeline.teacher.model import BatchNormStatistics
from tests.teacher.teachers import classifier, seen, teacher_of

FRESH = BatchNormStatistics(mean=torch.zeros(4), variance=torch.ones(4))
TRAINED = BatchNormStatistics(mean=torch.full((4,), 0.1), variance=torch.ones(4))
UNDERFLOWN = BatchNormStatistics(mean=torch.full((4,), 0.1), variance=torch.zeros(4))


def test_other_norms_are_named_where_there_is_no_batch_norm() -> None:
    finding = no_batch_norm_finding(nn.Sequential(nn.LayerNorm(4), nn.LayerNorm(4), nn.GroupNorm(1, 4)))
    assert finding.severity == "warning"
    assert finding.message == (
        "The teacher has no batch norms of images, whose statistics synthesis lives on: "
        "it normalises by GroupNorm, LayerNorm."
    )
    assert "falls back on an image prior" in finding.advice


def test_batch_norms_that_may_have_been_folded_are_asked_for() -> None:
    finding = no_batch_norm_finding(nn.Sequential(nn.Conv2d(3, 4, 1)))
    assert finding.message.endswith("they were folded into its convolutions or never there.")
    assert finding.advice.startswith("Give the checkpoint from before any folding")


@pytest.mark.parametrize(
    ("statistics", "severity", "message"),
    [
        ([TRAINED], "note", "1 batch norm with statistics of 4 channels."),
        ([TRAINED, TRAINED], "note", "2 batch norms with statistics of 8 channels."),
        ([TRAINED, FRESH], "warning", "1 of 2 batch norms never recorded the statistics of an image."),
        ([UNDERFLOWN, FRESH], "problem", "2 of 2 batch norms never recorded the statistics of an image."),
    ],
)
def test_batch_norms_without_statistics_are_counted(
    statistics: list[BatchNormStatistics], severity: Severity, message: str
) -> None:
    (finding,) = statistics_findings(statistics)
    assert (finding.severity, finding.message) == (severity, message)


@pytest.mark.parametrize("batches", [(), (0, 0), (FEW_BATCHES,), (1260, 1260)])
def test_counters_that_agree_and_are_high_are_nothing_to_mention(batches: tuple[int, ...]) -> None:
    # None are known, or none has seen anything, which the statistics themselves show.
    assert list(tracking_findings(batches)) == []


def test_few_batches_leave_initial_values_in_the_statistics() -> None:
    # 0.9^43 = 1.08 %, 0.9^44 = 0.97 %
    (finding,) = tracking_findings((43, 43))
    assert finding.severity == "warning"
    assert "has seen only 43 batches of images" in finding.message


def test_different_counters_are_a_trace_of_fine_tuning() -> None:
    (finding,) = tracking_findings((5000, 1200, 5000))
    assert finding.severity == "warning"
    assert finding.message == (
        "1 of 3 batch norms have seen fewer batches than the others (1,200 to 5,000), "
        "as after fine-tuning with some of them frozen."
    )


def norm_of(weight: list[float], variance: list[float]) -> nn.Module:
    norm = nn.BatchNorm2d(len(weight))
    with torch.no_grad():
        norm.weight.copy_(torch.tensor(weight))
        norm.get_buffer("running_var").copy_(torch.tensor(variance))
    return nn.Sequential(norm)


@pytest.mark.parametrize(
    ("weight", "variance", "dead"),
    [
        ([1, -2, 0.01, -0.03], [1, 1, 1, 1], [False, False, True, False]),  # 1 % of the greatest is 0.02
        # sqrt(1e-10 / (1e-10 + 1e-5)) = 0.3 %, sqrt(1e-5 / 2e-5) = 71 %
        ([1, 1, 1], [1, 1e-10, 1e-5], [False, True, False]),
        ([0, 0], [1, 1], [True, True]),
    ],
)
def test_a_channel_is_dead_that_its_weight_or_variance_leaves_constant(
    weight: list[float], variance: list[float], dead: list[bool]
) -> None:
    assert {name: found.tolist() for name, found in dead_channels(norm_of(weight, variance)).items()} == {"0": dead}


def test_a_batch_norm_without_weights_has_its_variances_alone() -> None:
    norm = nn.BatchNorm2d(2, affine=False)
    norm.get_buffer("running_var")[1] = 0
    assert dead_channels(norm)[""].tolist() == [False, True]


def flags(dead: int, total: int) -> Tensor:
    return torch.arange(total) < dead


def test_a_few_dead_channels_are_worth_a_note() -> None:
    (finding,) = dead_channel_findings({"a": flags(1, 8), "b": flags(0, 8), "c": flags(2, 4)})
    assert finding.severity == "note"
    assert finding.message == "3 of 20 channels (15.0%) behind batch norms are constant, most in c 50%, a 12%."


def test_a_teacher_of_mostly_dead_channels_is_worth_a_warning() -> None:
    (finding,) = dead_channel_findings({"a": flags(5, 8)})
    assert finding.severity == "warning"
    assert "most of it does nothing" in finding.advice


def test_no_dead_channels_are_nothing_to_mention() -> None:
    assert list(dead_channel_findings({"a": flags(0, 8)})) == []


def test_ordinary_weights_are_nothing_to_mention() -> None:
    # The smallest normal number and zero are no trouble.
    assert list(weight_findings([("a", torch.tensor([0.0, 2.0**-126, -9999.0]))])) == []


@pytest.mark.parametrize(("total", "severity"), [(1000, "note"), (999, "warning")])
def test_denormal_weights_are_counted(total: int, severity: Severity) -> None:
    weight = torch.ones(total)
    weight[0] = -1e-40
    (finding,) = weight_findings([("a", weight)])
    assert finding.severity == severity
    assert finding.message.startswith(f"1 of {total:,} weights are denormal numbers")


def test_huge_weights_are_named() -> None:
    (finding,) = weight_findings(
        [("a", torch.ones(2)), ("b", torch.tensor([-70000.0])), ("c", torch.tensor([20000.0]))]
    )
    assert finding.severity == "warning"
    assert finding.message == "2 tensors of weights exceed 10,000, 'b' most, with 7e+04."


def test_a_healthy_teacher_gets_a_note_on_its_batch_norms() -> None:
    teacher = teacher_of(seen(classifier(nn.Conv2d(3, 8, 1), 8), (0.0, 0.0, 0.0), 1.0))
    (finding,) = layer_findings(teacher, {"1": 100})
    assert (finding.severity, finding.message) == ("note", "1 batch norm with statistics of 8 channels.")


def test_counters_of_a_teacher_without_batch_norms_of_images_do_not_matter() -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(3))
    (finding,) = layer_findings(teacher_of(network), {"3": 5})
    assert finding.message.endswith("it normalises by BatchNorm1d.")
