"""The rules of TensorRT, each broken once in a graph that otherwise keeps them all."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto, NodeProto, helper, numpy_helper

from compress.exporters.calibration import observe
from compress.exporters.camera_input import with_camera_input
from compress.exporters.half import in_half_precision
from compress.exporters.integer_weights import store_integer_weights
from compress.exporters.lint import Finding, lint
from compress.exporters.onnx_graph import export_onnx
from compress.exporters.operators import first_versions, lacking
from compress.exporters.qdq import insert_fake_quantization
from compress.exporters.targets import load_target
from compress.pipeline.errors import InputError
from compress.pipeline.networks.resnet import ResNet, ResNetSpec
from tests.graphs import fake_quantize, linear_model, quantized_model, ramp

ORIN = load_target("jetson")


def findings(model: ModelProto, folder: Path, target: str = "jetson") -> list[Finding]:
    onnx.save(model, folder / "student.onnx")
    return lint(folder / "student.onnx", load_target(target))


def rules(found: list[Finding]) -> list[tuple[str, str]]:
    return [(finding.rule, finding.node) for finding in found]


def node(model: ModelProto, name: str) -> NodeProto:
    found: NodeProto = next(node for node in model.graph.node if node.name == name)
    return found


def set_constant(model: ModelProto, name: str, value: object, dtype: type[np.generic]) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(np.array(value, dtype), name))


def insert(model: ModelProto, before: str, *nodes: NodeProto, **constants: np.ndarray) -> None:
    position = [node.name for node in model.graph.node].index(before)
    for offset, new in enumerate(nodes):
        model.graph.node.insert(position + offset, new)
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())


def test_the_residual_block_runs_and_is_clean(tmp_path: Path) -> None:
    assert findings(quantized_model(), tmp_path) == []
    session = onnxruntime.InferenceSession(tmp_path / "student.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"images": ramp(2, 1, 4, 4)})
    assert np.isfinite(logits).all()


def custom_operator(model: ModelProto) -> None:
    node(model, "first.activation").domain = "com.vendor"


def missing_operator(model: ModelProto) -> None:
    node(model, "first.activation").op_type = "Mish"


def local_function(model: ModelProto) -> None:
    relu = helper.make_node("Relu", ["x"], ["y"])
    opset = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("com.vendor", "activate", ["x"], ["y"], [relu], opset))


def no_zero_point(model: ModelProto) -> None:
    del node(model, "first.quantize").input[2]


def unsigned_zero_points(model: ModelProto) -> None:
    set_constant(model, "first.zero", 0, np.uint8)


def shifted_zero_points(model: ModelProto) -> None:
    set_constant(model, "first.zero", 3, np.int8)


def too_few_zero_points(model: ModelProto) -> None:
    set_constant(model, "first.weight.zero", [0], np.int8)


def dead_scale(model: ModelProto) -> None:
    set_constant(model, "first.weight.scale", [0.01, 0.0], np.float32)


def infinite_scale(model: ModelProto) -> None:
    set_constant(model, "first.scale", np.inf, np.float32)


def half_scale(model: ModelProto) -> None:
    set_constant(model, "first.scale", 0.01, np.float16)


def double_scale(model: ModelProto) -> None:
    set_constant(model, "first.scale", 0.01, np.float64)


def computed_scale(model: ModelProto) -> None:
    insert(model, "first.quantize", helper.make_node("Exp", ["log"], ["computed"]), log=np.array(-4, np.float32))
    for name in ("first.quantize", "first.dequantize"):
        node(model, name).input[1] = "computed"


def activation_per_channel(model: ModelProto) -> None:
    set_constant(model, "first.scale", [0.01, 0.02], np.float32)
    set_constant(model, "first.zero", [0, 0], np.int8)


def weight_on_wrong_axis(model: ModelProto) -> None:
    for name in ("second.weight.quantize", "second.weight.dequantize"):
        node(model, name).attribute[0].i = 1


def folded_weight(model: ModelProto) -> None:
    quantize = node(model, "first.weight.quantize")
    model.graph.node.remove(quantize)
    set_constant(model, "first.w", np.zeros((2, 1, 3, 3)), np.int8)
    node(model, "first.weight.dequantize").input[0] = "first.w"


def integer_bias(model: ModelProto) -> None:
    inputs = ["bias.int32", "bias.scale", "bias.zero"]
    insert(
        model,
        "first.conv",
        helper.make_node("DequantizeLinear", inputs, ["bias.float"], "bias.dequantize", axis=0),
        **{
            "bias.int32": np.zeros(2, np.int32),
            "bias.scale": np.full(2, 1e-4, np.float32),
            "bias.zero": np.zeros(2, np.int32),
        },
    )
    node(model, "first.conv").input[2] = "bias.float"


def batch_normalisation(model: ModelProto) -> None:
    statistics = ["norm.scale", "norm.bias", "norm.mean", "norm.var"]
    norm = helper.make_node("BatchNormalization", ["second.y", *statistics], ["second.n"], "norm")
    insert(model, "sum.add", norm, **dict.fromkeys(statistics, np.ones(2, np.float32)))
    node(model, "sum.add").input[0] = "second.n"


def dropout(model: ModelProto) -> None:
    insert(model, "head", helper.make_node("Dropout", ["flat"], ["dropped"], "dropout"))
    node(model, "head").input[0] = "dropped"


def plain_weight(model: ModelProto) -> None:
    node(model, "first.conv").input[1] = "first.w"


def pair_before_relu(model: ModelProto) -> None:
    pair, arrays = fake_quantize("early", "first.y", "first.y.q", np.array(0.01, np.float32))
    insert(model, "first.activation", *pair, **arrays)
    node(model, "first.activation").input[0] = "first.y.q"


def both_terms_quantized(model: ModelProto) -> None:
    pair, arrays = fake_quantize("late", "second.y", "second.y.q", np.array(0.01, np.float32))
    insert(model, "sum.add", *pair, **arrays)
    node(model, "sum.add").input[0] = "second.y.q"


def two_pairs(model: ModelProto) -> None:
    pair, arrays = fake_quantize("again", "first.relu", "first.again", np.array(0.01, np.float32))
    insert(model, "sum.add", *pair, **arrays)
    node(model, "sum.add").input[1] = "first.again"


def two_dequantizers(model: ModelProto) -> None:
    inputs = ["first.int8", "first.scale", "first.zero"]
    insert(model, "sum.add", helper.make_node("DequantizeLinear", inputs, ["first.again"], "again", axis=1))
    node(model, "sum.add").input[1] = "first.again"


FIRST = [("first.quantize", "first.dequantize"), ("first.weight.quantize", "first.weight.dequantize")]


@pytest.mark.parametrize(
    ("harm", "rule", "nodes", "words"),
    [
        (custom_operator, "R1", ["first.activation"], "TensorRT has no operator com.vendor.Relu"),
        (missing_operator, "R1", ["first.activation"], "TensorRT has no operator Mish"),
        (local_function, "R1", ["activate"], "local function"),
        (no_zero_point, "R2", ["first.quantize"], "zero point is missing"),
        (unsigned_zero_points, "R2", FIRST[0], "uint8, not int8"),
        (shifted_zero_points, "R2", FIRST[0], "quantization must be symmetric"),
        (too_few_zero_points, "R2", FIRST[1], "1 zero points for 2 scales"),
        (dead_scale, "R3", FIRST[1], "zero, negative or not finite"),
        (infinite_scale, "R3", FIRST[0], "zero, negative or not finite"),
        (double_scale, "R3", FIRST[0], "float64, not float32"),
        (half_scale, "R11", [""], "jetson takes no typed graphs"),
        (computed_scale, "R3", FIRST[0], "not constant"),
        (activation_per_channel, "R4", ["first.dequantize"], "An activation has a scale a channel"),
        (weight_on_wrong_axis, "R4", ["second.weight.dequantize"], "scales on axis 1"),
        (folded_weight, "R5", ["first.weight.dequantize"], "stored in int8"),
        (integer_bias, "R6", ["first.conv"], "not a plain fp32 constant"),
        (batch_normalisation, "R7", ["norm"], "batch normalisation"),
        (dropout, "R7", ["dropout"], "for training"),
        (plain_weight, "R8", ["first.conv"], "Only the data is quantized"),
        (pair_before_relu, "R8", ["first.conv"], "parts it from its Relu"),
        (both_terms_quantized, "R8", ["sum.add"], "Both inputs of the sum are quantized"),
        (two_pairs, "R9", ["first.quantize"], "first.relu is quantized more than once"),
        (two_dequantizers, "R9", ["first.quantize"], "dequantized more than once"),
    ],
)
def test_a_graph_that_breaks_one_rule_is_told_exactly_that(
    tmp_path: Path, harm: Callable[[ModelProto], None], rule: str, nodes: list[str], words: str
) -> None:
    model = quantized_model()
    harm(model)
    found = findings(model, tmp_path)
    assert rules(found) == [(rule, name) for name in nodes]
    assert all(words in finding.message and finding.cure for finding in found)


def short_weight(model: ModelProto) -> None:
    next(tensor for tensor in model.graph.initializer if tensor.name == "first.w").raw_data = b"123"


def one_input(name: str) -> Callable[[ModelProto], None]:
    def harm(model: ModelProto) -> None:
        del node(model, name).input[1:]

    return harm


def no_output(model: ModelProto) -> None:
    model.graph.node.add(op_type="Mish")


def number_for_a_tensor(model: ModelProto) -> None:
    model.graph.node.insert(0, helper.make_node("Constant", [], ["number"], value=1))


@pytest.mark.parametrize(
    "harm", [short_weight, one_input("first.quantize"), one_input("first.conv"), no_output, number_for_a_tensor]
)
def test_a_malformed_graph_is_refused(tmp_path: Path, harm: Callable[[ModelProto], None]) -> None:
    model = quantized_model()
    harm(model)
    with pytest.raises(InputError, match=r"student\.onnx' is not a whole ONNX file"):
        findings(model, tmp_path)


def test_weights_that_are_kept_elsewhere_and_missing_are_refused_by_name(tmp_path: Path) -> None:
    path, weights = tmp_path / "student.onnx", tmp_path / "weights.bin"
    onnx.save(quantized_model(), path, save_as_external_data=True, location=weights.name, size_threshold=0)
    assert lint(path, ORIN) == []
    weights.unlink()
    with pytest.raises(
        InputError, match=r"student\.onnx' keeps weights in other files, which cannot be read"
    ) as caught:
        lint(path, ORIN)
    assert (caught.value.hint, caught.value.exit_code) == ("Keep them in the model's folder.", 3)


def test_newer_formats_are_found_for_every_runtime(tmp_path: Path) -> None:
    for target in ("jetson-nano-jp4", "cpu-x86"):
        found = findings(linear_model(), tmp_path, target)
        # Opset 17 and IR 8 are too new for the Nano's TensorRT 8.2, which reads 13 and 7.
        assert [finding.rule for finding in found] == (["R10", "R10"] if target == "jetson-nano-jp4" else [])
    assert "opset 13 and IR version 7" in findings(linear_model(), tmp_path, "jetson-nano-jp4")[0].cure


def test_a_board_without_int8_has_no_quantization_operators(tmp_path: Path) -> None:
    found = findings(quantized_model(opset=13, ir_version=7), tmp_path, "jetson-nano-jp4")
    assert {finding.rule for finding in found} == {"R1"}
    assert len(found) == 10
    assert found[0].message == "jetson-nano-jp4 has no int8 arithmetic, and so no QuantizeLinear."


@pytest.mark.parametrize("name", ["jetson", "jetson-orin-jp7", "nvidia-gpu", "cpu-x86"])
def test_an_input_of_bytes_is_clean_where_all_that_runs_it_takes_bytes(tmp_path: Path, name: str) -> None:
    assert findings(with_camera_input(quantized_model()), tmp_path, name) == []


@pytest.mark.parametrize(("name", "version"), [("jetson-nano-jp4", "8.0"), ("jetson-orin-jp5", "8.4")])
def test_an_input_of_bytes_is_found_where_tensorrt_may_be_older_than_8_5(
    tmp_path: Path, name: str, version: str
) -> None:
    model = with_camera_input(linear_model())
    model.opset_import[0].version, model.ir_version = 13, 7
    (found,) = findings(model, tmp_path, name)
    assert (found.rule, found.node, found.cure) == ("R1", "images", "Export with input_form=float32-nchw.")
    assert found.message == f"The input is uint8: {name} may have TensorRT {version}, which takes no bytes."


def typed(model: ModelProto, opset: int = 19, ir_version: int = 9) -> ModelProto:
    """The block in fp16, which the graph itself says."""
    half = in_half_precision(model)
    half.opset_import[0].version, half.ir_version = opset, ir_version
    onnx.checker.check_model(half)
    return half


@pytest.mark.parametrize("store", [lambda model: model, store_integer_weights])
def test_a_typed_graph_is_clean_where_typed_graphs_are_taken(
    tmp_path: Path, store: Callable[[ModelProto], ModelProto]
) -> None:
    assert findings(store(typed(quantized_model())), tmp_path, "jetson-orin-jp7") == []
    assert findings(quantized_model(), tmp_path, "jetson-orin-jp7") == []


def test_a_typed_graph_has_limits_of_its_own(tmp_path: Path) -> None:
    newer = typed(quantized_model(), opset=20, ir_version=10)
    cures = {finding.cure for finding in findings(newer, tmp_path, "nvidia-gpu")}
    assert cures == {"Export for opset 19 and IR version 9."}
    assert {finding.rule for finding in findings(newer, tmp_path, "nvidia-gpu")} == {"R10"}


def test_pairs_of_fp16_need_operator_set_19(tmp_path: Path) -> None:
    older = in_half_precision(quantized_model())
    (found,) = findings(older, tmp_path, "nvidia-gpu")
    assert (found.rule, found.cure) == ("R11", "Export for opset 19 or later.")
    assert "fp16, which the operator set 17 does not have" in found.message


def test_pairs_of_fp16_and_of_fp32_do_not_mix(tmp_path: Path) -> None:
    model = typed(quantized_model())
    set_constant(model, "second.weight.scale", [0.004, 0.004], np.float32)
    (found,) = findings(model, tmp_path, "nvidia-gpu")
    assert (found.rule, found.cure) == ("R11", "Give all pairs scales of fp16.")


@pytest.mark.parametrize("target", ["jetson", "nvidia-gpu"])
def test_a_float_graph_may_be_in_fp16_with_its_biases(tmp_path: Path, target: str) -> None:
    spec = ResNetSpec(stem="cifar", blocks=(1, 1), widths=(16, 16), stem_width=16, num_classes=3)
    path = tmp_path / "student.fp16.onnx"
    images = torch.rand(2, 3, 8, 8)
    export_onnx(ResNet(spec), path, example=images, opset=17, ir_version=8, precision="fp16", metadata={})
    assert lint(path, load_target(target)) == []


def test_a_bias_of_fp16_beside_a_weight_of_fp32_is_refused(tmp_path: Path) -> None:
    model = quantized_model()
    (bias,) = [tensor for tensor in model.graph.initializer if tensor.name == "head.b"]
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias).astype(np.float16), bias.name))
    assert rules(findings(model, tmp_path)) == [("R6", "head")]


def test_an_integer_bias_is_refused_in_a_typed_graph_too(tmp_path: Path) -> None:
    model = typed(quantized_model())
    integer_bias(model)
    assert rules(findings(model, tmp_path, "nvidia-gpu")) == [("R6", "first.conv")]


def test_onnx_runtime_takes_what_tensorrt_does_not(tmp_path: Path) -> None:
    model = quantized_model()
    integer_bias(model)
    assert findings(model, tmp_path, "cpu-x86") == []


def test_constants_may_be_nodes(tmp_path: Path) -> None:
    model = quantized_model()
    (zero,) = [tensor for tensor in model.graph.initializer if tensor.name == "first.zero"]
    model.graph.initializer.remove(zero)
    model.graph.node.insert(0, helper.make_node("Constant", [], ["first.zero"], "constant", value=zero))
    assert findings(model, tmp_path) == []


def test_batch_normalisation_is_fine_without_quantization(tmp_path: Path) -> None:
    model = linear_model()
    statistics = ["norm.scale", "norm.bias", "norm.mean", "norm.var"]
    norm = helper.make_node("BatchNormalization", ["images", *statistics], ["normed"], "norm")
    model.graph.node[0].input[0] = "normed"
    model.graph.node.insert(0, norm)
    model.graph.initializer.extend(numpy_helper.from_array(np.ones(1, np.float32), name) for name in statistics)
    assert findings(model, tmp_path) == []


def test_the_operator_table_names_real_operators() -> None:
    known = {schema.name for schema in onnx.defs.get_all_schemas()}
    assert known >= first_versions().keys()


@pytest.mark.parametrize(
    ("operator", "target", "told"),
    [
        ("Relu", "jetson-nano-jp4", None),
        ("Reciprocal", "jetson-nano-jp4", None),
        ("Einsum", "jetson-nano-jp4", "TensorRT has Einsum from 8.2 on, and jetson-nano-jp4 may have 8.0."),
        ("Einsum", "jetson-orin-jp5", None),
        ("Mod", "jetson-orin-jp5", "TensorRT has Mod from 8.5 on, and jetson-orin-jp5 may have 8.4."),
        ("LayerNormalization", "jetson", None),  # JetPack 6.0 brings 8.6, the first with it
        ("HardSwish", "jetson", "TensorRT has HardSwish from 10.0 on, and jetson may have 8.6."),
        ("HardSwish", "nvidia-gpu", None),
        ("DeformConv", "nvidia-gpu", "TensorRT has DeformConv from 10.1 on, and nvidia-gpu may have 10."),
        ("DeformConv", "jetson-orin-jp7", None),
        ("Mish", "nvidia-gpu", "TensorRT has no operator Mish."),
    ],
)
def test_the_oldest_tensorrt_of_a_target_decides_which_operators_there_are(
    operator: str, target: str, told: str | None
) -> None:
    assert lacking(operator, load_target(target)) == told


def test_an_operator_that_an_older_tensorrt_lacks_is_named_with_the_version_that_brought_it(tmp_path: Path) -> None:
    model = linear_model()
    model.graph.node[0].input[0] = "whole"
    model.graph.node.insert(0, helper.make_node("Mod", ["images", "images"], ["whole"], "remainder", fmod=1))
    (found,) = findings(model, tmp_path, "jetson-orin-jp5")
    assert rules([found]) == [("R1", "remainder")]
    assert found.message == "TensorRT has Mod from 8.5 on, and jetson-orin-jp5 may have 8.4."
    assert findings(model, tmp_path, "jetson") == []


def test_what_the_exporter_makes_is_clean(tmp_path: Path) -> None:
    spec = ResNetSpec(stem="cifar", blocks=(1, 1), widths=(16, 16), stem_width=16, num_classes=3)
    quantized = insert_fake_quantization(ResNet(spec).eval(), "s8s8")
    images = torch.rand(2, 3, 8, 8)
    observe(quantized, [images, torch.rand(2, 3, 8, 8)])
    path = tmp_path / "student.int8.onnx"
    export_onnx(
        quantized, path, example=images, opset=ORIN.opset, ir_version=ORIN.ir_version, precision="int8", metadata={}
    )
    assert sum(node.op_type == "QuantizeLinear" for node in onnx.load(path).graph.node) > 5
    assert lint(path, ORIN) == []
