"""ONNX files that are damaged, made to deceive or to exhaust, or that do more than a classifier: one sentence each."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import ModelProto, NodeProto, StringStringEntryProto, TensorProto, helper, numpy_helper

from compress.pipeline.errors import CompressError, InputError
from compress.pipeline.teacher.programs.onnx import file as onnx_file
from compress.pipeline.teacher.programs.onnx import tensors as onnx_tensors
from compress.pipeline.teacher.programs.onnx import translator as onnx_translator
from compress.pipeline.teacher.programs.onnx.model import read_onnx
from tests.graphs import ramp
from tests.teacher.onnx_files import model, node

LARGE = 2**40
"""Numbers that no machine here has room for: 4 TiB in single precision."""


def classifier(*before: NodeProto, opset: int = 17, **constants: Any) -> ModelProto:
    """Three means of the channels of `x`, which is the images unless the nodes before make it."""
    nodes = list(before) or [node("Identity", "images", "x")]
    nodes += [node("GlobalAveragePool", "x", "pooled"), node("Flatten", "pooled", "logits")]
    return model(nodes, {name: np.asarray(value) for name, value in constants.items()}, opset=opset)


def refusal(content: ModelProto | bytes, folder: Path | None = None) -> InputError:
    """How a file of that content is refused: in one sentence, and soon."""
    data = content if isinstance(content, bytes) else content.SerializeToString()
    started = time.monotonic()
    with pytest.raises(InputError) as caught:
        read_onnx(data, "teacher.onnx", folder)
    error = caught.value
    assert time.monotonic() - started < 5
    assert error.exit_code == 3
    assert error.message.startswith("'teacher.onnx' ") and error.message.endswith(".")
    assert error.message.isprintable() and len(error.message) < 400
    assert error.hint
    return error


def test_the_classifier_that_the_hostile_ones_are_made_of_is_read() -> None:
    network = read_onnx(classifier().SerializeToString(), "teacher.onnx").program
    assert network is not None
    images = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(network.network(images), images.mean((2, 3)))


# Bytes


def test_every_truncation_is_refused() -> None:
    whole = classifier(node("Add", "images one", "x"), one=ramp(3, 8, 8)).SerializeToString()
    for length in range(0, len(whole) - 1, 7):
        message = refusal(whole[:length]).message
        assert "damaged or truncated" in message or "without a graph" in message or "versions of ONNX" in message


def test_flipped_bits_never_end_in_another_error() -> None:
    whole = classifier(
        node("Conv", "images kernel bias", "maps", pads=[1, 1, 1, 1]),
        node("BatchNormalization", "maps bias bias bias positive", "normal"),
        node("Reshape", "normal sizes", "x"),
        kernel=ramp(3, 3, 3, 3),
        bias=ramp(3),
        positive=ramp(3) + 1,
        sizes=np.array([0, 0, -1, 4]),
    ).SerializeToString()
    generator = np.random.default_rng(0)
    refused = 0
    for position in generator.integers(0, len(whole), 300):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << int(generator.integers(8))
        try:
            read_onnx(damaged, "teacher.onnx")
        except CompressError as error:
            refused += 1
            assert error.exit_code == 3 and error.message.isprintable()
    assert 100 < refused < 300


def nested(depth: int) -> bytes:
    """A graph in an attribute of a node of a graph, and so on."""
    content = b""
    for field in [*[6, 5, 1] * depth, 7]:  # the graph of an attribute, of a node, of a graph; at last of the model
        content = bytes([field << 3 | 2]) + _varint(len(content)) + content
    return bytes(content)


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    return bytes([*encoded, number])


def with_bytes(*content: int) -> bytes:
    """The classifier with these bytes after it."""
    return bytes(classifier().SerializeToString()) + bytes(content)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "without a graph"),
        (b"\x08\x08\x12\x04test", "without a graph"),
        (with_bytes(0x0B, 0x0C), "damaged or truncated"),  # a group, which ONNX has none of
        (with_bytes(0x12, 0x02, 0xFF, 0xFE), "damaged or truncated"),  # a name that is no UTF-8
        (with_bytes(0x12, 0xFF, 0xFF, 0xFF, 0xFF, 0x0F), "damaged or truncated"),  # a name of 4 GiB
        (with_bytes(0x08, *[0xFF] * 11), "damaged or truncated"),  # a number that does not end
        (nested(400), "damaged or truncated"),
    ],
)
def test_bytes_that_are_no_model_are_refused(content: bytes, reason: str) -> None:
    assert reason in refusal(content).message


def test_more_fields_than_any_network_has_are_refused_before_they_become_objects(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(onnx_file, "MOST_FIELDS", 1000)
    parsed: list[object] = []
    monkeypatch.setattr(onnx_file, "ModelProto", _Recorded(parsed))
    assert "has more than 1,000 fields" in refusal(b"\x3a\xd0\x0f" + b"\x0a\x00" * 1000).message  # 1,000 empty nodes
    assert parsed == []


class _Recorded:
    """Stands for the class of models, and notes what is parsed."""

    DESCRIPTOR = ModelProto.DESCRIPTOR

    def __init__(self, parsed: list[object]) -> None:
        self.parsed = parsed

    def FromString(self, data: bytes) -> ModelProto:
        self.parsed.append(data)
        model: ModelProto = ModelProto.FromString(data)
        return model


# Tensors


def with_tensor(**fields: Any) -> ModelProto:
    """The classifier with one more tensor, whose message has these fields."""
    built = classifier()
    built.graph.initializer.append(TensorProto(**{"name": "weight", "data_type": TensorProto.FLOAT, **fields}))
    return built


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        ({"dims": [2**20, 2**20]}, r"is small but declares 4,398,046,511,104 bytes of tensors"),  # 4 x 2^40
        ({"dims": [2**31, 2**31, 2**31]}, "is small but declares"),
        ({"dims": [2**62, 0]}, "declares 'weight' with a shape that makes no sense"),
        ({"dims": [-1, 4]}, "declares 'weight' with a shape that makes no sense"),
        ({"dims": [1] * 17}, "declares 'weight' with a shape that makes no sense"),
        ({"dims": [4], "raw_data": bytes(12)}, "declares 4 numbers in 'weight' but holds 3"),
        ({"dims": [3], "raw_data": bytes(13)}, "has broken numbers in 'weight'"),
        ({"dims": [3], "float_data": [1.0, 2.0]}, "declares 3 numbers in 'weight' but holds 2"),
        ({"dims": [1], "float_data": [float("nan")]}, "has NaN or infinite numbers in 'weight'"),
        ({"dims": [2], "float_data": [1.0, float("inf")]}, "has NaN or infinite numbers in 'weight'"),
        ({"data_type": TensorProto.STRING, "string_data": [b"x"], "dims": [1]}, "holds 'weight' as STRING rather"),
        ({"data_type": TensorProto.COMPLEX64, "dims": [0]}, "holds 'weight' as COMPLEX64 rather than plain numbers"),
        ({"data_type": TensorProto.FLOAT8E4M3FN, "dims": [0]}, "holds 'weight' as FLOAT8E4M3FN rather"),
        ({"data_type": TensorProto.INT4, "dims": [0]}, "holds 'weight' as INT4 rather"),
        ({"data_type": 99, "dims": [0]}, "holds 'weight' as 99 rather"),
        ({"data_type": TensorProto.UINT8, "int32_data": [300], "dims": [1]}, "has broken numbers in 'weight'"),
        ({"name": ""}, "holds two tensors of one name, or one without a name"),
    ],
)
def test_tensors_that_are_not_what_they_claim_are_refused(tensor: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        raise refusal(with_tensor(**tensor))


def test_two_tensors_of_one_name_are_refused() -> None:
    built = with_tensor(dims=[0])
    built.graph.initializer.append(built.graph.initializer[0])
    assert "holds two tensors of one name" in refusal(built).message


def test_sparse_tensors_are_refused() -> None:
    built = classifier()
    built.graph.sparse_initializer.add()
    assert "holds sparse tensors" in refusal(built).message


def test_a_negative_variance_is_refused() -> None:
    norm = node("BatchNormalization", "images one one one negative", "x", name="bn")
    built = classifier(norm, one=ramp(3) + 1, negative=ramp(3))
    assert "has a negative variance at node 'bn' (BatchNormalization)" in refusal(built).message


def test_statistics_that_are_computed_are_refused() -> None:
    nodes = [
        node("ReduceMean", "images", "mean", axes=[0, 2, 3], keepdims=0),
        node("BatchNormalization", "images one one mean one", "x", name="bn"),
    ]
    message = refusal(classifier(*nodes, one=ramp(3) + 1)).message
    assert "has no recorded statistics of channels at node 'bn' (BatchNormalization)" in message


@pytest.mark.parametrize("length", [2, 5])
def test_statistics_that_do_not_fit_are_refused(length: int) -> None:
    norm = node("BatchNormalization", "images one one one variance", "x")
    assert "cannot be computed at" in refusal(classifier(norm, one=ramp(3) + 1, variance=ramp(length) + 1)).message
    all_of_them = node("BatchNormalization", "images one one one one", "x")
    message = refusal(classifier(all_of_them, one=ramp(length) + 1)).message
    assert "its statistics do not fit a tensor [1, 3, 8, 8]" in message


# Files beside the model


def external(folder: Path, **entries: str) -> ModelProto:
    """The classifier with a bias of three numbers at `entries`, and `weights.bin` with these numbers."""
    (folder / "weights.bin").write_bytes(ramp(3, 1, 1).tobytes())
    built = classifier(node("Add", "images bias", "x"))
    bias = TensorProto(name="bias", data_type=TensorProto.FLOAT, dims=[3, 1, 1], data_location=TensorProto.EXTERNAL)
    given = {"location": "weights.bin", **entries}
    bias.external_data.extend(StringStringEntryProto(key=key, value=value) for key, value in given.items())
    built.graph.initializer.append(bias)
    return built


def test_weights_in_a_file_beside_the_model_are_read(tmp_path: Path) -> None:
    checkpoint = read_onnx(external(tmp_path, offset="4", length="12").SerializeToString(), "m", _longer(tmp_path))
    np.testing.assert_array_equal(checkpoint.tensors["bias"].numpy(), ramp(3, 1, 1))


def _longer(folder: Path) -> Path:
    """The folder after four more bytes were put in front of the weights."""
    path = folder / "weights.bin"
    path.write_bytes(bytes(4) + path.read_bytes())
    return folder


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are opened."""
    paths: list[Path] = []
    original = Path.open

    def recorded(self: Path, *arguments: Any, **keywords: Any) -> Any:
        paths.append(self)
        return original(self, *arguments, **keywords)

    monkeypatch.setattr(Path, "open", recorded)
    return paths


