"""Reads a torch.export program as a teacher: built anew from its graph, in evaluation mode, for any number of images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from compress.pipeline.errors import InputError
from compress.pipeline.teacher.checkpoint import Program
from compress.pipeline.teacher.programs.dataflow import needed
from compress.pipeline.teacher.programs.dry_run import shape_of_answer
from compress.pipeline.teacher.programs.exported.any_batch import StatedShapes, for_any_batch
from compress.pipeline.teacher.programs.exported.archive import DTYPES, ExportedArchive, read_archive
from compress.pipeline.teacher.programs.exported.calls import float32_for
from compress.pipeline.teacher.programs.exported.document import EXPORT_HINT, Signature, TensorMeta, Value
from compress.pipeline.teacher.programs.exported.nodes import translate
from compress.pipeline.teacher.programs.graph import ProgramGraph, ValueRef, build_network
from compress.pipeline.teacher.readers.files import DAMAGED_HINT, memory_limit
from compress.pipeline.teacher.readers.formats import printable
from compress.pipeline.teacher.readers.weights import tidy

TRAINING_WARNING = (
    "The program was exported in training mode; it is read as in evaluation mode, without dropout and with the batch "
    "norms' recorded statistics."
)

_CLASSIFIER_HINT = "Export a program that takes one batch of images [N, C, H, W] and answers with logits [N, K]."

_USUAL_EXAMPLE = (2, 3, 224, 224)
"""What is taken for the images that a program was exported with, where it does not say."""

_TOLERANCE = 1e-3
"""Of the largest answer: far more than rounding, far less than what another image in the batch would change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedProgram:
    """What a file holds."""

    program: Program
    tensors: dict[str, Tensor]
    """Parameters and floating-point buffers, dense float32, under names without wrappers' prefixes."""
    batches_tracked: Mapping[str, int]
    """Batches that each batch norm has seen in training, by the name of its module."""
    warnings: tuple[str, ...]


def read_exported(data: bytearray, name: str) -> ExportedProgram:
    """Read a program that `torch.export.save` wrote. Nothing of it is executed, and no pickle of it is loaded.

    Args:
        data: the file.
        name: the file's, for messages.

    Raises:
        UnsafeInputError: its tensors are stored as pickles of something other than tensors.
        InputError: it is damaged, declares too much, uses an operator that a teacher may not, or is no classifier.
    """
    archive = read_archive(data, name)
    tidied = tidy({key: tensor.tensor() for key, tensor in archive.weights.items()}, name, memory_limit(len(data)))
    program, training = _program(archive, name)
    return ExportedProgram(
        program=program,
        tensors=tidied.tensors,
        batches_tracked=tidied.batches_tracked,
        warnings=(*([TRAINING_WARNING] if training else []), *tidied.notes),
    )


def _program(archive: ExportedArchive, name: str) -> tuple[Program, bool]:
    """The network, and whether it was exported in training mode."""
    module = archive.document.graph_module
    images, answer = _ends(module.signature, name)
    meta = _image_meta(module.graph.tensor_values.get(images), name)
    stored = dict(spec.stored for spec in module.signature.input_specs if spec.stored)
    translation = translate(module.graph, images, stored, name)
    result = translation.names[answer]
    if not isinstance(result, ValueRef):
        raise InputError(f"'{name}' answers with one of its tensors, whatever the images are.", _CLASSIFIER_HINT)
    graph = ProgramGraph(images, needed(translation.operations, result.value), result.value)
    stated = {key: value.shape for key, value in module.graph.tensor_values.items()}
    example = tuple(size.example or usual for size, usual in zip(meta.sizes, _USUAL_EXAMPLE, strict=True))
    network = _network(graph, stated, _used_tensors(archive, stored, name), example[1:], name)
    title = f"torch.export program of {len(graph.operations)} operations"
    return Program(network=network, title=title, input_shape=(None, *meta.shape[1:])), translation.training


