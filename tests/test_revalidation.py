"""A delivered folder judged again: as it lies, and by what an engine answered."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import Result

from compress.exporters import onnx_graph
from compress.exporters.bundle import sha256_of
from compress.pipeline.errors import InputError
from tests.command import compress
from tests.test_run import OPTIONS

EVERYTHING_PASSES = ("--min-agreement", "0.01")


@pytest.fixture(scope="module")
def delivered(tmp_path_factory: pytest.TempPathFactory, teacher_file: Path, labels_file: Path) -> Path:
    folder = tmp_path_factory.mktemp("delivered") / "out"
    words = (str(teacher_file), "--labels", str(labels_file), *OPTIONS, "--target", "nvidia-gpu", *EVERYTHING_PASSES)
    assert compress(*words, "-o", folder).exit_code == 0
    return folder


@pytest.fixture
def folder(delivered: Path, tmp_path: Path) -> Path:
    return shutil.copytree(delivered, tmp_path / "out", ignore=shutil.ignore_patterns("work"))


def answer(folder: Path, logits: Callable[[np.ndarray], np.ndarray], **changes: object) -> Path:
    """What the device would send home for an engine that answers so to the teacher's logits."""
    home = folder.parent / "from the device"
    home.mkdir()
    with np.load(folder / "probes.npz") as arrays:
        np.save(home / "engine.logits.npy", logits(arrays["teacher_logits"]).astype(np.float32))
    onnx = sha256_of(folder / "student.int8.typed.onnx")
    replay = {
        "plan_sha256": "ab" * 32,
        "plan_bytes": 123456,
        "onnx_sha256": onnx,
        "probes_sha256": sha256_of(folder / "probes.npz"),
        "logits_sha256": sha256_of(home / "engine.logits.npy"),
    }
    receipt = {"plan": "student.plan", "plan_sha256": "ab" * 32, "onnx_sha256": onnx, "latency_ms": 0.42}
    receipt |= {"replay": replay | {key: value for key, value in changes.items() if key in replay}}
    receipt |= {key: value for key, value in changes.items() if key not in replay}
    (home / "engine.receipt.json").write_text(json.dumps(receipt), encoding="utf-8")
    return home / "engine.receipt.json"


def ledger(result: Result) -> dict[str, dict[str, Any]]:
    return {row["artifact"]: row for row in json.loads(result.stdout)["validation"]["ledger"]}


def test_a_folder_gets_the_verdict_that_it_was_delivered_with(folder: Path) -> None:
    result = compress("validate", folder, "--json")
    assert result.exit_code == 0
    assert list(json.loads(result.stdout)) == ["verdict", "reason", "advice", "validation"]
    before = json.loads((folder / "report.json").read_text())["validation"]
    now = ledger(result)
    assert list(now) == [
        "student.safetensors",
        "student.onnx",
        "student.fp16.onnx",
        "student.int8.onnx",
        "student.int8.typed.onnx",
    ]
    for row in before["ledger"]:
        for key in ("agreement", "agreement_by_class", "mean_kl", "size_bytes", "gates"):
            assert now[row["artifact"]][key] == row[key]


def test_another_limit_can_be_asked_for(folder: Path) -> None:
    result = compress("validate", folder, "--min-agreement", "1")
    assert result.exit_code == 4
    assert "required 100 %" in result.stdout
    wrong = compress("validate", folder, "--min-agreement", "2")
    assert wrong.exit_code == 2 and "The limit min_agreement cannot be 2" in wrong.stderr


@pytest.mark.parametrize(
    ("option", "strict", "lax", "name"),
    [
        ("--min-class-agreement", "1", "0.0001", "class agreement"),
        ("--max-kl", "1e-9", "1000", "mean KL"),
        ("--max-size-mb", "0.001", "10", "size"),
    ],
)
def test_every_gate_can_be_set_here(folder: Path, option: str, strict: str, lax: str, name: str) -> None:
    results = {
        limit: compress("validate", folder, *EVERYTHING_PASSES, option, limit, "--json") for limit in (strict, lax)
    }
    gates = {
        limit: {gate["name"]: gate["verdict"] for gate in ledger(result)["student.int8.onnx"]["gates"]}
        for limit, result in results.items()
    }
    assert gates[strict][name] in {"FAIL", "INCONCLUSIVE"} and results[strict].exit_code == 4
    assert gates[lax][name] in {"PASS", "INCONCLUSIVE"}  # a class of few probes may not clear the smallest of limits


LATENCY = ("--max-latency-ms", "0.5", "--min-agreement", "0.5")


