import math

import pytest
import torch
from torch import Tensor, nn

from compress.pipeline.teacher.diagnosis.image_estimate import estimate_images, solve_mean, solve_std
from compress.pipeline.teacher.model import BatchNormStatistics
from tests.teacher.teachers import classifier, digits_teacher, images_of, seen, teacher_of

MEAN, STD = (0.1, -0.2, 0.3), 0.8


class Counting(nn.Module):
    """Passes everything on, and counts how often."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x


def test_pixelwise_equations_give_back_the_images_that_the_batch_norm_saw() -> None:
    # A 1x1 convolution maps mean m to W m + b, and noise of std s to s times its response to noise of std 1.
    estimate = estimate_images(teacher_of(seen(classifier(nn.Conv2d(3, 8, 1), 8), MEAN, STD)))
    assert estimate is not None
    assert estimate.mean == pytest.approx(MEAN, abs=1e-5)
    assert estimate.std == pytest.approx(STD, rel=1e-4)
    assert (estimate.mean_error, estimate.std_error) == pytest.approx((0, 0), abs=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
def test_zero_padding_around_bright_images_does_not_mislead(stride: int) -> None:
    # The steps at the border make a good part of the variance, which is not the images' own.
    first = nn.Conv2d(3, 16, 3, stride, padding=1)
    estimate = estimate_images(teacher_of(seen(classifier(first, 16), (1.0, 1.0, 1.0), 0.5)))
    assert estimate is not None
    assert estimate.mean == pytest.approx((1.0, 1.0, 1.0), abs=0.01)
    assert estimate.std == pytest.approx(0.5, rel=0.05)


def test_the_normalisation_that_the_teacher_has_now_does_not_matter() -> None:
    network = seen(classifier(nn.Conv2d(3, 8, 1), 8), MEAN, STD)
    other = images_of().model_copy(update={"mean": (0.0, 0.1, 0.9), "std": (1.0, 0.1, 2.0)})
    one, two = estimate_images(teacher_of(network)), estimate_images(teacher_of(network, other))
    assert one is not None
    assert two is not None
    assert (*one.mean, one.std) == pytest.approx((*two.mean, two.std))


def test_the_images_of_the_digits_were_standardised() -> None:
    # Its training code subtracts the images' own mean and divides by their own std, which leaves 0 and 1.
    estimate = estimate_images(digits_teacher())
    assert estimate is not None
    assert estimate.mean == pytest.approx((0,), abs=0.03)
    assert estimate.std == pytest.approx(1, rel=0.03)


def test_nothing_behind_the_first_batch_norm_is_computed() -> None:
    counting = Counting()
    teacher = teacher_of(seen(classifier(nn.Conv2d(3, 8, 1), 8, counting), MEAN, STD))
    calls = counting.calls
    assert estimate_images(teacher) is not None
    assert counting.calls == calls


@pytest.mark.parametrize("bias", [True, False])  # without, ReLU gives of twice the image twice the response, too
@pytest.mark.parametrize("after", [nn.ReLU(), nn.Tanh(), nn.MaxPool2d(2), nn.GroupNorm(2, 8)])
def test_what_is_not_affine_before_the_first_batch_norm_leaves_nothing_to_solve(after: nn.Module, bias: bool) -> None:
    first = nn.Sequential(nn.Conv2d(3, 8, 1, bias=bias), after)
    assert estimate_images(teacher_of(seen(classifier(first, 8), MEAN, STD))) is None


def test_a_teacher_without_batch_norm_tells_nothing() -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert estimate_images(teacher_of(network)) is None


def test_a_batch_norm_that_never_saw_an_image_tells_nothing() -> None:
    assert estimate_images(teacher_of(classifier(nn.Conv2d(3, 8, 1), 8))) is None


def test_two_filters_do_not_tell_three_channels_apart() -> None:
    assert estimate_images(teacher_of(seen(classifier(nn.Conv2d(3, 2, 1), 2), MEAN, STD))) is None


def test_filters_that_only_see_grey_do_not_tell_three_channels_apart() -> None:
    first = nn.Conv2d(3, 8, 1)
    with torch.no_grad():
        first.weight.copy_(first.weight[:, :1].expand(-1, 3, -1, -1))
    assert estimate_images(teacher_of(seen(classifier(first, 8), MEAN, STD))) is None


def test_statistics_that_belong_to_another_convolution_tell_nothing() -> None:
    network = seen(classifier(nn.Conv2d(3, 16, 1), 16), MEAN, STD)
    network.get_submodule("0").reset_parameters()  # type: ignore[operator]
    assert estimate_images(teacher_of(network)) is None


def test_a_channel_that_never_varied_gives_no_equation() -> None:
    network = seen(classifier(nn.Conv2d(3, 8, 1), 8), MEAN, STD)
    norm = network.get_submodule("1")
    norm.get_buffer("running_var")[2] = 0
    norm.get_buffer("running_mean")[2] = 100
    estimate = estimate_images(teacher_of(network))
    assert estimate is not None
    assert estimate.mean == pytest.approx(MEAN, abs=1e-5)


def test_each_equation_counts_by_how_little_its_channel_varies() -> None:
    # m = 3 at weight 1 and 2 m + 1 = 9 at weight 1 / 2: 1 m = 3 and 1 m = 4. The solution 3.5 leaves 0.5^2 + 0.5^2 over
    # 2 - 1 degrees of freedom; its standard error is sqrt(0.5 / (1^2 + 1^2)).
    recorded = BatchNormStatistics(mean=torch.tensor([3.0, 9.0]), variance=torch.tensor([1.0, 4.0]))
    solved = solve_mean(torch.tensor([[1.0], [2.0]]), torch.tensor([0.0, 1.0]), recorded)
    assert solved is not None
    assert (solved[0].item(), solved[1]) == pytest.approx((3.5, 0.5))


def test_the_std_comes_from_the_noise_on_which_channels_agree() -> None:
    # (5 - 1) / 1 = (9 - 1) / 2 = 2^2, where the first kind of noise would give sqrt(4) and sqrt(8).
    spreads = [torch.tensor([1.0, 1.0]), torch.tensor([1.0, 2.0])]
    found = solve_std(spreads, torch.tensor([1.0, 1.0]), torch.tensor([5.0, 9.0]))
    assert found == pytest.approx((2, 0), abs=1e-6)


def test_disagreement_of_channels_is_the_error_of_the_std() -> None:
    # log(std) is log(2) and log(2) + 0.2: std of the two 0.2 / sqrt(2), of their mean 0.1.
    found = solve_std([torch.tensor([1.0, 1.0])], torch.zeros(2), torch.tensor([4.0, 4 * math.exp(0.4)]))
    assert found == pytest.approx((2 * math.exp(0.1), 0.1), rel=1e-4)


def test_variance_that_padding_explains_gives_no_std() -> None:
    assert solve_std([torch.ones(2)], torch.tensor([3.0, 3.0]), torch.tensor([4.0, 4.0]))[1] == math.inf
