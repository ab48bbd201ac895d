"""DenseNets as other people's repositories write them, and what is recognised in their weights."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from compress.pipeline.networks import build, spec_from_json
from compress.pipeline.networks.densenet import DenseNetSpec
from compress.pipeline.teacher.families.densenet import densenet_candidates
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

BLOCKS = (2, 3, 1)
GROWTH = 7


def conv1(entering: int, leaving: int) -> nn.Conv2d:
    return nn.Conv2d(entering, leaving, 1, bias=False)


def conv3(entering: int, leaving: int) -> nn.Conv2d:
    return nn.Conv2d(entering, leaving, 3, padding=1, bias=False)


class TorchvisionLayer(nn.Module):
    """The dense layer of torchvision."""

    def __init__(self, entering: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(entering), conv1(entering, 4 * growth)
        self.norm2, self.conv2 = nn.BatchNorm2d(4 * growth), conv3(4 * growth, growth)

    def forward(self, features: list[Tensor]) -> Tensor:
        inner = self.conv1(self.norm1(torch.cat(features, 1)).relu())
        new: Tensor = self.conv2(self.norm2(inner).relu())
        return new


class TorchvisionBlock(nn.Module):
    def __init__(self, count: int, entering: int, growth: int) -> None:
        super().__init__()
        for index in range(count):
            self.add_module(f"denselayer{index + 1}", TorchvisionLayer(entering + index * growth, growth))

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.children():
            features.append(layer(features))
        return torch.cat(features, 1)


class Torchvision(nn.Module):
    """torchvision/models/densenet.py."""

    def __init__(
        self, growth: int = GROWTH, blocks: tuple[int, ...] = BLOCKS, width: int = 6, classes: int = 3
    ) -> None:
        super().__init__()
        stem = [("conv0", nn.Conv2d(3, width, 7, 2, 3, bias=False)), ("norm0", nn.BatchNorm2d(width))]
        self.features = nn.Sequential(OrderedDict([*stem, ("relu0", nn.ReLU()), ("pool0", nn.MaxPool2d(3, 2, 1))]))
        for index, count in enumerate(blocks, start=1):
            self.features.add_module(f"denseblock{index}", TorchvisionBlock(count, width, growth))
            width += count * growth
            if index < len(blocks):
                layers = [("norm", nn.BatchNorm2d(width)), ("relu", nn.ReLU()), ("conv", conv1(width, width // 2))]
                transition = nn.Sequential(OrderedDict([*layers, ("pool", nn.AvgPool2d(2, 2))]))
                self.features.add_module(f"transition{index}", transition)
                width //= 2
        self.features.add_module("norm5", nn.BatchNorm2d(width))
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(F.relu(self.features(x)), (1, 1))
        logits: Tensor = self.classifier(torch.flatten(x, 1))
        return logits


class OldTorchvision(nn.Module):
    """The same under the names that torchvision's published weights still have: `norm.1` for `norm1`."""

    def __init__(self) -> None:
        super().__init__()
        network = Torchvision()
        for module in list(network.modules()):
            if isinstance(module, TorchvisionLayer):
                parts = {name: nn.Module() for name in ("norm", "conv")}
                for name, part in parts.items():
                    for number in "12":
                        part.add_module(number, module.get_submodule(f"{name}{number}"))
                        delattr(module, f"{name}{number}")
                    module.add_module(name, part)
        self.features, self.classifier = network.features, network.classifier


class KuangliuLayer(nn.Module):
    """The dense layer of kuangliu/pytorch-cifar: what is new goes before what is old."""

    def __init__(self, entering: int, growth: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(entering), conv1(entering, 4 * growth)
        self.bn2, self.conv2 = nn.BatchNorm2d(4 * growth), conv3(4 * growth, growth)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(F.relu(self.bn1(x)))
        out = self.conv2(F.relu(self.bn2(out)))
        return torch.cat([out, x], 1)


class KuangliuTransition(nn.Module):
    def __init__(self, entering: int, leaving: int) -> None:
        super().__init__()
        self.bn, self.conv = nn.BatchNorm2d(entering), conv1(entering, leaving)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv(F.relu(self.bn(x))), 2)


