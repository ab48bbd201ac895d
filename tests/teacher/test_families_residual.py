"""What is recognised in the weights of residual networks that are written as in other people's repositories."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from compress.pipeline.networks import spec_from_json
from compress.pipeline.networks.preact_resnet import PreActResNetSpec
from compress.pipeline.teacher.families import Family
from compress.pipeline.teacher.families.preact_resnet import preact_resnet_candidates
from compress.pipeline.teacher.families.resnet import resnet_candidates
from tests.teacher.foreign import (
    answers_as,
    count_parameters,
    misfit,
    nonsense,
    on_meta,
    recognised,
    refusal,
    shapes_of,
)
from tests.teacher.foreign_residual import (
    Centred,
    Doubled,
    KuangliuPreAct,
    KuangliuPreActBlock,
    KuangliuPreActBottleneck,
    MeliketoyWide,
    SmallStem,
    TimmDeepStem,
    TorchvisionResNet,
    WeiaicunzaiPreAct,
    WeiaicunzaiWide,
    XternalzWide,
    kuangliu_block,
    option_a,
    timm_d_block,
)

# What is expected: the name, and the fields that weights do not show.
PRE_ACTIVATION: dict[str, tuple[Callable[[], nn.Module], str, dict[str, Any]]] = {
    "WRN of xternalz": (XternalzWide, "wrn-12-0.25", {"projected": "activated", "strided": 1, "ending": "relu"}),
    "WRN-22-3 of xternalz": (
        lambda: XternalzWide((3, 3, 3), (48, 96, 192), 16),
        "wrn-22-3",
        {"projected": "activated", "strided": 1, "ending": "relu"},
    ),
    "WRN of xternalz whose first stage keeps its width": (
        lambda: XternalzWide(stem=4),
        "wrn-12-0.25",
        {"stem_width": 4},
    ),
    "WRN-22-3 of meliketoy": (
        lambda: MeliketoyWide((3, 3, 3), (48, 96, 192), 16),
        "wrn-22-3",
        {"projected": "raw", "strided": 2, "ending": "relu", "conv_bias": True},
    ),
    "WRN of weiaicunzai": (
        WeiaicunzaiWide,
        "wrn-12-0.25",
        {"projected": "raw", "strided": 1, "ending": "norm", "conv_bias": True},
    ),
    "PreActResNet of kuangliu": (
        lambda: KuangliuPreAct(KuangliuPreActBlock),
        "preactresnet8",
        {"projected": "activated", "strided": 1, "ending": "none"},
    ),
    "PreActResNet of kuangliu with bottlenecks": (
        lambda: KuangliuPreAct(KuangliuPreActBottleneck, (1, 2), (16, 32)),
        "preactresnet11",
        {"projected": "activated", "strided": 2, "block": "bottleneck"},
    ),
    "PreActResNet of weiaicunzai": (
        WeiaicunzaiPreAct,
        "preactresnet11",
        {"projected": "raw", "strided": 1, "stem_norm": True, "ending": "none"},
    ),
}

POST_ACTIVATION: dict[str, tuple[Callable[[], nn.Module], str, dict[str, Any]]] = {
    "ResNet of akamaster": (lambda: SmallStem(option_a(Centred)), "resnet10", {"shortcut": "pad", "zeros": "around"}),
    "ResNet-38 of akamaster": (
        lambda: SmallStem(option_a(Centred), (6, 6, 6)),
        "resnet38",
        {"shortcut": "pad", "zeros": "around"},
    ),
    "ResNet-18 of kuangliu": (
        lambda: SmallStem(kuangliu_block, (2, 2, 2, 2), (4, 8, 16, 32)),
        "resnet18",
        {"stem": "cifar", "shortcut": "projection"},
    ),
    "ResNet-C of timm": (
        lambda: TimmDeepStem(kuangliu_block, (3, 3)),
        "resnet8c",
        {"deep_stem": (3, 3), "shortcut": "projection"},
    ),
    "ResNet-D of timm": (
        lambda: TimmDeepStem(timm_d_block, (3, 3)),
        "resnet8d",
        {"deep_stem": (3, 3), "shortcut": "pooled"},
    ),
    "ResNet-D of timm with a tiered stem": (
        lambda: TimmDeepStem(timm_d_block, (3, 5)),
        "resnet8t",
        {"deep_stem": (3, 5), "shortcut": "pooled"},
    ),
    "ResNeXt of torchvision": (
        TorchvisionResNet,
        "resnext8_4x48d",  # 12 = 4 x int(4 x 48 / 64) channels inside a block of width 16 / 4
        {"stem": "imagenet", "block": "bottleneck", "groups": 4},
    ),
}


@pytest.mark.parametrize(
    ("make", "name", "fields"),
    [*PRE_ACTIVATION.values(), *POST_ACTIVATION.values()],
    ids=[*PRE_ACTIVATION, *POST_ACTIVATION],
)
def test_a_network_is_recognised_and_computes_what_its_repository_does(
    make: Callable[[], nn.Module], name: str, fields: dict[str, Any]
) -> None:
    network = make()
    candidate = recognised(network)[0]
    assert candidate.spec.name == name
    assert {key: getattr(candidate.spec, key) for key in fields} == fields
    assert answers_as(network, candidate, torch.randn(2, 3, 15, 17))


def test_padding_that_puts_all_zeros_last_is_offered_too() -> None:
    network, images = SmallStem(option_a(Doubled)), torch.randn(2, 3, 16, 16)
    around, after = recognised(network)
    assert (around.spec.model_dump()["zeros"], after.spec.model_dump()["zeros"]) == ("around", "after")
    assert answers_as(network, after, images) and not answers_as(network, around, images)
    assert "to pad with zero channels, half before and half after." in around.assumptions[0]
    assert "to pad with zero channels, all after the others." in after.assumptions[0]


def test_both_forms_that_go_by_the_same_names_are_offered_and_biases_say_which_is_likelier() -> None:
    images = torch.randn(2, 3, 16, 16)
    for network, forms in (
        (MeliketoyWide(), [("raw", 2), ("activated", 1)]),
        (KuangliuPreAct(KuangliuPreActBlock), [("activated", 1), ("raw", 2)]),
    ):
        likelier, other = recognised(network)
        fields = [candidate.spec.model_dump() for candidate in (likelier, other)]
        assert [(spec["projected"], spec["strided"]) for spec in fields] == forms
        assert answers_as(network, likelier, images) and not answers_as(network, other, images)


def test_what_weights_do_not_show_is_told_with_whom_it_is_taken_from() -> None:
    (candidate,) = recognised(WeiaicunzaiWide())
    (assumption,) = candidate.assumptions
    assert assumption == (
        "Weights do not show where shortcuts start and which convolution has a block's stride; as in "
        "weiaicunzai/pytorch-cifar100, shortcuts that change shape are taken to start at the block's input, the first "
        "convolution to have the stride, and no ReLU to follow the last batch norm."
    )
    assert candidate.reasons[1] == "3 stages of 1 + 2 + 1 blocks with two convolutions each."
    (pooled,) = recognised(TimmDeepStem(timm_d_block))
    assert "it is taken to average 2x2 pixels where the block has a stride (ResNet-D)" in pooled.assumptions[0]


# Zagoruyko & Komodakis give 36.5 M for WRN-28-10 and 2.2 M for WRN-40-2 (tables 5 and 4) with 10 classes; kuangliu's
# ResNet-18 and PreActResNet18 have 11.17 M.
@pytest.mark.parametrize(
    ("make", "name", "parameters"),
    [
        (lambda: XternalzWide((4,) * 3, (160, 320, 640), 16, 10), "wrn-28-10", 36_479_194),
        (lambda: XternalzWide((6,) * 3, (32, 64, 128), 16, 10), "wrn-40-2", 2_243_546),
        (
            lambda: KuangliuPreAct(KuangliuPreActBlock, (2,) * 4, (64, 128, 256, 512), 64, 10),
            "preactresnet18",
            11_171_146,
        ),
        (lambda: SmallStem(kuangliu_block, (2,) * 4, (64, 128, 256, 512), 10), "resnet18", 11_173_962),
    ],
)
def test_published_networks_have_their_names_and_parameter_counts(
    make: Callable[[], nn.Module], name: str, parameters: int
) -> None:
    candidate = recognised(on_meta(make))[0]
    assert candidate.spec.name == name
    assert count_parameters(candidate.spec) == parameters


@pytest.mark.parametrize("make", [XternalzWide, MeliketoyWide, WeiaicunzaiWide, WeiaicunzaiPreAct])
def test_a_pre_activation_network_is_no_resnet(make: Callable[[], nn.Module]) -> None:
    assert "is not recognised" in refusal(resnet_candidates, shapes_of(on_meta(make)))


@pytest.mark.parametrize("block", [kuangliu_block, option_a(Centred)])
def test_a_resnet_is_no_pre_activation_network(block: Callable[[int, int, int], nn.Module]) -> None:
    assert "is not recognised" in refusal(preact_resnet_candidates, shapes_of(on_meta(lambda: SmallStem(block))))


def tiny_preact(**changes: Any) -> PreActResNetSpec:
    usual = {"blocks": (1, 2, 1), "widths": (8, 16, 32), "stem_width": 8, "num_classes": 3}
    return PreActResNetSpec.model_validate(usual | changes)


@pytest.mark.parametrize(
    ("changes", "title"),
    [
        ({}, "WRN-12-0.5 (CIFAR form, basic pre-activation blocks, widths 8-16-32, shortcuts after activation)"),
        (
            {"ending": "none", "projected": "raw"},
            "PreActResNet-10 (CIFAR form, basic pre-activation blocks, widths 8-16-32, shortcuts before activation)",
        ),
    ],
)
def test_a_pre_activation_network_is_called_by_its_usual_name(changes: dict[str, Any], title: str) -> None:
    assert tiny_preact(**changes).title == title


def test_a_pre_activation_spec_comes_back_from_its_json() -> None:
    spec = tiny_preact(strided=2, projected="raw")
    assert spec_from_json(spec.model_dump(mode="json")) == spec
    assert (spec.usual_size, spec.minimum_size) == (32, 2)


def test_names_of_another_kind_are_as_far_away_as_there_are_tensors() -> None:
    shapes = {"encoder.weight": (3, 3), "encoder.bias": (3,), "scale": (1,)}
    assert misfit(resnet_candidates, shapes).distance == 3
    assert misfit(preact_resnet_candidates, shapes).distance == 3
    # All names are known here, but there are no blocks.
    assert misfit(preact_resnet_candidates, {"conv1.weight": (4, 3, 3, 3), "linear.weight": (3, 4)}).distance == 2


def test_the_distance_of_a_resnet_counts_the_tensors_too_many_in_all_blocks() -> None:
    shapes = dict(shapes_of(on_meta(lambda: SmallStem(kuangliu_block))))
    squeezes = {f"layer{stage}.0.se.fc{index}.{kind}": (4, 4) if kind == "weight" else (4,)
                for stage in (1, 2, 3) for index in (1, 2) for kind in ("weight", "bias")}  # fmt: skip
    assert misfit(resnet_candidates, shapes | squeezes).distance == len(squeezes)
    gates = {f"layer{stage}.0.gate": (4,) for stage in (1, 2, 3)}
    assert misfit(resnet_candidates, shapes | gates).distance == len(gates)


@pytest.mark.parametrize(
    ("network", "family"),
    [
        (lambda: XternalzWide((1, 1), (2, 4)), preact_resnet_candidates),
        (lambda: SmallStem(kuangliu_block, (1, 1), (2, 4)), resnet_candidates),
        (lambda: TimmDeepStem(timm_d_block, blocks=(1, 1)), resnet_candidates),
        (TorchvisionResNet, resnet_candidates),
    ],
)
def test_senseless_shapes_and_missing_tensors_are_refused_in_words(
    network: Callable[[], nn.Module], family: Family
) -> None:
    for shapes in nonsense(shapes_of(on_meta(network))):
        assert refusal(family, shapes).startswith("The architecture of 't.pt' is not recognised")


@pytest.mark.parametrize("index", ["9", "1000000000", "1" * 5000, "00", "-1", "²"])
def test_absurd_indices_are_refused_in_words(index: str) -> None:
    shapes = shapes_of(on_meta(XternalzWide))
    for name in (f"block{index}.layer.0.bn1.bias", f"block1.layer.{index}.bn1.bias"):
        assert "is not recognised" in refusal(preact_resnet_candidates, {**shapes, name: (4,)})
    shapes = shapes_of(on_meta(lambda: SmallStem(kuangliu_block)))
    for name in (f"layer{index}.0.conv1.weight", f"layer1.{index}.conv1.weight"):
        assert "is not recognised" in refusal(resnet_candidates, {**shapes, name: (4, 4, 3, 3)})
