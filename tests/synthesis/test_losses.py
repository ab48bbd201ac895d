import math

import pytest
import torch
from torch import Tensor

from compress.pipeline.records import InputSpec
from compress.pipeline.synthesis.losses import (
    Statistics,
    adversarial,
    batch_norm_matching,
    batch_statistics,
    blend,
    distillation,
    image_prior,
    octave_covariances,
    one_hot,
    stage_matching,
)
from compress.pipeline.teacher.noise import MEAN, STD, smooth_noise
from tests.tiny import numerical_gradient


def statistics(mean: list[float], variance: list[float]) -> Statistics:
    return Statistics(torch.tensor(mean), torch.tensor(variance))


def log(*probabilities: float) -> list[float]:
    """Logits whose softmax is these probabilities."""
    return [math.log(probability) for probability in probabilities]


# Statistics of a batch


def test_batch_statistics_are_the_mean_and_biased_variance_over_images_and_pixels() -> None:
    features = torch.tensor([[[[0.0, 2.0]], [[1.0, 1.0]]], [[[4.0, 6.0]], [[1.0, 5.0]]]])  # [2, 2, 1, 2]
    mean, variance = batch_statistics(features)
    # Channel 0 holds 0 2 4 6: mean 3, squares of what is left 9 1 1 9. Channel 1 holds 1 1 1 5: mean 2, 1 1 1 9.
    torch.testing.assert_close(mean, torch.tensor([3.0, 2.0]))
    torch.testing.assert_close(variance, torch.tensor([5.0, 3.0]))


def test_batch_statistics_are_those_of_torch_for_any_layout() -> None:
    features = 3 * torch.randn(6, 5, 4, 3) + 7
    for laid_out in (features, features.contiguous(memory_format=torch.channels_last), features.transpose(2, 3)):
        variance, mean = torch.var_mean(laid_out, dim=(0, 2, 3), correction=0)
        torch.testing.assert_close(batch_statistics(laid_out), Statistics(mean, variance))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradients_through_batch_statistics_are_those_of_torch(memory_format: torch.memory_format) -> None:
    features = torch.randn(6, 5, 4, 3).contiguous(memory_format=memory_format)
    weight, other = torch.randn(5), torch.randn(5)

    def gradient(mean_and_variance: tuple[Tensor, Tensor], of: Tensor) -> Tensor:
        mean, variance = mean_and_variance
        ((weight * mean).sum() + (other * variance.square()).sum()).backward()
        assert of.grad is not None
        return of.grad

    ours, theirs = (features.clone().requires_grad_() for _ in range(2))
    variance, mean = torch.var_mean(theirs, dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(gradient(batch_statistics(ours), ours), gradient((mean, variance), theirs))


def test_either_statistic_alone_has_a_gradient() -> None:
    # With M values a channel, d mean / dx = 1 / M and d variance / dx = 2 (x - mean) / M. Here M = 4, the mean is 3.
    features = torch.tensor([[[[0.0, 2.0], [4.0, 6.0]]]], requires_grad=True)
    of_mean, of_variance = (torch.autograd.grad(value.sum(), features)[0] for value in _one_by_one(features))
    torch.testing.assert_close(of_mean, torch.full((1, 1, 2, 2), 0.25))
    torch.testing.assert_close(of_variance, torch.tensor([[[[-1.5, -0.5], [0.5, 1.5]]]]))


def _one_by_one(features: Tensor) -> list[Tensor]:
    return [batch_statistics(features).mean, batch_statistics(features).variance]


def test_statistics_of_bf16_features_are_taken_in_float32() -> None:
    features = torch.full((4, 1, 64, 64), 1.0, dtype=torch.bfloat16, requires_grad=True)
    found = batch_statistics(features)
    assert (found.mean.dtype, found.variance.dtype) == (torch.float32, torch.float32)
    assert found.mean.item() == 1.0  # bf16 could not even count the 16,384 values
    (gradient,) = torch.autograd.grad(found.mean.sum(), features)
    assert gradient.dtype == torch.bfloat16
    torch.testing.assert_close(gradient.float(), torch.full_like(features, 1 / 16384, dtype=torch.float32))


def test_blending_weighs_old_by_the_momentum_and_new_by_the_rest() -> None:
    mixed = blend(statistics([1.0], [10.0]), statistics([2.0], [20.0]), momentum=0.9)
    # 0.1 * 1 + 0.9 * 2 = 1.9, and 0.1 * 10 + 0.9 * 20 = 19
    torch.testing.assert_close(mixed, statistics([1.9], [19.0]))


def test_blending_without_momentum_forgets_the_old() -> None:
    assert blend(statistics([1.0], [3.0]), statistics([9.0], [9.0]), momentum=0.0) == statistics([1.0], [3.0])


def test_blending_scales_the_gradient_of_the_new_by_what_the_momentum_leaves() -> None:
    new = torch.tensor([1.0], requires_grad=True)
    mixed = blend(Statistics(new, new), statistics([2.0], [2.0]), momentum=0.9)
    (gradient,) = torch.autograd.grad(mixed.mean.sum(), new)
    torch.testing.assert_close(gradient, torch.tensor([0.1]))


# Batch-norm matching


def test_batch_norm_matching_sums_unsquared_norms_over_layers() -> None:
    have = [statistics([0.0, 0.0], [1.0, 1.0]), statistics([2.0], [5.0])]
    want = [statistics([3.0, 4.0], [1.0, 1.0]), statistics([1.0], [3.0])]
    # Layer 1: |(3, 4)| + 0 = 5. Layer 2: |1 - 2| + |3 - 5| = 3.
    assert batch_norm_matching(have, want).item() == pytest.approx(8.0)


def test_with_momentum_most_of_what_is_matched_are_the_batches_before() -> None:
    new, old, want = statistics([1.0], [1.0]), statistics([2.0], [3.0]), statistics([1.0], [1.0])
    # Without: |1 - 1| + |1 - 1| = 0. With: |1 - (0.1 * 1 + 0.9 * 2)| + |1 - (0.1 * 1 + 0.9 * 3)| = 0.9 + 1.8.
    assert batch_norm_matching([new], [want]).item() == 0
    assert batch_norm_matching([blend(new, old, momentum=0.9)], [want]).item() == pytest.approx(2.7)


def test_matching_statistics_cost_nothing_and_pull_nowhere() -> None:
    mean = torch.tensor([1.0, 2.0], requires_grad=True)
    loss = batch_norm_matching([Statistics(mean, torch.ones(2))], [statistics([1.0, 2.0], [1.0, 1.0])])
    assert loss.item() == 0
    (gradient,) = torch.autograd.grad(loss, mean)
    assert gradient.tolist() == [0.0, 0.0]  # and not NaN, which a square root of nothing has as its slope


def test_a_network_without_batch_norm_costs_nothing() -> None:
    assert batch_norm_matching([], []).item() == 0


def test_layers_that_do_not_correspond_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="shorter"):
        batch_norm_matching([statistics([0.0], [1.0])], [])


