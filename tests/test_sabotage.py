"""Students and probes that were spoilt on purpose, each with the verdict that it must get."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import ModelProto, NodeProto, numpy_helper

from compress.exporters.calibration import observe
from compress.exporters.onnx_graph import export_onnx
from compress.exporters.qdq import insert_fake_quantization
from compress.exporters.runners import OnnxRunner, TorchRunner
from compress.exporters.targets import Gates, load_target
from compress.pipeline.advice import loss_remark
from compress.pipeline.copies import copied
from compress.pipeline.networks.normalised import Normalised
from compress.pipeline.probes import Probes
from compress.pipeline.records import ValidateRecord
from compress.pipeline.teacher import open_teacher
from compress.pipeline.validation import Examination, Examined, Origin, concluded, examine_graphs, fidelity_of
from tests.command import LABELS, save_teacher
from tests.tiny import tiny_teacher

GATES = Gates(min_agreement=0.9, min_class_agreement=0.5)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Normalised:
    return open_teacher(save_teacher(tmp_path_factory.mktemp("sabotage") / "teacher.pt")).network.eval()


@pytest.fixture(scope="module")
def probes(teacher: Normalised) -> Probes:
    """Smooth noise, of which the teacher is sure."""
    noise = F.avg_pool2d(torch.rand(600, 1, 10, 10, generator=torch.Generator().manual_seed(1)), 3, 1)
    images = (noise * 255).round().to(torch.uint8)
    with torch.no_grad():
        logits = teacher(images.float() / 255).numpy()
    kinds = np.array(["synthesised"] * len(images))
    named = logits.argmax(1).astype(np.int64)
    return Probes(images.numpy(), logits, named, kinds, np.arange(600), 0 * named, np.array([600]))


@pytest.fixture(scope="module")
def faithful(teacher: Normalised, probes: Probes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The teacher itself in int8, for want of a better student."""
    return exported(teacher, probes, tmp_path_factory.mktemp("faithful") / "student.int8.onnx")


def exported(network: torch.nn.Module, probes: Probes, path: Path) -> Path:
    images = torch.from_numpy(probes.images[:64]).float() / 255
    module = insert_fake_quantization(network, "s8s8")
    observe(module, [images[:32], images[32:]])
    export_onnx(module, path, example=images[:8], opset=17, ir_version=8, precision="int8", metadata={})
    return path


def judged(path: Path, probes: Probes, copies: int = 0, shift: float | None = None) -> ValidateRecord:
    examination = Examination.on(probes, Origin(copies, shift), GATES, LABELS)
    found = fidelity_of(path, "int8", OnnxRunner(path, exact=True), examination)
    return concluded([found], [found], examination)


def on(probes: Probes) -> Examination:
    return Examination.on(probes, Origin(0, None), GATES, LABELS)


def constant(model: ModelProto, name: str) -> np.ndarray:
    return numpy_helper.to_array(next(tensor for tensor in model.graph.initializer if tensor.name == name)).copy()


def replace(model: ModelProto, name: str, value: np.ndarray) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(value.astype(np.float32), name))


def classifier(model: ModelProto) -> tuple[str, str]:
    (gemm,) = [node for node in model.graph.node if node.op_type == "Gemm"]
    return gemm.input[1], gemm.input[2]


def always_one_class(model: ModelProto) -> None:
    weight, bias = classifier(model)
    replace(model, weight, 0 * constant(model, weight))
    replace(model, bias, np.array([5, 0, 0, 0]))


def two_classes_swapped(model: ModelProto) -> None:
    for name in classifier(model):
        replace(model, name, constant(model, name)[[0, 2, 1, 3]])


def one_activation(model: ModelProto) -> NodeProto:
    """The third tensor that is quantized, on its way back to floats."""
    pairs = [node for node in model.graph.node if node.op_type == "DequantizeLinear"]
    weights = {tensor.name for tensor in model.graph.initializer}
    quantized = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    taken: NodeProto = [node for node in pairs if quantized[node.input[0]] not in weights][2]
    return taken


def one_scale_times_eight(model: ModelProto) -> None:
    """What an activation is multiplied by on its way back to floats, not what it was divided by."""
    activation = one_activation(model)
    scale = constant(model, activation.input[1]) * 8
    model.graph.initializer.append(numpy_helper.from_array(scale.astype(np.float32), "sabotage"))
    activation.input[1] = "sabotage"


def spoilt(path: Path, folder: Path, harm: Callable[[ModelProto], None]) -> Path:
    model = onnx.load(path)
    harm(model)
    onnx.save(model, folder / path.name)
    return folder / path.name


def test_a_faithful_student_passes(faithful: Path, probes: Probes) -> None:
    assert judged(faithful, probes).verdict == "PASS"


def test_an_untrained_student_fails(probes: Probes, tmp_path: Path) -> None:
    untrained = tiny_teacher(channels=1, widths=(16, 16)).network.eval()
    assert judged(exported(untrained, probes, tmp_path / "student.int8.onnx"), probes).verdict == "FAIL"


@pytest.mark.parametrize("harm", [always_one_class, two_classes_swapped, one_scale_times_eight])
def test_a_spoilt_student_fails(
    faithful: Path, probes: Probes, tmp_path: Path, harm: Callable[[ModelProto], None]
) -> None:
    assert judged(spoilt(faithful, tmp_path, harm), probes).verdict == "FAIL"


