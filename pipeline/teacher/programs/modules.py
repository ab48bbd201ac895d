"""Networks that come as Python modules: their answers made plain, their weights loaded by name, their input found out."""

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from compress.pipeline.errors import InputError
from compress.pipeline.networks.spec import NetworkSpec
from compress.pipeline.teacher.checkpoint import Program
from compress.pipeline.teacher.readers.formats import printable
from compress.pipeline.teacher.readers.weights import without_wrappers

LARGE, SMALL = 224, 32
"""Pixels of ImageNet's and of CIFAR's images: what a network takes that does not say."""

LEAST_STRIDE = 16
"""Networks for large images subsample by 32; one that subsamples by less than this was made for small ones."""

BLANK_IMAGES = 2
"""Given to a network to see what it takes."""

USUAL_SIZES = (LARGE, SMALL, 28, 64, 96, 128, 256, 384, 512, 16, 8)
"""Pixels that are tried, in this order, on a network that does not say."""


class NoTensorError(TypeError):
    """A network answers with something else, which no other size of images changes."""


class Classifier(nn.Module):
    """A module of any author behind one answer: normalised images `[N, C, H, W]` to a tensor."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.float().eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        answer = self.module(images)
        found = answer if isinstance(answer, Tensor) else getattr(answer, "logits", None)
        if not isinstance(found, Tensor):
            raise NoTensorError(f"the network answers with {type(answer).__name__} and not with a tensor")
        return found


class ProgramSpec(NetworkSpec):
    """A network that is known only by its graph or code, and that no student can be derived from."""

    family: Literal["program"] = "program"
    form: str
    size: int

    @property
    def name(self) -> str:
        return "program"

    @property
    def title(self) -> str:
        return self.form

    @property
    def usual_size(self) -> int:
        return self.size

    @property
    def minimum_size(self) -> int:
        return 1


def code_sha256(module: nn.Module, *builders: object) -> str:
    """Digest of the files that define the classes of a network and of its parts, torch's own left out.

    Args:
        module: the network.
        builders: the module with the function that built it, and the name that this goes by.
    """
    classes = {type(part) for part in module.modules() if not type(part).__module__.startswith("torch.")}
    digests = sorted({_source_sha256(thing) for thing in (*classes, *builders)})
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _source_sha256(thing: Any) -> str:
    try:
        source = inspect.getsourcefile(thing)
        content = Path(source).read_bytes() if source else b""
    except (TypeError, OSError):  # a name, or a class that was made without a file
        content = str(getattr(thing, "__qualname__", thing)).encode()
    return hashlib.sha256(content).hexdigest()


def load_by_name(module: nn.Module, tensors: Mapping[str, Tensor], name: str) -> None:
    """Load a checkpoint's tensors, whose names have lost their wrappers' prefixes; each must land, and none be missing.

    Raises:
        InputError: the names or shapes differ; the sentence names the first that do.
    """
    state = {key: tensor for key, tensor in module.state_dict().items() if not key.endswith("num_batches_tracked")}
    places = dict(zip(without_wrappers(state), state, strict=True))
    expected = {plain: tuple(state[key].shape) for plain, key in places.items()}
    problems = [
        *(f"'{printable(key)}' has no place in it" for key in tensors if key not in expected),
        *(f"'{printable(key)}' is missing" for key in expected if key not in tensors),
        *(
            f"'{printable(key)}' is {list(tensor.shape)} and not {list(expected[key])}"
            for key, tensor in tensors.items()
            if expected.get(key, tuple(tensor.shape)) != tuple(tensor.shape)
        ),
    ]
    if problems:
        raise misfit(problems, name)
    module.load_state_dict({places[key]: tensor for key, tensor in tensors.items()}, strict=False)


def misfit(problems: Sequence[str], name: str) -> InputError:
    """The refusal of weights that do not fit a network, with the first of the problems, a clause each."""
    more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
    return InputError(
        f"The weights of '{name}' do not fit the network: {'; '.join(problems[:3])}{more}.",
        "Build the network with the very options that it was trained with, the number of classes above all.",
    )


def describe(program: Program, asked: tuple[int, int] | None, name: str) -> ProgramSpec:
    """Channels, size and classes of a program, found by giving it a blank image.

    Args:
        program: the network.
        asked: height and width in pixels, where the user or the file's metadata state them.
        name: the file's, for messages.

    Raises:
        InputError: it takes no blank image of any usual size, or does not answer `[N, K]`.
    """
    shape = program.input_shape or (None, None, None, None)
    if len(shape) != 4:
        raise InputError(f"'{name}' takes an input of {len(shape)} dimensions; an image has four: [N, C, H, W].")
    stated = asked or ((shape[2], shape[3]) if shape[2] and shape[3] else None)
    sizes = (stated,) if stated else tuple((pixels, pixels) for pixels in USUAL_SIZES)
    failure = ""
    for size, channels in product(sizes, (shape[1],) if shape[1] else _channels(program.network)):
        try:
            answer, failure = _answer(program.network, (channels, *size))
        except NoTensorError as error:
            raise InputError(
                f"In '{name}', {error}.", "Wrap it in a module whose answer is its logits alone."
            ) from error
        if answer is not None:
            pixels = size[0] if stated else _suited(program.network, (channels, *size))
            return ProgramSpec(form=program.title, size=pixels, channels=channels, num_classes=_classes(answer, name))
    tried = f"{stated[0]}x{stated[1]} pixels" if stated else "any usual size"
    hint = "Give another --input-size, or none." if asked else "Give its size with --input-size."
    raise InputError(f"'{name}' does not take a blank image of {tried}: {failure}.", hint)


def _channels(network: nn.Module) -> tuple[int, ...]:
    """Of the first convolution, where there is one to be seen; else colour or grey."""
    first = next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None)
    return (3, 1) if first is None else (first.in_channels,)


@torch.no_grad()
def _answer(network: nn.Module, shape: tuple[int, int, int]) -> tuple[Tensor | None, str]:
    """What the network says to blank images `[C, H, W]`, or why it cannot.

    They are two, since code that flattens with a fixed shape takes one image of a wrong size for several of the right.
    """
    try:
        answer: Tensor = network(torch.zeros(BLANK_IMAGES, *shape))
    except NoTensorError:
        raise
    except Exception as error:  # noqa: BLE001  any operator may refuse a shape in its own way
        return None, printable(str(error).strip().partition("\n")[0]).rstrip(".") or type(error).__name__
    if answer.dim() == 2 and len(answer) != BLANK_IMAGES:
        return None, f"it answers {BLANK_IMAGES} images with a tensor {list(answer.shape)}"
    return answer, ""


def _classes(answer: Tensor, name: str) -> int:
    if answer.dim() != 2 or not answer.is_floating_point():
        raise InputError(
            f"'{name}' answers an image with {answer.dtype} of shape {list(answer.shape)}; a classifier answers [N, K].",
            "Detectors, segmenters and networks without their last layer cannot be compressed.",
        )
    return answer.shape[1]


@torch.no_grad()
def _suited(network: nn.Module, shape: tuple[int, int, int]) -> int:
    """The pixels that were taken, or few where the network hardly subsamples many and takes few as well."""
    channels, pixels, _ = shape
    if pixels != LARGE or _answer(network, (channels, SMALL, SMALL))[0] is None:
        return pixels
    widths: list[int] = []

    def keep(_: nn.Module, entering: tuple[Tensor, ...]) -> None:
        if entering[0].dim() == 4:
            widths.append(entering[0].shape[-1])

    with ExitStack() as hooks:
        for norm in (module for module in network.modules() if isinstance(module, nn.BatchNorm2d)):
            hooks.enter_context(norm.register_forward_pre_hook(keep))
        network(torch.zeros(1, *shape))
    return SMALL if widths and pixels < LEAST_STRIDE * min(widths) else pixels