def _network(
    graph: ProgramGraph, stated: StatedShapes, tensors: Mapping[str, Tensor], image: tuple[int, ...], name: str
) -> nn.Module:
    """The network, proven on noise to answer each image for itself, however many there are."""
    failures: list[InputError] = []
    for images_last in (False, True):
        try:
            freed = for_any_batch(graph, stated, tensors, name, images_last=images_last)
            freed = replace(freed, operations=needed(freed.operations, freed.output))
            _check_answer(freed, tensors, image, name)
            network = build_network(freed, tensors, name)
            _check_independence(network, image, name)
        except InputError as error:
            failures.append(error)
        else:
            return network
    raise failures[0]


def _ends(signature: Signature, name: str) -> tuple[str, str]:
    """The graph's names of the images and of the answer."""
    inputs = [spec.user_input.arg for spec in signature.input_specs if spec.user_input]
    outputs = [spec.user_output.arg for spec in signature.output_specs if spec.user_output]
    given = [output for output in outputs if output.kind != "as_none"]
    if any(spec.is_object for spec in signature.input_specs):
        raise InputError(f"'{name}' needs objects other than tensors.", EXPORT_HINT)
    return _only(inputs, f"'{name}' takes", "input"), _only(given, f"'{name}' gives", "output")


def _only(values: Sequence[Value], beginning: str, kind: str) -> str:
    tensor = values[0].as_tensor if len(values) == 1 else None
    if tensor is None:
        found = f"an {kind} that is no tensor" if len(values) == 1 else f"{len(values)} {kind}s"
        raise InputError(f"{beginning} {found}, and not one tensor.", _CLASSIFIER_HINT)
    return tensor.name


def _image_meta(meta: TensorMeta | None, name: str) -> TensorMeta:
    dtype = DTYPES.get(meta.dtype) if meta else None
    sensible = meta is not None and len(meta.shape) == 4 and all(size is None or size > 0 for size in meta.shape)
    if meta is None or not sensible or dtype is None or not dtype.is_floating_point:
        raise InputError(f"'{name}' takes something other than images of floating-point numbers.", _CLASSIFIER_HINT)
    return meta


def _used_tensors(archive: ExportedArchive, stored: Mapping[str, str], name: str) -> dict[str, Tensor]:
    """The file's tensors that the graph may refer to; all floating-point ones in float32."""
    found = archive.constants | archive.weights
    missing = next((key for key in stored.values() if key not in found), None)
    if missing is not None:
        raise InputError(f"'{name}' refers to the tensor '{printable(missing)}', which it does not have.", DAMAGED_HINT)
    tensors = {key: found[key].tensor() for key in stored.values()}
    return {
        key: tensor.to(float32_for(tensor.dtype), copy=True, memory_format=torch.contiguous_format)
        for key, tensor in tensors.items()
    }


def _check_answer(graph: ProgramGraph, tensors: Mapping[str, Tensor], image: tuple[int, ...], name: str) -> None:
    """That one image and two images get as many answers `[N, K]`, and cost no more than a network may for one."""
    for count in (1, 2):
        shape = shape_of_answer(graph, tensors, (count, *image), name)
        if len(shape) != 2 or shape[1] == 0:
            raise InputError(f"'{name}' answers with a tensor {list(shape)}.", _CLASSIFIER_HINT)
        if shape[0] != count:
            raise _tied_to_batch(name)


@torch.no_grad()
def _check_independence(network: nn.Module, image: tuple[int, ...], name: str) -> None:
    """That an image of noise gets the same answer alone and before another."""
    noise = torch.randn(2, *image, generator=torch.Generator().manual_seed(0))
    try:
        alone, first = network(noise[:1]), network(noise)[:1]
    except Exception as error:  # torch has many types for arguments that do not fit
        reason = printable(next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip("."))
        raise InputError(f"'{name}' cannot be computed: {reason}.", EXPORT_HINT) from error
    if not alone.is_floating_point():
        raise InputError(f"'{name}' answers with whole numbers and not with logits.", _CLASSIFIER_HINT)
    tolerance = _TOLERANCE * alone.nan_to_num(0, 0, 0).abs().max().item()
    if not torch.allclose(first, alone, rtol=_TOLERANCE, atol=tolerance, equal_nan=True):
        raise _tied_to_batch(name)


def _tied_to_batch(name: str) -> InputError:
    return InputError(f"'{name}' answers an image differently when it comes with others.", EXPORT_HINT)
