from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from compress.exporters.targets import Gates, load_target
from compress.pipeline import fidelity, metrics
from compress.pipeline.records import ArtifactFidelity, Gate, ProbeAdequacy, Proportion, ValidateRecord, Verdict

CLASSES, PROBES = 10, 1000
LIMITS = Gates(min_agreement=0.9, max_mean_kl=0.5, max_size_mb=1)
Logits = NDArray[np.float32]


def probes(n: int = PROBES, classes: int = CLASSES, margin: float = 8) -> tuple[Logits, NDArray[np.int64], Any]:
    """A confident teacher's logits, the classes that the images were made for, and the kinds of the images."""
    targets = np.arange(n) % classes
    logits = np.random.default_rng(0).normal(0, 1, (n, classes)).astype(np.float32)
    logits[np.arange(n), targets] += margin
    return logits, targets, np.where(np.arange(n) < n // 2, "synthesised", "mixed")


def measured(student: Logits, gates: Gates = LIMITS, teacher: Logits | None = None, **other: Any) -> ArtifactFidelity:
    logits, _, kinds = probes()
    sizes = {"size_bytes": 500_000, "latency_ms": 1.5} | other
    return fidelity.measure_artifact(
        "student.int8.onnx",
        "int8",
        teacher_logits=logits if teacher is None else teacher,
        student_logits=student,
        kinds=kinds,
        gates=gates,
        **sizes,
    )


def wrong_on(count: int) -> Logits:
    """The teacher's logits with those of the first `count` images moved by one class."""
    student = probes()[0].copy()
    student[:count] = np.roll(student[:count], 1, axis=1)
    return student


def gate(row: ArtifactFidelity, name: str) -> Gate:
    return next(gate for gate in row.gates if gate.name == name)


def validated(row: ArtifactFidelity, adequacy: ProbeAdequacy) -> ValidateRecord:
    return ValidateRecord(
        probes=PROBES,
        probe_kinds={"synthesised": 500, "mixed": 500},
        adequacy=adequacy,
        ledger=(row,),
        shipped=row.artifact,
        verdict=fidelity.overall_verdict(row, adequacy),
        cpu="a CPU",
    )


# Words


@pytest.mark.parametrize(
    ("share", "words"),
    [(0.96449, "96.4 %"), (0.89999, "89.9 %"), (0.57, "57.0 %"), (1, "100.0 %"), (0.99999, "99.9 %")],
)
def test_a_percentage_is_rounded_down_so_that_it_never_clears_a_limit_by_rounding(share: float, words: str) -> None:
    assert fidelity.percent(share) == words


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ((), "PASS"),
        (("PASS", "PASS"), "PASS"),
        (("PASS", "INCONCLUSIVE"), "INCONCLUSIVE"),
        (("INCONCLUSIVE", "FAIL", "PASS"), "FAIL"),
    ],
)
def test_one_failure_fails_and_one_doubt_is_no_pass(verdicts: tuple[Verdict, ...], expected: Verdict) -> None:
    assert fidelity.worst(verdicts) == expected


# Gates


@pytest.mark.parametrize(("wrong", "verdict"), [(0, "PASS"), (81, "PASS"), (83, "INCONCLUSIVE"), (200, "FAIL")])
def test_the_interval_decides_about_agreement_and_not_the_value(wrong: int, verdict: Verdict) -> None:
    # Wilson, n = 1000: 919 agree -> low 0.9004; 917 agree -> low 0.8983; 800 agree -> high 0.8236
    row = measured(wrong_on(wrong), Gates(min_agreement=0.9))
    assert gate(row, fidelity.AGREEMENT).verdict == row.verdict == verdict


def test_an_inconclusive_agreement_says_how_many_probes_would_settle_it() -> None:
    row = measured(wrong_on(90), Gates(min_agreement=0.9))
    # z² · 0.9 · 0.1 / 0.01² = 3457.3
    assert gate(row, fidelity.AGREEMENT).explanation == (
        "the 95 % interval, 89.0 % to 92.6 %, includes the required 90 %; "
        "3,458 probes would settle it if the agreement stays the same"
    )


