import math

import pytest
import torch

from compress.pipeline.settings import Selection
from compress.pipeline.synthesis.selection import BestOfSteps

STEPS = (
    # loss of the batch, each image's own part of it
    (3.0, [0.1, 0.9]),
    (1.0, [0.5, 0.5]),
    (2.0, [0.9, 0.2]),
)


def kept(selection: Selection, steps: tuple[tuple[float, list[float]], ...] = STEPS) -> tuple[list[int], float]:
    """The step that each image is from, and the loss that is told."""
    best = BestOfSteps(selection)
    for number, (loss, of_each) in enumerate(steps):
        best.see(torch.full((2, 1, 1, 1), float(number)), torch.tensor(loss), torch.tensor(of_each))
    return [int(number) for number in best.images.flatten()], best.loss.item()


def test_by_batch_all_images_are_of_the_step_with_the_lowest_loss() -> None:
    assert kept("batch") == ([1, 1], 1.0)


def test_by_image_each_is_of_the_step_where_its_own_part_was_lowest() -> None:
    assert kept("image") == ([0, 2], 1.0)


@pytest.mark.parametrize("selection", ["batch", "image"])
def test_of_equals_the_first_is_kept(selection: Selection) -> None:
    assert kept(selection, ((1.0, [0.5, 0.5]), (1.0, [0.5, 0.5]))) == ([0, 0], 1.0)


@pytest.mark.parametrize("selection", ["batch", "image"])
def test_a_loss_that_is_no_number_is_told(selection: Selection) -> None:
    nan = float("nan")
    assert math.isnan(kept(selection, ((nan, [nan, nan]), (1.0, [0.5, 0.5])))[1])
