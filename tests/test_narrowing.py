"""Students that keep fewer channels inside their teacher's blocks."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress.pipeline.errors import UsageError
from compress.pipeline.networks import StagedNetwork, build
from compress.pipeline.networks.spec import narrower
from compress.pipeline.networks.staged import Inner
from compress.pipeline.settings import StudentSettings
from compress.pipeline.students import build_student, donor_of, inherit_weights, inheriting_student, plan_student
from compress.pipeline.students.inheritance import is_narrowed
from compress.pipeline.students.inheriting import block_counts
from compress.pipeline.students.narrowing import choose_channels, narrowed_weights
from tests.families import SIZE, SPECS, images, network_of, teacher_of
from tests.tiny import record_of

WIDER: dict[str, dict[str, Any]] = {
    # What makes the small networks of the tests wide enough to lose eight channels inside their blocks.
    "ResNet": {"widths": (16, 24)},
    "ResNet of bottlenecks, shortcuts padded": {"widths": (16, 24)},
    "PreActResNet": {"widths": (16, 24)},
    "PreActResNet of bottlenecks": {"widths": (16, 24)},
    "VGG": {"blocks": ((16, 16, 16), (24, 24, 24))},
    "DenseNet": {"bottleneck": 16},
    "MobileNetV2": {},
    "MobileNetV3": {},
    "EfficientNet": {},
    "ViT": {},
}


def whole_of(name: str) -> StagedNetwork:
    """A donor of random weights, wide enough inside its blocks."""
    torch.manual_seed(3)
    spec = SPECS[name].model_copy(update=WIDER[name])
    return donor_of(build(spec).eval())


def all_blocks(network: StagedNetwork) -> list[tuple[int, ...]]:
    return [tuple(range(count)) for count in block_counts(network.spec)]


@pytest.mark.parametrize(
    ("channels", "share", "expected"), [(64, 0.5, 32), (64, 0.7, 48), (20, 0.5, 8), (8, 0.1, 8), (4, 0.5, 4)]
)
def test_a_narrower_width_is_a_multiple_of_eight_and_never_more(channels: int, share: float, expected: int) -> None:
    # 8 * round(0.7 * 64 / 8) = 8 * round(5.6); 20 / 2 / 8 = 1.25
    assert narrower(channels, share) == expected


@pytest.mark.parametrize("name", WIDER)
def test_a_narrowed_network_is_smaller_inside_and_puts_out_the_same_shapes(name: str) -> None:
    whole = whole_of(name)
    student = build(whole.spec.narrowed(0.5)).eval()
    assert is_narrowed(student, whole, all_blocks(whole))
    inherit_weights(student, whole, all_blocks(whole))
    counts = [sum(parameter.numel() for parameter in network.parameters()) for network in (student, whole)]
    assert counts[0] < counts[1]
    with torch.no_grad():
        mine, yours = (network.logits_and_stage_outputs(images(4)) for network in (student, whole))
    assert mine[0].isfinite().all()
    assert [maps.shape for maps in mine[1]] == [maps.shape for maps in yours[1]]


@pytest.mark.parametrize("name", WIDER)
def test_channels_that_nothing_takes_in_go_first_and_are_not_missed(name: str) -> None:
    whole = whole_of(name)
    student = build(whole.spec.narrowed(0.5)).eval()
    kept = []
    with torch.no_grad():
        for number, (inner, mine) in enumerate(zip(whole.inner_channels(), student.inner_channels(), strict=True)):
            total, count = (_width(network, group) for network, group in ((whole, inner), (student, mine)))
            chosen = sorted(torch.randperm(total, generator=torch.Generator().manual_seed(number))[:count].tolist())
            idle = [channel for channel in range(total) if channel not in chosen]
            for layer in inner.taken_in:
                whole.get_parameter(f"{layer}.weight")[:, idle] = 0
            kept.append(chosen)
        assert list(choose_channels(student, whole)) == kept
        shown = images(4)
        for channels in (None, choose_channels(student, whole, shown)):  # Images may show that others are dead, too.
            inherit_weights(student, whole, all_blocks(whole), channels)
            torch.testing.assert_close(student(shown), whole(shown), rtol=1e-4, atol=1e-5)


def _width(network: StagedNetwork, inner: Inner) -> int:
    return network.get_parameter(f"{inner.put_out[0]}.weight").shape[0]


class TwoLayers(StagedNetwork):
    """A 1x1 convolution to so many channels, and one that takes them in."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, channels, 1)
        self.second = nn.Conv2d(channels, 2, 1, bias=False)

    def inner_channels(self) -> list[Inner]:
        return [Inner(("first",), ("second",))]

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.second(self.first(images))
        return logits