def test_classes_that_were_swapped_are_named(faithful: Path, probes: Probes, tmp_path: Path) -> None:
    record = judged(spoilt(faithful, tmp_path, two_classes_swapped), probes)
    (gate,) = [gate for gate in record.ledger[0].gates if gate.name == "class agreement"]
    assert gate.verdict == "FAIL"
    assert {name for name in LABELS if f"{name} (" in gate.explanation} == {LABELS[1], LABELS[2]}


def examined_with_its_float_form(
    teacher: Normalised, int8: Path, probes: Probes, folder: Path
) -> tuple[Examined, Examined, Examined]:
    """The teacher as its own student, in PyTorch, as an fp32 graph and as that int8 graph."""
    images = torch.from_numpy(probes.images[:8]).float() / 255
    path = folder / "student.onnx"
    graph = export_onnx(teacher, path, example=images, opset=17, ir_version=8, precision="fp32", metadata={})
    graphs = [graph, graph.model_copy(update={"file_name": int8.name, "precision": "int8"})]
    examination = on(probes)
    in_torch = fidelity_of(save_teacher(folder / "teacher.pt"), "fp32", TorchRunner(teacher), examination)
    in_float, in_int8 = examine_graphs(folder, graphs, load_target("jetson"), examination, in_torch)
    return in_torch, in_float, in_int8


def test_the_layer_is_named_in_which_a_wrong_scale_does_its_harm(
    teacher: Normalised, faithful: Path, probes: Probes, tmp_path: Path
) -> None:
    harmed = spoilt(faithful, tmp_path, one_scale_times_eight)
    examined = examined_with_its_float_form(teacher, harmed, probes, tmp_path)
    record = concluded(examined, examined[-1:], on(probes))
    assert record.verdict == "FAIL"
    model = onnx.load(harmed)
    activation = one_activation(model).output[0]
    maker = {output: node for node in model.graph.node for output in node.output}
    (taker,) = [node for node in model.graph.node if node.op_type == "Conv" and activation in node.input]
    layer = maker[maker[taker.input[1]].input[0]].input[0].removesuffix(".weight")  # through the weight's own pair
    step = examined[-1].row.step
    assert step is not None and step.starts_in is not None
    assert (step.origin, step.starts_in.layer) == ("student.onnx", layer)
    assert f"begins in the layer {layer}," in loss_remark(record)
    assert f"--set quantize.exclude=[{layer}]" in loss_remark(record)


def test_no_layer_is_named_where_rounding_does_its_usual_harm(
    teacher: Normalised, faithful: Path, probes: Probes, tmp_path: Path
) -> None:
    (tmp_path / faithful.name).write_bytes(faithful.read_bytes())
    examined = examined_with_its_float_form(teacher, tmp_path / faithful.name, probes, tmp_path)
    _, in_float, in_int8 = (found.row for found in examined)
    assert in_float.step is not None and in_int8.step is not None
    assert (in_float.step.origin, in_float.step.lost) == ("teacher.pt", 0)
    assert in_int8.step.lost == in_float.agreement.value - in_int8.agreement.value > 0
    assert in_int8.step.starts_in is None
    assert loss_remark(concluded(examined, examined[-1:], on(probes))) == ""


def test_one_image_of_each_class_over_and_over_carries_no_verdict(faithful: Path, probes: Probes) -> None:
    first = [int(np.flatnonzero(probes.targets == number)[0]) for number in range(len(LABELS))]
    collapsed = probes._replace(
        **{name: getattr(probes, name)[np.resize(first, 600)] for name in ("images", "teacher_logits", "targets")}
    )
    record = judged(faithful, collapsed)
    assert record.verdict == "INCONCLUSIVE"
    assert "of them differ from each other" in " ".join(record.adequacy.reasons)


def test_images_of_a_generator_that_has_all_but_collapsed_carry_no_verdict(
    teacher: Normalised, faithful: Path, probes: Probes
) -> None:
    """One image a class with a little noise: no two are equal, nor are the teacher's answers to them."""
    first = [int(np.flatnonzero(probes.targets == number)[0]) for number in range(len(LABELS))]
    images = probes.images[np.resize(first, 600)].astype(np.int64)
    noise = np.random.default_rng(0).integers(-1, 2, images.shape)
    collapsed = (images + noise).clip(0, 255).astype(np.uint8)
    with torch.no_grad():
        logits = teacher(torch.from_numpy(collapsed).float() / 255).numpy()
    assert len(np.unique(logits, axis=0)) > 550
    record = judged(
        faithful, Probes(collapsed, logits, np.resize(probes.targets[first], 600), probes.kind, *probes[4:])
    )
    assert record.verdict == "INCONCLUSIVE"
    assert record.adequacy.repeated == 600 - len(LABELS)
    assert record.adequacy.reasons == ("99.3 % of those made for a class are like another of them",)


def test_probes_out_of_the_pool_carry_no_verdict(faithful: Path, probes: Probes) -> None:
    pool = torch.from_numpy(probes.images[::2].copy())
    record = judged(faithful, probes, copied(torch.from_numpy(probes.images), pool))
    assert record.verdict == "INCONCLUSIVE"
    assert "the student learned from 50.0 % of them" in record.adequacy.reasons


def test_probes_far_from_the_teachers_training_carry_no_verdict(faithful: Path, probes: Probes) -> None:
    assert judged(faithful, probes, shift=0.35).verdict == "PASS"
    record = judged(faithful, probes, shift=0.36)
    assert record.verdict == "INCONCLUSIVE"
    assert record.adequacy.reasons == (
        "their features lie 0.36 standard deviations from those of the teacher's training, more than 0.35",
    )
    assert judged(faithful, probes, shift=float("nan")).verdict == "INCONCLUSIVE"
