"""Images on their way to the border of two classes."""

import pytest
import torch
from torch import Tensor

from compress.pipeline.boundary import LEAD_LEFT, MOST_STEPS, STEP, towards_boundary
from compress.pipeline.teacher import Teacher
from tests.tiny import tiny_teacher


def lead(logits: Tensor, first_two: Tensor) -> Tensor:
    first, second = logits.gather(1, first_two).unbind(1)
    return first - second


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return tiny_teacher()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(70, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_about_half_of_the_lead_is_left_where_the_way_is_short_enough(teacher: Teacher, images: Tensor) -> None:
    before = teacher.logits(images)
    first_two = before.topk(2, dim=1).indices
    with torch.enable_grad():
        moved = towards_boundary(teacher, images)
    left = lead(teacher.logits(moved), first_two) / lead(before, first_two)
    arrived = left <= LEAD_LEFT
    assert arrived.float().mean() > 0.5
    assert (left < 1).all()


def test_no_image_moves_further_than_its_steps_allow(teacher: Teacher, images: Tensor) -> None:
    moved = towards_boundary(teacher, images)
    distance = (moved - images).square().mean(dim=(1, 2, 3)).sqrt()
    # Every step is 0.7 levels long, and 20 of them in one direction are 14.
    assert distance.max() <= MOST_STEPS * STEP * 1.0001
    assert distance.min() > 0
    assert ((moved >= 0) & (moved <= 1)).all()


def test_an_image_moves_the_same_way_in_any_company(teacher: Teacher, images: Tensor) -> None:
    together = towards_boundary(teacher, images)
    torch.testing.assert_close(towards_boundary(teacher, images[:3]), together[:3])


def test_nothing_of_the_teacher_is_changed_and_no_gradient_kept(teacher: Teacher, images: Tensor) -> None:
    before = [value.clone() for value in teacher.network.state_dict().values()]
    moved = towards_boundary(teacher, images[:4])
    assert not moved.requires_grad
    assert all(
        torch.equal(value, old) for value, old in zip(teacher.network.state_dict().values(), before, strict=True)
    )
    assert all(parameter.grad is None for parameter in teacher.network.parameters())


def test_an_image_without_a_way_stays_where_it_is(teacher: Teacher) -> None:
    flat = Flat(teacher)
    images = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(towards_boundary(flat, images), images)  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", [1e-25, float("nan")])
def test_a_gradient_that_is_tiny_or_no_number_moves_no_image_further_than_others(scale: float) -> None:
    teacher = Steep(scale)
    images = torch.full((2, 3, 8, 8), 0.5)
    moved = towards_boundary(teacher, images)  # type: ignore[arg-type]
    assert (moved - images).square().mean().sqrt() <= MOST_STEPS * STEP * 1.0001
    assert torch.isfinite(moved).all()


class Steep:
    """Its first class leads by what the brightness says, times a scale."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def logits(self, images: Tensor) -> Tensor:
        brightness = images.mean((1, 2, 3))
        zeros = torch.zeros_like(brightness)
        return torch.stack([1 + brightness * self.scale, zeros, zeros - 1], dim=1)


class Flat:
    """Says the same of all images, through a gradient that is zero."""

    def __init__(self, teacher: Teacher) -> None:
        self.record = teacher.record

    def logits(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :4] * 0 + torch.tensor([4.0, 3, 2, 1])
