"""ONNX models as teachers: one image input, one output `[N, K]`, read as data and translated to torch.fx.

The file is parsed from its bytes, and files beside it are opened by `onnx_external` alone; neither onnx nor ONNX Runtime
ever sees a path.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from onnx import ModelProto, ValueInfoProto
from torch import Tensor, fx, nn

from compress.pipeline.errors import InputError
from compress.pipeline.teacher.checkpoint import Checkpoint, Program
from compress.pipeline.teacher.programs.onnx.batch import fit
from compress.pipeline.teacher.programs.onnx.file import OnnxRefusal, opset_of, parse_model, quoted
from compress.pipeline.teacher.programs.onnx.metadata import labels_of, metadata_of, properties_of
from compress.pipeline.teacher.programs.onnx.network import OnnxNetwork
from compress.pipeline.teacher.programs.onnx.operators.elementwise import FLOATS, type_name
from compress.pipeline.teacher.programs.onnx.operators.layers import (
    conv,
    group_normalization,
    group_normalization_18,
    instance_normalization,
    layer_normalization,
)
from compress.pipeline.teacher.programs.onnx.operators.registry import READERS
from compress.pipeline.teacher.programs.onnx.tensors import TensorReader
from compress.pipeline.teacher.programs.onnx.translator import translate
from compress.pipeline.teacher.readers.weights import tidy

Shape = tuple[int | None, ...]

_OTHER_NORMALISATION = (
    layer_normalization,
    group_normalization,
    group_normalization_18,
    instance_normalization,
    torch.sqrt,
)
"""What networks normalise with that never had batch norms; before operator set 17 layer norms were spelled out."""

_COUNTER = ".num_batches_tracked"


def read_onnx(data: bytes | bytearray, name: str, folder: Path | None = None) -> Checkpoint:
    """The network of an ONNX model, with its weights under their own names.

    Args:
        data: the file's content.
        name: the file's, for messages.
        folder: where files that hold its weights may lie; without one such a model is refused.

    Raises:
        InputError: it is damaged, does more than a classifier of images does, is quantized, or is made to exhaust
            memory or time.
    """
    reader = TensorReader(data, folder)
    try:
        with torch.no_grad():
            return _read(parse_model(data), name, reader)
    except OnnxRefusal as error:
        raise InputError(f"'{name}' {error.predicate}.", error.hint) from error
    finally:
        reader.close()


def _read(model: ModelProto, name: str, reader: TensorReader) -> Checkpoint:
    opset = opset_of(model.opset_import)
    tensors = _initializers(model, reader)
    image, shape = _image_input(model, tensors)
    _check_output(model)
    properties = properties_of(model)
    metadata = metadata_of(properties)
    fitted = fit(translate(model, image, tensors, reader), shape, metadata, name, reader.memory_limit)
    tidied = tidy(_weights(tensors), name, reader.memory_limit)
    labels, label_warnings = labels_of(properties, fitted.classes)
    return Checkpoint(
        file_name=name,
        sha256=reader.sha256,
        format=f"ONNX model of operator set {opset}",
        tensors=tidied.tensors,
        metadata=metadata | ({"input_size": list(fitted.image)} if shape[2] and shape[3] else {}),
        batches_tracked=tidied.batches_tracked,
        labels=labels,
        warnings=(*fitted.warnings, *_folded(fitted.network), *label_warnings, *tidied.notes),
        program=Program(
            network=fitted.network,
            title=f"ONNX graph of {_operations(fitted.network.graph)} operations",
            input_shape=(shape[0], fitted.image[0], *shape[2:]),
        ),
    )


def _initializers(model: ModelProto, reader: TensorReader) -> dict[str, Tensor]:
    if model.graph.sparse_initializer:
        raise OnnxRefusal("holds sparse tensors")
    names = [tensor.name for tensor in model.graph.initializer]
    if "" in names or len(set(names)) < len(names):
        raise OnnxRefusal("holds two tensors of one name, or one without a name")
    return dict(zip(names, reader.read(model.graph.initializer), strict=True))


def _weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those that a network may be known by: no sizes and positions, no single numbers such as bounds."""
    return {
        name: tensor
        for name, tensor in tensors.items()
        if name.endswith(_COUNTER)
        or (tensor.is_floating_point() and tensor.dim() and tensor.numel() and bool(tensor.isfinite().all()))
    }


