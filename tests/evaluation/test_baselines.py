"""Tuning against brute force."""

import numpy as np
import pytest
from parabolas import KEY, SEEDS, noisy, parabola

from l2o.evaluation.baselines import BASELINES, LEARNING_RATES, tune
from l2o.evaluation.evaluate import evaluate


def test_the_grid_is_nine_half_decades():
    np.testing.assert_allclose(LEARNING_RATES, 10.0 ** np.arange(-4.0, 0.5, 0.5))


def test_tuning_picks_the_rate_that_brute_force_picks():
    task, rates = noisy(), (0.03, 0.3, 3.0)
    tunings = tune(KEY, task, horizon=30, learning_rates=rates, baselines=tuple(BASELINES), **SEEDS)
    for name, baseline in BASELINES.items():
        losses = [
            evaluate(KEY, task, {"a": baseline(rate, 30)}, horizon=30, **SEEDS)["a"].final_loss
            for rate in rates
        ]
        np.testing.assert_allclose(tunings[name].final_loss, losses, rtol=1e-3, atol=1e-6)
        assert tunings[name].learning_rate == rates[int(np.argmin(np.median(losses, axis=1)))]
    assert tunings["adam"].learning_rate == 0.3
    assert not tunings["adam"].at_grid_edge


def test_tuning_says_when_the_best_rate_is_at_the_edge_of_the_grid():
    tunings = tune(KEY, parabola(), horizon=5, learning_rates=(1e-4, 1e-3), **SEEDS)
    assert all(t.at_grid_edge and t.learning_rate == 1e-3 for t in tunings.values())
    assert tunings["adam"].label == "adam lr=0.001"


def test_rates_that_diverge_lose_to_those_that_do_not():
    tunings = tune(KEY, parabola(cap=8.0), horizon=3, learning_rates=(0.1, 100.0), **SEEDS)
    assert tunings["adam"].diverged.mean(axis=1).tolist() == [0.0, 1.0]
    assert tunings["adam"].final_loss[1].tolist() == [8.0] * 3
    assert tunings["adam"].learning_rate == 0.1


@pytest.mark.parametrize("rates", [(), (0.0, 1.0), (1.0, 0.1), (-1.0,)])
def test_bad_learning_rates(rates):
    with pytest.raises(ValueError, match="`learning_rates` must be positive and increasing; got"):
        tune(KEY, parabola(), horizon=2, learning_rates=rates, **SEEDS)
