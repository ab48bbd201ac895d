import math

import numpy as np
import pytest
from numpy.typing import NDArray

from compress.pipeline import metrics


def random_logits(seed: int, n: int = 50, k: int = 7) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 3, (n, k)).astype(np.float32)


# The Wilson interval


def test_the_wilson_interval_matches_a_value_worked_by_hand() -> None:
    # n = 100, p = 0.9, z = 2: (0.9 + 4/200 ± 2 √(0.09/100 + 4/40000)) / (1 + 4/100) = (0.92 ± 2 √0.001) / 1.04
    low, high = metrics.wilson_interval(90, 100, z=2)
    assert low == pytest.approx((0.92 - 2 * math.sqrt(0.001)) / 1.04)
    assert high == pytest.approx((0.92 + 2 * math.sqrt(0.001)) / 1.04)


def test_the_wilson_interval_of_ten_out_of_ten_starts_at_n_over_n_plus_z_squared() -> None:
    # p = 1: (1 + z²/2n - z √(z²/4n²)) / (1 + z²/n) = 1 / (1 + z²/n) = 10 / (10 + 3.8415) = 0.72247
    low, high = metrics.wilson_interval(10, 10)
    assert low == pytest.approx(0.72247, abs=1e-5)
    assert high == 1.0


def test_the_wilson_interval_of_no_trials_says_nothing() -> None:
    assert metrics.wilson_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("successes", "total"), [(0, 1), (1, 1), (3, 7), (500, 1000), (999, 1000), (0, 10**6)])
def test_the_wilson_interval_holds_the_share_and_mirrors_for_failures(successes: int, total: int) -> None:
    low, high = metrics.wilson_interval(successes, total)
    assert 0 <= low <= successes / total <= high <= 1
    assert metrics.wilson_interval(total - successes, total) == pytest.approx((1 - high, 1 - low))


def test_more_trials_narrow_the_wilson_interval() -> None:
    widths = [high - low for low, high in (metrics.wilson_interval(9 * n, 10 * n) for n in (1, 10, 100))]
    assert widths == sorted(widths, reverse=True)


@pytest.mark.parametrize(("value", "limit"), [(0.93, 0.9), (0.88, 0.9), (0.905, 0.9), (0.5, 0.99), (0.97, 0.995)])
def test_the_probes_that_settle_a_limit_leave_it_out_and_one_probe_less_does_not(value: float, limit: float) -> None:
    def left_out(total: int) -> bool:
        low, high = metrics.wilson_interval(value * total, total)
        return not low <= limit <= high

    needed = metrics.probes_to_settle(value, limit)
    assert needed is not None
    assert left_out(needed)
    assert not left_out(needed - 1)


def test_the_probes_that_settle_a_limit_match_a_value_worked_by_hand() -> None:
    # z² limit (1 - limit) / (value - limit)² = 4 · 0.25 / 0.25² = 16, where the interval still touches the limit
    assert metrics.probes_to_settle(0.75, 0.5, z=2) == 17


def test_no_number_of_probes_settles_a_value_that_equals_its_limit() -> None:
    assert metrics.probes_to_settle(0.9, 0.9) is None


# Images that are alike


def test_the_design_effect_matches_a_value_worked_by_hand() -> None:
    # Groups of 2 with 2, 1, 0 and 2 successes, and four more of the mean size 2 with 2, 2, 0 and 0: p = 9 / 16.
    # Σ (s - 2 p)² = 4 (7/8)² + (1/8)² + 3 (9/8)² = 440/64, over 16 · 9/16 · 7/16 = 63/16: 110/63
    success = np.array([1, 1, 1, 0, 0, 0, 1, 1], dtype=bool)
    assert metrics.design_effect(success, np.array([4, 4, 7, 7, 1, 1, 9, 9])) == pytest.approx(110 / 63)


def test_images_of_their_own_have_a_design_effect_of_one() -> None:
    assert metrics.design_effect(np.arange(100) > 7, np.arange(100)) == 1
    assert metrics.design_effect(np.zeros(0, dtype=bool), np.zeros(0, dtype=int)) == 1


