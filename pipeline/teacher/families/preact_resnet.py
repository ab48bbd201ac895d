"""Pre-activation ResNets, WRN-d-k among them, as the usual CIFAR repositories name their tensors."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from compress.pipeline.networks.preact_resnet import Ending, PreActResNetSpec, Projected
from compress.pipeline.teacher.families import Candidate, NotInFamily, Shapes
from compress.pipeline.teacher.families.naming import sizes_of
from compress.pipeline.teacher.families.renaming import INDEX, Placed, Rules, place

_FAMILY = "pre-activation ResNet"

_NORM = r"(?:weight|bias|running_mean|running_var)"
_OURS = rf"""(?x)
    (?: stem\.0 | fc ) \.(?:weight|bias) | (?: stem\.1 | norm ) \.{_NORM}
    | stages\.{INDEX}\.{INDEX}\. (?: (?:residual\.conv[123] | downsample) \.(?:weight|bias)
                                   | (?:bn1 | residual\.bn[23]) \.{_NORM} )"""
_BLOCK = re.compile(r"stages\.(\d+)\.(\d+)\..+")


def _block(first_stage: int) -> Callable[[re.Match[str]], str]:
    """A block's name, where stages are counted from that number."""
    return lambda found: f"stages.{int(found[1]) - first_stage}.{found[2]}."


def _sequence(*layers: tuple[int, str]) -> tuple[str, Callable[[re.Match[str]], str]]:
    """The rule for a sequence `residual` that has those layers at those places."""
    names = {str(place): layer for place, layer in layers}
    return r"\.residual\.(\d)\.", lambda found: f".{names.get(found[1], 'unknown')}."


_LAYERS = (r"^(stages\.\d+\.\d+\.)(conv[123]|bn[23])\.", r"\1residual.\2.")
_LINEAR = (r"^linear\.", "fc.")
_AUTHORS: dict[str, Rules] = {
    "xternalz/WideResNet-pytorch": (
        (r"^conv1\.", "stem.0."),
        (r"^block(\d{1,4})\.layer\.(\d{1,4})\.", _block(1)),
        _LAYERS,
        (r"\.convShortcut\.", ".downsample."),
        (r"^bn1\.", "norm."),
    ),
    "kuangliu/pytorch-cifar": (
        (r"^conv1\.", "stem.0."),
        (r"^layer(\d{1,4})\.(\d{1,4})\.", _block(1)),
        _LAYERS,
        (r"\.shortcut\.0\.", ".downsample."),
        (r"^bn1?\.", "norm."),
        _LINEAR,
    ),
    "weiaicunzai/pytorch-cifar100, preactresnet.py": (
        (r"^pre\.", "stem."),
        (r"^stage(\d{1,4})\.(\d{1,4})\.", _block(1)),
        _sequence((0, "bn1"), (2, "conv1"), (3, "bn2"), (5, "conv2"), (6, "bn3"), (8, "conv3")),
        _LAYERS,
        (r"\.shortcut\.", ".downsample."),
        _LINEAR,
    ),
    "weiaicunzai/pytorch-cifar100, wideresidual.py": (
        (r"^conv(\d{1,4})\.(\d{1,4})\.", _block(2)),
        (r"^init_conv\.", "stem.0."),
        _sequence((0, "bn1"), (2, "conv1"), (3, "bn2"), (6, "conv2")),
        _LAYERS,
        (r"\.shortcut\.0\.", ".downsample."),
        (r"^bn\.", "norm."),
        _LINEAR,
    ),
}


@dataclass(frozen=True, slots=True)
class _Form:
    """What weights do not show, as one repository has it."""

    repository: str
    projected: Projected
    strided: Literal[1, 2]
    strided_bottleneck: Literal[1, 2]
    ending: Ending = "relu"
    """Where there is a last batch norm."""


