"""Which of its teacher's blocks a student keeps: those whose loss changes most what their stage hands on.

Stage by stage, each behind those that were thinned before it, the blocks are left out one at a time, and the block goes
without which the stage comes nearest to what the whole teacher's hands on; then again, until no more remain than wanted.
Of each kind of block as many remain as the plan of the student has, so that its spec stays as it was planned.
What a stage hands on is what it puts out behind the opening of the next stage; of the last stage it is the logits.
"""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from compress.pipeline.networks import StagedNetwork
from compress.pipeline.networks.spec import Kept
from compress.pipeline.networks.staged import run
from compress.pipeline.students.inheritance import thinned

IMAGES = 128
"""Of the pool, that the loss of a block is measured on."""

MOST_PASSES = 8
"""Over a stage. A stage that has more blocks to lose than this loses several at once, which bounds the time."""

Blocks = tuple[tuple[int, ...], ...]


@torch.no_grad()
def choose_blocks(donor: StagedNetwork, planned: Kept, images: Tensor) -> Blocks:
    """Positions of the blocks that each stage keeps; no random number is drawn.

    Args:
        donor: the teacher as `donor_of` gives it.
        planned: blocks that were planned to be kept, which say how many of each kind are.
        images: normalised, `[N, C, H, W]`.
    """
    whole = tuple(tuple(range(len(stage))) for stage in donor.spec.droppable)
    wanted = _handed_on_by_each(donor, whole, images)
    kept, entering = whole, donor.enter(images)
    for number, stage in enumerate(planned):
        kinds = donor.spec.block_kinds[number]
        for going in _passes(len(whole[number]) - len(stage)):
            idle = _most_idle(donor, kept, number, entering, wanted[number])
            surplus = Counter(kinds[index] for index in kept[number]) - Counter(kinds[index] for index in stage)
            kept = _without(kept, number, _spare(idle, kinds, surplus)[:going])
        if [kinds[index] for index in kept[number]] != [kinds[index] for index in stage]:
            kept = (*kept[:number], tuple(stage), *kept[number + 1 :])  # as many of each, but in another order
        entering = as_recalibrated(donor, kept).stage_list()[number].run(entering)
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


def _spare(idle: Sequence[int], kinds: Sequence[Hashable], surplus: Counter[Hashable]) -> list[int]:
    """The blocks that may go, in their order, when of each kind so many may.

    _spare([3, 1, 2], "abba", Counter(a=1, b=1)) = [3, 1]
    """
    left, going = Counter(surplus), []
    for index in idle:
        if left[kinds[index]] > 0:
            left[kinds[index]] -= 1
            going.append(index)
    return going


def _handed_on_by_each(donor: StagedNetwork, kept: Blocks, images: Tensor) -> list[Tensor]:
    x, found = donor.enter(images), []
    for number, stage in enumerate(as_recalibrated(donor, kept).stage_list()):
        found.append(_handed_on(donor, kept, number, x))
        x = stage.run(x)
    return found


def _handed_on(donor: StagedNetwork, kept: Blocks, number: int, entering: Tensor) -> Tensor:
    """What the thinned stage makes of its input, as the rest of the network takes it."""
    network = as_recalibrated(donor, kept)
    stages = network.stage_list()
    x = stages[number].run(entering)
    return network.leave(x) if number == len(stages) - 1 else run(stages[number + 1].opening, x)


def as_recalibrated(donor: StagedNetwork, kept: Blocks) -> StagedNetwork:
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
