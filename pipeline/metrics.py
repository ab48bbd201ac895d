"""Numbers that compare a student's logits with its teacher's: pure functions of arrays.

Logits are `[N, K]`: N images, K classes. An image on which either side answers with NaN or infinity never counts as
agreement and is infinitely far away, so that a broken student cannot look faithful.
"""

import math

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.floating]
Mask = NDArray[np.bool_]

Z_95 = 1.959963984540054
"""Two-sided 95 % quantile of the standard normal distribution."""


def wilson_interval(successes: float, total: float, z: float = Z_95) -> tuple[float, float]:
    """Interval, low and high in [0, 1], of the share behind `successes` out of `total` independent trials.

    With p = successes / n: (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n); all of [0, 1] when n is 0.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).
    """
    if total == 0:
        return 0.0, 1.0
    share = successes / total
    scale = 1 + z**2 / total
    centre = (share + z**2 / (2 * total)) / scale
    half_width = z / scale * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    low = 0.0 if successes <= 0 else max(0.0, centre - half_width)
    high = 1.0 if successes >= total else min(1.0, centre + half_width)
    return low, high


def probes_to_settle(value: float, limit: float, z: float = Z_95) -> int | None:
    """The fewest images whose Wilson interval around the share `value` leaves out `limit`; None when they are equal.

    The Wilson interval holds the limits that the score test does not reject, so it leaves `limit` out as soon as
    |value - limit| > z √(limit (1 - limit) / n), which is solved for n.

    Source: Newcombe, "Two-sided confidence intervals for the single proportion", Statistics in Medicine 17 (1998).
    """
    if value == limit:
        return None
    return math.floor(z**2 * limit * (1 - limit) / (value - limit) ** 2) + 1


def design_effect(successes: Mask, groups: NDArray[np.integer]) -> float:
    """How many images tell as much as one independent one, where those of one group `[N]` are alike; 1 or more.

    The variance of the share of successes `[N]`, estimated between groups, over that of independent images:
    Σ_g (s_g - p n_g)² / (n p (1 - p)), for groups of n_g images with s_g successes. Four more groups of mean size are counted,
    two that succeed and two that fail: where next to no image fails it is near that size, for want of evidence, and one
    failure less never makes the interval's lower bound a lower one.

    Source: Kish, "Survey Sampling" (1965), the design effect of a sample in clusters, by its ratio estimator.
    """
    _, number, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    if len(sizes) == len(groups):
        return 1.0
    typical = float(sizes.mean())
    won = np.append(np.bincount(number, weights=successes), [typical, typical, 0.0, 0.0])
    sizes = np.append(sizes, [typical] * 4)
    share = won.sum() / sizes.sum()
    between = float(((won - share * sizes) ** 2).sum())
    return max(1.0, between / float(sizes.sum() * share * (1 - share)))


def finite_rows(logits: Logits) -> Mask:
    """Which images `[N]` have neither NaN nor infinity among their logits."""
    return np.asarray(np.isfinite(logits).all(axis=1))


def top_k_agreement(teacher: Logits, student: Logits, k: int = 1) -> Mask:
    """On which images `[N]` the teacher's first class is among the student's `k` largest logits.

    Equal logits are ranked by class number, so that a student that answers the same for everything wins nothing.
    """
    wanted = teacher.argmax(axis=1)[:, None]
    logit, classes = np.take_along_axis(student, wanted, axis=1), np.arange(student.shape[1])
    ahead = (student > logit) | ((student == logit) & (classes < wanted))
    agree: Mask = ahead.sum(axis=1) < k
    return agree & finite_rows(teacher) & finite_rows(student)


def log_softmax(logits: Logits) -> NDArray[np.float64]:
    """Log-probabilities `[N, K]` in nats, in float64: x - max x - log Σ exp(x - max x)."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True).astype(np.float64)
    log_probabilities: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return log_probabilities


def confidence(logits: Logits) -> NDArray[np.float64]:
    """The largest softmax probability `[N]` of each image, in [1/K, 1]."""
    largest: NDArray[np.float64] = np.exp(log_softmax(logits).max(axis=1))
    return largest


def margin(logits: Logits) -> NDArray[np.float64]:
    """How far the first class `[N]` is ahead of the second, as a difference of softmax probabilities in [0, 1]."""
    probabilities = np.exp(log_softmax(logits))
    first_two = np.partition(probabilities, -2, axis=1)[:, -2:]
    ahead: NDArray[np.float64] = first_two[:, 1] - first_two[:, 0]
    return ahead


def margin_weighted_agreement(teacher: Logits, student: Logits) -> float:
    """Agreement in [0, 1] where an image counts by the teacher's margin m: Σ m [same class] / Σ m.

    Higher than plain agreement where the two part on images of which the teacher itself is not sure. Not a number where
    the teacher has no margin anywhere; images on which it answers without sense are left out.
    """
    finite = finite_rows(teacher)
    weight = margin(teacher[finite])
    total = float(weight.sum())
    return float((weight * top_k_agreement(teacher, student)[finite]).sum() / total) if total else math.nan


def confidence_shift(teacher: Logits, student: Logits) -> float:
    """How much surer of itself the student is, in [-1, 1]: the mean over images of its largest softmax probability less
    the teacher's. Images on which either answers without sense are left out; not a number where none is left.
    """
    finite = finite_rows(teacher) & finite_rows(student)
    if not finite.any():
        return math.nan
    return float((confidence(student[finite]) - confidence(teacher[finite])).mean())


def confusion(teacher: Logits, student: Logits) -> NDArray[np.int64]:
    """Counts `[K, K]` of images by the teacher's class, the rows, and the student's, of those that both answer with sense."""
    finite = finite_rows(teacher) & finite_rows(student)
    counts = np.zeros((teacher.shape[1], teacher.shape[1]), np.int64)
    np.add.at(counts, (teacher[finite].argmax(axis=1), student[finite].argmax(axis=1)), 1)
    return counts


def kl_divergence(teacher: Logits, student: Logits) -> NDArray[np.float64]:
    """KL(teacher ‖ student) `[N]` in nats: Σ p (log p - log q) over the classes; infinite where logits are not finite.

    Source: Kullback and Leibler, "On information and sufficiency", Annals of Mathematical Statistics 22 (1951).
    """
    finite = finite_rows(teacher) & finite_rows(student)
    divergence = np.full(len(teacher), np.inf)
    log_p, log_q = log_softmax(teacher[finite]), log_softmax(student[finite])
    divergence[finite] = np.maximum(0.0, (np.exp(log_p) * (log_p - log_q)).sum(axis=1))
    return divergence


def percentile(values: NDArray[np.float64], q: float) -> float:
    """The smallest of `values` `[N]` that at least `q` percent of them do not exceed; one of them, never in between."""
    return float(np.sort(values)[max(0, math.ceil(q / 100 * len(values)) - 1)])


def sqnr_db(teacher: Logits, student: Logits) -> float:
    """Signal-to-quantization-noise ratio of all logits in dB: 10 log10(Σ t² / Σ (t - s)²).

    Infinite when the two are equal, minus infinity when a logit is not finite or the teacher's are all zero.
    """
    if not (np.isfinite(teacher).all() and np.isfinite(student).all()):
        return -math.inf
    signal = float((teacher.astype(np.float64) ** 2).sum())
    noise = float(((teacher.astype(np.float64) - student.astype(np.float64)) ** 2).sum())
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf
