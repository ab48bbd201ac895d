"""Images moved a little towards the border of two of the teacher's classes: there a student is told apart from its teacher."""

import torch
from torch import Tensor

from compress.pipeline.teacher import Teacher

LEAD_LEFT = 0.5
"""Of the lead that the teacher's first class has over its second, in logits; at the very border no answer means anything."""

STEP = 0.7 / 255
"""Root mean square of a step's pixels: less than one level, so that the way is a straight one nowhere."""

MOST_STEPS = 20
"""With these, no image moves by more than 14 levels."""

AT_ONCE = 64
"""Images that share one backward pass, where memory allows it."""


def towards_boundary(teacher: Teacher, images: Tensor, at_once: int = AT_ONCE) -> Tensor:
    """Images `[N, C, H, W]` in [0, 1], each moved until half of the lead of its first class over the second is left.

    Steps of equal length against the gradient of the lead, with respect to the pixels; an image stops when it is there.
    Source: the direction of DeepFool (Moosavi-Dezfooli et al., CVPR 2016), for the two classes that the teacher ranks first.
    """
    return torch.cat([_moved(teacher, part) for part in images.split(min(at_once, AT_ONCE))])


def _moved(teacher: Teacher, images: Tensor) -> Tensor:
    with torch.no_grad():
        logits = teacher.logits(images)
    first_two = logits.topk(2, dim=1).indices
    enough = LEAD_LEFT * _lead(logits, first_two)
    moved = images
    for _ in range(MOST_STEPS):
        moved = moved.detach().requires_grad_(True)
        lead = _lead(teacher.logits(moved), first_two)
        far = lead > enough
        if not far.any():
            break
        (gradient,) = torch.autograd.grad(lead.sum(), moved)
        further = (moved - STEP * _of_unit_size(gradient)).clamp(0, 1)
        moved = torch.where(far[:, None, None, None], further, moved)
    return moved.detach()


def _lead(logits: Tensor, first_two: Tensor) -> Tensor:
    first, second = logits.float().gather(1, first_two).unbind(1)
    return first - second


def _of_unit_size(gradient: Tensor) -> Tensor:
    """Each image's gradient with a root mean square of 1; zero where it is zero, or no number."""
    gradient = gradient.float().nan_to_num(0, 0, 0)
    largest = gradient.abs().amax(dim=(1, 2, 3), keepdim=True)
    direction = gradient / torch.where(largest > 0, largest, 1)  # before it is squared, which would lose a small one
    size = direction.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    return direction / torch.where(size > 0, size, 1)
