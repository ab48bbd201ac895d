"""How faithfully an artifact imitates the teacher, and the verdict: PASS, FAIL or INCONCLUSIVE.

Agreement is judged on its 95 % interval, not on its value: PASS when the whole interval clears the limit, FAIL when the
whole interval misses it, otherwise INCONCLUSIVE, which is not PASS. Probes that could not tell a faithful student from
a useless one carry no verdict at all, whatever the agreement on them.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from compress.exporters.targets import Gates, Target
from compress.pipeline import metrics
from compress.pipeline.metrics import Logits
from compress.pipeline.records import (
    ArtifactFidelity,
    Confusion,
    Gate,
    ProbeAdequacy,
    Proportion,
    Step,
    ValidateRecord,
    Verdict,
)

CLASS_CONDITIONAL = "synthesised"
"""The kind of probes that were made to show one class each."""

MIN_COVERAGE = 0.95
"""Share of the classes that the teacher must name on the probes; up to 19 classes this means every one of them."""

MIN_DISTINCT = 0.5
"""Share of the probes that must differ from each other; copies narrow the interval without telling anything."""

MAX_REPEATED = 0.5
"""The same of those made for a class, by their pixels."""

MAX_COPIED = 0.01
"""Share of the probes that may be like images of the pool; two generators may draw the same once in a while."""

MAX_SHIFT = 0.35
"""Standard deviations, beyond which nothing can be said for images. Synthesised and real ones of two teachers lie 0.05 to 0.11
from the training, those of a generator that has hardly begun to learn about 0.25; uniform noise lies 0.6 from that of a
ResNet-56, but 0.28 from that of a small network on digits, so that this alone does not tell noise."""

MOST_PROBES = 20_000
"""That are asked for; a limit that needs more is met by chance."""

UNDECIDED: Verdict = "INCONCLUSIVE"

MOST_CONFUSIONS = 12
"""Pairs of classes that are listed."""

FINITE, AGREEMENT, CLASSES, KL = "finite outputs", "agreement", "class agreement", "mean KL"
SIZE, LATENCY = "size", "latency"
PROBE_FREE = (FINITE, SIZE, LATENCY)
"""Gates that hold or fail for any images: these failures stand even where the probes are inadequate."""


def percent(share: float) -> str:
    """`0.96449` as `96.4 %`: rounded down, so that no number shown clears a limit that the exact one misses."""
    return f"{math.floor(share * 1000 + 1e-9) / 10:.1f} %"


def proportion(successes: int, total: int) -> Proportion:
    """A share with its 95 % Wilson interval; of nothing, 0 with the interval [0, 1]."""
    low, high = metrics.wilson_interval(successes, total)
    return Proportion(value=successes / total if total else 0.0, low=low, high=high, total=total)


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """FAIL if any failed, else INCONCLUSIVE if any is, else PASS."""
    if "FAIL" in verdicts:
        return "FAIL"
    return "INCONCLUSIVE" if "INCONCLUSIVE" in verdicts else "PASS"


# Gates


def judge(
    gates: Gates,
    *,
    agreement: Proportion,
    by_class: Mapping[str, Proportion],
    mean_kl: float,
    size_bytes: int,
    broken: int,
    latency_ms: float | None = None,
    timed_on_device: bool = True,
) -> tuple[Gate, ...]:
    """Every limit that is set, judged; `mean_kl` in nats, `broken` images with NaN or infinity among the logits.

    `timed_on_device` says whether `latency_ms` stands for the device that the limit is about.
    """
    judged = [_judge_finite(broken, agreement.total)]
    if gates.min_agreement is not None:
        judged.append(_judge_agreement(agreement, gates.min_agreement))
    if gates.min_class_agreement is not None:
        judged.append(_judge_classes(by_class, gates.min_class_agreement))
    if gates.max_mean_kl is not None:
        judged.append(_judge_point(KL, mean_kl, gates.max_mean_kl, "nats"))
    if gates.max_size_mb is not None:
        judged.append(_judge_point(SIZE, size_bytes / 1e6, gates.max_size_mb, "MB"))
    if gates.max_latency_ms is not None:
        judged.append(_judge_latency(latency_ms, gates.max_latency_ms, timed_on_device))
    return tuple(judged)


def _judge_finite(broken: int, total: int) -> Gate:
    explanation = (
        f"NaN or infinity in the output for {broken} of {total} probes" if broken else "every output is finite"
    )
    return Gate(
        name=FINITE, limit=0, measured=f"{broken} broken", verdict="FAIL" if broken else "PASS", explanation=explanation
    )


def _judge_agreement(agreement: Proportion, limit: float) -> Gate:
    interval = f"{percent(agreement.low)} to {percent(agreement.high)}"
    required = f"{limit * 100:.6g} %"
    verdict: Verdict
    if agreement.low >= limit:
        verdict, explanation = "PASS", f"the whole 95 % interval, {interval}, reaches the required {required}"
    elif agreement.high < limit:
        verdict, explanation = "FAIL", f"the whole 95 % interval, {interval}, stays below the required {required}"
    else:
        verdict = "INCONCLUSIVE"
        explanation = (
            f"the 95 % interval, {interval}, includes the required {required}; {_settle(agreement.value, limit)}"
        )
    return Gate(
        name=AGREEMENT, limit=limit, measured=percent(agreement.value), verdict=verdict, explanation=explanation
    )


def _judge_classes(by_class: Mapping[str, Proportion], limit: float) -> Gate:
    """The classes of lowest agreement decide; those that the teacher never names cannot be judged."""
    seen = sorted(((part, name) for name, part in by_class.items() if part.total), key=lambda item: item[0].value)
    missing = [item for item in seen if item[0].high < limit]
    open_still = [item for item in seen if item[0].low < limit]
    required = f"{limit * 100:.6g} %"
    verdict: Verdict = "FAIL" if missing else "INCONCLUSIVE" if open_still else "PASS"
    explanation = {
        "FAIL": f"the whole 95 % interval of {_told(missing)} stays below the required {required}",
        "INCONCLUSIVE": f"the 95 % interval of {_told(open_still)} includes the required {required}; more probes would tell",
        "PASS": f"the whole 95 % interval of every class reaches the required {required}",
    }[verdict]
    measured = percent(seen[0][0].value) if seen else "no class"
    return Gate(name=CLASSES, limit=limit, measured=measured, verdict=verdict, explanation=explanation)


def _told(classes: Sequence[tuple[Proportion, str]], most: int = 3) -> str:
    named = [f"{name} ({percent(part.low)} to {percent(part.high)})" for part, name in classes[:most]]
    rest = len(classes) - len(named)
    return ", ".join(named) + (f" and {rest:,} more classes" if rest > 0 else "")


def _settle(value: float, limit: float) -> str:
    needed = metrics.probes_to_settle(value, limit)
    if needed is None:
        return "the agreement is exactly the limit, which no number of probes settles"
    return f"{needed:,} probes would settle it if the agreement stays the same"


def _judge_latency(latency_ms: float | None, limit: float, timed_on_device: bool) -> Gate:
    """The time on one processor tells nothing about another, so where the device's is not known nothing is decided."""
    if timed_on_device and latency_ms is not None:
        return _judge_point(LATENCY, latency_ms, limit, "ms")
    explanation = (
        "the latency was not measured"
        if timed_on_device
        else "the latency is known only on the device: build and replay the engine there, and validate with its receipt"
    )
    return Gate(name=LATENCY, limit=limit, measured="not measured", verdict="INCONCLUSIVE", explanation=explanation)


