"""Whether probes could tell a faithful student from a useless one; those that could not carry no verdict at all."""

import numpy as np
from numpy.typing import NDArray

from compress.pipeline import metrics
from compress.pipeline.metrics import Logits
from compress.pipeline.proportions import percent, proportion
from compress.pipeline.records import ProbeAdequacy

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


def half_way(num_classes: int) -> float:
    """Half way between a guess, which is right once in `num_classes` times, and certainty; that separates the two."""
    return (1 + 1 / num_classes) / 2


def assess_adequacy(
    teacher_logits: Logits,
    targets: NDArray[np.integer],
    made_for_a_class: metrics.Mask,
    unrecognised: int = 0,
    copied: int = 0,
    repeated: int = 0,
    batch_norm_shift: float | None = None,
) -> ProbeAdequacy:
    """Whether the probes could tell a faithful student from a useless one, judged by the teacher's logits `[N, K]`.

    A set is adequate when the teacher answers finitely, names the classes, names none of them so often that a constant answer
    would look faithful, is confident on images that were made for a class, and sees different images, which were held back
    and are not far from its training.

    Args:
        targets: the classes `[N]` that the images were made for.
        made_for_a_class: which of them `[N]` were made to show that class, and are shown as they were made.
        unrecognised: how many of those were left out, since the teacher takes them for another class.
        copied: how many of them the student learned from.
        repeated: how many of those made for a class are like another of them.
        batch_norm_shift: how far these are from the teacher's training, see `likeness`.
    """
    finite, num_classes = metrics.finite_rows(teacher_logits), teacher_logits.shape[1]
    logits, made = teacher_logits[finite], made_for_a_class[finite]
    named = np.bincount(logits.argmax(axis=1), minlength=num_classes)
    shares = named / max(1, named.sum())
    on_target = logits[made].argmax(axis=1) == targets[finite][made]
    certainty = metrics.confidence(logits[made])
    seen = int((named > 0).sum())
    median_confidence = float(np.median(certainty)) if len(certainty) else 0.0
    reasons = _inadequacies(
        broken=int((~finite).sum()),
        seen=seen,
        largest_share=float(shares.max()),
        median_confidence=median_confidence,
        distinct=len(np.unique(logits, axis=0)) / max(1, len(logits)),
        repeated=repeated / max(1, int(made_for_a_class.sum())),
        num_classes=num_classes,
        copied=copied / max(1, len(targets)),
        batch_norm_shift=batch_norm_shift,
    )
    return ProbeAdequacy(
        adequate=not reasons,
        classes_seen=seen,
        num_classes=num_classes,
        largest_class_share=float(shares.max()),
        median_confidence=median_confidence,
        on_target=proportion(int(on_target.sum()), len(on_target) + unrecognised),
        batch_norm_shift=batch_norm_shift,
        repeated=repeated,
        copied=copied,
        broken=int((~finite).sum()),
        unrecognised=unrecognised,
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
    separates = half_way(num_classes)
    reasons = []
    if broken:
        reasons.append(f"the teacher itself answers {broken} of them with NaN or infinity")
    if seen < MIN_COVERAGE * num_classes:
        reasons.append(f"the teacher names only {seen:,} of {num_classes:,} classes on them")
    if largest_share > separates:
        reasons.append(f"the teacher gives one and the same answer to {percent(largest_share)} of them")
    if median_confidence < separates:
        reasons.append(
            f"the teacher's median confidence on those made for a class is {percent(median_confidence)}, "
            f"below {percent(separates)}"
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
