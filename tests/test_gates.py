import numpy as np
import pytest

from compress.exporters.targets import Gates
from compress.pipeline.fidelity import measure_artifact
from compress.pipeline.gates import AGREEMENT, FINITE, LATENCY, PROBE_FREE, SIZE, judge, worst
from compress.pipeline.gates import CLASSES as CLASS_AGREEMENT
from compress.pipeline.proportions import percent, proportion
from compress.pipeline.records import Proportion, Verdict
from tests.verdicts import CLASSES, gate, measured, probes, wrong_on

# Words


@pytest.mark.parametrize(
    ("share", "words"),
    [(0.96449, "96.4 %"), (0.89999, "89.9 %"), (0.57, "57.0 %"), (1, "100.0 %"), (0.99999, "99.9 %")],
)
def test_a_percentage_is_rounded_down_so_that_it_never_clears_a_limit_by_rounding(share: float, words: str) -> None:
    assert percent(share) == words


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
    assert worst(verdicts) == expected


# Gates


@pytest.mark.parametrize(("wrong", "verdict"), [(0, "PASS"), (81, "PASS"), (83, "INCONCLUSIVE"), (200, "FAIL")])
def test_the_interval_decides_about_agreement_and_not_the_value(wrong: int, verdict: Verdict) -> None:
    # Wilson, n = 1000: 919 agree -> low 0.9004; 917 agree -> low 0.8983; 800 agree -> high 0.8236
    row = measured(wrong_on(wrong), Gates(min_agreement=0.9))
    assert gate(row, AGREEMENT).verdict == row.verdict == verdict


def test_an_inconclusive_agreement_says_how_many_probes_would_settle_it() -> None:
    row = measured(wrong_on(90), Gates(min_agreement=0.9))
    # z² · 0.9 · 0.1 / 0.01² = 3457.3
    assert gate(row, AGREEMENT).explanation == (
        "the 95 % interval, 89.0 % to 92.6 %, includes the required 90 %; "
        "some 3,458 probes would settle it if the agreement stays the same"
    )


def test_an_agreement_that_equals_its_limit_says_that_no_number_of_probes_settles_it() -> None:
    row = measured(wrong_on(100), Gates(min_agreement=0.9))
    assert row.verdict == "INCONCLUSIVE"
    assert "exactly the limit, which no number of probes settles" in gate(row, AGREEMENT).explanation


def test_even_a_perfect_student_cannot_prove_an_agreement_of_one() -> None:
    assert measured(wrong_on(0), Gates(min_agreement=1)).verdict == "INCONCLUSIVE"


@pytest.mark.parametrize(("limit", "verdict"), [(0.5, "PASS"), (0.499, "FAIL")])
def test_the_size_is_judged_in_millions_of_bytes_and_may_equal_its_limit(limit: float, verdict: Verdict) -> None:
    row = measured(wrong_on(0), Gates(max_size_mb=limit), size_bytes=500_000)
    assert gate(row, SIZE).verdict == verdict
    assert gate(row, SIZE).measured == "0.5 MB"


@pytest.mark.parametrize(("limit", "verdict", "words"), [(1.5, "PASS", "within"), (1.499, "FAIL", "over")])
def test_the_latency_may_equal_its_limit(limit: float, verdict: Verdict, words: str) -> None:
    judged = gate(measured(wrong_on(0), Gates(max_latency_ms=limit), latency_ms=1.5), LATENCY)
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
    judged = gate(row, LATENCY)
    assert (judged.verdict, judged.measured, row.verdict) == ("INCONCLUSIVE", "not measured", "INCONCLUSIVE")
    assert judged.explanation.startswith(words)
    assert row.latency_ms == latency_ms


def test_a_limit_that_is_not_set_is_not_judged() -> None:
    assert [gate.name for gate in measured(wrong_on(500), Gates(min_agreement=None)).gates] == [FINITE]


# The gate of each class


def of_classes(**shares: tuple[int, int]) -> dict[str, Proportion]:
    return {name: proportion(*counts) for name, counts in shares.items()}


