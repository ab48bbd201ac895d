"""The input as a camera delivers it: bytes with the channels last, which the graph itself turns into what the network takes.

TensorRT takes bytes since 8.5 and casts them before it can do anything else with them. Source: TensorRT API, DataType.UINT8;
github.com/onnx/onnx-tensorrt, release notes of 8.5.
"""

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper

from compress.exporters.legalise import rename_tensors, tensor_names, unused
from compress.pipeline.records import InputForm, InputSpec

Bytes = NDArray[np.uint8]

ONNX_RUNTIME_BYTES = "tensor(uint8)"
"""What ONNX Runtime calls the type of such an input."""

_WHITE = 255


def with_camera_input(model: ModelProto) -> ModelProto:
    """A copy that takes uint8 `[N, H, W, C]` from 0 to 255 instead of float32 `[N, C, H, W]` in [0, 1]; the name stays.

    To be done last: it computes in fp32 whatever the graph does. A division and not a product with 1 / 255, so that the
    graph gets the very numbers that it would get from outside, rounded once also where a builder runs this in fp16.
    """
    taking = ModelProto()
    taking.CopyFrom(model)
    graph = taking.graph
    (images,) = graph.input
    taken = tensor_names(graph)
    pixels, planes, white, scaled = (
        unused(f"{images.name}_{part}", taken) for part in ("pixels", "planes", "white", "scaled")
    )
    rename_tensors(graph, {images.name: scaled})
    nodes = [
        helper.make_node("Cast", [images.name], [pixels], name=f"{pixels}_cast", to=TensorProto.FLOAT),
        helper.make_node("Transpose", [pixels], [planes], name=f"{planes}_transpose", perm=[0, 3, 1, 2]),
        helper.make_node("Div", [planes, white], [scaled], name=f"{scaled}_div"),
        *graph.node,
    ]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.append(numpy_helper.from_array(np.array(_WHITE, np.float32), white))
    images.CopyFrom(_with_channels_last(images))
    return taking


def camera_images(images: NDArray[np.float32]) -> Bytes:
    """Images `[N, C, H, W]` in [0, 1] as a camera would deliver them, uint8 `[N, H, W, C]`; exact where they were bytes."""
    pixels = np.rint(images * np.float32(_WHITE)).clip(0, _WHITE).astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))


def described(input: InputSpec, form: InputForm) -> str:
    """In a line, what a file of that form takes."""
    if form == "uint8-nhwc":
        return f"uint8 [N, {input.height}, {input.width}, {input.channels}] in [0, {_WHITE}]"
    return f"float32 [N, {input.channels}, {input.height}, {input.width}] in [0, 1]"


def _with_channels_last(images: ValueInfoProto) -> ValueInfoProto:
    sizes = [size.dim_param or size.dim_value for size in images.type.tensor_type.shape.dim]
    batch, channels, height, width = sizes
    return helper.make_tensor_value_info(images.name, TensorProto.UINT8, [batch, height, width, channels])