@pytest.mark.parametrize(
    "location", ["../secret", "/etc/hostname", "inner/weights.bin", "..", ".", "", "C:secret", "inner\\secret", "a\0b"]
)
def test_weights_outside_of_the_folder_are_refused_and_never_opened(
    tmp_path: Path, location: str, opened: list[Path]
) -> None:
    folder = tmp_path / "models"
    (folder / "inner").mkdir(parents=True)
    for secret in (tmp_path / "secret", folder / "inner" / "weights.bin"):
        secret.write_bytes(bytes(12))
    built = external(folder, location=location)
    opened.clear()
    assert "looks for 'bias' outside of its folder" in refusal(built, folder).message
    assert opened == []


@pytest.mark.parametrize("link", ["symbolic", "hard", "pipe", "folder"])
def test_weights_behind_a_link_or_in_no_regular_file_are_refused_and_never_opened(
    tmp_path: Path, link: str, opened: list[Path]
) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(12))
    built = external(folder, location="linked")
    make: dict[str, Callable[[Path], object]] = {
        "symbolic": lambda place: place.symlink_to(secret),
        "hard": lambda place: place.hardlink_to(secret),
        "pipe": os.mkfifo,
        "folder": Path.mkdir,
    }
    make[link](folder / "linked")
    opened.clear()
    assert "keeps 'bias' in 'linked', which is a link or no regular file" in refusal(built, folder).message
    assert opened == []


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"location": "missing.bin"}, "keeps 'bias' in 'missing.bin', which cannot be read"),
        ({"location": "x" * 300}, "which cannot be read"),
        ({"length": str(2**50)}, "which has 12 bytes, but its shape comes to 12 bytes"),
        ({"length": "-1"}, "places 'bias' at '-1', which is no number of bytes"),
        ({"length": "9" * 5000}, "which is no number of bytes"),
        ({"offset": "-4"}, "places 'bias' at '-4', which is no number of bytes"),
        ({"offset": "4"}, "places 'bias' at bytes 4 to 16 of 'weights.bin', which has 12 bytes"),
        ({"offset": str(2**62)}, "which has 12 bytes"),
        ({"offset": "0x4"}, "places 'bias' at '0x4', which is no number of bytes"),
        ({"offset": "\u0664"}, "which is no number of bytes"),  # a digit, but not one of ours
        ({"__class__": "x"}, "says where 'bias' lies in words that ONNX does not have"),
    ],
)
def test_places_in_a_file_that_make_no_sense_are_refused(tmp_path: Path, entries: dict[str, str], reason: str) -> None:
    assert reason in refusal(external(tmp_path, **entries), tmp_path).message


