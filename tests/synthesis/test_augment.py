import itertools

import pytest
import torch
from torch import Tensor

from compress.pipeline.records import InputSpec
from compress.pipeline.settings import SynthesisSettings
from compress.pipeline.synthesis.augment import Augmentation, random_crop_and_flip


def every_view(image: Tensor, padding: int, flip: bool) -> list[Tensor]:
    """All images `[C, H, W]` that shifting over a black border, and mirroring, can make of one."""
    channels, height, width = image.shape
    canvas = torch.zeros(channels, height + 2 * padding, width + 2 * padding)
    canvas[:, padding : padding + height, padding : padding + width] = image
    shifts = itertools.product(range(2 * padding + 1), repeat=2)
    crops = [canvas[:, top : top + height, left : left + width] for top, left in shifts]
    return crops + [crop.flip(2) for crop in crops] if flip else crops


def matches(image: Tensor, views: list[Tensor]) -> list[int]:
    return [index for index, view in enumerate(views) if torch.equal(view, image)]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("shape", [(40, 3, 6, 6), (40, 1, 5, 7)])
def test_each_image_is_exactly_one_crop_of_its_padded_self(shape: tuple[int, ...], flip: bool) -> None:
    images = torch.rand(shape)
    for before, after in zip(images, random_crop_and_flip(images, 2, flip), strict=True):
        assert len(matches(after, every_view(before, 2, flip))) == 1


def test_every_shift_and_mirror_image_turns_up_and_each_image_has_its_own() -> None:
    image = torch.rand(1, 3, 4)
    views = every_view(image, 1, flip=True)
    found = [matches(view, views)[0] for view in random_crop_and_flip(image.expand(600, -1, -1, -1), 1, True)]
    counts = torch.bincount(torch.tensor(found), minlength=18)
    # 9 shifts, mirrored or not: 600 / 18 = 33 each, give or take 6; five times that is 30.
    assert counts.min() > 3 and counts.max() < 64


def test_about_every_other_image_is_mirrored() -> None:
    image = torch.rand(1, 2, 3)
    mirrored = sum(
        torch.equal(view, image.flip(2)) for view in random_crop_and_flip(image.expand(400, -1, -1, -1), 0, True)
    )
    assert 150 < mirrored < 250  # 200 expected, 10 is one deviation


def test_no_padding_and_no_flip_changes_nothing() -> None:
    images = torch.rand(5, 3, 4, 6)
    assert torch.equal(random_crop_and_flip(images, 0, False), images)


def test_any_memory_layout_gives_the_same_images() -> None:
    images = torch.rand(8, 3, 6, 6)
    torch.manual_seed(3)
    expected = random_crop_and_flip(images, 2, True)
    torch.manual_seed(3)
    assert torch.equal(random_crop_and_flip(images.contiguous(memory_format=torch.channels_last), 2, True), expected)


def test_gradients_go_back_to_the_pixels_that_stayed_in_view() -> None:
    images = torch.rand(20, 3, 6, 6, requires_grad=True)
    views = random_crop_and_flip(images, 2, True)
    weight = torch.rand(views.shape)
    (gradient,) = torch.autograd.grad((views * weight).sum(), images)
    # A move of pixels is linear: <weight, move(images)> = <gradient, images>, and what left the view has none.
    torch.testing.assert_close((gradient * images).sum(), (weight * views).sum())
    assert (gradient == 0).any() and (gradient != 0).any()
    for pixels, seen in zip(gradient, views, strict=True):
        assert (pixels != 0).sum() == (seen != 0).sum()


def test_the_global_seed_decides() -> None:
    images = torch.rand(8, 3, 6, 6)
    torch.manual_seed(1)
    once = random_crop_and_flip(images, 2, True)
    assert not torch.equal(random_crop_and_flip(images, 2, True), once)
    torch.manual_seed(1)
    assert torch.equal(random_crop_and_flip(images, 2, True), once)


@pytest.mark.parametrize(
    ("channels", "height", "width", "expected"),
    [
        (3, 32, 32, Augmentation(4, True)),  # as published
        (1, 28, 28, Augmentation(3, False)),  # digits do not survive mirroring
        (3, 64, 20, Augmentation(2, True)),
        (1, 8, 8, Augmentation(1, False)),
    ],
)
def test_by_default_shifts_are_an_eighth_and_only_colour_images_are_mirrored(
    channels: int, height: int, width: int, expected: Augmentation
) -> None:
    spec = InputSpec(channels=channels, height=height, width=width, mean=(0.5,) * channels, std=(0.5,) * channels)
    assert Augmentation.for_input(spec, SynthesisSettings()) == expected


@pytest.mark.parametrize("channels", [1, 3])
def test_settings_decide_where_they_say_something(channels: int) -> None:
    spec = InputSpec(channels=channels, height=32, width=32, mean=(0.5,) * channels, std=(0.5,) * channels)
    off = SynthesisSettings(crop_padding=0, flip=False)
    on = SynthesisSettings(crop_padding=9, flip=True)
    assert Augmentation.for_input(spec, off) == Augmentation(0, False)
    assert Augmentation.for_input(spec, on) == Augmentation(9, True)


def test_an_augmentation_is_called_like_the_function() -> None:
    images = torch.rand(8, 3, 6, 6)
    torch.manual_seed(1)
    expected = random_crop_and_flip(images, 2, True)
    torch.manual_seed(1)
    assert torch.equal(Augmentation(2, True)(images), expected)
