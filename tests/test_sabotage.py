"""Students and probes that were spoilt on purpose, each with the verdict that it must get."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import ModelProto, numpy_helper

from compress.exporters.calibration import observe
from compress.exporters.onnx_graph import export_onnx
from compress.exporters.qdq import insert_fake_quantization
from compress.exporters.runners import OnnxRunner
from compress.exporters.targets import Gates
from compress.pipeline.copies import copied
from compress.pipeline.networks.normalised import Normalised
from compress.pipeline.probes import Probes
from compress.pipeline.records import ValidateRecord
from compress.pipeline.teacher import open_teacher
from compress.pipeline.validation import Examination, concluded, fidelity_of
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
    return Probes(images.numpy(), logits, logits.argmax(1).astype(np.int64), kinds)


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


def judged(path: Path, probes: Probes, copies: int = 0) -> ValidateRecord:
    examination = Examination(probes, GATES, LABELS)
    row = fidelity_of(path, "int8", OnnxRunner(path, exact=True), examination)
    return concluded([row], [row], probes, copies)


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


def one_scale_times_eight(model: ModelProto) -> None:
    """What an activation is multiplied by on its way back to floats, not what it was divided by."""
    pairs = [node for node in model.graph.node if node.op_type == "DequantizeLinear"]
    weights = {tensor.name for tensor in model.graph.initializer}
    quantized = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    activation = [node for node in pairs if quantized[node.input[0]] not in weights][2]
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


def test_one_image_of_each_class_over_and_over_carries_no_verdict(faithful: Path, probes: Probes) -> None:
    first = [int(np.flatnonzero(probes.targets == number)[0]) for number in range(len(LABELS))]
    collapsed = Probes(*(array[np.resize(first, 600)] for array in probes))
    record = judged(faithful, collapsed)
    assert record.verdict == "INCONCLUSIVE"
    assert "of them differ from each other" in " ".join(record.adequacy.reasons)


def test_probes_out_of_the_pool_carry_no_verdict(faithful: Path, probes: Probes) -> None:
    pool = torch.from_numpy(probes.images[::2].copy())
    record = judged(faithful, probes, copied(torch.from_numpy(probes.images), pool))
    assert record.verdict == "INCONCLUSIVE"
    assert "the student learned from 50.0 % of them" in record.adequacy.reasons
