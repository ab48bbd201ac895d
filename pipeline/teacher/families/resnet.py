"""Residual networks, whatever their author called the layers.

What a tensor is shows in its shape: four dimensions are a convolution, two the classifier, and a running mean makes a
batch norm. Names only have to say which stage and block a layer sits in, and whether on its shortcut; within a block
the layers are in the order of their names.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import mode
from typing import Any, Literal

from compress.pipeline.networks.resnet import ResNetSpec, Shortcut, Zeros
from compress.pipeline.teacher.families import Candidate, NotInFamily, Shapes
from compress.pipeline.teacher.families.naming import sizes_of

_FAMILY = "ResNet"

_BLOCK_MEMBER = re.compile(
    r"""(?:\w+\.)*?                                             # containers, such as `features.` or `resnet.encoder.`
    (?:layer|stage|block|group|conv)s?[._]?(?P<stage>\d{1,9})(?:_x)?\.  # `layer1`, `stages.0`, `conv2_x`
    (?:(?:layer|block|unit|bottleneck)s?[._]?)*(?P<block>\d{1,9})\. # `0`, `block1`, `blocks.0`
    (?P<rest>.+)""",
    re.VERBOSE,
)
_ON_SHORTCUT = re.compile(r"(?i)down|short|skip|proj|ident|residual_conv")
_STEM_KERNELS: dict[int, Literal["cifar", "imagenet"]] = {3: "cifar", 7: "imagenet"}
_DEEP_STEM = ["conv1.0", "conv1.3", "conv1.6"]
_DEEP_STEM_NORMS = ["bn1", "conv1.1", "conv1.4"]
"""Source: the names of timm and GluonCV, in natural order."""
_PLACE = re.compile(r"\.(\d{1,9})$")
_NO_WEIGHTS = (
    "Shortcuts without weights leave no trace in a checkpoint; they are taken to subsample and to pad with zero "
    "channels, {}."
)
_ZEROS: dict[Zeros, str] = {"around": "half before and half after", "after": "all after the others"}
_POOLED = (
    "What comes before the 1x1 convolution of a shortcut leaves no trace in a checkpoint; it is taken to average 2x2 "
    "pixels where the block has a stride (ResNet-D)."
)

_TENSORS = (1, 4, 2)
"""How many tensors a convolution, a batch norm and a linear layer have, batch counters left out."""


@dataclass(slots=True)
class _Layers:
    """The layers of one part of the network, by name in natural order."""

    convolutions: list[str] = field(default_factory=list)
    norms: list[str] = field(default_factory=list)
    linears: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    @property
    def modules(self) -> list[str]:
        return sorted([*self.convolutions, *self.norms, *self.linears, *self.others], key=_natural)


@dataclass(slots=True)
class _Block:
    path: _Layers = field(default_factory=_Layers)
    shortcut: _Layers = field(default_factory=_Layers)


@dataclass(frozen=True, slots=True)
class _Misfit:
    """One part of the network that has not the layers which a ResNet has there."""

    problem: str
    modules: list[str]
    tensors: int
    """How many are too many or too few, about."""


def resnet_candidates(shapes: Shapes) -> list[Candidate]:
    """The one ResNet that such tensors can be; two where shortcuts have no weights, since zeros can go to two places.

    Raises:
        NotInFamily: there are no stages of blocks, layers are missing or left over, or their shapes make no sense.
    """
    stages, rest = _arrange(shapes)
    _check_layers(stages, rest, shapes)
    spec = _spec(stages, rest, shapes)
    modules = _module_names(stages, rest, spec)
    names = {name: _renamed(name, modules) for name in shapes}
    reasons = _reasons(spec, shapes[f"{rest.convolutions[0]}.weight"])
    if spec.shortcut != "pad" or not _changes_shape(spec):
        return [Candidate(spec, names, reasons, (_POOLED,) if spec.shortcut == "pooled" else ())]
    return [
        Candidate(spec.model_copy(update={"zeros": zeros}), names, reasons, (_NO_WEIGHTS.format(place),))
        for zeros, place in _ZEROS.items()
    ]


def _arrange(shapes: Shapes) -> tuple[list[list[_Block]], _Layers]:
    """Sort layers into stages of blocks, and the rest: stem and classifier."""
    places: dict[int, dict[int, _Block]] = {}
    rest = _Layers()
    for module in sorted({name.rpartition(".")[0] for name in shapes}, key=_natural):
        member = _BLOCK_MEMBER.fullmatch(module)
        if member is None:
            _add(rest, module, shapes)
            continue
        block = places.setdefault(int(member["stage"]), {}).setdefault(int(member["block"]), _Block())
        _add(block.shortcut if _ON_SHORTCUT.search(member["rest"]) else block.path, module, shapes)
    return [[blocks[index] for index in sorted(blocks)] for _, blocks in sorted(places.items())], rest


def _add(layers: _Layers, module: str, shapes: Shapes) -> None:
    weight = shapes.get(f"{module}.weight", ())
    if f"{module}.running_mean" in shapes:
        layers.norms.append(module)
    elif 0 in weight:
        layers.others.append(module)
    else:
        {4: layers.convolutions, 2: layers.linears}.get(len(weight), layers.others).append(module)


def _natural(name: str) -> list[tuple[int, str]]:
    """A sort key that puts `10` after `9`; of absurdly long numbers, which Python refuses to read, it makes several."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d{1,9})", name)]


