"""Validates a delivered folder again, as it lies there, or with what an engine answered on its device."""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file

from compress.exporters.bundle import sha256_of
from compress.exporters.deploy import PLAN_NAME
from compress.exporters.runners import EngineRunner
from compress.exporters.targets import Gates
from compress.pipeline.delivered import read_probes
from compress.pipeline.distillation.stage import STUDENT_FILE
from compress.pipeline.errors import InputError, UsageError
from compress.pipeline.networks import build
from compress.pipeline.networks.normalised import Normalised
from compress.pipeline.records import ValidateRecord
from compress.pipeline.report import ReportData
from compress.pipeline.validation import (
    Examination,
    Examined,
    Origin,
    concluded,
    decisive,
    examine_files,
    fidelity_of,
    judged,
    made_from,
)

RECEIPT_SUFFIX, LOGITS_SUFFIX = ".receipt.json", ".logits.npy"

Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
"""SHA-256."""


class Replay(BaseModel):
    """What `deploy/replay.py` found out about an engine."""

    model_config = ConfigDict(strict=True, frozen=True)

    plan_sha256: Digest
    plan_bytes: int = Field(gt=0)
    onnx_sha256: Digest
    probes_sha256: Digest
    logits_sha256: Digest


class Receipt(BaseModel):
    """Of an engine: what `build_engine.sh` wrote, where it did, and what `replay.py` added."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)

    onnx_sha256: Digest | None = None
    plan_sha256: Digest | None = None
    latency_ms: float | None = Field(default=None, ge=0)
    replay: Replay


def revalidate(
    folder: Path,
    report: ReportData,
    receipt: Path | None = None,
    gates: Mapping[str, float] | None = None,
    engine: bool = False,
) -> ValidateRecord:
    """Measure every artifact of a delivered folder, which has that report, once more on its probes.

    With the `receipt` of an engine, whose logits lie beside it, the engine decides; with `engine` the one in the folder,
    which is a program that is run. `gates` by name take the place of those that the folder was made with.

    Raises:
        UsageError: there is no such receipt or engine, or a limit that cannot be.
        InputError: the receipt is not that of an engine of this folder, or the folder holds no such student or probes.
        MissingResourceError: TensorRT or a GPU is missing for the engine.
    """
    probes = read_probes(folder)
    if probes.teacher_logits.shape[1] != len(report.labels):
        raise InputError(f"'{folder}/probes.npz' is of other classes than its report.", "Copy the delivery again.")
    try:
        limits = Gates.model_validate(report.settings.get("gates", {}) | dict(gates or {}))
    except ValidationError as error:
        what = error.errors()[0]
        raise UsageError(f"The limit {what['loc'][0]} cannot be {what['input']:g}: {what['msg']}.") from error
    adequacy = report.validation.adequacy
    origin = Origin(adequacy.copied, adequacy.batch_norm_shift)
    examination = Examination.on(probes, origin, limits, report.labels)
    weights, student = folder / STUDENT_FILE, _student(folder, report)
    in_torch, graphs = examine_files(weights, student, folder, report.export.graphs, report.target, examination)
    deciding, engines = decisive(graphs, report.export.graphs), []
    if receipt is not None:
        engines = [_engine_of(receipt, report, folder, examination, graphs)]
    elif engine:
        engines = [_engine_here(folder / PLAN_NAME, report, examination, graphs)]
    return concluded([in_torch, *graphs, *engines], engines or deciding, examination)


def _student(folder: Path, report: ReportData) -> Normalised:
    try:
        student = Normalised(build(report.distill.spec), report.teacher.input.mean, report.teacher.input.std)
        student.load_state_dict(load_file(folder / STUDENT_FILE))
    except (KeyError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(
            f"'{folder}/{STUDENT_FILE}' is not the student that its report tells of.", "Copy the delivery again."
        ) from error
    return student


def _engine_here(plan: Path, report: ReportData, examination: Examination, graphs: Sequence[Examined]) -> Examined:
    if not plan.is_file():
        raise UsageError(f"There is no engine '{plan}'.", "deploy/build_engine.sh builds it, on the device.")
    origin = made_from(_built_from(plan), report.export.graphs, graphs)
    return fidelity_of(plan, report.target.shipped, EngineRunner(plan), examination, origin=origin)


def _built_from(plan: Path) -> str | None:
    """SHA-256 of the ONNX file, as `build_engine.sh` or the exporter wrote it beside the engine."""
    for path in (plan.with_name(f"engine{RECEIPT_SUFFIX}"), plan.with_name(f"{plan.name}.json")):
        try:
            content = json.loads(path.read_bytes())
        except (OSError, ValueError):
            continue
        if isinstance(content, dict) and isinstance(content.get("onnx_sha256"), str):
            return str(content["onnx_sha256"])
    return None


def _engine_of(
    path: Path, report: ReportData, folder: Path, examination: Examination, graphs: Sequence[Examined]
) -> Examined:
    """The engine, from what `deploy/replay.py` wrote on the device."""
    receipt = _read(path)
    replay = receipt.replay
    deployable = {graph.sha256 for graph in report.export.graphs if graph.precision == report.target.shipped}
    if replay.onnx_sha256 not in deployable or (receipt.onnx_sha256 or replay.onnx_sha256) != replay.onnx_sha256:
        raise InputError(
            f"'{path}' is of an engine of another file.", f"Name the folder that it was built in; '{folder}' is not it."
        )
    if replay.probes_sha256 != sha256_of(folder / "probes.npz"):
        raise InputError(f"'{path}' tells of other probes.", "Replay the probes of this folder on the device.")
    if (receipt.plan_sha256 or replay.plan_sha256) != replay.plan_sha256:
        raise InputError(f"'{path}' tells of another engine than was built.", "Run deploy/replay.py once more.")
    origin = made_from(replay.onnx_sha256, report.export.graphs, graphs)
    logits = _logits(path, replay, examination.probes.teacher_logits.shape)
    return judged(
        *(PLAN_NAME, report.target.shipped, replay.plan_bytes, receipt.latency_ms, logits, examination), origin=origin
    )


def _read(path: Path) -> Receipt:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"'{path}' cannot be read: {error.strerror}.", "Name an engine.receipt.json.") from error
    try:
        return Receipt.model_validate_json(content)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        if where == "replay":
            raise InputError(f"'{path}' holds no answers of the engine.", "Run deploy/replay.py first.") from error
        what = f" ('{where}')" if where else ""
        raise InputError(
            f"'{path}' is no receipt of deploy/replay.py{what}.", "Copy it from the device again."
        ) from error


def _logits(receipt: Path, replay: Replay, shape: tuple[int, ...]) -> NDArray[np.float32]:
    path = receipt.with_name(receipt.name.removesuffix(RECEIPT_SUFFIX) + LOGITS_SUFFIX)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"'{path}' cannot be read: {error.strerror}.", "Copy it together with the receipt.") from error
    if hashlib.sha256(content).hexdigest() != replay.logits_sha256:
        raise InputError(f"'{path}' is not what the receipt tells of.", "Copy both from the device again.")
    try:
        logits = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, TypeError, MemoryError) as error:
        raise InputError(f"'{path}' holds no logits.", "Run deploy/replay.py once more.") from error
    if logits.dtype != np.float32 or logits.shape != shape:
        raise InputError(f"'{path}' holds {logits.dtype} {list(logits.shape)}, not float32 {list(shape)}.")
    return logits
