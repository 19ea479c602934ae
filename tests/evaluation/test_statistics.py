import numpy as np
import pytest

from l2o.evaluation.statistics import (
    first_reach,
    mean_interval,
    median_interval,
    speedups,
    targets,
)

STEPS = np.array([0, 10, 20, 30, 40])
BASELINE = np.array([[16.0, 8.0, 4.0, 2.0, 1.0]])


def test_a_curve_that_reaches_the_target_between_probes_is_interpolated_in_the_logarithm():
    # From 4 at step 10 to 1/4 at step 20: the logarithm crosses 0 halfway.
    learned = np.array([16.0, 4.0, 0.25, 0.25, 0.25])
    assert first_reach(STEPS, learned, 1.0) == pytest.approx(15.0)
    assert speedups(STEPS, learned[None], BASELINE) == pytest.approx([40 / 15])


def test_losses_that_are_not_positive_are_interpolated_as_they_are():
    assert first_reach(np.array([0, 10]), np.array([3.0, -1.0]), 0.0) == pytest.approx(7.5)


def test_a_curve_that_never_reaches_the_target_counts_as_zero():
    learned = np.array([[16.0, 8.0, 4.0, 2.0, 1.01]])
    assert first_reach(STEPS, learned[0], 1.0) == np.inf
    assert speedups(STEPS, learned, BASELINE).tolist() == [0.0]


def test_equal_curves_are_a_draw_even_when_noisy():
    noisy = np.array([[16.0, 2.0, 8.0, 1.0, 3.0], [16.0, 8.0, 4.0, 2.0, 1.0]])
    assert speedups(STEPS, noisy, noisy).tolist() == [1.0, 1.0]


def test_the_baseline_counts_from_when_it_first_had_its_own_final_loss():
    # It passes its final loss 3 between steps 0 (12) and 10 (0.75), halfway.
    baseline = np.array([[12.0, 0.75, 3.0, 3.0, 3.0]])
    learned = np.array([[12.0, 12.0, 12.0, 3.0, 1.0]])
    assert speedups(STEPS, learned, baseline) == pytest.approx([5 / 30])


def test_a_diverged_baseline_is_a_draw_and_a_diverged_learned_run_counts_as_zero():
    cap = 100.0
    diverged = np.array([[16.0, cap, cap, cap, cap]])
    assert speedups(STEPS, BASELINE, diverged).tolist() == [1.0]
    assert speedups(STEPS, diverged, BASELINE).tolist() == [0.0]


@pytest.mark.parametrize(("size", "coverage"), [(8, 0.992), (16, 0.979), (32, 0.980)])
@pytest.mark.parametrize("draw", ["normal", "lognormal"])
def test_median_interval_covers_the_true_median_as_often_as_it_says(size, coverage, draw):
    rng, truth = np.random.default_rng(0), {"normal": 0.0, "lognormal": 1.0}[draw]
    intervals = [median_interval(getattr(rng, draw)(size=size)) for _ in range(600)]
    covered = np.mean([low <= truth <= high for _, low, high in intervals])
    assert abs(covered - coverage) < 4 * np.sqrt(coverage * (1 - coverage) / 600)


def test_median_interval_of_known_values():
    # The chance that at most 3 of 16 are below the median is 0.011; that at most 4 are, 0.038.
    assert median_interval(np.arange(16.0)) == (7.5, 3.0, 12.0)
    assert median_interval(np.arange(8.0)[::-1]) == (3.5, 0.0, 7.0)
    assert median_interval(np.full(8, 2.0)) == (2.0, 2.0, 2.0)


@pytest.mark.parametrize("values", [[], [1.0, np.nan], [[1.0]]])
def test_median_interval_refuses_what_has_no_median(values):
    with pytest.raises(ValueError, match=r"must be (finite, one a seed|at least 8, .*); got"):
        median_interval(np.array(values))


def test_seven_values_have_no_interval():
    with pytest.raises(ValueError, match=r"`num_seeds` must be at least 8, .*; got 7\. Try"):
        median_interval(np.arange(7.0))


def test_the_fastest_setting_counts_and_where_it_never_gets_there_the_best():
    learned = np.array([[16.0, 4.0, 1.0, 1.0, 1.0]])
    fastest = np.array([[16.0, 1.0, 2.0, 2.0, 2.0]])
    alone = speedups(STEPS, learned, BASELINE[:1])
    assert speedups(STEPS, learned, BASELINE[:1], fastest) < alone
    late = np.array([[16.0, 16.0, 16.0, 16.0, 0.5]])
    assert speedups(STEPS, learned, BASELINE[:1], late) < alone  # 36 steps, not 40
    assert speedups(STEPS, learned, BASELINE[:1], np.full((1, 5), 16.0)) == alone


def test_a_target_below_what_float32_resolves_is_what_it_resolves():
    least = 16.0 * 2.0**-23
    losses = np.array([[16.0, least / 2, 0.0], [16.0, 4.0, least / 2], [16.0, 4.0, 1.0]])
    assert targets(losses).tolist() == [least, least, 1.0]
    assert targets(np.array([[16.0, -1.0]])).tolist() == [-1.0]
    # Who ends at 1e-30 and who ends at 0 are both solved, the second later.
    solved = np.array([[16.0, 1e-30, 1e-30]])
    later = np.array([[16.0, 16.0, 0.0]])
    assert speedups(STEPS[:3], solved, later) > 1.0 and speedups(STEPS[:3], later, solved) > 0.0


def test_the_interval_of_a_mean_is_that_of_its_standard_error():
    values = np.random.default_rng(0).exponential(size=400)
    found = mean_interval(values)
    error = np.std(values, ddof=1) / 20
    assert found.value == np.mean(values)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert mean_interval(np.full(5, 2.0)) == (2.0, 2.0, 2.0)
