"""Which of its teacher's blocks a student keeps: those whose loss changes most what their stage hands on.

Stage by stage, each behind those that were thinned before it, the blocks are left out one at a time, and the block goes
without which the stage comes nearest to what the whole teacher's hands on; then again, until no more remain than wanted.
What a stage hands on is what it puts out behind the opening of the next stage; of the last stage it is the logits.
"""

import math
from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from compress.pipeline.networks import StagedNetwork
from compress.pipeline.networks.staged import run
from compress.pipeline.students.inheritance import thinned

IMAGES = 128
"""Of the pool, that the loss of a block is measured on."""

MOST_PASSES = 8
"""Over a stage. A stage that has more blocks to lose than this loses several at once, which bounds the time."""

Blocks = tuple[tuple[int, ...], ...]


@torch.no_grad()
def choose_blocks(donor: StagedNetwork, counts: Sequence[int], images: Tensor) -> Blocks:
    """Positions of the blocks that each stage keeps; no random number is drawn.

    Args:
        donor: the teacher as `donor_of` gives it.
        counts: how many blocks each stage is to keep.
        images: normalised, `[N, C, H, W]`.
    """
    whole = tuple(tuple(range(len(stage))) for stage in donor.spec.droppable)
    wanted = _handed_on_by_each(donor, whole, images)
    kept, entering = whole, donor.enter(images)
    for number, count in enumerate(counts):
        for going in _passes(len(whole[number]) - count):
            kept = _without(kept, number, _most_idle(donor, kept, number, entering, wanted[number])[:going])
        entering = _thinned_for(donor, kept).stage_list()[number].run(entering)
    return kept


def relative_change(wanted: Tensor, found: Tensor) -> float:
    """Mean squared difference over the mean square of what is wanted."""
    scale = wanted.float().square().mean().clamp_min(1e-12)
    return ((found.float() - wanted.float()).square().mean() / scale).item()


def _passes(surplus: int) -> list[int]:
    """How many blocks go in each pass over a stage: one, or as equal shares as possible where there are too many.

    _passes(3) = [1, 1, 1]; _passes(11) = [2, 2, 2, 1, 1, 1, 1, 1]
    """
    passes = min(surplus, MOST_PASSES)
    return [math.ceil((surplus - index) / passes) for index in range(passes)]


def _most_idle(donor: StagedNetwork, kept: Blocks, number: int, entering: Tensor, wanted: Tensor) -> list[int]:
    """The blocks of a stage that may go, beginning with that whose loss changes least; of equals, the later first."""
    droppable = [index for index in kept[number] if donor.spec.droppable[number][index]]
    changes = {
        index: relative_change(wanted, _handed_on(donor, _without(kept, number, [index]), number, entering))
        for index in droppable
    }
    return sorted(droppable, key=lambda index: (changes[index], -index))


def _handed_on_by_each(donor: StagedNetwork, kept: Blocks, images: Tensor) -> list[Tensor]:
    x, found = donor.enter(images), []
    for number, stage in enumerate(_thinned_for(donor, kept).stage_list()):
        found.append(_handed_on(donor, kept, number, x))
        x = stage.run(x)
    return found


def _handed_on(donor: StagedNetwork, kept: Blocks, number: int, entering: Tensor) -> Tensor:
    """What the thinned stage makes of its input, as the rest of the network takes it."""
    network = _thinned_for(donor, kept)
    stages = network.stage_list()
    x = stages[number].run(entering)
    return network.leave(x) if number == len(stages) - 1 else run(stages[number + 1].opening, x)


def _thinned_for(donor: StagedNetwork, kept: Blocks) -> StagedNetwork:
    """The student of these blocks, its batch norms normalising by what they meet, as they will once recalibrated."""
    network = thinned(donor, kept)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.train()
            norm.track_running_stats = False  # What they meet stays out of the statistics, which are the teacher's own.
    return network


def _without(kept: Blocks, number: int, going: Sequence[int]) -> Blocks:
    left = tuple(index for index in kept[number] if index not in going)
    return tuple(chain(kept[:number], (left,), kept[number + 1 :]))