@pytest.mark.parametrize(
    ("classes", "verdict", "words"),
    [
        # Wilson intervals of 95 of 100, 5 of 100 and 4 of 5: 88.8 to 97.8 %, 2.2 to 11.2 %, 37.6 to 96.4 %.
        (of_classes(cat=(95, 100), dog=(95, 100)), "PASS", "of every class reaches the required 80 %"),
        (of_classes(cat=(95, 100), dog=(5, 100)), "FAIL", "of dog (2.1 % to 11.1 %) stays below the required 80 %"),
        (
            of_classes(cat=(95, 100), dog=(4, 5)),
            "INCONCLUSIVE",
            "of dog (37.5 % to 96.3 %) includes the required 80 %; one of them is exactly there",
        ),
        (of_classes(cat=(95, 100), never=(0, 0)), "PASS", "of every class"),
    ],
)
def test_every_class_that_the_teacher_names_is_judged(
    classes: dict[str, Proportion], verdict: Verdict, words: str
) -> None:
    gates = Gates(min_agreement=None, min_class_agreement=0.8)
    agreement = proportion(95, 100)
    judged = judge(gates, agreement=agreement, by_class=classes, mean_kl=0.0, size_bytes=1, broken=0)
    (gate,) = [gate for gate in judged if gate.name == CLASS_AGREEMENT]
    assert (gate.verdict, gate.limit) == (verdict, 0.8)
    assert words in gate.explanation


def test_of_many_classes_that_fail_the_worst_are_named() -> None:
    classes = {f"c{number}": proportion(number, 100) for number in range(5)}
    gates = Gates(min_agreement=None, min_class_agreement=0.8)
    agreement = proportion(10, 500)
    *_, gate = judge(gates, agreement=agreement, by_class=classes, mean_kl=0.0, size_bytes=1, broken=0)
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
    row = measure_artifact(
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


def test_undecided_classes_say_how_many_probes_in_all_would_decide_them() -> None:
    # z² · 0.8 · 0.2 / 0.05² = 245.9 images of dog, which 100 of 1,000 probes show: 2,460 probes. Of cat, 0.1² and 200: 310.
    classes = of_classes(cat=(180, 200), dog=(85, 100), bird=(699, 700))
    limits = Gates(min_agreement=None, min_class_agreement=0.8)
    agreement = proportion(964, 1000)
    *_, judged = judge(limits, agreement=agreement, by_class=classes, mean_kl=0.0, size_bytes=1, broken=0)
    assert (judged.verdict, judged.settled_by) == ("INCONCLUSIVE", 2460)
    assert judged.explanation.endswith("of dog (76.7 % to 90.6 %) includes the required 80 %; "
                                       "some 2,460 probes would settle it if the agreement stays the same")  # fmt: skip


def test_a_class_below_the_limit_settles_it_alone() -> None:
    # dog: z² · 0.8 · 0.2 / 0.05² = 245.9, 246 images, of which 100 are among 200 probes; cat and bird need not be waited for.
    classes = of_classes(cat=(81, 100), bird=(80, 100), dog=(75, 100))
    gates = Gates(min_agreement=None, min_class_agreement=0.8)
    agreement = proportion(156, 200)
    *_, judged = judge(gates, agreement=agreement, by_class=classes, mean_kl=0.0, size_bytes=1, broken=0)
    assert (judged.verdict, judged.settled_by) == ("INCONCLUSIVE", 492)


def test_on_inadequate_probes_only_what_needs_none_is_decided() -> None:
    row = measured(
        wrong_on(0), Gates(min_agreement=0.5, max_mean_kl=9, max_size_mb=9, max_latency_ms=9), adequate=False
    )
    decided = {gate.name: gate.verdict for gate in row.gates}
    assert decided == dict.fromkeys(PROBE_FREE, "PASS") | {AGREEMENT: "INCONCLUSIVE", "mean KL": "INCONCLUSIVE"}
    assert gate(row, AGREEMENT).settled_by is None