def _judge_point(name: str, value: float, limit: float, unit: str) -> Gate:
    passed = value <= limit
    return Gate(
        name=name,
        limit=limit,
        measured=f"{value:.3g} {unit}",
        verdict="PASS" if passed else "FAIL",
        explanation=f"a {name} of {value:.4g} {unit} is {'within' if passed else 'over'} the allowed {limit:.6g} {unit}",
    )


# Artifacts


def measure_artifact(
    artifact: str,
    precision: str,
    *,
    size_bytes: int,
    latency_ms: float | None,
    teacher_logits: Logits,
    student_logits: Logits,
    kinds: NDArray[np.str_],
    gates: Gates,
    labels: Sequence[str] = (),
    timed_on_device: bool = True,
) -> ArtifactFidelity:
    """One artifact against the teacher on the same N probes: logits `[N, K]`, the `kinds` of the probes `[N]`.

    Agreement is counted over all probes, and beside it for each kind and for each class that the teacher names. Without
    `labels`, classes go by their numbers. `latency_ms` is judged only if it was `timed_on_device`, where the model is to run.

    Raises:
        ValueError: there are no probes, or the arrays do not belong together.
    """
    if not len(kinds) or teacher_logits.shape != student_logits.shape or len(kinds) != len(teacher_logits):
        raise ValueError(f"teacher {teacher_logits.shape}, student {student_logits.shape}, kinds {kinds.shape}")
    num_classes = teacher_logits.shape[1]
    agree = metrics.top_k_agreement(teacher_logits, student_logits)
    agreement = proportion(int(agree.sum()), len(agree))
    counts = metrics.counts_by_class(agree, teacher_logits.argmax(axis=1), num_classes)
    by_class = tuple(proportion(*of_class) for of_class in counts)
    names = labels or [f"class {number}" for number in range(num_classes)]
    kl = metrics.kl_divergence(teacher_logits, student_logits)
    judged = judge(
        gates,
        agreement=agreement,
        by_class=dict(zip(names, by_class, strict=True)),
        mean_kl=float(kl.mean()),
        size_bytes=size_bytes,
        broken=int((~metrics.finite_rows(student_logits)).sum()),
        latency_ms=latency_ms,
        timed_on_device=timed_on_device,
    )
    return ArtifactFidelity(
        artifact=artifact,
        precision=precision,
        size_bytes=size_bytes,
        latency_ms=latency_ms,
        agreement=agreement,
        agreement_by_kind={kind: proportion(*n) for kind, n in metrics.counts_by_kind(agree, kinds).items()},
        agreement_by_class=by_class,
        top5_agreement=_top5(teacher_logits, student_logits) if num_classes > 5 else None,
        mean_kl=float(kl.mean()),
        kl_p99=metrics.percentile(kl, 99),
        sqnr_db=metrics.sqnr_db(teacher_logits, student_logits),
        margin_weighted_agreement=metrics.margin_weighted_agreement(teacher_logits, student_logits),
        confidence_shift=metrics.confidence_shift(teacher_logits, student_logits),
        confusions=_confusions(metrics.confusion(teacher_logits, student_logits)),
        gates=judged,
        verdict=worst([gate.verdict for gate in judged]),
    )