def test_a_place_that_is_stated_twice_is_refused(tmp_path: Path) -> None:
    built = external(tmp_path)
    built.graph.initializer[0].external_data.add(key="location", value="weights.bin")
    assert "in words that ONNX does not have" in refusal(built, tmp_path).message


def test_a_model_without_its_folder_is_refused_where_it_needs_one(tmp_path: Path) -> None:
    assert "keeps 'bias' in another file, 'weights.bin'" in refusal(external(tmp_path)).message


def test_many_tensors_in_the_same_bytes_are_refused_before_any_is_made(tmp_path: Path, opened: list[Path]) -> None:
    built = external(tmp_path)
    with (tmp_path / "weights.bin").open("wb") as file:
        file.truncate(2**29)  # sparse: nothing is on the disk
    (bias,) = built.graph.initializer
    bias.dims[:] = [2**27]
    for index in range(6):  # 6 x 2^29 bytes are more than 3 x 2^29 + 2^30, five are not
        built.graph.initializer.add().CopyFrom(bias)
        built.graph.initializer[-1].name = f"copy{index}"
    opened.clear()
    assert "declares 3,221,225,472 bytes of tensors" in refusal(built, tmp_path).message  # 6 x 2^29
    assert opened == [tmp_path / "weights.bin"]  # once


