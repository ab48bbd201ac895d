from typing import Any

import pytest
import torch

from compress.pipeline.errors import CompressError, InputError, UsageError
from compress.pipeline.records import InputSpec
from compress.pipeline.teacher.inputs import resolve_input
from tests.teacher.checkpoints import tiny_spec


def resolved(metadata: dict[str, object] | None = None, *, spec: Any = None, **arguments: Any) -> InputSpec:
    given = {"input_size": None, "mean": None, "std": None} | arguments
    return resolve_input(spec or tiny_spec(), metadata or {}, **given)


def test_without_any_word_the_usual_values_count_and_the_record_says_so() -> None:
    assert resolved() == InputSpec(
        channels=3,
        height=32,
        width=32,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        source="size from what is usual for the architecture; mean and std from ImageNet, for want of better knowledge",
    )


def test_the_imagenet_form_usually_takes_224_pixels() -> None:
    assert resolved(spec=tiny_spec(stem="imagenet")).height == 224


def test_grey_images_are_usually_centred() -> None:
    images = resolved(spec=tiny_spec(channels=1))
    assert (images.height, images.mean, images.std) == (32, (0.5,), (0.5,))


def test_metadata_count_before_usual_values_and_arguments_before_metadata() -> None:
    images = resolved({"input_size": 8, "mean": [0.1, 0.2, 0.3]}, mean=(0.4, 0.5, 0.6), std=(1.0, 1.0, 1.0))
    assert (images.height, images.mean, images.std) == (8, (0.4, 0.5, 0.6), (1, 1, 1))
    assert images.source == "size from the checkpoint's metadata; mean and std from the command line"


@pytest.mark.parametrize(
    ("value", "size"),
    [(8, (8, 8)), ([8], (8, 8)), ((3, 8, 12), (8, 12)), ([8, 12], (8, 12)), (torch.tensor([8, 8]), (8, 8))],
)
def test_sizes_come_in_many_shapes(value: object, size: tuple[int, int]) -> None:
    images = resolved({"input_size": value})
    assert (images.height, images.width) == size


def test_normalisation_comes_as_tensor_too() -> None:
    assert resolved({"mean": torch.tensor([0.25, 0.5, 0.75]).view(1, 3, 1, 1)}).mean == (0.25, 0.5, 0.75)


@pytest.mark.parametrize(
    "value",
    [
        "eight",
        [],
        [float("nan")],
        float("inf"),
        10**400,
        {"a": 1},
        torch.zeros(1).expand(2**40),
        torch.ones(1, device="meta"),
    ],
    ids=["text", "nothing", "nan", "infinity", "overflow", "dictionary", "endless tensor", "tensor without numbers"],
)
def test_metadata_that_make_no_sense_are_refused(value: object) -> None:
    with pytest.raises(InputError, match="metadata have no sensible 'input_size'"):
        resolved({"input_size": value})


# The strides before the last stage: 2 x 2 with four CIFAR stages; 4 x 2 x 2 with those of ImageNet; none with one.
@pytest.mark.parametrize(("stem", "stages", "least"), [("cifar", 4, 4), ("imagenet", 4, 16), ("cifar", 1, 1)])
def test_the_least_size_leaves_a_pixel_before_the_last_stage(stem: str, stages: int, least: int) -> None:
    spec = tiny_spec(stem=stem, blocks=(1,) * stages, widths=(4,) * stages)
    assert resolved(spec=spec, input_size=least).height == least
    with pytest.raises(UsageError, match=f"cannot take images of {least - 1}x{least - 1} pixels") as caught:
        resolved(spec=spec, input_size=least - 1)
    assert caught.value.hint == f"--input-size can be from {least} to 1024."


def test_more_than_1024_pixels_are_refused() -> None:
    assert resolved(input_size=1024).width == 1024
    with pytest.raises(UsageError, match="1025x1025 pixels"):
        resolved(input_size=1025)


@pytest.mark.parametrize(("from_file", "error"), [(False, UsageError), (True, InputError)])
def test_a_wrong_number_of_channels_is_refused_with_both_numbers(from_file: bool, error: type[CompressError]) -> None:
    values: dict[str, Any] = {"mean": (0.5, 0.25)}
    with pytest.raises(error, match=r"takes 3 channels, but .* gives 2 for mean: 0\.5, 0\.25"):
        resolved(values) if from_file else resolved(**values)


@pytest.mark.parametrize(
    "arguments",
    [
        {"mean": (125.3, 123.0, 113.9)},
        {"std": (63.0, 62.1, 66.7)},
        {"std": (0.2, 0.0, 0.2)},
        {"mean": (-0.1, 0.5, 0.5)},
    ],
)
def test_normalisation_for_other_than_unit_images_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"does not suit images in \[0, 1\]") as caught:
        resolved(**arguments)
    assert caught.value.hint == "Divide by 255 what was computed on bytes."
