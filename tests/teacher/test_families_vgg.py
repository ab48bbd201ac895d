"""VGG networks as other people's repositories write them, and what is recognised in their weights."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from compress.pipeline.networks import build, spec_from_json
from compress.pipeline.networks.vgg import VGGSpec
from compress.pipeline.teacher.families.vgg import vgg_candidates
from tests.networks import unsettle
from tests.teacher.foreign import (
    answers_as,
    count_parameters,
    misfit,
    nonsense,
    on_meta,
    recognised,
    refusal,
    shapes_of,
    tensors_of,
)

Plan = Sequence[int | str]

# Source: torchvision/models/vgg.py, configurations A, B, D and E of the paper.
A: Plan = [64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"]
B: Plan = [64, 64, "M", 128, 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"]
D: Plan = [64, 64, "M", 128, 128, "M", *[256] * 3, "M", *[512] * 3, "M", *[512] * 3, "M"]
E: Plan = [64, 64, "M", 128, 128, "M", *[256] * 4, "M", *[512] * 4, "M", *[512] * 4, "M"]
SMALL: Plan = [4, "M", 5, 6, "M", 6, 6, 7, "M"]


def plain_features(plan: Plan, *, batch_norm: bool = True, bias: bool = True, channels: int = 3) -> nn.Sequential:
    layers: list[nn.Module] = []
    for step in plan:
        if isinstance(step, str):
            layers.append(nn.MaxPool2d(2, 2))
            continue
        layers.append(nn.Conv2d(channels, step, 3, padding=1, bias=bias))
        layers += [nn.BatchNorm2d(step), nn.ReLU()] if batch_norm else [nn.ReLU()]
        channels = step
    return nn.Sequential(*layers)


def widths_of(plan: Plan) -> list[int]:
    return [step for step in plan if isinstance(step, int)]


class Torchvision(nn.Module):
    """torchvision/models/vgg.py."""

    def __init__(self, plan: Plan = SMALL, hidden: int = 9, classes: int = 3, **options: Any) -> None:
        super().__init__()
        self.features = plain_features(plan, **options)
        self.avgpool = nn.AdaptiveAvgPool2d((7, 7))
        last = widths_of(plan)[-1]
        self.classifier = nn.Sequential(
            nn.Linear(last * 7 * 7, hidden), nn.ReLU(), nn.Dropout(),
            nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(),
            nn.Linear(hidden, classes),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))
        return logits


class Kuangliu(nn.Module):
    """kuangliu/pytorch-cifar, vgg.py, for images that the poolings bring down to one pixel."""

    def __init__(self, plan: Plan = SMALL, classes: int = 3, **options: Any) -> None:
        super().__init__()
        self.features = plain_features(plan, **options).append(nn.AvgPool2d(1, 1))
        self.classifier = nn.Linear(widths_of(plan)[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        logits: Tensor = self.classifier(x.view(x.size(0), -1))
        return logits


class Weiaicunzai(nn.Module):
    """weiaicunzai/pytorch-cifar100, vgg.py, whose second hidden layer has no dropout behind it; chenyaofo's has."""

    def __init__(self, *, dropout: bool = False) -> None:
        super().__init__()
        self.features = plain_features(SMALL)
        layers = [nn.Linear(7, 9), nn.ReLU(), nn.Dropout(), nn.Linear(9, 9), nn.ReLU()]
        self.classifier = nn.Sequential(*layers, *([nn.Dropout()] if dropout else []), nn.Linear(9, 3))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits


class Timm(nn.Module):
    """timm/models/vgg.py: the first two linear layers are convolutions, and what they put out is averaged."""

    def __init__(self, plan: Plan = SMALL, hidden: int = 9, classes: int = 3) -> None:
        super().__init__()
        self.features = plain_features(plan)
        self.pre_logits, self.head = nn.Module(), nn.Module()
        self.pre_logits.fc1 = nn.Conv2d(widths_of(plan)[-1], hidden, 7)
        self.pre_logits.fc2 = nn.Conv2d(hidden, hidden, 1)
        self.head.fc = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        if x.shape[-2] < 7 or x.shape[-1] < 7:
            x = F.adaptive_avg_pool2d(x, (max(7, x.shape[-2]), max(7, x.shape[-1])))
        x = self.pre_logits.get_submodule("fc1")(x).relu()
        x = self.pre_logits.get_submodule("fc2")(x).relu()
        logits: Tensor = self.head.get_submodule("fc")(x.mean((2, 3)))
        return logits