def test_a_file_beside_the_model_that_no_network_needs_is_refused(tmp_path: Path, opened: list[Path]) -> None:
    built = external(tmp_path)
    with (tmp_path / "weights.bin").open("wb") as file:
        file.truncate(2**35 + 1)  # sparse; the limit for any file is 2^35
    opened.clear()
    assert "keeps 'bias' in 'weights.bin', which is too large" in refusal(built, tmp_path).message
    assert opened == []


# Inputs and outputs


def with_ends(**changes: Any) -> ModelProto:
    """The classifier, after its graph's ends were changed."""
    built = classifier()
    value = helper.make_tensor_value_info
    ends = {"inputs": [], "outputs": [], "images": ("images", TensorProto.FLOAT, ["N", 3, 8, 8]), **changes}
    del built.graph.input[:]
    built.graph.input.extend([value(*ends["images"]), *(value(*one) for one in ends["inputs"])])
    built.graph.output.extend(value(*one) for one in ends["outputs"])
    return built


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"inputs": [("mask", TensorProto.FLOAT, ["N", 4])]},
            r"takes 2 inputs: 'images' \[\?, 3, 8, 8\], 'mask' \[\?, 4\]; a classifier of images takes one",
        ),
        (
            {"outputs": [("x", TensorProto.FLOAT, None)]},
            r"has 2 outputs: 'logits' of unknown shape, 'x' of unknown shape; a classifier has one, \[N, K\]",
        ),
        ({"images": ("images", TensorProto.UINT8, ["N", 3, 8, 8])}, r"takes 'images' \[\?, 3, 8, 8\] as UINT8 rather"),
        (
            {"images": ("images", TensorProto.FLOAT, ["N", 3, 8])},
            r"takes 'images' \[\?, 3, 8\]; images are \[N, C, H, W\]",
        ),
        ({"images": ("images", TensorProto.FLOAT, ["N", 8, 8, 3])}, "with the channels last"),
        ({"images": ("images", TensorProto.FLOAT, ["N", 3, LARGE, LARGE])}, "images of 3x1099511627776x1099511627776"),
    ],
)
def test_other_ends_than_a_classifier_has_are_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        raise refusal(with_ends(**changes))


def test_an_output_that_is_no_row_of_logits_is_refused() -> None:
    built = model([node("Relu", "images", "logits")], {}, output=("N", 3, 8, 8))
    assert "puts out 'logits' [?, 3, 8, 8]; a classifier puts out [N, K]" in refusal(built).message
    unknown = model([node("Relu", "images", "logits")], {})
    assert "answers 1 image with a float32 tensor [1, 3, 8, 8]; a classifier answers [N, K]" in refusal(unknown).message


