import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.pipeline.synthesis.generator import (
    Generator,
    NoisyLayers,
    balanced_targets,
    noisy_layers_for,
    upsamplings_for,
)
from tests.tiny import copied, tiny_embeddings


def tiny_generator(
    size: tuple[int, int] = (8, 8), *, channels: int = 3, num_classes: int = 4, layers: int = 2
) -> Generator:
    return Generator(tiny_embeddings(num_classes), size, channels, layers=layers, latent=5, width=8)


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# Size


@pytest.mark.parametrize(("num_classes", "layers", "noisy", "total"), [(10, 40, 20.5, 28.9), (100, 4, 2.05, 10.5)])
def test_the_published_generator_has_the_published_number_of_parameters(
    num_classes: int, layers: int, noisy: float, total: float
) -> None:
    assert noisy_layers_for(400, num_classes, most=64) == layers
    with torch.device("meta"):
        generator = Generator(
            torch.empty(num_classes, 512), (32, 32), 3, layers=layers, latent=1000, width=64
        )  # CLIP's 512 values a class, at 32 px
    # Each noisy layer is 512 * 1000 weights and 1000 biases; batch norm has a scale and a shift for each of 512 values.
    assert parameters(generator.noisy) - 2 * 512 == layers * 513_000
    # Linear from 1000 to 128 maps of 8 x 8, with bias: 1000 * 8192 + 8192.
    assert parameters(generator.project) == 8_200_192
    # Batch norm 2 * 128; 3x3 convolutions without bias from 128 to 128 and from 128 to 64, each with batch norm; the
    # last one, with bias, to 3 channels: 256 + (147,456 + 256) + (73,728 + 128) + (1,728 + 3).
    assert parameters(generator.images) == 223_555
    assert layers * 513_000 / 1e6 == pytest.approx(noisy, abs=0.05)
    assert parameters(generator) == layers * 513_000 + 1_024 + 8_200_192 + 223_555
    assert parameters(generator) / 1e6 == pytest.approx(total, abs=0.05)


@pytest.mark.parametrize(
    ("batch_size", "num_classes", "most", "layers"),
    [(400, 10, 64, 40), (400, 100, 64, 4), (200, 200, 64, 1), (100, 7, 64, 15), (100, 1000, 64, 1), (400, 2, 64, 64)],
)
def test_there_is_a_noisy_layer_for_each_block_of_classes_up_to_a_cap(
    batch_size: int, num_classes: int, most: int, layers: int
) -> None:
    assert noisy_layers_for(batch_size, num_classes, most) == layers


# Noise


