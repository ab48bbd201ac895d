"""The networks of MobileNetV2, MobileNetV3, EfficientNet and ShuffleNetV2, and the blocks that they share."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import nn

from compress.pipeline.networks import NetworkSpec, build, spec_from_json
from compress.pipeline.networks.efficientnet import EfficientNetSpec, round_channels
from compress.pipeline.networks.inverted_residual import (
    Block,
    Idle,
    InvertedResidual,
    PooledConvolution,
    SamePaddedConv2d,
    Squeeze,
    SqueezeExcite,
    layer,
)
from compress.pipeline.networks.mobilenet_v2 import MobileNetV2Spec
from compress.pipeline.networks.mobilenet_v3 import MobileNetV3Spec
from compress.pipeline.networks.shufflenet_v2 import ShuffleNetV2Spec, ShuffleUnit, shuffle
from tests.networks import unsettle

SQUEEZE = Squeeze(width=2, activation="relu", gate="hardsigmoid")


def block(**changes: Any) -> Block:
    """From 4 channels through 12 to 4."""
    usual = {"kernel": 3, "stride": 1, "expanded": 12, "out": 4, "shortcut": "identity", "activation": "relu6"}
    return Block.model_validate(usual | changes)


STRIDED = block(stride=2, out=6, shortcut="none")


def v2(**changes: Any) -> MobileNetV2Spec:
    usual = {"stem_width": 4, "stem_stride": 2, "blocks": (block(), STRIDED), "head_width": 8, "num_classes": 3}
    return MobileNetV2Spec.model_validate(usual | changes)


def v3(**changes: Any) -> MobileNetV3Spec:
    blocks = (block(squeeze=SQUEEZE), STRIDED)
    sizes = {"stem_width": 4, "stem_stride": 2, "head_width": 8, "hidden_width": 10, "num_classes": 3}
    return MobileNetV3Spec.model_validate({"variant": "small", "blocks": blocks, **sizes, **changes})


def efficientnet(**changes: Any) -> EfficientNetSpec:
    blocks = (block(squeeze=SQUEEZE), block(squeeze=SQUEEZE), STRIDED)
    sizes = {"stem_width": 4, "stem_stride": 2, "head_width": 8, "num_classes": 3}
    return EfficientNetSpec.model_validate({"blocks": blocks, "repeats": (2, 1), **sizes, **changes})


def shufflenet(**changes: Any) -> ShuffleNetV2Spec:
    usual = {"stem": "cifar", "stem_width": 4, "repeats": (2, 1), "widths": (8, 12), "head_width": 8, "num_classes": 3}
    return ShuffleNetV2Spec.model_validate(usual | changes)


SPECS: dict[str, NetworkSpec] = {
    "MobileNetV2": v2(),
    "MobileNetV2 with all its oddities": v2(
        stem_kernel=1, stem_stride=1, blocks=(block(out=6, shortcut="projection"), block(out=6)), bias=True,
        classifier="convolution", activation="relu",
    ),
    "MobileNetV3": v3(),
    "MobileNetV3 with a convolution": v3(hidden="convolution", padding="same", epsilon=1e-3),
    "EfficientNet": efficientnet(),
    "EfficientNet without head": efficientnet(head_width=None, blocks=(block(expanded=4, expansion="idle"),) * 3),
    "ShuffleNetV2": shufflenet(stem="imagenet"),
    "ShuffleNetV2 with all its oddities": shufflenet(stem_kernel=1, stem_activation="none", inner="in", bias=True),
    "ShuffleNetV2 without batch norm": shufflenet(batch_norm=False),
}  # fmt: skip


# Specs


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_a_network_is_rebuilt_from_json_and_lets_gradients_through(spec: NetworkSpec) -> None:
    assert spec_from_json(spec.model_dump(mode="json")) == spec
    network = unsettle(build(spec.model_dump(mode="json"))).eval()
    images = torch.rand(2, 3, 32, 24, requires_grad=True)
    logits = network(images)
    assert logits.shape == (2, 3)
    (gradient,) = torch.autograd.grad(logits.sum(), images)
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_the_smallest_images_can_be_taken(spec: NetworkSpec) -> None:
    images = torch.rand(1, 3, spec.minimum_size, spec.minimum_size)
    assert build(spec).eval()(images).isfinite().all()


@pytest.mark.parametrize(
    ("spec", "name", "title", "usual", "minimum"),
    [
        # widths: 6 of 320 channels at the end, 6 of 96, and 6 of 320
        (v2(), "mobilenet_v2_x0_0187_2_blocks", "MobileNetV2 x0.0187 (CIFAR form, 2 blocks, ReLU6)", 32, 2),
        (
            v2(activation="relu", batch_norm=False, blocks=(block(stride=2, shortcut="none"),) * 4),
            "mobilenet_v2_x0_0125_4_blocks",
            "MobileNetV2 x0.0125 (ImageNet form, 4 blocks, ReLU, no batch norm)",
            224,
            16,
        ),
        (
            v3(padding="same"),
            "mobilenet_v3_small_x0_0625",
            "MobileNetV3 small x0.0625 (CIFAR form, 2 blocks, TensorFlow's padding)",
            32,
            2,
        ),
        (efficientnet(), "efficientnet_x0_0187_3_blocks", "EfficientNet x0.0187 (CIFAR form, 3 blocks)", 32, 2),
        (shufflenet(), "shufflenet_v2_8_12_3_units", "ShuffleNetV2 (CIFAR form, 3 units, widths 8-12)", 32, 2),
        (
            shufflenet(stem="imagenet", repeats=(4, 8, 4), widths=(116, 232, 464), batch_norm=False),
            "shufflenet_v2_x1_0",
            "ShuffleNetV2 (ImageNet form, 16 units, widths 116-232-464, no batch norm)",
            224,
            16,
        ),
    ],
)
def test_a_network_is_called_by_its_usual_name(
    spec: NetworkSpec, name: str, title: str, usual: int, minimum: int
) -> None:
    assert (spec.name, spec.title, spec.usual_size, spec.minimum_size) == (name, title, usual, minimum)


@pytest.mark.parametrize(
    ("make", "changes", "reason"),
    [
        (v2, {"blocks": ()}, "at least 1 item"),
        (v2, {"blocks": (block(expansion="none"),)}, "a block without expansion has 4 channels but 12 inside"),
        (v2, {"blocks": (block(stride=2),)}, "a block that strides cannot have a shortcut"),
        (v2, {"blocks": (block(out=6),)}, "an identity shortcut takes 4 channels to 6"),
        (v2, {"stem_kernel": 2}, "the kernel is even"),
        (v2, {"stem_width": 1 << 60}, "less than or equal to 1048576"),
        (v2, {"epsilon": 0.0}, "greater than 0"),
        (v3, {"variant": "tiny"}, "Input should be 'large', 'small', 'large_minimal' or 'small_minimal'"),
        (efficientnet, {"repeats": (1, 1)}, "the stages count 2 blocks but there are 3"),
        (shufflenet, {"widths": (8,)}, "2 stages have unit counts but 1 have widths"),
        (shufflenet, {"widths": (8, 9)}, "multiple of 2"),
        (shufflenet, {"num_classes": 0}, "greater than or equal to 1"),
    ],
)
def test_a_spec_that_nothing_can_be_built_from_is_refused(make: Any, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        make(**changes)


@pytest.mark.parametrize(
    ("channels", "rounded"),
    # 11.2 and 19.2 would lose more than a tenth at 8 and at 16
    [(16.0, 16), (17.6, 16), (19.2, 24), (22.4, 24), (38.4, 40), (11.2, 16), (2.4, 8)],
)
def test_scaled_channels_are_rounded_to_multiples_of_eight(channels: float, rounded: int) -> None:
    assert round_channels(channels) == rounded


NAMES = {
    "MobileNetV2": """
        features.0.0.weight features.1.conv.0.0.weight features.1.conv.1.1.running_mean features.1.conv.2.weight
        features.1.conv.3.bias features.3.1.weight classifier.1.bias""",
    "MobileNetV3": """
        features.1.block.0.0.weight features.1.block.2.fc1.bias features.1.block.2.fc2.weight
        features.1.block.3.0.weight features.2.block.2.1.weight features.3.0.weight classifier.0.weight
        classifier.3.bias""",
    "EfficientNet": """
        features.0.1.weight features.1.1.block.2.fc1.weight features.2.0.block.2.0.weight features.3.0.weight
        classifier.1.weight""",
    "ShuffleNetV2": """
        conv1.0.weight conv1.1.bias stage2.0.branch1.0.weight stage2.0.branch1.3.bias stage2.1.branch2.5.weight
        stage3.0.branch2.6.running_var conv5.1.weight fc.weight""",
}


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_named_as_torchvision_names_them(name: str) -> None:
    assert set(NAMES[name].split()) <= build(SPECS[name]).state_dict().keys()


# Blocks


def test_same_padding_adds_what_the_output_needs_and_an_odd_pixel_after() -> None:
    # Of 4 pixels, kernel 3 and stride 2 need (2 - 1) * 2 + 3 = 5: one after. Of 5 they need (3 - 1) * 2 + 3 = 7: one on
    # each side.
    convolution = SamePaddedConv2d(1, 1, 3, 2, bias=False)
    nn.init.constant_(convolution.weight, 1)
    even, odd = torch.ones(1, 1, 3, 4), torch.ones(1, 1, 3, 5)
    assert convolution(even)[0, 0].tolist() == [[6.0, 4.0], [6.0, 4.0]]
    assert convolution(odd)[0, 0].tolist() == [[4.0, 6.0, 4.0], [4.0, 6.0, 4.0]]


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_same_padding_comes_to_the_size_over_the_stride_rounded_up(kernel: int, stride: int) -> None:
    for size in range(1, 9):
        out = SamePaddedConv2d(1, 1, kernel, stride)(torch.rand(1, 1, size, size))
        assert out.shape[2:] == (-(-size // stride),) * 2


def test_a_pooled_convolution_is_a_linear_layer() -> None:
    convolution, pooled = PooledConvolution(4, 3), torch.rand(2, 4)
    linear = F.linear(pooled, convolution.weight.flatten(1), convolution.bias)
    torch.testing.assert_close(convolution(pooled), linear)


def test_squeeze_and_excite_scales_channels_by_what_their_means_say() -> None:
    excite, maps = SqueezeExcite(4, Squeeze(width=2, activation="silu", gate="sigmoid")), torch.rand(2, 4, 3, 3)
    squeezed = F.silu(F.linear(maps.mean((2, 3)), excite.fc1.weight.flatten(1), excite.fc1.bias))
    gate = torch.sigmoid(F.linear(squeezed, excite.fc2.weight.flatten(1), excite.fc2.bias))
    torch.testing.assert_close(excite(maps), maps * gate[:, :, None, None])


def test_idle_layers_have_weights_and_do_nothing() -> None:
    idle, maps = Idle(nn.Conv2d(4, 4, 1)), torch.rand(1, 4, 2, 2)
    assert list(idle.state_dict()) == ["0.weight", "0.bias"]
    assert idle(maps) is maps


def test_a_block_whose_last_batch_norm_is_zero_passes_on_what_its_shortcut_carries() -> None:
    maps, spec = torch.randn(2, 4, 5, 5), v2()
    carried = {}
    for kind, out in (("identity", 4), ("projection", 6), ("none", 6)):
        residual = InvertedResidual(4, block(out=out, shortcut=kind), spec).eval()
        norm = residual.get_submodule("block.2.1")
        assert isinstance(norm, nn.BatchNorm2d)
        nn.init.zeros_(norm.weight)
        carried[kind] = residual(maps)
    assert torch.equal(carried["identity"], maps)
    assert carried["projection"].shape == (2, 6, 5, 5) and carried["projection"].abs().sum() > 0
    assert carried["none"].abs().sum() == 0


def test_a_layer_has_the_padding_the_biases_and_the_epsilon_of_its_spec() -> None:
    layers = {
        "plain": layer(3, 4, 5, spec=v2()),
        "odd": layer(3, 4, 5, spec=v3(padding="same", epsilon=1e-3, bias=True)),
        "fused": layer(3, 4, 5, activation="silu", spec=v2(batch_norm=False)),
    }
    described = {name: str(module) for name, module in layers.items()}
    assert "Conv2d(3, 4, kernel_size=(5, 5), stride=(1, 1), padding=(2, 2), bias=False)" in described["plain"]
    assert "eps=1e-05" in described["plain"]
    assert "SamePaddedConv2d(3, 4, kernel_size=(5, 5), stride=(1, 1))" in described["odd"]
    assert "eps=0.001" in described["odd"]
    assert "padding=(2, 2))\n  (1): Identity()\n  (2): SiLU()" in described["fused"]


def test_a_stem_of_one_pixel_has_a_border_of_one_pixel() -> None:
    stem = build(v2(stem_kernel=1, stem_stride=1)).get_submodule("features.0")
    assert stem(torch.rand(1, 3, 4, 4)).shape == (1, 4, 6, 6)


def test_a_shuffle_takes_channels_of_both_halves_in_turn() -> None:
    maps = torch.arange(6.0).view(1, 6, 1, 1)
    assert shuffle(maps).flatten().tolist() == [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]


def test_a_shuffle_unit_passes_one_half_on_and_a_strided_one_halves_the_maps() -> None:
    maps, spec = torch.rand(1, 8, 6, 6), shufflenet()
    assert torch.equal(ShuffleUnit(8, 8, 1, spec)(maps)[:, ::2], maps[:, :4])
    assert ShuffleUnit(8, 12, 2, spec)(maps).shape == (1, 12, 3, 3)
