import math

import pytest
from torch import nn

from compress.pipeline.records import InputSpec, Severity
from compress.pipeline.teacher.diagnosis.image_estimate import ImageEstimate, estimate_images
from compress.pipeline.teacher.diagnosis.normalisation import (
    Normalisation,
    assumption_finding,
    implied_images,
    likeliest,
    normalisation_finding,
    usual_normalisations,
    with_plausible_normalisation,
)
from compress.pipeline.teacher.inputs import IMAGENET_MEAN, IMAGENET_STD
from tests.teacher.teachers import DIGITS_MEAN, DIGITS_STD, classifier, digits_teacher, images_of, seen, teacher_of

IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)
NONE, HALF = ((0.0,) * 3, (1.0,) * 3), ((0.5,) * 3, (0.5,) * 3)


def estimated(*mean: float, std: float, mean_error: float = 0.0, std_error: float = 0.0) -> ImageEstimate:
    return ImageEstimate(mean=mean, std=std, mean_error=mean_error, std_error=std_error)


def severity(estimate: ImageEstimate, mean: tuple[float, ...], std: tuple[float, ...]) -> Severity:
    return normalisation_finding(estimate, with_values(mean, std)).severity


def with_values(mean: tuple[float, ...], std: tuple[float, ...]) -> InputSpec:
    return images_of(len(mean)).model_copy(update={"mean": mean, "std": std})


CIFAR_RESNET = estimated(-0.265, -0.191, -0.114, std=1.146, mean_error=0.015, std_error=0.044)
"""As estimated from a public ResNet-56 of CIFAR-10, trained with ImageNet's values on random crops of padded images.

Its true mean is 0.866 of CIFAR-10's (0.491, 0.482, 0.447): a shift by up to 4 of 32 pixels both ways, each as likely as
any other, leaves (1 - (20 / 9) / 32)^2 of the image inside. That is (-0.26, -0.17, -0.09) under ImageNet's values.
"""


def test_implied_images_are_the_normalised_ones_scaled_back() -> None:
    raw = implied_images(estimated(0.1, -1, std=2), Normalisation(mean=(0.3, 0.5), std=(0.4, 0.2)))
    assert raw.mean == pytest.approx((0.1 * 0.4 + 0.3, -1 * 0.2 + 0.5))
    assert raw.std == pytest.approx((2 * 0.4, 2 * 0.2))


@pytest.mark.parametrize(
    ("mean", "std", "contrast"),
    [
        (0.5, 0.5, 1.0),  # half black, half white: 0.5^2 / (0.5 0.5)
        (0.2, 0.2, 0.5),  # 0.2^2 / (0.2 0.8) = 0.25
        (0.5, 0.0, 0.0),
        (-0.1, 0.1, math.inf),
        (1.5, 0.1, math.inf),
    ],
)
def test_contrast_is_the_share_of_the_greatest_possible_std(mean: float, std: float, contrast: float) -> None:
    raw = implied_images(estimated(0, std=1), Normalisation(mean=(mean,), std=(std,)))
    assert raw.contrast == pytest.approx(contrast)


@pytest.mark.parametrize(
    ("mean", "std", "expected"),
    [
        (*IMAGENET, "note"),
        ((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616), "note"),  # CIFAR-10's are too near to be told apart
        (IMAGENET_MEAN[::-1], IMAGENET_STD[::-1], "note"),  # and so is the order of channels
        (*NONE, "problem"),
        (*HALF, "warning"),
        (tuple(2 * value for value in IMAGENET_MEAN), tuple(2 * value for value in IMAGENET_STD), "problem"),
        (IMAGENET_STD, IMAGENET_MEAN, "problem"),
        ((0.1,) * 3, (0.1,) * 3, "warning"),
        ((0.0,) * 3, (1 / 255,) * 3, "problem"),
    ],
)
def test_a_cifar_teacher_is_flagged_with_a_wrong_normalisation_only(
    mean: tuple[float, ...], std: tuple[float, ...], expected: Severity
) -> None:
    assert severity(CIFAR_RESNET, mean, std) == expected


@pytest.mark.parametrize(
    ("mean", "std", "expected"),
    [
        (DIGITS_MEAN, DIGITS_STD, "note"),
        (DIGITS_STD, DIGITS_MEAN, "note"),  # swapped they are as plausible: nothing shows that they are wrong
        (0.449, 0.226, "note"),
        (0.0, 1.0, "problem"),
        (0.5, 0.5, "warning"),
        (2 * DIGITS_MEAN, 2 * DIGITS_STD, "problem"),
        (0.0, 1 / 255, "problem"),
        (DIGITS_MEAN, 1.0, "problem"),
        (0.0, DIGITS_STD, "problem"),
    ],
)
def test_the_digits_teacher_is_flagged_with_a_wrong_normalisation_only(
    mean: float, std: float, expected: Severity
) -> None:
    estimate = estimate_images(digits_teacher())
    assert estimate is not None
    assert severity(estimate, (mean,), (std,)) == expected


