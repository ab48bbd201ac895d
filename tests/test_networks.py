from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import nn

from compress.pipeline.networks import build, spec_from_json
from compress.pipeline.networks.normalised import Normalised
from compress.pipeline.networks.resnet import BasicBlock, BottleneckBlock, PadShortcut, ResNet, ResNetSpec, Zeros
from tests.tiny import tiny_spec

RESNET50 = ResNetSpec(
    stem="imagenet",
    block="bottleneck",
    blocks=(3, 4, 6, 3),
    widths=(64, 128, 256, 512),
    stem_width=64,
    num_classes=1000,
)

# Normalisation


def test_images_are_normalised_by_channel() -> None:
    network = Normalised(nn.Identity(), mean=(0.5, 0.2, 0.0), std=(0.25, 0.1, 1.0))
    images = torch.tensor([0.75, 0.1, 0.3]).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    # (0.75 - 0.5) / 0.25, (0.1 - 0.2) / 0.1, (0.3 - 0) / 1
    torch.testing.assert_close(network(images)[1, :, 3, 3], torch.tensor([1.0, -1.0, 0.3]))
    assert torch.equal(network.normalise(images), network(images))


def test_normalisation_is_no_weight() -> None:
    network = Normalised(nn.Linear(2, 2), mean=(0.5,), std=(0.25,))
    assert list(network.state_dict()) == ["network.weight", "network.bias"]
    assert network.to("meta").mean.is_meta


# Specs


def test_a_spec_comes_back_from_its_json() -> None:
    for spec in (tiny_spec(shortcut="pad", channels=1), RESNET50):
        assert spec_from_json(spec.model_dump(mode="json")) == spec