def _confusions(counts: NDArray[np.int64]) -> tuple[Confusion, ...]:
    """The most frequent of the classes `[K, K]` that were taken for others; one by one they are chance."""
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_CONFUSIONS]
    pairs = [(int(row), int(column)) for row, column in zip(*np.unravel_index(order, wrong.shape), strict=True)]
    totals = counts.sum(axis=1)
    return tuple(
        Confusion(teacher=named, artifact=taken, count=int(wrong[named, taken]), total=int(totals[named]))
        for named, taken in pairs
        if wrong[named, taken] > 1
    )


def measure_step(
    before: ArtifactFidelity, after: ArtifactFidelity, logits_before: Logits, logits_after: Logits
) -> Step:
    """One artifact against the one that it was made from, on the same N probes: logits `[N, K]` of both."""
    agree = metrics.top_k_agreement(logits_before, logits_after)
    return Step(
        origin=before.artifact,
        agreement=proportion(int(agree.sum()), len(agree)),
        mean_kl=float(metrics.kl_divergence(logits_before, logits_after).mean()),
        sqnr_db=metrics.sqnr_db(logits_before, logits_after),
        lost=before.agreement.value - after.agreement.value,
    )


def _top5(teacher_logits: Logits, student_logits: Logits) -> Proportion:
    agree = metrics.top_k_agreement(teacher_logits, student_logits, k=5)
    return proportion(int(agree.sum()), len(agree))


# Probes