def test_an_output_that_is_no_floating_point_number_or_none_at_all_is_refused() -> None:
    ends = [node("GlobalAveragePool", "images", "pooled"), node("Flatten", "pooled", "flat")]
    choice = model([*ends, node("IsNaN", "flat", "logits")], {})
    assert "answers 1 image with a bool tensor [1, 3]; a classifier answers [N, K]" in refusal(choice).message
    none = model(
        [*ends, node("Slice", "flat three three one", "logits")], {"three": np.array([3]), "one": np.array([1])}
    )
    assert "answers 1 image with a float32 tensor [1, 0]; a classifier answers [N, K]" in refusal(none).message


def test_an_output_that_forgets_the_batch_is_refused() -> None:
    nodes = [node("ReduceMean", "images", "mean", axes=[0, 2, 3], keepdims=0), node("Unsqueeze", "mean zero", "logits")]
    message = refusal(model(nodes, {"zero": np.array([0])}, shape=(4, 3, 8, 8))).message
    assert "answers 4 images with a float32 tensor [1, 3]; a classifier answers [N, K]" in message


def test_a_graph_without_inputs_is_refused() -> None:
    built = classifier()
    del built.graph.input[:]
    assert "takes 0 inputs: none" in refusal(built).message


def test_names_reach_the_terminal_without_control_characters() -> None:
    built = classifier(node("\x1b[2JBad", "images", "x", name="\x1b[2J" + "x" * 1000))
    assert "?[2JBad" in refusal(built).message


# Nodes


def subgraph() -> Any:
    return helper.make_graph([node("Identity", "images", "inner")], "inner", [], [])


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        (node("If", "images", "x", then_branch=subgraph(), else_branch=subgraph()), "uses the operator If, which runs"),
        (node("Loop", "images", "x", body=subgraph()), "uses the operator Loop, which runs a part of the graph"),
        (node("Scan", "images", "x", body=subgraph()), "uses the operator Scan, which runs a part of the graph"),
        (node("Relu", "images", "x", body=subgraph()), "has an attribute 'body' at node 'x' (Relu), which is not read"),
        (node("FusedConv", "images", "x", domain="com.microsoft"), "com.microsoft.FusedConv of a custom domain"),
        (node("Custom", "images", "x"), "uses the operator Custom, which is not read in operator set 17"),
        (node("Gelu", "images", "x"), "uses the operator Gelu, which is not read in operator set 17"),  # since 20
        (node("QuantizeLinear", "images one", "x"), "is quantized: it uses the operator QuantizeLinear"),
        (node("QLinearConv", "images one", "x"), "is quantized: it uses the operator QLinearConv"),
        (node("ConvInteger", "images one", "x"), "is quantized: it uses the operator ConvInteger"),
        (node("LeakyRelu", "images", "x", alpha=1), "has INT rather than FLOAT in the attribute 'alpha' at node 'x'"),
        (node("Softmax", "images", "x", axis="1"), "has STRING rather than INT in the attribute 'axis' at node 'x'"),
        (node("Pad", "images one", "x", mode="hack"), "has the mode 'hack' at node 'x' (Pad), which is not read"),
        (
            node("Relu", "images", "x", alpha=1.0),
            "has an attribute 'alpha' at node 'x' (Relu), which is not read there",
        ),
        (node("MaxPool", "images", "x"), "lacks the attribute 'kernel_shape' at node 'x' (MaxPool)"),
        (node("Relu", "images images", "x"), "has 2 inputs at node 'x' (Relu), which takes 1"),
        (node("Add", "images", "x"), "lacks an input at node 'x' (Add)"),
        (helper.make_node("Sum", ["images", ""], ["x"]), "lacks an input at node 'x' (Sum)"),
        (node("Concat", "", "x", axis=0), "cannot be computed at node 'x' (Concat)"),
        (node("Relu", "nothing", "x"), "takes 'nothing' at node 'x' (Relu), but nothing before it makes that"),
        (node("Relu", "x", "x"), "takes 'x' at node 'x' (Relu), but nothing before it makes that"),  # a cycle
        (node("Relu", "images", "images"), "makes 'images' twice"),
        (node("Constant", "", "x"), "has 0 values at node 'x' (Constant) rather than one"),
        (node("Constant", "", "x", value_string="x"), "has an attribute 'value_string' at node 'x' (Constant)"),
        (node("Cast", "images", "x", to=TensorProto.STRING), "numbers of type STRING are not read"),
        (node("Cast", "images", "x", to=2**40), "numbers of type 1099511627776 are not read"),
        (node("Transpose", "images", "x", perm=[0, 1]), "cannot be computed at node 'x' (Transpose)"),
        (node("Softmax", "images", "x", axis=9), "cannot be computed at node 'x' (Softmax)"),
        (node("Flatten", "images", "x", axis=-9), "a tensor of 4 dimensions has no axis -9"),
        (node("MaxPool", "images", "x", kernel_shape=[0, 0]), "are beyond any image"),
        (node("MaxPool", "images", "x", kernel_shape=[2, 2], strides=[0, 1]), "are beyond any image"),
        (node("MaxPool", "images", "x", kernel_shape=[2, 2], pads=[LARGE, 0, 0, 0]), "do not fit a kernel (2, 2)"),
        (node("Conv", "images kernel", "x", pads=[1025] * 4), "do not fit a kernel (3, 3)"),
        (node("ConvTranspose", "images kernel", "x", strides=[1, 2**20]), "are beyond any image"),
        (node("Conv", "images kernel", "x", group=0), "cannot be computed at node 'x' (Conv)"),
        (node("Conv", "images kernel", "x", kernel_shape=[5, 5]), "kernel_shape (5, 5) is not that of the weights"),
        (node("Conv", "images one", "x"), "cannot be computed at node 'x' (Conv)"),
        (node("DepthToSpace", "images", "x", blocksize=0), "cannot be computed at node 'x' (DepthToSpace)"),
        (node("LRN", "images", "x", size=-1), "cannot be computed at node 'x' (LRN)"),
        (node("Gather", "images five", "x", axis=1), "cannot be computed at"),
        (node("Split", "images", "x", axis=1, num_outputs=LARGE), "which is not read there"),  # since 18
    ],
)
def test_nodes_that_are_not_what_they_should_be_are_refused(before: NodeProto, reason: str) -> None:
    built = classifier(before, one=ramp(1), five=np.array([5]), kernel=ramp(3, 3, 3, 3))
    assert reason in refusal(built).message


