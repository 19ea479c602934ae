import numpy as np
import pytest

from l2o.evaluation.statistics import first_reach, mean_interval, median_interval, speedups

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


def test_median_interval_covers_the_true_median_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    intervals = [median_interval(rng.normal(3.0, 1.0, 25)) for _ in range(60)]
    covered = np.mean([low <= 3.0 <= high for _, low, high in intervals])
    assert 0.85 <= covered <= 1.0
    assert np.mean([low <= 3.3 <= high for _, low, high in intervals]) < covered


def test_median_interval_of_known_values():
    values = np.arange(1.0, 102.0)
    median, low, high = median_interval(values)
    assert median == 51.0
    # Order statistics n/2 -+ 1.96 sqrt(n)/2 bound the median: 41 and 61.
    assert low == pytest.approx(41.0, abs=3.0)
    assert high == pytest.approx(61.0, abs=3.0)
    assert median_interval(values) == (median, low, high)


@pytest.mark.parametrize("values", [[2.0], [2.0, 2.0, 2.0]])
def test_the_interval_of_equal_values_is_a_point(values):
    assert median_interval(np.array(values)) == (2.0, 2.0, 2.0)


def test_the_interval_of_nearly_equal_values_needs_no_warning():
    assert median_interval(np.array([0.0, 0.0, 0.0, 1.0])).low == 0.0


@pytest.mark.parametrize("values", [[], [1.0, np.nan], [[1.0]]])
def test_median_interval_refuses_what_has_no_median(values):
    with pytest.raises(ValueError, match="`values` must be finite, one a seed; got"):
        median_interval(np.array(values))


def test_the_interval_of_a_mean_is_that_of_its_standard_error():
    values = np.random.default_rng(0).exponential(size=400)
    found = mean_interval(values)
    error = np.std(values, ddof=1) / 20
    assert found.value == np.mean(values)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert mean_interval(np.full(5, 2.0)) == (2.0, 2.0, 2.0)