_FORMS = {
    "xternalz/WideResNet-pytorch": (_Form("xternalz/WideResNet-pytorch", "activated", 1, 2),),
    "kuangliu/pytorch-cifar": (
        _Form("kuangliu/pytorch-cifar", "activated", 1, 2),
        _Form("meliketoy/wide-resnet.pytorch", "raw", 2, 2),
    ),
    "weiaicunzai/pytorch-cifar100, preactresnet.py": (_Form("weiaicunzai/pytorch-cifar100", "raw", 1, 1),),
    "weiaicunzai/pytorch-cifar100, wideresidual.py": (_Form("weiaicunzai/pytorch-cifar100", "raw", 1, 1, "norm"),),
}
"""By the author of the names; where two repositories have the same names, only the second has biases."""


def preact_resnet_candidates(shapes: Shapes) -> list[Candidate]:
    """The pre-activation ResNet that such tensors can be, in each form in which networks of these names are written.

    Raises:
        NotInFamily: tensors have no place in one, or those that its size is read off are missing or make no sense.
    """
    placed = place(shapes, _FAMILY, _AUTHORS, _OURS)
    forms = _FORMS[placed.author]
    if "stem.0.bias" in placed.shapes:
        forms = forms[::-1]
    specs = [(form, _spec(placed, form)) for form in forms]
    return [Candidate(spec, placed.names, _reasons(form, spec), (_assumption(form, spec),)) for form, spec in specs]


def _spec(placed: Placed, form: _Form) -> PreActResNetSpec:
    width, channels, *_ = placed.shape("stem.0.weight", 4)
    counts = _blocks_by_stage(placed)
    firsts = [placed.shape(f"stages.{stage}.0.residual.conv1.weight", 4) for stage in range(len(counts))]
    bottleneck = any(name.endswith("residual.conv3.weight") for name in placed.shapes)
    with sizes_of(_FAMILY):
        return PreActResNetSpec(
            block="bottleneck" if bottleneck else "basic",
            blocks=tuple(counts[str(stage)] for stage in range(len(counts))),
            widths=tuple(first[0] for first in firsts),
            stem_width=width,
            projected=form.projected,
            strided=form.strided_bottleneck if bottleneck else form.strided,
            stem_norm="stem.1.weight" in placed.shapes,
            ending=form.ending if "norm.weight" in placed.shapes else "none",
            conv_bias="stem.0.bias" in placed.shapes,
            channels=channels,
            num_classes=placed.shape("fc.weight", 2)[0],
        )


def _blocks_by_stage(placed: Placed) -> Counter[str]:
    """How many blocks each stage has a tensor of."""
    blocks = {(found[1], found[2]) for found in map(_BLOCK.fullmatch, placed.shapes) if found}
    if not blocks:
        raise NotInFamily(_FAMILY, "the checkpoint lacks its blocks", distance=len(placed.shapes))
    return Counter(stage for stage, _ in blocks)


def _assumption(form: _Form, spec: PreActResNetSpec) -> str:
    start = "behind the block's first batch norm and ReLU" if spec.projected == "activated" else "at the block's input"
    strided = "first" if spec.strided == 1 else "second"
    end = ", and no ReLU to follow the last batch norm" if spec.ending == "norm" else ""
    return (
        "Weights do not show where shortcuts start and which convolution has a block's stride; as in "
        f"{form.repository}, shortcuts that change shape are taken to start {start}, the {strided} convolution to have "
        f"the stride{end}."
    )


def _reasons(form: _Form, spec: PreActResNetSpec) -> tuple[str, ...]:
    blocks = " + ".join(str(count) for count in spec.blocks)
    convolutions = "three convolutions" if spec.block == "bottleneck" else "two convolutions"
    return (
        f"The tensors are named as in {form.repository}.",
        f"{len(spec.blocks)} stages of {blocks} blocks with {convolutions} each.",
        "The first batch norm of a block has the channels of its input, so it comes before the convolutions.",
    )
