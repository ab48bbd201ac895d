import pytest
import torch
from torch import Tensor

from compress.pipeline.records import InputSpec
from compress.pipeline.synthesis.dead_leaves import FINEST_GRID, dead_leaves
from compress.pipeline.synthesis.losses import CHANNEL_CORRELATION, image_prior

CPU = torch.device("cpu")


def input_of(height: int = 16, width: int = 16, *, std: float = 0.1, channels: int = 3) -> InputSpec:
    return InputSpec(
        channels=channels, height=height, width=width, mean=(0.3, 0.5, 0.6)[:channels], std=(std,) * channels
    )


def drawn(count: int = 200, images: InputSpec | None = None, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return dead_leaves(count, images or input_of(), CPU)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 9), (33, 20), (2 * FINEST_GRID, FINEST_GRID + 1)])
def test_images_have_the_size_and_the_channels_of_the_input(channels: int, height: int, width: int) -> None:
    images = drawn(2, input_of(height, width, channels=channels))
    assert images.shape == (2, channels, height, width)
    assert images.dtype == torch.float32
    assert images.min() >= 0 and images.max() <= 1


@pytest.fixture(scope="module")
def usual() -> Tensor:
    return drawn()


def test_colours_have_the_mean_and_the_deviation_of_the_normalisation(usual: Tensor) -> None:
    # A colour for each of a few leaves an image, so that the mean of 200 images is good to some std / sqrt(200 * 4).
    torch.testing.assert_close(usual.mean((0, 2, 3)), torch.tensor([0.3, 0.5, 0.6]), rtol=0, atol=0.01)
    # Averaging to pixels takes some of the variance away.
    assert all(0.08 < std <= 0.1 for std in usual.std((0, 2, 3)).tolist())


def test_colour_channels_are_correlated_as_those_of_photographs(usual: Tensor) -> None:
    correlations = torch.corrcoef(usual.transpose(0, 1).flatten(1))
    torch.testing.assert_close(
        correlations[[0, 0, 1], [1, 2, 2]], torch.full((3,), CHANNEL_CORRELATION), rtol=0, atol=0.03
    )


def test_bright_and_dark_colours_end_at_white_and_black() -> None:
    images = drawn(20, input_of(std=5.0))
    assert images.min() == 0
    assert images.max() == 1


def test_leaves_are_even_areas_with_edges() -> None:
    # On a grid without averaging, most neighbours belong to the same leaf, and a border is as hard as any.
    images = drawn(20, input_of(FINEST_GRID, FINEST_GRID))
    steps = images.diff(dim=3).abs().amax(1)
    assert 0.7 < (steps == 0).float().mean() < 0.95
    assert steps.max() > 0.2


def test_hardly_anything_stays_bare() -> None:
    images = drawn(50, input_of(FINEST_GRID, FINEST_GRID))
    bare = (images == torch.tensor([0.3, 0.5, 0.6]).view(1, 3, 1, 1)).all(1).float().mean().item()
    assert bare < 0.01


def test_images_are_nearer_to_photographs_than_noise_is() -> None:
    images = drawn(100, input_of(32, 32, std=0.2))
    normalised = (images - torch.tensor([0.3, 0.5, 0.6]).view(1, 3, 1, 1)) / 0.2
    assert image_prior(normalised) < 0.5 * image_prior(torch.randn(100, 3, 32, 32))


def test_the_same_seed_draws_the_same_images_and_another_others() -> None:
    assert torch.equal(drawn(3), drawn(3))
    assert not torch.equal(drawn(3), drawn(3, seed=1))


def test_none_can_be_asked_for() -> None:
    assert drawn(0).shape == (0, 3, 16, 16)
