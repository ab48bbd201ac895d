import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.pipeline.synthesis.latents import (
    DirectLatents,
    NoisyLayers,
    balanced_targets,
    gram_factor,
    noisy_layers_for,
)
from tests.tiny import tiny_embeddings


def one_by_one(noisy: NoisyLayers, targets: Tensor) -> Tensor:
    """The latents by a product for each row, its layer chosen as the published code does."""
    embeddings = noisy.embeddings[targets]
    rows = F.batch_norm(embeddings, None, None, noisy.norm.weight, noisy.norm.bias, training=True)
    layers = [row // noisy.num_classes % len(noisy.weight) for row in range(len(rows))]
    return torch.stack([row @ noisy.weight[layer] + noisy.bias[layer] for row, layer in zip(rows, layers, strict=True)])


# The layout of blocks and layers


def test_each_block_of_classes_goes_through_a_layer_of_its_own() -> None:
    # The latent of a class is its normalised embedding times the layer's weight. Two classes of embeddings 3 and 5,
    # normalised to -1 and 1; layers with the weights 10, 20 and 30 and the biases 1, 2 and 3.
    noisy = NoisyLayers(torch.tensor([[3.0], [5.0]]), latent=1, layers=3)
    with torch.no_grad():
        noisy.weight.copy_(torch.tensor([10.0, 20.0, 30.0]).view(3, 1, 1))
        noisy.bias.copy_(torch.tensor([1.0, 2.0, 3.0]).view(3, 1))
    found = noisy(torch.tensor([0, 1, 0, 1, 1, 0])).flatten()
    assert found.tolist() == pytest.approx([-9, 11, -18, 22, 33, -27], rel=1e-4)  # batch norm's eps takes 5 millionths


def test_what_is_left_over_goes_through_the_last_layer() -> None:
    # Four classes and ten rows: blocks of 4, 4 and 2.
    noisy = NoisyLayers(tiny_embeddings(4), latent=5, layers=3)
    targets = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 3, 0])
    first = noisy(targets)
    with torch.no_grad():
        noisy.bias[2] += 1
    torch.testing.assert_close(noisy(targets) - first, torch.cat([torch.zeros(8, 5), torch.ones(2, 5)]))


def test_fewer_layers_than_blocks_are_used_in_turn() -> None:
    noisy = NoisyLayers(tiny_embeddings(2), latent=5, layers=2)
    first, second, third, fourth = noisy(torch.arange(2).repeat(4)).split(2)
    assert torch.equal(first, third)
    assert torch.equal(second, fourth)
    assert not torch.allclose(first, second)


@pytest.mark.parametrize(
    ("rows", "num_classes", "layers"),
    [
        (12, 4, 3),  # whole blocks
        (10, 4, 3),  # the last one partly filled
        (13, 3, 2),  # layers in turn, five blocks on two of them
        (8, 4, 5),  # more layers than blocks
        (3, 7, 1),  # fewer rows than classes
        (3, 7, 4),
        (9, 2, 1),  # one layer for all
        (2, 1000, 1),
        (40, 2, 20),
    ],
)
def test_one_product_for_all_layers_gives_what_a_product_for_each_row_gives(
    rows: int, num_classes: int, layers: int
) -> None:
    noisy = NoisyLayers(tiny_embeddings(num_classes), latent=5, layers=layers)
    nn.init.normal_(noisy.bias)
    nn.init.normal_(noisy.norm.weight)
    targets = torch.randint(num_classes, (rows,))
    targets[:2] = torch.tensor([0, 1])
    found, expected = noisy(targets), one_by_one(noisy, targets)
    torch.testing.assert_close(found, expected)
    weight = torch.randn(found.shape)
    gradients = [torch.autograd.grad((latents * weight).sum(), [*noisy.parameters()]) for latents in (found, expected)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("batch_size", "num_classes", "most", "layers"),
    [
        (400, 10, None, 40),
        (400, 100, None, 4),
        (200, 200, None, 1),
        (400, 2, None, 200),
        (400, 2, 64, 64),
        (400, 10, 64, 40),
        (100, 7, 64, 15),
        (100, 1000, 64, 1),
    ],
)
def test_there_is_a_noisy_layer_for_each_block_of_classes_up_to_a_cap(
    batch_size: int, num_classes: int, most: int | None, layers: int
) -> None:
    assert noisy_layers_for(batch_size, num_classes, most) == layers


# Noise


def test_noise_is_standard_normal_without_bias() -> None:
    noisy = NoisyLayers(tiny_embeddings(2, dimension=100), latent=100, layers=4)
    # 40,000 draws: the mean strays by 1 / 200 and the deviation by 1 / 283, four times that at the very most.
    assert noisy.weight.mean().item() == pytest.approx(0, abs=0.02)
    assert noisy.weight.std().item() == pytest.approx(1, abs=0.015)
    assert not noisy.bias.any()


@pytest.mark.parametrize("source", [NoisyLayers, DirectLatents])
def test_redrawing_changes_all_latents_and_the_seed_decides(source: type[NoisyLayers] | type[DirectLatents]) -> None:
    latents, targets = source(tiny_embeddings(4), latent=5, layers=2), torch.arange(4).repeat(2)

    def redrawn(seed: int) -> Tensor:
        torch.manual_seed(seed)
        latents.redraw()
        found: Tensor = latents(targets)
        return found

    first = redrawn(1)
    assert (redrawn(2) != first).all()
    assert torch.equal(redrawn(1), first)


