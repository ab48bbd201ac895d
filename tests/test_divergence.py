"""Where two graphs of one network part."""

import math
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, numpy_helper

from compress.exporters.camera_input import with_camera_input
from compress.exporters.divergence import EIGHT_BITS_DB, layer_noise, start_of_loss
from compress.exporters.half import in_half_precision
from compress.exporters.integer_weights import store_integer_weights
from compress.pipeline.records import LayerNoise, LayerStart
from tests.graphs import linear_model, quantized_model

IMAGES = np.random.default_rng(0).integers(0, 256, (24, 1, 4, 4)).astype(np.float32) / np.float32(255)


def saved(model: ModelProto, folder: Path, name: str) -> Path:
    onnx.save(model, folder / name)
    return folder / name


def layers(*decibels: float) -> list[LayerNoise]:
    return [LayerNoise(layer=f"layer{number}", sqnr_db=value) for number, value in enumerate(decibels)]


def second_outputs(path: Path) -> np.ndarray:
    model = onnx.load(path)
    model.graph.output[0].CopyFrom(onnx.ValueInfoProto(name="second.y"))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"images": IMAGES})[0], np.float64)


def test_layers_go_by_their_weights_in_the_order_of_the_graph(tmp_path: Path) -> None:
    path = saved(quantized_model(), tmp_path, "student.onnx")
    assert [layer.layer for layer in layer_noise(path, path, IMAGES)] == ["first", "second", "head"]


def test_the_same_file_has_no_noise(tmp_path: Path) -> None:
    path = saved(quantized_model(), tmp_path, "student.onnx")
    assert {layer.sqnr_db for layer in layer_noise(path, path, IMAGES)} == {math.inf}


def test_noise_is_that_of_a_layers_own_output(tmp_path: Path) -> None:
    exact = quantized_model()
    harmed = quantized_model()
    (bias,) = [tensor for tensor in harmed.graph.initializer if tensor.name == "second.b"]
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + 1, bias.name))
    paths = saved(exact, tmp_path, "exact.onnx"), saved(harmed, tmp_path, "harmed.onnx")
    first, second, head = layer_noise(*paths, IMAGES)
    assert first.sqnr_db == math.inf
    # Every output is off by 1: 10 log10 of the mean square of what it should be.
    assert second.sqnr_db == pytest.approx(10 * math.log10(np.square(second_outputs(paths[0])).mean()), abs=1e-4)
    assert math.isfinite(head.sqnr_db)


@pytest.mark.parametrize("change", [store_integer_weights, in_half_precision, with_camera_input])
def test_other_forms_of_a_graph_are_compared_too(tmp_path: Path, change: object) -> None:
    assert callable(change)
    model = quantized_model(opset=19, ir_version=9)
    paths = saved(model, tmp_path, "exact.onnx"), saved(change(model), tmp_path, "other.onnx")
    assert all(layer.sqnr_db > 20 for layer in layer_noise(*paths, IMAGES))


def test_files_of_other_networks_are_not_compared(tmp_path: Path) -> None:
    paths = saved(quantized_model(), tmp_path, "one.onnx"), saved(linear_model(), tmp_path, "other.onnx")
    assert layer_noise(*paths, IMAGES) == ()
    assert start_of_loss(()) is None


def test_a_loss_begins_where_the_noise_grows_most() -> None:
    start = start_of_loss(layers(40, 36, 9, 12, 8))
    assert start == LayerStart(layer="layer2", before_db=36, sqnr_db=9)


def test_a_loss_may_begin_in_the_first_layer() -> None:
    # 8 bits leave 6.02 x 8 + 1.76 = 49.92 dB of a sine.
    assert pytest.approx(49.92) == EIGHT_BITS_DB
    start = start_of_loss(layers(5, 4))
    assert start == LayerStart(layer="layer0", before_db=EIGHT_BITS_DB, sqnr_db=5)


def test_a_loss_that_is_spread_over_all_layers_begins_in_none() -> None:
    assert start_of_loss(layers(37, 30, 24, 20, 15, 9)) is None


def test_what_is_no_number_is_all_noise() -> None:
    start = start_of_loss(layers(40, -math.inf, -math.inf))
    assert start is not None
    assert start.layer == "layer1"