class Kuangliu(nn.Module):
    """kuangliu/pytorch-cifar, densenet.py."""

    def __init__(self, growth: int = GROWTH, blocks: tuple[int, ...] = BLOCKS, classes: int = 3) -> None:
        super().__init__()
        width = 2 * growth
        self.conv1 = conv3(3, width)
        for index, count in enumerate(blocks, start=1):
            layers = [KuangliuLayer(width + growth * layer, growth) for layer in range(count)]
            self.add_module(f"dense{index}", nn.Sequential(*layers))
            width += count * growth
            if index < len(blocks):
                self.add_module(f"trans{index}", KuangliuTransition(width, width // 2))
                width //= 2
        self.bn, self.linear = nn.BatchNorm2d(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for name, module in self.named_children():
            x = module(x) if name.startswith(("dense", "trans")) else x
        logits: Tensor = self.linear(F.relu(self.bn(x)).mean((2, 3)))
        return logits


class BearpawLayer(nn.Module):
    """The layer without bottleneck of bearpaw/pytorch-classification."""

    def __init__(self, entering: int, growth: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(entering), conv3(entering, growth)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, self.conv1(self.bn1(x).relu())), 1)


class BearpawTransition(nn.Module):
    def __init__(self, entering: int, leaving: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(entering), conv1(entering, leaving)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv1(self.bn1(x).relu()), 2)


class Bearpaw(nn.Module):
    """bearpaw/pytorch-classification, models/cifar/densenet.py, without bottlenecks; transitions keep the width."""

    def __init__(self, growth: int = 5, count: int = 2, width: int = 6, classes: int = 3) -> None:
        super().__init__()
        self.conv1 = conv3(3, width)
        for index in (1, 2, 3):
            layers = [BearpawLayer(width + growth * layer, growth) for layer in range(count)]
            self.add_module(f"dense{index}", nn.Sequential(*layers))
            width += count * growth
            if index < 3:
                self.add_module(f"trans{index}", BearpawTransition(width, width))
        self.bn, self.fc = nn.BatchNorm2d(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for name, module in self.named_children():
            x = module(x) if name.startswith(("dense", "trans")) else x
        logits: Tensor = self.fc(self.bn(x).relu().mean((2, 3)))
        return logits


class AndreasveitLayer(KuangliuLayer):
    """The bottleneck layer of andreasveit/densenet-pytorch: what is old comes first."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(self.bn1(x).relu())
        return torch.cat([x, self.conv2(self.bn2(out).relu())], 1)


class Andreasveit(nn.Module):
    """andreasveit/densenet-pytorch, densenet.py."""

    def __init__(self, growth: int = GROWTH, count: int = 2, classes: int = 3) -> None:
        super().__init__()
        width = 2 * growth
        self.conv1 = conv3(3, width)
        for index in (1, 2, 3):
            block = nn.Module()
            block.layer = nn.Sequential(*[AndreasveitLayer(width + growth * layer, growth) for layer in range(count)])
            self.add_module(f"block{index}", block)
            width += count * growth
            if index < 3:
                self.add_module(f"trans{index}", BearpawTransition(width, width // 2))
                width //= 2
        self.bn1, self.fc = nn.BatchNorm2d(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for name, module in self.named_children():
            if name.startswith("block"):
                x = module.get_submodule("layer")(x)
            elif name.startswith("trans"):
                x = module(x)
        logits: Tensor = self.fc(self.bn1(x).relu().mean((2, 3)))
        return logits


class WeiaicunzaiLayer(nn.Module):
    """The dense layer of weiaicunzai/pytorch-cifar100."""

    def __init__(self, entering: int, growth: int) -> None:
        super().__init__()
        first = [nn.BatchNorm2d(entering), nn.ReLU(), conv1(entering, 4 * growth)]
        second = [nn.BatchNorm2d(4 * growth), nn.ReLU(), conv3(4 * growth, growth)]
        self.bottle_neck = nn.Sequential(*first, *second)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.bottle_neck(x)], 1)


class WeiaicunzaiTransition(nn.Module):
    def __init__(self, entering: int, leaving: int) -> None:
        super().__init__()
        self.down_sample = nn.Sequential(nn.BatchNorm2d(entering), conv1(entering, leaving), nn.AvgPool2d(2, stride=2))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_sample(x)
        return out


class Weiaicunzai(nn.Module):
    """weiaicunzai/pytorch-cifar100, densenet.py: the last block has a name of its own."""

    def __init__(self) -> None:
        super().__init__()
        width, last = 2 * GROWTH, len(BLOCKS) - 1
        self.conv1, self.features = conv3(3, width), nn.Sequential()
        for index, count in enumerate(BLOCKS):
            block = nn.Sequential()
            for layer in range(count):
                block.add_module(f"bottle_neck_layer_{layer}", WeiaicunzaiLayer(width + GROWTH * layer, GROWTH))
            self.features.add_module(f"dense_block{'' if index == last else '_layer_'}{index}", block)
            width += count * GROWTH
            if index < last:
                self.features.add_module(f"transition_layer_{index}", WeiaicunzaiTransition(width, width // 2))
                width //= 2
        self.features.add_module("bn", nn.BatchNorm2d(width))
        self.features.add_module("relu", nn.ReLU())
        self.linear = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.features(self.conv1(x)).mean((2, 3)))
        return logits


# What is expected: the usual name and some fields. Depths: 2 x 6 layers + 2 transitions + 2, and 6 + 2 + 2.
FOREIGN: dict[str, tuple[Callable[[], nn.Module], str, dict[str, Any]]] = {
    "torchvision": (Torchvision, "densenet16", {"stem": "imagenet", "growth": 7, "layers": (2, 3, 1)}),
    "kuangliu": (Kuangliu, "densenet16", {"stem": "cifar", "stem_norm": False, "order": "newest first"}),
    "bearpaw without bottlenecks": (Bearpaw, "densenet10", {"bottleneck": None, "order": "oldest first", "growth": 5}),
    "andreasveit": (Andreasveit, "densenet16", {"bottleneck": 28, "order": "oldest first"}),
    "weiaicunzai": (Weiaicunzai, "densenet16", {"transition_relu": False, "order": "oldest first"}),
}


@pytest.mark.parametrize(("make", "name", "fields"), FOREIGN.values(), ids=FOREIGN)
def test_a_network_is_recognised_and_computes_what_its_repository_does(
    make: Callable[[], nn.Module], name: str, fields: dict[str, Any]
) -> None:
    network = make()
    candidate = recognised(network)[0]
    assert candidate.spec.name == name
    assert {key: getattr(candidate.spec, key) for key in fields} == fields
    assert answers_as(network, candidate, torch.randn(2, 3, 33, 38))


def test_the_dotted_names_of_published_weights_are_read_as_those_of_today() -> None:
    (old,), (new,) = recognised(OldTorchvision()), recognised(Torchvision())
    assert old.spec == new.spec
    assert old.names["features.denseblock1.denselayer2.norm.2.running_var"] == (
        "features.denseblock1.denselayer2.norm2.running_var"
    )
    assert set(old.names.values()) == set(new.names.values())


def test_both_orders_of_channels_are_offered_where_names_leave_it_open() -> None:
    images = torch.randn(2, 3, 16, 16)
    for network, orders in (
        (Kuangliu(), ["newest first", "oldest first"]),
        (Andreasveit(), ["oldest first", "newest first"]),
    ):
        likelier, other = recognised(network)
        assert [spec.model_dump()["order"] for spec in (likelier.spec, other.spec)] == orders
        assert answers_as(network, likelier, images) and not answers_as(network, other, images)
        assert "those of each layer are taken to go" in likelier.assumptions[0]
    assert [len(recognised(network)) for network in (Torchvision(), Weiaicunzai())] == [1, 1]


def test_what_weights_do_not_show_is_told() -> None:
    assert recognised(Torchvision())[0].assumptions == ()
    (candidate,) = recognised(Weiaicunzai())
    assert candidate.assumptions == ("As in weiaicunzai/pytorch-cifar100, transitions are taken to have no ReLU.",)
    assert candidate.reasons == (
        "The tensors are named as in weiaicunzai/pytorch-cifar100.",
        "The first convolution is 3x3: the CIFAR form.",
        "3 dense blocks of 2 + 3 + 1 layers, each of which adds 7 channels.",
    )


# Parameters as torchvision publishes them with its classification weights; 0.8 M for DenseNet-BC-100 with growth 12 and
# 1.0 M for DenseNet-40 are table 2 of the paper, with 10 classes.
@pytest.mark.parametrize(
    ("make", "name", "parameters"),
    [
        (lambda: Torchvision(32, (6, 12, 24, 16), 64, 1000), "densenet121", 7_978_856),
        (lambda: Torchvision(48, (6, 12, 36, 24), 96, 1000), "densenet161", 28_681_000),
        (lambda: Torchvision(32, (6, 12, 32, 32), 64, 1000), "densenet169", 14_149_480),
        (lambda: Torchvision(32, (6, 12, 48, 32), 64, 1000), "densenet201", 20_013_928),
        (lambda: Andreasveit(12, 16, 10), "densenet100", 769_162),
        (lambda: Bearpaw(12, 12, 16, 10), "densenet40", 1_019_722),
        (lambda: Kuangliu(12, (6, 12, 24, 16), 10), "densenet121", 1_000_618),
    ],
)
def test_published_networks_have_their_names_and_parameter_counts(
    make: Callable[[], nn.Module], name: str, parameters: int
) -> None:
    candidate = recognised(on_meta(make))[0]
    assert candidate.spec.name == name
    assert count_parameters(candidate.spec) == parameters


def tiny(**changes: Any) -> DenseNetSpec:
    usual = {"stem": "cifar", "layers": (2, 1), "growth": 4, "bottleneck": 8, "transitions": (8,), "stem_width": 8}
    return DenseNetSpec.model_validate(usual | {"stem_norm": False, "num_classes": 3} | changes)


@pytest.mark.parametrize(
    ("changes", "title", "usual", "minimum"),
    [
        ({}, "DenseNet-9 (CIFAR form, blocks of 2-1 layers, growth 4, bottlenecks)", 32, 2),
        (
            {"bottleneck": None, "order": "newest first", "stem_norm": True},
            "DenseNet-6 (CIFAR form, blocks of 2-1 layers, growth 4, no bottlenecks, new channels first)",
            32,
            2,
        ),
        (
            {"stem": "imagenet", "stem_norm": True, "layers": (1, 1, 1), "transitions": (8, 8)},
            "DenseNet-10 (ImageNet form, blocks of 1-1-1 layers, growth 4, bottlenecks)",
            224,
            13,
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
        ({"transitions": ()}, "2 blocks have 0 transitions between them"),
        ({"growth": 1 << 20}, "blocks would put out 2097160 channels"),
    ],
)
def test_a_spec_that_makes_no_network_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        tiny(**changes)


def test_a_stem_of_another_size_is_refused() -> None:
    shapes = {**shapes_of(on_meta(Torchvision)), "features.conv0.weight": (6, 3, 5, 5)}
    assert "the stem is 5x5 and not 3x3 or 7x7: features.conv0.weight" in refusal(densenet_candidates, shapes)


def test_foreign_names_are_as_far_away_as_there_are_tensors() -> None:
    assert misfit(densenet_candidates, {"encoder.weight": (3, 3), "scale": (1,)}).distance == 2
    assert misfit(densenet_candidates, {"conv1.weight": (4, 3, 3, 3), "linear.weight": (3, 4)}).distance == 2


def test_a_layer_too_many_is_named() -> None:
    shapes = {**shapes_of(on_meta(Torchvision)), "features.denseblock1.denselayer1.se.weight": (4, 4)}
    assert "it has no place for: features.denseblock1.denselayer1.se.weight" in refusal(densenet_candidates, shapes)


@pytest.mark.parametrize("make", [lambda: Torchvision(2, (1, 1), 4), lambda: Kuangliu(2, (1, 1))])
def test_senseless_shapes_and_missing_tensors_are_refused_in_words(make: Callable[[], nn.Module]) -> None:
    for shapes in nonsense(shapes_of(on_meta(make))):
        assert refusal(densenet_candidates, shapes).startswith("The architecture of 't.pt' is not recognised")


@pytest.mark.parametrize("index", ["0", "9", "1000000000", "1" * 5000, "01", "-1", "²"])
def test_absurd_indices_are_refused_in_words(index: str) -> None:
    shapes = shapes_of(on_meta(Torchvision))
    for name in (
        f"features.denseblock{index}.denselayer1.norm1.bias",
        f"features.denseblock1.denselayer{index}.norm1.bias",
    ):
        assert "is not recognised" in refusal(densenet_candidates, {**shapes, name: (6,)})