def test_an_attribute_that_is_given_twice_is_refused() -> None:
    built = classifier(node("LeakyRelu", "images", "x", alpha=0.1))
    built.graph.node[0].attribute.append(helper.make_attribute("alpha", 0.2))
    assert "has the attribute 'alpha' twice at node 'x' (LeakyRelu)" in refusal(built).message


def test_parts_that_do_not_fit_the_outputs_are_refused_without_counting_to_them() -> None:
    parts = node("Split", "images", "x y", axis=1, num_outputs=LARGE)
    assert "parts do not fit 2 outputs" in refusal(classifier(parts, opset=18)).message


def test_an_output_that_nothing_makes_is_refused() -> None:
    built = classifier()
    built.graph.output[0].name = "other"
    assert "has the output 'other', which nothing makes" in refusal(built).message


def test_a_sequence_of_tensors_is_no_tensor() -> None:
    nodes = [node("SplitToSequence", "constant", "parts"), node("Add", "images parts", "x")]
    assert "computes with a sequence of tensors" in refusal(classifier(*nodes, constant=ramp(2, 3))).message


@pytest.mark.parametrize(
    ("versions", "reason"),
    [
        ([6], "is of operator set 6; those from 7 to 21 are read"),
        ([22], "is of operator set 22; those from 7 to 21 are read"),
        ([-1], "is of operator set -1; those from 7 to 21 are read"),
        ([], "states 0 versions of ONNX's operators rather than one"),
        ([13, 17], "states 2 versions of ONNX's operators rather than one"),
    ],
)
def test_other_operator_sets_are_refused(versions: list[int], reason: str) -> None:
    built = classifier()
    del built.opset_import[:]
    built.opset_import.extend(helper.make_opsetid("", version) for version in versions)
    assert reason in refusal(built).message


# Functions


def calling(*called: str, name: str = "F") -> Any:
    """A function that calls others, one after the other."""
    names = ["x", *(f"v{index}" for index in range(len(called)))]
    nodes = [
        helper.make_node(function, [names[index]], [names[index + 1]], domain="own" if function != "Relu" else "")
        for index, function in enumerate(called)
    ]
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    return helper.make_function("own", name, ["x"], [names[-1]], nodes, imports)


