"""What is printed beside a verdict; `test_cli.py` and `test_comparison.py` have the rest."""

import json

import pytest

from compress.exporters.targets import load_target
from compress.pipeline.advice import remarks
from compress.pipeline.printing import print_validation
from compress.pipeline.records import ValidateRecord
from tests.verdicts import ADEQUATE, measured, validated, wrong_on


def slow_int8() -> ValidateRecord:
    """Of files that pass, the int8 one takes longer than the fp32 one."""
    rounded = measured(wrong_on(0)).model_copy(update={"latency_ms": 0.5})
    plain = rounded.model_copy(update={"artifact": "student.onnx", "precision": "fp32", "latency_ms": 0.3})
    return validated(rounded, ADEQUATE).model_copy(update={"ledger": (plain, rounded)})


def test_a_second_validation_remarks_what_a_run_does(capsys: pytest.CaptureFixture[str]) -> None:
    validation, target = slow_int8(), load_target("cpu-x86")
    print_validation(validation, target, as_json=True)
    advice = json.loads(capsys.readouterr().out)["advice"]
    assert advice == remarks(validation, target)
    assert "student.int8.onnx is no faster than student.onnx" in advice
    print_validation(validation, target, as_json=False)
    assert advice in capsys.readouterr().out
