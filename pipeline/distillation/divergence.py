"""When learning has gone wrong for good; pure arithmetic on losses and tensors."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

FACTOR = 10.0
"""How far above its level a loss must be."""

PATIENCE = 10
"""For how many steps in a row: one strange batch is no divergence."""


def silent_loss(temperature: float, num_classes: int, stage_weight: float, stages: int) -> float:
    """The most that a student loses which puts out nothing but zeros: what is far above this is worse than no student.

    Its answers are uniform, and KL(p || uniform) = log K - H(p) is at most log K, times T^2; each stage of zeros differs
    from the teacher's by its mean square over its mean square, which is 1.
    """
    return temperature**2 * math.log(num_classes) + stage_weight * stages


def running_level(losses: Tensor, earlier: Sequence[float], silent: float) -> float:
    """What losses `[S]` of a round are compared with: the lowest mean so far, but never less than `silent`.

    Args:
        losses: of the steps of this round.
        earlier: mean loss of every earlier round of learning; without any, the first steps of this one count.
        silent: see `silent_loss`. A student that has become good may lose much more on new images, and be right.
    """
    lowest = min(earlier) if earlier else losses[:PATIENCE].mean().item()
    return max(lowest, silent)


def has_diverged(losses: Tensor, level: float) -> bool:
    """Whether losses `[S]`, step by step, are not finite, or far above their level for many steps in a row.

    What is true of the first steps of a round stays true of more, so it does not matter when one looks.
    """
    if not losses.isfinite().all():
        return True
    over = (losses > FACTOR * level).float()
    return len(over) >= PATIENCE and bool((over.unfold(0, PATIENCE, 1).sum(1) == PATIENCE).any())


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether there is no infinity and no NaN; waits for the device once."""
    flags = [tensor.isfinite().all() for tensor in tensors if tensor.is_floating_point()]
    return not flags or bool(torch.stack(flags).all())