def _spec(stages: list[list[_Block]], rest: _Layers, shapes: Shapes) -> ResNetSpec:
    firsts = [[shapes[f"{module}.weight"] for module in blocks[0].path.convolutions] for blocks in stages]
    bottleneck = len(firsts[0]) == 3
    widths = tuple(max(convolutions[-1][0] // (4 if bottleneck else 1), 1) for convolutions in firsts)
    inner, inner_inputs = firsts[0][1][:2]
    groups = max(inner // inner_inputs, 1) if bottleneck else 1
    stem = _stem(rest, shapes)
    with sizes_of(_FAMILY):
        return ResNetSpec(
            **stem,
            block="bottleneck" if bottleneck else "basic",
            shortcut=_shortcut_kind(stages, shapes),
            blocks=tuple(len(blocks) for blocks in stages),
            widths=widths,
            groups=groups,
            base_width=64 * inner // (widths[0] * groups) if bottleneck else 64,
            num_classes=shapes[f"{rest.linears[0]}.weight"][0],
            batch_norm=bool(rest.norms),
        )


def _stem(rest: _Layers, shapes: Shapes) -> dict[str, Any]:
    """The fields of the spec that the first convolutions show."""
    stem = [shapes[f"{module}.weight"] for module in rest.convolutions]
    fields = {"stem_width": stem[-1][0], "channels": stem[0][1]}
    if len(stem) == 3:
        return fields | {"stem": "imagenet", "deep_stem": tuple(shape[0] for shape in stem[:-1])}
    height, width = stem[0][2:]
    if height != width or height not in _STEM_KERNELS:
        raise NotInFamily(_FAMILY, f"the stem is {height}x{width} and not 3x3 or 7x7", (rest.convolutions[0],))
    return fields | {"stem": _STEM_KERNELS[height]}


def _check_layers(stages: list[list[_Block]], rest: _Layers, shapes: Shapes) -> None:
    """Every part has exactly the layers that a ResNet has there."""
    if not stages:
        problem = "no layer is named like one in a stage of blocks, such as 'layer1.0.conv1'"
        raise NotInFamily(_FAMILY, problem, tuple(rest.modules), distance=len(shapes))
    misfits = list(_misfits(stages, rest))
    others = {module for layers in _parts(stages, rest) for module in layers.others}
    if others:
        tensors = tuple(name for name in shapes if name.rpartition(".")[0] in others)
        problem, distance = "a layer is neither convolution, batch norm nor classifier", len(tensors)
    elif misfits:
        problem, tensors, distance = misfits[0].problem, tuple(misfits[0].modules), 0
    else:
        return
    raise NotInFamily(_FAMILY, problem, tensors, distance=distance + sum(misfit.tensors for misfit in misfits))


def _parts(stages: list[list[_Block]], rest: _Layers) -> Iterator[_Layers]:
    yield rest
    for blocks in stages:
        for block in blocks:
            yield from (block.path, block.shortcut)


def _misfits(stages: list[list[_Block]], rest: _Layers) -> Iterator[_Misfit]:
    all_blocks = [block for blocks in stages for block in blocks]
    deep = rest.convolutions == _DEEP_STEM and rest.norms in ([], _DEEP_STEM_NORMS)
    stem, normed = 3 if deep else 1, bool(rest.norms)
    length = min(max(mode(len(block.path.convolutions) for block in all_blocks), 2), 3)
    yield from _misfit(rest, "stem and classifier", stem, stem * normed, linears=1)
    for block in all_blocks:
        yield from _misfit(block.path, "a block", length, length * normed)
        projections = min(len(block.shortcut.convolutions), 1)
        yield from _misfit(block.shortcut, "a shortcut", projections, min(len(block.shortcut.norms), projections))
    places = {_place(shortcut) for shortcut in _projecting(stages)}
    if len(places) > 1 or max(places, default=0) > 1:
        modules = [module for shortcut in _projecting(stages) for module in shortcut.modules if _place(shortcut)]
        yield _Misfit("a shortcut does something without weights before it projects", modules, len(modules))


def _misfit(layers: _Layers, where: str, convolutions: int, norms: int, linears: int = 0) -> Iterator[_Misfit]:
    """The part if it has not as many layers of each kind as given."""
    counts, expected = (
        [len(layers.convolutions), len(layers.norms), len(layers.linears)],
        [convolutions, norms, linears],
    )
    if counts != expected:
        problem = (
            f"{where} has {counts[0]} convolutions, {counts[1]} batch norms and {counts[2]} linear layers "
            f"instead of {convolutions}, {norms} and {linears}"
        )
        differences = (abs(count - wanted) for count, wanted in zip(counts, expected, strict=True))
        tensors = sum(difference * size for difference, size in zip(differences, _TENSORS, strict=True))
        yield _Misfit(problem, [*layers.convolutions, *layers.norms, *layers.linears], tensors)


def _projecting(stages: list[list[_Block]]) -> list[_Layers]:
    """The shortcuts that have weights."""
    return [block.shortcut for blocks in stages for block in blocks if block.shortcut.convolutions]


def _place(shortcut: _Layers) -> int:
    """Which of a shortcut's layers its convolution is, counted from zero."""
    found = _PLACE.search(shortcut.convolutions[0])
    return int(found[1]) if found else 0


def _shortcut_kind(stages: list[list[_Block]], shapes: Shapes) -> Shortcut:
    shortcuts = _projecting(stages)
    if not shortcuts:
        return "pad"
    if _place(shortcuts[0]) == 1:
        return "pooled"
    normed = any(shortcut.norms or f"{shortcut.convolutions[0]}.bias" in shapes for shortcut in shortcuts)
    return "projection" if normed else "linear"


def _module_names(stages: list[list[_Block]], rest: _Layers, spec: ResNetSpec) -> dict[str, str]:
    """Each module of the checkpoint to its name in `networks.resnet`."""
    names = _rest_names(rest, spec)
    place = 1 if spec.shortcut == "pooled" else 0
    projection = "downsample" if spec.shortcut == "linear" else f"downsample.{place}"
    for stage, blocks in enumerate(stages, start=1):
        for index, block in enumerate(blocks):
            here = f"layer{stage}.{index}."
            names |= {module: f"{here}conv{i}" for i, module in enumerate(block.path.convolutions, start=1)}
            names |= {module: f"{here}bn{i}" for i, module in enumerate(block.path.norms, start=1)}
            names |= dict.fromkeys(block.shortcut.convolutions, f"{here}{projection}")
            names |= dict.fromkeys(block.shortcut.norms, f"{here}downsample.{place + 1}")
    return names


def _rest_names(rest: _Layers, spec: ResNetSpec) -> dict[str, str]:
    classifier = {rest.linears[0]: "fc"}
    if spec.deep_stem:
        return {module: module for module in [*rest.convolutions, *rest.norms]} | classifier
    return {rest.convolutions[0]: "conv1"} | dict.fromkeys(rest.norms, "bn1") | classifier


def _renamed(name: str, modules: dict[str, str]) -> str:
    module, _, tensor = name.rpartition(".")
    return f"{modules[module]}.{tensor}"


def _changes_shape(spec: ResNetSpec) -> bool:
    return len(spec.blocks) > 1 or spec.stem_width != spec.widths[0] * spec.expansion


def _reasons(spec: ResNetSpec, stem: tuple[int, ...]) -> tuple[str, ...]:
    first = f"The first convolution is {stem[2]}x{stem[3]}"
    if spec.deep_stem:
        first = "The first convolution is 3x3, as are the two others of a deep stem"
    form = "the CIFAR form" if spec.stem == "cifar" else "the ImageNet form"
    blocks = " + ".join(str(count) for count in spec.blocks)
    convolutions = "three convolutions" if spec.block == "bottleneck" else "two convolutions"
    shortcuts = {
        "pad": "no shortcut has weights, so they pad (option A)",
        "projection": "shortcuts that change shape have a 1x1 convolution (option B)",
        "linear": "shortcuts that change shape have a 1x1 convolution without batch norm",
        "pooled": "shortcuts that change shape have a 1x1 convolution in second place",
    }
    return (
        f"{first}: {form}.",
        f"{len(spec.blocks)} stages of {blocks} blocks with {convolutions} each; {shortcuts[spec.shortcut]}.",
    )
