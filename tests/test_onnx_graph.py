import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto, NodeProto, numpy_helper
from torch import Tensor, fx, nn

from compress.exporters import onnx_graph
from compress.exporters.calibration import observe
from compress.exporters.integer_weights import store_integer_weights
from compress.exporters.legalise import legalise
from compress.exporters.lint import lint
from compress.exporters.onnx_graph import export_onnx
from compress.exporters.qdq import Scheme, insert_fake_quantization
from compress.exporters.runners import OnnxRunner
from compress.exporters.targets import Precision, load_target
from compress.pipeline.errors import CompressError, InputError
from compress.pipeline.records import ExportedGraph
from tests.networks import student

DIGITS = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def quantized(scheme: Scheme) -> fx.GraphModule:
    module = insert_fake_quantization(student(), scheme)
    observe(module, [DIGITS[:3], DIGITS[3:]])
    return module


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def constants(model: ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def nodes(model: ModelProto, operator: str) -> list[NodeProto]:
    return [node for node in model.graph.node if node.op_type == operator]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("graphs")


@pytest.fixture(scope="module")
def fp32(folder: Path) -> ExportedGraph:
    return export_onnx(
        student(), folder / "fp32.onnx", example=DIGITS, opset=17, ir_version=8, metadata={"labels": '["a", "b"]'}
    )


@pytest.fixture(scope="module")
def s8s8(folder: Path) -> ExportedGraph:
    return export_onnx(
        quantized("s8s8"), folder / "s8s8.onnx", example=DIGITS, opset=17, ir_version=8, precision="int8", metadata={}
    )


@pytest.fixture(scope="module")
def u8s8(folder: Path) -> ExportedGraph:
    return export_onnx(
        quantized("u8s8"),
        folder / "u8s8.onnx",
        example=DIGITS,
        opset=19,
        ir_version=9,
        precision="int8",
        integer_weights=True,
        metadata={},
    )


def test_the_record_is_what_the_file_says(fp32: ExportedGraph, folder: Path) -> None:
    content = (folder / "fp32.onnx").read_bytes()
    model = onnx.load(folder / "fp32.onnx")
    assert (fp32.file_name, fp32.precision) == ("fp32.onnx", "fp32")
    assert (fp32.sha256, fp32.size_bytes) == (hashlib.sha256(content).hexdigest(), len(content))
    assert (fp32.opset, fp32.ir_version) == (17, 8) == (model.opset_import[0].version, model.ir_version)
    assert {entry.key: entry.value for entry in model.metadata_props} == {"labels": '["a", "b"]'}
    assert fp32.max_abs_difference < 1e-5
    assert [path.name for path in folder.glob("fp32*")] == ["fp32.onnx"]


def test_the_graph_is_plain_and_has_the_normalisation_inside(fp32: ExportedGraph, folder: Path) -> None:
    assert operators(folder / fp32.file_name) == {
        "Sub": 1,
        "Div": 1,
        "Conv": 6,
        "Relu": 5,
        "Add": 2,
        "GlobalAveragePool": 1,
        "Flatten": 1,
        "Gemm": 1,
    }


def test_a_dynamic_batch_is_named_and_runs_at_any_size(fp32: ExportedGraph, folder: Path) -> None:
    model = onnx.load(folder / fp32.file_name)
    (images,), (logits,) = model.graph.input, model.graph.output
    assert (images.name, logits.name) == ("images", "logits")
    assert images.type.tensor_type.shape.dim[0].dim_param == "batch" == logits.type.tensor_type.shape.dim[0].dim_param
    session = onnxruntime.InferenceSession(folder / fp32.file_name, providers=["CPUExecutionProvider"])
    for size in (1, 5):
        answers = session.run(None, {"images": DIGITS[:size].numpy()})[0]
        np.testing.assert_allclose(answers, student()(DIGITS[:size]).detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_layout_in_memory_leaves_no_trace_in_the_graph(tmp_path: Path, precision: Precision) -> None:
    images = torch.rand(4, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    network: nn.Module = student(channels=3, shortcut="pad")
    if precision == "int8":
        network = insert_fake_quantization(network, "s8s8")
        assert isinstance(network, fx.GraphModule)
        observe(network, [images[:2], images[2:]])
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # its stub knows no layouts
    path = tmp_path / "student.onnx"
    export_onnx(network, path, example=images, opset=13, ir_version=7, precision=precision, metadata={})
    found = operators(path)
    assert found["GlobalAveragePool"] == 1
    assert not {"Shape", "Gather", "Range", "Reshape"} & found.keys()


def test_exporting_twice_gives_the_same_bytes(fp32: ExportedGraph, tmp_path: Path) -> None:
    again = export_onnx(
        student(), tmp_path / "again.onnx", example=DIGITS, opset=17, ir_version=8, metadata={"labels": '["a", "b"]'}
    )
    assert again.sha256 == fp32.sha256


def test_the_file_says_nothing_about_the_machine_that_made_it(fp32: ExportedGraph, folder: Path) -> None:
    content = (folder / fp32.file_name).read_bytes()
    assert b"resnet.py" not in content and str(Path.cwd()).encode() not in content


def test_the_exporter_is_silent(capfd: pytest.CaptureFixture[str], s8s8: ExportedGraph, tmp_path: Path) -> None:
    capfd.readouterr()
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    export_onnx(network, tmp_path / "linear.onnx", example=DIGITS, opset=17, ir_version=8, metadata={})
    assert capfd.readouterr() == ("", "")


def test_an_imagenet_stem_with_padded_shortcuts_fits_operator_set_13_with_a_static_batch(tmp_path: Path) -> None:
    images = torch.rand(2, 3, 32, 32)
    network = student(channels=3, imagenet_stem=True, shortcut="pad")
    path = tmp_path / "static.onnx"
    record = export_onnx(network, path, example=images, opset=13, ir_version=7, dynamic_batch=False, metadata={})
    model = onnx.load(path)
    assert [size.dim_value for size in model.graph.input[0].type.tensor_type.shape.dim] == [1, 3, 32, 32]
    assert (record.opset, record.ir_version) == (13, 7)
    assert operators(path)["MaxPool"] == operators(path)["Pad"] == 1
    assert record.max_abs_difference < 1e-4


def test_half_precision_is_inside_only(tmp_path: Path) -> None:
    path = tmp_path / "fp16.onnx"
    record = export_onnx(student(), path, example=DIGITS, opset=17, ir_version=8, precision="fp16", metadata={})
    model = onnx.load(path)
    assert {tensor.data_type for tensor in model.graph.initializer} == {onnx.TensorProto.FLOAT16}
    interface = [*model.graph.input, *model.graph.output]
    assert {value.type.tensor_type.elem_type for value in interface} == {onnx.TensorProto.FLOAT}
    assert operators(path)["Cast"] == 2
    assert 0 < record.max_abs_difference < 2e-2


def test_the_tensorrt_graph_breaks_no_rule_of_tensorrt(s8s8: ExportedGraph, folder: Path) -> None:
    assert lint(folder / s8s8.file_name, load_target("jetson")) == []


def test_every_zero_point_of_the_tensorrt_graph_is_given_and_zero(s8s8: ExportedGraph, folder: Path) -> None:
    model = onnx.load(folder / s8s8.file_name)
    values = constants(model)
    pairs = nodes(model, "QuantizeLinear") + nodes(model, "DequantizeLinear")
    assert len(pairs) == 2 * (7 + 6)  # tensors and weights
    for node in pairs:
        zero_point, scale = values[node.input[2]], values[node.input[1]]
        assert zero_point.dtype == np.int8 and not zero_point.any() and zero_point.shape == scale.shape
        assert scale.dtype == np.float32 and (scale > 0).all()


def test_each_tensor_has_one_pair_and_no_batch_norm_is_left(s8s8: ExportedGraph, folder: Path) -> None:
    model = onnx.load(folder / s8s8.file_name)
    quantized_tensors = [node.input[0] for node in nodes(model, "QuantizeLinear")]
    assert len(set(quantized_tensors)) == len(quantized_tensors)
    assert nodes(model, "BatchNormalization") == []


@pytest.mark.parametrize("scheme", ["s8s8", "u8s8"])
def test_onnx_runtime_rounds_as_the_fake_quantized_network(
    scheme: Scheme, request: pytest.FixtureRequest, folder: Path
) -> None:
    record: ExportedGraph = request.getfixturevalue(scheme)
    images = torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(9))
    with OnnxRunner(folder / record.file_name, exact=True) as runner, torch.no_grad():
        difference = np.abs(runner(images.numpy()) - quantized(scheme)(images).numpy())
    # Nearly all images agree to the last bits; a value that falls on the border of two levels may go either way.
    assert np.median(difference) < 1e-5
    assert difference.max() < 5e-2


def test_onnx_runtime_computes_every_convolution_and_sum_of_its_graph_on_integers(
    u8s8: ExportedGraph, folder: Path, tmp_path: Path
) -> None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(folder / u8s8.file_name, options, providers=["CPUExecutionProvider"])
    optimised = operators(tmp_path / "optimised.onnx")
    assert (optimised["QLinearConv"], optimised["Conv"], optimised["Relu"]) == (6, 0, 0)
    assert (optimised["QLinearAdd"], optimised["Add"]) == (2, 0)


def test_integer_weights_are_a_quarter_of_the_bytes_and_give_the_same_logits(
    s8s8: ExportedGraph, folder: Path, tmp_path: Path
) -> None:
    model = onnx.load(folder / s8s8.file_name)
    stored = store_integer_weights(model)
    onnx.save(stored, tmp_path / "stored.onnx")
    weights = [
        tensor for tensor in stored.graph.initializer if tensor.data_type == onnx.TensorProto.INT8 and tensor.dims[1:]
    ]
    assert len(weights) == 6
    assert stored.ByteSize() < 0.4 * model.ByteSize()
    answers = []
    for path in (folder / s8s8.file_name, tmp_path / "stored.onnx"):
        with OnnxRunner(path, exact=True) as runner:
            answers.append(runner(DIGITS.numpy()))
    np.testing.assert_array_equal(answers[0], answers[1])


def test_a_graph_that_answers_differently_is_refused_and_leaves_no_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def sabotaged(model: ModelProto, opset: int, ir_version: int) -> ModelProto:
        legal = legalise(model, opset, ir_version)
        bias = next(tensor for tensor in legal.graph.initializer if tensor.name.endswith("bias"))
        bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + 1, bias.name))
        return legal

    monkeypatch.setattr(onnx_graph, "legalise", sabotaged)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(CompressError, match=r"disagree on 'linear.onnx': logits differ by 1"):
        export_onnx(network, tmp_path / "linear.onnx", example=DIGITS, opset=17, ir_version=8, metadata={})
    assert list(tmp_path.iterdir()) == []


