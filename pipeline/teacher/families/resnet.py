"""Residual networks, whatever their author called the layers.

What a tensor is shows in its shape: four dimensions are a convolution, two the classifier, and a running mean makes a
batch norm. Names only have to say which stage and block a layer sits in, and whether on its shortcut; within a block
the layers are in the order of their names.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from compress.pipeline.networks.resnet import ResNetSpec, Shortcut
from compress.pipeline.teacher.families import Candidate, NotInFamily, Shapes

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
_PAD_ASSUMPTION = (
    "Shortcuts without weights leave no trace in a checkpoint; they are taken to subsample and to pad with zero channels, "
    "half before and half after."
)


@dataclass(slots=True)
class _Layers:
    """The convolutions, batch norms and linear layers of one part of the network, by name in natural order."""

    convolutions: list[str] = field(default_factory=list)
    norms: list[str] = field(default_factory=list)
    linears: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Block:
    path: _Layers = field(default_factory=_Layers)
    shortcut: _Layers = field(default_factory=_Layers)


def resnet_candidates(shapes: Shapes) -> list[Candidate]:
    """The one ResNet that such tensors can be.

    Raises:
        NotInFamily: there are no stages of blocks, or layers are left over.
    """
    stages, rest = _arrange(shapes)
    spec = _spec(stages, rest, shapes)
    names = {name: _renamed(name, _module_names(stages, rest, spec)) for name in shapes}
    assumptions = (_PAD_ASSUMPTION,) if spec.shortcut == "pad" and _changes_shape(spec) else ()
    return [Candidate(spec, names, _reasons(spec, shapes[f"{rest.convolutions[0]}.weight"]), assumptions)]


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
    dimensions = len(shapes.get(f"{module}.weight", ()))
    if f"{module}.running_mean" in shapes:
        layers.norms.append(module)
    elif dimensions == 4:
        layers.convolutions.append(module)
    elif dimensions == 2:
        layers.linears.append(module)
    else:
        left_over = tuple(name for name in shapes if name.rpartition(".")[0] == module)
        raise NotInFamily(_FAMILY, "a layer is neither convolution, batch norm nor classifier", left_over)


def _natural(name: str) -> list[tuple[int, str]]:
    """A sort key that puts `10` after `9`; of absurdly long numbers, which Python refuses to read, it makes several."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d{1,9})", name)]