@pytest.mark.parametrize("failing", [0, 1])
def test_where_next_to_nothing_fails_views_count_for_little_more_than_one_image(failing: int) -> None:
    success = np.arange(1000) >= failing
    assert 3 < metrics.design_effect(success, np.arange(1000) // 4) < 4.001


def test_one_failure_less_never_lowers_what_is_certain() -> None:
    groups = np.arange(400) // 4
    lows = []
    for failing in range(12):
        success = ~np.isin(np.arange(400), 4 * np.arange(failing))  # each in a group of its own
        effect = metrics.design_effect(success, groups)
        lows.append(metrics.wilson_interval(success.sum() / effect, 400 / effect)[0])
    assert lows == sorted(lows, reverse=True)


def test_the_design_effect_is_the_excess_of_variance_between_samples_and_a_little_more() -> None:
    # Images of a group succeed by a chance of their own out of Beta(4, 1/2): they correlate with 1 / (4 + 1/2 + 1), and three
    # views of each have the variance of independent images times 1 + 2 / 5.5.
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(200), 3)
    successes = [random.random(600) < random.beta(4, 0.5, 200)[groups] for _ in range(3000)]
    shares = np.array([success.mean() for success in successes])
    assert shares.var() / (shares.mean() * (1 - shares.mean()) / 600) == pytest.approx(1 + 2 / 5.5, rel=0.08)
    effects = [metrics.design_effect(success, groups) for success in successes]
    assert 1 + 2 / 5.5 < np.mean(effects) < 1.1 * (1 + 2 / 5.5)


# Agreement


def test_agreement_compares_the_first_classes() -> None:
    teacher = np.array([[3.0, 1, 0], [0, 2, 1], [0, 1, 2]])
    student = np.array([[9.0, 8, 0], [5, 2, 1], [-3, -2, -1]])
    assert metrics.top_k_agreement(teacher, student).tolist() == [True, False, True]


def test_top_five_agreement_looks_for_the_teachers_class_among_the_students_five() -> None:
    teacher = np.eye(7)[[0, 1]]
    student = np.array([[2.0, 7, 6, 5, 4, 3, 1], [7, 2, 6, 5, 4, 3, 1]])  # class 0 is sixth, class 1 is sixth
    assert metrics.top_k_agreement(teacher, student, k=5).tolist() == [False, False]
    assert metrics.top_k_agreement(teacher, student, k=6).tolist() == [True, True]


def test_a_student_that_answers_the_same_for_every_image_wins_only_its_own_class() -> None:
    teacher = np.eye(10)
    assert metrics.top_k_agreement(teacher, np.zeros((10, 10))).sum() == 1
    assert metrics.top_k_agreement(teacher, np.zeros((10, 10)), k=5).sum() == 5


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_student_that_answers_with_nan_or_infinity_never_agrees(value: float) -> None:
    teacher = random_logits(0)
    student = teacher.copy()
    student[3, teacher[3].argmax()] = value
    student[4, teacher[4].argmin()] = value
    agree = metrics.top_k_agreement(teacher, student)
    assert np.flatnonzero(~agree).tolist() == [3, 4]
    assert np.flatnonzero(~metrics.finite_rows(student)).tolist() == [3, 4]
    assert np.flatnonzero(np.isinf(metrics.kl_divergence(teacher, student))).tolist() == [3, 4]
    assert metrics.sqnr_db(teacher, student) == -math.inf


def test_adding_a_constant_to_all_logits_of_an_image_changes_neither_agreement_nor_kl() -> None:
    teacher, student = random_logits(0), random_logits(1)
    shifted = student + np.arange(50, dtype=np.float32)[:, None]
    assert (metrics.top_k_agreement(teacher, shifted) == metrics.top_k_agreement(teacher, student)).all()
    assert metrics.kl_divergence(teacher, shifted) == pytest.approx(metrics.kl_divergence(teacher, student), abs=1e-4)


# Divergence


def test_the_divergence_matches_a_value_worked_by_hand() -> None:
    # p = (3/4, 1/4), q = (1/2, 1/2): 3/4 ln(3/2) + 1/4 ln(1/2) nats
    teacher, student = np.array([[math.log(3), 0.0]]), np.array([[5.0, 5.0]])
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert metrics.kl_divergence(teacher, student) == pytest.approx([expected])


