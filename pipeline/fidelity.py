"""How faithfully an artifact imitates the teacher, and which of several artifacts decides the verdict."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from compress.exporters.targets import Gates
from compress.pipeline import metrics
from compress.pipeline.gates import FINITE, PROBE_FREE, UNDECIDED, judge, worst
from compress.pipeline.metrics import Logits
from compress.pipeline.proportions import percent, proportion_of
from compress.pipeline.records import (
    ArtifactFidelity,
    Confusion,
    LedgerRow,
    Measures,
    Proportion,
    Step,
    ValidateRecord,
)

MOST_CONFUSIONS = 12
"""Pairs of classes that are listed."""

MOST_MAPPED = 20
"""Classes up to which all pairs are counted out; of more, no page has room for them."""


def measures(teacher_logits: Logits, logits: Logits, groups: NDArray[np.integer]) -> Measures:
    """How near answers come to the teacher's on N images: logits `[N, K]` of both; those of one group `[N]` are alike."""
    kl = metrics.kl_divergence(teacher_logits, logits)
    many = teacher_logits.shape[1] > 5
    return Measures(
        agreement=proportion_of(metrics.top_k_agreement(teacher_logits, logits), groups),
        top5_agreement=proportion_of(metrics.top_k_agreement(teacher_logits, logits, k=5), groups) if many else None,
        mean_kl=float(kl.mean()),
        kl_p99=metrics.percentile(kl, 99),
        sqnr_db=metrics.sqnr_db(teacher_logits, logits),
        margin_weighted_agreement=metrics.margin_weighted_agreement(teacher_logits, logits),
        confidence_shift=metrics.confidence_shift(teacher_logits, logits),
    )


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
    groups: NDArray[np.integer] | None = None,
    generators: NDArray[np.integer] | None = None,
    labels: Sequence[str] = (),
    timed_on_device: bool = True,
    adequate: bool = True,
) -> ArtifactFidelity:
    """One artifact against the teacher on the same N probes: logits `[N, K]`, the `kinds` of the probes `[N]`.

    All is measured over all probes, and beside it for each kind; agreement also for each class that the teacher names, and for
    each of the `generators` `[N]`, by default one. Probes of one of the `groups` `[N]` are alike, by default none are. Without
    `labels`, classes go by their numbers.
    `latency_ms` is judged only if it was `timed_on_device`, where the model is to run; what rests on the probes, only if they
    are `adequate`.

    Raises:
        ValueError: there are no probes, or the arrays do not belong together.
    """
    if not len(kinds) or teacher_logits.shape != student_logits.shape or len(kinds) != len(teacher_logits):
        raise ValueError(f"teacher {teacher_logits.shape}, student {student_logits.shape}, kinds {kinds.shape}")
    groups = np.arange(len(kinds)) if groups is None else groups
    generators = np.zeros(len(kinds), int) if generators is None else generators
    over_all = measures(teacher_logits, student_logits, groups)
    agree, named = metrics.top_k_agreement(teacher_logits, student_logits), teacher_logits.argmax(axis=1)
    by_class = _agreement_by(named, teacher_logits.shape[1], agree, groups)
    names = labels or [f"class {number}" for number in range(len(by_class))]
    confusion = metrics.confusion(teacher_logits, student_logits)
    judged = judge(
        gates,
        agreement=over_all.agreement,
        by_class=dict(zip(names, by_class, strict=True)),
        mean_kl=over_all.mean_kl,
        size_bytes=size_bytes,
        broken=int((~metrics.finite_rows(student_logits)).sum()),
        latency_ms=latency_ms,
        timed_on_device=timed_on_device,
        adequate=adequate,
    )
    return ArtifactFidelity(
        artifact=artifact,
        precision=precision,
        size_bytes=size_bytes,
        latency_ms=latency_ms,
        **dict(over_all),
        by_kind={
            str(kind): measures(*(array[kinds == kind] for array in (teacher_logits, student_logits, groups)))
            for kind in np.unique(kinds)
        },
        agreement_by_class=by_class,
        agreement_by_generator=_agreement_by(generators, int(generators.max()) + 1, agree, groups),
        confusion=tuple(map(tuple, confusion.tolist())) if len(confusion) <= MOST_MAPPED else None,
        confusions=_confusions(confusion),
        gates=judged,
        verdict=worst([*(gate.verdict for gate in judged), *([] if adequate else [UNDECIDED])]),
    )


def _agreement_by(
    part: NDArray[np.integer], parts: int, agree: metrics.Mask, groups: NDArray[np.integer]
) -> tuple[Proportion, ...]:
    """The share of images `[N]` that agree, for each of the `parts` that they fall into."""
    return tuple(proportion_of(agree[part == number], groups[part == number]) for number in range(parts))


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
    before: LedgerRow, after: LedgerRow, logits_before: Logits, logits_after: Logits, groups: NDArray[np.integer]
) -> Step:
    """One form of the student against the one that it was made from, on the same N probes: logits `[N, K]` of both."""
    return Step(
        origin=before.artifact,
        agreement=proportion_of(metrics.top_k_agreement(logits_before, logits_after), groups),
        mean_kl=float(metrics.kl_divergence(logits_before, logits_after).mean()),
        sqnr_db=metrics.sqnr_db(logits_before, logits_after),
        lost=before.agreement.value - after.agreement.value,
    )


def find_artifact(ledger: Sequence[ArtifactFidelity], artifact: str) -> ArtifactFidelity:
    """The row of that artifact.

    Raises:
        ValueError: there is no such row.
    """
    for row in ledger:
        if row.artifact == artifact:
            return row
    raise ValueError(f"{artifact} is not in the ledger")


def weakest(rows: Sequence[ArtifactFidelity]) -> ArtifactFidelity:
    """Of artifacts any of which the device may run, the one that decides: of the worst verdict, and the least agreement."""
    decisive = worst([row.verdict for row in rows])
    return min((row for row in rows if row.verdict == decisive), key=lambda row: row.agreement.value)


def verdict_sentence(validate: ValidateRecord) -> str:
    """The verdict and what it rests on, in one sentence."""
    row = find_artifact(validate.ledger, validate.shipped)
    share = f"{percent(row.agreement.value)} of {row.agreement.total:,} held-out synthetic probes"
    measured = f"{row.artifact} gives the teacher's answer on {share}"
    if validate.verdict == "PASS":
        limits = [gate.explanation for gate in row.gates if gate.name != FINITE]
        return f"PASS: {measured}, and {'; '.join(limits) or 'no limit was set'}."
    # Beside what failed, what is open changes nothing.
    adequacy, against = validate.adequacy, [gate for gate in row.gates if gate.verdict == validate.verdict]
    reasons = [gate.explanation for gate in against if adequacy.adequate or gate.name in PROBE_FREE]
    if not adequacy.adequate:
        reasons.insert(0, f"the probes cannot carry a verdict, because {' and '.join(adequacy.reasons)}")
    return f"{validate.verdict}: {measured}, but {'; '.join(reasons)}."