def test_an_agreement_that_equals_its_limit_says_that_no_number_of_probes_settles_it() -> None:
    row = measured(wrong_on(100), Gates(min_agreement=0.9))
    assert row.verdict == "INCONCLUSIVE"
    assert "exactly the limit, which no number of probes settles" in gate(row, fidelity.AGREEMENT).explanation


def test_even_a_perfect_student_cannot_prove_an_agreement_of_one() -> None:
    assert measured(wrong_on(0), Gates(min_agreement=1)).verdict == "INCONCLUSIVE"


@pytest.mark.parametrize(("limit", "verdict"), [(0.5, "PASS"), (0.499, "FAIL")])
def test_the_size_is_judged_in_millions_of_bytes_and_may_equal_its_limit(limit: float, verdict: Verdict) -> None:
    row = measured(wrong_on(0), Gates(max_size_mb=limit), size_bytes=500_000)
    assert gate(row, fidelity.SIZE).verdict == verdict
    assert gate(row, fidelity.SIZE).measured == "0.5 MB"


@pytest.mark.parametrize(("limit", "verdict", "words"), [(1.5, "PASS", "within"), (1.499, "FAIL", "over")])
def test_the_latency_may_equal_its_limit(limit: float, verdict: Verdict, words: str) -> None:
    judged = gate(measured(wrong_on(0), Gates(max_latency_ms=limit), latency_ms=1.5), fidelity.LATENCY)
    assert (judged.verdict, judged.limit, judged.measured) == (verdict, limit, "1.5 ms")
    assert judged.explanation == f"a latency of 1.5 ms is {words} the allowed {limit} ms"


@pytest.mark.parametrize(
    ("latency_ms", "timed_on_device", "words"),
    [
        (None, True, "the latency was not measured"),
        (0.001, False, "the latency is known only on the device"),
        (None, False, "the latency is known only on the device"),
    ],
)
def test_a_latency_that_is_not_the_devices_decides_nothing(
    latency_ms: float | None, timed_on_device: bool, words: str
) -> None:
    row = measured(wrong_on(0), Gates(max_latency_ms=1), latency_ms=latency_ms, timed_on_device=timed_on_device)
    judged = gate(row, fidelity.LATENCY)
    assert (judged.verdict, judged.measured, row.verdict) == ("INCONCLUSIVE", "not measured", "INCONCLUSIVE")
    assert judged.explanation.startswith(words)
    assert row.latency_ms == latency_ms


def test_a_limit_that_is_not_set_is_not_judged() -> None:
    assert [gate.name for gate in measured(wrong_on(500), Gates(min_agreement=None)).gates] == [fidelity.FINITE]


# Artifacts


def test_a_student_equal_to_its_teacher_agrees_everywhere() -> None:
    row = measured(wrong_on(0))
    assert row.verdict == "PASS"
    assert row.agreement == fidelity.proportion(PROBES, PROBES)
    assert row.top5_agreement == row.agreement
    assert (row.mean_kl, row.kl_p99, row.sqnr_db) == (0, 0, np.inf)


def test_agreement_is_told_by_kind_and_by_the_class_that_the_teacher_names() -> None:
    row = measured(wrong_on(500))
    assert {kind: (part.value, part.total) for kind, part in row.agreement_by_kind.items()} == {
        "mixed": (1.0, 500),
        "synthesised": (0.0, 500),
    }
    assert [part.total for part in row.agreement_by_class] == [100] * CLASSES
    assert [part.value for part in row.agreement_by_class] == [0.5] * CLASSES


def test_the_most_frequent_confusions_are_listed_and_single_ones_are_not() -> None:
    teacher, *_ = probes()
    student = teacher.copy()
    named = teacher.argmax(axis=1)
    for source, taken, count in ((3, 5, 7), (1, 2, 4), (8, 9, 1)):
        student[np.flatnonzero(named == source)[:count], taken] = 1000
    row = measured(student)
    told = [(pair.teacher, pair.artifact, pair.count, pair.total) for pair in row.confusions]
    assert told == [(3, 5, 7, 100), (1, 2, 4, 100)]
    assert row.margin_weighted_agreement == pytest.approx(row.agreement.value, abs=0.05)


