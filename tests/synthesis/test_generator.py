import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from compress.pipeline.settings import LatentSource
from compress.pipeline.synthesis.generator import LARGEST_START, Generator, upsamplings_for
from compress.pipeline.synthesis.latents import balanced_targets, noisy_layers_for
from tests.tiny import copied, tiny_embeddings


def tiny_generator(
    size: tuple[int, int] = (8, 8),
    *,
    channels: int = 3,
    num_classes: int = 4,
    layers: int = 2,
    latent_source: LatentSource = "noisy_layer",
) -> Generator:
    embeddings = tiny_embeddings(num_classes)
    return Generator(embeddings, size, channels, layers=layers, latent=5, width=8, latent_source=latent_source)


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# Size

SHALLOW = 2 * 128 + (9 * 128 * 128 + 2 * 128) + (9 * 128 * 64 + 2 * 64) + (9 * 64 * 3 + 3)
"""Batch norm; 3x3 convolutions without bias from 128 to 128 and from 128 to 64, each with batch norm; to 3, with bias."""
DEEP = 2 * (9 * 128 * 128 + 2 * 128) + (9 * 128 * 64 + 2 * 64) + 2 * (9 * 64 * 64 + 2 * 64) + (9 * 64 * 3 + 3)
"""From 128 to 128, and behind four upsamplings to 128, 64, 64 and 64, each with batch norm; to 3, with bias."""


@pytest.mark.parametrize(
    ("data", "num_classes", "size", "batch_size", "layers", "start", "convolutions", "noisy_millions", "millions"),
    [
        ("CIFAR-10", 10, 32, 400, 40, 8, SHALLOW, 20.5, 28.9),
        ("CIFAR-100", 100, 32, 400, 4, 8, SHALLOW, 2.05, 10.5),
        ("Tiny-ImageNet", 200, 64, 200, 1, 16, SHALLOW, 0.51, 33.5),
        ("ImageNet", 1000, 224, 200, 1, 14, DEEP, 0.51, 26.1),
    ],
)
def test_the_published_generators_have_the_published_numbers_of_parameters(
    data: str,
    num_classes: int,
    size: int,
    batch_size: int,
    layers: int,
    start: int,
    convolutions: int,
    noisy_millions: float,
    millions: float,
) -> None:
    assert noisy_layers_for(batch_size, num_classes) == layers, data
    with torch.device("meta"):  # CLIP's 512 values a class
        generator = Generator(torch.empty(num_classes, 512), (size, size), 3, layers=layers, latent=1000, width=64)
    # A noisy layer is linear from 512 to 1000 with bias; batch norm has a scale and a shift for each of 512 values.
    noisy = layers * (512 * 1000 + 1000)
    # Linear from 1000 to 128 maps, with bias.
    project = 1000 * 128 * start**2 + 128 * start**2
    assert parameters(generator.noisy) == noisy + 2 * 512
    assert parameters(generator.project) == project
    assert parameters(generator.images) == convolutions
    assert parameters(generator) == noisy + 2 * 512 + project + convolutions
    # What was counted on the published code, rounded as it was.
    assert noisy / 1e6 == pytest.approx(noisy_millions, abs=0.05)
    assert parameters(generator) / 1e6 == pytest.approx(millions, abs=0.05)


def kinds(module: nn.Sequential) -> list[str]:
    """Each layer in short: its kind, and where it has any, its channels."""
    names = {nn.BatchNorm2d: "norm", nn.Upsample: "double", nn.Conv2d: "conv", nn.LeakyReLU: "relu"}
    return [
        f"{names[type(layer)]} {getattr(layer, 'out_channels', '')}".strip() for layer in module if type(layer) in names
    ]


def test_small_images_pass_the_published_layers() -> None:
    expected = "norm, double, conv 16, norm, relu, double, conv 8, norm, relu, conv 3"
    assert kinds(tiny_generator((32, 32)).images) == expected.split(", ")


def test_large_images_pass_the_published_layers_without_batch_norm_behind_the_linear_one() -> None:
    stages = [f"double, conv {channels}, norm, relu" for channels in (16, 8, 8, 8)]
    expected = ", ".join(["conv 16, norm, relu", *stages, "conv 3"])
    assert kinds(tiny_generator((224, 224)).images) == expected.split(", ")


def test_layers_have_the_published_details() -> None:
    for size in (32, 224):
        layers = [*tiny_generator((size, size)).images]
        convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
        assert [layer.bias is not None for layer in convolutions] == [False] * (len(convolutions) - 1) + [True]
        assert {layer.negative_slope for layer in layers if isinstance(layer, nn.LeakyReLU)} == {0.2}
        assert {layer.mode for layer in layers if isinstance(layer, nn.Upsample)} == {"nearest"}


