"""CI: what a runner is told, and the action's own steps, run as a runner would."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from compress.pipeline.report import ReportData
from compress.pipeline.report.runner import tell_runner
from tests.command import compress
from tests.test_run import OPTIONS

ROOT = Path(__file__).parent.parent
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
DOCUMENT = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def delivered(tmp_path_factory: pytest.TempPathFactory, teacher_file: Path, labels_file: Path) -> Path:
    folder = tmp_path_factory.mktemp("delivered") / "out"
    compress(teacher_file, "--labels", labels_file, *OPTIONS, "--min-agreement", "0.05", "-o", folder)
    return folder


def report_of(folder: Path, **changes: object) -> ReportData:
    report = ReportData.model_validate_json((folder / "report.json").read_bytes())
    return report.model_copy(update={"validation": report.validation.model_copy(update=changes)})


def test_outputs_and_the_summary_are_appended(delivered: Path, tmp_path: Path) -> None:
    outputs, summary = tmp_path / "outputs", tmp_path / "summary"
    outputs.write_text("earlier=1\n")
    variables = {"GITHUB_OUTPUT": str(outputs), "GITHUB_STEP_SUMMARY": str(summary)}
    assert tell_runner(report_of(delivered), delivered, variables) is None
    told = dict(line.split("=", 1) for line in outputs.read_text().splitlines())
    row = report_of(delivered).validation.ledger[-1]
    assert told == {
        "earlier": "1",
        "verdict": "PASS",
        "agreement": f"{row.agreement.value:.4f}",
        "agreement-low": f"{row.agreement.low:.4f}",
        "artifact": "student.int8.onnx",
        "folder": str(delivered),
        "report": str(delivered / "report.html"),
    }
    assert summary.read_text() == (delivered / "report.md").read_text()


@pytest.mark.parametrize(("verdict", "level"), [("PASS", "notice"), ("INCONCLUSIVE", "warning"), ("FAIL", "error")])
def test_the_verdict_annotates_the_run(delivered: Path, verdict: str, level: str) -> None:
    line = tell_runner(report_of(delivered, verdict=verdict), delivered, {"GITHUB_ACTIONS": "true"})
    assert line is not None and line.startswith(f"::{level} title=compress teacher for jetson::{verdict}: student.int8")
    assert "\n" not in line and "%25" in line  # a percent sign begins a code


def test_a_title_cannot_begin_a_command_of_its_own(delivered: Path) -> None:
    report = report_of(delivered).model_copy(update={"title": "a::error::b, c\n::warning::d"})
    line = tell_runner(report, delivered, {"GITHUB_ACTIONS": "true"})
    assert line is not None and line.count("::") == 2 and "\n" not in line and line.startswith("::notice title=")


def test_outside_of_a_runner_nothing_is_told(delivered: Path) -> None:
    assert tell_runner(report_of(delivered), delivered, {}) is None


def step(name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(step for step in ACTION["runs"]["steps"] if step["name"] == name)
    return found


def test_the_action_s_step_runs_the_command_with_its_inputs(
    tmp_path: Path, teacher_file: Path, labels_file: Path
) -> None:
    program = tmp_path / "compress" / "bin" / "compress"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m compress "$@"\n')
    program.chmod(0o755)
    inputs = {name: str(given.get("default", "")) for name, given in ACTION["inputs"].items()}
    inputs |= {"teacher": str(teacher_file), "labels": str(labels_file), "min-agreement": "0.05", "recipe": "smoke"}
    inputs |= {"output": str(tmp_path / "the output"), "arguments": "--set threads=1 --quiet"}
    given = {name: inputs[value.split("inputs.")[1].split(" ")[0]] for name, value in step("Compress")["env"].items()}
    outputs = tmp_path / "outputs"
    runner = {"RUNNER_TEMP": str(tmp_path), "GITHUB_ACTIONS": "true", "GITHUB_OUTPUT": str(outputs)}
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")} | runner | given
    script = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step("Compress")["run"]]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
    told = dict(line.split("=", 1) for line in outputs.read_text().splitlines())
    assert done.returncode == (0 if told["verdict"] == "PASS" else 4)
    assert told["folder"] == str(tmp_path / "the output") and (tmp_path / "the output" / "report.html").exists()
    assert "::" in done.stderr and f"title=compress {teacher_file.stem} for jetson::{told['verdict']}" in done.stderr
    named = {output["value"].split("outputs.")[1].split(" ")[0] for output in ACTION["outputs"].values()}
    assert named <= set(told)


def test_the_action_installs_what_lies_beside_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    pip = 'mkdir -p "$3/bin"; printf \'#!/bin/sh\\nprintf "%%s\\\\n" "$@" >>"$LOG"\\n\' >"$3/bin/pip"; chmod +x "$3/bin/pip"'
    python.write_text(f"#!/bin/sh\n{pip}\n")
    python.chmod(0o755)
    variables = {"PATH": f"{python.parent}:{os.environ['PATH']}", "RUNNER_TEMP": str(tmp_path / "t"), "LOG": str(log)}
    script = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step("Install")["run"]]
    subprocess.run(script, env=os.environ | variables | {"SOURCE": "/the action"}, check=True)
    assert log.read_text().splitlines()[-2:] == ["/the action/constraints.txt", "/the action[encoder,holdout]"]


def test_the_document_names_the_inputs_and_outputs_that_there_are() -> None:
    example = yaml.safe_load(DOCUMENT.split("```yaml\n")[1].split("```")[0])
    used = next(step for step in example["jobs"]["student"]["steps"] if "./compress" in step.get("uses", ""))
    assert set(used["with"]) <= set(ACTION["inputs"])
    table = [line.split("|")[1].strip() for line in DOCUMENT.splitlines() if line.startswith("| ")][2:]
    assert {name for cell in table for name in cell.split(", ")} == set(ACTION["inputs"])
    assert all(f"`{name}`" in DOCUMENT for name in ACTION["outputs"])
    gitlab = yaml.safe_load(DOCUMENT.split("```yaml\n")[2].split("```")[0])
    assert gitlab["student"]["artifacts"]["reports"]["junit"] == "student/junit.xml"
    assert json.dumps(example)  # plain data: nothing that YAML took for something else
