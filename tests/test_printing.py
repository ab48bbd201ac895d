"""What is printed beside a verdict; `test_cli.py` and `test_comparison.py` have the rest."""

import json

import pytest

from compress.exporters.targets import Gates, load_target
from compress.pipeline.advice import remarks
from compress.pipeline.printing import print_validation
from compress.pipeline.records import ValidateRecord
from tests.verdicts import ADEQUATE, measured, validated, wrong_on


def slow_int8() -> ValidateRecord:
    """Of files that pass, the int8 one takes longer than the fp32 one."""
    rounded = measured(wrong_on(0)).model_copy(update={"latency_ms": 0.5})
    plain = rounded.model_copy(update={"artifact": "student.onnx", "precision": "fp32", "latency_ms": 0.3})
    return validated(rounded, ADEQUATE).model_copy(update={"ledger": (plain, rounded)})


@pytest.mark.parametrize(
    ("wrong", "limits", "told"),
    [(90, "--min-agreement 0.9", True), (90, "", False), (200, "--min-agreement 0.9", False)],
)
def test_advice_to_make_more_probes_repeats_the_limits_that_were_given(
    capsys: pytest.CaptureFixture[str], wrong: int, limits: str, told: bool
) -> None:
    validation = validated(measured(wrong_on(wrong), Gates(min_agreement=0.9)), ADEQUATE)
    print_validation(validation, load_target("cpu-x86"), limits, as_json=True)
    again = (
        "makes them, and learns nothing again. The run has gates of its own: validate with --min-agreement 0.9 again"
    )
    assert (again in json.loads(capsys.readouterr().out)["advice"]) is told


def test_a_second_validation_remarks_what_a_run_does(capsys: pytest.CaptureFixture[str]) -> None:
    validation, target = slow_int8(), load_target("cpu-x86")
    print_validation(validation, target, "", as_json=True)
    advice = json.loads(capsys.readouterr().out)["advice"]
    assert advice == remarks(validation, target)
    assert "student.int8.onnx is no faster than student.onnx" in advice
    print_validation(validation, target, "", as_json=False)
    assert advice in capsys.readouterr().out
