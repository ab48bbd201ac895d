"""The published schema of report.json, by a validator that knows nothing of the records."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from compress.pipeline.report.data import REPORT_FILE, report_schema, strict_json, to_json
from tests.command import compress
from tests.test_report import report_data
from tests.test_run import OPTIONS


@pytest.fixture(scope="module")
def produced(tmp_path_factory: pytest.TempPathFactory, teacher_file: Path, labels_file: Path) -> str:
    """The report of a real run for a target with every kind of file."""
    folder = tmp_path_factory.mktemp("produced") / "out"
    words = ("--labels", labels_file, *OPTIONS, "--target", "nvidia-gpu", "--min-agreement", "0.05", "-o", folder)
    compress(teacher_file, *words)
    return (folder / REPORT_FILE).read_text(encoding="ascii")


def problems(document: Any) -> list[str]:
    return [error.json_path for error in Draft202012Validator(report_schema()).iter_errors(document)]


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(report_schema())


def test_a_report_that_a_run_wrote_satisfies_it(produced: str) -> None:
    assert problems(json.loads(produced)) == []


def test_a_run_writes_numbers_that_are_not_finite_and_the_schema_takes_them(produced: str) -> None:
    warmup = json.loads(produced)["distill"]["history"][0]
    assert warmup["kd_loss"] == "NaN"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_every_number_that_is_not_finite_is_taken_as_it_is_written(value: float) -> None:
    document = json.loads(to_json(report_data()))
    document["validation"]["ledger"][0]["sqnr_db"] = json.loads(strict_json(value))
    assert problems(document) == []


def test_a_field_that_a_later_version_adds_is_let_be() -> None:
    assert problems(json.loads(to_json(report_data())) | {"added": 1}) == []


CHANGES: dict[str, tuple[Callable[[Any], object], str]] = {
    "no version": (lambda document: document.pop("schema_version"), "$"),
    "a later version": (lambda document: document.update(schema_version=3), "$.schema_version"),
    "no verdict": (lambda document: document["validation"].pop("verdict"), "$.validation"),
    "no such verdict": (lambda document: document["validation"].update(verdict="MAYBE"), "$.validation.verdict"),
    "a word for a number": (
        lambda document: document["validation"]["ledger"][0].update(mean_kl="much"),
        "$.validation.ledger[0].mean_kl",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_no_report_is_refused_at_its_place(name: str) -> None:
    change, place = CHANGES[name]
    document = json.loads(to_json(report_data()))
    change(document)
    assert problems(document) == [place]


def test_the_document_about_it_names_the_version_that_there_is() -> None:
    text = (Path(__file__).parent.parent / "docs" / "report.md").read_text(encoding="utf-8")
    assert f"`schema_version`, now {report_schema()['properties']['schema_version']['const']}," in text
