import pytest
import torch
from torch import Tensor, nn

from compress.exporters.folding import fold_batch_norm
from compress.pipeline.networks.resnet import ResNet
from compress.pipeline.students import donor_of
from compress.pipeline.students.unfolding import FILTER_LENGTH, settle, unfolded
from tests.networks import folded, unsettle
from tests.tiny import copied, same_tensors, tiny_spec

FORMS = {
    "basic": {},
    "bottleneck": {"block": "bottleneck", "stem": "imagenet"},
    "padding shortcuts": {"shortcut": "pad"},
    "shortcuts without batch norm": {"shortcut": "linear"},
    "pooled shortcuts, deep stem": {"shortcut": "pooled", "stem": "imagenet", "deep_stem": (4, 4)},
}


def network(**changes: object) -> ResNet:
    result = unsettle(ResNet(tiny_spec(**changes))).eval()
    assert isinstance(result, ResNet)
    return result


def resnet(network: nn.Module) -> ResNet:
    assert isinstance(network, ResNet)
    return network


def batches(count: int = 3) -> list[Tensor]:
    return list(torch.randn(count, 16, 3, 16, 16).unbind())


def norms_of(network: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


def same_function(one: nn.Module, other: nn.Module) -> None:
    images = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(one(images), other(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("changes", FORMS.values(), ids=FORMS)
def test_a_folded_network_computes_the_same_with_new_batch_norms(changes: dict[str, object]) -> None:
    original = network(**changes)
    without = folded(original)
    assert not norms_of(without)
    again = donor_of(without)
    assert again.spec == original.spec.learnable
    same_function(again, original)


@pytest.mark.parametrize("changes", FORMS.values(), ids=FORMS)
def test_settling_changes_the_statistics_and_not_the_function(changes: dict[str, object]) -> None:
    original = network(**changes)
    again = donor_of(folded(original))
    before = copied(again)
    settle(again, batches())
    moved = {
        name.rpartition(".")[2] for name, value in again.state_dict().items() if not torch.equal(value, before[name])
    }
    assert moved == {"weight", "bias", "running_mean", "running_var"}
    same_function(again, original)


def test_settled_batch_norms_expect_what_they_meet() -> None:
    again = resnet(unfolded(folded(network())))
    shown = batches()
    settle(again, shown)
    entering = [again.conv1(batch) for batch in shown]
    torch.testing.assert_close(again.bn1.running_mean, torch.cat(entering).mean((0, 2, 3)))
    variances = torch.stack([maps.var((0, 2, 3), correction=0) for maps in entering])
    torch.testing.assert_close(again.bn1.running_var, variances.mean(0))


def test_settling_twice_is_settling_on_the_last_images() -> None:
    once, twice = (unfolded(folded(network())) for _ in range(2))
    twice.load_state_dict(once.state_dict())
    shown = batches()
    settle(twice, [5 * batch - 1 for batch in batches()])
    for each in (once, twice):
        settle(each, shown)
    for name, value in once.state_dict().items():
        torch.testing.assert_close(twice.state_dict()[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_settling_finds_the_scales_and_offsets_that_were_folded_away() -> None:
    # On the images that the original's batch norms were calibrated on, the output of a batch norm has the mean b and
    # the deviation |w|: what settling gives the new batch norm, whose filters are the original's but for their length.
    original, shown = network(), batches(1)
    for norm in norms_of(original):
        norm.momentum = 1.0
    with torch.no_grad():
        original.train()(shown[0])
    again = unfolded(folded(original.eval()))
    settle(again, shown)
    for one, other in zip(norms_of(original), norms_of(again), strict=True):
        torch.testing.assert_close(other.weight, one.weight.abs(), rtol=2e-2, atol=1e-3)
        torch.testing.assert_close(other.bias, one.bias, rtol=2e-2, atol=5e-3)


def test_all_filters_have_the_same_length_on_average_and_dead_ones_stay_dead() -> None:
    without = folded(network())
    with torch.no_grad():
        without.conv1.get_parameter("weight")[0] *= 1e-6
    again = resnet(unfolded(without))
    for convolution in (again.conv1, again.get_submodule("layer2.1.conv2")):
        lengths = convolution.get_parameter("weight").flatten(1).norm(dim=1)
        assert lengths.mean().item() == pytest.approx(FILTER_LENGTH, rel=1e-5)
    assert again.conv1.get_parameter("weight")[0].norm() < 1e-4


def test_filters_that_are_all_zero_stay_zero() -> None:
    without = folded(network())
    nn.init.zeros_(without.conv1.get_parameter("weight"))
    again = unfolded(without)
    settle(again, batches())
    assert all(value.isfinite().all() for value in again.state_dict().values())
    same_function(again, without)


def test_the_folded_network_is_left_as_it_was() -> None:
    without = folded(network())
    before = copied(without)
    settle(unfolded(without), batches())
    assert same_tensors(copied(without), before)


def test_the_hooks_are_gone_afterwards() -> None:
    again = unfolded(folded(network()))
    settle(again, batches(1))
    assert not any(norm._forward_pre_hooks for norm in norms_of(again))


def test_new_batch_norms_fold_away_as_the_old_ones_did() -> None:
    original = network()
    again = unfolded(folded(original))
    settle(again, batches())
    same_function(fold_batch_norm(again), original)


def test_a_batch_norm_without_statistics_is_a_mistake() -> None:
    with pytest.raises(TypeError, match="tracks no statistics"):
        settle(nn.BatchNorm2d(3, track_running_stats=False).eval(), batches(1))
