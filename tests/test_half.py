"""fp16 written into a graph."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from compress.exporters.half import in_half_precision, with_half_scales
from compress.exporters.integer_weights import store_integer_weights
from compress.exporters.runners import OnnxRunner
from compress.pipeline.errors import InputError
from tests.graphs import linear_model, model, quantized_model, ramp


def typed(graph: ModelProto, opset: int = 19, ir_version: int = 9) -> ModelProto:
    half = in_half_precision(graph)
    half.opset_import[0].version, half.ir_version = opset, ir_version
    onnx.checker.check_model(half, full_check=True)
    return half


def constants(graph: ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}


def answers(graph: ModelProto, folder: Path) -> np.ndarray:
    onnx.save(graph, folder / "graph.onnx")
    with OnnxRunner(folder / "graph.onnx", exact=True) as runner:
        return runner(ramp(6, 1, 4, 4))


def test_everything_is_of_fp16_but_the_interface() -> None:
    half = typed(quantized_model())
    assert {array.dtype for array in constants(half).values()} == {np.dtype(np.float16), np.dtype(np.int8)}
    interface = {value.name: value.type.tensor_type.elem_type for value in (*half.graph.input, *half.graph.output)}
    assert interface == {"images": TensorProto.FLOAT, "logits": TensorProto.FLOAT}
    inferred = onnx.shape_inference.infer_shapes(half, strict_mode=True).graph.value_info
    kinds = {value.name: value.type.tensor_type.elem_type for value in inferred}
    kinds |= {value.name: value.type.tensor_type.elem_type for value in (*half.graph.input, *half.graph.output)}
    assert {kinds[node.input[0]] for node in half.graph.node if node.op_type == "Conv"} == {TensorProto.FLOAT16}
    assert kinds["images_fp16"] == kinds["logits_fp16"] == TensorProto.FLOAT16


def test_the_answers_stay_within_the_steps_of_fp16(tmp_path: Path) -> None:
    # fp16 has 11 significant bits: values up to 1 are 2^-11 off at most, a few of them in a sum.
    exact = answers(quantized_model(), tmp_path)
    np.testing.assert_allclose(answers(typed(quantized_model()), tmp_path), exact, atol=0.01)


def test_integer_weights_of_a_typed_graph_give_the_same_answers(tmp_path: Path) -> None:
    half = typed(quantized_model())
    stored = store_integer_weights(half)
    assert {constants(stored)[name].dtype for name in ("first.weight.int8", "second.weight.int8")} == {np.dtype("int8")}
    np.testing.assert_array_equal(answers(stored, tmp_path), answers(half, tmp_path))


def test_a_scale_that_fp16_would_take_for_zero_is_raised_to_its_smallest_number() -> None:
    graph = quantized_model()
    tensor = next(tensor for tensor in graph.graph.initializer if tensor.name == "first.weight.scale")
    tensor.CopyFrom(numpy_helper.from_array(np.array([0.004, 1e-9], np.float32), tensor.name))
    # The smallest number of fp16 above zero is 2^-24.
    for rounded in (in_half_precision(graph), with_half_scales(graph)):
        assert constants(rounded)["first.weight.scale"].tolist() == [np.float16(0.004), 2**-24]
    assert constants(with_half_scales(graph))["first.weight.scale"].dtype == np.float32


def test_small_weights_become_integers_by_the_scales_of_the_file() -> None:
    # 2^-20 is a number that fp16 has only four bits of; weights of 100 times that are 100 whatever fp16 makes of them.
    graph = quantized_model()
    for name, array in {"first.weight.scale": [2**-20] * 2, "first.w": np.full((2, 1, 3, 3), 100 * 2**-20)}.items():
        tensor = next(tensor for tensor in graph.graph.initializer if tensor.name == name)
        tensor.CopyFrom(numpy_helper.from_array(np.array(array, np.float32), name))
    typed_graph = in_half_precision(store_integer_weights(with_half_scales(graph)))
    assert (constants(typed_graph)["first.weight.int8"] == 100).all()


def test_the_names_of_casts_are_new() -> None:
    graph = linear_model()
    graph.graph.node[0].output[0] = graph.graph.node[1].input[0] = "images_fp16"
    onnx.checker.check_model(in_half_precision(graph))
    names = [name for node in in_half_precision(graph).graph.node for name in node.output]
    assert len(names) == len(set(names))


def test_constants_that_are_attributes_of_floats_follow_too() -> None:
    graph = linear_model()
    graph.graph.node.insert(0, helper.make_node("Constant", [], ["one"], "one", value_float=0.5))
    graph.graph.node.insert(0, helper.make_node("Constant", [], ["two"], "two", value_floats=[0.5, 2.0]))
    found = [node.attribute[0] for node in in_half_precision(graph).graph.node if node.op_type == "Constant"]
    assert [numpy_helper.to_array(attribute.t).tolist() for attribute in found] == [[0.5, 2.0], 0.5]
    assert {attribute.t.data_type for attribute in found} == {TensorProto.FLOAT16}


def test_a_constant_beyond_fp16_is_refused_by_name() -> None:
    graph = quantized_model()
    tensor = next(tensor for tensor in graph.graph.initializer if tensor.name == "second.b")
    tensor.CopyFrom(numpy_helper.from_array(np.full(2, 70000, np.float32), tensor.name))
    with pytest.raises(InputError, match=r"'second.b' has values up to 7e\+04, too large for fp16"):
        in_half_precision(graph)


def test_casts_and_constants_inside_follow_and_the_original_stays() -> None:
    graph = linear_model()
    one = helper.make_node("Constant", [], ["one"], "one", value=numpy_helper.from_array(np.array([1], np.float32)))
    graph.graph.node.insert(0, one)
    half = in_half_precision(graph)
    casts = [helper.get_node_attr_value(node, "to") for node in half.graph.node if node.op_type == "Cast"]
    assert casts == [TensorProto.FLOAT16] * 3 + [TensorProto.FLOAT]
    constant = next(node for node in half.graph.node if node.op_type == "Constant")
    assert helper.get_node_attr_value(constant, "value").data_type == TensorProto.FLOAT16
    assert constants(graph)["weight"].dtype == np.float32


def test_what_a_resize_takes_for_scales_stays_fp32() -> None:
    nodes = [
        helper.make_node("Resize", ["images", "", "scales"], ["large"], "resize"),
        helper.make_node("GlobalAveragePool", ["large"], ["pooled"], "pool"),
        helper.make_node("Flatten", ["pooled"], ["logits"], "flat"),
    ]
    half = typed(model(nodes, {"scales": np.array([1, 1, 2, 2], np.float32)}, image=(3, 4, 4), classes=3))
    assert constants(half)["scales"].dtype == np.float32