# The image prior


def test_octaves_are_what_is_lost_when_images_are_halved() -> None:
    # The mean of the first image is 0, and its values squared are 9 1 1 9; the second is 2 and nothing else.
    images = torch.tensor([[[[3.0, 1.0], [-1.0, -3.0]]], [[[2.0, 2.0], [2.0, 2.0]]]])
    lost, left = octave_covariances(images)
    torch.testing.assert_close(lost, torch.tensor([[(9 + 1 + 1 + 9) / 8]]))
    torch.testing.assert_close(left, torch.tensor([[(0 + 4) / 2]]))


def test_blocks_of_two_pixels_are_all_in_the_second_octave() -> None:
    blocks = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat_interleave(2, 0).repeat_interleave(2, 1)[None, None]
    assert [covariance.item() for covariance in octave_covariances(blocks)] == [0, 1, 0]


def test_octaves_share_out_the_covariance_of_the_pixels() -> None:
    images = torch.randn(5, 3, 16, 8)
    channels = images.transpose(0, 1).flatten(1)
    torch.testing.assert_close(
        torch.stack(octave_covariances(images)).sum(0), channels @ channels.T / channels.shape[1], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(("height", "width", "octaves"), [(1, 1, 0), (8, 8, 3), (7, 5, 2), (32, 20, 5), (1, 6, 2)])
def test_images_of_any_size_have_octaves(height: int, width: int, octaves: int) -> None:
    covariances = octave_covariances(torch.randn(2, 3, height, width))
    assert [covariance.shape for covariance in covariances] == [(3, 3)] * (octaves + 1)


def perfect(mean: float = 0.0, scale: float = 1.0) -> Tensor:
    """Grey images of 2x2 pixels with a third of the variance in their one octave and two thirds in their means."""
    detail = torch.tensor([[1.0, -1.0], [1.0, -1.0]]) / 3**0.5
    return mean + scale * torch.stack([detail + (2 / 3) ** 0.5, detail - (2 / 3) ** 0.5])[:, None]


def test_images_with_the_statistics_of_photographs_cost_nothing_and_pull_nowhere() -> None:
    images = perfect().requires_grad_()
    loss = image_prior(images)
    assert loss.item() == pytest.approx(0, abs=1e-6)
    (gradient,) = torch.autograd.grad(loss, images)
    assert gradient.isfinite().all()


def test_the_prior_grows_with_the_mean_and_with_what_the_variance_is_off() -> None:
    assert image_prior(perfect(mean=0.3)).item() == pytest.approx(0.3, rel=1e-5)
    # Both terms are off by the factor 2^2 - 1: 3 * 1/3 + 3 * 2/3
    assert image_prior(perfect(scale=2.0)).item() == pytest.approx(3.0, rel=1e-5)


def test_channels_should_be_correlated_but_not_the_same() -> None:
    grey = perfect().expand(-1, 3, -1, -1)
    # Six covariances of each octave are w instead of 0.9 w, and the shares w sum to 1.
    assert image_prior(grey).item() == pytest.approx(0.1 * 6**0.5, rel=1e-5)


def test_independent_channels_cost_more_than_equal_ones() -> None:
    signs = torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, -1.0], [-1.0, 1.0, -1.0], [-1.0, -1.0, 1.0]])
    independent = torch.cat([perfect() * sign.view(1, 3, 1, 1) for sign in signs])
    # Six covariances of each octave are 0 instead of 0.9 w.
    assert image_prior(independent).item() == pytest.approx(0.9 * 6**0.5, rel=1e-5)


