"""What a CI runner is told of a run, by the variables that it sets: outputs, a summary, an annotation.

Source: GitHub, "Workflow commands for GitHub Actions"; other runners set some of the same variables, or none.
"""

from collections.abc import Mapping
from pathlib import Path

from compress.pipeline.fidelity import find_artifact, verdict_sentence
from compress.pipeline.report.data import ReportData
from compress.pipeline.report.text import visible

LEVELS = {"PASS": "notice", "INCONCLUSIVE": "warning", "FAIL": "error"}


def tell_runner(report: ReportData, folder: Path, environment: Mapping[str, str]) -> str | None:
    """Append to the files that the runner names; returns the line that annotates the run, None outside of one."""
    validation = report.validation
    judged = find_artifact(validation.ledger, validation.shipped)
    outputs = {
        "verdict": validation.verdict,
        "agreement": f"{judged.agreement.value:.4f}",
        "agreement-low": f"{judged.agreement.low:.4f}",
        "artifact": judged.artifact,
        "folder": str(folder),
        "report": str(folder / "report.html"),
    }
    if path := environment.get("GITHUB_OUTPUT"):
        _append(Path(path), "".join(f"{name}={_one_line(value)}\n" for name, value in outputs.items()))
    if path := environment.get("GITHUB_STEP_SUMMARY"):
        _append(Path(path), (folder / "report.md").read_text(encoding="utf-8"))
    if environment.get("GITHUB_ACTIONS") != "true":
        return None
    sentence, title = _message(visible(verdict_sentence(validation))), _property(visible(report.title))
    return f"::{LEVELS[validation.verdict]} title=compress {title}::{sentence}"


def _append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def _one_line(value: str) -> str:
    """Without what would begin another output."""
    return value.replace("\r", " ").replace("\n", " ")


def _message(text: str) -> str:
    """As the message of a workflow command, in which a runner reads back these three and no others.

    Source: actions/toolkit, packages/core/src/command.ts, `escapeData` and `escapeProperty`.
    """
    for character, code in (("%", "%25"), ("\r", "%0D"), ("\n", "%0A")):
        text = text.replace(character, code)
    return text


def _property(text: str) -> str:
    """As a property, which ends at a colon or a comma."""
    return _message(text).replace(":", "%3A").replace(",", "%2C")
