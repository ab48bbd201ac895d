"""Frees a program from the number of images that it was exported with.

An exporter that was not told that the batch may vary writes its size into the sizes that tensors get. Where such a size
stands is seen by running the program on the shapes of one image more: what differs from the shapes that the file states
has the batch in it.
"""

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from torch import Tensor

from compress.pipeline.teacher.programs.dry_run import DryRun
from compress.pipeline.teacher.programs.graph import Argument, Operation, ProgramGraph, ValueRef
from compress.pipeline.teacher.programs.meter import Meter

StatedShapes = Mapping[str, tuple[int | None, ...]]

BATCH = "#batch"
"""The name of the operation that gives the number of images."""


def for_any_batch(
    graph: ProgramGraph, stated: StatedShapes, tensors: Mapping[str, Tensor], name: str, *, images_last: bool
) -> ProgramGraph:
    """The same program for any number of images; as it is where it states no number, or not height and width.

    Args:
        graph: the program.
        stated: the shapes of its values as the file states them, None for what may vary.
        tensors: the file's, by the names that the graph uses.
        name: the file's, for messages.
        images_last: of images and parts of images in one dimension, which vary faster. Sizes alone do not always tell.

    Raises:
        InputError: an operation cannot be computed for another number of images.
    """
    fixed = [length for length in stated[graph.input] if length is not None]
    if len(fixed) < 4:
        return graph
    run = DryRun(graph.input, tensors, [fixed[0] + 1, *fixed[1:]], name, Meter(fixed[0] + 1))
    operations = [Operation(BATCH, "aten.sym_size.int", (ValueRef(graph.input), 0))]
    run.evaluate(operations[0])
    for operation in graph.operations:
        freed = _freed(operation, stated, run, fixed[0], images_last)
        run.evaluate(freed)
        operations.append(freed)
    return replace(graph, operations=tuple(operations))


@dataclass(frozen=True, slots=True)
class _Sized:
    """An operation that is given sizes."""

    sizes: tuple[int, ...]
    before: tuple[int, ...]
    """The shape of what it takes, as stated."""
    now: tuple[int, ...]
    """The same for one image more."""
    after: tuple[int, ...]
    """The shape of its result, as stated."""
    batch: int
    """The number of images, as stated."""
    images_last: bool


def _freed(operation: Operation, stated: StatedShapes, run: DryRun, batch: int, images_last: bool) -> Operation:
    if operation.operator not in _SIZED or len(operation.arguments) < 2:
        return operation
    subject, sizes, *others = operation.arguments
    now, given, after = run.shape_of(subject), _whole(sizes), _whole(stated.get(operation.name))
    before = _whole(stated.get(subject.value)) if isinstance(subject, ValueRef) else now
    if given is None or after is None or before is None or len(before) != len(now):
        return operation
    freed = _SIZED[operation.operator](_Sized(given, before, now, after, batch, images_last))
    return replace(operation, arguments=(subject, freed, *others))


def _whole(sizes: Argument) -> tuple[int, ...] | None:
    """Sizes that are all known numbers; None where one is not."""
    numbers = tuple(size for size in sizes if isinstance(size, int)) if isinstance(sizes, tuple) else None
    return numbers if numbers is not None and isinstance(sizes, tuple) and len(numbers) == len(sizes) else None


def _reshaped(sized: _Sized) -> tuple[Argument, ...]:
    """The size that has the batch in it becomes what is left over."""
    place = _place_after_reshape(sized)
    return sized.sizes if place is None else (*sized.after[:place], -1, *sized.after[place + 1 :])


def _place_after_reshape(sized: _Sized) -> int | None:
    """The dimension of the result that has the batch in it; None where nothing has, or it cannot be told.

    A reshape keeps the order of numbers, so the batch stays where it was among them. It is the dimension that starts
    where it did, unless that is the last, which holds features; else the first that can have taken it in. Where its
    dimension was split and the images vary faster, it is the second part.
    """
    before, after, batch = sized.before, sized.after, sized.batch
    changed = [place for place, length in enumerate(before) if length != sized.now[place]]
    outside = math.prod(before[: changed[0]]) if len(changed) == 1 else 0
    if not outside:
        return None
    place = changed[0]
    parts = after[place : place + 2]
    split = (*before[:place], *parts, *before[place + 1 :]) == after and math.prod(parts) == before[place]
    if split and sized.images_last and parts[-1] == batch:
        return place + 1
    ends = [*accumulate(after, operator.mul)]
    last = len(after) - (place < len(before) - 1)
    starting = [i for i, size in enumerate(after[:last]) if ends[i] == outside * size and size % batch == 0]
    ending = [i for i, end in enumerate(ends) if end % (outside * batch) == 0]
    return place if place in starting else next(iter(starting or ending), None)


def _expanded(sized: _Sized) -> tuple[Argument, ...]:
    """Dimensions that have the batch in them stay, and a first one that is made as long as the batch follows it."""
    new = len(sized.sizes) - len(sized.before)
    changed = [length != now for length, now in zip(sized.before, sized.now, strict=True)]
    kept = [-1 if place >= new and changed[place - new] else size for place, size in enumerate(sized.sizes)]
    single = new > 0 or sized.before[:1] == (1,)
    return _led_by_batch(kept, sized.batch) if single and not any(changed[:1]) else tuple(kept)


def _repeated(sized: _Sized) -> tuple[Argument, ...]:
    """What is repeated as often as there are images, and has none in it itself."""
    alone = sized.before == sized.now and sized.after[:1] == (sized.batch,)
    return _led_by_batch(sized.sizes, sized.batch) if alone else sized.sizes


def _made(sized: _Sized) -> tuple[Argument, ...]:
    """A tensor of one number; those of one dimension hardly have the batch in it."""
    return _led_by_batch(sized.sizes, sized.batch) if len(sized.sizes) > 1 else sized.sizes


def _led_by_batch(sizes: Sequence[int], batch: int) -> tuple[Argument, ...]:
    return (ValueRef(BATCH), *sizes[1:]) if tuple(sizes[:1]) == (batch,) else tuple(sizes)


_SIZED: dict[str, Callable[[_Sized], tuple[Argument, ...]]] = {
    "aten.reshape.default": _reshaped,
    "aten.expand.default": _expanded,
    "aten.repeat.default": _repeated,
    "aten.new_full.default": _made,
    "aten.new_ones.default": _made,
}
