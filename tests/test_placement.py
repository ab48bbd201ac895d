import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.exporters.folding import fold_batch_norm
from compress.exporters.placement import Placement, Runtime, place
from compress.pipeline.errors import UsageError
from compress.pipeline.networks.resnet import Shortcut
from tests.networks import student


def placement(network: nn.Module, runtime: Runtime = "tensorrt", exclude: tuple[str, ...] = ()) -> Placement:
    return place(fold_batch_norm(network), runtime, exclude)


class Block(nn.Module):
    """A convolution, and a residual sum of a second one with the block's input."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.fc = nn.Linear(channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        x = F.relu(self.second(x) + x)
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def test_tensorrt_gets_the_skip_of_a_residual_sum_quantized_and_the_convolution_bare() -> None:
    assert placement(Block()) == Placement(
        layers=("first", "second"),
        edges=(("x", "first"), ("relu", "second"), ("relu", "add"), ("relu_1", "mean")),
    )


def test_onnx_runtime_gets_every_term_of_a_sum_quantized() -> None:
    assert placement(Block(), "onnxruntime").edges == (
        ("x", "first"),
        ("relu", "second"),
        ("relu", "add"),
        ("second", "add"),
        ("relu_1", "mean"),
    )


def test_a_tensor_is_quantized_once_for_all_who_take_it() -> None:
    assert placement(Block()).tensors == ("x", "relu", "relu_1")


@pytest.mark.parametrize(("shortcut", "skip"), [("projection", "network_layer2_0_downsample_0"), ("pad", "pad")])
def test_a_block_that_changes_shape_has_its_shortcut_quantized(shortcut: Shortcut, skip: str) -> None:
    edges = placement(student(shortcut=shortcut)).edges
    assert [tensor for tensor, consumer in edges if consumer == "add_1"] == [skip]


def test_the_shortcut_is_the_shallower_branch_whichever_is_written_first() -> None:
    class Reversed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shortcut, self.one, self.two = (nn.Conv2d(16, 16, 1) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            shortcut: Tensor = self.shortcut(x)
            out: Tensor = self.two(F.relu(self.one(x)))
            return shortcut + out

    assert ("shortcut", "add") in placement(Reversed()).edges
    assert ("two", "add") not in placement(Reversed()).edges


def test_max_pooling_hands_quantized_values_on_in_onnx_runtime() -> None:
    edges = placement(student(channels=3, imagenet_stem=True), "onnxruntime").edges
    assert ("network_maxpool", "network_layer1_0_conv1") in edges
    assert not any(consumer == "network_maxpool" for _, consumer in edges)


def test_concatenated_tensors_share_the_scale_behind_the_concatenation() -> None:
    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(16, 16, 1), nn.Conv2d(32, 16, 1)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.two(torch.cat([x, F.relu(self.one(x))], 1))
            return out

    assert placement(Dense()).edges == (("x", "one"), ("cat", "two"))


def test_gates_stay_float() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.gate, self.head = (nn.Conv2d(16, 16, 1) for _ in range(3))
            self.squeeze, self.pool = nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d((1, 1))

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.conv(x))
            x = x * torch.sigmoid(self.gate(self.squeeze(x)))
            return torch.flatten(self.pool(self.head(x)), 1)

    assert placement(Gated()) == Placement(
        layers=("conv", "head"), edges=(("x", "conv"), ("mul", "head"), ("head", "pool"))
    )


def test_an_excluded_convolution_takes_float_data_and_leaves_its_sum_float() -> None:
    assert placement(Block(), exclude=("second",)) == Placement(
        layers=("first",), edges=(("x", "first"), ("relu_1", "mean"))
    )


def test_nothing_is_quantized_where_every_convolution_is_excluded() -> None:
    assert placement(Block(), exclude=("first", "second")) == Placement(layers=(), edges=())


def test_an_unknown_layer_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(UsageError, match="no convolution 'secand'") as refusal:
        placement(Block(), exclude=("secand",))
    assert "'second'" in refusal.value.hint


@pytest.mark.parametrize(
    ("convolution", "has_integer_kernel"),
    [
        (nn.Conv2d(16, 16, 3), True),
        (nn.Conv2d(8, 64, 3), True),  # few inputs, but square, a multiple of 8, and 16 outputs
        (nn.Conv2d(8, 64, (1, 3)), False),  # not square
        (nn.Conv2d(12, 20, 3), False),  # no multiple of 8
        (nn.Conv2d(8, 8, 3), False),  # fewer than 16 on both sides
        (nn.Conv2d(32, 32, 3, groups=32), True),  # depthwise, 3x3
        (nn.Conv2d(32, 32, 1, groups=32), False),  # depthwise, 1x1
    ],
)
def test_small_convolutions_stay_float_unless_a_kernel_exists(convolution: nn.Conv2d, has_integer_kernel: bool) -> None:
    network = nn.Sequential(nn.Conv2d(3, convolution.in_channels, 3), nn.ReLU(), convolution)
    assert ("2" in placement(network).layers) is has_integer_kernel


def test_the_first_convolution_is_quantized_with_few_channels_on_both_sides() -> None:
    assert placement(nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU())).layers == ("0",)