def test_a_finding_says_what_the_images_would_be_and_what_would_be_plausible() -> None:
    finding = normalisation_finding(CIFAR_RESNET, with_values(*NONE))
    assert finding.message == (
        "By the first batch norm's statistics, the images of training had mean (-0.27, -0.19, -0.11) and std "
        "(1.1, 1.1, 1.1) if mean (0, 0, 0) and std (1, 1, 1) are right, but no images in [0, 1] are like that."
    )
    assert finding.advice == (
        "Give the --mean and --std of the training code; "
        "--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 would be plausible."
    )


def test_a_plausible_normalisation_needs_no_advice() -> None:
    finding = normalisation_finding(CIFAR_RESNET, with_values(*IMAGENET))
    assert "mean (0.42, 0.41, 0.38) and std (0.26, 0.26, 0.26)" in finding.message
    assert finding.message.endswith("are right, which is plausible.")
    assert finding.advice == ""


def test_no_normalisation_is_suggested_where_none_of_the_usual_is_plausible() -> None:
    finding = normalisation_finding(estimated(9.0, std=1.0), with_values((0.5,), (0.5,)))
    assert (finding.severity, finding.advice) == ("problem", "Give the --mean and --std of the training code.")


def test_plain_scaling_that_suits_clearly_better_is_worth_a_warning() -> None:
    # Photographs of mean 0.47 and std 0.26 in [-1, 1]. ImageNet's values leave them at 0.44 and 0.12: possible, but odd.
    finding = normalisation_finding(estimated(-0.06, -0.06, -0.06, std=0.52), with_values(*IMAGENET))
    assert finding.severity == "warning"
    assert "a plain scaling would make them more like most data sets" in finding.message
    assert "--mean 0.5,0.5,0.5 --std 0.5,0.5,0.5" in finding.advice


def test_uncertain_estimates_prove_nothing_impossible() -> None:
    # Dark images: mean -0.05 is 0.02 beyond the tolerance. Stark ones: std 0.65 is 1.3 of the possible 0.5, not 1.15.
    as_given = Normalisation(mean=NONE[0], std=NONE[1])
    for mean, std in (((-0.05, 0.5, 0.5), 0.3), ((0.5, 0.5, 0.5), 0.65)):
        assert not implied_images(estimated(*mean, std=std), as_given).possible
        assert implied_images(estimated(*mean, std=std, mean_error=0.02, std_error=0.1), as_given).possible


def test_what_the_weights_do_not_show_is_said() -> None:
    finding = normalisation_finding(None, with_values(*HALF))
    assert (finding.severity, finding.topic) == ("note", "normalisation")
    assert "Nothing in the weights shows whether mean (0.5, 0.5, 0.5) and std (0.5, 0.5, 0.5)" in finding.message


@pytest.mark.parametrize(
    ("estimate", "mean", "std"),
    [
        (CIFAR_RESNET, *IMAGENET),
        (estimated(0.48, 0.46, 0.41, std=0.25), *NONE),
        (estimated(-0.04, -0.08, -0.18, std=0.5), *HALF),
        (estimated(122.0, 117, 105, std=64), (0.0,) * 3, (1 / 255,) * 3),
        (estimated(0.0, std=1.0), (0.449,), (0.226,)),
        (estimated(0.13, std=0.31), (0.0,), (1.0,)),  # MNIST
        (estimated(-0.74, std=0.62), (0.5,), (0.5,)),  # MNIST in [-1, 1]
    ],
)
def test_the_likeliest_normalisation_makes_typical_images(
    estimate: ImageEstimate, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    chosen = likeliest(estimate, usual_normalisations(len(mean)))
    assert chosen is not None
    assert (chosen.mean, chosen.std) == (mean, std)


def test_an_unstated_normalisation_is_taken_from_the_first_batch_norm() -> None:
    # Images of mean 0.45 and std 0.25 that were scaled to [-1, 1].
    teacher = teacher_of(seen(classifier(nn.Conv2d(3, 8, 1), 8), (-0.1, -0.1, -0.1), 0.5))
    teacher.record = teacher.record.model_copy(
        update={"input": with_values(*IMAGENET).model_copy(update={"source": "size from a; mean from b; std from b"})}
    )
    chosen = with_plausible_normalisation(teacher)
    assert (chosen.mean, chosen.std) == HALF
    assert chosen.source == "size from a; mean and std from the first batch norm, which scaling to [-1, 1] suits best"


def test_an_unstated_normalisation_stays_where_nothing_can_be_told() -> None:
    teacher = teacher_of(nn.Sequential(nn.Conv2d(3, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    assert with_plausible_normalisation(teacher) == teacher.record.input


def test_what_is_assumed_is_said_to_be() -> None:
    finding = assumption_finding(with_values(*HALF), size=False, normalisation=True)
    assert finding.severity == "warning"
    assert finding.message == (
        "Nothing says what images the network was trained on; mean (0.5, 0.5, 0.5) and std (0.5, 0.5, 0.5) are assumed."
    )
    assert finding.advice.startswith("Give the --mean and --std of the training code")
    both = assumption_finding(with_values(*HALF), size=True, normalisation=True)
    assert both.advice.startswith("Give the --input-size, --mean and --std of the training code")