def test_a_network_is_built_from_the_json_of_its_spec() -> None:
    network = build(tiny_spec().model_dump(mode="json"))
    assert network.spec == tiny_spec()
    assert network(torch.rand(2, 3, 8, 8)).shape == (2, 4)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"family": "vgg"}, "Extra inputs are not permitted"),
        ({"depth": 20}, "Extra inputs are not permitted"),
        ({"widths": (8,)}, "2 stages have block counts but 1 have widths"),
        ({"widths": (), "blocks": ()}, "there are no stages"),
        ({"shortcut": "none"}, "Input should be 'pad', 'projection', 'linear' or 'pooled'"),
        ({"shortcut": "pad", "widths": (8, 4)}, "padding cannot take channels away"),
        ({"deep_stem": (4, 4)}, "a deep stem is one of the ImageNet form"),
        ({"block": "bottleneck", "base_width": 4}, "its blocks would have from 0 to 64 channels"),
        ({"num_classes": 0}, "Input should be greater than or equal to 1"),
        ({"stem_width": 1 << 21}, "Input should be less than or equal to 1048576"),
    ],
)
def test_a_spec_that_no_family_has_is_refused(change: dict[str, object], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        spec_from_json(tiny_spec().model_dump(mode="json") | change)


def test_a_family_that_does_not_exist_is_refused() -> None:
    with pytest.raises(KeyError, match="alexnet"):
        spec_from_json(tiny_spec().model_dump(mode="json") | {"family": "alexnet"})


def resnet50(**changes: object) -> ResNetSpec:
    return ResNetSpec.model_validate(RESNET50.model_dump() | changes)


_WIDTHS = "widths 64-128-256-512"


@pytest.mark.parametrize(
    ("spec", "name", "title"),
    [
        (tiny_spec(), "resnet10", "ResNet-10 (CIFAR form, basic blocks, widths 8-16, option B shortcuts)"),
        (
            tiny_spec(blocks=(9, 9, 9), widths=(16, 32, 64), shortcut="pad", batch_norm=False),
            "resnet56",
            "ResNet-56 (CIFAR form, basic blocks, widths 16-32-64, option A shortcuts, no batch norm)",
        ),
        (
            tiny_spec(shortcut="pad", zeros="after"),
            "resnet10",
            "ResNet-10 (CIFAR form, basic blocks, widths 8-16, option A shortcuts, zero channels last)",
        ),
        (
            tiny_spec(shortcut="linear"),
            "resnet10",
            "ResNet-10 (CIFAR form, basic blocks, widths 8-16, linear shortcuts)",
        ),
        (
            RESNET50,
            "resnet50",
            f"ResNet-50 (ImageNet form, bottleneck blocks, {_WIDTHS}, option B shortcuts)",
        ),
        (
            resnet50(base_width=128),
            "wide_resnet50_2",
            f"Wide ResNet-50-2 (ImageNet form, bottleneck blocks, {_WIDTHS}, option B shortcuts)",
        ),
        (
            resnet50(groups=32, base_width=4),
            "resnext50_32x4d",
            f"ResNeXt-50 32x4d (ImageNet form, bottleneck blocks, {_WIDTHS}, option B shortcuts)",
        ),
        (
            resnet50(deep_stem=(32, 32), shortcut="pooled"),
            "resnet50d",
            f"ResNet-50D (ImageNet form, bottleneck blocks, {_WIDTHS}, pooled option B shortcuts)",
        ),
    ],
)
def test_a_network_is_called_by_its_usual_name(spec: ResNetSpec, name: str, title: str) -> None:
    assert (spec.name, spec.title) == (name, title)


@pytest.mark.parametrize(
    ("spec", "minimum", "usual"),
    [
        (tiny_spec(), 1, 32),
        (tiny_spec(blocks=(1, 1, 1), widths=(4, 4, 4)), 2, 32),
        (RESNET50, 16, 224),
        (tiny_spec(stem="imagenet", blocks=(1,), widths=(4,)), 4, 224),
    ],
)
def test_at_its_minimum_size_a_network_comes_down_to_one_pixel_before_its_last_stage(
    spec: ResNetSpec, minimum: int, usual: int
) -> None:
    assert (spec.minimum_size, spec.usual_size) == (minimum, usual)
    with torch.device("meta"):
        network, images = ResNet(spec).eval(), torch.empty(1, 3, minimum, minimum)
        _, outputs = network.logits_and_stage_outputs(images)
    assert outputs[max(len(outputs) - 2, 0)].shape[2:] == (1, 1)


# Shortcuts and blocks


def test_a_padding_shortcut_takes_every_other_pixel_and_adds_dark_channels_on_both_sides() -> None:
    maps = torch.arange(1.0, 33.0).view(1, 2, 4, 4)
    out = PadShortcut(2, 5, stride=2)(maps)
    assert out.shape == (1, 5, 2, 2)
    assert out[0, [0, 3, 4]].abs().sum() == 0  # three channels are missing: one before, two after
    assert out[0, 1].tolist() == [[1.0, 3.0], [9.0, 11.0]]
    assert out[0, 2].tolist() == [[17.0, 19.0], [25.0, 27.0]]


def test_a_padding_shortcut_can_put_all_dark_channels_last() -> None:
    maps = torch.arange(1.0, 33.0).view(1, 2, 4, 4)
    out = PadShortcut(2, 5, stride=2, zeros="after")(maps)
    assert torch.equal(out[:, :2], maps[:, :, ::2, ::2])
    assert out.shape == (1, 5, 2, 2) and out[0, 2:].abs().sum() == 0


@pytest.mark.parametrize(("inner", "outer", "stride"), [(2, 5, 2), (8, 16, 2), (4, 4, 2), (3, 4, 1)])
def test_a_padding_shortcut_is_a_convolution(inner: int, outer: int, stride: int) -> None:
    maps = torch.randn(2, inner, 6, 6)
    for zeros in get_args(Zeros):
        shortcut = PadShortcut(inner, outer, stride, zeros)
        assert torch.equal(F.conv2d(maps, shortcut.as_convolution(), stride=stride), shortcut(maps))


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_a_block_whose_last_batch_norm_is_zero_passes_on_what_came_in(block: str) -> None:
    network = ResNet(tiny_spec(block=block))
    last = network.stages[0][1]
    norm = last.get_submodule("bn2" if block == "basic" else "bn3")
    assert isinstance(norm, nn.BatchNorm2d)
    nn.init.zeros_(norm.weight)
    maps = torch.randn(2, norm.num_features, 4, 4)
    assert torch.equal(last(maps), maps.relu())


def test_a_block_is_two_convolutions_around_its_shortcut() -> None:
    block = BasicBlock(4, 6, 2, tiny_spec(shortcut="linear")).eval()
    maps = torch.randn(2, 4, 6, 6)
    inner = F.relu(block.bn1(F.conv2d(maps, block.conv1.weight, stride=2, padding=1)))
    outer = block.bn2(F.conv2d(inner, block.conv2.weight, padding=1))
    carried = F.conv2d(maps, block.get_parameter("downsample.weight"), stride=2)
    torch.testing.assert_close(block(maps), F.relu(outer + carried))


def test_a_bottleneck_block_strides_in_its_grouped_middle_and_puts_out_four_times_its_width() -> None:
    spec = tiny_spec(block="bottleneck", groups=2, base_width=32)
    block = BottleneckBlock(8, 16, 2, spec)
    # Inner channels: 16 * 32 / 64 * 2 = 16.
    shapes = [tuple(conv.weight.shape) for conv in (block.conv1, block.conv2, block.conv3)]
    assert shapes == [(16, 8, 1, 1), (16, 8, 3, 3), (64, 16, 1, 1)]
    assert [conv.stride for conv in (block.conv1, block.conv2, block.conv3)] == [(1, 1), (2, 2), (1, 1)]
    assert block(torch.randn(2, 8, 6, 6)).shape == (2, 64, 3, 3)


# Networks


def test_the_stages_halve_the_maps_and_have_the_widths() -> None:
    network = ResNet(tiny_spec(blocks=(1, 2, 1), widths=(8, 16, 24)))
    logits, outputs = network.logits_and_stage_outputs(torch.rand(2, 3, 12, 8))
    assert [tuple(output.shape) for output in outputs] == [(2, 8, 12, 8), (2, 16, 6, 4), (2, 24, 3, 2)]
    assert logits.shape == (2, 4)
    assert [len(stage) for stage in network.stages] == [1, 2, 1]


def test_the_imagenet_stem_brings_images_down_to_a_quarter() -> None:
    _, outputs = ResNet(tiny_spec(stem="imagenet")).logits_and_stage_outputs(torch.rand(2, 3, 32, 32))
    assert [tuple(output.shape) for output in outputs] == [(2, 8, 8, 8), (2, 16, 4, 4)]


def test_the_classifier_sees_the_mean_over_pixels_of_the_last_stage() -> None:
    network, images = ResNet(tiny_spec()).eval(), torch.rand(2, 3, 8, 8)
    logits, outputs = network.logits_and_stage_outputs(images)
    torch.testing.assert_close(logits, network.fc(outputs[-1].mean((2, 3))))
    assert torch.equal(network(images), logits)


def test_without_batch_norm_convolutions_have_biases_but_for_linear_shortcuts() -> None:
    network = ResNet(tiny_spec(batch_norm=False, shortcut="linear"))
    without_bias = [
        name for name, module in network.named_modules() if isinstance(module, nn.Conv2d) and module.bias is None
    ]
    assert without_bias == ["layer2.0.downsample"]
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def test_parameters_are_named_as_torchvision_names_them() -> None:
    with torch.device("meta"):
        names = ResNet(RESNET50).state_dict().keys()
    assert {
        "conv1.weight",
        "bn1.running_mean",
        "layer1.0.downsample.0.weight",
        "layer1.0.downsample.1.bias",
        "layer3.5.conv3.weight",
        "layer4.2.bn3.num_batches_tracked",
        "fc.bias",
    } <= names
    # torchvision's ResNet-50: stem 6, 16 blocks of 18, 4 shortcuts of 6, classifier 2.
    assert len(names) == 6 + 16 * 18 + 4 * 6 + 2