class NetworkSlimming(nn.Module):
    """Eric-mingjie/network-slimming, models/vgg.py: no biases, and an average where others have the last pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.feature = plain_features(SMALL[:-1], bias=False)
        self.classifier = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(self.feature(x), 2)
        logits: Tensor = self.classifier(x.view(x.size(0), -1))
        return logits


class ParallelFeatures(Torchvision):
    """pytorch/examples, imagenet/main.py: the features of a VGG alone behind DataParallel."""

    def __init__(self) -> None:
        super().__init__()
        features, self.features = self.features, nn.Sequential()
        self.features.add_module("module", features)


# What is expected: a size at which the repository's own forward pass works, the name, and some fields of the spec.
FOREIGN: dict[str, tuple[Callable[[], nn.Module], int, str, dict[str, Any]]] = {
    "torchvision": (Torchvision, 60, "vgg9_bn", {"grid": 7, "hidden": (9, 9), "blocks": ((4,), (5, 6), (6, 6, 7))}),
    "torchvision without batch norm": (
        lambda: Torchvision(batch_norm=False),
        56,
        "vgg9",
        {"batch_norm": False, "blocks": ((4,), (5, 6), (6, 6, 7))},
    ),
    "the ImageNet example": (ParallelFeatures, 56, "vgg9_bn", {"grid": 7}),
    "kuangliu": (Kuangliu, 8, "vgg9_bn", {"grid": 1, "hidden": ()}),
    "kuangliu without batch norm, grey": (
        lambda: Kuangliu(batch_norm=False, channels=1),
        8,
        "vgg9",
        {"channels": 1, "conv_bias": True},
    ),
    "kuangliu with a pooling behind each convolution": (
        lambda: Kuangliu([4, "M", 5, "M", 6, "M"]),
        8,
        "vgg6_bn",
        {"blocks": ((4,), (5,), (6,))},
    ),
    "weiaicunzai": (Weiaicunzai, 8, "vgg9_bn", {"grid": 1, "hidden": (9, 9)}),
    "chenyaofo": (lambda: Weiaicunzai(dropout=True), 8, "vgg9_bn", {"grid": 1, "hidden": (9, 9)}),
    "timm": (Timm, 64, "vgg9_bn", {"head": "convolutional", "grid": 7}),
    "timm on images that are too small for its first layer": (Timm, 32, "vgg9_bn", {"head": "convolutional"}),
    "network slimming": (NetworkSlimming, 8, "vgg9_bn", {"last_pool": False, "conv_bias": False}),
}


@pytest.mark.parametrize(("make", "size", "name", "fields"), FOREIGN.values(), ids=FOREIGN)
def test_a_network_is_recognised_and_computes_what_its_repository_does(
    make: Callable[[], nn.Module], size: int, name: str, fields: dict[str, Any]
) -> None:
    network = make()
    (candidate,) = recognised(network)
    assert candidate.spec.name == name
    assert {key: getattr(candidate.spec, key) for key in fields} == fields
    assert answers_as(network, candidate, torch.randn(2, candidate.spec.channels, size, size))


def test_what_the_poolings_leave_of_larger_images_is_averaged() -> None:
    network, images = unsettle(Kuangliu()).eval(), torch.randn(2, 3, 16, 16)
    (candidate,) = recognised(network)
    ours = build(candidate.spec).eval()
    ours.load_state_dict({candidate.names[name]: tensor for name, tensor in tensors_of(network).items()}, strict=False)
    maps = network.get_submodule("features")(images)
    torch.testing.assert_close(ours(images), network.get_submodule("classifier")(maps.mean((2, 3))))


def test_batch_norm_that_was_fused_away_has_left_its_numbers() -> None:
    network = unsettle(Kuangliu()).eval()
    features = network.get_submodule("features")
    assert isinstance(features, nn.Sequential)
    for index, layer in enumerate(features):
        norm = features[min(index + 1, len(features) - 1)]
        if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            features[index], features[index + 1] = fuse_conv_bn_eval(layer, norm), nn.Identity()
    (candidate,) = recognised(network)
    assert candidate.spec.model_dump()["blocks"] == ((4,), (5, 6), (6, 6, 7))
    assert candidate.spec.name == "vgg9"
    assert answers_as(network, candidate, torch.randn(2, 3, 8, 8))


# Parameters as torchvision publishes them with its classification weights; kuangliu's VGG-16 has 512 x 10 + 10 instead
# of a head of 25088 x 4096 + 4096 + 4096 x 4096 + 4096 + 4096 x 1000 + 1000 = 123,642,856.
@pytest.mark.parametrize(
    ("make", "name", "parameters"),
    [
        (lambda: Torchvision(A, 4096, 1000), "vgg11_bn", 132_868_840),
        (lambda: Torchvision(B, 4096, 1000), "vgg13_bn", 133_053_736),
        (lambda: Torchvision(D, 4096, 1000), "vgg16_bn", 138_365_992),
        (lambda: Torchvision(E, 4096, 1000), "vgg19_bn", 143_678_248),
        (lambda: Torchvision(D, 4096, 1000, batch_norm=False), "vgg16", 138_357_544),
        (lambda: Timm(D, 4096, 1000), "vgg16_bn", 138_365_992),
        (lambda: Kuangliu(D, 10), "vgg16_bn", 138_365_992 - 123_642_856 + 5_130),
    ],
)
def test_published_networks_have_their_names_and_parameter_counts(
    make: Callable[[], nn.Module], name: str, parameters: int
) -> None:
    (candidate,) = recognised(on_meta(make))
    assert candidate.spec.name == name
    assert count_parameters(candidate.spec) == parameters


def tiny(**changes: Any) -> VGGSpec:
    return VGGSpec.model_validate({"blocks": ((8, 8), (16, 24)), "num_classes": 3} | changes)


@pytest.mark.parametrize(
    ("changes", "title", "usual", "minimum"),
    [
        ({}, "VGG-7 (CIFAR form, blocks of 2-2 convolutions, widths 8-16/24, 1 linear layer, batch norm)", 4, 4),
        (
            {"grid": 7, "hidden": (32, 32), "batch_norm": False},
            "VGG-7 (ImageNet form, blocks of 2-2 convolutions, widths 8-16/24, 3 linear layers, no batch norm)",
            28,
            4,
        ),
        (
            {"last_pool": False},
            "VGG-7 (CIFAR form, blocks of 2-2 convolutions, widths 8-16/24, 1 linear layer, batch norm)",
            4,
            2,
        ),
    ],
)
def test_a_spec_says_what_it_is_and_what_images_it_takes(
    changes: dict[str, Any], title: str, usual: int, minimum: int
) -> None:
    spec = tiny(**changes)
    assert (spec.title, spec.usual_size, spec.minimum_size) == (title, usual, minimum)
    assert spec_from_json(spec.model_dump(mode="json")) == spec
    network = build(spec).eval()
    assert network(torch.randn(1, 3, minimum, minimum)).shape == (1, 3)
    with pytest.raises(RuntimeError, match="Output size is too small"):
        network(torch.randn(1, 3, minimum - 1, minimum - 1))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"blocks": ((8,), ())}, "a block has no convolution"),
        ({"head": "convolutional"}, "a convolutional head has hidden layers"),
    ],
)
def test_a_spec_that_makes_no_network_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        tiny(**changes)


def test_what_weights_do_not_show_is_told() -> None:
    (candidate,) = recognised(Kuangliu())
    assert candidate.reasons == (
        "The tensors are named as in torchvision and most CIFAR repositories.",
        "The numbers of the layers leave room for poolings after 1 + 2 + 3 convolutions.",
        "The classifier begins with a linear layer for 1x1 pixels.",
    )
    assert candidate.assumptions[0].endswith("2x2 max pooling, which is taken to follow the last convolution, too.")
    (slimmed,) = recognised(NetworkSlimming())
    assert slimmed.assumptions[0].endswith("none is taken to follow, as in Eric-mingjie/network-slimming.")


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"features.9.weight": (4, 7, 3, 3)}, "batch norm does not follow each convolution"),
        ({"features.4.se.weight": (4, 4)}, "it has no place for"),
        ({"features.99.weight": (8, 7, 3, 3), "features.100.running_mean": (8,)}, "layers 17 and 99 there is not just"),
        ({"classifier.3.weight": (9, 9, 1, 1)}, "a tensor of 2 dimensions has the shape [9, 9, 1, 1]"),
    ],
)
def test_a_layer_that_no_vgg_has_there_is_refused(changed: dict[str, tuple[int, ...]], problem: str) -> None:
    assert problem in str(misfit(vgg_candidates, {**shapes_of(on_meta(Torchvision)), **changed}))


def test_alexnet_is_no_vgg() -> None:
    # Source: torchvision/models/alexnet.py; its convolutions are 11x11, 5x5 and 3x3.
    convolutions = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
    linears = {1: (4096, 9216), 4: (4096, 4096), 6: (1000, 4096)}
    shapes: dict[str, tuple[int, ...]] = {}
    for number, (leaving, entering, kernel) in convolutions.items():
        shapes[f"features.{number}.weight"] = (leaving, entering, kernel, kernel)
        shapes[f"features.{number}.bias"] = (leaving,)
    for number, (leaving, entering) in linears.items():
        shapes[f"classifier.{number}.weight"], shapes[f"classifier.{number}.bias"] = (leaving, entering), (leaving,)
    assert "shapes differ: features.0.weight [64, 3, 11, 11] (expected [64, 3, 3, 3])" in refusal(
        vgg_candidates, shapes
    )


def test_foreign_names_are_as_far_away_as_there_are_tensors() -> None:
    assert misfit(vgg_candidates, {"encoder.weight": (3, 3), "scale": (1,)}).distance == 2
    assert misfit(vgg_candidates, {"classifier.weight": (3, 3), "classifier.bias": (3,)}).distance == 2


@pytest.mark.parametrize("make", [lambda: Torchvision([2, "M", 3]), lambda: Timm([2, "M", 3])])
def test_senseless_shapes_and_missing_tensors_are_refused_in_words(make: Callable[[], nn.Module]) -> None:
    for shapes in nonsense(shapes_of(on_meta(make))):
        assert refusal(vgg_candidates, shapes).startswith("The architecture of 't.pt' is not recognised")


@pytest.mark.parametrize("number", ["9999", "1000000000", "1" * 5000, "00", "-1", "²"])
def test_absurd_numbers_are_refused_in_words(number: str) -> None:
    shapes = shapes_of(on_meta(Torchvision))
    for name, shape in ((f"features.{number}.weight", (7, 7, 3, 3)), (f"classifier.{number}.weight", (3, 3))):
        assert "is not recognised" in refusal(vgg_candidates, {**shapes, name: shape})
