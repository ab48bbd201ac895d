import pytest

from compress.exporters.targets import Gates, load_target
from compress.pipeline.advice import advice, speed_remark
from tests.verdicts import ADEQUATE, INADEQUATE, measured, validated, wrong_on

LARGER, ROUNDING = "let it be larger", "what is missing went with the rounding"


@pytest.mark.parametrize(
    ("in_float", "in_int8", "words"),
    [(0, 0, ""), (200, 200, LARGER), (100, 100, LARGER), (0, 200, ROUNDING), (0, 100, ROUNDING)],
)
def test_a_student_that_falls_short_is_told_of_its_cure(in_float: int, in_int8: int, words: str) -> None:
    gates = Gates(min_agreement=0.9)
    student = measured(wrong_on(in_float), gates).model_copy(update={"artifact": "student.safetensors"})
    rounded = measured(wrong_on(in_int8), gates)
    told = validated(rounded, ADEQUATE).model_copy(update={"ledger": (student, rounded)})
    assert advice(told).count(words) == 1 if words else advice(told) == ""


@pytest.mark.parametrize(
    ("target", "in_int8", "told"),
    [
        ("cpu-x86", 0.5, True),
        ("cpu-x86", 0.3, True),
        ("cpu-x86", 0.1, False),
        ("cpu-x86", None, False),
        ("jetson", 0.5, False),
    ],
)
def test_int8_that_is_no_faster_where_it_is_to_run_is_told_of(target: str, in_int8: float | None, told: bool) -> None:
    row = measured(wrong_on(0))
    plain = row.model_copy(update={"artifact": "student.onnx", "precision": "fp32", "latency_ms": 0.3})
    rounded = row.model_copy(update={"latency_ms": in_int8})
    remark = speed_remark(
        validated(rounded, ADEQUATE).model_copy(update={"ledger": (plain, rounded)}), load_target(target)
    )
    assert bool(remark) is told
    if told:
        assert f"is no faster than student.onnx: {in_int8} ms against 0.3 ms for one image" in remark


def test_an_agreement_above_its_limit_that_is_not_settled_asks_for_more_probes() -> None:
    # z² limit (1 - limit) / (value - limit)² = 3.8415 · 0.09 / 0.01² = 3,457.3, rounded up: 3,458, and a quarter more
    told = advice(validated(measured(wrong_on(90), Gates(min_agreement=0.9)), ADEQUATE))
    assert told.startswith("More probes may settle it: the command of the run with --probes 4323 makes them")


def test_a_time_that_only_the_device_can_tell_is_no_matter_of_probes() -> None:
    row = measured(wrong_on(90), Gates(min_agreement=0.9, max_latency_ms=1), timed_on_device=False)
    assert "--probes 4323" in advice(validated(row, ADEQUATE))


@pytest.mark.parametrize(
    ("wrong", "gates"),
    [(101, Gates(min_agreement=0.9)), (99, Gates(min_agreement=0.9)), (90, Gates(min_agreement=0.9, max_size_mb=0.1))],
)
def test_more_probes_are_not_asked_for_where_they_would_not_help(wrong: int, gates: Gates) -> None:
    """Below the limit; so near it that 20,000 would not do; or where another gate failed as well."""
    told = advice(validated(measured(wrong_on(wrong), gates), ADEQUATE))
    assert "--probes" not in told


def test_what_is_too_large_is_told_of_a_smaller_student() -> None:
    too_large = measured(wrong_on(0), size_bytes=2_000_000)
    assert (
        advice(validated(too_large, ADEQUATE)) == "A smaller student takes less: --set student.max_parameter_ratio=0.2."
    )


def test_an_agreement_that_only_very_many_probes_would_settle_is_not_taken_for_one_that_falls_short() -> None:
    in_float = measured(wrong_on(101), Gates(min_agreement=0.9)).model_copy(update={"artifact": "student.onnx"})
    judged = measured(wrong_on(99), Gates(min_agreement=0.9))
    told = advice(validated(judged, ADEQUATE).model_copy(update={"ledger": (in_float, judged)}))
    # z² · 0.09 / 0.001² = 345,731.1
    assert told == "What was measured is so near to a limit that it would take some 345,732 probes to be sure of it."


def test_inadequate_probes_are_bettered_by_a_generator_that_learns_for_longer_and_copies_by_nothing() -> None:
    row = measured(wrong_on(500), adequate=False)
    assert "--set probes.warmup_batches=8" in advice(validated(row, INADEQUATE))
    for cause in ({"copied": 11}, {"broken": 1}):
        assert advice(validated(row, INADEQUATE.model_copy(update=cause))) == ""
    assert advice(validated(row, INADEQUATE.model_copy(update={"copied": 10})))  # a hundredth is no cause


def test_probes_that_only_lack_classes_are_bettered_by_more_of_them() -> None:
    lacking = INADEQUATE.model_copy(update={"classes_seen": 2})
    told = advice(validated(measured(wrong_on(0), adequate=False), lacking))
    assert told == (
        "More images may show more classes: the command of the run with --probes 2000 makes them, and learns nothing again."
    )


def test_a_class_that_is_not_settled_asks_for_as_many_probes_as_bring_it_enough() -> None:
    limits = Gates(min_agreement=None, min_class_agreement=0.8)
    student = wrong_on(1000)
    student[120:] = wrong_on(0)[120:]  # 12 of the 100 probes of each class are wrong
    # z² · 0.8 · 0.2 / 0.08² = 96.03: 97 of a class; as each has 100 of 1,000, that is settled: 88 % of 100 from 80.2 % on
    assert advice(validated(measured(student, limits), ADEQUATE)) == ""
    student[120:150] = wrong_on(1000)[120:150]
    # 15 are wrong: z² · 0.16 / 0.05² = 245.9: 246 of a class, so 2,460 in all, and a quarter more
    assert "--probes 3075 " in advice(validated(measured(student, limits), ADEQUATE))