@torch.no_grad()
def test_each_block_of_classes_goes_through_a_layer_of_its_own() -> None:
    noisy = NoisyLayers(dimension=6, latent=5, num_classes=4, layers=3)
    nn.init.normal_(noisy.bias)
    rows = torch.randn(10, 6)  # blocks of 4, 4 and 2 rows
    normalised = F.batch_norm(rows, None, None, noisy.norm.weight, noisy.norm.bias, training=True)
    expected = torch.stack([row @ noisy.weight[i // 4] + noisy.bias[i // 4] for i, row in enumerate(normalised)])
    torch.testing.assert_close(noisy(rows), expected)


@torch.no_grad()
def test_fewer_layers_than_blocks_are_used_in_turn() -> None:
    noisy = NoisyLayers(dimension=6, latent=5, num_classes=2, layers=2)
    rows = torch.randn(2, 6).repeat(3, 1)  # the same two rows in blocks 0, 1 and 2
    first, second, third = noisy(rows).split(2)
    assert torch.equal(first, third)
    assert not torch.allclose(first, second)


def test_noise_is_standard_normal_without_bias() -> None:
    noisy = NoisyLayers(dimension=100, latent=100, num_classes=2, layers=4)
    # 40,000 draws: the mean strays by 1 / 200 and the deviation by 1 / 283, four times that at the very most.
    assert noisy.weight.mean().item() == pytest.approx(0, abs=0.02)
    assert noisy.weight.std().item() == pytest.approx(1, abs=0.015)
    assert not noisy.bias.any()


def test_redrawing_changes_the_noisy_layers_alone() -> None:
    generator = tiny_generator()
    nn.init.normal_(generator.noisy.bias)  # as after training
    before = copied(generator)
    generator.noisy.redraw()
    after = generator.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed == {"noisy.weight", "noisy.bias"}
    assert not generator.noisy.bias.any()
    assert not (generator.noisy.weight == before["noisy.weight"]).any()


def test_new_noise_makes_new_images_of_the_same_classes() -> None:
    generator, targets = tiny_generator(), balanced_targets(8, 4)
    first = generator(targets)
    assert torch.equal(generator(targets), first)
    generator.noisy.redraw()
    assert not torch.allclose(generator(targets), first)


def test_images_of_one_batch_differ_within_and_between_blocks() -> None:
    images = tiny_generator()(balanced_targets(8, 4)).flatten(1)
    assert (torch.cdist(images, images) + torch.eye(8)).min() > 1e-3


# Images


@pytest.mark.parametrize("size", [8, 9, 20, 33, 64, 65, 75, 100, 224, 256])
def test_images_have_exactly_the_size_that_is_asked_for(size: int) -> None:
    images = tiny_generator((size, size), num_classes=2)(balanced_targets(2, 2))
    assert images.shape == (2, 3, size, size)


@pytest.mark.parametrize("size", [(28, 32), (32, 28), (9, 64), (8, 100), (224, 97)])
def test_images_need_not_be_square(size: tuple[int, int]) -> None:
    assert tiny_generator(size, num_classes=2)(balanced_targets(2, 2)).shape == (2, 3, *size)


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_lie_between_black_and_white_and_differ(channels: int) -> None:
    generator = tiny_generator(channels=channels)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.mul_(3)
    images = generator(balanced_targets(8, 4))
    assert images.shape == (8, channels, 8, 8)
    assert images.dtype == torch.float32
    assert 0 <= images.min() < 0.3
    assert 0.7 < images.max() <= 1


def test_the_published_sizes_start_from_the_published_maps() -> None:
    # 8 x 8 for 32 px and 16 x 16 for 64 px, doubled twice; 14 x 14 for 224 px, doubled four times.
    assert [upsamplings_for(side) for side in (8, 32, 64, 65, 224)] == [2, 2, 2, 4, 4]
    assert [tiny_generator((side, side)).start for side in (32, 64, 224)] == [(8, 8), (16, 16), (14, 14)]


def test_two_and_a_thousand_classes_both_make_images() -> None:
    for num_classes in (2, 1000):
        layers = noisy_layers_for(6, num_classes, most=64)
        generator = tiny_generator(num_classes=num_classes, layers=layers)
        assert generator(balanced_targets(6, num_classes)).shape == (6, 3, 8, 8)


def test_the_embeddings_are_neither_trained_nor_stored() -> None:
    generator = tiny_generator()
    assert "embeddings" not in generator.state_dict()
    assert "embeddings" not in dict(generator.named_parameters())
    assert not generator.embeddings.requires_grad


def test_every_parameter_learns() -> None:
    generator = tiny_generator((75, 75))  # four doublings
    image_loss(generator(balanced_targets(8, 4))).backward()
    for name, parameter in generator.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def image_loss(images: Tensor) -> Tensor:
    return (images * torch.randn(images.shape)).sum()


# Classes of a batch


@pytest.mark.parametrize(("batch_size", "num_classes"), [(12, 4), (100, 10), (10, 4), (5, 1000), (7, 2)])
def test_targets_are_whole_runs_of_all_classes_and_random_ones_for_the_rest(batch_size: int, num_classes: int) -> None:
    targets = balanced_targets(batch_size, num_classes)
    whole = batch_size // num_classes
    assert targets.shape == (batch_size,)
    assert targets[: whole * num_classes].tolist() == list(range(num_classes)) * whole
    assert all(0 <= target < num_classes for target in targets.tolist())


def test_what_is_left_over_is_drawn_from_all_classes() -> None:
    left_over = {target for _ in range(60) for target in balanced_targets(7, 4)[4:].tolist()}
    assert left_over == {0, 1, 2, 3}