def with_functions(*functions: Any) -> ModelProto:
    built = classifier(node(functions[0].name, "images", "x", domain="own"))
    built.functions.extend(functions)
    return built


def test_functions_that_call_themselves_are_refused() -> None:
    assert "calls functions inside functions, more than 16 deep" in refusal(with_functions(calling("F"))).message
    cycle = with_functions(calling("G"), calling("F", name="G"))
    assert "calls functions inside functions, more than 16 deep" in refusal(cycle).message


def test_functions_that_double_at_every_call_are_refused() -> None:
    levels = [calling(f"F{level + 1}", f"F{level + 1}", name=f"F{level}") for level in range(15)]  # 2^15 at the bottom
    built = with_functions(*levels, calling("Relu", name="F15"))
    assert "has more than 10,000 nodes" in refusal(built).message


def test_a_function_that_is_defined_twice_is_refused() -> None:
    assert "defines a function twice" in refusal(with_functions(calling("Relu"), calling("Relu"))).message


def test_more_nodes_than_any_network_has_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_translator, "MOST_NODES", 2)
    assert "has more than 2 nodes" in refusal(classifier()).message


# Small files that ask for much


def sizes_of_images() -> list[NodeProto]:
    """`n`, the number of images as a vector: known only when the network runs."""
    return [node("Shape", "images", "shape"), node("Slice", "shape zero one", "n")]


BOMBS: dict[str, list[NodeProto]] = {
    "filled": [node("ConstantOfShape", "large", "y")],
    "filled, when it runs": [*sizes_of_images(), node("Mul", "n large", "size"), node("ConstantOfShape", "size", "y")],
    "expanded": [node("Expand", "number large", "y")],
    "expanded, when it runs": [node("Expand", "pixel large", "y")],
    "tiled": [node("Tile", "row large", "y")],
    "tiled, when it runs": [node("Tile", "images repeats", "y")],
    "counted": [node("Range", "start end step", "y")],
    "counted, when it runs": [
        *sizes_of_images(),
        node("Mul", "n large", "limits"),
        node("Squeeze", "limits", "limit"),
        node("Range", "start limit step", "y"),
    ],
    "resized": [helper.make_node("Resize", ["images", "", "scales"], ["y"])],
    "resized linearly": [helper.make_node("Resize", ["images", "", "", "pixels"], ["y"], mode="linear")],
    "padded": [node("Pad", "images pads", "y")],
    "padded around the edge": [node("Pad", "images pads", "y", mode="edge")],
    "padded inside an operator": [node("LRN", "images", "y", size=2**30)],
    "broadcast": [node("Add", "column row", "y")],
    "broadcast, when it runs": [node("Mul", "row pixel", "t"), node("Add", "t column", "y")],
    "chosen from two": [node("Less", "column column", "c"), node("Where", "c row column", "y")],
    "multiplied": [node("Transpose", "column", "t"), node("MatMul", "column t", "y")],
    "gathered": [node("Gather", "row positions", "y")],
    "doubled again and again": [
        node(
            "Concat", f"{'images' if not level else f'd{level - 1}'} " * 2, "y" if level == 39 else f"d{level}", axis=2
        )
        for level in range(40)
    ],
    "of many dimensions": [node("Unsqueeze", "images axes", "y")],
    "held all at a time": [
        node("Tile", "images some", "t"),
        *(node("Relu", "t", f"r{index}") for index in range(30)),
        node("Sum", " ".join(f"r{index}" for index in range(30)), "y"),
    ],
    "written again and again": [
        node("Tile", "images some", "r0"),
        *(node("Relu", f"r{index}", f"r{index + 1}") for index in range(700)),
        node("Relu", "r700", "y"),
    ],
    "multiplied for hours": [
        node("Expand", "one square", "big"),
        node("Mul", "pixel big", "m0"),
        *(node("MatMul", f"m{index} m0", f"m{index + 1}") for index in range(5)),  # 2 x (2^13)^3 = 2^40 operations each
        node("Relu", "m5", "y"),
    ],
}