def test_a_scale_that_is_eight_times_too_large_is_no_matter_of_rounding(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def sabotaged(model: ModelProto, opset: int, ir_version: int) -> ModelProto:
        legal = legalise(model, opset, ir_version)
        dequantize = nodes(legal, "DequantizeLinear")[4]
        scale = constants(legal)[dequantize.input[1]]
        legal.graph.initializer.append(numpy_helper.from_array(scale * 8, "wrong"))
        dequantize.input[1] = "wrong"
        return legal

    monkeypatch.setattr(onnx_graph, "legalise", sabotaged)
    with pytest.raises(CompressError, match=r"disagree on 's8s8.onnx'"):
        export_onnx(
            quantized("s8s8"),
            tmp_path / "s8s8.onnx",
            example=DIGITS,
            opset=17,
            ir_version=8,
            precision="int8",
            metadata={},
        )
    assert list(tmp_path.iterdir()) == []


PIXELS = torch.randint(0, 256, (6, 1, 8, 8), generator=torch.Generator().manual_seed(1)).float() / 255
FLAVOURS: dict[str, tuple[Callable[[], nn.Module], str, dict[str, Any]]] = {
    "fp32": (student, "jetson", {}),
    "fp16": (student, "jetson", {"precision": "fp16"}),
    "for TensorRT": (lambda: quantized("s8s8"), "jetson", {"precision": "int8"}),
    "for ONNX Runtime": (lambda: quantized("u8s8"), "cpu-x86", {"precision": "int8", "integer_weights": True}),
    "typed": (
        lambda: quantized("s8s8"),
        "jetson-orin-jp7",
        {"precision": "int8", "integer_weights": True, "typed": True, "opset": 19, "ir_version": 9},
    ),
}
"""What is exported, for which target, and how."""


@pytest.mark.parametrize("dynamic_batch", [True, False])
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_file_that_takes_bytes_gives_the_very_logits_of_the_one_that_takes_numbers(
    flavour: str, dynamic_batch: bool, tmp_path: Path
) -> None:
    make, target, changes = FLAVOURS[flavour]
    shared: dict[str, Any] = {
        "opset": 17,
        "ir_version": 8,
        "example": PIXELS,
        "dynamic_batch": dynamic_batch,
        "metadata": {},
    }
    options = shared | changes
    plain = export_onnx(make(), tmp_path / "plain.onnx", **options)
    record = export_onnx(make(), tmp_path / "camera.onnx", input_form="uint8-nhwc", **options)
    assert (plain.input_form, record.input_form) == ("float32-nchw", "uint8-nhwc")
    with (
        OnnxRunner(tmp_path / "camera.onnx", exact=True) as camera,
        OnnxRunner(tmp_path / "plain.onnx", exact=True) as it,
    ):
        np.testing.assert_array_equal(camera(PIXELS.numpy()), it(PIXELS.numpy()))
    assert lint(tmp_path / "camera.onnx", load_target(target)) == lint(tmp_path / "plain.onnx", load_target(target))
    if flavour != "fp16":  # its biases are fp16, which no target asks for
        assert lint(tmp_path / "camera.onnx", load_target(target)) == []
    images = onnx.load(tmp_path / "camera.onnx").graph.input[0]
    batch, *sizes = images.type.tensor_type.shape.dim
    assert (images.name, images.type.tensor_type.elem_type) == ("images", onnx.TensorProto.UINT8)
    assert [size.dim_value for size in sizes] == [8, 8, 1]
    assert (batch.dim_param, batch.dim_value) == (("batch", 0) if dynamic_batch else ("", 1))


def test_bytes_are_cast_before_anything_else_and_scaled_in_fp32(tmp_path: Path) -> None:
    path = tmp_path / "typed.onnx"
    export_onnx(
        quantized("s8s8"),
        path,
        example=PIXELS,
        opset=19,
        ir_version=9,
        precision="int8",
        typed=True,
        input_form="uint8-nhwc",
        metadata={},
    )
    model = onnx.load(path)
    assert [node.name for node in model.graph.node[:4]] == [
        "images_pixels_cast",
        "images_planes_transpose",
        "images_scaled_div",
        "images_fp16_cast",
    ]
    floats = [name for name, array in constants(model).items() if array.dtype == np.float32]
    assert floats == ["images_white"]
    assert lint(path, load_target("jetson-orin-jp7")) == []


def test_a_network_that_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(InputError, match="cannot be exported to ONNX"):
        export_onnx(Branching(), tmp_path / "x.onnx", example=DIGITS, opset=17, ir_version=8, metadata={})
    assert list(tmp_path.iterdir()) == []