def test_five_classes_or_fewer_have_no_top_five_agreement() -> None:
    teacher, _, kinds = probes(classes=5)
    row = fidelity.measure_artifact(
        "student.onnx",
        "fp32",
        size_bytes=1,
        latency_ms=None,
        teacher_logits=teacher,
        student_logits=teacher,
        kinds=kinds,
        gates=LIMITS,
    )
    assert row.top5_agreement is None


def test_arrays_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match=r"teacher \(1000, 10\), student \(999, 10\), kinds \(1000,\)"):
        measured(probes()[0][:-1])


def noise(scale: float) -> Callable[[Logits], Logits]:
    return lambda logits: logits + np.random.default_rng(1).normal(0, scale, logits.shape).astype(np.float32)


def with_value(value: float) -> Callable[[Logits], Logits]:
    def defect(logits: Logits) -> Logits:
        logits[7, 3] = value
        return logits

    return defect


DEFECTS: dict[str, Callable[[Logits], Logits]] = {
    "one NaN": with_value(np.nan),
    "one infinity": with_value(np.inf),
    "one minus infinity": with_value(-np.inf),
    "all NaN": lambda logits: np.full_like(logits, np.nan),
    "all zero": np.zeros_like,
    "always the first class": lambda logits: np.eye(CLASSES, dtype=np.float32)[np.zeros(len(logits), dtype=int)],
    "noise instead of an answer": lambda logits: np.random.default_rng(2).normal(size=logits.shape).astype(np.float32),
    "answers buried in noise": noise(6),
    "classes in another order": lambda logits: logits[:, ::-1],
    "classes moved by one": lambda logits: np.roll(logits, 1, axis=1),
    "two classes exchanged": lambda logits: logits[:, [1, 0, *range(2, CLASSES)]],
    "one class never answered, and one image in twenty wrong": lambda logits: (
        np.where(np.arange(CLASSES) == 4, -50, logits) * np.where(np.arange(len(logits)) % 20, 1, -1)[:, None]
    ).astype(np.float32),
    "images answered in another order": lambda logits: logits[np.random.default_rng(3).permutation(len(logits))],
    "the answer of the image before": lambda logits: np.roll(logits, 1, axis=0),
    "the sign turned": lambda logits: -logits,
    "probabilities without a scale": lambda logits: logits * np.float32(0.01),
    "saturated": lambda logits: np.clip(logits, -1, 1),
    "the first class suppressed": lambda logits: np.where(
        np.arange(CLASSES) == logits.argmax(axis=1)[:, None], np.float32(0), logits
    ),
    "one image in five wrong": lambda logits: np.where((np.arange(len(logits)) % 5 == 0)[:, None], -logits, logits),
    "the second half of the probes wrong": lambda logits: np.concatenate([logits[:500], -logits[500:]]),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_no_defect_passes(defect: str) -> None:
    row = measured(DEFECTS[defect](probes()[0]))
    assert row.verdict == "FAIL"
    assert all(gate.explanation for gate in row.gates)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_single_broken_output_fails_and_is_counted(value: float) -> None:
    row = measured(with_value(value)(probes()[0]), Gates())
    assert row.verdict == "FAIL"
    assert row.gates[0].explanation == "NaN or infinity in the output for 1 of 1000 probes"


def test_a_good_student_with_quantization_noise_passes() -> None:
    assert measured(noise(0.3)(probes()[0])).verdict == "PASS"


# Probes


def test_confident_probes_of_every_class_are_adequate() -> None:
    adequacy = fidelity.assess_adequacy(*probes(), CLASSES)
    assert adequacy.adequate
    assert adequacy.reasons == ()
    assert adequacy.classes_seen == CLASSES
    assert adequacy.largest_class_share == 0.1
    assert adequacy.on_target == fidelity.proportion(500, 500)
    assert adequacy.median_confidence > 0.95


def test_the_confidence_is_that_of_the_probes_made_for_a_class() -> None:
    logits, targets, kinds = probes()
    flat = np.where((kinds == "mixed")[:, None], logits / 100, logits)
    before, after = (fidelity.assess_adequacy(x, targets, kinds, CLASSES) for x in (logits, flat))
    assert before.median_confidence == after.median_confidence


def test_up_to_nineteen_classes_every_class_must_be_named() -> None:
    logits, targets, kinds = probes(classes=19)
    logits[:, 18] = -20
    adequacy = fidelity.assess_adequacy(logits, targets, kinds, 19)
    assert not adequacy.adequate
    assert adequacy.reasons == ("the teacher names only 18 of 19 classes on them",)


def test_collapsed_probes_are_inadequate_although_a_few_name_the_other_classes() -> None:
    logits, targets, kinds = probes()
    logits[20:, 0] += 50
    adequacy = fidelity.assess_adequacy(logits, targets, kinds, CLASSES)
    assert adequacy.classes_seen == CLASSES
    assert adequacy.reasons == ("the teacher gives one and the same answer to 98.2 % of them",)


def test_unsure_probes_are_inadequate() -> None:
    adequacy = fidelity.assess_adequacy(*probes(margin=2.5), CLASSES)
    assert len(adequacy.reasons) == 1
    assert adequacy.reasons[0].startswith("the teacher's median confidence on those made for a class is ")
    assert adequacy.reasons[0].endswith("below 55.0 %")  # (1 + 1/10) / 2


def test_probes_none_of_which_was_made_for_a_class_are_inadequate() -> None:
    logits, targets, kinds = probes()
    adequacy = fidelity.assess_adequacy(logits, targets, np.full_like(kinds, "mixed"), CLASSES)
    assert adequacy.median_confidence == 0
    assert not adequacy.adequate


def test_copies_of_few_images_are_inadequate() -> None:
    logits, targets, kinds = probes()
    copies = logits[np.arange(PROBES) % CLASSES]
    adequacy = fidelity.assess_adequacy(copies, targets, kinds, CLASSES)
    assert adequacy.reasons == ("only 1.0 % of them differ from each other",)


def test_a_teacher_that_answers_with_nan_makes_the_probes_inadequate() -> None:
    logits, targets, kinds = probes()
    logits[0, 0] = np.nan
    adequacy = fidelity.assess_adequacy(logits, targets, kinds, CLASSES)
    assert adequacy.reasons == ("the teacher itself answers 1 of them with NaN or infinity",)


def test_no_probes_are_inadequate() -> None:
    logits, targets, kinds = probes()
    assert not fidelity.assess_adequacy(logits[:0], targets[:0], kinds[:0], CLASSES).adequate


# The gate of each class


def of_classes(**shares: tuple[int, int]) -> dict[str, Proportion]:
    return {name: fidelity.proportion(*counts) for name, counts in shares.items()}


@pytest.mark.parametrize(
    ("classes", "verdict", "words"),
    [
        # Wilson intervals of 95 of 100, 5 of 100 and 4 of 5: 88.8 to 97.8 %, 2.2 to 11.2 %, 37.6 to 96.4 %.
        (of_classes(cat=(95, 100), dog=(95, 100)), "PASS", "of every class reaches the required 80 %"),
        (of_classes(cat=(95, 100), dog=(5, 100)), "FAIL", "of dog (2.1 % to 11.1 %) stays below the required 80 %"),
        (of_classes(cat=(95, 100), dog=(4, 5)), "INCONCLUSIVE", "of dog (37.5 % to 96.3 %) includes the required 80 %"),
        (of_classes(cat=(95, 100), never=(0, 0)), "PASS", "of every class"),
    ],
)
def test_every_class_that_the_teacher_names_is_judged(
    classes: dict[str, Proportion], verdict: Verdict, words: str
) -> None:
    gates = Gates(min_agreement=None, min_class_agreement=0.8)
    agreement = fidelity.proportion(95, 100)
    judged = fidelity.judge(gates, agreement=agreement, by_class=classes, mean_kl=0.0, size_bytes=1, broken=0)
    (gate,) = [gate for gate in judged if gate.name == "class agreement"]
    assert (gate.verdict, gate.limit) == (verdict, 0.8)
    assert words in gate.explanation


def test_of_many_classes_that_fail_the_worst_are_named() -> None:
    classes = {f"c{number}": fidelity.proportion(number, 100) for number in range(5)}
    gates = Gates(min_agreement=None, min_class_agreement=0.8)
    agreement = fidelity.proportion(10, 500)
    *_, gate = fidelity.judge(gates, agreement=agreement, by_class=classes, mean_kl=0.0, size_bytes=1, broken=0)
    assert (
        gate.explanation.startswith("the whole 95 % interval of c0 (")
        and " and 2 more classes stays" in gate.explanation
    )
    assert gate.measured == "0.0 %"


def test_a_student_that_takes_one_class_for_another_fails_and_the_class_is_named() -> None:
    teacher, _, kinds = probes()
    swapped = teacher.copy()
    swapped[teacher.argmax(1) == 3] = np.roll(swapped[teacher.argmax(1) == 3], 1, axis=1)
    labels = [f"label {number}" for number in range(CLASSES)]
    row = fidelity.measure_artifact(
        *("student.onnx", "fp32"),
        size_bytes=1,
        latency_ms=None,
        teacher_logits=teacher,
        student_logits=swapped,
        kinds=kinds,
        gates=Gates(min_agreement=None, min_class_agreement=0.5),
        labels=labels,
    )
    assert row.verdict == "FAIL"
    assert "label 3 (0.0 %" in next(gate.explanation for gate in row.gates if gate.name == "class agreement")


def test_probes_that_the_student_learned_from_carry_no_verdict() -> None:
    # A hundredth of 1,000 may be like images of the pool.
    assert fidelity.assess_adequacy(*probes(), CLASSES, copied=10).adequate
    copies = fidelity.assess_adequacy(*probes(), CLASSES, copied=11)
    assert (copies.adequate, copies.reasons) == (False, ("the student learned from 1.1 % of them",))
    assert fidelity.overall_verdict(measured(wrong_on(0), Gates(min_agreement=0.9)), copies) == "INCONCLUSIVE"


# The verdict

ADEQUATE = fidelity.assess_adequacy(*probes(), CLASSES)
INADEQUATE = ADEQUATE.model_copy(update={"adequate": False, "reasons": ("the teacher names only 2 of 10 classes",)})


def test_of_the_artifacts_that_a_device_may_run_the_weakest_decides() -> None:
    right, nearly = measured(wrong_on(0)), measured(wrong_on(900)).model_copy(update={"artifact": "student.onnx"})
    assert fidelity.weakest([right, nearly], ADEQUATE) is nearly
    assert fidelity.overall_verdict(nearly, ADEQUATE) == "FAIL"


def test_on_inadequate_probes_a_failure_that_needs_none_decides_whatever_the_agreement() -> None:
    too_large = measured(wrong_on(0), size_bytes=2_000_000)
    less_agreed = measured(wrong_on(900)).model_copy(update={"artifact": "student.int8.typed.onnx"})
    assert fidelity.weakest([too_large, less_agreed], INADEQUATE) is too_large


def test_an_artifact_that_was_not_measured_cannot_be_told_of() -> None:
    with pytest.raises(ValueError, match=r"student\.fp16\.onnx is not in the ledger"):
        fidelity.find_artifact([measured(wrong_on(0))], "student.fp16.onnx")


@pytest.mark.parametrize("wrong", [0, 90, 900])
def test_inadequate_probes_are_inconclusive_whatever_the_agreement(wrong: int) -> None:
    row = measured(wrong_on(wrong), Gates(min_agreement=0.9))
    assert fidelity.overall_verdict(row, INADEQUATE) == "INCONCLUSIVE"


def test_a_broken_output_and_excess_of_size_or_latency_fail_even_on_inadequate_probes() -> None:
    slow = measured(wrong_on(0), Gates(max_latency_ms=1))
    for row in (measured(with_value(np.nan)(probes()[0])), measured(wrong_on(0), size_bytes=2_000_000), slow):
        assert fidelity.overall_verdict(row, INADEQUATE) == "FAIL"


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
    assert fidelity.advice(told).count(words) == 1 if words else fidelity.advice(told) == ""


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
    remark = fidelity.speed_remark(
        validated(rounded, ADEQUATE).model_copy(update={"ledger": (plain, rounded)}), load_target(target)
    )
    assert bool(remark) is told
    if told:
        assert f"is no faster than student.onnx: {in_int8} ms against 0.3 ms for one image" in remark


def test_an_agreement_above_its_limit_that_is_not_settled_asks_for_more_probes() -> None:
    # z² limit (1 - limit) / (value - limit)² = 3.8415 · 0.09 / 0.01² = 3,457.3, rounded up: 3,458
    told = fidelity.advice(validated(measured(wrong_on(90), Gates(min_agreement=0.9)), ADEQUATE))
    assert told.startswith("More probes may settle it: the command of the run with --probes 3458 makes them")


def test_a_time_that_only_the_device_can_tell_is_no_matter_of_probes() -> None:
    row = measured(wrong_on(90), Gates(min_agreement=0.9, max_latency_ms=1), timed_on_device=False)
    assert "--probes 3458" in fidelity.advice(validated(row, ADEQUATE))


@pytest.mark.parametrize(
    ("wrong", "gates"),
    [(101, Gates(min_agreement=0.9)), (99, Gates(min_agreement=0.9)), (90, Gates(min_agreement=0.9, max_size_mb=0.1))],
)
def test_more_probes_are_not_asked_for_where_they_would_not_help(wrong: int, gates: Gates) -> None:
    """Below the limit; so near it that 20,000 would not do; or where another gate failed as well."""
    told = fidelity.advice(validated(measured(wrong_on(wrong), gates), ADEQUATE))
    assert "--probes" not in told


def test_no_advice_is_given_on_what_is_too_large_or_was_not_judged() -> None:
    assert fidelity.advice(validated(measured(wrong_on(0), size_bytes=2_000_000), ADEQUATE)) == ""
    assert fidelity.advice(validated(measured(wrong_on(500)), INADEQUATE)) == ""


def test_the_sentence_of_a_pass_says_what_it_rests_on() -> None:
    assert fidelity.verdict_sentence(validated(measured(wrong_on(30), Gates(min_agreement=0.9)), ADEQUATE)) == (
        "PASS: student.int8.onnx gives the teacher's answer on 97.0 % of 1,000 held-out synthetic probes, and the "
        "whole 95 % interval, 95.7 % to 97.8 %, reaches the required 90 %."
    )


def test_the_sentence_of_a_failure_names_only_the_gates_that_did_not_pass() -> None:
    assert fidelity.verdict_sentence(validated(measured(wrong_on(0), size_bytes=2_000_000), ADEQUATE)) == (
        "FAIL: student.int8.onnx gives the teacher's answer on 100.0 % of 1,000 held-out synthetic probes, but a "
        "size of 2 MB is over the allowed 1 MB."
    )


def test_the_sentence_about_inadequate_probes_says_why_they_are() -> None:
    assert fidelity.verdict_sentence(validated(measured(wrong_on(0)), INADEQUATE)) == (
        "INCONCLUSIVE: student.int8.onnx gives the teacher's answer on 100.0 % of 1,000 held-out synthetic probes, but "
        "the probes cannot carry a verdict, because the teacher names only 2 of 10 classes."
    )


def test_the_records_survive_a_trip_through_json() -> None:
    record = validated(measured(with_value(np.nan)(probes()[0])), INADEQUATE)
    assert record.ledger[0].mean_kl == np.inf
    assert ValidateRecord.model_validate_json(record.model_dump_json()) == record


def test_a_proportion_carries_its_wilson_interval() -> None:
    low, high = metrics.wilson_interval(9, 10)
    assert fidelity.proportion(9, 10) == Proportion(value=0.9, low=low, high=high, total=10)