def _image_input(model: ModelProto, tensors: Mapping[str, Tensor]) -> tuple[str, Shape]:
    """Name and shape of the one input; before IR version 4 initializers were listed as inputs, too."""
    inputs = [one for one in model.graph.input if one.name not in tensors]
    if len(inputs) != 1:
        raise OnnxRefusal(
            f"takes {len(inputs)} inputs: {_listed(inputs)}; a classifier of images takes one",
            "Export the part of the network that maps images to logits.",
        )
    (image,) = inputs
    element_type, shape = image.type.tensor_type.elem_type, _shape(image)
    if element_type not in FLOATS:
        raise OnnxRefusal(f"takes {_described(image)} as {type_name(element_type)} rather than floating-point numbers")
    if shape is None:
        return image.name, (None,) * 4
    if len(shape) != 4:
        raise OnnxRefusal(f"takes {_described(image)}; images are [N, C, H, W]")
    if shape[3] in (1, 3) and shape[1] not in (None, 1, 3):
        raise OnnxRefusal(
            f"takes {_described(image)}, with the channels last; images are [N, C, H, W]",
            "Export it with the channels first; tf2onnx does so with --inputs-as-nchw.",
        )
    return image.name, shape


def _check_output(model: ModelProto) -> None:
    outputs = list(model.graph.output)
    if len(outputs) != 1:
        raise OnnxRefusal(
            f"has {len(outputs)} outputs: {_listed(outputs)}; a classifier has one, [N, K]",
            "Export the part of the network that maps images to logits.",
        )
    shape = _shape(outputs[0])
    if shape is not None and len(shape) != 2:
        raise OnnxRefusal(
            f"puts out {_described(outputs[0])}; a classifier puts out [N, K]",
            "Detectors, segmenters and networks without their last layer cannot be compressed.",
        )


def _shape(value: ValueInfoProto) -> Shape | None:
    """Sizes, None for each that is left open; None where there is no shape at all."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return tuple(size.dim_value if size.dim_value > 0 else None for size in tensor.shape.dim)


def _listed(values: list[ValueInfoProto], most: int = 4) -> str:
    more = f" and {len(values) - most} more" if len(values) > most else ""
    return (", ".join(_described(value) for value in values[:most]) or "none") + more


def _described(value: ValueInfoProto) -> str:
    """As `'images' [N, 3, 32, 32]`, with a question mark for what is left open."""
    shape = _shape(value)
    sizes = "of unknown shape" if shape is None else f"[{', '.join(str(size or '?') for size in shape[:8])}]"
    return f"{quoted(value.name)} {sizes}"


def _operations(graph: fx.GraphModule) -> int:
    """Nodes of the file that are left when the network runs."""
    return sum("label" in node.meta and node.target not in READERS.values() for node in graph.graph.nodes)


def _folded(network: OnnxNetwork) -> tuple[str, ...]:
    """A warning where an exporter may have made the batch norms part of the convolutions before them."""
    if any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
        return ()
    nodes = network.graph.graph.nodes
    if any(node.target in _OTHER_NORMALISATION for node in nodes):
        return ()
    biased = sum(node.target is conv and len(node.args) > 2 and node.args[2] is not None for node in nodes)
    if not biased:
        return ()
    sentence = (
        f"The graph has no batch norm, but {biased} of its convolutions add a bias: exporters fold batch norms into these, "
        "and what image synthesis learns most from goes with them. If the network has batch norms, give its state_dict "
        "instead, or export it with optimize=False, or with the older exporter and "
        "training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False."
    )
    return (sentence,)