def test_noise_as_smooth_as_photographs_is_nearer_to_the_prior_than_white_noise_and_flat_images() -> None:
    images = InputSpec(channels=3, height=32, width=32, mean=(MEAN,) * 3, std=(STD,) * 3)
    smooth = (smooth_noise(64, images) - MEAN) / STD
    assert image_prior(smooth) < image_prior(torch.randn(64, 3, 32, 32))
    assert image_prior(smooth) < image_prior(torch.randn(64, 3, 1, 1).expand(-1, -1, 32, 32))
    assert image_prior(smooth) < image_prior(torch.zeros(64, 3, 32, 32))


def test_the_gradient_of_the_prior_is_that_of_its_differences() -> None:
    images = torch.randn(2, 2, 2, 2)
    point = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(image_prior(point), point)
    torch.testing.assert_close(gradient, numerical_gradient(image_prior, images), atol=1e-3, rtol=1e-2)


# Classes


def test_one_hot_is_the_surprise_at_the_class_that_was_asked_for() -> None:
    logits = torch.tensor([log(0.5, 0.25, 0.25), log(0.25, 0.25, 0.5)])
    # -ln 0.5 = ln 2, -ln 0.25 = 2 ln 2
    assert one_hot(logits, torch.tensor([0, 1])).tolist() == pytest.approx([math.log(2), 2 * math.log(2)])


# The adversarial term

TEACHER = torch.tensor([log(0.8, 0.2), log(0.8, 0.2)])
STUDENT = torch.tensor([log(0.6, 0.4), log(0.4, 0.6)])
"""On the first image the student agrees, on the second it does not."""


def test_the_adversarial_term_is_the_negative_divergence_where_both_agree_and_else_nothing() -> None:
    # -(0.8 ln(0.8 / 0.6) + 0.2 ln(0.2 / 0.4)) = -0.091516
    assert adversarial(TEACHER, STUDENT).tolist() == pytest.approx([-0.091516, 0.0], abs=1e-6)


def test_images_on_which_the_student_errs_pull_nowhere() -> None:
    teacher, student = TEACHER.clone().requires_grad_(), STUDENT.clone().requires_grad_()
    for gradient in torch.autograd.grad(adversarial(teacher, student).mean(), (teacher, student)):
        assert gradient[0].abs().sum() > 0.01
        assert gradient[1].tolist() == [0.0, 0.0]


def test_the_adversarial_term_has_a_gradient_through_teacher_and_student() -> None:
    for_teacher = numerical_gradient(lambda logits: adversarial(logits, STUDENT).mean(), TEACHER, step=1e-2)
    teacher, student = TEACHER.clone().requires_grad_(), STUDENT.clone().requires_grad_()
    of_teacher, of_student = torch.autograd.grad(adversarial(teacher, student).mean(), (teacher, student))
    torch.testing.assert_close(of_teacher, for_teacher, atol=1e-4, rtol=1e-2)
    # d KL(p || q) / d student logits = q - p; negated, over two images: (p - q) / 2 = (0.8 - 0.6, 0.2 - 0.4) / 2
    torch.testing.assert_close(of_student, torch.tensor([[0.1, -0.1], [0.0, 0.0]]))