def _spec(stages: list[list[_Block]], rest: _Layers, shapes: Shapes) -> ResNetSpec:
    _check_layers(stages, rest)
    stem, classifier = shapes[f"{rest.convolutions[0]}.weight"], shapes[f"{rest.linears[0]}.weight"]
    if stem[2] != stem[3] or stem[2] not in _STEM_KERNELS:
        raise NotInFamily(_FAMILY, f"the stem is {stem[2]}x{stem[3]} and not 3x3 or 7x7", (rest.convolutions[0],))
    firsts = [[shapes[f"{module}.weight"] for module in blocks[0].path.convolutions] for blocks in stages]
    bottleneck = len(firsts[0]) == 3
    widths = tuple(max(convolutions[-1][0] // (4 if bottleneck else 1), 1) for convolutions in firsts)
    inner, inner_inputs = firsts[0][1][:2]
    groups = max(inner // inner_inputs, 1) if bottleneck else 1
    return ResNetSpec(
        stem=_STEM_KERNELS[stem[2]],
        block="bottleneck" if bottleneck else "basic",
        shortcut=_shortcut_kind(stages, shapes),
        blocks=tuple(len(blocks) for blocks in stages),
        widths=widths,
        stem_width=stem[0],
        groups=groups,
        base_width=64 * inner // (widths[0] * groups) if bottleneck else 64,
        channels=stem[1],
        num_classes=classifier[0],
        batch_norm=bool(rest.norms),
    )


def _check_layers(stages: list[list[_Block]], rest: _Layers) -> None:
    """Every part has exactly the layers that a ResNet has there."""
    if not stages:
        raise NotInFamily(
            _FAMILY, "no layer is named like one in a stage of blocks, such as 'layer1.0.conv1'", _modules(rest)
        )
    _expect(rest, "stem and classifier", convolutions=(1,), norms=(0, 1), linears=(1,))
    has_norms, length = bool(rest.norms), len(stages[0][0].path.convolutions)
    for block in (block for blocks in stages for block in blocks):
        path, shortcut = block.path, block.shortcut
        _expect(path, "a block", convolutions=(2, 3), norms=(len(path.convolutions) if has_norms else 0,), linears=(0,))
        _expect(shortcut, "a shortcut", convolutions=(0, 1), norms=(0, len(shortcut.convolutions)), linears=(0,))
        if len(path.convolutions) != length:
            raise NotInFamily(_FAMILY, "blocks of two and of three convolutions are mixed", _modules(path))
        if any(re.search(r"\.[1-9]\d*$", module) for module in shortcut.convolutions):
            raise NotInFamily(
                _FAMILY, "a shortcut does something without weights before it projects", _modules(shortcut)
            )


def _expect(
    layers: _Layers, where: str, *, convolutions: Iterable[int], norms: Iterable[int], linears: Iterable[int]
) -> None:
    found = (len(layers.convolutions), len(layers.norms), len(layers.linears))
    if found[0] not in convolutions or found[1] not in norms or found[2] not in linears:
        problem = f"{where} has {found[0]} convolutions, {found[1]} batch norms and {found[2]} linear layers"
        raise NotInFamily(_FAMILY, problem, _modules(layers))


def _modules(layers: _Layers) -> tuple[str, ...]:
    return tuple(sorted([*layers.convolutions, *layers.norms, *layers.linears], key=_natural))


def _shortcut_kind(stages: list[list[_Block]], shapes: Shapes) -> Shortcut:
    shortcuts = [block.shortcut for blocks in stages for block in blocks if block.shortcut.convolutions]
    if not shortcuts:
        return "pad"
    normed = any(shortcut.norms or f"{shortcut.convolutions[0]}.bias" in shapes for shortcut in shortcuts)
    return "projection" if normed else "linear"


def _module_names(stages: list[list[_Block]], rest: _Layers, spec: ResNetSpec) -> dict[str, str]:
    """Each module of the checkpoint to its name in `networks.resnet`."""
    names = {rest.convolutions[0]: "conv1", rest.linears[0]: "fc"} | dict.fromkeys(rest.norms, "bn1")
    projection = "downsample" if spec.shortcut == "linear" else "downsample.0"
    for stage, blocks in enumerate(stages, start=1):
        for index, block in enumerate(blocks):
            here = f"layer{stage}.{index}."
            names |= {module: f"{here}conv{i}" for i, module in enumerate(block.path.convolutions, start=1)}
            names |= {module: f"{here}bn{i}" for i, module in enumerate(block.path.norms, start=1)}
            names |= dict.fromkeys(block.shortcut.convolutions, f"{here}{projection}")
            names |= dict.fromkeys(block.shortcut.norms, f"{here}downsample.1")
    return names


def _renamed(name: str, modules: dict[str, str]) -> str:
    module, _, tensor = name.rpartition(".")
    return f"{modules[module]}.{tensor}"


def _changes_shape(spec: ResNetSpec) -> bool:
    return len(spec.blocks) > 1 or spec.stem_width != spec.widths[0] * spec.expansion


def _reasons(spec: ResNetSpec, stem: tuple[int, ...]) -> tuple[str, ...]:
    kernel = f"{stem[2]}x{stem[3]}"
    blocks = " + ".join(str(count) for count in spec.blocks)
    convolutions = "three convolutions" if spec.block == "bottleneck" else "two convolutions"
    shortcuts = {
        "pad": "no shortcut has weights, so they pad (option A)",
        "projection": "shortcuts that change shape have a 1x1 convolution (option B)",
        "linear": "shortcuts that change shape have a 1x1 convolution without batch norm",
    }
    return (
        f"The first convolution is {kernel}: the {'CIFAR' if spec.stem == 'cifar' else 'ImageNet'} form.",
        f"{len(spec.blocks)} stages of {blocks} blocks with {convolutions} each; {shortcuts[spec.shortcut]}.",
    )