def test_the_published_sizes_start_from_the_published_maps() -> None:
    # 8 x 8 for 32 px and 16 x 16 for 64 px, doubled twice; 14 x 14 for 224 px, doubled four times.
    assert [upsamplings_for(side) for side in (8, 32, 64, 65, 224, 256)] == [2, 2, 2, 4, 4, 4]
    assert [tiny_generator((side, side)).start for side in (32, 64, 224)] == [(8, 8), (16, 16), (14, 14)]


@pytest.mark.parametrize(("side", "doublings", "start"), [(257, 5, 9), (320, 5, 10), (448, 5, 14), (513, 6, 9)])
def test_still_larger_images_are_doubled_more_often(side: int, doublings: int, start: int) -> None:
    assert upsamplings_for(side) == doublings
    with torch.device("meta"):
        assert tiny_generator((side, side)).start == (start, start)


def test_the_linear_layer_never_grows_beyond_the_largest_start() -> None:
    for side in range(1, 1025):
        doublings = upsamplings_for(side)
        assert math.ceil(side / 2**doublings) <= LARGEST_START
        assert doublings <= 4 or math.ceil(side / 2 ** (doublings - 1)) > LARGEST_START  # and no more than needed


# Images


@pytest.mark.parametrize("size", [8, 9, 20, 33, 64, 65, 75, 100, 224, 256, 300])
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


@pytest.mark.parametrize("latent_source", ["noisy_layer", "direct"])
def test_new_noise_makes_new_images_of_the_same_classes(latent_source: LatentSource) -> None:
    generator, targets = tiny_generator(latent_source=latent_source), balanced_targets(8, 4)
    first = generator(targets)
    assert torch.equal(generator(targets), first)
    generator.noisy.redraw()
    assert not torch.allclose(generator(targets), first)


def test_redrawing_changes_the_noisy_layers_alone() -> None:
    generator = tiny_generator()
    nn.init.normal_(generator.get_parameter("noisy.bias"))  # as after training
    before = copied(generator)
    generator.noisy.redraw()
    after = generator.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed == {"noisy.weight", "noisy.bias"}
    assert not after["noisy.bias"].any()
    assert not (after["noisy.weight"] == before["noisy.weight"]).any()


def test_images_of_one_batch_differ_within_and_between_blocks() -> None:
    images = tiny_generator()(balanced_targets(8, 4)).flatten(1)
    assert (torch.cdist(images, images) + torch.eye(8)).min() > 1e-3


def test_the_embeddings_are_neither_trained_nor_stored() -> None:
    generator = tiny_generator()
    assert not [name for name in generator.state_dict() if "embeddings" in name]
    assert not [name for name, _ in generator.named_parameters() if "embeddings" in name]


# Any input

SIZES = [(8, 8), (13, 9), (31, 32), (64, 10), (65, 65), (70, 129)]
CLASSES_AND_BATCHES = [(2, 2), (2, 5), (3, 2), (5, 7), (3, 9), (1000, 3), (1203, 2)]
"""Among them classes that do not divide the batch, batches smaller than the classes, and batches of two."""


def image_loss(images: Tensor) -> Tensor:
    return (images * torch.randn(images.shape)).sum()


@pytest.mark.parametrize("latent_source", ["noisy_layer", "direct"])
@pytest.mark.parametrize("size", SIZES)
def test_any_size_channels_classes_and_batch_make_images_and_train_the_whole_generator(
    size: tuple[int, int], latent_source: LatentSource
) -> None:
    for (num_classes, batch), channels in zip(CLASSES_AND_BATCHES, itertools.cycle((1, 3)), strict=False):
        case = f"{num_classes} classes, {batch} images, {channels} channels"
        layers = noisy_layers_for(batch, num_classes)
        generator = tiny_generator(
            size, channels=channels, num_classes=num_classes, layers=layers, latent_source=latent_source
        )
        images = generator(balanced_targets(batch, num_classes))
        assert images.shape == (batch, channels, *size), case
        assert images.min() >= 0 and images.max() <= 1, case
        assert images.std() > 0, case
        image_loss(images).backward()
        for name, parameter in generator.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), f"{name}, {case}"
            assert parameter.grad.any(), f"{name}, {case}"


@pytest.mark.parametrize("latent_source", ["noisy_layer", "direct"])
def test_every_noisy_layer_is_used_and_each_row_by_one(latent_source: LatentSource) -> None:
    for num_classes, batch in CLASSES_AND_BATCHES:
        layers = noisy_layers_for(batch, num_classes)
        latents = tiny_generator(num_classes=num_classes, layers=layers, latent_source=latent_source).noisy
        drawn = latents.get_parameter("weight" if latent_source == "noisy_layer" else "latents")
        used = torch.zeros(batch, layers, dtype=torch.bool)
        found = latents(balanced_targets(batch, num_classes))
        for row in range(batch):
            (gradient,) = torch.autograd.grad(found[row].sum(), drawn, retain_graph=True)
            used[row] = gradient.flatten(1).any(1)
        assert used.any(0).all(), f"{num_classes} classes, {batch} images"
        assert (used.sum(1) == 1).all(), f"{num_classes} classes, {batch} images"
