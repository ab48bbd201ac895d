"""Tensors under the names that one of several authors gave them, brought to the names of our own network."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from compress.pipeline.networks.spec import MOST_CHANNELS
from compress.pipeline.teacher.families import NotInFamily, Shapes

INDEX = r"(?:0|[1-9]\d{0,3})"
"""A pattern of the numbers that count blocks; longer ones, or such with leading zeros, nobody writes."""

Rules = Sequence[tuple[str, str | Callable[[re.Match[str]], str]]]
"""Patterns and what they are replaced by, one after the other."""


@dataclass(frozen=True, slots=True)
class Placed:
    """The tensors of a checkpoint as tensors of our network."""

    family: str
    author: str
    """Whose names they had."""
    names: dict[str, str]
    """The checkpoint's name of each tensor to our name."""
    shapes: dict[str, tuple[int, ...]]
    """Shapes by our name."""

    def shape(self, name: str, dimensions: int) -> tuple[int, ...]:
        """Shape of a tensor that the spec is read off.

        Raises:
            NotInFamily: there is no such tensor, or it has another number of dimensions, or one out of reason.
        """
        found = self.shapes.get(name)
        if found is None:
            raise NotInFamily(self.family, "the checkpoint lacks its", (name,))
        if len(found) != dimensions or not all(1 <= size <= MOST_CHANNELS for size in found):
            raise self.misfit(f"a tensor of {dimensions} dimensions has the shape {list(found)}", name)
        return found

    def misfit(self, problem: str, name: str) -> NotInFamily:
        """The error that one tensor, by our name, does not belong there; the checkpoint's name is shown."""
        return NotInFamily(self.family, problem, tuple(theirs for theirs, ours in self.names.items() if ours == name))


def place(shapes: Shapes, family: str, authors: Mapping[str, Rules], own: str) -> Placed:
    """Rename by the rules of the author under which most tensors come to a name of ours.

    Args:
        shapes: the checkpoint's tensors.
        family: its name, for errors.
        authors: how each author's names become ours.
        own: a pattern of all names that tensors of our network can have.

    Raises:
        NotInFamily: under each author's rules a tensor is left without a place, or two have the same.
    """
    renamed = {author: {name: _renamed(name, rules) for name in shapes} for author, rules in authors.items()}
    strays = {
        author: tuple(theirs for theirs, ours in names.items() if not re.fullmatch(own, ours))
        for author, names in renamed.items()
    }
    author = min(strays, key=lambda author: len(strays[author]))
    if len(strays[author]) == len(shapes):
        raise NotInFamily(family, "no tensor is named like one of its", distance=len(shapes))
    if strays[author]:
        raise NotInFamily(family, "it has no place for", strays[author])
    names = renamed[author]
    occupied = Counter(names.values())
    doubles = tuple(theirs for theirs, ours in names.items() if occupied[ours] > 1)
    if doubles:
        raise NotInFamily(family, "several tensors have the same place", doubles)
    return Placed(family, author, names, {ours: shapes[theirs] for theirs, ours in names.items()})


def _renamed(name: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
