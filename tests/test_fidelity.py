from collections.abc import Callable

import numpy as np
import pytest

from compress.exporters.targets import Gates
from compress.pipeline import fidelity, metrics
from compress.pipeline.gates import AGREEMENT
from compress.pipeline.proportions import proportion, proportion_of
from compress.pipeline.records import Proportion, ValidateRecord
from tests.verdicts import (
    ADEQUATE,
    CLASSES,
    INADEQUATE,
    LIMITS,
    PROBES,
    Logits,
    gate,
    measured,
    probes,
    validated,
    wrong_on,
)

# Artifacts


def test_a_student_equal_to_its_teacher_agrees_everywhere() -> None:
    row = measured(wrong_on(0))
    assert row.verdict == "PASS"
    assert row.agreement == proportion(PROBES, PROBES)
    assert row.top5_agreement == row.agreement
    assert (row.mean_kl, row.kl_p99, row.sqnr_db) == (0, 0, np.inf)


def test_agreement_is_told_by_kind_and_by_the_class_that_the_teacher_names() -> None:
    row = measured(wrong_on(500))
    assert {kind: (part.agreement.value, part.agreement.total) for kind, part in row.by_kind.items()} == {
        "mixed": (1.0, 500),
        "synthesised": (0.0, 500),
    }
    assert row.by_kind["mixed"].sqnr_db == np.inf
    assert row.by_kind["synthesised"].mean_kl == pytest.approx(2 * row.mean_kl)
    assert [part.total for part in row.agreement_by_class] == [100] * CLASSES
    assert [part.value for part in row.agreement_by_class] == [0.5] * CLASSES


def test_agreement_is_told_by_the_generator_that_made_the_probes() -> None:
    row = measured(wrong_on(300), generators=np.arange(PROBES) // 250)
    assert [part.value for part in row.agreement_by_generator] == [0, 0.8, 1, 1]
    assert [part.total for part in measured(wrong_on(300)).agreement_by_generator] == [PROBES]


def test_the_most_frequent_confusions_are_listed_and_single_ones_are_not() -> None:
    teacher, *_ = probes()
    student = teacher.copy()
    named = teacher.argmax(axis=1)
    for source, taken, count in ((3, 5, 7), (1, 2, 4), (8, 9, 1)):
        student[np.flatnonzero(named == source)[:count], taken] = 1000
    row = measured(student)
    told = [(pair.teacher, pair.artifact, pair.count, pair.total) for pair in row.confusions]
    assert told == [(3, 5, 7, 100), (1, 2, 4, 100)]
    assert row.confusion is not None
    assert (row.confusion[3][5], row.confusion[1][2], row.confusion[8][9], row.confusion[3][3]) == (7, 4, 1, 93)
    assert sum(map(sum, row.confusion)) == PROBES
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


# The verdict


def test_of_the_artifacts_that_a_device_may_run_the_weakest_decides() -> None:
    right, nearly = measured(wrong_on(0)), measured(wrong_on(900)).model_copy(update={"artifact": "student.onnx"})
    assert fidelity.weakest([right, nearly]) is nearly
    assert nearly.verdict == "FAIL"


def test_on_inadequate_probes_a_failure_that_needs_none_decides_whatever_the_agreement() -> None:
    too_large = measured(wrong_on(0), size_bytes=2_000_000, adequate=False)
    less_agreed = measured(wrong_on(900), adequate=False)
    assert fidelity.weakest([too_large, less_agreed]) is too_large


def test_an_artifact_that_was_not_measured_cannot_be_told_of() -> None:
    with pytest.raises(ValueError, match=r"student\.fp16\.onnx is not in the ledger"):
        fidelity.find_artifact([measured(wrong_on(0))], "student.fp16.onnx")


@pytest.mark.parametrize("wrong", [0, 90, 900])
def test_inadequate_probes_are_inconclusive_whatever_the_agreement(wrong: int) -> None:
    row = measured(wrong_on(wrong), Gates(min_agreement=0.9), adequate=False)
    assert row.verdict == gate(row, AGREEMENT).verdict == "INCONCLUSIVE"
    assert gate(row, AGREEMENT).explanation.startswith("the probes cannot carry a verdict; on them the ")


def test_inadequate_probes_are_inconclusive_where_no_gate_asks_for_agreement() -> None:
    assert measured(wrong_on(0), Gates(min_agreement=None), adequate=False).verdict == "INCONCLUSIVE"


def test_a_broken_output_and_excess_of_size_or_latency_fail_even_on_inadequate_probes() -> None:
    slow = measured(wrong_on(0), Gates(max_latency_ms=1), adequate=False)
    broken = measured(with_value(np.nan)(probes()[0]), adequate=False)
    for row in (broken, measured(wrong_on(0), size_bytes=2_000_000, adequate=False), slow):
        assert row.verdict == "FAIL"


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
    assert fidelity.verdict_sentence(validated(measured(wrong_on(0), adequate=False), INADEQUATE)) == (
        "INCONCLUSIVE: student.int8.onnx gives the teacher's answer on 100.0 % of 1,000 held-out synthetic probes, but "
        "the probes cannot carry a verdict, because the teacher names only 2 of 10 classes."
    )


def test_the_records_survive_a_trip_through_json() -> None:
    record = validated(measured(with_value(np.nan)(probes()[0]), adequate=False), INADEQUATE)
    assert record.ledger[0].mean_kl == np.inf
    assert ValidateRecord.model_validate_json(record.model_dump_json()) == record


def test_a_proportion_carries_its_wilson_interval() -> None:
    low, high = metrics.wilson_interval(9, 10)
    assert proportion(9, 10) == Proportion(value=0.9, low=low, high=high, total=10)


# Images that are alike


def test_views_of_one_image_tell_less_than_as_many_images() -> None:
    agree = np.arange(PROBES) >= 50
    alike = proportion_of(agree, np.arange(PROBES) // 5)  # five views each, which agree together
    alone = proportion_of(agree, np.arange(PROBES))
    assert (alone.value, alone.design_effect) == (alike.value, 1) == (0.95, 1)
    assert alike.design_effect == pytest.approx(5)
    low, high = metrics.wilson_interval(190, 200)
    assert (alike.low, alike.high) == pytest.approx((low, high))
    assert alone.low > alike.low


def test_an_artifact_is_judged_by_what_its_probes_tell() -> None:
    """92 % of 1,000: enough for 90 % if all are images of their own, and not if five views are one."""
    rows = [measured(wrong_on(80), Gates(min_agreement=0.9), groups=np.arange(PROBES) // views) for views in (1, 5)]
    assert [row.verdict for row in rows] == ["PASS", "INCONCLUSIVE"]
    assert rows[0].agreement.value == rows[1].agreement.value == 0.92
    # z² · 0.9 · 0.1 / 0.02² = 864.3 images of their own, rounded up; as many views more as an image has that tell the same
    effect = rows[1].agreement.design_effect
    assert gate(rows[1], AGREEMENT).settled_by == int(np.ceil(865 * effect))
    assert 4.5 < effect < 5.5