# Latents drawn directly


def test_the_factor_is_a_root_of_the_gram_matrix_of_normalised_embeddings() -> None:
    # Dimension 1 holds 0 0 3: mean 1, variance 2, normalised -1 -1 2 over sqrt(2). Dimension 2 holds 1 5 3: mean 3,
    # variance 8/3, normalised -2 2 0 over sqrt(8/3).
    factor = gram_factor(torch.tensor([[0.0, 1.0], [0.0, 5.0], [3.0, 3.0]]))
    assert factor.shape == (3, 2)
    # Classes 1 and 1: 1/2 + 4 / (8/3) = 2. Classes 1 and 2: 1/2 - 3/2 = -1. Classes 1 and 3, 2 and 3: -2/2 = -1. 3 and 3: 2.
    expected = torch.tensor([[2.0, -1.0, -1.0], [-1.0, 2.0, -1.0], [-1.0, -1.0, 2.0]])
    torch.testing.assert_close(factor @ factor.T, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("num_classes", "dimension"), [(2, 384), (10, 6), (1000, 32)])
def test_the_factor_is_no_larger_than_it_must_be(num_classes: int, dimension: int) -> None:
    embeddings = tiny_embeddings(num_classes, dimension)
    factor = gram_factor(embeddings)
    assert factor.shape == (num_classes, min(num_classes, dimension))
    normalised = F.batch_norm(embeddings, None, None, training=True)
    torch.testing.assert_close(factor @ factor.T, normalised @ normalised.T, rtol=1e-4, atol=1e-3)


def covariance(latents: NoisyLayers | DirectLatents, draws: int) -> Tensor:
    """Between classes, over all values of all draws `[K, K]`; the mean is known to be 0."""
    targets = torch.arange(latents.num_classes)
    values = []
    with torch.no_grad():
        for _ in range(draws):
            latents.redraw()
            values.append(latents(targets))
    drawn = torch.cat(values, dim=1)
    found: Tensor = drawn @ drawn.T / drawn.shape[1]
    return found


def test_latents_drawn_directly_have_the_covariance_that_noisy_layers_give() -> None:
    embeddings = tiny_embeddings(5, dimension=8)
    normalised = F.batch_norm(embeddings, None, None, training=True)
    expected = normalised @ normalised.T  # of e_i W and e_j W, W ~ N(0, 1): e_i . e_j
    # 160,000 draws. A product of normal values has the variance c_ij^2 + c_ii c_jj, so its mean strays by
    # sqrt(2) c / 400 at most; five times that.
    tolerance = 5 * math.sqrt(2) * expected.max().item() / 400
    for source in (NoisyLayers, DirectLatents):
        found = covariance(source(embeddings, latent=4000, layers=1), draws=40)
        torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
    assert expected.abs().min() > 2 * tolerance  # so that no covariance is zero for all the test knows


def test_blocks_of_classes_have_latents_of_their_own_which_their_rows_share() -> None:
    direct = DirectLatents(tiny_embeddings(3), latent=1000, layers=2)
    # Blocks 0, 1 and, in turn, 0 again.
    found = direct(torch.tensor([0, 1, 2, 2, 1, 0, 2, 2]))
    assert torch.equal(found[2], found[6]) and torch.equal(found[6], found[7])
    assert not (found[2] == found[3]).any()
    # Independent: the correlation of 1,000 values strays by 1 / sqrt(1000) = 0.032 from 0, here four times that at most.
    assert torch.corrcoef(found[2:4])[0, 1].abs() < 0.13


def test_latents_drawn_directly_are_what_is_trained() -> None:
    direct = DirectLatents(tiny_embeddings(3), latent=4, layers=2)
    assert [name for name, _ in direct.named_parameters()] == ["latents"]
    direct(torch.tensor([0, 1, 2, 1])).sum().backward()
    gradient = direct.latents.grad
    assert gradient is not None
    # Classes 0 to 2 of the first block and class 1 of the second were asked for, four values each.
    assert gradient.sum(2).tolist() == [[4, 4, 4], [0, 4, 0]]


def test_only_what_is_drawn_is_stored() -> None:
    assert set(DirectLatents(tiny_embeddings(3), latent=4, layers=2).state_dict()) == {"latents"}


# Classes of a batch


@pytest.mark.parametrize(
    ("batch_size", "num_classes"), [(12, 4), (100, 10), (10, 4), (5, 1000), (7, 2), (2, 2), (2, 3)]
)
def test_targets_are_whole_runs_of_all_classes_and_different_ones_for_the_rest(
    batch_size: int, num_classes: int
) -> None:
    targets = balanced_targets(batch_size, num_classes)
    whole = batch_size // num_classes * num_classes
    assert targets.shape == (batch_size,)
    assert targets[:whole].tolist() == list(range(num_classes)) * (batch_size // num_classes)
    left_over = targets[whole:].tolist()
    assert len(set(left_over)) == len(left_over) == batch_size % num_classes
    assert set(left_over) <= set(range(num_classes))


def test_what_is_left_over_is_drawn_from_all_classes() -> None:
    left_over = torch.cat([balanced_targets(7, 4)[4:] for _ in range(400)])
    # 1,200 draws, 300 a class; the deviation is sqrt(400 * 3/4 * 1/4) = 8.7, five of them 43.
    assert (torch.bincount(left_over, minlength=4) - 300).abs().max() < 44