def test_the_adversarial_term_is_never_positive_and_nothing_for_equal_networks() -> None:
    teacher, student = torch.randn(64, 5), torch.randn(64, 5)
    assert adversarial(teacher, student).max() <= 0 and adversarial(teacher, student).sum() < 0
    for same in (teacher, teacher + 3):  # softmax does not see a shift
        torch.testing.assert_close(adversarial(teacher, same), torch.zeros(64), atol=1e-6, rtol=0)


# Learning from the teacher


def test_distillation_is_the_divergence_of_softened_answers_times_the_squared_temperature() -> None:
    teacher, student = torch.tensor([[2 * value for value in log(0.8, 0.2)]]), torch.tensor([[0.0, 0.0]])
    # Divided by T = 2, the teacher says (0.8, 0.2) and the student (0.5, 0.5):
    # 4 * (0.8 ln 1.6 + 0.2 ln 0.4) = 4 * 0.192745 = 0.770980
    assert distillation(teacher, student, temperature=2.0).item() == pytest.approx(0.770980, abs=1e-6)


def test_distillation_is_the_mean_over_images() -> None:
    teacher, student = torch.randn(6, 5), torch.randn(6, 5)
    one_by_one = [distillation(teacher[i : i + 1], student[i : i + 1], 4.0) for i in range(6)]
    torch.testing.assert_close(distillation(teacher, student, 4.0), torch.stack(one_by_one).mean())


def test_equal_logits_cost_nothing() -> None:
    logits = torch.randn(8, 5)
    assert distillation(logits, logits, 4.0).item() == pytest.approx(0, abs=1e-6)
    assert distillation(logits, logits - 7, 4.0).item() == pytest.approx(0, abs=1e-6)


def test_at_a_high_temperature_distillation_approaches_half_the_mean_squared_difference_of_centred_logits() -> None:
    # Hinton et al., section 2.1: T^2 KL -> 1 / (2 K) sum_k (t_k - s_k)^2, with logits of zero mean.
    teacher, student = (logits - logits.mean(1, keepdim=True) for logits in (torch.randn(8, 5), torch.randn(8, 5)))
    limit = (teacher - student).square().sum(1).mean() / (2 * 5)
    torch.testing.assert_close(distillation(teacher, student, 50.0), limit, atol=0, rtol=2e-2)


def test_stage_matching_is_the_squared_difference_over_the_teachers_mean_square() -> None:
    teacher = [torch.tensor([1.0, 3.0]).view(1, 1, 1, 2), torch.tensor([2.0]).view(1, 1, 1, 1)]
    student = [torch.tensor([1.0, 1.0]).view(1, 1, 1, 2), torch.tensor([1.0]).view(1, 1, 1, 1)]
    # Stage 1: mean(0, 4) / mean(1, 9) = 2 / 5. Stage 2: 1 / 4.
    assert stage_matching(teacher, student).item() == pytest.approx(0.4 + 0.25)


def test_stages_of_any_scale_count_alike() -> None:
    teacher, student = torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2)
    small = stage_matching([teacher], [student])
    torch.testing.assert_close(stage_matching([1000 * teacher], [1000 * student]), small)
    torch.testing.assert_close(stage_matching([teacher, 0.01 * teacher], [student, 0.01 * student]), 2 * small)


def test_equal_stages_cost_nothing_even_where_the_teacher_is_silent() -> None:
    stages = [torch.randn(2, 3, 2, 2), torch.zeros(2, 3, 1, 1)]
    assert stage_matching(stages, stages).item() == 0


def test_losses_of_bf16_logits_are_taken_in_float32() -> None:
    teacher, student = torch.randn(4, 3).bfloat16(), torch.randn(4, 3).bfloat16()
    targets = torch.tensor([0, 1, 2, 0])
    for loss in (one_hot(teacher, targets), adversarial(teacher, student), distillation(teacher, student, 4.0)):
        assert loss.dtype == torch.float32
    torch.testing.assert_close(
        distillation(teacher, student, 4.0), distillation(teacher.float(), student.float(), 4.0), rtol=0, atol=0
    )