def test_the_time_of_a_cpu_is_not_judged_as_that_of_a_device_with_tensorrt(folder: Path) -> None:
    result = compress("validate", folder, *LATENCY, "--json")
    assert result.exit_code == 4
    for row in ledger(result).values():
        (gate,) = [gate for gate in row["gates"] if gate["name"] == "latency"]
        assert (gate["verdict"], gate["measured"]) == ("INCONCLUSIVE", "not measured")
        assert gate["explanation"].startswith("the latency is known only on the device")


@pytest.mark.parametrize(
    ("latency_ms", "verdict", "words"),
    [
        (0.42, "PASS", "a latency of 0.42 ms is within the allowed 0.5 ms"),
        (0.84, "FAIL", "a latency of 0.84 ms is over the allowed 0.5 ms"),
        (None, "INCONCLUSIVE", "the latency was not measured"),
    ],
)
def test_the_time_of_an_engine_is_judged_by_its_receipt(
    folder: Path, latency_ms: float | None, verdict: str, words: str
) -> None:
    receipt = answer(folder, lambda teacher: teacher, latency_ms=latency_ms)
    told = json.loads(compress("validate", folder, "--receipt", receipt, *LATENCY, "--json").stdout)
    assert told["verdict"] == verdict
    assert words in told["reason"]


def test_a_folder_that_fails_is_told_what_would_help(folder: Path) -> None:
    result = compress("validate", folder, "--min-agreement", "1")
    assert result.exit_code == 4
    assert "larger (--set student.max_parameter_ratio=0.6)" in result.stdout.replace("\n", " ")
    told = json.loads(compress("validate", folder, "--min-agreement", "1", "--json").stdout)
    assert "Give it more time" in told["advice"]


def test_a_changed_file_is_refused_by_its_hash(folder: Path) -> None:
    with (folder / "student.int8.onnx").open("ab") as stream:
        stream.write(b"\0")
    result = compress("validate", folder)
    assert result.exit_code == 4
    assert "is not as it was delivered: student.int8.onnx was changed." in result.stderr
    assert compress("validate", folder / "none").exit_code == 2


def test_what_was_never_delivered_is_told_apart_from_what_was_changed(folder: Path, tmp_path: Path) -> None:
    (folder / "manifest.json").unlink()
    shutil.rmtree(folder / "work", ignore_errors=True)
    sealed_no_more = compress("validate", folder)
    assert sealed_no_more.exit_code == 4 and "manifest.json is missing" in sealed_no_more.stderr
    (folder / "work").mkdir()
    unfinished = compress("validate", folder)
    assert unfinished.exit_code == 2 and "is not finished" in unfinished.stderr
    foreign = compress("validate", tmp_path)
    assert foreign.exit_code == 2 and "is no delivered folder" in foreign.stderr


def test_an_engine_in_the_folder_that_was_not_judged_is_told_of(folder: Path) -> None:
    (folder / "student.plan").write_bytes(b"plan")
    told = "student.plan was not judged: ask for it by --receipt"
    assert told in compress("validate", folder, *EVERYTHING_PASSES).stderr
    receipt = answer(folder, lambda teacher: teacher)
    assert told not in compress("validate", folder, *EVERYTHING_PASSES, "--receipt", receipt).stderr


def test_an_engine_that_answers_as_the_teacher_passes_and_decides(folder: Path) -> None:
    receipt = answer(folder, lambda teacher: teacher + 1)
    result = compress("validate", folder, "--receipt", receipt, "--min-agreement", "0.5", "--json")
    row = ledger(result)["student.plan"]
    assert (row["latency_ms"], row["size_bytes"], row["precision"]) == (0.42, 123456, "int8")
    assert row["agreement"]["value"] == 1
    assert json.loads(result.stdout)["validation"]["shipped"] == "student.plan"