@torch.no_grad()
def test_a_channels_score_is_its_mean_square_times_the_squared_length_of_the_weights_that_take_it_in() -> None:
    whole = TwoLayers(3)
    whole.first.weight.copy_(torch.tensor([3.0, 1.0, 0.0]).view(3, 1, 1, 1))
    whole.first.get_parameter("bias").copy_(torch.tensor([0.0, 0.0, 2.0]))
    whole.second.weight.copy_(torch.tensor([[1.0, 2.0, 1.0], [1.0, 2.0, 0.0]]).view(2, 3, 1, 1))
    # Lengths are 1 + 1, 4 + 4 and 1. Pixels are 0 and 2, so that mean squares are 9 * 2, 2 and 4: scores of 36, 16 and 4.
    shown = torch.tensor([0.0, 2.0]).view(1, 1, 1, 2)
    assert choose_channels(TwoLayers(1), whole, shown) == [[0]]
    assert choose_channels(TwoLayers(2), whole, shown) == [[0, 1]]
    # Without images the second has the longest weights.
    assert choose_channels(TwoLayers(1), whole) == [[1]]
    narrow = narrowed_weights(whole.state_dict(), whole.inner_channels(), [[0, 2]])
    assert narrow["first.bias"].tolist() == [0.0, 2.0]
    assert narrow["second.weight"].flatten(1).tolist() == [[1.0, 1.0], [1.0, 0.0]]


def test_measuring_leaves_no_hooks_behind() -> None:
    whole = whole_of("ResNet")
    choose_channels(build(whole.spec.narrowed(0.5)), whole, images(2))
    assert not any(module._forward_pre_hooks for module in whole.modules())


# By name


def test_a_narrower_student_is_found_by_its_name() -> None:
    spec = SPECS["ResNet"].model_copy(update=WIDER["ResNet"])
    plan = plan_student(record_of(spec, SIZE), StudentSettings(name="inherit-2-2-w0.5"))
    assert (plan.name, plan.inherited) == ("inherit-2-2-w0.5", True)
    assert plan.spec == inheriting_student(spec, (2, 2)).spec.narrowed(0.5)
    assert plan.parameters < inheriting_student(spec, (2, 2)).parameters


@pytest.mark.parametrize(("name", "student"), [("ShuffleNetV2", "inherit-2-2-w0.5"), ("ResNet", "inherit-2-2-w0.99")])
def test_what_cannot_be_made_narrower_is_refused(name: str, student: str) -> None:
    with pytest.raises(UsageError) as caught:
        plan_student(record_of(SPECS[name], SIZE), StudentSettings(name=student))
    assert caught.value.message == f"The teacher cannot give the student '{student}'."
    assert "multiples of 8" in caught.value.hint


@pytest.mark.parametrize("name", ["inherit-2-2-w0", "inherit-2-2-w0.0", "inherit-2-2-w1.5", "inherit-2-2-w0.00001"])
def test_what_is_no_share_is_no_name(name: str) -> None:
    with pytest.raises(UsageError, match=f"There is no student '{name}'"):
        plan_student(record_of(SPECS["ResNet"], SIZE), StudentSettings(name=name))


@pytest.mark.parametrize("name", WIDER)
def test_a_narrower_student_starts_from_its_teachers_weights(name: str) -> None:
    teacher = teacher_of(name)
    plan = inheriting_student(SPECS[name], block_counts(SPECS[name]), 0.5)
    student = build_student(plan, teacher).eval()
    assert sum(parameter.numel() for parameter in student.parameters()) == plan.parameters
    assert student(images()).isfinite().all()
    assert network_of(name).spec == SPECS[name]  # as it was
