"""Sorts a checkpoint's layers into blocks and the steps in them, by the names that the known authors use.

Names of layers are written with `*` for a number and `|` between alternatives: `features.*.0`.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache

from pydantic import ValidationError

from compress.pipeline.teacher.families import NotInFamily, Shapes

Step = tuple[str, ...]
"""The layers of one step by name: a convolution and its batch norm, or the two layers of a squeeze-and-excite."""
Layout = Mapping[str, Step]
"""What a part of a network consists of: its steps, and the layers of each."""

SQUEEZE = "squeeze"
"""The step whose second layer is no batch norm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Naming:
    """How an author names the layers of an architecture."""

    author: str
    """Whose names they are."""
    block: str
    """What precedes a layer's name within its block; the numbers say which block it is."""
    layouts: tuple[Layout, ...]
    """What a block may consist of."""
    ends: Layout
    """What lies before and after the blocks."""


@dataclass(slots=True)
class Arrangement:
    """A checkpoint's layers under one naming."""

    naming: Naming
    batch_norm: bool
    blocks: dict[tuple[int, ...], dict[str, Step]] = field(default_factory=dict)
    """The steps of each block, by its numbers and in their order."""
    ends: dict[str, Step] = field(default_factory=dict)
    strays: list[str] = field(default_factory=list)
    """Layers that have no place."""
    missing: list[str] = field(default_factory=list)
    """Layers that should be there."""


def arrange(shapes: Shapes, namings: Sequence[Naming], family: str) -> Arrangement:
    """The arrangement under the naming that suits best, in which every layer has its place.

    Raises:
        NotInFamily: layers are left over or missing under every naming.
    """
    layers = Counter(_layer(name) for name in shapes)
    batch_norm = any(name.endswith(".running_mean") for name in shapes)
    found = min((_arrangement(naming, layers, batch_norm) for naming in namings), key=lambda a: _distance(a, layers))
    if not found.blocks:
        problem = f"no layer is named like one in its blocks, such as '{_example(namings[0])}'"
        raise NotInFamily(family, problem, distance=len(shapes))
    if found.strays:
        strays = set(found.strays)
        tensors = tuple(name for name in shapes if _layer(name) in strays)
        raise NotInFamily(family, "it has no place for", tensors, distance=_distance(found, layers))
    if found.missing:
        raise NotInFamily(family, "the checkpoint lacks its", tuple(found.missing))
    return found


def renamed(
    shapes: Shapes, found: Arrangement, prefixes: Sequence[str], layouts: Sequence[Layout], ends: Layout
) -> dict[str, str]:
    """The checkpoint's name of each tensor to ours.

    Args:
        shapes: the checkpoint's.
        found: its layers, all in their places.
        prefixes: what precedes our names of the layers within each block.
        layouts: our layouts of blocks, one for each combination of steps.
        ends: our layout of what lies before and after the blocks.
    """
    layers = _counterparts(found.ends, ends)
    for steps, prefix in zip(found.blocks.values(), prefixes, strict=True):
        layout = next(layout for layout in layouts if layout.keys() == steps.keys())
        layers |= {theirs: f"{prefix}{ours}" for theirs, ours in _counterparts(steps, layout).items()}
    return {name: f"{layers[_layer(name)]}.{name.rpartition('.')[2]}" for name in shapes}


def weight(shapes: Shapes, layer: str, dimensions: int, family: str) -> tuple[int, ...]:
    """The shape of a layer's weight: `[out, in / groups, height, width]` or `[out, in]`.

    Raises:
        NotInFamily: it has none of so many dimensions.
    """
    shape = shapes.get(f"{layer}.weight", ())
    if len(shape) != dimensions:
        kind = "convolution" if dimensions == 4 else "linear layer"
        raise NotInFamily(family, f"a layer is named like a {kind} but is none", (layer,))
    return shape


