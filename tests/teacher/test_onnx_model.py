import copy
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import AttributeProto, FunctionProto, ModelProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from compress.pipeline.errors import InputError
from compress.pipeline.teacher.checkpoint import Checkpoint
from compress.pipeline.teacher.programs.onnx.model import read_onnx
from tests.graphs import ramp
from tests.networks import unsettle
from tests.teacher.onnx_files import export, model, node, resnet_by_hand, weights_of
from tests.teacher.small_resnet import small_resnet
from tests.teacher.teachers import images_of, teacher_of

FOLDED = "The graph has no batch norm, but 8 of its convolutions add a bias: exporters fold batch norms into these"
OPSETS = (7, 9, 11, 13, 15, 21)


def read(built: ModelProto, folder: Path | None = None) -> Checkpoint:
    return read_onnx(built.SerializeToString(), "teacher.onnx", folder)


def network_of(checkpoint: Checkpoint) -> nn.Module:
    assert checkpoint.program is not None
    return checkpoint.program.network


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The small residual network in the ways that PyTorch exports it; each file has its weights beside it."""
    folder = tmp_path_factory.mktemp("exported")
    return {
        "folded": export(small_resnet(), folder / "folded.onnx", 32, optimize=True),
        "kept": export(small_resnet(), folder / "kept.onnx", 32, optimize=False),
    }


@pytest.fixture(params=["folded", "kept", *(f"operator set {opset}" for opset in OPSETS)])
def checkpoint(request: pytest.FixtureRequest, files: dict[str, Path]) -> Checkpoint:
    if request.param in files:
        path = files[request.param]
        return read_onnx(path.read_bytes(), path.name, path.parent)
    return read(resnet_by_hand(int(request.param.split()[-1])))


def outcome(network: nn.Module, tapped: bool) -> tuple[Tensor, list[Tensor], Tensor]:
    """Logits, what enters the batch norms, and the gradient of a mixture of both, or of the logits alone."""
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1)).requires_grad_()
    logits, taps = teacher_of(network, images_of(size=32)).logits_and_bn_inputs(images)
    mixture = logits.square().sum() + sum((tap.square().mean() for tap in taps if tapped), torch.zeros(()))
    return logits, taps, torch.autograd.grad(mixture, images)[0]


def batch_norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


def test_a_model_answers_as_the_network_that_it_was_made_of(checkpoint: Checkpoint) -> None:
    tapped = bool(batch_norms(network_of(checkpoint)))
    logits, taps, gradient = outcome(network_of(checkpoint), tapped)
    wanted_logits, wanted_taps, wanted_gradient = outcome(small_resnet(), tapped)
    torch.testing.assert_close(logits, wanted_logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-4, atol=1e-5)
    assert len(taps) == (len(wanted_taps) if tapped else 0)
    for tap, wanted in zip(taps, wanted_taps, strict=False):
        torch.testing.assert_close(tap, wanted, rtol=1e-4, atol=1e-4)


def test_batch_norms_are_kept_with_their_statistics_except_where_the_exporter_folded_them(
    checkpoint: Checkpoint,
) -> None:
    found = batch_norms(network_of(checkpoint))
    wanted = batch_norms(small_resnet())
    if checkpoint.file_name == "folded.onnx":
        assert not found
        assert [warning[: len(FOLDED)] for warning in checkpoint.warnings] == [FOLDED]
        return
    assert checkpoint.warnings == ()
    # A graph computes the shortcut after the block, whose module comes last as well.
    assert len(found) == len(wanted)
    for norm, original in zip(found, wanted, strict=True):
        assert norm.running_var is not None and original.running_var is not None
        torch.testing.assert_close(norm.running_var, original.running_var)


def test_weights_have_the_names_that_they_had_in_the_network(files: dict[str, Path]) -> None:
    path = files["kept"]
    tensors = read_onnx(path.read_bytes(), path.name, path.parent).tensors
    for name, array in weights_of(small_resnet()).items():
        np.testing.assert_array_equal(tensors[name].numpy(), array)


def test_names_lose_the_wrappers_in_front_of_them() -> None:
    built = resnet_by_hand(13)
    for tensor in built.graph.initializer:
        tensor.name = f"module.{tensor.name}"
    for one in built.graph.node:
        for index, name in enumerate(one.input):
            one.input[index] = name if name.startswith("value") or name == "images" else f"module.{name}"
    built.graph.initializer.append(numpy_helper.from_array(np.array(7), "module.bn1.num_batches_tracked"))
    checkpoint = read(built)
    assert checkpoint.tensors.keys() == weights_of(small_resnet()).keys()
    assert checkpoint.batches_tracked == {"bn1": 7}


def test_the_hash_covers_the_model_and_the_weights_beside_it(files: dict[str, Path], tmp_path: Path) -> None:
    path = files["kept"]
    data, beside = path.read_bytes(), path.with_name("kept.onnx.data").read_bytes()
    copied = tmp_path / "kept.onnx.data"
    copied.write_bytes(beside)
    first = read_onnx(data, "kept.onnx", tmp_path)
    assert first.sha256 != hashlib.sha256(data).hexdigest()
    copied.write_bytes(bytes([beside[0] ^ 1]) + beside[1:])
    assert read_onnx(data, "kept.onnx", tmp_path).sha256 != first.sha256


def test_the_hash_of_a_model_in_one_piece_is_that_of_the_file() -> None:
    data = resnet_by_hand(13).SerializeToString()
    assert read_onnx(data, "teacher.onnx").sha256 == hashlib.sha256(data).hexdigest()


def test_the_record_says_what_the_file_holds() -> None:
    checkpoint = read(resnet_by_hand(13))
    assert checkpoint.format == "ONNX model of operator set 13"
    assert checkpoint.program is not None
    assert checkpoint.program.title == "ONNX graph of 34 operations"
    assert checkpoint.program.input_shape == (None, 3, 32, 32)


def test_the_network_is_frozen_and_copies_of_it_are_its_equals() -> None:
    network = network_of(read(resnet_by_hand(13)))
    assert not network.training and not any(parameter.requires_grad for parameter in network.parameters())
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(copy.deepcopy(network)(images), network(images))


def test_names_from_the_file_never_become_code() -> None:
    built = resnet_by_hand(13)
    hostile = "x; raise SystemExit #"
    for one in built.graph.node:
        one.name, one.doc_string = hostile, hostile
        for index, name in enumerate(one.output):
            one.output[index] = name if name == "logits" else f"{hostile}{name}"
        for index, name in enumerate(one.input):
            one.input[index] = f"{hostile}{name}" if name.startswith("value") else name
    network = network_of(read(built))
    graph = network.get_submodule("graph")
    assert isinstance(graph, torch.fx.GraphModule) and "raise" not in graph.code
    assert network(torch.rand(2, 3, 32, 32)).shape == (2, 5)


# Numbers of images


def flattened(sizes: list[int], batch: int | str, opset: int = 14) -> ModelProto:
    """A convolution, its result in a constant shape, and a product."""
    nodes = [
        node("Conv", "images kernel", "maps", strides=[4, 4]),
        node("BatchNormalization", "maps one zero zero one", "normal"),
        node("Reshape", "normal sizes", "flat"),
        node("MatMul", "flat weight", "logits"),
    ]
    constants = {"kernel": ramp(4, 3, 4, 4), "sizes": np.array(sizes), "weight": ramp(16, 3)}
    constants |= {"one": np.ones(4, np.float32), "zero": np.zeros(4, np.float32)}
    return model(nodes, constants, shape=(batch, 3, 8, 8), opset=opset)


@pytest.mark.parametrize(
    ("sizes", "batch"),
    [([1, 16], 1), ([1, -1], 1), ([-1, 16], 1), ([0, -1], 1), ([4, 16], 4), ([4, -1], 4), ([1, 16], "batch")],
)
def test_a_graph_with_its_batch_in_a_shape_takes_other_batches(sizes: list[int], batch: int | str) -> None:
    checkpoint = read(flattened(sizes, batch))
    assert checkpoint.warnings == ()
    reference = network_of(read(flattened([-1, 16], "batch")))
    images = torch.rand(5, 3, 8, 8)
    torch.testing.assert_close(network_of(checkpoint)(images), reference(images))


def token_model(batch: int | str, token: list[int]) -> ModelProto:
    """Patches of an image, a class token in front of them, and a product with the token as it comes out."""
    nodes = [
        node("Conv", "images kernel", "maps", strides=[4, 4]),
        node("Reshape", "maps patches", "patched"),
        node("Transpose", "patched", "tokens", perm=[0, 2, 1]),
        node("Expand", "token sizes", "first"),
        node("Concat", "first tokens", "all", axis=1),
        node("ReduceMean", "all", "mean", axes=[1], keepdims=0),
        node("MatMul", "mean weight", "logits"),
    ]
    constants = {"kernel": ramp(4, 3, 4, 4), "patches": np.array([0, 4, 4]), "weight": ramp(4, 3)}
    constants |= {"token": ramp(1, 1, 4), "sizes": np.array(token)}
    return model(nodes, constants, shape=(batch, 3, 8, 8))


def test_answers_that_are_no_numbers_are_left_to_the_diagnosis() -> None:
    built = flattened([1, 16], 1)
    built.graph.node.extend([node("Neg", "logits", "negative"), node("Log", "negative", "undefined")])
    built.graph.output[0].name = "undefined"
    assert bool(network_of(read(built))(torch.rand(2, 3, 8, 8)).isnan().any())


def test_a_class_token_for_one_image_serves_several() -> None:
    checkpoint = read(token_model(1, [1, 1, 4]))
    images = torch.rand(3, 3, 8, 8)
    alone = torch.cat([network_of(checkpoint)(image[None]) for image in images])
    torch.testing.assert_close(network_of(checkpoint)(images), alone)
    assert checkpoint.warnings == ()


def mixing(batch: int, *, norm: bool) -> ModelProto:
    """Puts the tokens of all images into one row, as attention over the first axis does, and takes them apart again."""
    nodes = [
        node("Conv", "images kernel", "maps", strides=[4, 4]),
        node("BatchNormalization", "maps one zero zero one", "normal") if norm else node("Relu", "maps", "normal"),
        node("Reshape", "normal grouped", "patches"),
        node("Transpose", "patches", "first", perm=[2, 0, 1]),
        node("Reshape", "first rows", "all"),
        node("Softmax", "all", "soft", axis=0),
    ]
    nodes += [
        node("Reshape", "soft apart", "back"),
        node("ReduceMax", "back", "most", axes=[0], keepdims=0),
        node("MatMul", "most weight", "logits"),
    ]
    constants = {
        "kernel": ramp(4, 3, 4, 4),
        "grouped": np.array([batch, 4, 4]),
        "rows": np.array([4, batch * 4]),
        "apart": np.array([4, batch, 4]),
        "weight": ramp(4, 3),
        "one": np.ones(4, np.float32),
        "zero": np.zeros(4, np.float32),
    }
    return model(nodes, constants, shape=(batch, 3, 8, 8))


@pytest.mark.parametrize("batch", [1, 2])
def test_a_graph_that_cannot_take_another_batch_is_given_its_own(batch: int) -> None:
    checkpoint = read(mixing(batch, norm=False))
    (warning,) = checkpoint.warnings
    assert warning.startswith(f"The graph was exported for {batch} image")
    images = torch.rand(5, 3, 8, 8)
    answers = network_of(checkpoint)(images)
    for index in range(len(images)):
        torch.testing.assert_close(network_of(checkpoint)(images[index : index + 1]), answers[index : index + 1])
    images.requires_grad_()
    (gradient,) = torch.autograd.grad(network_of(checkpoint)(images).square().sum(), images)
    assert bool(gradient.abs().sum((1, 2, 3)).gt(0).all())


def test_a_graph_with_batch_norms_that_cannot_take_another_batch_is_refused() -> None:
    with pytest.raises(InputError, match="was exported for 1 image at a time and does not take another number"):
        read(mixing(1, norm=True))


# Forms of graphs


def sized(built: ModelProto, name: str) -> ModelProto:
    """The same graph with height and width left open."""
    for size in built.graph.input[0].type.tensor_type.shape.dim[2:]:
        size.dim_param = name
    return built


def test_a_graph_for_any_size_of_image_takes_any() -> None:
    checkpoint = read(sized(resnet_by_hand(13), "size"))
    assert checkpoint.program is not None
    assert checkpoint.program.input_shape == (None, 3, None, None)
    images = torch.rand(2, 3, 48, 40)
    torch.testing.assert_close(network_of(checkpoint)(images), small_resnet()(images), rtol=1e-5, atol=1e-5)


def test_the_size_of_the_image_is_tried_where_the_file_says_nothing() -> None:
    built = flattened([-1, 16], "batch")
    built.graph.input[0].type.tensor_type.ClearField("shape")
    metadata(built, input_size="[3, 8, 8]")
    checkpoint = read(built)
    assert checkpoint.program is not None
    assert checkpoint.program.input_shape == (None, 3, None, None)


def test_images_of_a_size_that_does_not_fit_are_refused_in_a_sentence() -> None:
    network = network_of(read(flattened([-1, 16], "batch")))
    with pytest.raises(InputError, match=r"^'teacher.onnx' cannot be computed at node 'flat' \(Reshape\): ") as caught:
        network(torch.rand(1, 3, 12, 12))  # 3 x 3 positions of 4 channels do not make rows of 16
    assert "\n" not in caught.value.message
    with pytest.raises(
        InputError, match=r"answers 1 image with a float32 tensor \[2, 3\]; a classifier answers \[N, K\]"
    ):
        network(torch.rand(1, 3, 8, 16))


def test_initializers_may_be_listed_among_the_inputs() -> None:
    built = resnet_by_hand(9)
    for tensor in built.graph.initializer:
        built.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    assert network_of(read(built))(torch.rand(2, 3, 32, 32)).shape == (2, 5)


@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_a_model_of_another_precision_is_run_in_single(kind: type[np.floating]) -> None:
    built = resnet_by_hand(13)
    for tensor in built.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32:
            tensor.CopyFrom(numpy_helper.from_array(array.astype(kind), tensor.name))
    for value in (built.graph.input[0], built.graph.output[0]):
        value.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    images = torch.rand(2, 3, 32, 32)
    found = network_of(read(built))(images)
    torch.testing.assert_close(found, small_resnet()(images), rtol=1e-2, atol=1e-2)
    assert found.dtype is torch.float32


def test_numbers_that_are_not_raw_bytes_are_read() -> None:
    built = resnet_by_hand(13)
    for tensor in built.graph.initializer:
        array = numpy_helper.to_array(tensor)
        kind, name = tensor.data_type, tensor.name
        tensor.CopyFrom(helper.make_tensor(name, kind, array.shape, array.flatten().tolist()))
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(network_of(read(built))(images), small_resnet()(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_halves_that_are_not_raw_bytes_are_read(kind: int) -> None:
    built = flattened([-1, 16], "batch")
    kernel = ramp(4, 3, 4, 4)
    built.graph.initializer[0].CopyFrom(helper.make_tensor("kernel", kind, kernel.shape, kernel.flatten().tolist()))
    tensors = read(built).tensors
    np.testing.assert_allclose(tensors["kernel"].numpy(), kernel, atol=2e-3)  # 8 bits of mantissa: 0.5 / 2^8


def test_a_batch_norm_that_was_exported_in_training_is_read_in_evaluation() -> None:
    built = resnet_by_hand(15)
    for one in built.graph.node:
        if one.op_type == "BatchNormalization":
            one.attribute.append(helper.make_attribute("training_mode", 1))
            one.output.extend([f"{one.output[0]}.mean", f"{one.output[0]}.variance"])
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(network_of(read(built))(images), small_resnet()(images), rtol=1e-5, atol=1e-5)


def scaled(name: str, inner: str = "Mul") -> FunctionProto:
    """A function of one input and the attribute `factor`."""
    constant = helper.make_node("Constant", [], ["c"])
    constant.attribute.add(name="value_float", ref_attr_name="factor", type=AttributeProto.FLOAT)
    product = helper.make_node(inner, ["x", "c"], ["y"], domain="" if inner == "Mul" else "own")
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    return helper.make_function("own", name, ["x"], ["y"], [constant, product], imports, ["factor"])


def test_functions_of_the_file_are_put_in_place_of_their_calls() -> None:
    twice = helper.make_function(
        "own",
        "Twice",
        ["x"],
        ["z"],
        [
            helper.make_node("Scaled", ["x"], ["y"], domain="own", factor=3.0),
            helper.make_node("Scaled", ["y"], ["z"], domain="own", factor=0.5),
        ],
        [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)],
    )
    nodes = [
        helper.make_node("Twice", ["images"], ["scaled"], domain="own"),
        node("GlobalAveragePool", "scaled", "pooled"),
        node("Flatten", "pooled", "logits"),
    ]
    network = network_of(read(model(nodes, {}, functions=[scaled("Scaled"), twice])))
    images = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(network(images), 1.5 * images.mean((2, 3)))  # 3 x 0.5


# Metadata


def metadata(built: ModelProto, **properties: str) -> ModelProto:
    helper.set_model_props(built, properties)
    return built


def test_metadata_name_classes_and_normalisation() -> None:
    properties = {"labels": "a\nb\nc\nd\ne", "mean": "[0.1, 0.2, 0.3]", "std": "0.5", "input_size": "64"}
    checkpoint = read(metadata(sized(resnet_by_hand(13), "size"), **properties))
    assert checkpoint.labels == ("a", "b", "c", "d", "e")
    assert checkpoint.metadata == {"mean": [0.1, 0.2, 0.3], "std": 0.5, "input_size": 64}


def test_the_size_of_images_is_that_of_the_graph_where_it_takes_no_other() -> None:
    assert read(metadata(resnet_by_hand(13), input_size="64")).metadata == {"input_size": [3, 32, 32]}
    assert read(sized(resnet_by_hand(13), "size")).metadata == {}


def test_labels_may_be_a_list_and_must_fit_the_outputs() -> None:
    assert read(metadata(resnet_by_hand(13), labels='["a", "b", "c", "d", "e"]')).labels == ("a", "b", "c", "d", "e")
    checkpoint = read(metadata(resnet_by_hand(13), labels="cat\ndog"))
    assert checkpoint.labels == ()
    assert checkpoint.warnings == ("The file names 2 classes but puts out 5; its names were not used.",)


def test_a_graph_that_takes_pixels_says_that_its_normalisation_is_inside() -> None:
    checkpoint = read(metadata(resnet_by_hand(13), input="float32 [N, 3, 32, 32] in [0, 1]"))
    assert checkpoint.metadata == {"input_size": [3, 32, 32], "mean": [0.0] * 3, "std": [1.0] * 3}


def test_metadata_that_nest_without_end_are_taken_as_text() -> None:
    assert read(metadata(resnet_by_hand(13), mean="[" * 100_000)).metadata["mean"] == "[" * 100_000


# Networks of many kinds


def transformers_network(kind: str) -> nn.Module:
    """A small one of the library's, with statistics as after training."""
    import transformers

    encoder = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    window = {"embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4, "patch_size": 2}
    configs: dict[str, Any] = {
        "ViT": {**encoder, "image_size": 32, "patch_size": 8},
        "Swinv2": {**window, "image_size": 32},
        "ConvNext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
        "MobileNetV2": {"depth_multiplier": 0.35, "image_size": 32},
        "RegNet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "groups_width": 4},
        "FocalNet": {
            "embed_dim": 8,
            "image_size": 32,
            "depths": [1, 1],
            "focal_levels": [2, 2],
            "focal_windows": [3, 3],
        },
    }
    config = getattr(transformers, f"{kind}Config")(num_labels=5, **configs[kind])
    return Logits(unsettle(getattr(transformers, f"{kind}ForImageClassification")(config))).eval()


class Logits(nn.Module):
    """Only the logits of a network of transformers."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images).logits
        return logits


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the exporter's advice to the authors of the networks
@pytest.mark.parametrize("batch", [None, 1])
@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("kind", ["ViT", "Swinv2", "ConvNext", "MobileNetV2", "RegNet", "FocalNet"])
def test_networks_of_many_kinds_answer_as_before_they_were_exported(
    kind: str, optimize: bool, batch: int | None, tmp_path: Path
) -> None:
    network = transformers_network(kind)
    path = export(network, tmp_path / "network.onnx", 32, optimize=optimize, batch=batch)
    found = network_of(read_onnx(path.read_bytes(), path.name, tmp_path))
    images = torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(found(images), network(images), rtol=1e-4, atol=1e-5)
    norms = [norm for norm in batch_norms(network) if norm.running_mean is not None]
    assert len(batch_norms(found)) == (0 if optimize else len(norms))