def assess_adequacy(
    teacher_logits: Logits,
    targets: NDArray[np.integer],
    kinds: NDArray[np.str_],
    num_classes: int,
    copied: int = 0,
    repeated: int = 0,
    batch_norm_shift: float | None = None,
) -> ProbeAdequacy:
    """Whether the probes could tell a faithful student from a useless one, judged by the teacher's logits `[N, K]`.

    A set is adequate when the teacher answers finitely, names the classes, names none of them so often that a constant answer
    would look faithful, is confident on the probes made for a class, and sees different images, which were held back and are
    not far from its training.

    Args:
        targets: the classes `[N]` that the images were made for.
        kinds: how they were made `[N]`.
        copied: how many of them the student learned from.
        repeated: how many of those made for a class are like another of them.
        batch_norm_shift: how far these are from the teacher's training, see `likeness`.
    """
    finite = metrics.finite_rows(teacher_logits)
    logits = teacher_logits[finite]
    made_for_class = kinds[finite] == CLASS_CONDITIONAL
    named = np.bincount(logits.argmax(axis=1), minlength=num_classes)
    shares = named / max(1, named.sum())
    certainty = metrics.confidence(logits[made_for_class])
    seen = int((named > 0).sum())
    median_confidence = float(np.median(certainty)) if len(certainty) else 0.0
    reasons = _inadequacies(
        broken=int((~finite).sum()),
        seen=seen,
        largest_share=float(shares.max()),
        median_confidence=median_confidence,
        distinct=len(np.unique(logits, axis=0)) / max(1, len(logits)),
        repeated=repeated / max(1, int((kinds == CLASS_CONDITIONAL).sum())),
        num_classes=num_classes,
        copied=copied / max(1, len(kinds)),
        batch_norm_shift=batch_norm_shift,
    )
    on_target = logits[made_for_class].argmax(axis=1) == targets[finite][made_for_class]
    return ProbeAdequacy(
        adequate=not reasons,
        classes_seen=seen,
        num_classes=num_classes,
        largest_class_share=float(shares.max()),
        median_confidence=median_confidence,
        on_target=proportion(int(on_target.sum()), len(on_target)),
        batch_norm_shift=batch_norm_shift,
        repeated=repeated,
        copied=copied,
        reasons=tuple(reasons),
    )


def _inadequacies(
    *,
    broken: int,
    seen: int,
    largest_share: float,
    median_confidence: float,
    distinct: float,
    num_classes: int,
    repeated: float,
    copied: float,
    batch_norm_shift: float | None,
) -> list[str]:
    # A guess is right once in num_classes times; half way between that and certainty separates the two.
    half_way = (1 + 1 / num_classes) / 2
    reasons = []
    if broken:
        reasons.append(f"the teacher itself answers {broken} of them with NaN or infinity")
    if seen < MIN_COVERAGE * num_classes:
        reasons.append(f"the teacher names only {seen:,} of {num_classes:,} classes on them")
    if largest_share > half_way:
        reasons.append(f"the teacher gives one and the same answer to {percent(largest_share)} of them")
    if median_confidence < half_way:
        reasons.append(
            f"the teacher's median confidence on those made for a class is {percent(median_confidence)}, "
            f"below {percent(half_way)}"
        )
    if distinct < MIN_DISTINCT:
        reasons.append(f"only {percent(distinct)} of them differ from each other")
    if repeated > MAX_REPEATED:
        reasons.append(f"{percent(repeated)} of those made for a class are like another of them")
    if batch_norm_shift is not None and not batch_norm_shift <= MAX_SHIFT:
        reasons.append(
            f"their features lie {batch_norm_shift:.2f} standard deviations from those of the teacher's training, "
            f"more than {MAX_SHIFT}"
        )
    if copied > MAX_COPIED:
        reasons.append(f"the student learned from {percent(copied)} of them")
    return reasons


# The verdict


def find_artifact(ledger: Sequence[ArtifactFidelity], artifact: str) -> ArtifactFidelity:
    """The row of that artifact.

    Raises:
        ValueError: there is no such row.
    """
    for row in ledger:
        if row.artifact == artifact:
            return row
    raise ValueError(f"{artifact} is not in the ledger")


def weakest(rows: Sequence[ArtifactFidelity], adequacy: ProbeAdequacy) -> ArtifactFidelity:
    """Of artifacts any of which the device may run, the one that decides: of the worst verdict, and the least agreement."""
    decisive = worst([overall_verdict(row, adequacy) for row in rows])
    return min((row for row in rows if overall_verdict(row, adequacy) == decisive), key=lambda row: row.agreement.value)


def overall_verdict(row: ArtifactFidelity, adequacy: ProbeAdequacy) -> Verdict:
    """The verdict of an artifact; with inadequate probes INCONCLUSIVE, unless a gate failed that needs none."""
    if adequacy.adequate:
        return row.verdict
    return worst(["INCONCLUSIVE", *(gate.verdict for gate in row.gates if gate.name in PROBE_FREE)])


def verdict_sentence(validate: ValidateRecord) -> str:
    """The verdict and what it rests on, in one sentence."""
    row = find_artifact(validate.ledger, validate.shipped)
    share = f"{percent(row.agreement.value)} of {row.agreement.total:,} held-out synthetic probes"
    measured = f"{row.artifact} gives the teacher's answer on {share}"
    if validate.verdict == "PASS":
        limits = [gate.explanation for gate in row.gates if gate.name != FINITE]
        return f"PASS: {measured}, and {'; '.join(limits) or 'no limit was set'}."
    reasons = [gate.explanation for gate in row.gates if gate.verdict != "PASS"]
    if not validate.adequacy.adequate:
        reasons.insert(0, f"the probes cannot carry a verdict, because {' and '.join(validate.adequacy.reasons)}")
    return f"{validate.verdict}: {measured}, but {'; '.join(reasons)}."


