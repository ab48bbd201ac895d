"""Which blocks a student keeps."""

from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from torch import nn

from compress.pipeline.networks import StagedNetwork, build
from compress.pipeline.networks.densenet import DenseLayer
from compress.pipeline.networks.mobilenet_v2 import MobileNetV2Spec
from compress.pipeline.students.choice import MOST_PASSES, _passes, _spare, choose_blocks, relative_change
from compress.pipeline.students.inheritance import donor_of, inherit_weights, thinned
from compress.pipeline.students.inheriting import block_counts, evenly, inheriting_student, least_counts
from tests.families import SPECS, images, network_of
from tests.networks import unsettle
from tests.tiny import copied, same_tensors

LAST = {
    # the layer of a block without which it adds nothing to its input
    "ResNet": "bn2",
    "PreActResNet": "residual.conv2",
    "MobileNetV2": "conv.3",
    "EfficientNet": "block.3.1",
    "ConvNeXt": "project",
}


def planned(network: StagedNetwork, counts: Sequence[int]) -> list[tuple[int, ...]]:
    """Blocks that are planned to be kept before there are images."""
    return [evenly(count, droppable) for count, droppable in zip(counts, network.spec.droppable, strict=True)]


def idle(network: StagedNetwork, name: str, stage: int, index: int) -> None:
    """Let a block compute the identity, its residual branch being zero."""
    (block,) = network.stage_list()[stage].blocks[index]
    for parameter in block.get_submodule(LAST[name]).parameters():
        nn.init.zeros_(parameter)


@pytest.mark.parametrize("name", LAST)
@pytest.mark.parametrize("index", [1, 2])
def test_a_block_that_is_an_identity_goes_first(name: str, index: int) -> None:
    for stage in (0, 1):
        network = donor_of(network_of(name))
        idle(network, name, stage, index)
        counts = list(block_counts(network.spec))
        counts[stage] -= 1
        kept = choose_blocks(network, planned(network, counts), images(16))
        assert set(range(counts[stage] + 1)) - set(kept[stage]) == {index}


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_dense_layer_that_adds_nothing_goes_first(index: int) -> None:
    # Its channels are zero, and batch norms that see only zeros put out their bias: zero, too.
    network = network_of("DenseNet")
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.zeros_(norm.bias)
    (layer,) = network.stage_list()[1].blocks[index]
    assert isinstance(layer, DenseLayer)
    nn.init.zeros_(layer.get_submodule("conv2").get_parameter("weight"))
    kept = choose_blocks(network, planned(network, (3, 2)), images(16))
    assert set(range(3)) - set(kept[1]) == {index}


@pytest.mark.parametrize("name", SPECS)
def test_every_family_keeps_as_many_blocks_as_it_should_and_all_that_must_stay(name: str) -> None:
    donor = donor_of(network_of(name))
    before = copied(donor)
    counts = [max(1, len(stage) - 1) for stage in donor.spec.droppable]
    kept = choose_blocks(donor, planned(donor, counts), images(8))
    assert [len(stage) for stage in kept] == counts
    for chosen, droppable in zip(kept, donor.spec.droppable, strict=True):
        assert list(chosen) == sorted(set(chosen))
        assert all(index in chosen for index, may_go in enumerate(droppable) if not may_go)
    assert choose_blocks(donor, planned(donor, counts), images(8)) == kept
    assert same_tensors(copied(donor), before)


def test_where_nothing_is_to_go_nothing_goes() -> None:
    assert choose_blocks(network_of("ResNet"), [(0, 1, 2)] * 2, images(2)) == ((0, 1, 2), (0, 1, 2))


def test_the_change_is_relative_to_what_is_wanted() -> None:
    # ((1 - 2)^2 + (3 - 1)^2) / (2^2 + 1^2) = 5 / 5
    assert relative_change(torch.tensor([2.0, 1.0]), torch.tensor([1.0, 3.0])) == pytest.approx(1.0)
    assert relative_change(torch.zeros(2), torch.zeros(2)) == 0.0


def test_blocks_go_one_at_a_time_unless_there_are_too_many() -> None:
    assert _passes(0) == []
    assert _passes(3) == [1, 1, 1]
    assert _passes(11) == [2, 2, 2, 1, 1, 1, 1, 1]
    for surplus in range(1, 60):
        assert sum(_passes(surplus)) == surplus
        assert len(_passes(surplus)) <= MOST_PASSES


def test_a_thinned_network_shares_the_tensors_of_its_donor() -> None:
    donor = network_of("ResNet")
    small = thinned(donor, [(2,), (0, 1)])
    assert small.get_parameter("layer1.0.conv1.weight").data_ptr() == (
        donor.get_parameter("layer1.2.conv1.weight").data_ptr()
    )


def test_blocks_that_would_come_in_another_order_than_planned_are_not_taken() -> None:
    # Kinds s, a, b, a: planned are s b a, while images would have s a b.
    spec = SPECS["MobileNetV2"]
    assert isinstance(spec, MobileNetV2Spec)
    first, wide = spec.blocks[3], spec.blocks[4]
    narrow = wide.model_copy(update={"expanded": wide.expanded - 8})
    spec = spec.model_copy(update={"blocks": (*spec.blocks[:3], first, wide, narrow, wide)})
    network = unsettle(build(spec)).eval()
    assert isinstance(network, StagedNetwork)
    idle(network, "MobileNetV2", 1, 3)
    plan = inheriting_student(spec, (3, 3))
    assert plan.kept_blocks == ((0, 1, 2), (0, 2, 3))
    kept = choose_blocks(network, plan.kept_blocks, images(8))
    assert kept == plan.kept_blocks
    inherit_weights(build(plan.spec), network, kept)


def test_no_more_blocks_of_a_kind_go_than_may() -> None:
    assert _spare([3, 1, 2], "abba", Counter(["a", "b"])) == [3, 1]
    assert _spare([3, 1, 2, 0], "abba", Counter(["a", "a"])) == [3, 0]


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("more", [0, 1])
@torch.no_grad()
def test_whatever_images_say_the_student_can_take_the_chosen_blocks(name: str, more: int) -> None:
    # Networks that count on other blocks than a student was planned with: of other widths, with and without expansion.
    donor = donor_of(network_of(name))
    counts = [
        min(least + more, whole)
        for least, whole in zip(least_counts(donor.spec), block_counts(donor.spec), strict=True)
    ]
    plan = inheriting_student(SPECS[name], counts)
    assert plan.kept_blocks is not None
    kinds = donor.spec.block_kinds
    for seed in range(3):
        torch.manual_seed(seed)
        for parameter in donor.parameters():
            parameter.mul_(torch.rand_like(parameter) + 0.5)
        kept = choose_blocks(donor, plan.kept_blocks, images(4))
        inherit_weights(build(plan.spec), donor, kept)
        for of_stage, chosen, first in zip(kinds, kept, plan.kept_blocks, strict=True):
            assert Counter(of_stage[i] for i in chosen) == Counter(of_stage[i] for i in first)
