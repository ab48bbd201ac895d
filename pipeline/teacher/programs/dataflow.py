"""Which operations of a program depend on which."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from compress.pipeline.teacher.programs.graph import Argument, Operation, ValueRef


def needed(operations: Sequence[Operation], output: str) -> tuple[Operation, ...]:
    """The operations that the output depends on, in the same order."""
    wanted, kept = {output}, []
    for operation in reversed(operations):
        if operation.name in wanted:
            kept.append(operation)
            wanted.update(values_in(operation))
    return tuple(reversed(kept))


def done_after(operations: Sequence[Operation]) -> dict[str, list[str]]:
    """By the name of an operation, the values that no later one needs."""
    last = {value: operation.name for operation in operations for value in values_in(operation)}
    done: defaultdict[str, list[str]] = defaultdict(list)
    for value, user in last.items():
        done[user].append(value)
    return dict(done)


def values_in(operation: Operation) -> Iterator[str]:
    """The values that an operation takes."""
    yield from _values((*operation.arguments, *operation.keywords.values()))


def _values(arguments: Sequence[Argument]) -> Iterator[str]:
    for argument in arguments:
        if isinstance(argument, ValueRef):
            yield argument.value
        elif isinstance(argument, tuple):
            yield from _values(argument)
