"""What images a teacher takes: its own size and normalisation where the checkpoint or the user says, else the usual."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from compress.pipeline.errors import CompressError, InputError, UsageError
from compress.pipeline.networks import NetworkSpec
from compress.pipeline.records import InputSpec
from compress.pipeline.teacher.readers.weights import is_dense

LARGEST_SIZE = 1024
"""Pixels; synthesis of larger images is out of reach."""

_SMALLEST_STD = 1e-6
_MOST_NUMBERS = 64
_HUGE = 1e6
"""No size in pixels, mean or standard deviation is that large; infinity and NaN fail the comparison, too."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Source: https://docs.pytorch.org/vision/stable/models.html, the normalisation of the pre-trained weights."""


@dataclass(frozen=True, slots=True)
class _Hints:
    """What one source says about the input; None where it says nothing."""

    source: str
    error: type[CompressError]
    """What a senseless value of this source is."""
    size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def resolve_input(
    spec: NetworkSpec,
    metadata: Mapping[str, object],
    *,
    input_size: int | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
) -> InputSpec:
    """Arguments count before the checkpoint's metadata, and these before what is usual for the architecture.

    Args:
        spec: the teacher's architecture.
        metadata: `input_size`, `mean` and `std`, those that the checkpoint carries.
        input_size: height and width in pixels.
        mean: one number a channel, of images in [0, 1].
        std: likewise.

    Raises:
        UsageError: an argument does not fit the architecture or is out of range.
        InputError: the checkpoint's metadata do not.
    """
    size = None if input_size is None else (input_size, input_size)
    hints = (_Hints("the command line", UsageError, size, mean, std), _from_metadata(metadata), *_usual(spec))
    (height, width), size_hint = next((hint.size, hint) for hint in hints if hint.size is not None)
    means, mean_hint = next((hint.mean, hint) for hint in hints if hint.mean is not None)
    stds, std_hint = next((hint.std, hint) for hint in hints if hint.std is not None)
    _check_size((height, width), spec, size_hint)
    _check_channels("mean", means, 0.0, spec, mean_hint)
    _check_channels("std", stds, _SMALLEST_STD, spec, std_hint)
    parts = (("size", size_hint), ("mean", mean_hint), ("std", std_hint))
    sources = dict.fromkeys(hint.source for _, hint in parts)
    named = {source: [part for part, hint in parts if hint.source == source] for source in sources}
    source = "; ".join(f"{_listed(parts)} from {source}" for source, parts in named.items())
    return InputSpec(channels=spec.channels, height=height, width=width, mean=means, std=stds, source=source)


def _listed(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))


def stated_size(metadata: Mapping[str, object], input_size: int | None) -> tuple[int, int] | None:
    """Height and width in pixels, where an argument or the checkpoint's metadata give them.

    Raises:
        UsageError: the argument is no size of an image that is within reach.
        InputError: the metadata are senseless, or such a size.
    """
    size = None if input_size is None else (input_size, input_size)
    hints = _from_metadata(metadata) if size is None else _Hints("the command line", UsageError, size)
    if hints.size and not all(1 <= pixels <= LARGEST_SIZE for pixels in hints.size):
        raise hints.error(
            f"Images of {hints.size[0]}x{hints.size[1]} pixels (from {hints.source}) are out of reach.",
            f"--input-size can be from 1 to {LARGEST_SIZE}.",
        )
    return hints.size


def _usual(spec: NetworkSpec) -> tuple[_Hints, _Hints]:
    source = "what the network takes" if spec.family == "program" else "what is usual for the architecture"
    size = _Hints(source, InputError, size=(spec.usual_size, spec.usual_size))
    if spec.channels == 3:
        return size, _Hints("ImageNet, for want of better knowledge", InputError, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    half = (0.5,) * spec.channels
    return size, _Hints("the middle of [0, 1], for want of better knowledge", InputError, mean=half, std=half)


def _from_metadata(metadata: Mapping[str, object]) -> _Hints:
    """Metadata in the shapes that training code gives them: numbers, lists, tensors, and sizes with channels in front."""
    size = _numbers("input_size", metadata)
    pixels = None if size is None else (int((size * 2)[-2]), int(size[-1]))
    mean, std = _numbers("mean", metadata), _numbers("std", metadata)
    return _Hints("the checkpoint's metadata", InputError, pixels, mean, std)


def _numbers(key: str, metadata: Mapping[str, object]) -> tuple[float, ...] | None:
    value = metadata.get(key)
    if value is None:
        return None
    small = isinstance(value, Tensor) and is_dense(value) and value.numel() <= _MOST_NUMBERS
    listed = value.flatten().tolist() if isinstance(value, Tensor) and small else value
    values = listed if isinstance(listed, list | tuple) else [listed]
    numbers = tuple(float(number) for number in values if isinstance(number, int | float) and abs(number) < _HUGE)
    if not numbers or len(numbers) < len(values):
        raise InputError(
            f"The checkpoint's metadata have no sensible '{key}': it is not one or a few finite numbers.",
            "Take it out of the checkpoint, and give the option of that name.",
        )
    return numbers


def _check_size(size: tuple[int, int], spec: NetworkSpec, hints: _Hints) -> None:
    least, most = spec.minimum_size, min(spec.maximum_size or LARGEST_SIZE, LARGEST_SIZE)
    if all(least <= pixels <= most for pixels in size):
        return
    sizes = f"can only be {most}" if least == most else f"can be from {least} to {most}"
    raise hints.error(
        f"{spec.title} cannot take images of {size[0]}x{size[1]} pixels (from {hints.source}).",
        f"--input-size {sizes}." if least <= most else f"Images larger than {LARGEST_SIZE} pixels are out of reach.",
    )


def _check_channels(key: str, values: tuple[float, ...], least: float, spec: NetworkSpec, hints: _Hints) -> None:
    given = ", ".join(f"{value:g}" for value in values)
    if len(values) != spec.channels:
        raise hints.error(
            f"The teacher takes {spec.channels} channels, but {hints.source} gives {len(values)} for {key}: {given}.",
            f"Give --{key} with {spec.channels} numbers.",
        )
    if not all(least <= value <= 1 for value in values):
        raise hints.error(
            f"{hints.source.capitalize()} gives {key} {given}, which does not suit images in [0, 1].",
            "Divide by 255 what was computed on bytes.",
        )