@pytest.mark.parametrize("name", BOMBS)
def test_small_files_that_ask_for_much_are_refused_before_it_is_paid(name: str) -> None:
    nodes = [
        node("ReduceMean", "images", "pixel", axes=[0, 1, 2, 3], keepdims=0),
        *BOMBS[name],
        node("Cast", "y", "z", to=TensorProto.FLOAT),
        node("ReduceMean", "z", "mean", keepdims=0),
        node("Add", "images mean", "x"),
    ]
    many = np.zeros(2**17, np.float32)
    built = classifier(
        *nodes,
        zero=np.array([0]),
        one=np.array([1]) if "n" in [output for one in nodes for output in one.output] else np.float32(1),
        large=np.array([LARGE]),
        number=np.float32(1),
        repeats=np.array([1, 1, 2**20, 2**20]),
        some=np.array([1, 1, 512, 1024]),  # 3 x 2^12 x 2^13 numbers: 2^26.6
        start=np.array(0),
        end=np.array(LARGE),
        step=np.array(1),
        scales=np.array([1, 1, 2**20, 2**20], np.float32),
        pixels=np.array([1, 3, 2**20, 2**20]),
        pads=np.array([0, 0, 0, 0, 0, 0, 2**20, 2**20]),
        kernel=ramp(3, 3, 2, 2),
        row=many,
        column=many[:, None],
        positions=np.zeros((2**15, 1), np.int64) if name != "gathered" else np.zeros((2**8, 1), np.int64),
        axes=np.arange(100),
        square=np.array([2**13, 2**13]),
    )
    if name == "gathered":
        built.graph.initializer.append(numpy_helper.from_array(np.zeros((2, 2**17), np.float32), "wide"))
        built.graph.initializer.append(numpy_helper.from_array(np.zeros(2**12, np.int64), "twice"))
        built.graph.node[1].CopyFrom(node("Gather", "wide twice", "y"))
    assert len(built.SerializeToString()) < 4 * 2**20
    error = refusal(built)
    assert error.hint == "It is damaged or made to deceive; get it from whoever trained the model."


def test_constants_that_grow_are_refused_before_they_pass_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_tensors, "memory_limit", lambda size: 2**20)
    doubled = [node("Concat", f"d{level} d{level}", f"d{level + 1}", axis=0) for level in range(40)]
    built = classifier(
        *doubled, node("ReduceMean", "d40", "mean", keepdims=0), node("Add", "images mean", "x"), d0=ramp(4)
    )
    # 2^20 bytes are 2^18 numbers: 8 + 16 + ... + 2^17 are less, and with 2^18 more it is too much.
    assert "cannot be computed at node 'd16' (Concat): it would make 524,280 numbers in all" in refusal(built).message


def test_sizes_that_depend_on_the_pixels_are_refused() -> None:
    nodes = [
        node("ReduceMax", "images", "most", keepdims=0),
        node("Cast", "most", "count", to=TensorProto.INT64),
        node("Range", "zero count one", "numbers"),
        node("Cast", "numbers", "floats", to=TensorProto.FLOAT),
        node("ReduceMean", "floats", "mean", keepdims=0),
        node("Add", "images mean", "x"),
    ]
    built = classifier(*nodes, zero=np.array(0), one=np.array(1))
    assert "(Range): its sizes depend on the pixels of the image" in refusal(built).message


def test_what_an_image_of_another_size_would_cost_is_known_before_it_is_paid() -> None:
    nodes = [
        node("Shape", "images", "shape"),
        node("Slice", "shape two three", "height"),
        node("Sub", "height eight", "more"),
        node("Mul", "more large", "much"),
        node("ConstantOfShape", "much", "zeros"),
        node("ReduceSum", "zeros", "none", keepdims=0),
        node("Add", "images none", "x"),
    ]
    two, three, eight, large = (np.array([number]) for number in (2, 3, 8, LARGE))
    built = classifier(*nodes, two=two, three=three, eight=eight, large=large)
    for size in built.graph.input[0].type.tensor_type.shape.dim[2:]:
        size.dim_param = "size"
    helper.set_model_props(built, {"input_size": "8"})
    program = read_onnx(built.SerializeToString(), "teacher.onnx").program
    assert program is not None
    assert program.network(torch.rand(1, 3, 8, 8)).shape == (1, 3)
    with pytest.raises(InputError, match="it would make a tensor of 1,099,511,627,776 numbers"):
        program.network(torch.rand(1, 3, 9, 8))
