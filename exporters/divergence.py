"""Where two ONNX files of one network part: the outputs of their layers side by side, on the same images."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, ValueInfoProto

from compress.exporters.camera_input import ONNX_RUNTIME_BYTES, camera_images
from compress.exporters.legalise import constants
from compress.pipeline.records import LayerNoise, LayerStart

EIGHT_BITS_DB = 6.02 * 8 + 1.76
"""What rounding to 8 bits leaves of a full-scale sine: no layer can be expected to start better than that.

Source: Bennett, "Spectra of quantized signals", Bell System Technical Journal 27 (1948)."""

LEAST_DROP_DB = 3 * 6.02
"""Three bits: where no layer loses that much by itself, the loss is spread over all of them."""

AT_ONCE = 16
"""Images that run together: the outputs of all layers are held at the same time."""

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_PAIR = ("QuantizeLinear", "DequantizeLinear")

Array = NDArray[np.float64]


def layer_noise(reference: Path, other: Path, images: NDArray[np.float32]) -> tuple[LayerNoise, ...]:
    """Signal-to-noise ratio of every layer's output in `other`, against `reference`, in the order of the graph.

    Layers go by the names of their weights in `reference`. Both files take `images` `[N, C, H, W]`; they are run as written,
    without the runtime's rewriting. Empty where the files do not have the same layers.
    """
    models = [onnx.load(path) for path in (reference, other)]
    layers = [_layers(model) for model in models]
    if [node.op_type for node, _ in layers[0]] != [node.op_type for node, _ in layers[1]]:
        return ()
    signal, noise = np.zeros(len(layers[0])), np.zeros(len(layers[0]))
    sessions = [
        _session(model, [node.output[0] for node, _ in found]) for model, found in zip(models, layers, strict=True)
    ]
    for exact, approximate in zip(*(_outputs(session, images) for session in sessions), strict=True):
        signal += [(value**2).sum() for value in exact]
        noise += [((value - close) ** 2).sum() for value, close in zip(exact, approximate, strict=True)]
    names = [name for _, name in layers[0]]
    return tuple(
        LayerNoise(layer=name, sqnr_db=_decibels(*sums)) for name, *sums in zip(names, signal, noise, strict=True)
    )


def start_of_loss(layers: Sequence[LayerNoise]) -> LayerStart | None:
    """The layer whose output is worse than that of all layers before it by the most; None where none stands out."""
    decibels = [layer.sqnr_db for layer in layers]
    before = np.minimum.accumulate([EIGHT_BITS_DB, *decibels])[:-1]
    # What follows a layer without any signal left cannot be worse.
    drops = [known - own if known > -math.inf else 0.0 for known, own in zip(before, decibels, strict=True)]
    if not drops or max(drops) < LEAST_DROP_DB:
        return None
    worst = int(np.argmax(drops))
    return LayerStart(layer=layers[worst].layer, before_db=float(before[worst]), sqnr_db=decibels[worst])


def _layers(model: ModelProto) -> list[tuple[NodeProto, str]]:
    """Nodes with a constant weight, and the weights' names without their last part."""
    maker = {output: node for node in model.graph.node for output in node.output}
    known = constants(model.graph)
    found = []
    for node in model.graph.node:
        if node.op_type in _LAYERS:
            weight = node.input[1]
            while weight in maker and maker[weight].op_type in _PAIR:
                weight = maker[weight].input[0]
            if weight in known:
                found.append((node, weight.rpartition(".")[0] or weight))
    return found


def _session(model: ModelProto, outputs: Sequence[str]) -> onnxruntime.InferenceSession:
    watched = ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    watched.graph.output.extend(ValueInfoProto(name=name) for name in outputs)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _outputs(session: onnxruntime.InferenceSession, images: NDArray[np.float32]) -> Iterator[list[Array]]:
    """What all layers put out, a few images at a time."""
    input = session.get_inputs()[0]
    given = camera_images(images) if input.type == ONNX_RUNTIME_BYTES else images
    at_once = input.shape[0] if isinstance(input.shape[0], int) else AT_ONCE
    for start in range(0, len(given), at_once):
        outputs = session.run(None, {input.name: given[start : start + at_once]})
        yield [np.asarray(value, np.float64) for value in outputs]


def _decibels(signal: float, noise: float) -> float:
    """10 log10(signal / noise), of sums of squares."""
    if not math.isfinite(noise):
        return -math.inf
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf
