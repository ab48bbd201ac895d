"""A torch classifier to one ONNX file: exported, made to fit the target's operator set, checked, compared with torch."""

import copy
import hashlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import ModelProto
from torch import Tensor, nn

from compress.exporters.camera_input import ONNX_RUNTIME_BYTES, camera_images, with_camera_input
from compress.exporters.folding import fold_batch_norm
from compress.exporters.half import in_half_precision, with_half_scales
from compress.exporters.integer_weights import store_integer_weights
from compress.exporters.legalise import legalise
from compress.exporters.targets import Precision
from compress.pipeline.errors import CompressError, InputError
from compress.pipeline.records import ExportedGraph, InputForm

INPUT_NAME, OUTPUT_NAME = "images", "logits"
BATCH = "batch"
"""Name of the first dimension of graphs that take any number of images."""

TOLERANCE: Mapping[Precision, float] = {"fp32": 1e-4, "fp16": 2e-2}
"""Largest accepted difference between ONNX Runtime and torch, as a share of the largest logit (but of 1 at least)."""

INT8_TOLERANCE = 0.1
"""The same of int8, but on average, and as a share of the logits' spread: a value on the border of two levels may go either
way, and in a deep network a few such reach the logits of an image; a graph that is wrong moves those of all."""

SMALLEST_SPREAD = 1e-3
"""Of logits: those of a student that answers all images alike have none."""

PARITY_BATCH = 64
"""Images that are compared at once, for the sake of memory."""

OLDEST_EXPORTED_OPSET = 18
"""What the exporter writes without converting; older operator sets are reached from there."""


def export_onnx(
    model: nn.Module,
    path: Path,
    *,
    example: Tensor,
    opset: int,
    ir_version: int,
    precision: Precision = "fp32",
    dynamic_batch: bool = True,
    integer_weights: bool = False,
    typed: bool = False,
    input_form: InputForm = "float32-nchw",
    metadata: Mapping[str, str],
) -> ExportedGraph:
    """Writes the classifier as ONNX and proves on the example images that ONNX Runtime answers as torch does.

    The graph takes `images` `[batch, C, H, W]`, float32 in [0, 1], and gives `logits` `[batch, K]`, float32; without
    `dynamic_batch` it takes images one by one. `fp16` converts a float model. `int8` takes a model that
    `insert_fake_quantization` made; `integer_weights` stores its weights as integers, for ONNX Runtime; `typed` writes
    fp16 into it for what is not int8. int8 graphs are compared without graph optimisation, so that ONNX Runtime rounds
    where the graph says. In the form `uint8-nhwc` the graph takes bytes `[batch, H, W, C]` and scales them itself; the
    example images must then be bytes divided by 255.

    Raises:
        InputError: the model cannot be exported, or an operator does not exist in the operator set.
        CompressError: the file is not valid ONNX, or answers differently.
    """
    # With the channels last in memory, torch would write a global mean as a gather of strides that no runtime fuses.
    model, example = _with_channels_first(copy.deepcopy(model).cpu()).eval(), example.cpu().contiguous()
    # Rounded to fp16 are the weights that run, not those that batch norm has yet to scale.
    network = fold_batch_norm(model).eval() if precision == "fp16" else model
    graph = legalise(_export(network, example, max(opset, OLDEST_EXPORTED_OPSET), dynamic_batch), opset, ir_version)
    if typed:
        graph = with_half_scales(graph)
    if integer_weights:  # by the scales that the file will have, and before anything else rounds them
        graph = store_integer_weights(graph)
    if typed or precision == "fp16":
        graph = in_half_precision(graph)
    if input_form == "uint8-nhwc":
        graph = with_camera_input(graph)
    onnx.helper.set_model_props(graph, dict(sorted(metadata.items())))
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_bytes(graph.SerializeToString(deterministic=True))
        written = _checked(partial, opset, ir_version)
        difference = _require_parity(model, partial, example, precision, dynamic_batch)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    content = path.read_bytes()
    return ExportedGraph(
        file_name=path.name,
        precision=precision,
        typed=typed,
        input_form=input_form,
        opset=written.opset_import[0].version,
        ir_version=written.ir_version,
        size_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        max_abs_difference=difference,
    )


def _with_channels_first(model: nn.Module) -> nn.Module:
    return model.to(memory_format=torch.contiguous_format)  # type: ignore[no-any-return,call-overload]  # its stub lacks it


def _export(model: nn.Module, example: Tensor, opset: int, dynamic_batch: bool) -> ModelProto:
    try:
        with _quiet_exporter():
            program = torch.onnx.export(
                model,
                (example[: 2 if dynamic_batch else 1],),
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
                opset_version=opset,
                dynamic_shapes=({0: BATCH},) if dynamic_batch else None,
                external_data=False,
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise InputError(f"The network cannot be exported to ONNX: {reason}") from error
    assert program is not None
    return program.model_proto


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Without the exporter's advice to developers of torch; errors are raised, not logged."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)`", category=FutureWarning)
            yield
    finally:
        logger.setLevel(level)


def _checked(path: Path, opset: int, ir_version: int) -> ModelProto:
    """The file as read back, valid and of the versions asked for."""
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise CompressError(f"The exported graph is not valid ONNX: {str(error).strip().splitlines()[0]}") from error
    model = onnx.load(str(path))
    found = [(entry.domain, entry.version) for entry in model.opset_import], model.ir_version
    if found != ([("", opset)], ir_version):
        raise CompressError(f"The exported graph has operator sets and IR version {found}, not {opset}, {ir_version}.")
    return model


def _session(path: Path, *, optimise: bool) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimise else levels.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _answers(session: onnxruntime.InferenceSession, images: Tensor) -> NDArray[np.float32]:
    takes_bytes = session.get_inputs()[0].type == ONNX_RUNTIME_BYTES
    given = camera_images(images.numpy()) if takes_bytes else images.numpy()
    return np.asarray(session.run([OUTPUT_NAME], {INPUT_NAME: given})[0])


def _require_parity(model: nn.Module, path: Path, images: Tensor, precision: Precision, dynamic_batch: bool) -> float:
    """The largest absolute difference of logits, which are the same within tolerance; no clear decision moves."""
    batches = torch.split(images, PARITY_BATCH if dynamic_batch else 1)
    with torch.no_grad():
        expected = np.concatenate([model(batch).numpy() for batch in batches])
    session = _session(path, optimise=precision != "int8")
    found = np.concatenate([_answers(session, batch) for batch in batches])
    differences = np.abs(found - expected)
    if precision == "int8":
        # An error that one class has on all images is no matter of borders either, however many classes there are.
        of_a_class = np.abs((found - expected).mean(axis=0)).max()
        difference = float(max(differences.mean(), of_a_class))
        tolerance = INT8_TOLERANCE * max(float(expected.std()), SMALLEST_SPREAD)
        agrees = difference <= tolerance
    else:
        difference, tolerance = float(differences.max()), TOLERANCE[precision] * max(1.0, float(np.abs(expected).max()))
        lead = expected.max(axis=1) - np.take_along_axis(expected, found.argmax(axis=1)[:, None], axis=1)[:, 0]
        agrees = difference <= tolerance and lead.max() <= tolerance
    if not agrees:
        raise CompressError(
            f"ONNX Runtime and torch disagree on '{path.stem}': logits differ by {difference:.3g}, "
            f"{tolerance:.3g} is accepted.",
            "The versions of torch, onnx and onnxruntime may not fit together.",
        )
    return float(differences.max())