def advice(validate: ValidateRecord) -> str:
    """What to do about a verdict that is not PASS, where the ledger tells; empty otherwise. The float student comes first."""
    in_float, judged = validate.ledger[0], find_artifact(validate.ledger, validate.shipped)
    if validate.verdict == "PASS" or not validate.adequacy.adequate:
        return ""
    if more := _settled_by(judged):
        return f"More probes may settle it: the command of the run with --probes {more} makes them, and learns nothing again."
    if _misses_agreement(in_float):
        return (
            "The float student does not reach it either. Give it more time (--budget 30m, --recipe thorough), or let it be "
            "larger (--set student.max_parameter_ratio=0.6)."
        )
    if _misses_agreement(judged):
        return (
            "The float student reaches it: what is missing went with the rounding. The report lists what each layer costs; "
            "--set quantize.max_left_float=6 leaves more of them in floating point."
        )
    return ""


def _settled_by(row: ArtifactFidelity) -> int | None:
    """How many probes would let an agreement that is above its limit clear it; None where they are no answer."""
    # A time that only the device can tell is no matter of probes.
    open_gates = [
        gate for gate in row.gates if gate.verdict == "FAIL" or (gate.verdict, gate.name) == (UNDECIDED, AGREEMENT)
    ]
    if [gate.name for gate in open_gates] != [AGREEMENT] or row.agreement.value <= open_gates[0].limit:
        return None
    needed = metrics.probes_to_settle(row.agreement.value, open_gates[0].limit)
    return needed if needed is not None and needed <= MOST_PROBES else None


def remarks(validate: ValidateRecord, target: Target) -> str:
    """What to know and to do beside the verdict; empty where there is nothing."""
    return " ".join(filter(None, (advice_on(validate), speed_remark(validate, target))))


def advice_on(validate: ValidateRecord) -> str:
    """What to do about the verdict, and about what rounding cost; empty where there is nothing."""
    return " ".join(filter(None, (advice(validate), loss_remark(validate))))


def loss_remark(validate: ValidateRecord) -> str:
    """Where what rounding cost begins, and how it is avoided; empty where it cost no more than its share."""
    told: dict[str, str] = {}
    for row in validate.ledger:
        if row.step and (start := row.step.starts_in) and start.layer not in told:
            cure = (
                f" --set quantize.exclude=[{start.layer}] leaves it in floating point."
                if row.precision == "int8"
                else ""
            )
            told[start.layer] = (
                f"Most of what {row.artifact} loses begins in the layer {start.layer}, whose output falls to "
                f"{start.sqnr_db:.0f} dB from {start.before_db:.0f} dB or more before it.{cure}"
            )
    return " ".join(told.values())


def speed_remark(validate: ValidateRecord, target: Target) -> str:
    """That int8 is no faster than fp32 on the CPU that ran both, where it is such a CPU that the model is for."""
    graphs = {row.precision: row for row in validate.ledger if row.artifact.endswith(".onnx")}
    one, other = graphs.get("int8"), graphs.get("fp32")
    if target.runtime != "onnxruntime" or one is None or other is None or None in (one.latency_ms, other.latency_ms):
        return ""
    assert one.latency_ms is not None and other.latency_ms is not None
    if one.latency_ms < other.latency_ms:
        return ""
    return (
        f"On this CPU {one.artifact} is no faster than {other.artifact}: {one.latency_ms:.3g} ms against "
        f"{other.latency_ms:.3g} ms for one image. Where the device is alike, deploy {other.artifact}."
    )


def _misses_agreement(row: ArtifactFidelity) -> bool:
    """Not so where an agreement above its limit is only not certain yet."""
    missed = {gate.name for gate in row.gates if gate.name in (AGREEMENT, CLASSES, KL) and gate.verdict == "FAIL"}
    undecided = [gate for gate in row.gates if (gate.verdict, gate.name) == (UNDECIDED, AGREEMENT)]
    return bool(missed) or any(row.agreement.value <= gate.limit for gate in undecided)
