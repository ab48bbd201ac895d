"""Validates a delivered folder again, as it lies there, or with what an engine answered on its device."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors.torch import load_file

from compress.exporters.bundle import sha256_of, verify_manifest
from compress.exporters.deploy import PLAN_NAME
from compress.exporters.runners import EngineRunner, TorchRunner
from compress.exporters.targets import Gates
from compress.pipeline.errors import GateError, InputError, UsageError
from compress.pipeline.fidelity import measure_artifact
from compress.pipeline.networks import build
from compress.pipeline.networks.normalised import Normalised
from compress.pipeline.probes import Probes
from compress.pipeline.records import ArtifactFidelity, ValidateRecord
from compress.pipeline.report import ReportData
from compress.pipeline.validation import concluded, decisive_graphs, fidelity_of, graph_rows

RECEIPT_SUFFIX, LOGITS_SUFFIX = ".receipt.json", ".logits.npy"


def revalidate(folder: Path, receipt: Path | None = None, min_agreement: float | None = None) -> ValidateRecord:
    """Measure every artifact of a delivered folder once more on its probes.

    With the `receipt` of an engine, whose logits lie beside it, the engine decides. `min_agreement` takes the place of the
    limit that the folder was made with.

    Raises:
        GateError: a file is not as it was delivered.
        UsageError: there is no such folder or receipt.
        InputError: the report is of another version, or the receipt is not that of an engine of this folder.
        MissingResourceError: the folder holds an engine, and TensorRT is missing here.
    """
    report = _report(folder)
    probes = Probes.load(folder / "probes.npz")
    gates = Gates.model_validate(report.settings["gates"])
    if min_agreement is not None:
        gates = gates.model_copy(update={"min_agreement": min_agreement})
    student = Normalised(build(report.distill.spec), report.teacher.input.mean, report.teacher.input.std)
    student.load_state_dict(load_file(folder / "student.safetensors"))
    in_torch = fidelity_of(folder / "student.safetensors", "fp32", TorchRunner(student), probes, gates)
    graphs = graph_rows(folder, report.export.graphs, report.target, probes, gates)
    ledger, decisive = [in_torch, *graphs], decisive_graphs(graphs, report.target)
    if receipt is not None:
        decisive = [_engine_of(receipt, report, folder, probes, gates)]
        ledger += decisive
    elif report.export.engine.built:
        plan = folder / PLAN_NAME
        decisive = [fidelity_of(plan, report.target.shipped, EngineRunner(plan), probes, gates)]
        ledger += decisive
    return concluded(ledger, decisive, probes)


def _report(folder: Path) -> ReportData:
    if not folder.is_dir():
        raise UsageError(f"There is no folder '{folder}'.", "Name the folder that `compress` wrote with -o.")
    problems = verify_manifest(folder)
    if problems:
        raise GateError(f"'{folder}' is not as it was delivered: {' '.join(problems)}", "Copy the delivery again.")
    try:
        return ReportData.model_validate_json((folder / "report.json").read_bytes())
    except ValidationError as error:
        raise InputError(
            f"'{folder}/report.json' was written by another version of compress.", "Validate it with that version."
        ) from error


def _engine_of(path: Path, report: ReportData, folder: Path, probes: Probes, gates: Gates) -> ArtifactFidelity:
    """The engine's row, from what `deploy/replay.py` wrote on the device."""
    receipt = _json(path)
    replay = receipt.get("replay")
    if not isinstance(replay, dict):
        raise InputError(f"'{path}' holds no answers of the engine.", "Run deploy/replay.py on the device first.")
    graphs = {graph.sha256 for graph in report.export.graphs}
    if replay.get("onnx_sha256") not in graphs or receipt.get("onnx_sha256", replay["onnx_sha256"]) not in graphs:
        raise InputError(f"'{path}' is of an engine of another student.", f"Its ONNX file is none of '{folder}'.")
    if replay.get("probes_sha256") != sha256_of(folder / "probes.npz"):
        raise InputError(f"'{path}' tells of other probes.", "Replay the probes of this folder on the device.")
    if receipt.get("plan_sha256", replay.get("plan_sha256")) != replay.get("plan_sha256"):
        raise InputError(f"'{path}' tells of another engine than was built.", "Run deploy/replay.py once more.")
    latency = receipt.get("latency_ms")
    return measure_artifact(
        str(receipt.get("plan", PLAN_NAME)),
        precision=report.target.shipped,
        size_bytes=int(replay.get("plan_bytes", 0)),
        latency_ms=float(latency) if isinstance(latency, int | float) else None,
        teacher_logits=probes.teacher_logits,
        student_logits=_logits(path, replay, probes.teacher_logits.shape),
        kinds=probes.kind,
        gates=gates,
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"'{path}' cannot be read: {error.strerror}.", "Name an engine.receipt.json.") from error
    except ValueError as error:
        raise InputError(f"'{path}' is no receipt.", "Name an engine.receipt.json.") from error
    if not isinstance(content, dict):
        raise InputError(f"'{path}' is no receipt.", "Name an engine.receipt.json.")
    return content


def _logits(receipt: Path, replay: dict[str, Any], shape: tuple[int, ...]) -> NDArray[np.float32]:
    path = receipt.with_name(receipt.name.removesuffix(RECEIPT_SUFFIX) + LOGITS_SUFFIX)
    if not path.is_file():
        raise UsageError(f"'{path}' is missing.", "Copy it from the device together with the receipt.")
    if sha256_of(path) != replay.get("logits_sha256"):
        raise InputError(f"'{path}' is not what the receipt tells of.", "Copy both from the device again.")
    try:
        logits: NDArray[np.float32] = np.load(path, allow_pickle=False).astype(np.float32)
    except ValueError as error:
        raise InputError(f"'{path}' holds no logits.", "Run deploy/replay.py once more.") from error
    if logits.shape != shape:
        raise InputError(f"'{path}' holds logits {list(logits.shape)}, the teacher's are {list(shape)}.")
    return logits
