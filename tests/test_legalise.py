from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from compress.exporters.legalise import Array, legalise
from compress.pipeline.errors import InputError

IMAGES = np.linspace(-1, 1, 2 * 3 * 4 * 4, dtype=np.float32).reshape(2, 3, 4, 4)


def graph(nodes: Sequence[NodeProto], output: Sequence[int | str], **constants: Array) -> ModelProto:
    """A model of operator set 18 from `images` `[batch, 3, 4, 4]` to `logits`."""
    body = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 4, 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, output)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def operators(model: ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def assert_equivalent(model: ModelProto, opset: int = 13) -> ModelProto:
    """Legalises, checks, and compares the outputs with ONNX's reference evaluator."""
    legal = legalise(model, opset, 7)
    onnx.checker.check_model(legal, full_check=True)
    (expected,), (found,) = (list(ReferenceEvaluator(each).run(None, {"images": IMAGES})) for each in (model, legal))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    return legal


@pytest.mark.parametrize("axes", [[2, 3], [-1, -2]])
def test_a_mean_over_both_spatial_axes_becomes_global_average_pooling(axes: list[int]) -> None:
    mean = helper.make_node("ReduceMean", ["images", "axes"], ["logits"], keepdims=1)
    legal = assert_equivalent(graph([mean], ["batch", 3, 1, 1], axes=np.array(axes)))
    assert operators(legal) == ["GlobalAveragePool"]
    assert len(legal.graph.initializer) == 0


def test_a_mean_that_drops_its_axes_is_flattened_too() -> None:
    mean = helper.make_node("ReduceMean", ["images", "axes"], ["logits"], keepdims=0)
    assert operators(assert_equivalent(graph([mean], ["batch", 3], axes=np.array([2, 3])))) == [
        "GlobalAveragePool",
        "Flatten",
    ]


def test_a_mean_over_channels_is_refused_by_name() -> None:
    mean = helper.make_node("ReduceMean", ["images", "axes"], ["logits"], keepdims=1)
    with pytest.raises(InputError, match="ReduceMean cannot be expressed in ONNX operator set 17") as refusal:
        legalise(graph([mean], ["batch", 1, 4, 4], axes=np.array([1])), 17, 8)
    assert "newer operator set" in refusal.value.hint


@pytest.mark.parametrize("shape", [[-1, 48], [2, 48]])
def test_a_reshape_that_joins_all_but_the_batch_becomes_flatten(shape: list[int]) -> None:
    reshape = helper.make_node("Reshape", ["images", "shape"], ["logits"], allowzero=1)
    assert operators(assert_equivalent(graph([reshape], ["batch", 48], shape=np.array(shape)))) == ["Flatten"]


def test_another_reshape_loses_only_its_newer_attribute() -> None:
    reshape = helper.make_node("Reshape", ["images", "shape"], ["logits"], allowzero=1)
    legal = assert_equivalent(graph([reshape], ["rows", 16], shape=np.array([-1, 16])))
    assert operators(legal) == ["Reshape"]
    assert len(legal.graph.node[0].attribute) == 0


def test_padding_without_axes_is_the_same_in_every_operator_set() -> None:
    pad = helper.make_node("Pad", ["images", "pads"], ["logits"])
    pads = np.array([0, 1, 0, 0, 0, 1, 0, 0])
    assert operators(assert_equivalent(graph([pad], ["batch", 5, 4, 4], pads=pads))) == ["Pad"]


def test_padding_with_axes_is_refused() -> None:
    pad = helper.make_node("Pad", ["images", "pads", "", "axes"], ["logits"])
    with pytest.raises(InputError, match="Pad cannot be expressed"):
        legalise(graph([pad], ["batch", 5, 4, 4], pads=np.array([1, 1]), axes=np.array([1])), 17, 8)


def test_operators_that_only_take_more_types_are_kept() -> None:
    nodes = [helper.make_node("Add", ["images", "images"], ["sum"]), helper.make_node("Relu", ["sum"], ["logits"])]
    assert operators(assert_equivalent(graph(nodes, ["batch", 3, 4, 4]))) == ["Add", "Relu"]


def test_an_operator_that_is_newer_than_the_set_is_refused() -> None:
    mish = helper.make_node("Mish", ["images"], ["logits"])
    with pytest.raises(InputError, match="Mish cannot be expressed in ONNX operator set 17"):
        legalise(graph([mish], ["batch", 3, 4, 4]), 17, 8)


def test_a_hard_swish_becomes_what_it_is_defined_by() -> None:
    swish = helper.make_node("HardSwish", ["images"], ["logits"])
    legal = assert_equivalent(graph([swish], ["batch", 3, 4, 4]))
    assert operators(legal) == ["HardSigmoid", "Mul"]


def test_an_operator_of_another_domain_is_refused() -> None:
    gelu = helper.make_node("Gelu", ["images"], ["logits"], domain="com.microsoft")
    model = graph([gelu], ["batch", 3, 4, 4])
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    with pytest.raises(InputError, match=r"com\.microsoft\.Gelu cannot be expressed"):
        legalise(model, 18, 10)


def test_annotations_and_unused_constants_are_gone() -> None:
    node = helper.make_node("Relu", ["images"], ["logits"], doc_string="source line")
    helper.set_model_props(model := graph([node], ["batch", 3, 4, 4], unused=np.ones(3)), {"exporter": "torch"})
    node = model.graph.node[0]
    node.metadata_props.add(key="stack_trace", value="/home/someone/model.py")
    legal = legalise(model, 17, 8)
    assert b"someone" not in legal.SerializeToString()
    assert (legal.graph.node[0].doc_string, len(legal.metadata_props), len(legal.graph.initializer)) == ("", 0, 0)
    assert (legal.opset_import[0].version, legal.ir_version) == (17, 8)