def test_the_divergence_is_zero_for_equal_logits_and_never_negative() -> None:
    teacher = random_logits(0)
    assert metrics.kl_divergence(teacher, teacher).tolist() == [0.0] * 50
    assert (metrics.kl_divergence(teacher, random_logits(1)) > 0).all()


def test_the_divergence_of_huge_logits_stays_finite() -> None:
    teacher, student = np.array([[1e5, 0, 0]], dtype=np.float32), np.array([[0, 1e5, 0]], dtype=np.float32)
    assert metrics.kl_divergence(teacher, student) == pytest.approx([1e5])  # p = (1, 0, 0), log q = (-1e5, 0, -1e5)


def test_the_confidence_is_the_largest_probability() -> None:
    # softmax(ln 8, 0, 0) = (8/10, 1/10, 1/10)
    assert metrics.confidence(np.array([[math.log(8), 0, 0], [1, 1, 1]])) == pytest.approx([0.8, 1 / 3])


def test_the_percentile_is_one_of_the_values() -> None:
    values = np.arange(1.0, 101.0)
    assert metrics.percentile(values, 99) == 99
    assert metrics.percentile(values, 100) == 100
    assert metrics.percentile(values, 0) == 1
    assert metrics.percentile(np.array([np.inf, 1.0]), 99) == math.inf


# Signal and noise


def test_an_error_of_a_tenth_everywhere_is_twenty_decibels() -> None:
    teacher = random_logits(0)
    assert metrics.sqnr_db(teacher, teacher * np.float32(1.1)) == pytest.approx(20, abs=1e-4)  # 10 log10(1 / 0.1²)


def test_the_signal_to_noise_ratio_of_equal_and_of_silent_logits_is_infinite() -> None:
    teacher = random_logits(0)
    assert metrics.sqnr_db(teacher, teacher) == math.inf
    assert metrics.sqnr_db(np.zeros_like(teacher), teacher) == -math.inf


# Margins, confidence, confusion


def test_the_margin_is_the_lead_of_the_first_class_in_probability() -> None:
    # softmax(log 6, log 3, log 1) = (0.6, 0.3, 0.1): 0.6 - 0.3
    logits = np.log(np.array([[6.0, 3, 1], [1, 1, 1]]))
    assert metrics.margin(logits) == pytest.approx([0.3, 0])


def test_agreement_by_margin_counts_an_image_by_the_teachers_margin() -> None:
    # margins 0.8 (0.9 - 0.1) and 0.2 (0.6 - 0.4); only the first agrees: 0.8 / (0.8 + 0.2)
    teacher = np.log(np.array([[0.9, 0.1], [0.6, 0.4]]))
    student = np.array([[1.0, 0], [0, 1]])
    assert metrics.margin_weighted_agreement(teacher, student) == pytest.approx(0.8)


def test_agreement_by_margin_of_an_undecided_teacher_is_no_number() -> None:
    assert math.isnan(metrics.margin_weighted_agreement(np.zeros((3, 2)), np.zeros((3, 2))))


def test_a_broken_answer_is_no_agreement_by_margin_either() -> None:
    teacher = np.log(np.array([[0.9, 0.1], [0.9, 0.1]]))
    student = np.array([[1.0, 0], [np.nan, 0]])
    assert metrics.margin_weighted_agreement(teacher, student) == pytest.approx(0.5)


def test_the_shift_of_confidence_is_the_mean_of_the_students_less_the_teachers() -> None:
    # (0.9 - 0.6 + 0.5 - 0.8) / 2 = 0; with the first alone 0.3
    teacher, student = (np.log(np.array(rows)) for rows in ([[0.6, 0.4], [0.8, 0.2]], [[0.1, 0.9], [0.5, 0.5]]))
    assert metrics.confidence_shift(teacher, student) == pytest.approx(0)
    assert metrics.confidence_shift(teacher[:1], student[:1]) == pytest.approx(0.3)
    assert math.isnan(metrics.confidence_shift(teacher[:1], np.full((1, 2), np.inf)))


def test_confusion_counts_the_teachers_classes_in_rows() -> None:
    teacher = np.eye(3)[[0, 0, 1, 2]]
    student = np.eye(3)[[0, 2, 1, 1]]
    assert metrics.confusion(teacher, student).tolist() == [[1, 0, 1], [0, 1, 0], [0, 1, 0]]