def activation_assumption(activations: str, found: Arrangement) -> str:
    author = found.naming.author
    return f"Activations leave no trace in a checkpoint; they are taken to be {activations}, as in {author}."


@contextmanager
def sizes_of(family: str) -> Iterator[None]:
    """Turns what a spec refuses into what rules its family out.

    Raises:
        NotInFamily: a spec that was made inside refused its fields.
    """
    try:
        yield
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        problem = f"no such network has its sizes ({place}{': ' if place else ''}{first['msg']})"
        raise NotInFamily(family, problem, distance=error.error_count()) from error


def _arrangement(naming: Naming, layers: Mapping[str, int], batch_norm: bool) -> Arrangement:
    found = Arrangement(naming, batch_norm)
    inside: dict[tuple[int, ...], dict[str, str]] = {}
    outside: dict[str, str] = {}
    expected = [name for step, names in naming.ends.items() for name in _present(step, names, batch_norm)]
    for layer in layers:
        end = next((name for name in expected if name not in outside and _pattern(name).fullmatch(layer)), None)
        place, member = _placed(layer, naming.block)
        if end:
            outside[end] = layer
        elif member and member not in inside.setdefault(place, {}):
            inside[place][member] = layer
        else:
            found.strays.append(layer)
    found.missing += [name for name in expected if name not in outside]
    found.ends = _steps(naming.ends, outside)
    for place, members in sorted(inside.items()):
        found.blocks[place] = _block(members, found)
    return found


def _block(members: Mapping[str, str], found: Arrangement) -> dict[str, Step]:
    """The steps of a block under the layout that suits its members, by their names within the block, best."""

    def expected(layout: Layout) -> set[str]:
        return {name for step, names in layout.items() for name in _present(step, names, found.batch_norm)}

    layout = min(found.naming.layouts, key=lambda layout: len(expected(layout) ^ members.keys()))
    found.strays += [layer for member, layer in members.items() if member not in expected(layout)]
    member, layer = next(iter(members.items()))
    prefix = layer.removesuffix(member)
    found.missing += [prefix + name for name in sorted(expected(layout) - members.keys())]
    return _steps(layout, members)


def _counterparts(theirs: Layout, ours: Layout) -> dict[str, str]:
    """Their layers to ours of the same step, of which they have only the first where batch norm was fused away."""
    return {their: our for step in theirs for their, our in zip(theirs[step], ours[step], strict=False)}


def _steps(layout: Layout, layers: Mapping[str, str]) -> dict[str, Step]:
    """The layers that are there under the names of a layout."""
    return {step: tuple(layers[name] for name in names if name in layers) for step, names in layout.items()}


def _present(step: str, names: Step, batch_norm: bool) -> Step:
    """The layers of a step of which something is left once batch norm was fused away."""
    return names if batch_norm or step == SQUEEZE else names[:1]


def _placed(layer: str, block: str) -> tuple[tuple[int, ...], str]:
    """The numbers of the block that a layer is in and its name there, which is empty for a layer in none."""
    found = _pattern(block, "(.+)").fullmatch(layer)
    if found is None:
        return (), ""
    *numbers, member = (group for group in found.groups() if group is not None)
    return tuple(int(number) for number in numbers), member


@cache
def _pattern(names: str, rest: str = "") -> re.Pattern[str]:
    """Numbers have at most nine digits, since Python refuses to read absurdly long ones."""
    alternatives = (re.escape(name).replace(r"\*", r"(\d{1,9})") for name in names.split("|"))
    return re.compile(f"(?:{'|'.join(alternatives)}){rest}")


def _distance(found: Arrangement, layers: Mapping[str, int]) -> int:
    """Tensors that have no place, and layers that are missing."""
    return sum(layers[layer] for layer in found.strays) + len(found.missing)


def _example(naming: Naming) -> str:
    first = next(iter(naming.layouts[0].values()))[0]
    return naming.block.split("|")[0].replace("*", "1") + first


def _layer(name: str) -> str:
    return name.rpartition(".")[0]