def test_an_engine_that_answers_otherwise_fails(folder: Path) -> None:
    result = compress("validate", folder, "--receipt", answer(folder, lambda teacher: -teacher))
    assert result.exit_code == 4
    assert "student.plan gives the teacher's answer on 0.0 %" in result.stdout


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"replay": None}, 3, "holds no answers of the engine"),
        ({"onnx_sha256": "0" * 64}, 3, "is of an engine of another file"),
        ({"onnx_sha256": []}, 3, "is no receipt of deploy/replay.py ('replay.onnx_sha256')"),
        ({"plan_bytes": None}, 3, "is no receipt of deploy/replay.py ('replay.plan_bytes')"),
        ({"plan_bytes": -5}, 3, "is no receipt of deploy/replay.py ('replay.plan_bytes')"),
        ({"plan_bytes": True}, 3, "is no receipt of deploy/replay.py ('replay.plan_bytes')"),
        ({"latency_ms": "soon"}, 3, "is no receipt of deploy/replay.py ('latency_ms')"),
        ({"latency_ms": -1.0}, 3, "is no receipt of deploy/replay.py ('latency_ms')"),
        ({"latency_ms": float("nan")}, 3, "is no receipt of deploy/replay.py"),
        ({"probes_sha256": "0" * 64}, 3, "tells of other probes"),
        ({"plan_sha256": "0" * 64}, 3, "tells of another engine than was built"),
        ({"logits_sha256": "0" * 64}, 3, "is not what the receipt tells of"),
    ],
)
def test_a_receipt_of_something_else_is_refused(
    folder: Path, changes: dict[str, object], code: int, words: str
) -> None:
    result = compress("validate", folder, "--receipt", answer(folder, lambda teacher: teacher, **changes))
    assert result.exit_code == code
    assert words in result.stderr


def test_logits_that_are_missing_of_another_shape_or_pickled_are_refused(folder: Path) -> None:
    receipt = answer(folder, lambda teacher: teacher[:, :2])
    assert "holds float32 [" in compress("validate", folder, "--receipt", receipt).stderr
    logits = receipt.with_name("engine.logits.npy")
    np.save(logits, np.array([{}], dtype=object), allow_pickle=True)
    for content in (logits.read_bytes(), b"", b"PK\3\4", b"\x93NUMPY\1\0"):
        logits.write_bytes(content)
        told = json.loads(receipt.read_text())
        told["replay"]["logits_sha256"] = sha256_of(logits)
        receipt.write_text(json.dumps(told))
        refused = compress("validate", folder, "--receipt", receipt)
        assert refused.exit_code == 3 and "holds no logits" in refused.stderr
    logits.unlink()
    assert "cannot be read" in compress("validate", folder, "--receipt", receipt).stderr


def test_the_name_that_a_receipt_gives_its_engine_chooses_no_other_row(folder: Path) -> None:
    receipt = answer(folder, lambda teacher: -teacher, plan="student.onnx")
    result = compress("validate", folder, "--receipt", receipt, "--min-agreement", "0.5")
    assert result.exit_code == 4 and "FAIL: student.plan gives" in result.stdout


def test_an_engine_of_the_fp32_file_is_not_the_int8_engine(folder: Path) -> None:
    receipt = answer(folder, lambda teacher: teacher, onnx_sha256=sha256_of(folder / "student.onnx"))
    assert "is of an engine of another file" in compress("validate", folder, "--receipt", receipt).stderr


def test_an_engine_is_run_only_when_asked_for(folder: Path) -> None:
    assert compress("validate", folder, *EVERYTHING_PASSES).exit_code == 0
    missing = compress("validate", folder, "--engine")
    assert missing.exit_code == 2 and "There is no engine" in missing.stderr


@pytest.mark.parametrize(("content", "code"), [(None, 2), ("no json", 3), ("[]", 3), ("[" * 100_000, 3)])
def test_what_is_no_receipt_is_refused(folder: Path, content: str | None, code: int) -> None:
    path = folder.parent / "engine.receipt.json"
    if content is not None:
        path.write_text(content)
    assert compress("validate", folder, "--receipt", path).exit_code == code


def test_a_student_that_does_not_fit_into_fp16_is_delivered_without_the_typed_file(
    delivered: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    teacher_file: Path,
    labels_file: Path,
) -> None:
    def too_large(model: object) -> object:
        raise InputError("The constant 'x' has values up to 7e+04, too large for fp16.")

    monkeypatch.setattr(onnx_graph, "in_half_precision", too_large)
    shutil.copytree(delivered, tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "work" / "5-export")
    words = (str(teacher_file), "--labels", str(labels_file), *OPTIONS, "--target", "nvidia-gpu", *EVERYTHING_PASSES)
    result = compress(*words, "-o", tmp_path / "out")
    assert result.exit_code == 0
    assert "There is no typed int8 file: The constant 'x'" in result.stderr
    assert "There is no fp16 file: The constant 'x'" in result.stderr
    assert not (tmp_path / "out" / "student.int8.typed.onnx").exists()
    assert not (tmp_path / "out" / "student.fp16.onnx").exists()
    assert "takes typed graphs only" in (tmp_path / "out" / "deploy" / "build_engine.sh").read_text()
    assert "PASS: student.int8.onnx gives" in result.stdout
